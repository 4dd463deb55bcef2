"""The registry of models and of prebuilt engines: what is pinned, and layered over what comes with this package."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
#: In a checkout and in an editable install the registry lies at the top of the project, where people edit it.
CHECKOUT = _PACKAGE.parent


def packaged_text(name: str) -> str:
    """The text of a file that comes with this distribution."""
    packaged = _PACKAGE / name
    return (packaged if packaged.is_file() else CHECKOUT / name).read_text("utf-8")
