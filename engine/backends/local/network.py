"""What the sampler and the trainer need of a model, whichever way its forward pass is computed.

A `Network` knows the architecture; `bind` gives it weights. The trainer binds its own leaves (gradients flow into them), the sampler
binds each snapshot's tensors; weights that no training changes are shared by all of them. Two ways to compute: `llama`, written
out for the Llama family, and `generic`, through the Hugging Face module of any causal language model.

Dimension suffixes: `B` sequences (rows) of a batch, `T` positions, `V` vocabulary, `N` positions of several sequences in one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs
import torch
from torch import Tensor

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

    def target_logprobs(self, inputs: Sequence[Tokens], targets_N: Tensor, active_N: Tensor) -> Tensor:
        """Log-probabilities (N,) of the token that follows each position of each input, float32.

        Gradients flow only through positions where `active_N` is true.
        """
        ...


class Network(Protocol):
    """An architecture without its trainable weights."""

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


def microbatches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of sequences, in parts whose padded size (count · longest) stays within `budget`; a longer one goes alone.

    Sorted by length, so that little is padded. How the sequences are split has no effect on a sum over tokens.
    """
    parts: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if parts and lengths[index] * (len(parts[-1]) + 1) <= budget:
            parts[-1].append(index)
        else:
            parts.append([index])
    return parts


class _TargetLogprobs(torch.autograd.Function):
    """log softmax(h·Wᵀ) at the target token, with the vocabulary-sized arrays kept to one and reused by the backward pass."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, hidden_N_H: Tensor, head_V_H: Tensor, targets_N: Tensor
    ) -> Tensor:
        logits_N_V = (hidden_N_H @ head_V_H.T).float()
        total_N = logits_N_V.logsumexp(-1)
        ctx.save_for_backward(hidden_N_H, head_V_H, targets_N, logits_N_V, total_N)
        return logits_N_V.gather(-1, targets_N[:, None])[:, 0] - total_N

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient_N: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        hidden_N_H, head_V_H, targets_N, logits_N_V, total_N = ctx.saved_tensors  # type: ignore[attr-defined]
        slope_N_V = (logits_N_V - total_N[:, None]).exp_().mul_(-gradient_N[:, None])
        slope_N_V.scatter_add_(-1, targets_N[:, None], gradient_N[:, None])
        slope_N_V = slope_N_V.to(hidden_N_H.dtype)
        to_hidden = slope_N_V @ head_V_H if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
        to_head = slope_N_V.T @ hidden_N_H if ctx.needs_input_grad[1] else None  # type: ignore[attr-defined]
        return to_hidden, to_head, None


def target_logprobs(hidden_N_H: Tensor, head_V_H: Tensor, targets_N: Tensor) -> Tensor:
    """Log-probabilities (N,) of `targets_N` under the output head, float32."""
    result: Tensor = _TargetLogprobs.apply(hidden_N_H, head_V_H, targets_N)  # type: ignore[no-untyped-call]
    return result
