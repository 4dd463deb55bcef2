"""An OpenAI-compatible endpoint: a thin layer of Starlette over backends."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from importlib.resources import files
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tea_models.errors import NotAvailableError, TeaModelsError, UsageError
from tea_runtime.aio import AsyncLlmStream, in_thread
from tea_runtime.backend import LlmBackend, LlmCallResult
from tea_runtime.errors import CancelledCallError
from tea_runtime.server import wire
from tea_runtime.server.gate import Gate
from tea_runtime.server.metrics import Metrics
from tea_runtime.server.pool import ModelPool

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send


T = TypeVar("T")
logger = logging.getLogger("tea_runtime")

MAX_BODY = 32 * 1024 * 1024
#: Requests that are worked on or wait; each has a thread that waits for it.
MAX_JOBS = 256
# Nothing of another host, and no page of another host around it.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'; form-action 'none'"
}


def build_app(
    pool: ModelPool,
    *,
    key: str = "",
    listen: str = "127.0.0.1",
    allowed_hosts: Collection[str] = (),
    origins: Collection[str] = (),
) -> Starlette:
    """Make the application over models that are not closed here; a `key` must come as `Authorization: Bearer …`."""
    endpoint = _Endpoint(pool, key)
    posted: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "chat/completions": functools.partial(endpoint.generate, wire.chat_request),
        "completions": functools.partial(endpoint.generate, wire.completion_request),
        "embeddings": endpoint.embeddings,
        "rerank": endpoint.rerank,
    }
    app = Starlette(
        routes=[
            Route("/", endpoint.page, methods=["GET"]),
            Route("/about", endpoint.answered(endpoint.about), methods=["GET"]),
            Route("/health", endpoint.health, methods=["GET"]),
            Route("/metrics", endpoint.metrics, methods=["GET"]),
            Route("/v1/models", endpoint.answered(endpoint.models), methods=["GET"]),
            *(Route(f"/v1/{path}", endpoint.answered(one), methods=["POST"]) for path, one in posted.items()),
        ],
        middleware=[
            Middleware(Gate, listen=listen, allowed_hosts=allowed_hosts, origins=origins),
            Middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=["*"]),
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
    def __init__(self, pool: ModelPool, key: str) -> None:
        self._pool = pool
        self._key = key
        self._started = int(time.time())
        self._metrics = Metrics(pool)
        self._jobs: set[Job] = set()

    def end(self) -> None:
        """End everything that is being generated; for any thread."""
        for job in tuple(self._jobs):
            job.end_from_outside(NotAvailableError("the server is ending"))

    def answered(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Check the key, and turn what a handler raises into an error as OpenAI's API writes it."""

        async def handle(request: Request) -> Response:
            try:
                given = request.headers.get("authorization", "").removeprefix("Bearer ")
                if self._key and not hmac.compare_digest(given.encode(), self._key.encode()):
                    raise wire.NotAuthenticatedError("this server wants its key as `Authorization: Bearer …`")  # noqa: TRY301
                return await handler(request)
            except Exception as error:  # noqa: BLE001 - it is told
                status, body = _told(error)
                return JSONResponse(body, status)

        return handle

    async def health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def page(self, _request: Request) -> Response:
        text = files("tea_runtime.server").joinpath("page.html").read_text("utf-8")
        return HTMLResponse(text, headers=_PAGE_HEADERS)

    async def about(self, request: Request) -> Response:
        model = self._pool.find(request.query_params.get("model"))
        if request.query_params.get("live"):
            return JSONResponse({"busy": model.busy()})
        async with self._pool.use(model) as backend:
            return JSONResponse(await in_thread(lambda: _about(backend)))

    async def metrics(self, _request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, _request: Request) -> Response:
        data = [
            {"id": model.name, "object": "model", "created": self._started, "owned_by": "tea-models"}
            for model in self._pool.models
        ]
        return JSONResponse({"object": "list", "data": data})

    async def embeddings(self, request: Request) -> Response:
        body = await _body(request)
        texts = wire.embedding_texts(body)
        vectors, more = await self._ask(body, texts, lambda backend: backend.embed(texts))
        return JSONResponse(more | {"data": wire.embedding_data(vectors, body)})

    async def rerank(self, request: Request) -> Response:
        body = await _body(request)
        query, documents = wire.rerank_texts(body)
        scores, more = await self._ask(body, [query, *documents], lambda backend: backend.rerank(query, documents))
        return JSONResponse(more | {"results": wire.rerank_results(scores, documents, body)})

    async def _ask(
        self, body: dict[str, Any], texts: list[str], ask: Callable[[LlmBackend], T]
    ) -> tuple[T, dict[str, Any]]:
        """What a backend makes of some texts, and the rest of the answer."""
        model = self._pool.find(body.get("model"))
        async with self._pool.use(model) as backend:
            count = getattr(backend, "count_tokens", lambda _text: 0)
            found, tokens = await in_thread(lambda: (ask(backend), sum(map(count, texts))))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return found, {"object": "list", "model": model.name, "usage": usage}

    async def generate(self, read: Callable[[dict[str, Any]], wire.Asked], request: Request) -> Response:
        body = await _body(request)
        asked = read(body)
        model = self._pool.find(body.get("model"))
        if len(self._jobs) >= MAX_JOBS:
            raise NotAvailableError(f"{MAX_JOBS} requests are being worked on already", hint="try again later")
        job = Job(asked)
        self._jobs.add(job)
        started = time.perf_counter()
        form = wire.AnswerForm(model.name, chat=asked[0][1] is not None)

        def ended(results: list[LlmCallResult]) -> None:
            self._metrics.finished(model.name, results, time.perf_counter() - started)

        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._jobs.discard, job)
            stack.callback(job.end)
            backend = await stack.enter_async_context(self._pool.use(model))
            if not body.get("stream"):
                results = await job.results(backend, request)
                ended(results)
                return JSONResponse(form.whole(results))
            job.start_streams(backend)
            # The first piece, or a failure before it: then the status can still say so.
            first = await job.next()
            self._metrics.first(model.name, time.perf_counter() - started)
            events = _events(job, first, form, ended, usage=wire.wants_usage(body))
            return _EventStream(events, stack.pop_all())
        raise AssertionError


class Job:
    """Some answers, made together; a pair of parameters and messages for each."""

    def __init__(self, asked: wire.Asked) -> None:
        self.asked = asked
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    async def results(self, backend: LlmBackend, request: Request) -> list[LlmCallResult]:
        """All answers as a whole; when the client goes away they are given up."""
        self._start(self._whole(backend))
        self._start(self._watch(request))
        results: list[LlmCallResult] = await self.next()
        return results

    def start_streams(self, backend: LlmBackend) -> None:
        for index, (params, messages) in enumerate(self.asked):
            stream = AsyncLlmStream(functools.partial(backend.generate, params, messages))
            self._start(self._pieces(index, stream))

    async def next(self) -> Any:
        """The number of an answer with its next piece of text, or its result; raises what ended the job."""
        item = await self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def end(self, error: TeaModelsError | None = None) -> None:
        """Give up what is not finished; whoever waits gets the error. For the loop's thread."""
        for task in self._tasks:
            task.cancel()
        if error is not None:
            self._queue.put_nowait(error)

    def end_from_outside(self, error: TeaModelsError) -> None:
        """As `end`, for any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.end, error)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._queue.put_nowait(error)

    async def _whole(self, backend: LlmBackend) -> None:
        self._queue.put_nowait(await in_thread(lambda: backend.generate_many(self.asked)))

    async def _pieces(self, index: int, stream: AsyncLlmStream) -> None:
        async for text in stream:
            self._queue.put_nowait((index, text))
        self._queue.put_nowait((index, stream.result))

    async def _watch(self, request: Request) -> None:
        with contextlib.suppress(RuntimeError):  # the answer is out already
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.end(CancelledCallError("the client went away"))


class _EventStream(StreamingResponse):
    """Server-sent events; however they end, what makes them ends too."""

    def __init__(self, events: AsyncIterator[str], stack: contextlib.AsyncExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            await super().__call__(scope, receive, send)


async def _events(
    job: Job,
    piece: tuple[int, str | LlmCallResult],
    form: wire.AnswerForm,
    ended: Callable[[list[LlmCallResult]], None],
    *,
    usage: bool,
) -> AsyncIterator[str]:
    """The events of a stream, as OpenAI's API sends them."""
    results: list[LlmCallResult] = []
    for index in range(len(job.asked)):
        yield form.begin(index)
    try:
        while True:
            index, value = piece
            if isinstance(value, str):
                yield form.piece(index, value)
            else:
                results.append(value)
                for one in form.end(index, value):
                    yield one
            if len(results) == len(job.asked):
                break
            piece = await job.next()
    except Exception as error:  # noqa: BLE001 - it is told
        yield wire.event(_told(error)[1])
        return
    ended(results)
    if usage:
        yield form.usage(results)
    yield "data: [DONE]\n\n"


def _told(error: Exception) -> tuple[int, dict[str, Any]]:
    """The HTTP status and the document of an error; a bug is logged, and its details stay here."""
    if isinstance(error, TeaModelsError):
        return wire.error_document(error)
    logger.error("request failed", exc_info=error)
    return 500, wire.failure("the server failed; its log says why", "server_error")


async def _body(request: Request) -> dict[str, Any]:
    # A web page may send anything but JSON to a server on this machine without asking first.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UsageError(f"expected Content-Type: application/json, found {kind or 'none'}")
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY:
            raise wire.TooLargeError(f"the request is larger than {MAX_BODY // 1024**2} MiB")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the request is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise UsageError("expected a JSON object")
    return body


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    paths = ", ".join(f"/v1/{name}" for name in ("chat/completions", "completions", "embeddings", "rerank", "models"))
    said = f"{request.method} {request.url.path}: there are {paths}, /health, /metrics, and a page at /"
    return JSONResponse(wire.failure(said, "invalid_request_error"), status)


def _about(backend: LlmBackend) -> dict[str, Any]:
    """Facts, plan and memory of a loaded model; of one without a plan (an API's) only that it answers."""
    from tea_models.caller import Caller
    from tea_models.plan.curve import memory_curve
    from tea_models.plan.resolve import open_for_plan

    plan, profile = getattr(backend, "plan", None), getattr(backend, "profile", None)
    if plan is None or profile is None:
        return {"facts": {"backend": backend.name}, "plan": None, "curve": []}
    facts = {
        "architecture": profile.architecture.value,
        "parameters": profile.parameters.value,
        "quantization": profile.quantization.value,
        "trained context": profile.context_length.value,
        "context now": plan.settings.n_ctx,
        "chat template": profile.chat.format.value,
        "licence": profile.license.value,
        "threads": plan.settings.n_threads,
        "layers on a GPU": plan.settings.n_gpu_layers,
        "KV cache": plan.settings.type_k,
    }
    with open_for_plan(str(backend.model_path), Caller.of().settings, measure=True) as opened:  # type: ignore[attr-defined]
        points = memory_curve(plan, opened.measurer)
    known = {name: value for name, value in facts.items() if value is not None}
    parts = ("kv_cache", "compute", "total")
    curve = [{"n_ctx": n_ctx} | {part: getattr(use, part) for part in parts} for n_ctx, use in points]
    return {"facts": known, "plan": plan.to_json(), "curve": curve}
