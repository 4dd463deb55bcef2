"""`hf:`: files and repositories of the Hugging Face Hub, or of the server that `HF_ENDPOINT` names.

Questions go through our own client, so that hashes count only from the Hub itself. Bytes come through our own
downloader, at the commit, so that a repository that changes meanwhile can't mix two versions. `huggingface_hub` knows
the user's token and fetches what only its storage protocol (Xet) delivers.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tea_models.caller import Caller
from tea_models.disk.hashing import sha256_file
from tea_models.errors import AccessDeniedError, MissingFileError, SourceUnavailableError, UnknownModelError, UsageError
from tea_models.files import Artifact, Fetched, ModelFile, Source, base_name, shard_names
from tea_models.gguf.bytes_source import ByteSource
from tea_models.net.answers import byte_count, refusal
from tea_models.refs import SHA256, HubRef, quantization_of
from tea_models.settings import DEFAULT_HF_ENDPOINT, Settings
from tea_models.sizes import human_bytes
from tea_models.sources.http import client_for, download_file, open_address, refuse_offline

if TYPE_CHECKING:
    import httpx2


COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_MAX_LISTING = 64 << 20


def resolve(reference: HubRef, caller: Caller) -> Artifact:
    """Ask the Hub which files a reference means, at which commit, with sizes and hashes."""
    commit, license_ = reference.revision, None
    every: dict[str, ModelFile] = {}
    if reference.path is not None:
        folder = PurePosixPath(reference.path)
        paths = [str(folder.with_name(name)) for name in shard_names(folder.name)]
    else:
        commit, every, license_ = listing(reference, caller.settings)
        paths = choose(reference, every)
    files = []
    for path in paths:
        file = every.get(path)
        if file is None or file.sha256 is None or file.size is None:  # the listing of some servers has no hashes
            commit, file = metadata(HubRef(reference.repo, path, revision=commit), caller.settings)
        files.append(file)
    name = str(HubRef(reference.repo, reference.path, reference.quantization, commit))
    return Artifact(str(reference), name, quantization_of(paths[0]), tuple(files), license_)


def metadata(reference: HubRef, settings: Settings) -> tuple[str, ModelFile]:
    """Commit of a file, and the file with its size and SHA-256, as the Hub itself states them."""
    headers = _ask(reference, address(reference, settings), settings, method="HEAD")[0].headers
    commit = headers.get("x-repo-commit") or reference.revision
    if not commit:
        raise SourceUnavailableError(f"{reference}: {settings.hf_endpoint} does not say which commit it is")
    size = byte_count(headers.get("x-linked-size") or headers.get("content-length"))
    sha256 = (headers.get("x-linked-etag") or headers.get("etag") or "").removeprefix("W/").strip('"')
    return commit, _file(reference.repo, str(reference.path), commit, size, sha256)


def choose(reference: HubRef, files: Mapping[str, ModelFile]) -> list[str]:
    """The paths of the files (shards) of a repository that a reference without a path means."""
    models: dict[str, list[str]] = {}  # by the path of the first shard
    for path in files:
        if path.lower().endswith(".gguf"):
            whole = PurePosixPath(path)
            models.setdefault(str(whole.with_name(shard_names(whole.name)[0])), []).append(path)
    if not models:
        hint = f"a repository named {reference.repo}-GGUF, or another's, may"
        raise UnknownModelError(f"{reference.repo} has no GGUF files", hint=hint)
    main = [first for first in models if not re.search(r"mmproj|imatrix", first, re.IGNORECASE)]
    matching = main or list(models)
    if reference.quantization is not None:
        wanted = reference.quantization.upper()
        matching = [first for first in main if _quantization(first) == wanted] or [
            first for first in main if _quantization(first).endswith(f"-{wanted}")
        ]
    if not matching:
        known = _described(main or models, models, files)
        raise UnknownModelError(f"{reference.repo} has no {reference.quantization}", hint=f"it has {known}")
    if len(matching) > 1:
        raise UsageError(
            f"{reference}: {len(matching)} models could be meant: {_described(matching, models, files)}",
            hint=f"name a quantisation, hf:{reference.repo}:Q4_K_M, or a file, hf:{reference.repo}/FILE.gguf",
        )
    paths = sorted(models[matching[0]])
    missing = set(shard_names(base_name(matching[0]))) - set(map(base_name, paths))
    if missing:
        raise MissingFileError(f"{reference.repo}: the repository lacks {min(missing)}")
    return paths


def fetch(reference: HubRef, destination: Path, *, file: ModelFile, caller: Caller) -> Fetched:
    """Download a file at its commit; through `huggingface_hub` only where its storage can't be read otherwise."""
    settings = caller.settings
    commit = reference.revision
    if commit is None or not COMMIT.match(commit):
        commit, found = metadata(reference, settings)
        size = found.size if file.size is None else file.size
        file = replace(file, size=size, sha256=file.sha256 or found.sha256)
    pinned = HubRef(reference.repo, reference.path, revision=commit)
    headers = _authorization(settings)
    try:
        arrived = download_file(address(pinned, settings), destination, file=file, caller=caller, headers=headers)
    except AccessDeniedError as error:
        raise _denied(reference, error.message) from None
    except MissingFileError as error:
        raise MissingFileError(error.message, hint=_where(reference)) from None
    except SourceUnavailableError:
        through_hub = _through_hub(pinned, destination, settings)
        if through_hub is None:
            raise
        arrived = through_hub
    return replace(arrived, revision=commit)


def open_remote(reference: HubRef, caller: Caller) -> ByteSource:
    """Read parts of a file over HTTP ranges; the token goes to the Hub only."""
    settings = caller.settings
    return open_address(address(reference, settings), settings, _authorization(settings))


def address(reference: HubRef, settings: Settings) -> str:
    revision = quote(reference.revision or "main", safe="")
    return f"{settings.hf_endpoint}/{reference.repo}/resolve/{revision}/{quote(str(reference.path))}"


def token_for(settings: Settings) -> str | None:
    """`HF_TOKEN`, for the endpoint set with it, else the Hub's own, which goes to huggingface.co and nowhere else."""
    if settings.hf_token:
        return settings.hf_token
    if settings.hf_endpoint != DEFAULT_HF_ENDPOINT:
        return None
    from huggingface_hub import get_token

    return get_token()


def _authorization(settings: Settings) -> dict[str, str]:
    token = token_for(settings)
    return {"authorization": f"Bearer {token}"} if token else {}


def listing(reference: HubRef, settings: Settings) -> tuple[str, dict[str, ModelFile], str | None]:
    """Commit, files by their path, and licence of a repository."""
    tail = f"/revision/{quote(reference.revision, safe='')}" if reference.revision else ""
    url = f"{settings.hf_endpoint}/api/models/{reference.repo}{tail}?blobs=true"
    _, body = _ask(reference, url, settings, method="GET")
    try:
        info: dict[str, Any] = json.loads(body)
        commit = str(info["sha"])
        files = {}
        for item in info["siblings"]:
            path, sha256 = str(item["rfilename"]), str((item.get("lfs") or {}).get("sha256"))
            files[path] = _file(reference.repo, path, commit, item.get("size"), sha256)
        card = info.get("cardData") or {}
        license_ = card.get("license_name") or card.get("license")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceUnavailableError(
            f"{reference}: the Hub's answer is not understood: {type(error).__name__}"
        ) from None
    return commit, files, license_ if isinstance(license_, str) else None


def _file(repo: str, path: str, commit: str, size: object, sha256: str) -> ModelFile:
    source = Source((HubRef(repo, path, revision=commit),), commit)
    known = size if isinstance(size, int) and size >= 0 else None
    return ModelFile(base_name(path), known, sha256 if SHA256.match(sha256) else None, (source,))


def _ask(reference: HubRef, url: str, settings: Settings, *, method: str) -> tuple[httpx2.Response, bytes]:
    """Ask the Hub; a HEAD may be answered with a redirect to where the bytes are."""
    refuse_offline(reference, settings)
    try:
        with client_for(settings) as client:
            response, body = client.ask(url, _authorization(settings), method=method, most=_MAX_LISTING)
    except SourceUnavailableError as error:
        hint = "check the network; HF_ENDPOINT names a mirror, and --offline uses only what is in the store"
        raise SourceUnavailableError(f"{reference}: the Hub can't be asked: {error.message}", hint=hint) from None
    status = response.status_code
    if status == 200 or (method == "HEAD" and 300 <= status < 400):
        return response, body
    match response.headers.get("x-error-code", ""), status:
        case "GatedRepo", _:
            raise _denied(reference, f"{reference.repo} is gated")
        case "RevisionNotFound", _:
            raise MissingFileError(f"{reference.repo} has no revision {reference.revision!r}")
        case "EntryNotFound", _:
            raise MissingFileError(f"{reference.repo} has no file {reference.path}", hint=_where(reference))
        case ("RepoNotFound", _) | (_, 401 | 404):  # the Hub answers 401 for what it does not show
            hint = f"check the name at {DEFAULT_HF_ENDPOINT}/{reference.repo}; for a private one set HF_TOKEN"
            raise MissingFileError(f"{reference.repo}: no such repository, or it is private", hint=hint)
        case _, 403:
            raise _denied(reference, f"{reference}: the Hub answers {status}")
    raise refusal(response, str(reference))


def _through_hub(reference: HubRef, destination: Path, settings: Settings) -> Fetched | None:
    """Last resort for files in Xet storage whose plain address does not work; None if that is not the case."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    folder = destination.with_name(f"{destination.name}.xet")
    try:
        head, _ = _ask(reference, address(reference, settings), settings, method="HEAD")
        if "x-xet-hash" not in head.headers:
            return None
        disable_progress_bars()
        path = hf_hub_download(
            reference.repo,
            str(reference.path),
            revision=reference.revision,
            local_dir=folder,
            token=token_for(settings) or False,
            endpoint=settings.hf_endpoint,
        )
        Path(path).resolve().replace(destination)
    except Exception:  # noqa: BLE001 - the first failure is the one to report
        return None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Fetched(sha256_file(destination), destination.stat().st_size)


def _denied(reference: HubRef, message: str) -> AccessDeniedError:
    return AccessDeniedError(
        message,
        hint=f"accept its licence at {DEFAULT_HF_ENDPOINT}/{reference.repo} with your account, then set HF_TOKEN to a"
        " token of that account (or run: hf auth login)",
    )


def _where(reference: HubRef) -> str:
    return f"its files: {DEFAULT_HF_ENDPOINT}/{reference.repo}/tree/{reference.revision or 'main'}"


def _quantization(path: str) -> str:
    """What a file's name says, or else its folder's."""
    return quantization_of(base_name(path)) or quantization_of(path) or ""


def _described(firsts: Iterable[str], models: dict[str, list[str]], files: Mapping[str, ModelFile]) -> str:
    shown = []
    for first in sorted(firsts):
        sizes = [files[path].size or 0 for path in models[first]]
        size = f" ({human_bytes(sum(sizes))})" if all(sizes) else ""
        shown.append((_quantization(first) or base_name(first)) + size)
    return ", ".join(shown[:30]) + (f" and {len(shown) - 30} more" if len(shown) > 30 else "")
