"""Credentials for a host: in the address, in `TEA_MODELS_AUTH_<HOST>`, or in `~/.netrc`."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from tea_models.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "TEA_MODELS_AUTH_"


def split_credentials(url: str) -> tuple[str, str]:
    """An address without user and password, and the value of `Authorization` that they make ("" without them)."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, ""
    return urlunsplit(parts._replace(netloc=host)), _basic(unquote(user)) if user else ""


def stored_authorization(url: str, environ: Mapping[str, str]) -> str:
    """The value of `Authorization` that the user keeps for the host of an address, or "".

    `TEA_MODELS_AUTH_<HOST>` (upper case, `.`, `-` and `:` as `_`; with the port first, then without) is `user:password`
    or a bearer token. Else `NETRC` or `~/.netrc` is looked at; its `default` is not for us.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    for name in ([f"{host}:{parts.port}"] if parts.port else []) + [host]:
        value = environ.get(PREFIX + re.sub(r"[^A-Z0-9]", "_", name.upper()), "").strip()
        if value:
            return _basic(value) if ":" in value else f"Bearer {value}"
    return _from_netrc(host, environ)


def _from_netrc(host: str, environ: Mapping[str, str]) -> str:
    home = environ.get("HOME", "")
    path = Path(environ.get("NETRC") or Path(home) / ".netrc")
    if not home and not environ.get("NETRC"):
        return ""
    try:
        text = path.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""
    if not host or host not in text:
        return ""
    import netrc

    try:
        found = netrc.netrc(str(path)).hosts.get(host)
    except netrc.NetrcParseError as error:
        raise UsageError(f"{path}:{error.lineno}: can't be parsed: {error.msg}") from None
    return _basic(f"{found[0]}:{found[2]}") if found else ""


def _basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode("ascii")
