"""How file names say their quantisation, for choosing a file of a repository by tag (`hf:owner/repo:Q4_K_M`).

Only for choosing among names: what a file really holds is read from its header.
"""

from __future__ import annotations

import re

# llama.cpp's names (`llama_ftype`), with the prefixes and suffixes that publishers add: UD-, -imat, _XL, …
_QUANTIZATION = re.compile(
    r"(?:\A|[-._/])(?P<name>(?:UD-)?(?:I?Q\d(?:_\d(?:_\d)*|_K(?:_[A-Z]+)?|_[A-Z]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32))"
    r"(?=\Z|[-._/])",
    re.IGNORECASE,
)


def quantization_of(filename: str) -> str | None:
    """The quantisation that a file name names, in upper case (`F16` also for `fp16`), or None."""
    found = _QUANTIZATION.findall(filename)
    if not found:
        return None
    name: str = found[-1].upper()
    return "F" + name[2:] if name in ("FP16", "FP32") else name
