"""`ModelProfile`: what is true of a model file on every machine, each value with where it came from.

A profile never holds a fact about a machine (threads, memory, paths), so it may be committed and shared. The settings
for a machine are a `RunPlan` (see `tea_models.plan`).
"""
