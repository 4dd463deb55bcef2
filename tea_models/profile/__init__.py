"""`ModelProfile`: what is true of a model file on every machine, each value with where it came from."""
