"""The engine of a process: one thread that owns every model and context, and decodes what all ask for together."""
