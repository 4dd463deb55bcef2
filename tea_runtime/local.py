"""`LocalLlmBackend`: a GGUF model in this process, loaded by the plan for this machine."""

from __future__ import annotations

import functools
import logging
import os
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from tea_models.caller import Caller
from tea_models.chat import Segment
from tea_models.errors import TeaModelsError, UsageError
from tea_models.plan.resolve import plan_model
from tea_models.plan.speed import record_speed
from tea_models.plan.user_settings import UserSettings
from tea_models.profile.facts import ModelProfile
from tea_models.settings import Settings
from tea_models.store.record import HIDDEN
from tea_runtime.answer_format import call_problem, format_problem, wanted_schema
from tea_runtime.backend import Callback, LlmBackend, LlmCallParams, LlmCallResult, Message, check_messages, check_texts
from tea_runtime.call import LlmStream
from tea_runtime.engine.embedder import EmbedRequest
from tea_runtime.engine.growing_context import START, ModelSpec
from tea_runtime.engine.model import Model, open_model
from tea_runtime.engine.prompt_cache import PromptCache
from tea_runtime.engine.scheduler import TextRequest
from tea_runtime.errors import GenerationError, LlmError, UnsupportedError
from tea_runtime.llama.chat_formats import ChatFormat, chat_format_of
from tea_runtime.llama.constraint import call_grammar, check_tools, demanded_tools, grammar_of
from tea_runtime.llama.engine import build, llama
from tea_runtime.llama.generation import Generation, ToolTextFilter
from tea_runtime.llama.loading import LoadRecorder, check_text, describe, find_file
from tea_runtime.llama.prompt import ChatPrompt

logger = logging.getLogger("tea_runtime")

T = TypeVar("T")


class LocalLlmBackend(LlmBackend):
    """A model on this machine. Weights are loaded when it is made, contexts when they are needed.

    Args:
        model_path: A GGUF file (of shards, the first), or anything `tea-models` takes as a reference.
        n_ctx: Tokens of context: a number (that many, at once), `max`, or None/`auto`: what the plan allows, opened
            small and grown when a request needs it.
        n_threads: CPU threads; by the plan.
        n_gpu_layers: Layers on the GPU, -1 all; by the plan.
        chat_format: Overrides the file's template: a known name, a Jinja template, or the path of one.
        embedding: Plan for embeddings instead of chats.
        kv_type: Type of the KV cache; by the plan.
        memory: What it may take, in bytes or as a size such as `4GiB`; by default what is available.
        prompt_cache: Keep long prompts on disk, for the next process: True, or the folder for them.
        profile: Facts about the file, if they are known already.
        settings: Where the store is; by default from the process's environment.

    Raises:
        MissingExtraError: llama-cpp-python is not installed (an ImportError).
        EngineError: It is too old, or refuses the file.
        TeaModelsError: The file is missing, malformed, or does not fit into the memory there is.
    """

    name: ClassVar[str] = "local"

    def __init__(  # noqa: PLR0917 - the order is a contract with callers that pass them by position
        self,
        model_path: str | os.PathLike[str],
        n_ctx: int | str | None = None,
        n_threads: int | None = None,
        n_gpu_layers: int | None = None,
        chat_format: str | None = None,
        embedding: bool = False,
        *,
        kv_type: str | None = None,
        memory: int | str | None = None,
        prompt_cache: bool | str | os.PathLike[str] = False,
        profile: ModelProfile | None = None,
        settings: Settings | None = None,
    ) -> None:
        llama()
        settings = Caller.of(settings).settings
        self._store_dir, self._speed_recorded = settings.store_dir, False
        recorder = LoadRecorder(settings.store_dir)
        self.model_path = find_file(model_path, settings)
        purpose = "embed" if embedding else "chat"
        user = UserSettings.of(
            n_ctx=n_ctx, n_threads=n_threads, n_gpu_layers=n_gpu_layers, kv_type=kv_type, memory=memory, purpose=purpose
        )
        check = functools.partial(check_text, path=self.model_path, vectors=True)
        self.profile, self.plan = plan_model(self.model_path, settings, user, profile=profile, check=check)
        chosen, use = self.plan.settings, self.plan.memory.use
        recorder.plan = self.plan
        cache = None
        if prompt_cache:
            base = settings.store_dir / HIDDEN / "prompts" if prompt_cache is True else Path(prompt_cache)
            if base.exists() and not base.is_dir():
                raise UsageError(f"prompt_cache: {base} is a file, expected a folder")
            cache = PromptCache.of(base, model=self._identity(), engine=build(), settings=chosen)
        self._owner = object()
        self._kind, pooling = self.profile.kind.value, self.profile.pooling.value
        spec = ModelSpec(
            self.model_path,
            chosen,
            start=chosen.n_ctx if isinstance(n_ctx, int) else START,
            budget=use.kv_cache + use.compute or None,
            pooling="rank" if self._kind == "reranker" else pooling if pooling in ("cls", "last") else "mean",
            prompt_cache=cache,
        )
        self._model: Model | None = open_model(spec, self._owner, recorder)
        self._wanted_format = chat_format
        self._chat: tuple[ChatFormat, ChatPrompt] | None = None
        self._closed = weakref.finalize(self, self._model.leave_later, self._owner)
        self._closed.atexit = False  # the engine's thread frees everything at the end of the process
        try:
            if chat_format:
                self._chat_prompt(self._model)
        except BaseException:
            self.close()
            raise
        logger.info("%s", describe(self.model_path, self.plan))

    def generate(
        self, params: LlmCallParams, messages: Sequence[Message] | None = None, callback: Callback | None = None
    ) -> LlmCallResult:
        """Continue a raw prompt, or answer messages by the model's own template.

        Control tokens of a raw prompt are parsed, and BOS is put in front where the model wants one. `max_tokens`
        beyond the context is cut to what is left of it: the answer ends with `finish_reason` `length`.

        Raises:
            ContextOverflowError: The prompt is longer than the context.
            UsageError: A message or an option can't be used, or has no meaning for a raw prompt.
            UnsupportedError: The model can't do what is asked, or a schema can't be enforced.
            TemplateError: The template refuses the messages.
            AnswerTimeoutError: `timeout` is over.
        """
        if callback is not None:
            return self.open_stream(params, messages).run(callback)
        return self._finished(self._submit(self._prepare(params, messages)))

    def open_stream(self, params: LlmCallParams, messages: Sequence[Message] | None = None) -> LlmStream:
        """As `generate`, as an iterator; raises as `generate` does."""
        generation = self._prepare(params, messages)
        request = self._submit(generation, pieces=True)

        def pieces() -> Generator[str, None, LlmCallResult]:
            shown = ToolTextFilter() if generation.chat_format is not None else None
            for piece in request.pieces():
                if text := piece if shown is None else shown.feed(piece):
                    yield text
            result = self._result(generation)
            if shown is not None and (text := shown.rest(result.content)):
                yield text
            return result

        return LlmStream(pieces(), request.cancel)

    def generate_many(
        self, asked: Sequence[tuple[LlmCallParams, Sequence[Message] | None]], *, return_errors: bool = False
    ) -> list[LlmCallResult | TeaModelsError]:
        """Several answers, decoded together; raises as `generate` does.

        What prompts begin with alike is evaluated once. Sums of many numbers depend on their order in the last digits,
        so an answer can differ from that of a single call where two tokens are about equally likely.
        """

        def tried(step: Callable[..., T], *given: Any) -> T | TeaModelsError:
            try:
                return step(*given)
            except TeaModelsError as error:
                if not return_errors:
                    raise
                return error

        every = [tried(self._prepare, *pair) for pair in asked]
        requests = [one if isinstance(one, TeaModelsError) else self._submit(one) for one in every]
        try:
            return [one if isinstance(one, TeaModelsError) else tried(self._finished, one) for one in requests]
        except BaseException:
            for request in requests:
                if not isinstance(request, TeaModelsError):
                    request.cancel()
            raise

    def embed_texts(self, texts: list[str]) -> list[list[float]]:
        """The vectors of texts, L2-normalised.

        The pooling is the header's; a model that was not made for embeddings gives the mean of its tokens' vectors.
        """
        model = self._model_in_use()
        if self._kind == "reranker":
            raise UnsupportedError(f"{self.model_path.name}: a reranker scores documents, it has no embeddings")
        every = [model.vocabulary.tokenize(text, special=False, add_special=True) for text in texts]
        if not all(texts) or not all(every):
            raise UsageError("text: an empty text has no embedding")
        return self._vectors(model, every)

    def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        """As `LlmBackend.rerank`, by a reranker model."""
        texts, (query,) = check_texts(documents), check_texts(query)
        model = self._model_in_use()
        if self._kind != "reranker":
            raise UnsupportedError(
                f"{self.model_path.name}: it is a model of kind {self._kind}, not a reranker",
                hint="`tea-models list` shows rerankers; their header says pooling `rank`",
            )
        pairs = [model.vocabulary.pair(query, one) for one in texts]
        return [scores[0] for scores in self._vectors(model, pairs)]

    @property
    def context_size(self) -> int:
        """Tokens of the context that is open now (0 before the first call); it grows up to the plan's `n_ctx`."""
        return self._model.texts.memory.size if self._model is not None else 0

    def load_figures(self) -> dict[str, int]:
        """How busy the model is: requests in the batch and waiting, tokens in memory, and the largest context."""
        return self._model_in_use().texts.figures()

    def count_tokens(self, text: str) -> int:
        """How many tokens a raw prompt has."""
        return len(self._model_in_use().vocabulary.prompt(text))

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
        """The tokens that `chat` would evaluate."""
        return self._chat_prompt(self._model_in_use())[1].tokens(check_messages(messages), tools)

    def is_available(self) -> bool:
        """Tell whether the backend can be used: it is loaded and not closed."""
        return self._model is not None

    def close(self) -> None:
        """Free the contexts, and the weights if nobody else in this process uses them. Closing twice is fine.

        What is still being generated for this backend ends with an error.
        """
        model, self._model, self._chat = self._model, None, None
        if model is not None and self._closed.detach():
            model.leave(self._owner)

    def _submit(self, generation: Generation, *, pieces: bool = False) -> TextRequest:
        request = TextRequest(generation, self._owner)
        if pieces:
            generation.emit = request.put
        self._model_in_use().submit(request)
        return request

    def _vectors(self, model: Model, texts: list[list[int]]) -> list[list[float]]:
        for tokens in texts:
            model.vectors.check(tokens)
        request = EmbedRequest(texts, self._owner)
        model.submit(request)
        return request.wait()

    def _prepare(self, params: LlmCallParams, messages: Sequence[Message] | None) -> Generation:
        return self._raw(params) if messages is None else self._conversation(check_messages(messages), params)

    def _raw(self, params: LlmCallParams) -> Generation:
        if params.tools or params.tool_choice or params.chat_template_kwargs:
            raise UsageError("tools, tool_choice and chat_template_kwargs are for chats, not for raw prompts")
        check_text(self.profile, self.model_path)
        model = self._model_in_use()
        vocabulary = model.vocabulary
        prompt = vocabulary.prompt(params.prompt)
        if not prompt:
            start = vocabulary.bos if vocabulary.bos is not None else vocabulary.eos
            if start is None:
                raise UsageError("prompt: it is empty, and the model has no token to begin with")
            prompt = [start]
        model.texts.check(prompt)
        grammar = grammar_of(params)
        return Generation(model.weights, vocabulary, prompt, params, stops=params.stops, grammar=grammar)

    def _conversation(self, messages: Sequence[Message], params: LlmCallParams) -> Generation:
        model = self._model_in_use()
        chat_format, prompt = self._chat_prompt(model)
        tools = list(params.tools or ()) if params.tool_choice != "none" else []
        check_tools(params.tools or ())
        demanded = demanded_tools(params)
        if tools and not chat_format.tools:
            raise UnsupportedError(
                f"{self.model_path.name}: its chat template ({chat_format.name}) can't present tools to the model",
                hint="use a model whose profile says `tools`, or give a chat_format that renders them",
            )
        grammar = grammar_of(params)
        if demanded is not None:
            if grammar is not None:
                raise UsageError("a demanded tool call excludes grammar and response_format")
            grammar = call_grammar(demanded, chat_format.name)
        tokens = prompt.tokens(messages, tools or None, dict(params.chat_template_kwargs or {}))
        model.texts.check(tokens)
        stops, calls = (*params.stops, *chat_format.stop), chat_format if tools else None
        return Generation(
            model.weights, model.vocabulary, tokens, params, stops=stops, grammar=grammar, chat_format=calls
        )

    def _chat_prompt(self, model: Model) -> tuple[ChatFormat, ChatPrompt]:
        if self._chat is not None:
            return self._chat
        check_text(self.profile, self.model_path)
        vocabulary = model.vocabulary
        found = chat_format_of(self.profile, self._wanted_format, token_texts=list(vocabulary.specials))
        if found is None:
            raise UnsupportedError(
                f"{self.model_path.name} has no chat template: it is a base model, or its template was left out",
                hint="use llm.call with a raw prompt, or give settings.llm.chat_format (such as chatml, or a template)",
            )

        def render(**given: Any) -> list[Segment]:
            return found.render(bos_token=vocabulary.bos_text, eos_token=vocabulary.eos_text, **given)

        chat = self._chat = found, ChatPrompt(vocabulary, found.template or "".join(found.stop), render)
        return chat

    def _finished(self, request: TextRequest) -> LlmCallResult:
        return self._result(request.wait())

    def _result(self, generation: Generation) -> LlmCallResult:
        content, calls, reason = generation.text, None, generation.finish_reason
        if generation.chat_format is not None:
            from tea_models.chat import parse_tool_calls

            content, found = parse_tool_calls(content, generation.chat_format.name)
            if found:
                calls = [call.to_openai() for call in found]
                reason = "tool_calls"
        self._check_form(generation, content, calls)
        usage, timings = generation.usage(), generation.timings()
        if generation.alone and not self._speed_recorded:
            self._speed_recorded = record_speed(self._store_dir, self.plan, timings)
        return LlmCallResult(
            content=content,
            model=self.model_path.name,
            tokens_used=usage["total_tokens"],
            finish_reason=reason,
            usage=usage,
            backend=self.name,
            tool_calls=calls,
            logprobs=None if generation.logprobs is None else {"content": generation.logprobs},
            plan=self.plan,
            timings=timings,
        )

    def _check_form(self, generation: Generation, content: str, calls: list[dict[str, Any]] | None) -> None:
        """Check what the grammar has bound already; an answer that was cut short is no whole JSON."""
        params = generation.params
        schema = wanted_schema(params.response_format)
        demanded = demanded_tools(params)
        if generation.finish_reason == "length" or (schema is None and demanded is None):
            return
        problem = format_problem(content, schema) if demanded is None else call_problem(calls, demanded)
        if problem:
            # A grammar counts a character that the model began and did not end as one; in the text it may be several.
            hint = "please report the schema: the grammar should have ruled this out"
            if "\ufffd" in content:
                hint = "the model wrote bytes that are no text: try a lower temperature"
            raise GenerationError(
                f"{self.model_path.name}: the answer is not in the form that was asked for: {problem}: {content!r:.80}",
                hint=hint,
            )

    def _identity(self) -> str:
        """What identifies the bytes of a model: their SHA-256 where it is known, otherwise their place and time."""
        if all(file.sha256 for file in self.profile.files):
            return " ".join(str(file.sha256) for file in self.profile.files)
        path = self.model_path.resolve()
        stat = path.stat()
        return f"{self.profile.header_sha256} {path} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"

    def _model_in_use(self) -> Model:
        model = self._model
        if model is None:
            raise LlmError(f"{self.model_path.name}: the backend is closed")
        return model
