"""`LocalLlmBackend`: a GGUF model in this process, loaded by the plan for this machine."""

from __future__ import annotations

import logging
import os
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, overload

from tea_models.errors import UsageError
from tea_runtime.answer_format import call_problem, format_problem, wanted_schema
from tea_runtime.backend import LlmBackend, LlmCallParams, LlmCallResult, check_messages, check_texts
from tea_runtime.errors import GenerationError, LlmError, UnsupportedError
from tea_runtime.llama.chat_formats import chat_format_of
from tea_runtime.llama.constraint import call_grammar, check_tools, demanded_tools, grammar_of
from tea_runtime.llama.context import ContextOptions, end_process
from tea_runtime.llama.embedding import Embedder, share_room
from tea_runtime.llama.engine import LoadOptions, Weights, acquire, llama, release
from tea_runtime.llama.generation import Generation
from tea_runtime.llama.load_record import LoadRecorder
from tea_runtime.llama.loading import (
    check_text,
    check_vectors,
    default_settings,
    describe,
    examine,
    find_file,
    make_plan,
)
from tea_runtime.llama.prompt import ChatPrompt
from tea_runtime.llama.session import START, Session
from tea_runtime.llama.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tea_models.chat import Segment
    from tea_models.plan import RunPlan
    from tea_models.profile import ModelProfile
    from tea_models.settings import Settings
    from tea_runtime.backend import Callback, Message
    from tea_runtime.llama.chat_formats import ChatFormat

logger = logging.getLogger("tea_runtime")


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
        memory: Budget of memory in bytes; by the plan.
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
        memory: int | None = None,
        profile: ModelProfile | None = None,
        settings: Settings | None = None,
    ) -> None:
        llama()
        settings = settings or default_settings()
        recorder = LoadRecorder(settings.store_dir)
        self.model_path = find_file(model_path, settings)
        examined = examine(self.model_path, settings)
        if profile is not None and profile.header_sha256 != examined.header_sha256:
            raise UsageError(
                f"the profile of {profile.files[0].name} is not one of {self.model_path}: their headers differ",
                hint=f"make a new one: tea-models profile {self.model_path} --json",
            )
        self.profile = profile or examined
        check_vectors(self.profile, self.model_path)
        self.plan: RunPlan = make_plan(
            self.model_path,
            settings,
            n_ctx="auto" if n_ctx is None else n_ctx,
            n_threads=n_threads,
            n_gpu_layers=n_gpu_layers,
            kv_type=kv_type,
            memory=memory,
            purpose="embed" if embedding else "chat",
        )
        chosen = self.plan.settings
        load = LoadOptions(n_gpu_layers=chosen.n_gpu_layers, use_mmap=chosen.use_mmap, use_mlock=chosen.use_mlock)
        self._weights = acquire(self.model_path, load)
        self._options = ContextOptions(
            n_ctx=chosen.n_ctx,
            n_batch=chosen.n_batch,
            n_ubatch=chosen.n_ubatch,
            n_threads=chosen.n_threads,
            n_threads_batch=chosen.n_threads_batch,
            flash_attn=chosen.flash_attn,
            type_k=chosen.type_k,
            type_v=chosen.type_v,
            swa_full=chosen.swa_full,
        )
        self._vocabulary = Vocabulary(self._weights, limit=chosen.n_ctx)
        use = self.plan.memory.use
        recorder.plan = self.plan
        self._recorder = recorder
        self._embedder = Embedder(
            self._weights,
            self._vocabulary,
            self._options,
            pooling=self.profile.pooling.value or "mean",
        )
        self._session = Session(
            self._weights,
            self._options,
            chosen.n_ctx if isinstance(n_ctx, int) else START,
            kv_budget=use.kv_cache or None,
            in_memory=max(16 * 1024 * 1024, use.total // 20),
            opened=recorder.opened,
        )
        share_room(self._session, self._embedder, chosen.n_ctx)
        self._wanted_format = chat_format
        self._chat: tuple[ChatFormat, ChatPrompt] | None = None
        self._closed = weakref.finalize(self, _close, self._session, self._embedder, self._weights, os.getpid())
        try:
            if chat_format:
                self._chat_prompt()
        except BaseException:
            self.close()
            raise
        logger.info("%s", describe(self.model_path, self.plan))

    # What it does -----------------------------------------------------------------------------------------------------

    def call(self, params: LlmCallParams) -> LlmCallResult:
        """Continue a raw prompt. Control tokens in it are parsed, and BOS is put in front where the model wants one.

        `max_tokens` beyond the context is cut to what is left of it: the answer ends with `finish_reason` `length`.

        Raises:
            ContextOverflowError: The prompt is longer than the context.
            UsageError: A parameter has no meaning for a raw prompt.
            UnsupportedError: The model can't write text, or a schema can't be enforced.
        """
        return self.call_many([params])[0]

    def stream(self, params: LlmCallParams, callback: Callback) -> LlmCallResult:
        """Continue a raw prompt, handing each piece of text to `callback`; raises as `call` does."""
        return self._run([self._raw(params, callback)])[0]

    def call_many(self, params: Sequence[LlmCallParams]) -> list[LlmCallResult]:
        """Continue several raw prompts, decoded together; raises as `call` does.

        What all prompts begin with is evaluated once. Sums of many numbers depend on their order in the last digits, so
        an answer can differ from that of a single call where two tokens are about equally likely.
        """
        return self._run([self._raw(one, None) for one in params])

    def chat(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = 100,
        temperature: float = 0.7,
        stop: str | Sequence[str] | None = None,
        **options: Any,
    ) -> LlmCallResult:
        """Answer messages by the model's own template.

        Raises:
            ContextOverflowError: The messages are longer than the context.
            UsageError: A message or an option can't be used.
            UnsupportedError: The model has no template, or can't do what an option asks for.
            TemplateError: The template refuses the messages.
        """
        return self.chat_many([messages], max_tokens, temperature, stop, **options)[0]

    def stream_chat(
        self,
        messages: Sequence[Message],
        callback: Callback,
        max_tokens: int | None = 100,
        temperature: float = 0.7,
        stop: str | Sequence[str] | None = None,
        **options: Any,
    ) -> LlmCallResult:
        """Answer messages, handing each piece of text to `callback`; raises as `chat` does."""
        params = LlmCallParams.of("", max_tokens, temperature, stop, options)
        return self._run([self._conversation(messages, params, callback)])[0]

    def chat_many(
        self,
        conversations: Sequence[Sequence[Message]],
        max_tokens: int | None = 100,
        temperature: float = 0.7,
        stop: str | Sequence[str] | None = None,
        **options: Any,
    ) -> list[LlmCallResult]:
        """Answer several conversations, decoded together; raises as `chat` does."""
        params = LlmCallParams.of("", max_tokens, temperature, stop, options)
        return self._run([self._conversation(messages, params, None) for messages in conversations])

    @overload
    def embed(self, text: str) -> list[float]: ...
    @overload
    def embed(self, text: list[str] | tuple[str, ...]) -> list[list[float]]: ...
    def embed(self, text: str | list[str] | tuple[str, ...]) -> list[float] | list[list[float]]:
        """Turn a text into a vector, or several texts into a list of vectors, L2-normalised.

        The pooling is the header's; a model that was not made for embeddings gives the mean of its tokens' vectors.

        Raises:
            UsageError: A text is empty, or not a text.
            ContextOverflowError: A text is longer than the context.
            UnsupportedError: The model has no embeddings.
        """
        texts = check_texts(text)
        with self._weights_in_use().engine_lock:
            self._weights_in_use()
            vectors = self._embedder.embed(texts)
        return vectors[0] if isinstance(text, str) else vectors

    @property
    def context_size(self) -> int:
        """Tokens of the context that is open now (0 before the first call); it grows up to the plan's `n_ctx`."""
        return self._session.size

    def count_tokens(self, text: str) -> int:
        """How many tokens a raw prompt has."""
        self._weights_in_use()
        return len(self._vocabulary.prompt(text))

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
        """The tokens that `chat` would evaluate."""
        self._weights_in_use()
        return self._chat_prompt()[1].tokens(check_messages(messages), tools)

    def is_available(self) -> bool:
        """Tell whether the backend can be used: it is loaded and not closed."""
        return self._closed.alive

    def close(self) -> None:
        """Free the contexts, and the weights if nobody else in this process uses them. Closing twice is fine."""
        if self._closed.alive:
            with self._weights.engine_lock:
                self._closed()

    # How it does it ---------------------------------------------------------------------------------------------------

    def _run(self, requests: Sequence[_Request]) -> list[LlmCallResult]:
        weights = self._weights_in_use()
        generations = [request.generation for request in requests]
        with weights.engine_lock:
            self._weights_in_use()
            self._session.run(generations)
            self._recorder.used()
        return [self._result(request) for request in requests]

    def _raw(self, params: LlmCallParams, callback: Callback | None) -> _Request:
        if params.tools or params.tool_choice or params.chat_template_kwargs:
            raise UsageError("tools, tool_choice and chat_template_kwargs are for chats, not for raw prompts")
        check_text(self.profile, self.model_path)
        weights = self._weights_in_use()
        prompt = self._vocabulary.prompt(params.prompt)
        if not prompt:
            start = self._vocabulary.bos if self._vocabulary.bos is not None else self._vocabulary.eos
            if start is None:
                raise UsageError("prompt: it is empty, and the model has no token to begin with")
            prompt = [start]
        self._session.check(prompt)
        generation = Generation(
            weights,
            self._vocabulary,
            prompt,
            params,
            stops=params.stops,
            grammar=grammar_of(params),
            callback=callback,
        )
        return _Request(generation, None)

    def _conversation(self, messages: Sequence[Message], params: LlmCallParams, callback: Callback | None) -> _Request:
        plain = check_messages(messages)
        chat_format, prompt = self._chat_prompt()
        weights = self._weights_in_use()
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
        tokens = prompt.tokens(plain, tools or None, dict(params.chat_template_kwargs or {}))
        self._session.check(tokens)
        generation = Generation(
            weights,
            self._vocabulary,
            tokens,
            params,
            stops=(*params.stops, *chat_format.stop),
            grammar=grammar,
            # Text that may turn out to be a call is not for the callback; it gets what is left of it at the end.
            callback=None if tools else callback,
            special=bool(tools),
        )
        return _Request(generation, chat_format if tools else None, callback if tools else None)

    def _chat_prompt(self) -> tuple[ChatFormat, ChatPrompt]:
        if self._chat is not None:
            return self._chat
        check_text(self.profile, self.model_path)
        vocabulary = self._vocabulary
        found = chat_format_of(self.profile, self._wanted_format, token_texts=list(vocabulary.specials))
        if found is None:
            raise UnsupportedError(
                f"{self.model_path.name} has no chat template: it is a base model, or its template was left out",
                hint="use llm.call with a raw prompt, or give settings.llm.chat_format (such as chatml, or a template)",
            )

        def render(**given: Any) -> list[Segment]:
            return found.render(bos_token=vocabulary.bos_text, eos_token=vocabulary.eos_text, **given)

        self._chat = found, ChatPrompt(vocabulary, found.template or "".join(found.stop), render)
        return self._chat

    def _result(self, request: _Request) -> LlmCallResult:
        generation = request.generation
        content, calls, reason = generation.text, None, generation.finish_reason
        if request.chat_format is not None:
            from tea_models.chat import parse_tool_calls

            content, found = parse_tool_calls(content, request.chat_format.name)
            if found:
                calls = [call.to_openai() for call in found]
                reason = "tool_calls"
            if request.callback is not None and content:
                request.callback(content)
        self._check_form(request, content, calls)
        usage = generation.usage()
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
        )

    def _check_form(self, request: _Request, content: str, calls: list[dict[str, Any]] | None) -> None:
        """Check what the grammar has bound already; an answer that was cut short is no whole JSON."""
        params = request.generation.params
        schema = wanted_schema(params.response_format)
        demanded = demanded_tools(params)
        if request.generation.finish_reason == "length" or (schema is None and demanded is None):
            return
        problem = format_problem(content, schema) if demanded is None else call_problem(calls, demanded)
        if problem:
            # A grammar counts a character that the model began and did not end as one; in the text it may be several.
            broken = "\ufffd" in content
            raise GenerationError(
                f"{self.model_path.name}: the answer is not in the form that was asked for: {problem}: {content!r:.80}",
                hint="the model wrote bytes that are no text: try a lower temperature"
                if broken
                else "please report the schema: the grammar should have ruled this out",
            )

    def _weights_in_use(self) -> Weights:
        if not self._closed.alive:
            raise LlmError(f"{self.model_path.name}: the backend is closed")
        return self._weights


class _Request:
    """A generation, and what to do with its text: `chat_format` names the parser of tool calls, if any are possible."""

    __slots__ = ("callback", "chat_format", "generation")

    def __init__(
        self, generation: Generation, chat_format: ChatFormat | None, callback: Callback | None = None
    ) -> None:
        self.generation = generation
        self.chat_format = chat_format
        self.callback = callback


def _close(session: Session, embedder: Embedder, weights: Weights, process: int) -> None:
    if process != os.getpid():
        return  # what a fork has copied is not its own
    if session.running or embedder.running:
        # Only when the process ends: a daemon thread is still computing. What it uses can't be freed under it.
        end_process()
        if not weights.engine_lock.is_free_within(10):
            return
    session.close()
    embedder.close()
    release(weights)
