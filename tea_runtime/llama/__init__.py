"""llama.cpp through its C API: weights, contexts, sampling, tokens."""
