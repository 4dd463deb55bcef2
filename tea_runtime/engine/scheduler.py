"""Continuous batching: between two steps new requests come in, and finished and abandoned ones leave."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from tea_runtime.engine.drafts import CLOSE, Drafter, StepCost
from tea_runtime.engine.growing_context import SHORTEST_PREFIX, GrowingContext, ModelSpec
from tea_runtime.engine.sequences import HeldSequence, SequencePool, common_prefix
from tea_runtime.engine.thread import EngineThread, Request
from tea_runtime.errors import CancelledCallError, ContextOverflowError
from tea_runtime.llama.context import AbortedError, Context, NoRoomError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tea_runtime.llama.generation import Generation
    from tea_runtime.llama.loading import LoadRecorder
    from tea_runtime.llama.weights import Weights

#: Up to this size a context also grows to keep finished conversations in memory; beyond it only for running ones.
KEEP = 8192
#: Requests that are decoded side by side at most.
MOST_TOGETHER = 24
# So many requests at once are many: what others left in memory slows each step.
MANY = 4
# Room for an answer that is asked for before it is known how long it gets.
_ANSWER = 512
# Tokens of new prompts in a step at most, on a processor and in company: short requests wait less for long prompts.
_PIECE = 128
# Tokens of new prompts in a step at least, however many answers are in it.
_LEAST_PIECE = 16


class TextRequest(Request["Generation"]):
    def __init__(self, generation: Generation, owner: object) -> None:
        super().__init__(generation.params.timeout, owner)
        self.generation = generation
        self.held: HeldSequence | None = None
        #: Tokens that are not in memory yet.
        self.pending: list[int] = []
        self.drafter: Drafter | None = None
        #: What the step guesses to follow the pending token.
        self.drafted: list[int] = []

    @property
    def prefilling(self) -> bool:
        """The prompt (or what was said before it lost its memory) is still being evaluated."""
        return len(self.pending) > 1 or not self.generation.output

    @property
    def need(self) -> int:
        """Tokens that it will still put into memory, as far as one can tell."""
        remaining = self.generation.remaining
        return len(self.pending) + (_ANSWER if remaining is None else min(remaining, _ANSWER))


class Scheduler:
    """Decodes requests together in one context. Only for the engine's thread, except `check`."""

    def __init__(self, engine: EngineThread, weights: Weights, spec: ModelSpec, recorder: LoadRecorder | None) -> None:
        self._engine, self._weights = engine, weights
        self._prompt_cache, self._recorder = spec.prompt_cache, recorder
        self.memory = GrowingContext(weights, spec, engine.abort)
        # No request is let in, because somebody else waits for the room.
        self.hold = False
        self.waiting: deque[TextRequest] = deque()
        self.running: list[TextRequest] = []
        self._cells = 0  # as of the last step
        self._cost = StepCost()

    @property
    def size(self) -> int:
        return self.memory.size

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def figures(self) -> dict[str, int]:
        """How busy it is, for any thread: requests in the batch and waiting, tokens in memory, the largest context."""
        return {
            "running": len(self.running),
            "waiting": len(self.waiting),
            "tokens": self._cells,
            "n_ctx": self.memory.n_ctx,
        }

    def check(self, prompt: Sequence[int]) -> None:
        """Check that a prompt and at least one token of an answer fit."""
        n_ctx, trained = self.memory.n_ctx, self._weights.n_ctx_train
        if len(prompt) + 1 > n_ctx:
            hint = "" if n_ctx < trained else f"the model was trained for {trained:,} tokens; shorten the prompt"
            raise ContextOverflowError(prompt_tokens=len(prompt), n_ctx=n_ctx, hint=hint)

    def add(self, request: TextRequest) -> None:
        """Take a request in; it is let into the batch as soon as there is room."""
        if request.generation.finish_reason is not None:
            self._finish(request)
            return
        if request.generation.guessable and not self._weights.recurrent and not self._weights.n_swa:
            # A seed asks for the same steps again, whatever was measured meanwhile.
            request.drafter = Drafter(self._cost if request.generation.params.random else StepCost())
        self.waiting.append(request)

    def step(self) -> None:
        """Let requests in and out, and evaluate one batch."""
        for request in [*self.running, *self.waiting]:
            if request.cancelled:
                self._give_up(request, CancelledCallError("the call was cancelled"))
        self._admit()
        if not self.running:
            return
        context = self._room_for_a_step()
        if context is None:
            return
        outputs = self._compose(context)
        members = [request for request, _, _ in outputs]
        drafted, started = len(members[0].drafted), time.perf_counter()
        if not self._evaluate(context, members):
            return
        for request, count, index in outputs:
            request.generation.alone &= len(members) == 1
            assert request.held is not None
            request.held.tokens.extend(request.pending[:count])
            del request.pending[:count]
            if request.drafted:
                self._check_draft(context, request, index or 0)
            elif index is not None:
                self._choose(context, request, index)
        if [count for _, count, _ in outputs] == [1]:
            self._cost.measured(drafted, time.perf_counter() - started)
        self._cells = self._pool.cells
        if self._recorder is not None:
            self._recorder.used(context)

    def _evaluate(self, context: Context, members: list[TextRequest]) -> bool:
        """Evaluate the batch of some requests; False if nothing came of it."""
        self._engine.set_step(members)
        try:
            context.evaluate()
        except AbortedError:  # all of them have gone
            for request in members:
                self._lose(request)
            return False
        except NoRoomError as error:
            self._make_room_by_force(error)
            return False
        finally:
            self._engine.set_step()
        return True

    def _compose(self, context: Context) -> list[tuple[TextRequest, int, int | None]]:
        """Fill the batch: for each request how many of its tokens are in, and where its logits will be."""
        answering = [request for request in self.running if not request.prefilling]
        prompts = [request for request in self.running if request.prefilling]
        for request in self.running:
            request.drafted = self._draft(context, request) if len(self.running) == len(answering) == 1 else []
        outputs: list[tuple[TextRequest, int, int | None]] = [
            (request, 1, self._put(context, request, 1)) for request in answering
        ]
        # One computation of llama.cpp's: running answers wait for no more than that, and a larger step is no faster.
        largest = context.settings.n_ubatch
        if len(self.running) + len(self.waiting) > 1 and not context.settings.n_gpu_layers:
            largest = min(largest, _PIECE)
        room = min(context.batch.room, max(largest - len(answering), _LEAST_PIECE))
        # Shares of the room: what short prompts leave of theirs goes to the longer ones.
        for left, request in zip(
            range(len(prompts), 0, -1), sorted(prompts, key=lambda one: len(one.pending)), strict=True
        ):
            count = min(len(request.pending), max(room // left, 1), context.batch.room)
            if count <= 0:
                break
            room -= count
            whole = count == len(request.pending)
            index = self._put(context, request, count)
            outputs.append((request, count, index if whole else None))
        return outputs

    def _put(self, context: Context, request: TextRequest, count: int) -> int:
        held = request.held
        assert held is not None
        tokens, drafted = request.pending[:count] + request.drafted, bool(request.drafted)
        whole = count == len(request.pending)
        return context.batch.add(held.id, tokens, len(held.tokens), output=whole, every=drafted)

    def _draft(self, context: Context, request: TextRequest) -> list[int]:
        """What probably follows the pending token of a request that is alone."""
        drafter, generation = request.drafter, request.generation
        if drafter is None:
            return []
        remaining = generation.remaining
        # A context has room for the logits of as many tokens as it has sequences.
        room = min(context.n_ctx - self._pool.cells, context.batch.room, context.settings.n_seq_max) - 1
        most = room if remaining is None else min(room, remaining - 1)
        return drafter.draft(generation, most)

    def _check_draft(self, context: Context, request: TextRequest, last: int) -> None:
        """Go on with a guess as long as it is what is chosen, and cut off the rest."""
        drafted, request.drafted = request.drafted, []
        held, drafter, generation, right = request.held, request.drafter, request.generation, 0
        assert held is not None
        assert drafter is not None
        margin = CLOSE if generation.greedy else 0.0
        for index in range(last - len(drafted), last + 1):
            if not self._choose(context, request, index, margin=margin):  # alone it might be another one
                request.pending = [held.tokens.pop()]
                drafter.paused = True
                break
            if request.held is None or request.pending != drafted[right : right + 1]:
                break
            right += 1
            held.tokens.append(request.pending.pop())
        drafter.judge(len(drafted), right)
        generation.guessed += len(drafted)
        generation.guessed_right += right
        generation.alone = False  # its speed is not that of other answers
        context.cut(held.id, len(held.tokens))

    def _choose(self, context: Context, request: TextRequest, index: int, *, margin: float = 0.0) -> bool:
        """Choose the next token of a request; False if its logit is not as far above the next one as wanted."""
        generation = request.generation
        if self._prompt_cache is not None and not generation.output:
            assert request.held is not None
            self._prompt_cache.keep(context, request.held)
        try:
            if not generation.step(context, index, margin):
                return False
        except Exception as error:  # noqa: BLE001 - it ends this request, not the others
            self._give_up(request, error)
            return True
        if generation.finish_reason is None:
            request.pending.append(generation.output[-1])
            if len(generation.prompt) + len(generation.output) > self.memory.n_ctx:
                generation.finish("length")
        if generation.finish_reason is not None:
            self._leave_batch(request)
            self._finish(request)
        return True

    def _finish(self, request: TextRequest) -> None:
        request.generation.close()
        request.finish(request.generation)

    def _give_up(self, request: TextRequest, error: BaseException) -> None:
        if request in self.running:
            self._leave_batch(request)
        else:
            self.waiting.remove(request)
        request.generation.close()
        request.fail(error)

    def _leave_batch(self, request: TextRequest) -> None:
        self.running.remove(request)
        held, request.held = request.held, None
        if held is not None and held.tokens:
            self._pool.release(held)
        elif held is not None:
            self._pool.drop(held)

    def _lose(self, request: TextRequest) -> None:
        """Take the memory from a request; it begins again when there is room."""
        if request.held is not None:
            self._pool.drop(request.held)
        request.held = None
        self.running.remove(request)
        self.waiting.appendleft(request)

    def _ensure(self, cells: int, *, reserved: int) -> bool:
        """See to a context with room for some tokens; False if there is no room for it now."""
        moved = self.memory.ensure(cells, reserved=reserved)
        for request in tuple(self.running) if moved else ():
            request.held = moved.get(request.held) if moved and request.held is not None else None
            if request.held is None:
                self._lose(request)
            else:
                request.pending = request.generation.tokens[len(request.held.tokens) :]
        return moved is not None

    @property
    def _pool(self) -> SequencePool:
        assert self.memory.pool is not None
        return self.memory.pool

    def _admit(self) -> None:
        while self.waiting and not self.hold and len(self.running) < MOST_TOGETHER:
            request = self._next()
            if request is None or not self._let_in(request):
                return
            self.waiting.remove(request)
            self.running.append(request)
            if len(self.running) >= MANY:
                self._pool.forget_short()

    def _next(self) -> TextRequest | None:
        """The request that has waited longest, except those whose beginning somebody else is evaluating."""
        for request in self.waiting:
            tokens = request.generation.tokens
            have = self._pool.best(tokens)[1] if self.size else 0
            if not self._coming(tokens, have):
                return request
        return None

    def _coming(self, tokens: list[int], have: int) -> bool:
        if self._weights.recurrent:
            return False
        for request in self.running:
            common = common_prefix(request.generation.prompt, tokens[:-1]) if request.prefilling else 0
            held = len(request.held.tokens) if request.held is not None else common
            if common > held and common >= have + SHORTEST_PREFIX:
                return True
        return False

    def _let_in(self, request: TextRequest) -> bool:
        """Give a request a sequence, if there is room for it beside the running ones."""
        tokens, n_ctx = request.generation.tokens, self.memory.n_ctx
        request.pending = list(tokens)
        repeatable = not request.generation.params.random
        if repeatable and not self.running and not request.generation.output and self.size:
            # Tokens that were evaluated one by one differ in the last bits from those of a prompt. Whoever gives a seed
            # and is alone wants the same answer again, whatever was asked before.
            self._pool.clear()
        reserved = sum(other.need for other in self.running) + request.need
        wanted = reserved
        if self.size:
            source, common = self._pool.best(tokens)
            reserved -= common
            wanted = reserved + self._pool.cells_in_use + (common if source is not None and not source.in_use else 0)
        if self.running and wanted > n_ctx:
            return False
        if not self._ensure(wanted, reserved=reserved):
            return False
        pool = self._pool
        if self._prompt_cache is not None and not repeatable:
            self._prompt_cache.load(pool, tokens)
        source, common = pool.best(tokens)
        held = pool.begin_with(source, common) if source is not None and common else pool.new()
        if held is None:
            return False
        request.held = held
        request.pending = tokens[len(held.tokens) :]
        if not request.generation.output:
            request.generation.reused = len(held.tokens)
            request.generation.started = time.perf_counter()
        return True

    def _room_for_a_step(self) -> Context | None:
        """The context, with room for the tokens of one step: others leave, it grows, the youngest waits."""
        while True:
            if not self.running:
                return None
            pool, context = self._pool, self._pool.context
            answering = sum(not request.prefilling for request in self.running)
            pending = sum(len(request.pending) for request in self.running if request.prefilling)
            step = answering + min(pending, max(context.settings.n_ubatch, _LEAST_PIECE))
            cells, in_use = pool.cells + step, pool.cells_in_use + step
            if cells <= context.n_ctx:
                return context
            if pool.forget_short():
                continue
            if cells <= min(KEEP, self.memory.n_ctx) and self._ensure(cells, reserved=step):
                continue
            if in_use <= context.n_ctx:
                pool.shrink(context.n_ctx - step)
                return context
            grown = context.n_ctx < self.memory.n_ctx
            if grown and self._ensure(min(in_use + _ANSWER, self.memory.n_ctx), reserved=step + _ANSWER):
                continue
            if len(self.running) == 1:
                return None if grown else context  # there will be room; or it ends at the edge of the context
            self._lose(self.running[-1])

    def _make_room_by_force(self, error: NoRoomError) -> None:
        """llama.cpp found no room although there should be some: fewer sequences."""
        if idle := self._pool.idle:
            self._pool.drop(idle[0])
        elif len(self.running) > 1:
            self._lose(self.running[-1])
        else:
            self._give_up(self.running[0], error)

    def fail(self, error: BaseException, owner: object = None) -> None:
        """End all requests, or those of one backend, with an error."""
        for request in [*self.running, *self.waiting]:
            if owner in (None, request.owner):
                self._give_up(request, error)
        if owner is None:  # what the memory holds after an error is not known
            self.close()

    def close(self) -> None:
        self.memory.close()
