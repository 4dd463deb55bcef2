"""A backend that answers from the cassette that a process was told to use, and what a model answers otherwise now."""

from __future__ import annotations

import difflib
import functools
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from tea_models.caller import Caller
from tea_models.engine.probe import engine_version
from tea_models.errors import TeaModelsError, TemplateError, UsageError
from tea_models.files import base_name
from tea_models.profile.facts import ModelProfile
from tea_models.redact import redact
from tea_models.refs import FileRef, NameRef, parse_reference
from tea_models.settings import Settings
from tea_runtime.backend import Callback, LlmBackend, LlmCallParams, LlmCallResult, Message
from tea_runtime.call import cosine
from tea_runtime.cassette.entries import AskedModel, Cassette, Entry, Mode
from tea_runtime.llm_settings import LlmSettings, expand

_SAME_VECTOR = 0.9999
_DEFAULTS = {entry.name: entry.default for entry in fields(LlmCallParams) if entry.name not in ("prompt", "timeout")}
_ANSWERED = {entry.name for entry in fields(LlmCallResult)} - {"plan"}


class CassetteBackend(LlmBackend):
    """Answers from a cassette; `open_backend`, never called to replay, makes the backend for what is not in it."""

    name: ClassVar[str] = "cassette"

    def __init__(self, cassette: Cassette, model: AskedModel, open_backend: Callable[[], LlmBackend]) -> None:
        self.cassette, self.model = cassette, model
        self._open_backend = open_backend
        self._backend: LlmBackend | None = None
        self._opening = threading.Lock()

    def generate(
        self, params: LlmCallParams, messages: Sequence[Message] | None = None, callback: Callback | None = None
    ) -> LlmCallResult:
        """As `LlmBackend.generate`; a recorded answer comes word by word."""
        request = _request(self.model, params, messages)
        entry = self._recorded(request)
        if entry is not None:
            result = LlmCallResult(**{key: value for key, value in entry.answer.items() if key in _ANSWERED})
            # Word by word, each with the white space before it.
            if callback is not None:
                for piece in re.findall(r"\s*\S+|\s+\Z", result.content):
                    callback(piece)
            return result
        result = self._live().generate(params, messages, callback)
        self.cassette.add(Entry(request, result.to_dict(), self._evidence(request)))
        return result

    def embed_texts(self, texts: list[str]) -> list[list[float]]:
        """As `LlmBackend.embed_texts`; each text is an entry of its own."""
        return [self._vector(one) for one in texts]

    def is_available(self) -> bool:
        """Whether requests can be answered: from the file, or by the backend behind it."""
        return self.cassette.mode is Mode.REPLAY or self._backend is None or self._backend.is_available()

    def close(self) -> None:
        with self._opening:
            backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()

    def _vector(self, text: str) -> list[float]:
        request = {"kind": "embed", "model": self.model.name, "text": text, "parameters": {}}
        entry = self._recorded(request)
        if entry is not None:
            return [float(value) for value in entry.answer["embedding"]]
        vector = self._live().embed(text)
        self.cassette.add(Entry(request, {"embedding": vector}, self._evidence(request)))
        return vector

    def _recorded(self, request: Mapping[str, Any]) -> Entry | None:
        if self.cassette.mode is Mode.RECORD:
            return None
        entry = self.cassette.find(request, self.model)
        if entry is None and self.cassette.mode is Mode.REPLAY:
            raise self.cassette.miss(request, self.model)
        return entry

    def _live(self) -> LlmBackend:
        with self._opening:
            if self._backend is None:
                self._backend = self._open_backend()
            return self._backend

    def _evidence(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What answered, as far as the backend says."""
        profile = getattr(self._backend, "profile", None)
        if profile is None:  # an API: what it runs is not known
            return {}
        evidence: dict[str, Any] = {
            "model_sha256": self.model.sha256 or profile.files[0].sha256,
            "template_sha256": profile.chat.template_sha256.value,
            "engine": f"llama-cpp-python {engine_version()}",
        }
        if request["kind"] == "chat":
            evidence["rendered"] = _rendered(profile, request)
        return evidence


def _request(model: AskedModel, params: LlmCallParams, messages: Sequence[Message] | None) -> dict[str, Any]:
    given = {name: getattr(params, name) for name in _DEFAULTS}
    parameters = {name: plain(value) for name, value in given.items() if value != _DEFAULTS[name]}
    content = {"prompt": params.prompt} if messages is None else {"messages": plain(messages)}
    return {"kind": "call" if messages is None else "chat", "model": model.name, **content, "parameters": parameters}


def plain(value: Any) -> Any:
    """The value as JSON has it, so that what is asked compares equal to what was written."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        raise UsageError(f"a request for a cassette must be plain data, found {type(value).__name__}") from None


def _rendered(profile: ModelProfile, request: Mapping[str, Any]) -> str | None:
    """The prompt as the template renders it; None where it has none or refuses, which the answer shows."""
    from tea_models.chat import render_chat

    template, tokenizer, parameters = profile.chat.template.value, profile.tokenizer, request["parameters"]
    if template is None:
        return None
    try:
        return render_chat(
            template,
            request["messages"],
            tools=parameters.get("tools"),
            bos_token=tokenizer.bos_token.value or "",
            eos_token=tokenizer.eos_token.value or "",
            **parameters.get("chat_template_kwargs", {}),
        )
    except TemplateError:
        return None


def cassette_of(environ: Mapping[str, str]) -> Cassette | None:
    """The cassette that `TEA_CASSETTE` names, used as `TEA_CASSETTE_MODE` says, one for all who use that file."""
    path = environ.get("TEA_CASSETTE")
    if not path:
        return None
    mode = environ.get("TEA_CASSETTE_MODE") or Mode.REPLAY
    if mode not in list(Mode):
        raise UsageError(f"TEA_CASSETTE_MODE={mode!r}: expected {', '.join(Mode)}")
    return shared(Path(path).absolute(), Mode(mode))


#: The cassette of a file; after `cache_clear` it is read anew.
shared = functools.cache(Cassette)


def asked_model(block: LlmSettings, environ: Mapping[str, str], gguf: str | None = None) -> AskedModel:
    """The upstream file name and pin of what `--gguf`, `TEA_MODEL_PATH` or settings ask for; it needn't be there."""
    local = gguf or environ.get("TEA_MODEL_PATH") or block.profile or block.model_path
    written = block.model if block.backend == "api" else local or block.model
    if not written:
        return AskedModel("default")
    text = redact(expand(written, environ))
    try:
        reference = parse_reference(text)
    except UsageError:
        return AskedModel(text)
    if block.backend == "api" or isinstance(reference, FileRef):
        return AskedModel(text if block.backend == "api" else Path(text).name)
    if isinstance(reference, NameRef):
        from tea_models.sources import resolve
        from tea_models.sources.locate import locked_artifact

        caller = Caller(Settings.resolve(environ, cwd=Path.cwd()))
        try:
            file = (locked_artifact(text, caller) or resolve(text, caller)).files[0]
        except TeaModelsError:
            return AskedModel(text)
        return AskedModel(file.filename, file.sha256)
    return AskedModel(base_name(str(reference).partition("@")[0]))


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one recorded request: its texts (or an error), and their likeness or the cosine of its vectors."""

    request: Mapping[str, Any]
    status: Literal["same", "changed", "failed"]
    before: str
    now: str
    similarity: float


def check_cassette(cassette: Sequence[Entry], backend: LlmBackend) -> Iterator[Change]:
    """Ask a backend every recorded request again, in order; one that fails does not end the others."""
    for entry in cassette:
        try:
            yield _asked_again(entry, backend)
        except TeaModelsError as error:
            yield Change(entry.request, "failed", str(entry.answer.get("content", "")), error.message, 0.0)


def _asked_again(entry: Entry, backend: LlmBackend) -> Change:
    request, parameters = entry.request, dict(entry.request.get("parameters", {}))
    if request["kind"] == "embed":
        before, now = entry.answer["embedding"], backend.embed(request["text"])
        likeness = cosine(before, now) if len(before) == len(now) else 0.0
        # The last digits depend on the order of sums, which another processor may choose otherwise.
        return Change(request, "same" if likeness > _SAME_VECTOR else "changed", "", "", likeness)
    unknown = [name for name in parameters if name not in _DEFAULTS]
    if unknown:
        raise UsageError(f"request.parameters: {unknown[0]!r} is no parameter")
    params = LlmCallParams(prompt=request.get("prompt", ""), **parameters)
    result = backend.generate(params, request.get("messages"))
    before_text = str(entry.answer.get("content", ""))
    calls = [dict(call) for call in result.tool_calls] if result.tool_calls else None
    same = before_text == result.content and plain(entry.answer.get("tool_calls")) == plain(calls)
    ratio = difflib.SequenceMatcher(None, before_text, result.content, autojunk=False).ratio()
    return Change(request, "same" if same else "changed", before_text, result.content, 1.0 if same else ratio)
