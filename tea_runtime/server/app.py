"""An OpenAI-compatible endpoint for one backend: a thin layer of Starlette over it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import json
import logging
import threading
import time
import uuid
import weakref
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tea_models.errors import NotAvailableError, TeaModelsError, UsageError
from tea_runtime.errors import ApiError, ContextOverflowError, UnsupportedError
from tea_runtime.server import requests as wire

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from types import FrameType

    from starlette.requests import Request

    from tea_runtime.backend import Callback, LlmBackend, LlmCallResult
    from tea_runtime.server.requests import GenerationRequest

logger = logging.getLogger("tea_runtime")

MAX_BODY = 32 * 1024 * 1024


class _StoppedError(Exception):
    """Ends a generation that nobody waits for any more."""


def build_app(backend: LlmBackend, *, name: str, key: str = "") -> Starlette:
    """Make the application.

    Args:
        backend: What answers; it is not closed here.
        name: Name of the model, for `/v1/models` and answers.
        key: If not empty, requests must carry it as `Authorization: Bearer …`.
    """
    endpoint = _Endpoint(backend, name, key)
    app = Starlette(
        routes=[
            Route("/health", endpoint.health, methods=["GET"]),
            Route("/v1/models", endpoint.answered(endpoint.models), methods=["GET"]),
            Route("/v1/chat/completions", endpoint.answered(endpoint.chat), methods=["POST"]),
            Route("/v1/completions", endpoint.answered(endpoint.completions), methods=["POST"]),
            Route("/v1/embeddings", endpoint.answered(endpoint.embeddings), methods=["POST"]),
        ],
        exception_handlers={404: _not_found, 405: _not_found},
    )
    app.state.end = endpoint.end
    return app


def serve(app: Starlette, listener: socket.socket) -> None:
    """Serve until interrupted (SIGINT, SIGTERM); what is being generated then is ended, and its clients are told."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            super().handle_exit(sig, frame)
            app.state.end()

    # Failures are logged where they are handled; the server itself would log tracebacks of requests that it cancels.
    config = uvicorn.Config(
        app, log_level="critical", access_log=False, timeout_graceful_shutdown=5, server_header=False, lifespan="off"
    )
    with contextlib.suppress(KeyboardInterrupt):  # the signal is raised again when the server has ended
        Server(config).run(sockets=[listener])


class _Endpoint:
    def __init__(self, backend: LlmBackend, name: str, key: str) -> None:
        self._backend = backend
        self._name = name
        self._key = key
        self._started = int(time.time())
        self._jobs: weakref.WeakSet[_Job] = weakref.WeakSet()

    def end(self) -> None:
        """End everything that is being generated."""
        for job in list(self._jobs):
            job.end()

    def answered(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Check the key, and turn what a handler raises into an error as OpenAI's API writes it."""

        @functools.wraps(handler)
        async def handle(request: Request) -> Response:
            try:
                self._check_key(request)
                return await handler(request)
            except TeaModelsError as error:
                return _error(error)
            except Exception:
                logger.exception("request failed")
                return _failure(500, "the server failed; its log says why", "server_error")

        return handle

    async def health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, _request: Request) -> Response:
        model = {"id": self._name, "object": "model", "created": self._started, "owned_by": "tea-models"}
        return JSONResponse({"object": "list", "data": [model]})

    async def chat(self, request: Request) -> Response:
        return await self._generate(request, wire.chat_request(await _body(request)))

    async def completions(self, request: Request) -> Response:
        return await self._generate(request, wire.completion_request(await _body(request)))

    async def embeddings(self, request: Request) -> Response:
        body = await _body(request)
        texts = wire.embedding_texts(body)
        vectors = await asyncio.to_thread(self._backend.embed, texts)
        count = getattr(self._backend, "count_tokens", None)
        tokens = sum(map(count, texts)) if count else 0
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        data = wire.embedding_data(vectors, body)
        return JSONResponse({"object": "list", "model": self._name, "data": data, "usage": usage})

    def _check_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._key and not hmac.compare_digest(given.encode(), self._key.encode()):
            raise _NotAuthenticatedError("this server wants its key as `Authorization: Bearer …`")

    async def _generate(self, request: Request, wanted: GenerationRequest) -> Response:
        job = _Job()
        self._jobs.add(job)  # before it starts: `end` must not miss it
        job.start(functools.partial(self._work, wanted))
        chat = wanted.messages is not None
        head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": self._name,
        }
        if wanted.stream:
            # The first piece, or a failure before it: then the status can still say so.
            first = await job.next()
            if isinstance(first, BaseException):
                raise first
            events = _events(job, first, head, chat=chat, usage=wanted.usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        results = await job.results(request)
        answer = {
            **head,
            "object": "chat.completion" if chat else "text_completion",
            "choices": [wire.choice(result, index, chat=chat) for index, result in enumerate(results)],
            "usage": wire.total_usage(results),
        }
        return JSONResponse(answer)

    def _work(self, wanted: GenerationRequest, piece: Callback) -> list[LlmCallResult]:
        if wanted.messages is not None:
            return [self._backend.stream_chat(wanted.messages, piece, **wanted.chat_options)]
        if len(wanted.params) > 1:
            return self._backend.call_many(wanted.params)
        return [self._backend.stream(wanted.params[0], piece)]


class _Job:
    """A generation in a thread of its own, whose pieces are awaited; it ends at the next token once it is stopped."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[str | list[LlmCallResult] | BaseException] = asyncio.Queue()
        self._stopped = threading.Event()

    def start(self, work: Callable[[Callback], list[LlmCallResult]]) -> None:
        """Begin to generate."""
        # A daemon: a prompt that is being evaluated can't be stopped, and must not hold up the end of the process.
        threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work: Callable[[Callback], list[LlmCallResult]]) -> None:
        try:
            self._put(work(self._piece))
        except _StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is awaited
            self._put(error)

    def _piece(self, text: str) -> None:
        if self._stopped.is_set():
            raise _StoppedError
        self._put(text)

    def _put(self, item: str | list[LlmCallResult] | BaseException) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:  # the loop has ended
            self._stopped.set()

    async def next(self) -> str | list[LlmCallResult] | BaseException:
        """The next piece, or at the end the results, or what was raised."""
        try:
            return await self._queue.get()
        except asyncio.CancelledError:
            self.stop()
            raise

    async def results(self, request: Request) -> list[LlmCallResult]:
        """The results; if the client goes away the generation is stopped."""
        watcher = asyncio.create_task(self._watch(request))
        try:
            while isinstance(item := await self._queue.get(), str):
                pass
            if isinstance(item, BaseException):
                raise item
            return item
        finally:
            watcher.cancel()
            self.stop()

    async def _watch(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.stop()
        self._queue.put_nowait(_GoneError("the client went away"))

    def stop(self) -> None:
        """End the generation at its next token."""
        self._stopped.set()

    def end(self) -> None:
        """End the generation, and tell whoever waits for it."""
        self.stop()
        self._put(_EndingError("the server is ending"))


async def _events(
    job: _Job, item: str | list[LlmCallResult] | BaseException, head: Mapping[str, Any], *, chat: bool, usage: bool
) -> AsyncIterator[str]:
    """Server-sent events of a stream, as OpenAI's API sends them."""
    kind = "chat.completion.chunk" if chat else "text_completion"
    role = {"role": "assistant"}

    def event(part: Mapping[str, Any], reason: str | None = None, **more: Any) -> str:
        choices = [{"index": 0, "finish_reason": reason, **({"delta": part} if chat else part), **more}]
        return f"data: {json.dumps({**head, 'object': kind, 'choices': choices})}\n\n"

    try:
        if chat:
            yield event({**role, "content": ""})
        while isinstance(item, str):
            yield event({"content": item} if chat else {"text": item})
            item = await job.next()
        if isinstance(item, BaseException):
            error = item if isinstance(item, TeaModelsError) else TeaModelsError("the server failed; its log says why")
            if error is not item:
                logger.error("stream failed", exc_info=item)
            yield f"data: {json.dumps(_document(error)[1])}\n\n"
            return
        (result,) = item
        if chat and result.tool_calls:
            yield event({"tool_calls": [{"index": i, **call} for i, call in enumerate(result.tool_calls)]})
        yield event({} if chat else {"text": ""}, result.finish_reason, logprobs=result.logprobs)
        if usage:
            total = wire.total_usage(item)
            yield f"data: {json.dumps({**head, 'object': kind, 'choices': [], 'usage': total})}\n\n"
        yield "data: [DONE]\n\n"
    finally:
        job.stop()


class _NotAuthenticatedError(UsageError):
    pass


class _GoneError(UsageError):
    pass


class _EndingError(NotAvailableError):
    pass


class _TooLargeError(UsageError):
    pass


async def _body(request: Request) -> dict[str, Any]:
    # A web page may send anything but JSON to a server on this machine without asking first.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UsageError(f"expected Content-Type: application/json, found {kind or 'none'}")
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY:
            raise _TooLargeError(f"the request is larger than {MAX_BODY // 1024**2} MiB")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the request is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise UsageError("expected a JSON object")
    return body


def _document(error: TeaModelsError) -> tuple[int, dict[str, Any]]:
    status, kind, code = 500, "server_error", None
    if isinstance(error, ContextOverflowError):
        status, kind, code = 400, "invalid_request_error", "context_length_exceeded"
    elif isinstance(error, _NotAuthenticatedError):
        status, kind, code = 401, "invalid_request_error", "invalid_api_key"
    elif isinstance(error, _TooLargeError):
        status, kind = 413, "invalid_request_error"
    elif isinstance(error, UsageError | UnsupportedError) or error.type == "Template":
        status, kind = 400, "invalid_request_error"
    elif isinstance(error, ApiError):
        status, kind = 502, "upstream_error"
    elif isinstance(error, NotAvailableError):
        status = 503
    message = error.message + (f" ({error.hint})" if error.hint else "")
    return status, {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _error(error: TeaModelsError) -> Response:
    status, document = _document(error)
    return JSONResponse(document, status)


def _failure(status: int, message: str, kind: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    paths = "/v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models, /health"
    return _failure(status, f"{request.method} {request.url.path}: there are {paths}", "invalid_request_error")
