"""The sampler: continuous batching of concurrent requests in one thread.

    requests --inbox--> queue (priority, then arrival) --free rows--> decode batches, one for each snapshot in use
                                                                      each: step, choose, finish rows, repeat

Between two decode steps, requests join: a prompt is read once, whatever the number of samples, and each sample takes a row. The rows of
all batches together are at most `max_batch`; a request may join in parts. A cancelled request leaves at the same place.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence

import torch

from engine.backends.errors import BackendError
from engine.backends.local.decoding import Batch, Ticket
from engine.backends.local.network import Weights
from engine.backends.local.packing import plan
from engine.backends.local.scoring import ScoreTicket, Scoring
from engine.backends.local.threads import CLOSED

_PREFILL_TOKENS = 2048
_PAUSE = 0.0003
_GATHERING = 0.003
"""Seconds: an idle sampler starts when no request has followed the last for a pause, or when it has gathered for this long."""


class SamplerThread:
    """The thread, its inbox and its batches."""

    def __init__(
        self,
        *,
        max_batch: int,
        decode: Callable[[Sequence[int]], str],
        device: torch.device,
        prepare: Callable[[], None],
        scoring: Scoring,
    ) -> None:
        self._max_batch = max_batch
        self._scoring = scoring
        self._decode = decode
        self._device = device
        self._prepare = prepare
        self._changed = threading.Condition()
        self._inbox: list[Ticket | ScoreTicket] = []
        self._news = False
        self._closing = False
        self._arrivals = itertools.count()
        self._queue: list[tuple[float, int, Ticket]] = []
        self._batches: dict[Weights, Batch] = {}
        self._done: list[Ticket] = []
        self._thread = threading.Thread(target=self._run, name="callsheet-sampler", daemon=True)
        self._thread.start()

    def post(self, item: Ticket | ScoreTicket) -> None:
        """Hands over a request; sequences are scored between two decode steps. Raises BackendError when closed."""
        with self._changed:
            if self._closing:
                raise BackendError("the local backend is closed: open it again to go on")
            self._inbox.append(item)
            self._news = True
            self._changed.notify()

    def cancel(self, ticket: Ticket) -> None:
        """Frees what a request holds, at the next step."""
        ticket.cancelled = True
        with self._changed:
            self._news = True
            self._changed.notify()

    def close(self) -> None:
        """Ends the thread at its next step; requests under way fail. Blocks until it has ended."""
        with self._changed:
            self._closing = True
            self._news = True
            self._changed.notify()
        self._thread.join()

    def statistics(self) -> dict[str, int]:
        """What is held right now: rows being decoded, requests waiting, snapshots in use."""
        batches = list(self._batches.values())
        return {"rows": sum(len(batch.rows) for batch in batches), "waiting": len(self._queue), "batches": len(batches)}

    def _run(self) -> None:
        self._prepare()
        with torch.inference_mode():
            while self._take_news(wait=not self._batches and not self._queue):
                try:
                    self._round()
                except BaseException as error:  # noqa: BLE001 - it belongs to the requests that were in it
                    self._fail(error)
        self._fail(BackendError(CLOSED))

    def _take_news(self, *, wait: bool) -> bool:
        """Reads the inbox. False: the thread shall end."""
        if not wait and not self._news:
            return True
        with self._changed:
            while wait and not self._news:
                self._changed.wait()
            # Requests come in bursts (a step's groups): those that follow at once start together instead of one step apart.
            latest = time.monotonic() + _GATHERING
            while wait and not self._closing and self._changed.wait(_PAUSE) and time.monotonic() < latest:
                pass
            inbox, self._inbox = self._inbox, []
            self._news = False
            closing = self._closing
        for item in inbox:
            if isinstance(item, Ticket):
                heapq.heappush(self._queue, (item.request.priority, next(self._arrivals), item))
        self._scoring.answer([item for item in inbox if isinstance(item, ScoreTicket)], lambda: self._closing)
        self._leave()
        return not closing

    def _leave(self) -> None:
        """Lets go of cancelled requests."""
        if any(entry[2].cancelled for entry in self._queue):
            self._queue = [entry for entry in self._queue if not entry[2].cancelled]
            heapq.heapify(self._queue)
        for batch in self._batches.values():
            batch.remove(lambda ticket: ticket.cancelled)
        self._sweep()

    def _sweep(self) -> None:
        """Forgets batches without rows, and with them the snapshots they hold."""
        for weights in [weights for weights, batch in self._batches.items() if not batch.rows]:
            del self._batches[weights]

    def _round(self) -> None:
        """Lets requests join, then one decode step of every batch. Who waits learns of it last, when all is freed."""
        try:
            self._admit()
            for batch in list(self._batches.values()):
                if batch.rows:
                    batch.step()
        finally:
            self._sweep()
            done, self._done[:] = list(self._done), []
            for ticket in done:
                if not ticket.future.done():
                    ticket.future.set_result([ticket.finished[index] for index in range(ticket.request.num_samples)])

    def _admit(self) -> None:
        free = self._max_batch - sum(len(batch.rows) for batch in self._batches.values())
        joining: list[tuple[Ticket, int]] = []
        while free > 0 and self._queue:
            ticket = self._queue[0][2]
            count = min(free, ticket.request.num_samples - ticket.started)
            joining.append((ticket, count))
            free -= count
            if ticket.started + count < ticket.request.num_samples:
                break
            heapq.heappop(self._queue)
        try:
            self._read_prompts([ticket for ticket, _ in joining if ticket.prefix is None])
            for weights in dict.fromkeys(ticket.weights for ticket, _ in joining):
                batch = self._batches.get(weights)
                if batch is None:
                    batch = self._batches[weights] = Batch(weights, self._decode, self._device, self._done)
                batch.join([entry for entry in joining if entry[0].weights is weights])
        except BaseException as error:
            for ticket, _ in joining:
                _fail_one(ticket, error)
            raise

    def _read_prompts(self, tickets: list[Ticket]) -> None:
        """Prefills prompts, those of one snapshot together as far as a bound on tokens allows."""
        by_weights: dict[Weights, list[Ticket]] = {}
        for ticket in tickets:
            by_weights.setdefault(ticket.weights, []).append(ticket)
        for weights, group in by_weights.items():
            prompts = [ticket.request.prompt.tokens for ticket in group]
            for pack in plan(prompts, _PREFILL_TOKENS, share=False):
                prefixes = weights.bound().prefill([prompts[index] for index in pack.members])
                for index, prefix in zip(pack.members, prefixes, strict=True):
                    group[index].prefix = prefix

    def _fail(self, error: BaseException) -> None:
        """Fails everything under way and frees what it held."""
        batches, self._batches = self._batches, {}
        queue, self._queue = self._queue, []
        for batch in batches.values():
            for row in batch.rows:
                _fail_one(row.ticket, error)
        for _, _, ticket in queue:
            if ticket.started or self._closing:
                _fail_one(ticket, error)
            else:
                heapq.heappush(self._queue, (ticket.request.priority, next(self._arrivals), ticket))


def _fail_one(ticket: Ticket, error: BaseException) -> None:
    if not ticket.future.done():
        ticket.future.set_exception(error)
