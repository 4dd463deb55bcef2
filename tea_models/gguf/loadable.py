"""Whether llama.cpp can load a file that reads well: what would make its loader fail, or kill the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tea_models.gguf.header import Header


def check_loadable(header: Header) -> tuple[str, ...]:
    """Reasons why the native loader must not be given this file; empty when there are none.

    Args:
        header: The header of the file (of the first shard).
    """
    return header.problems
