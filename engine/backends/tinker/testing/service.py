"""The in-memory service: runs, checkpoints and samplers, time on anyio's clock, and faults on request.

client ── submit ──▶ inbox ── serving() ──▶ due, in order within a run ──▶ executed ──▶ future
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import attrs
import numpy as np

from engine.backends.futures import thread_safe_call
from engine.backends.tinker.servers import HOSTED, SKYRL, Traits
from engine.backends.tinker.testing.model import Weights
from engine.backends.tinker.testing.values import (
    AdamParams,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    NotFoundError,
    SampledSequence,
    SampleResponse,
    SamplingParams,
)

KEY = "tml-fake"


@attrs.frozen
class Fault:
    """What goes wrong with one request."""

    error: Exception | None = None
    """It fails with this."""
    lost: bool = False
    """It is never answered; nor is anything behind it in its run."""
    seconds: float = 0.0
    """It takes so much longer."""
    statuses: tuple[int, ...] = ()
    """Statuses that the SDK meets and deals with by itself, before the answer comes."""
    change: Callable[[Any], Any] | None = None
    """The answer is what this makes of it."""


@attrs.define(eq=False)
class Run:
    """A training run."""

    id: str
    weights: Weights
    rank: int
    busy_until: float = 0.0
    stuck: bool = False
    unloaded: bool = False
    layers: dict[str, bool] = attrs.field(factory=dict)
    """What was asked for of the layers that get adapters."""


@attrs.frozen
class Stored:
    """A checkpoint."""

    run: Run
    kind: str
    weights: Weights
    rank: int
    ttl: int | None
    saved: datetime


@attrs.define(eq=False)
class _Request:
    call: str
    run: Run | None
    execute: Callable[[], Any]
    future: Future[Any]
    fault: Fault


class Service:
    """The server's side."""

    def __init__(
        self,
        *,
        model: str,
        vocab: int,
        max_context: int | None,
        seed: int,
        latency: Callable[[str], float] | None,
        shared_slot: bool,
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        self.model = model
        self.max_context = max_context
        self.latency = latency or (lambda _: 0.0)
        self.shared_slot = shared_slot
        self.log: list[tuple[str, str]] = []
        """Requests that were executed: what, and of which run."""
        self.cancelled: list[str] = []
        """Requests that were cancelled before they were answered."""
        self.sessions: list[str] = []
        """How sessions ended."""
        self.runs: dict[str, Run] = {}
        self.checkpoints: dict[str, Stored] = {}
        self.began = datetime(2026, 1, 1, tzinfo=UTC)
        """When the first checkpoint is saved, each further one a second later."""
        self._saves = itertools.count()
        self.down = False
        """Nothing is answered, and the port takes no connections."""
        self.late_none = True
        """compute_logprobs has a value for every position, the first None; else one fewer."""
        self.status_pause = 1.0
        """Seconds that the SDK waits after each of a fault's `statuses`."""
        self._base_V_V = np.random.default_rng(seed).normal(size=(vocab, vocab))
        self._decode = decode
        self._left_over: list[Any] = []
        """Gradients of unloaded runs, which the next ones begin with where slots are shared."""
        self._faults: dict[str, list[Fault | None]] = {}
        self._lock = threading.Lock()
        self._inbox: list[_Request] = []
        self._due: list[tuple[float, int, _Request]] = []
        self._order = itertools.count()
        self._wake: anyio.Event | None = None
        self._call: Callable[[Callable[[], None]], None] | None = None

    # --- faults

    def plan(self, call: str, *faults: Fault | None) -> None:
        """The next requests of a kind meet these, in order; None: nothing happens to that one."""
        self._faults.setdefault(call, []).extend(faults)

    def _next_fault(self, call: str) -> Fault:
        planned = self._faults.get(call)
        return (planned.pop(0) if planned else None) or Fault()

    async def look_up(self) -> str | None:
        """Whether the port takes connections."""
        await anyio.lowlevel.checkpoint()
        return "connection refused" if self.down else None

    # --- time

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Requests are executed inside of this block; a block inside of it changes nothing."""
        if self._call is not None:
            yield
            return
        self._call = thread_safe_call()
        self._wake = anyio.Event()
        error: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._serve)
            try:
                yield
            except Exception as raised:  # noqa: BLE001  (raised again below, not in a group)
                error = raised
            finally:
                self._call = None
                tasks.cancel_scope.cancel()
        if error is not None:
            raise error

    def submit(self, call: str, run: Run | None, execute: Callable[[], Any]) -> Future[Any]:
        """Takes a request; any thread may."""
        future: Future[Any] = Future()
        with self._lock:
            self._inbox.append(_Request(call, run, execute, future, self._next_fault(call)))
        future.add_done_callback(lambda done: self.cancelled.append(call) if done.cancelled() else None)
        self._stir()
        return future

    def _stir(self) -> None:
        if self._call is not None and self._wake is not None:
            self._call(self._wake.set)

    async def _serve(self) -> None:
        while True:
            now = anyio.current_time()
            self._take_in(now)
            while self._due and self._due[0][0] <= now:
                self._answer(heapq.heappop(self._due)[2])
            if self._inbox:
                continue
            pause = self._due[0][0] - now if self._due else float("inf")
            with anyio.move_on_after(pause):
                await (self._wake or anyio.Event()).wait()
            self._wake = anyio.Event()

    def _take_in(self, now: float) -> None:
        with self._lock:
            inbox, self._inbox = self._inbox, []
        for request in inbox:
            due = now + self.latency(request.call) + request.fault.seconds
            for status in request.fault.statuses:
                due += self.status_pause
                _log_status(status)
            if request.run is not None:
                due = request.run.busy_until = max(due, request.run.busy_until)
            heapq.heappush(self._due, (due, next(self._order), request))

    def _answer(self, request: _Request) -> None:
        run, fault, future = request.run, request.fault, request.future
        if future.cancelled() or self.down or (run is not None and run.stuck):
            return
        if fault.lost:
            if run is not None:
                run.stuck = True
            return
        self.log.append((request.call, run.id if run is not None else ""))
        try:
            if fault.error is not None:
                raise fault.error
            if run is not None and run.unloaded:
                raise BadRequestError(f"Model {run.id} not loaded")
            answer = request.execute()
        except Exception as error:  # noqa: BLE001  (the client's)
            future.set_exception(error)
        else:
            future.set_result(fault.change(answer) if fault.change is not None else answer)

    # --- what requests do

    def check_key(self, key: str | None) -> None:
        """Raises AuthenticationError for a key that is not `KEY`."""
        if key != KEY:
            raise AuthenticationError(f"invalid key {key}")

    def begin(self, rank: int, source: str | None = None, *, optimizer: bool = False) -> Run:
        """A new run, from nothing or from a checkpoint."""
        weights = Weights(self._base_V_V)
        if source is not None:
            stored = self.stored(source, "training")
            weights, rank = stored.weights.copy(optimizer=optimizer), stored.rank
        if self._left_over:
            weights.gradient_V_V = self._left_over.pop()
        run = Run(f"run-{len(self.runs)}", weights, rank)
        self.runs[run.id] = run
        return run

    def step(self, run: Run, params: AdamParams) -> float:
        """An optimizer step; the gradient's norm. Where slots are shared nothing is clipped, as on SkyRL's server."""
        if self.shared_slot:
            params = attrs.evolve(params, grad_clip_norm=0.0)
        return run.weights.step(params)

    def save(self, run: Run, kind: str, name: str, ttl: int | None) -> str:
        """Keeps the weights of now; the path."""
        path = f"tinker://{run.id}/{'weights' if kind == 'training' else 'sampler_weights'}/{name}"
        if path in self.checkpoints:
            raise ConflictError(f"{path} exists")
        saved = self.began + timedelta(seconds=next(self._saves))
        self.checkpoints[path] = Stored(run, kind, run.weights.copy(optimizer=True), run.rank, ttl, saved)
        return path

    def stored(self, path: str, kind: str) -> Stored:
        """A checkpoint. Raises NotFoundError."""
        found = self.checkpoints.get(path)
        if found is None or found.kind != kind:
            raise NotFoundError(f"{path} does not exist")
        return found

    def weights_for(self, path: str) -> Weights:
        """What a sampler of a path samples from. With a shared slot, the run's own weights become these."""
        stored = self.stored(path, "sampler")
        if self.shared_slot:
            stored.run.weights.logits_V_V = stored.weights.logits_V_V.copy()
        return stored.weights

    def sample(self, path: str, ids: Sequence[int], count: int, params: SamplingParams) -> SampleResponse:
        """Completions, the seed counted up for each."""
        if params.max_tokens is None:
            raise BadRequestError("max_tokens is required")
        kinds = {type(stop) for stop in params.stop or ()}
        if isinstance(params.stop, str) or len(kinds) > 1:
            raise BadRequestError("stop must be a list of ids or a list of strings")
        weights = self.weights_for(path)
        sequences: list[SampledSequence] = [
            weights.sample(ids, params, (params.seed or 0) + index, self._decode) for index in range(count)
        ]
        return SampleResponse(sequences=sequences)

    def prompt_logprobs(self, path: str, ids: Sequence[int]) -> list[float | None]:
        """Of every token but the first."""
        rows_T_V = self.weights_for(path).next_logprobs(ids[:-1])
        values: list[float | None] = [
            float(row_V[token]) if 0 <= token < len(row_V) else float("nan")
            for row_V, token in zip(rows_T_V, ids[1:], strict=True)
        ]
        return [None, *values] if self.late_none else values

    def traits(self) -> Traits:
        """How a backend should treat this service."""
        if not self.shared_slot:
            return HOSTED

        def unload(run_id: str) -> None:
            run = self.runs[run_id]
            run.unloaded = True
            self._left_over.append(run.weights.gradient_V_V)

        return attrs.evolve(SKYRL, unload=unload)


def _log_status(status: int) -> None:
    """The line that httpx would log."""
    logging.getLogger("httpx").info(
        'HTTP Request: %s %s "%s %d %s"', "POST", "https://fake/api/v1/asample", "HTTP/1.1", status, "-"
    )
