"""The model behind the in-memory service: a table of next-token logits by the token before, with exact gradients and AdamW.

Small enough to be understood at a glance, and it learns: what a test says about training is about training.

Dimension suffixes: `V` vocabulary, `T` positions of one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends.tinker.testing.values import (
    AdamParams,
    BadRequestError,
    Datum,
    SampledSequence,
    SamplingParams,
    UnprocessableEntityError,
)
from engine.backends.values import Datum as EngineDatum
from engine.backends.values import Loss
from engine.backends.values import ModelInput as EngineInput
from engine.training.losses import LOSSES, evaluate

SERVED = ("cross_entropy", "importance_sampling", "ppo", "cispo")
Array = NDArray[np.float64]


class Weights:
    """The table, as one run trains it."""

    def __init__(self, base_V_V: Array) -> None:
        self.logits_V_V = base_V_V.copy()
        self.mean_V_V = np.zeros_like(base_V_V)
        self.square_V_V = np.zeros_like(base_V_V)
        self.gradient_V_V = np.zeros_like(base_V_V)
        self.steps = 0

    def copy(self, *, optimizer: bool) -> Weights:
        """A copy without accumulated gradients, with the optimizer's memory or without."""
        copied = Weights(self.logits_V_V)
        if optimizer:
            copied.mean_V_V, copied.square_V_V = self.mean_V_V.copy(), self.square_V_V.copy()
            copied.steps = self.steps
        return copied

    def next_logprobs(self, ids: Sequence[int]) -> Array:
        """Of the token that follows each of `ids`, shape (T, V). An id outside of the table gives NaN, as real servers do."""
        vocab = len(self.logits_V_V)
        ids_T = np.asarray(ids)
        known_T = (ids_T >= 0) & (ids_T < vocab)
        rows_T_V = self.logits_V_V[np.where(known_T, ids_T, 0)]
        found: Array = rows_T_V - np.log(np.exp(rows_T_V - rows_T_V.max(1, keepdims=True)).sum(1, keepdims=True))
        found -= rows_T_V.max(1, keepdims=True)
        found[~known_T & (ids_T >= 0)] = np.nan  # -1 is an image's position, which says nothing about the next token
        return found

    def run(self, data: Sequence[Datum], loss: str, config: Mapping[str, float], *, backward: bool) -> list[Array]:
        """Log-probs of the targets of each datum, shape (T,); gradients of the loss, summed over tokens, are added up."""
        if loss not in SERVED:
            raise BadRequestError(f"loss {loss!r} is not served")
        fields = ("target_tokens", *LOSSES[loss].reads)
        for index, datum in enumerate(data):
            for name in {*fields, *datum.loss_fn_inputs}:
                if name not in fields or name not in datum.loss_fn_inputs:
                    problem = "Extra inputs are not permitted" if name not in fields else "Field required"
                    place = ["body", "forward_backward_input", "data", index, "loss_fn_inputs", name]
                    raise UnprocessableEntityError("invalid", body={"detail": [{"loc": place, "msg": problem}]})
        rows = [self.next_logprobs(datum.model_input.ids) for datum in data]
        targets = [datum.loss_fn_inputs["target_tokens"].to_numpy() for datum in data]
        found = [row[np.arange(len(target)), target] for row, target in zip(rows, targets, strict=True)]
        if backward:
            inputs = [
                EngineDatum(
                    EngineInput.from_tokens(np.maximum(datum.model_input.ids, 0)),
                    {name: tensor.to_numpy() for name, tensor in datum.loss_fn_inputs.items()},
                )
                for datum in data
            ]
            _, gradients = evaluate(Loss(loss, config), inputs, found)
            for datum, row, target, gradient in zip(data, rows, targets, gradients, strict=True):
                self._add(datum.model_input.ids, row, target, gradient)
        return found

    def _add(self, ids: Sequence[int], rows_T_V: Array, target_T: NDArray[Any], gradient_T: Array) -> None:
        for position, token in enumerate(ids):
            if token >= 0:
                self.gradient_V_V[token] -= gradient_T[position] * np.exp(rows_T_V[position])
                self.gradient_V_V[token, target_T[position]] += gradient_T[position]

    def step(self, params: AdamParams) -> float:
        """AdamW; the gradient's norm before clipping."""
        gradient_V_V = self.gradient_V_V
        norm = float(np.linalg.norm(gradient_V_V))
        if params.grad_clip_norm and norm > params.grad_clip_norm:
            gradient_V_V = gradient_V_V * (params.grad_clip_norm / norm)
        self.steps += 1
        self.mean_V_V += (1 - params.beta1) * (gradient_V_V - self.mean_V_V)
        self.square_V_V += (1 - params.beta2) * (gradient_V_V**2 - self.square_V_V)
        mean_V_V = self.mean_V_V / (1 - params.beta1**self.steps)
        square_V_V = self.square_V_V / (1 - params.beta2**self.steps)
        self.logits_V_V -= params.learning_rate * (
            mean_V_V / (np.sqrt(square_V_V) + params.eps) + params.weight_decay * self.logits_V_V
        )
        self.gradient_V_V = np.zeros_like(self.gradient_V_V)
        return norm

    def sample(
        self, ids: Sequence[int], params: SamplingParams, seed: int, decode: Callable[[Sequence[int]], str]
    ) -> SampledSequence:
        """One completion, drawn from a stream of its own."""
        stream = np.random.default_rng(seed)
        tokens: list[int] = []
        logprobs: list[float] = []
        last = [each for each in ids if each >= 0][-1]
        stops = tuple(params.stop or ())
        for _ in range(params.max_tokens or 0):
            (own_V,) = self.next_logprobs([last])
            last = _draw(own_V, params, stream)
            tokens.append(last)
            logprobs.append(float(own_V[last]))
            text = decode(tokens) if any(isinstance(stop, str) for stop in stops) else ""
            if any(stop in text if isinstance(stop, str) else stop == last for stop in stops):
                return SampledSequence(tokens=tokens, logprobs=logprobs, stop_reason="stop")
        return SampledSequence(tokens=tokens, logprobs=logprobs, stop_reason="length")


def _draw(logprobs_V: Array, params: SamplingParams, stream: np.random.Generator) -> int:
    draw = stream.random()
    if params.temperature == 0:
        return int(logprobs_V.argmax())
    scaled_V = logprobs_V / params.temperature
    order_V = np.argsort(-scaled_V, kind="stable")
    chances_V = np.exp(scaled_V[order_V] - scaled_V.max())
    chances_V /= chances_V.sum()
    if params.top_k > 0:
        chances_V[params.top_k :] = 0
    chances_V[np.cumsum(chances_V) - chances_V >= params.top_p] = 0
    place = int(np.searchsorted(np.cumsum(chances_V), draw * chances_V.sum(), side="right"))
    return int(order_V[min(place, int(np.flatnonzero(chances_V)[-1]))])
