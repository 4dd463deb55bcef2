"""The header of a model that is still on its way, read from what has arrived."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from tea_models.errors import TeaModelsError

if TYPE_CHECKING:
    from tea_models.net.partial import PartialFile

# Vocabularies of a quarter of a million tokens make 10 MB; no header comes near this.
LONGEST_HEADER: Final = 512 << 20
# What may follow the last tensor: padding to the alignment, and a little for whoever appends something.
SLACK: Final = 1 << 20


class _Growing:
    """The beginning of a partial as a `ByteSource` that does not say how big the file will be."""

    size = None

    def __init__(self, partial: PartialFile, end: int) -> None:
        self.name = str(partial.path)
        self._partial, self._end = partial, end

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._partial.descriptor, max(0, min(length, self._end - offset)), offset)

    def close(self) -> None:
        pass


def size_by_header(partial: PartialFile, end: int) -> int | None:
    """How big the file must be, by its header; None if that can't be read (yet).

    Args:
        partial: The file.
        end: How many bytes at its beginning have arrived.
    """
    from tea_models.gguf import read_header

    try:
        header = read_header(_Growing(partial, end))
    except TeaModelsError:
        return None
    tensors = [header.data_offset + info.offset + info.size for info in header.tensors]
    return max(tensors, default=header.header_size)
