"""Any OpenAI-compatible server as a backend."""
