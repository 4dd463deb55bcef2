"""The registry: which names there are, what they stand for, and the layers they come from."""
