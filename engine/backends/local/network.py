"""What the sampler and the trainer need of a model, whichever way its forward pass is computed.

A `Network` knows the architecture; `bind` gives it weights. The trainer binds its own leaves (gradients flow into them), the sampler
binds each snapshot's tensors; weights that no training changes are shared by all of them. Two ways to compute: `llama`, written
out for the Llama family, and `generic`, through the Hugging Face module of any causal language model.

Dimension suffixes: `B` sequences (rows) of a batch, `T` positions, `V` vocabulary, `N` positions of several sequences in one line,
`U` positions that are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor

from engine.backends.local.packing import Pack
from engine.backends.local.parameters import Unit
from engine.backends.values import Tokens


@attrs.frozen(eq=False)
class Prefix:
    """A prompt that has been read: where sampling goes on from, as often as wanted."""

    length: int
    state: object
    """Keys and values, in the form of the network that made them."""
    logits_V: Tensor
    """What follows the prompt, float32."""


class DecodeBatch(Protocol):
    """Sequences being decoded together under the same weights. A row is a sequence."""

    def reserve(self, rows: int, length: int) -> None:
        """Says how many rows of what length are to be expected, so that room need not be made bit by bit."""
        ...

    def add(self, prefix: Prefix, count: int) -> None:
        """Appends `count` rows that go on from `prefix`."""
        ...

    def step(self, tokens_B: Tensor) -> Tensor:
        """Appends one token to each row and gives what follows, logits_B_V in float32."""
        ...

    def drop(self, row: int) -> None:
        """Removes a row; the last row takes its place."""
        ...


class Bound(Protocol):
    """A network with weights."""

    def prefill(self, prompts: Sequence[Tokens]) -> list[Prefix]:
        """Reads prompts."""
        ...

    def decode_batch(self) -> DecodeBatch:
        """An empty batch."""
        ...

    def target_logprobs(self, sequences: Sequence[Tokens], pack: Pack, targets_N: Tensor, active_N: Tensor) -> Tensor:
        """Log-probabilities (N,), float32, of a target at each position of each of the pack's sequences, in the pack's order.

        Gradients need to flow only through positions where `active_N` is true.
        """
        ...


class Weights:
    """A snapshot's tensors as the sampler thread uses them: bound to the network when first needed, in that thread."""

    def __init__(self, version: int, bind: Callable[[], Bound]) -> None:
        self.version = version
        self._bind = bind
        self._bound: Bound | None = None

    def bound(self) -> Bound:
        """The network with these weights. Sampler thread only."""
        if self._bound is None:
            self._bound = self._bind()
        return self._bound


class Network(Protocol):
    """An architecture without its trainable weights."""

    @property
    def shares_prefixes(self) -> bool:
        """Whether a pack's common beginnings are computed once."""
        ...

    @property
    def units(self) -> Sequence[Unit]:
        """Trainable tensors that must lie side by side."""
        ...

    def bind(self, weights: Mapping[Unit, Tensor]) -> Bound:
        """The network computing with `weights`, the trainable tensors by unit."""
        ...


def pad(sequences: Sequence[Tokens], device: torch.device) -> tuple[Tensor, Tensor]:
    """Sequences on top of each other, tokens_B_T padded at the right with 0, and their lengths_B."""
    lengths_B = torch.tensor([len(sequence) for sequence in sequences])
    tokens_B_T = torch.zeros(len(sequences), int(lengths_B.max()), dtype=torch.long)
    for row, sequence in zip(tokens_B_T, sequences, strict=True):
        row[: len(sequence)] = torch.from_numpy(sequence)
    return tokens_B_T.to(device), lengths_B.to(device)


class _TargetLogprobs(torch.autograd.Function):
    """log softmax(h·Wᵀ) at target tokens, with the vocabulary-sized arrays kept to one, which the backward pass uses up."""

    @staticmethod
    def forward(ctx: Any, hidden_U_H: Tensor, head_V_H: Tensor, rows_N: Tensor, targets_N: Tensor) -> Tensor:
        logits_U_V = (hidden_U_H @ head_V_H.T).float()
        total_U = logits_U_V.logsumexp(-1)
        ctx.save_for_backward(hidden_U_H, head_V_H, rows_N, targets_N, logits_U_V, total_U)
        return logits_U_V[rows_N, targets_N] - total_U[rows_N]

    @staticmethod
    def backward(ctx: Any, gradient_N: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_U_H, head_V_H, rows_N, targets_N, logits_U_V, total_U = ctx.saved_tensors
        gradient_U = torch.zeros_like(total_U).index_add_(0, rows_N, gradient_N)
        slope_U_V = logits_U_V.sub_(total_U[:, None]).exp_().mul_(-gradient_U[:, None])
        slope_U_V.index_put_((rows_N, targets_N), gradient_N, accumulate=True)
        slope_U_V = slope_U_V.to(hidden_U_H.dtype)
        to_hidden = slope_U_V @ head_V_H if ctx.needs_input_grad[0] else None
        to_head = slope_U_V.T @ hidden_U_H if ctx.needs_input_grad[1] else None
        return to_hidden, to_head, None, None


def target_logprobs(
    hidden_U_H: Tensor, head_V_H: Tensor, rows_N: Tensor, targets_N: Tensor, active_N: Tensor
) -> Tensor:
    """Log-probability (N,), float32, of each target under the output head at position `rows_N` of `hidden_U_H`.

    What follows a position is computed once, however many targets it has, and only where there are any. Gradients flow through
    targets where `active_N` is true; may be differentiated once.
    """
    if torch.is_grad_enabled() and not bool(active_N.all()):
        with torch.no_grad():
            idle_N = _at_needed_rows(hidden_U_H, head_V_H, rows_N[~active_N], targets_N[~active_N])
        logprobs_N = torch.empty(len(targets_N), device=targets_N.device)
        logprobs_N[~active_N] = idle_N
        return logprobs_N.masked_scatter(
            active_N, _at_needed_rows(hidden_U_H, head_V_H, rows_N[active_N], targets_N[active_N])
        )
    return _at_needed_rows(hidden_U_H, head_V_H, rows_N, targets_N)


def _at_needed_rows(hidden_U_H: Tensor, head_V_H: Tensor, rows_N: Tensor, targets_N: Tensor) -> Tensor:
    needed_U, places_N = rows_N.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    hidden_U_H = hidden_U_H.index_select(0, needed_U)
    result: Tensor = _TargetLogprobs.apply(hidden_U_H, head_V_H, places_N, targets_N)  # type: ignore[no-untyped-call]
    return result
