"""Where things are and what is allowed, resolved once at the edges (flag, environment, default); else passed on."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tea_models.errors import UsageError

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}
_MAX_REGISTRY_BYTES = 4 * 1024 * 1024
DEFAULT_HF_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class Settings:
    """Resolved settings of one invocation.

    Attributes:
        store_dir: Folder of the store; may not exist yet.
        registry_files: Registry layers after the built-in one; later wins. All exist.
        foreign_registry: The project's `registry.yaml`, if it is another program's.
        offline: Nothing may be fetched.
        hf_endpoint: Base address of the Hub, without a trailing slash.
        hf_token: Token for the Hub, or None to let `huggingface_hub` look in its own store. Never printed.
        mirror: Prefix put before every `https:` source, or "".
        connections: Parallel connections for one file, at most.
        lock_file: The nearest `models.lock`, in whose words names are understood; None where there is none.
        locked: Only what `lock_file` names may be used.
        cache_dir: Where to keep what can be found out again and has no place in the store; None for nowhere.
        environ: The environment the settings were made from, for the tools that are started (pip, the probe).
    """

    store_dir: Path
    registry_files: tuple[Path, ...] = ()
    foreign_registry: Path | None = None
    offline: bool = False
    hf_endpoint: str = DEFAULT_HF_ENDPOINT
    hf_token: str | None = field(default=None, repr=False)
    mirror: str = ""
    connections: int = 4
    lock_file: Path | None = None
    locked: bool = False
    cache_dir: Path | None = None
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def resolve(
        cls,
        environ: Mapping[str, str],
        *,
        cwd: Path,
        store_dir: Path | None = None,
        offline: bool | None = None,
        locked: bool | None = None,
    ) -> Settings:
        """Resolve settings from flags (the keyword arguments) and the environment.

        Args:
            environ: docs/cli.md names the variables that are read.
            cwd: Folder whose `registry.yaml`, if any, is the project's layer; the lock is looked for from here upwards.
            store_dir: Overrides `TEA_MODELS_DIR`.
            offline: Overrides the environment.
            locked: Overrides the environment.

        Raises:
            UsageError: A variable has a value that can't be used.
        """
        home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
        store = store_dir or _expand(environ.get("TEA_MODELS_DIR", ""), home) or _default_store(home)
        if offline is None:
            offline = _flag(environ, "TEA_OFFLINE") or _flag(environ, "HF_HUB_OFFLINE")
        project = cwd / "registry.yaml"
        foreign = project.is_file() and not is_registry(project)
        named = _expand(environ.get("TEA_REGISTRY", ""), home)
        if named is not None and not named.is_file():
            raise UsageError(f"registry {named}: no such file", hint="check TEA_REGISTRY")
        layers = [_user_registry(environ, home), None if foreign else project, named]
        return cls(
            store_dir=store if store.is_absolute() else cwd / store,
            registry_files=tuple(path for path in layers if path is not None and path.is_file()),
            foreign_registry=project if foreign else None,
            offline=offline,
            hf_endpoint=(environ.get("HF_ENDPOINT") or DEFAULT_HF_ENDPOINT).rstrip("/"),
            hf_token=environ.get("HF_TOKEN") or None,
            mirror=environ.get("TEA_MODELS_MIRROR", "").rstrip("/"),
            connections=_connections(environ.get("TEA_MODELS_CONNECTIONS") or "4"),
            lock_file=_nearest_lock(cwd, home),
            locked=_flag(environ, "TEA_LOCKED") if locked is None else locked,
            cache_dir=_default_store(home).parent,
            environ=dict(environ),
        )


def _nearest_lock(cwd: Path, home: Path) -> Path | None:
    """The `models.lock` of the project: here or above, but not above a repository's top or the home."""
    for folder in (cwd, *cwd.parents):
        if (folder / "models.lock").exists():
            return folder / "models.lock"
        if folder == home or (folder / ".git").exists():
            break
    return None


def is_registry(path: Path) -> bool:
    """Whether a file called `registry.yaml` is a registry of models, and not some other program's."""
    try:
        with path.open("rb") as file:
            return b"tea.registry/" in file.read(_MAX_REGISTRY_BYTES)
    except OSError:
        return True  # reading it as a registry says what is wrong


def _default_store(home: Path) -> Path:
    # On Linux the path is part of the contract with the TEA host, which looks for models there by name.
    if sys.platform.startswith("linux"):
        return home / ".cache" / "tea" / "models"
    import platformdirs

    return platformdirs.user_cache_path("tea", appauthor=False) / "models"


def _user_registry(environ: Mapping[str, str], home: Path) -> Path:
    if sys.platform.startswith("linux"):
        base = environ.get("XDG_CONFIG_HOME")
        return (Path(base) if base else home / ".config") / "tea" / "registry.yaml"
    import platformdirs

    return platformdirs.user_config_path("tea", appauthor=False) / "registry.yaml"


def _expand(text: str, home: Path) -> Path | None:
    path = home / text[2:] if text.startswith("~/") else Path(text)
    return path if text else None


def _flag(environ: Mapping[str, str], name: str) -> bool:
    value = environ.get(name, "").strip().lower()
    if value not in _TRUE | _FALSE:
        raise UsageError(f"{name}={value!r}: expected 1 or 0")
    return value in _TRUE


def _connections(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= 32:
        raise UsageError(f"TEA_MODELS_CONNECTIONS={value!r}: expected a whole number from 1 to 32")
    return int(value)
