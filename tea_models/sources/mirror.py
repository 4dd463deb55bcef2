"""Mirrors: a folder, a bucket (`s3://…`, any fsspec filesystem) or an OCI repository, with files under their SHA-256.

A folder and a bucket hold `models.lock` and `blobs/sha256/<digest>`. An OCI repository holds an artifact with a layer a
file, as `oras push` makes them, so that the digest of a layer is that of the file. `tea-models push` fills them.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tea_models.errors import AccessDeniedError, UsageError
from tea_models.files import Source
from tea_models.redact import redact
from tea_models.refs import FileRef, FsspecRef, Reference, UrlRef
from tea_models.settings import Settings

_ANSWER_SECONDS = 60.0
# Host with port, repository, and a tag (OCI distribution specification 1.1, "Pulling manifests").
_OCI = re.compile(r"oci://(?P<host>[^/@?#]+)/(?P<repo>[a-z0-9][a-z0-9._/-]*)(?::(?P<tag>\w[\w.-]{0,127}))?\Z")


@dataclass(frozen=True, slots=True)
class OciRepository:
    """A repository of an OCI registry, with a tag."""

    host: str
    repo: str
    tag: str

    @property
    def insecure(self) -> bool:
        """Whether plain http is spoken: to this machine only."""
        from tea_models.net.client import is_loopback  # slow to import, and few have a mirror

        return is_loopback(self.host.rpartition(":")[0] or self.host)

    def url(self, tail: str) -> str:
        """An address of the registry's API about this repository."""
        return f"{'http' if self.insecure else 'https'}://{self.host}/v2/{self.repo}/{tail}"


def oci_repository(target: str) -> OciRepository | None:
    """The repository that a mirror is; None for one of another kind."""
    if not target.lower().startswith("oci://"):
        return None
    match = _OCI.match(target)
    if match is None:
        raise UsageError(f"{redact(target)}: expected oci://HOST/REPOSITORY[:TAG], in lower case, without credentials")
    return OciRepository(match["host"], match["repo"], match["tag"] or "latest")


def is_mirror(text: str) -> bool:
    """Whether a text names a mirror, and not a prefix for `https:` addresses."""
    return bool(text) and not text.lower().startswith(("http://", "https://"))


def place_in(target: str, name: str) -> Reference:
    """Where a mirror that is a folder or a bucket has something."""
    if "://" in target and not target.lower().startswith("file://"):
        return FsspecRef(f"{target.rstrip('/')}/{name}")
    return FileRef(Path(target.removeprefix("file://")).expanduser() / name)


def mirrored(target: str, sha256: str) -> Source:
    """Where a mirror has a file."""
    repository = oci_repository(target)
    if repository is not None:
        return Source((UrlRef(repository.url(f"blobs/sha256:{sha256}"), sha256),))
    return Source((place_in(target, f"blobs/sha256/{sha256}"),))


def logged_in(settings: Settings, target: str) -> Settings:
    """Settings with the credentials that docker's configuration has for a mirror, where `oras` is installed."""
    repository = oci_repository(target)
    if repository is None:
        return settings
    try:
        registry = open_registry(repository, settings)
        registry.do_request(repository.url(f"manifests/{repository.tag}"), "HEAD").close()
    except Exception:  # noqa: BLE001 - whatever it is, the download meets it too, and can say it
        return settings
    token = getattr(registry.auth, "token", None)
    basic = getattr(registry.auth, "_basic_auth", None) or ""
    if not token and not basic:
        return settings
    name = "TEA_MODELS_AUTH_" + re.sub(r"[^A-Z0-9]", "_", repository.host.upper())
    return replace(settings, environ={name: token or base64.b64decode(basic).decode(), **settings.environ})


def open_registry(repository: OciRepository, settings: Settings) -> Any:
    """A client of `oras` with the user's credentials; an ImportError without it, an OSError if it is unreachable."""
    import requests
    from oras.container import Container
    from oras.provider import Registry

    from tea_models.net.client import CONNECT_SECONDS, stored_authorization

    base = repository.url("").partition(repository.repo)[0]
    challenge = requests.get(base, timeout=CONNECT_SECONDS).headers.get("www-authenticate", "").lower()
    kind = "basic" if challenge.startswith("basic") else "token"
    registry = Registry(hostname=repository.host, insecure=repository.insecure, auth_backend=kind)
    registry.auth.load_configs(Container(f"{repository.host}/{repository.repo}:{repository.tag}"))
    known = stored_authorization(base, settings.environ)
    if known.startswith("Basic "):
        registry.auth.set_basic_auth(*base64.b64decode(known[6:]).decode().split(":", 1))
    if kind == "basic" and not getattr(registry.auth, "_basic_auth", None):
        hint = f"docker login {repository.host}, or TEA_MODELS_AUTH_<HOST>=user:password"
        raise AccessDeniedError(f"oci://{repository.host}/{repository.repo}: the registry wants a password", hint=hint)
    # Its own requests wait for ever.
    registry.session.request = partial(registry.session.request, timeout=(CONNECT_SECONDS, _ANSWER_SECONDS))
    return registry
