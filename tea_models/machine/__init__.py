"""What this machine can give a model: memory, cores, GPUs."""
