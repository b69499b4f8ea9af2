"""Requests while they are sampled: each of their samples is a row, and the rows of one snapshot are a batch.

Dimension suffixes: `B` rows, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

import attrs
import numpy as np
import torch

from engine.backends.local.draws import RandomStream, Rules, choose
from engine.backends.local.network import DecodeBatch, Prefix, Weights
from engine.backends.stops import StopWatch
from engine.backends.values import Completion, SampleRequest, StopReason

_EXPECTED_TOKENS = 64


@attrs.define(eq=False)
class Ticket:
    """One request on its way through the sampler."""

    request: SampleRequest
    weights: Weights
    room: int
    """Positions that the context leaves behind the prompt."""
    future: Future[list[Completion]]
    on_token: Callable[[int, int, float], None] | None = None
    """Told of every token (index of the sample, token, logprob), in the sampler's thread."""
    cancelled: bool = False
    started: int = 0
    prefix: Prefix | None = None
    """The prompt as read; kept until every sample has started."""
    finished: dict[int, Completion] = attrs.field(factory=dict)


@attrs.define(eq=False)
class Row:
    """One sample being decoded."""

    ticket: Ticket
    index: int
    random: RandomStream
    stop: StopWatch
    limit: int
    tokens: list[int] = attrs.field(factory=list)
    logprobs: list[float] = attrs.field(factory=list)

    def take(self, token: int, logprob: float) -> StopReason | None:
        """Appends a token; why the sample ends with it, if it does."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if self.ticket.on_token is not None:
            self.ticket.on_token(self.index, token, logprob)
        if self.stop.reached(self.tokens):
            return "stop"
        return "length" if len(self.tokens) >= self.limit else None


class Batch:
    """The rows that one snapshot serves."""

    def __init__(
        self, weights: Weights, decode: Callable[[Sequence[int]], str], device: torch.device, done: list[Ticket]
    ) -> None:
        self.weights = weights
        self._done = done
        self.rows: list[Row] = []
        self._cache: DecodeBatch = weights.bound().decode_batch()
        self._decode = decode
        self._device = device
        self._rules: Rules | None = None

    def join(self, joining: Sequence[tuple[Ticket, int]]) -> None:
        """Starts the next samples of requests whose prompts have been read, and draws their first tokens."""
        first = len(self.rows)
        rows = first + sum(count for _, count in joining)
        self._cache.reserve(rows, max(_likely_length(ticket.request) for ticket, _ in joining))
        logits = []
        for ticket, count in joining:
            prefix = ticket.prefix
            if prefix is None:
                raise AssertionError("a request joins only after its prompt was read")
            self._cache.add(prefix, count)
            self.rows += [self._row(ticket, index) for index in range(ticket.started, ticket.started + count)]
            logits.append(prefix.logits_V.expand(count, -1))
            ticket.started += count
            if ticket.started == ticket.request.num_samples:
                ticket.prefix = None
        self._rules = None
        rules = Rules.of([row.ticket.request.params for row in self.rows[first:]], self._device)
        self._choose(torch.cat(logits), first, rules)

    def _row(self, ticket: Ticket, index: int) -> Row:
        request = ticket.request
        limit = min(request.params.max_tokens, ticket.room)
        stop = StopWatch(request.params, self._decode)
        return Row(ticket, index, RandomStream(request.seed, index), stop, limit)

    def step(self) -> None:
        """Draws one token for every row."""
        tokens_B = torch.tensor([row.tokens[-1] for row in self.rows], device=self._device)
        logits_B_V = self._cache.step(tokens_B)
        if self._rules is None:
            self._rules = Rules.of([row.ticket.request.params for row in self.rows], self._device)
        self._choose(logits_B_V, 0, self._rules)

    def _choose(self, logits_B_V: torch.Tensor, first: int, rules: Rules) -> None:
        """Draws for the rows from `first` on; rows that end make way."""
        rows = self.rows[first:]
        tokens_B, logprobs_B = choose(logits_B_V, [row.random.next() for row in rows], rules)
        drawn = zip(rows, tokens_B.tolist(), logprobs_B.tolist(), strict=True)
        reasons = [row.take(token, logprob) for row, token, logprob in drawn]
        for place in range(len(rows) - 1, -1, -1):
            if (reason := reasons[place]) is not None:
                self._finish(rows[place], reason)
                self._drop(first + place)

    def remove(self, gone: Callable[[Ticket], bool]) -> None:
        """Frees the rows of some requests."""
        for place in range(len(self.rows) - 1, -1, -1):
            if gone(self.rows[place].ticket):
                self._drop(place)

    def _finish(self, row: Row, reason: StopReason) -> None:
        ticket = row.ticket
        tokens, logprobs = np.array(row.tokens, np.int32), np.array(row.logprobs, np.float32)
        ticket.finished[row.index] = Completion(tokens, logprobs, reason, self.weights.version)
        if len(ticket.finished) == ticket.request.num_samples:
            self._done.append(ticket)

    def _drop(self, place: int) -> None:
        self._cache.drop(place)
        self.rows[place] = self.rows[-1]
        self.rows.pop()
        self._rules = None


def _likely_length(request: SampleRequest) -> int:
    """Positions to make room for at once; a longer answer gets more when it needs it."""
    return request.prompt.length + min(request.params.max_tokens, _EXPECTED_TOKENS)
