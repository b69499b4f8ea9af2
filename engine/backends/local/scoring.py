"""Log-probabilities of given sequences. Those asked for at the same time are computed together, a common beginning once.

Dimension suffixes: `T` positions of one sequence, `N` positions of all sequences of a pack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

import attrs
import numpy as np
import torch

from engine.backends.errors import BackendError
from engine.backends.local.network import Weights
from engine.backends.local.packing import Pack, plan
from engine.backends.local.threads import CLOSED
from engine.backends.values import Logprobs, Tokens


@attrs.frozen(eq=False)
class ScoreTicket:
    """One sequence, and where its log-probabilities are awaited: shape (T,), position 0 NaN."""

    tokens: Tokens
    weights: Weights
    future: Future[Logprobs]


@attrs.frozen
class Scoring:
    """How sequences are scored together. Sampler thread only."""

    device: torch.device
    budget: int
    """Most computed positions in one forward pass."""
    shares_prefixes: bool

    def answer(self, tickets: Sequence[ScoreTicket], closing: Callable[[], bool]) -> None:
        """Scores those that are still wanted; an error belongs to those it struck."""
        by_weights: dict[Weights, list[ScoreTicket]] = {}
        for ticket in tickets:
            if not ticket.future.set_running_or_notify_cancel():
                continue
            if len(ticket.tokens) == 1:
                _give(ticket, np.empty(0, np.float32))
            else:
                by_weights.setdefault(ticket.weights, []).append(ticket)
        for weights, group in by_weights.items():
            read = [ticket.tokens[:-1] for ticket in group]
            for pack in plan(read, self.budget, share=self.shares_prefixes):
                try:
                    if closing():
                        raise BackendError(CLOSED)
                    self._score(weights, group, read, pack)
                except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
                    for member in pack.members:
                        group[member].future.set_exception(error)

    def _score(self, weights: Weights, group: Sequence[ScoreTicket], read: Sequence[Tokens], pack: Pack) -> None:
        members = pack.members
        targets_N = torch.from_numpy(np.concatenate([group[member].tokens[1:] for member in members]).astype(np.int64))
        inactive_N = torch.zeros(len(targets_N), dtype=torch.bool, device=self.device)
        logprobs_N = weights.bound().target_logprobs(read, pack, targets_N.to(self.device), inactive_N).cpu().numpy()
        ends = np.cumsum([len(read[member]) for member in members])
        scores = np.split(logprobs_N, ends[:-1])
        for member, logprobs_T in zip(members, scores, strict=True):  # nothing fails from here on
            _give(group[member], logprobs_T)


def _give(ticket: ScoreTicket, logprobs_T: Logprobs) -> None:
    ticket.future.set_result(np.concatenate(([np.float32(np.nan)], logprobs_T)))
