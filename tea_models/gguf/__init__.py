"""GGUF headers: read from any source of bytes, bounded and lazily, and judged before the native loader sees them."""

from tea_models.gguf.arrays import ArrayValue
from tea_models.gguf.bytes_source import FileSource
from tea_models.gguf.header import Header, read_header, size_by_header
from tea_models.gguf.loadable import check_loadable, check_tokenizable

__all__ = ["ArrayValue", "FileSource", "Header", "check_loadable", "check_tokenizable", "read_header", "size_by_header"]
