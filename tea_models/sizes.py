"""Sizes as people write and read them: `8GiB`, `1.5 GiB`."""

from __future__ import annotations

import re

from tea_models.errors import UsageError

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)(b?)\Z", re.IGNORECASE)
_LEAST_BYTES = 1 << 20  # fewer bytes than that are not what somebody means by a number alone
_MOST_GIB = 1024
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def human_bytes(size: float | None) -> str:
    """A number of bytes in the unit a person would choose, with three significant digits; `?` where it is unknown."""
    if size is None:
        return "?"
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1000:
            return f"{size:.{0 if size >= 100 else 1 if size >= 10 else 2}f} {unit}"
    return f"{size / 1024:.2f} TiB"


def parse_bytes(text: str) -> int:
    """Bytes of a size such as `8GiB`, `8G` (powers of 1024), `8GB` (powers of 1000), or bytes of a MiB or more."""
    match = _SIZE.match(text.strip())
    if not match:
        raise UsageError(f"size {text!r}: expected a number and a unit, for example 8GiB or 512MiB")
    number, prefix, binary, letter = match.groups()
    # `GB` is 1000³ as on a disk's label; `G` and `GiB` are 1024³ as memory is meant.
    base = 1000 if letter and prefix and not binary else 1024
    size = int(float(number) * base ** _POWERS[prefix.lower()])
    if size < _LEAST_BYTES and not prefix and not letter and float(number):
        unit = "GiB" if float(number) <= _MOST_GIB else "MiB"
        raise UsageError(f"size {text!r}: its unit is missing", hint=f"did you mean {number}{unit}? (MiB, GiB, TiB)")
    if size <= 0:
        raise UsageError(f"size {text!r}: expected more than nothing")
    return size
