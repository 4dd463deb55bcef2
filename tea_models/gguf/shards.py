"""A model in several files: whether they are the parts of one model (`llama_model_loader`, the `split.*` keys)."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from tea_models.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tea_models.gguf.header import Header


def check_shards(headers: Sequence[Header]) -> None:
    """Check that the files that the first one's name asks for are the parts of one model, in order.

    Raises:
        IntegrityError: A part is another one than its name says, or they don't add up; names the file.
    """
    if len(headers) == 1:
        return
    seen: dict[str, str] = {}
    for index, header in enumerate(headers):
        name = PurePath(header.source.name).name
        for key, expected in (("split.no", index), ("split.count", len(headers))):
            found = header.metadata.get(key)
            if found != expected:
                shown = "missing" if found is None else str(found)[:20]
                raise IntegrityError(
                    f"{name}: {key} is {shown}, expected {expected}",
                    hint="the parts do not belong together: fetch the model again",
                )
        for info in header.tensors:
            if info.name in seen:
                raise IntegrityError(f"{name}: tensor {info.name[:80]} is in {seen[info.name]} too")
            seen[info.name] = name
    stated = headers[0].metadata.get("split.tensors.count")
    if stated is not None and stated != len(seen):
        raise IntegrityError(
            f"{PurePath(headers[0].source.name).name}: split.tensors.count is {str(stated)[:20]}, "
            f"the parts have {len(seen):,} tensors",
            hint="a part is of another model: fetch the model again",
        )
