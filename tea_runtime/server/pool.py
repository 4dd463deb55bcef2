"""The models that an endpoint serves: loaded when somebody asks for one, closed when others need the room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tea_models.errors import DoesNotFitError, UsageError
from tea_runtime.aio import in_thread
from tea_runtime.backend import LlmBackend
from tea_runtime.factory import own_memory
from tea_runtime.server.wire import NotServedError

_logger = logging.getLogger("tea_runtime")


@dataclass(slots=True)
class ServedModel:
    """A model of an endpoint: its name for clients, what loads it, and its backend as long as it is loaded."""

    name: str
    open: Callable[[], LlmBackend]
    backend: LlmBackend | None = None
    users: int = 0
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    last_used: float = 0.0
    expiry: asyncio.Task[None] | None = None

    def busy(self) -> dict[str, int]:
        """How busy it is now; nothing where that isn't known."""
        figures = getattr(self.backend, "load_figures", None)
        return figures() if figures is not None else {}


class ModelPool:
    """Loads and closes models: after `keep_alive` seconds without use (None: never), and where the room is short."""

    def __init__(self, models: Sequence[ServedModel], keep_alive: float | None = None, room: int | None = None) -> None:
        self.models = list(models)
        if len({model.name for model in models}) < len(models):
            raise UsageError("two models have the same name")
        self._keep_alive, self._room = keep_alive, room

    def find(self, name: Any) -> ServedModel:
        """The model that a request names; without a name the first one."""
        if name in (None, ""):
            return self.models[0]
        for model in self.models:
            if model.name == name:
                return model
        names = ", ".join(model.name for model in self.models)
        raise NotServedError(f"the model {name!r:.80} is not served here", hint=f"models: {names}")

    @asynccontextmanager
    async def use(self, model: ServedModel) -> AsyncIterator[LlmBackend]:
        """A model, loaded first if it has to be; it stays for as long as somebody uses it."""
        model.users += 1
        try:
            async with model.loading:
                if model.backend is None:
                    model.backend = await self._load(model)
            yield model.backend
        finally:
            model.users -= 1
            model.last_used = asyncio.get_running_loop().time()
            if model.expiry is not None:
                model.expiry.cancel()
            if self._keep_alive is not None:
                model.expiry = asyncio.create_task(self._expire(model, self._keep_alive))

    def close(self) -> None:
        """Close all models, when the loop has ended."""
        for model in self.models:
            backend, model.backend = model.backend, None
            if backend is not None:
                backend.close()

    async def _load(self, model: ServedModel) -> LlmBackend:
        while True:
            try:
                backend = await in_thread(model.open)
                break
            except DoesNotFitError:
                idle = self._idle(model)
                if not idle:
                    raise
                await self._close(idle[0])
        for other in self._idle(model):
            loaded = [backend, *(one.backend for one in self.models if one.backend is not None)]
            if self._room is None or sum(map(own_memory, loaded)) <= self._room:
                break
            await self._close(other)
        return backend

    def _idle(self, but: ServedModel) -> list[ServedModel]:
        """Models that are loaded and not used now, the longest unused first."""
        found = [model for model in self.models if model.backend is not None and not model.users and model is not but]
        return sorted(found, key=lambda model: model.last_used)

    async def _expire(self, model: ServedModel, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if not model.users:
            await self._close(model)

    async def _close(self, model: ServedModel) -> None:
        backend, model.backend = model.backend, None
        if backend is not None:
            await in_thread(backend.close)
            _logger.info("closed %s", model.name)
