"""Wheels for a package index that is a folder, so that the real pip fetches them without a network."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from tea_models.settings import Settings


def build_wheel(folder: Path, package: str, version: str, members: dict[str, bytes]) -> Path:
    """Write a wheel of data files."""
    folder.mkdir(parents=True, exist_ok=True)
    name = package.replace("-", "_")
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def index_settings(store: Path, index: Path, *, registry: Path | None = None, **environ: str) -> Settings:
    """Settings whose pip knows only the wheels in `index`."""
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "TEA_"))}
    extra = {"TEA_REGISTRY": str(registry)} if registry else {}
    return Settings.resolve(plain | pip | extra | environ, cwd=index, store_dir=store)
