"""`hf:`: files and repositories of the Hugging Face Hub, or of the server that `HF_ENDPOINT` names.

`huggingface_hub` lists, resolves revisions to commits and knows the tokens; the bytes come through our own downloader,
at the commit, so that a repository that changes meanwhile can't mix two versions.
"""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from tea_models.disk.hashing import sha256_file
from tea_models.errors import (
    AccessDeniedError,
    MissingFileError,
    NotAvailableError,
    OfflineError,
    SourceUnavailableError,
    UnknownModelError,
    UsageError,
)
from tea_models.files import Artifact, ModelFile, Source, base_name, shard_names
from tea_models.refs import HubRef, quantization_of
from tea_models.settings import DEFAULT_HF_ENDPOINT
from tea_models.sizes import human_bytes
from tea_models.sources import Fetched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tea_models.caller import Caller
    from tea_models.gguf.bytes_source import ByteSource
    from tea_models.settings import Settings

_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_ATTEMPTS = 3
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository at a commit."""

    path: str
    size: int | None
    sha256: str | None


def resolve(reference: HubRef, caller: Caller) -> Artifact:
    """Ask the Hub which files a reference means, at which commit, with sizes and hashes.

    Raises:
        OfflineError: Nothing may be asked.
        AccessDeniedError: Gated or private.
        MissingFileError: No such repository, revision or file.
        UnknownModelError: The repository has no such quantisation; the hint lists those it has.
        UsageError: The repository has several models and the reference does not say which.
        SourceUnavailableError: The Hub can't be reached.
    """
    settings = caller.settings
    _refuse_offline(reference, settings)
    license_ = None
    if reference.path is not None:
        folder = PurePosixPath(reference.path)
        paths = [str(folder.with_name(name)) for name in shard_names(folder.name)]
        commit, first = metadata(HubRef(reference.repo, paths[0], revision=reference.revision), settings)
        rest = [metadata(HubRef(reference.repo, path, revision=commit), settings)[1] for path in paths[1:]]
        files = [first, *rest]
    else:
        commit, every, license_ = listing(reference, settings)
        files = [_complete(file, reference.repo, commit, settings) for file in choose(reference, every)]
    return Artifact(
        reference=str(reference),
        name=str(HubRef(reference.repo, reference.path, reference.quantization, commit)),
        variant=quantization_of(files[0].path),
        files=tuple(
            ModelFile(
                base_name(file.path),
                file.size,
                file.sha256,
                (Source((HubRef(reference.repo, file.path, revision=commit),), commit),),
            )
            for file in files
        ),
        license=license_,
    )


def metadata(reference: HubRef, settings: Settings) -> tuple[str, HubFile]:
    """Commit, size and SHA-256 of a file: a HEAD on its address (`X-Repo-Commit`, `X-Linked-Size`, `X-Linked-ETag`)."""
    from huggingface_hub import get_hf_file_metadata

    _refuse_offline(reference, settings)
    assert reference.path is not None
    found = _ask(
        reference,
        lambda: get_hf_file_metadata(
            address(reference, settings),
            token=token_for(settings) or False,
            endpoint=settings.hf_endpoint,
            timeout=20,
            library_name="tea-models",
        ),
    )
    sha256 = found.etag if found.etag and _SHA256.match(found.etag) else None
    commit = found.commit_hash or reference.revision
    if not commit:
        raise SourceUnavailableError(f"{reference}: {settings.hf_endpoint} does not say which commit it is")
    return commit, HubFile(reference.path, found.size, sha256)


def listing(reference: HubRef, settings: Settings) -> tuple[str, list[HubFile], str | None]:
    """Commit, files and licence of a repository."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=settings.hf_endpoint, token=token_for(settings) or False, library_name="tea-models")
    info = _ask(
        reference,
        lambda: api.model_info(reference.repo, revision=reference.revision, files_metadata=True, timeout=30),
    )
    files = []
    for sibling in info.siblings or []:
        lfs: Any = sibling.lfs
        sha256 = lfs.sha256 if lfs is not None and _SHA256.match(str(lfs.sha256)) else None
        files.append(HubFile(sibling.rfilename, sibling.size, sha256))
    if not info.sha:
        raise SourceUnavailableError(f"{reference}: {settings.hf_endpoint} does not say which commit it is")
    card: Any = info.card_data or {}
    license_ = card.get("license_name") or card.get("license")
    return info.sha, files, str(license_) if isinstance(license_, str) else None


def choose(reference: HubRef, files: Iterable[HubFile]) -> list[HubFile]:
    """The files (shards) of a repository that a reference without a path means.

    Raises:
        UnknownModelError: No GGUF files, or none of that quantisation.
        UsageError: Several could be meant.
    """
    models = _models(files)
    if not models:
        raise UnknownModelError(
            f"{reference.repo} has no GGUF files", hint=f"a repository named {reference.repo}-GGUF, or another's, may"
        )
    wanted = reference.quantization
    main = {first: parts for first, parts in models.items() if not re.search(r"mmproj|imatrix", first, re.IGNORECASE)}
    if wanted is None:
        matching = main or models
    else:
        exact = [first for first in main if _quantization(first) == wanted.upper()]
        loose = [first for first in main if _quantization(first).endswith(f"-{wanted.upper()}")]
        matching = {first: models[first] for first in exact or loose}
    known = _described(main or models)
    if not matching:
        raise UnknownModelError(f"{reference.repo} has no {wanted}", hint=f"it has {known}")
    if len(matching) > 1:
        raise UsageError(
            f"{reference}: {len(matching)} models could be meant: {_described(matching)}",
            hint=f"name a quantisation, hf:{reference.repo}:Q4_K_M, or a file, hf:{reference.repo}/FILE.gguf",
        )
    (parts,) = matching.values()
    first = next(iter(matching))
    missing = [name for name in shard_names(base_name(first)) if name not in {base_name(part.path) for part in parts}]
    if missing:
        raise MissingFileError(f"{reference.repo}: the repository lacks {missing[0]}")
    return sorted(parts, key=lambda part: part.path)


def fetch(reference: HubRef, destination: Path, *, file: ModelFile, caller: Caller) -> Fetched:
    """Download a file at its commit; through `huggingface_hub` only where its storage can't be read otherwise."""
    from tea_models.net import download, make_client

    settings = caller.settings
    _refuse_offline(reference, settings)
    size, sha256, commit = file.size, file.sha256, reference.revision
    if commit is None or not _COMMIT.match(commit):
        commit, found = metadata(reference, settings)
        size = size if size is not None else found.size
        sha256 = sha256 or found.sha256
    pinned = HubRef(reference.repo, reference.path, revision=commit)
    token = token_for(settings)
    try:
        with make_client(connections=settings.connections) as client:
            result = download(
                address(pinned, settings),
                destination,
                client=client,
                headers={"authorization": f"Bearer {token}"} if token else {},
                size=size,
                sha256=sha256,
                connections=settings.connections,
                progress=caller.progress,
                name=file.filename,
            )
    except AccessDeniedError as error:
        raise _denied(reference, error.message) from None
    except MissingFileError as error:
        raise MissingFileError(error.message, hint=_where(reference)) from None
    except SourceUnavailableError:
        arrived = _through_hub(pinned, destination, settings)
        if arrived is None:
            raise
        return arrived
    return Fetched(result.sha256, result.size, result.resumed_from or None, revision=commit)


def open_remote(reference: HubRef, caller: Caller) -> ByteSource:
    """Read parts of a file over HTTP ranges; the token goes to the Hub only."""
    from tea_models.net import make_client
    from tea_models.net.http_source import HttpSource

    _refuse_offline(reference, caller.settings)
    token = token_for(caller.settings)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return HttpSource(address(reference, caller.settings), client=make_client(), headers=headers)


def address(reference: HubRef, settings: Settings) -> str:
    """The address of a file at its revision."""
    from huggingface_hub import hf_hub_url

    assert reference.path is not None
    return hf_hub_url(
        reference.repo, reference.path, revision=reference.revision or "main", endpoint=settings.hf_endpoint
    )


def token_for(settings: Settings) -> str | None:
    """The token for the configured endpoint.

    `HF_TOKEN` is for the endpoint that was configured together with it. The token in the Hub's own store was given for
    huggingface.co, and goes nowhere else.
    """
    if settings.hf_token:
        return settings.hf_token
    if settings.hf_endpoint != DEFAULT_HF_ENDPOINT:
        return None
    from huggingface_hub import get_token

    return get_token()


def _through_hub(reference: HubRef, destination: Path, settings: Settings) -> Fetched | None:
    """Last resort for files in Xet storage whose plain address does not work; None if that is not the case."""
    import os

    from huggingface_hub import get_hf_file_metadata, hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    token = token_for(settings) or False
    folder = destination.with_name(f"{destination.name}.xet")
    try:
        found = get_hf_file_metadata(address(reference, settings), token=token, endpoint=settings.hf_endpoint)
        if found.xet_file_data is None:
            return None
        disable_progress_bars()
        path = hf_hub_download(
            reference.repo,
            str(reference.path),
            revision=reference.revision,
            local_dir=folder,
            token=token,
            endpoint=settings.hf_endpoint,
        )
        os.replace(Path(path).resolve(), destination)  # noqa: PTH105 - pathlib would follow nothing either, this says so
    except Exception:  # noqa: BLE001 - the first failure is the one to report
        return None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Fetched(sha256_file(destination), destination.stat().st_size, revision=reference.revision)


def _ask(reference: HubRef, question: Callable[[], T]) -> T:  # noqa: C901 - a table of what can go wrong
    """Ask the Hub; busy servers are asked again, and every failure becomes one of our errors."""
    import httpx2
    from huggingface_hub import errors

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return question()
        except errors.GatedRepoError:
            raise _denied(reference, f"{reference.repo} is gated") from None
        except errors.RevisionNotFoundError:
            raise MissingFileError(f"{reference.repo} has no revision {reference.revision!r}") from None
        except errors.EntryNotFoundError:
            raise MissingFileError(f"{reference.repo} has no file {reference.path}", hint=_where(reference)) from None
        except errors.RepositoryNotFoundError:
            raise _absent(reference) from None
        except errors.OfflineModeIsEnabled:
            raise OfflineError(f"{reference}: HF_HUB_OFFLINE forbids to ask the Hub") from None
        except errors.HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if attempt < _ATTEMPTS and (status == 429 or status >= 500):
                time.sleep(attempt)
                continue
            raise _refused(reference, status) from None
        except (errors.HFValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceUnavailableError(f"{reference}: the Hub's answer is not understood: {error}") from None
        except httpx2.TimeoutException:
            if attempt < _ATTEMPTS:
                continue
            raise SourceUnavailableError(f"{reference}: the Hub does not answer", hint=_reach()) from None
        except (httpx2.HTTPError, OSError) as error:
            kind = type(error).__name__
            raise SourceUnavailableError(f"{reference}: the Hub can't be reached ({kind})", hint=_reach()) from None
    raise AssertionError


def _refused(reference: HubRef, status: int) -> NotAvailableError:
    if status in (401, 403):
        return _denied(reference, f"{reference}: the Hub answers {status}")
    if status == 404:
        return _absent(reference)
    return SourceUnavailableError(f"{reference}: the Hub answers {status}", hint="try again later")


def _absent(reference: HubRef) -> MissingFileError:
    return MissingFileError(
        f"{reference.repo}: no such repository, or it is private",
        hint=f"check the name at {DEFAULT_HF_ENDPOINT}/{reference.repo}; for a private one set HF_TOKEN",
    )


def _denied(reference: HubRef, message: str) -> AccessDeniedError:
    return AccessDeniedError(
        message,
        hint=f"accept its licence at {DEFAULT_HF_ENDPOINT}/{reference.repo} with your account, then set HF_TOKEN to a"
        " token of that account (or run: hf auth login)",
    )


def _where(reference: HubRef) -> str:
    return f"its files: {DEFAULT_HF_ENDPOINT}/{reference.repo}/tree/{reference.revision or 'main'}"


def _reach() -> str:
    return "check the network; HF_ENDPOINT names a mirror, and --offline uses only what is in the store"


def _refuse_offline(reference: HubRef, settings: Settings) -> None:
    if settings.offline:
        raise OfflineError(f"{reference} is not in the store, and nothing may be fetched (--offline)")


def _complete(file: HubFile, repo: str, commit: str, settings: Settings) -> HubFile:
    """The listing of some servers has no hashes; the file's own address does."""
    if file.sha256 is not None and file.size is not None:
        return file
    return metadata(HubRef(repo, file.path, revision=commit), settings)[1]


def _models(files: Iterable[HubFile]) -> dict[str, list[HubFile]]:
    """GGUF files by the path of their first shard."""
    models: dict[str, list[HubFile]] = {}
    for file in files:
        if file.path.lower().endswith(".gguf"):
            path = PurePosixPath(file.path)
            models.setdefault(str(path.with_name(shard_names(path.name)[0])), []).append(file)
    return models


def _quantization(path: str) -> str:
    """What a file's name says, or else its folder's."""
    return quantization_of(base_name(path)) or quantization_of(path) or ""


def _described(models: dict[str, list[HubFile]]) -> str:
    shown = []
    for first, parts in sorted(models.items()):
        sizes = [part.size for part in parts]
        size = f" ({human_bytes(sum(s for s in sizes if s))})" if all(sizes) else ""
        shown.append((_quantization(first) or base_name(first)) + size)
    return ", ".join(shown[:30]) + (f" and {len(shown) - 30} more" if len(shown) > 30 else "")
