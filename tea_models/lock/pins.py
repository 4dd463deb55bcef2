"""From references to pins: what a lock should hold, whether it is up to date, and making it.

What a project asks for are the references in its `models.yaml` and in its workflows (`tea_models.requirements`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from tea_models.caller import Caller
from tea_models.disk.hashing import sha256_text
from tea_models.errors import IntegrityError, LockError, NotAvailableError, UsageError
from tea_models.files import Artifact, ModelFile, Source, public
from tea_models.gguf.bytes_source import FileSource
from tea_models.gguf.header import read_header
from tea_models.lockfile import Lock, LockedModel, read_lock, write_lock
from tea_models.refs import FileRef, HubRef, NameRef, parse_reference
from tea_models.registry.entries import Registry
from tea_models.requirements import MODELS_FILE, combined, read_requirements
from tea_models.settings import Settings
from tea_models.sources import hub, open_source, resolve
from tea_models.store import Store
from tea_models.verbs.pull import measured, pull_artifacts


def update_lock(
    path: Path,
    given: Sequence[str] = (),
    *,
    caller: Caller,
    upgrade: bool = False,
    engine: bool = False,
    strict: bool = False,
) -> tuple[Lock, bool]:
    """Write the lock of a project, and say whether the file changed.

    With a `models.yaml` beside the lock, that says what is locked, and `given` names workflows that ask for more.
    Without one, `given` (references, and paths of YAML files) is what is locked; without anything, what was locked
    before. `upgrade` resolves anew what is locked already; only `given`, where that names locked references. `strict`
    refuses what would be trusted on first use.
    """
    old = read_lock(path) if path.exists() else None
    locked = old.models if old is not None else {}
    renewed = list(locked) if upgrade else []
    some = [text for text in given if not _is_yaml(text)]
    if upgrade and some and all(public(text) in locked for text in some):
        renewed = some
        given = [text for text in given if _is_yaml(text)]
    references, inputs, names = _asked(path, given, old, caller.settings)
    lock = make_lock(references, caller, inputs=inputs, names=names, old=old, renewed=renewed, strict=strict)
    if engine:
        from tea_models.lock.engine import lock_engine

        lock = replace(lock, engine=lock_engine(lock.engine, caller.settings.environ or None))
    gone = [text for text in locked if text not in lock.models]
    if gone:
        caller.note(f"no longer locked: {', '.join(gone)}")
    return lock, write_lock(path, lock)


def check_lock(path: Path, given: Sequence[str] = (), *, caller: Caller) -> Lock:
    """Read the lock of a project if it is up to date (else a `LockError`); fetches nothing and writes nothing."""
    lock = read_lock(path)
    _, inputs, names = _asked(path, given, lock, caller.settings)
    require_current(replace(lock, inputs=tuple(inputs), names=tuple(names)), path, caller.settings)
    return lock


def _asked(
    path: Path, given: Sequence[str], old: Lock | None, settings: Settings
) -> tuple[list[str], list[str], list[str]]:
    """What to lock, and the files and names that it comes from."""
    folder = path.parent
    texts = [text for text in given if not _is_yaml(text)]
    inputs = [os.path.relpath(text, folder) for text in given if _is_yaml(text)]
    has_file = (folder / MODELS_FILE).is_file()
    if has_file and MODELS_FILE not in inputs:
        inputs.insert(0, MODELS_FILE)
    if not given and old is not None:
        inputs = combined([inputs, old.inputs])
        # A lock that somebody wrote by hand asks for what it has.
        texts = [] if has_file else list(old.names or (() if old.inputs else old.models))
    registry = Registry.load(settings)
    asked = combined(read_requirements(folder / name, registry) for name in inputs)
    if has_file:
        strange = next((text for text in texts if text not in asked), None)
        if strange is not None:
            raise UsageError(f"{folder / MODELS_FILE} does not ask for {strange}", hint="add it there, then lock again")
        texts = []
    if not texts and not inputs:
        hint = f"tea-models lock smollm2-135m, or write a {MODELS_FILE}"
        raise UsageError(f"nothing to lock: no NAME given, and no {MODELS_FILE} beside {path}", hint=hint)
    return combined([asked, texts]), inputs, texts


def _is_yaml(text: str) -> bool:
    return text.endswith((".yaml", ".yml")) and "://" not in text


def outdated(lock: Lock, folder: Path, settings: Settings) -> list[str]:
    """Why a lock in a folder does not say what its inputs there ask for: a sentence each. Fetches nothing."""
    beside = [MODELS_FILE] if (folder / MODELS_FILE).is_file() else []
    asked, registry = list(lock.models), Registry.load(settings)
    if lock.inputs or lock.names or beside:
        inputs = [read_requirements(folder / name, registry) for name in combined([beside, lock.inputs])]
        asked = combined([*inputs, lock.names])
    shown = {public(text): text for text in asked}
    reasons = [f"{text} is asked for and not locked" for key, text in shown.items() if key not in lock.models]
    reasons += [f"{text} is locked and not asked for" for text in lock.models if text not in shown]
    return [*reasons, *_contradicted(lock, registry).values()]


def make_lock(
    references: Sequence[str],
    caller: Caller,
    *,
    inputs: Sequence[str] = (),
    names: Sequence[str] = (),
    old: Lock | None = None,
    renewed: Sequence[str] = (),
    strict: bool = False,
) -> Lock:
    """Pin what references mean now; `inputs` and `names` are where they come from, for the lock to remember.

    What the `old` lock says stays, so that adding one model changes nothing else, unless it is to be `renewed`. A file
    whose hash nobody states is pulled and pinned by what arrived (trust on first use), or refused if `strict`.
    """
    registry = Registry.load(caller.settings)
    old = old or Lock()
    anew = {*renewed, *_contradicted(old, registry)}
    kept = {text: model for text, model in old.models.items() if text not in anew}
    models = {
        public(text): kept.get(public(text)) or _pin(text, caller, registry, strict=strict) for text in references
    }
    return Lock(dict(sorted(models.items())), tuple(inputs), tuple(map(public, names)), old.engine)


def _pin(text: str, caller: Caller, registry: Registry, *, strict: bool) -> LockedModel:
    artifact = resolve(text, caller, registry)
    loose = next((file for file in artifact.files if file.sha256 is None), None)
    if strict and loose is not None:
        raise LockError(
            f"{text}: nobody states the sha256 of {loose.filename}, and it would be trusted on first use (--strict)",
            hint="pin it in a registry.yaml, or by #sha256=… after its address",
        )
    references = [part for file in artifact.files for source in file.sources[:1] for part in source.parts]
    if any(isinstance(part, FileRef) for part in references):
        caller.note(f"{text}: a path is only good on this machine")
    files = [replace(file, sources=tuple(_committed(one, caller) for one in file.sources)) for file in artifact.files]
    artifact = measured(replace(artifact, files=tuple(files)), caller)
    template = _template_of(artifact, caller)
    return LockedModel(public(text), public(artifact.name), artifact.files, artifact.license, template)


def _committed(source: Source, caller: Caller) -> Source:
    """A source on the Hub with the commit that its branch or tag is at now."""
    reference = source.parts[0]
    if not isinstance(reference, HubRef) or len(source.parts) > 1 or hub.COMMIT.match(reference.revision or ""):
        return source
    try:
        commit, _ = hub.metadata(reference, caller.settings)
    except NotAvailableError as error:
        caller.note(f"{reference}: its commit could not be found out ({error.message}); the hash pins the bytes")
        return source
    return Source((replace(reference, revision=commit),), commit)


def _template_of(artifact: Artifact, caller: Caller) -> str | None:
    path = Store.of(caller.settings).path_of(artifact.files[0])
    if path is None and artifact.files[0].whole and not caller.settings.offline:
        caller.note(f"{artifact.reference}: pulling it, because its chat template can only be read from the whole file")
        path = pull_artifacts([artifact], caller)[0].path
    try:
        return template_sha256(artifact.files[0], path, caller)
    except NotAvailableError as error:
        caller.note(f"{artifact.reference}: its chat template could not be read ({error.message})")
        return None


def template_sha256(file: ModelFile, path: Path | None, caller: Caller) -> str | None:
    """SHA-256 of the chat template in a model's (first) file, read here or where it is; raises what reading it does."""
    with closing(FileSource(path) if path is not None else open_source(file, caller)) as source:
        template = read_header(source).metadata.get("tokenizer.chat_template")
    return sha256_text(template) if isinstance(template, str) else None


def _contradicted(lock: Lock, registry: Registry) -> dict[str, str]:
    """Locked names of which a registry of the user or the project says something else now, each with what."""
    found = {}
    for text, model in lock.models.items():
        reference = parse_reference(text)
        if not isinstance(reference, NameRef):
            continue
        try:
            entry, variant = registry.find(reference)
        except NotAvailableError:
            continue
        if entry.origin == "built-in":  # a new release of this program must not put every lock out of date
            continue
        now = {file.filename: file for file in variant.files}
        locked = {file.filename: file for file in model.files}
        other = [name for name in now if name in locked and now[name].sha256 not in (None, locked[name].sha256)]
        for name in other:
            if set(now[name].sources) & {source for source in locked[name].sources if source.revision}:
                raise IntegrityError(
                    f"{text}: {name} is {locked[name].sha256} in the lock and {now[name].sha256} in {entry.origin},"
                    " from the same place at the same revision",
                    hint="one of the two was altered; what is right, the source's host says",
                )
        if other or set(now) != set(locked):
            found[text] = f"{text} has other hashes in the registry now"
        elif (model.resolved, model.license) != (f"{entry.name}:{variant.name}", entry.license):
            found[text] = f"{text} has another variant or licence in the registry now"
    return found


def require_current(lock: Lock, path: Path, settings: Settings) -> None:
    """Refuse a lock that is out of date with a `LockError` that says why."""
    reasons = outdated(lock, path.parent, settings)
    if reasons:
        raise LockError(f"{path} is out of date: {'; '.join(reasons)}", hint="tea-models lock")
