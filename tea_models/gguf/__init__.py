"""GGUF headers: read from any source of bytes, bounded and lazily, and judged before the native loader sees them."""
