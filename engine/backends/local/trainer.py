"""The trainer's work: passes over datums, the AdamW step, snapshots. Everything here runs in the trainer thread.

Dimension suffixes: `N` tokens of all datums of a microbatch, one after the other; `P` all trainable numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.backends.errors import BackendError
from engine.backends.local.loss_formulas import LossBatch, LossResult
from engine.backends.local.losses import LOSSES, LossSpec
from engine.backends.local.network import Network
from engine.backends.local.packing import Pack, apart, plan, plan_pairs
from engine.backends.local.parameters import Trainable
from engine.backends.local.threads import CLOSED
from engine.backends.values import AdamParams, Datum, ForwardBackwardResult, Logprobs
from engine.training.custom import CustomLoss, CustomLossResult, evaluated

_ADAM_PART = 2**15
_ANY = "anywhere"
"""Of a custom loss's datums: it may have a gradient at every position."""


@attrs.frozen(eq=False)
class Pass:
    """One forward (and backward) pass, checked."""

    data: Sequence[Datum]
    loss: LossSpec
    params: Mapping[str, float]
    backward: bool


class Trainer:
    """Weights that learn."""

    def __init__(
        self, network: Network, trainable: Trainable, microbatch_tokens: int, closing: Callable[[], bool]
    ) -> None:
        self.trainable = trainable
        self.version = 0
        """Optimizer steps behind the weights."""
        self._network = network
        self._microbatch_tokens = microbatch_tokens
        self._closing = closing
        self._broken: BaseException | None = None

    def run(self, work: Pass) -> ForwardBackwardResult:
        """The loss, summed over all tokens; where asked, its gradient is added to what earlier passes gave."""
        try:
            return self._run(work)
        except BaseException as error:
            if work.backward:
                self._broken = error
            raise

    def run_custom(self, data: Sequence[Datum], custom: CustomLoss) -> ForwardBackwardResult:
        """A loss of the caller's own: value, logprobs and metrics; its gradient is added to what earlier passes gave.

        Raises ValueError, naming the datum, where it is not finite.
        """
        found: list[CustomLossResult] = []

        def function(batch: LossBatch) -> LossResult:
            logprobs_N = batch.logprobs_N.detach().cpu().numpy()
            ends = np.cumsum([datum.model_input.length for datum in data])
            found.append(evaluated(custom, data, np.split(logprobs_N, ends[:-1])))
            gradient_N = np.concatenate(found[-1].gradients).astype(np.float32)
            # Linear in the logprobs, with the custom loss's slope: its gradient is the custom loss's.
            return batch.logprobs_N * torch.from_numpy(gradient_N).to(batch.logprobs_N.device), {}

        spec = LossSpec(function, (_ANY,), scale=_ANY, whole_pass=True)
        everywhere = [
            attrs.evolve(each, loss_inputs={**each.loss_inputs, _ANY: np.ones(each.model_input.length, np.float32)})
            for each in data
        ]
        result = self.run(Pass(everywhere, spec, {}, backward=True))
        return ForwardBackwardResult(found[-1].loss, result.logprobs, found[-1].metrics)

    def _run(self, work: Pass) -> ForwardBackwardResult:
        sequences = [datum.model_input.tokens for datum in work.data]
        share, budget = self._network.shares_prefixes, self._microbatch_tokens
        if work.loss.pairs:
            return self._run_parts(work, plan_pairs(sequences, budget, share=share))
        if not work.loss.whole_pass:
            return self._run_parts(work, plan(sequences, budget, share=share))
        if max(map(len, sequences)) * len(sequences) > self._microbatch_tokens:
            return self._run_whole(work)
        return self._run_parts(work, [apart(sequences)])

    def _run_whole(self, work: Pass) -> ForwardBackwardResult:
        """A loss that looks across microbatches: log-probabilities of all first, then the loss and its gradient with respect to them, and then
        that gradient through the network, microbatch by microbatch, as weights of a cross-entropy."""
        scored = self._run(Pass(_weighted(work.data, None), LOSSES["cross_entropy"], {}, backward=False))
        device = self.trainable.weights_P.device
        logprobs_N = torch.from_numpy(np.concatenate(scored.logprobs)).to(device).requires_grad_()
        batch = LossBatch(
            logprobs_N, _inputs(work.data, work.loss, device), _datum_indices(work.data, device), work.params
        )
        loss_N, sums = work.loss.function(batch)
        if work.backward:
            (gradient_N,) = torch.autograd.grad(loss_N.sum(), logprobs_N)
            weights = _weighted(work.data, -gradient_N.cpu().numpy())
            self._run(Pass(weights, LOSSES["cross_entropy"], {}, backward=True))
        means = {name: float(value) / len(loss_N) for name, value in sums.items()}
        total = float(loss_N.detach().double().sum())
        return ForwardBackwardResult(total, scored.logprobs, {"tokens": float(len(loss_N)), **means})

    def _run_parts(self, work: Pass, parts: Sequence[Pack]) -> ForwardBackwardResult:
        losses, sums = [], dict[str, float]()
        logprobs: list[Logprobs | None] = [None] * len(work.data)
        tokens = 0
        for pack in parts:
            if self._closing():
                raise BackendError(CLOSED)
            chosen = pack.members
            loss, logprobs_N, metrics = self._microbatch(work, pack)
            losses.append(loss)
            tokens += len(logprobs_N)
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value
            ends = np.cumsum([work.data[index].model_input.length for index in chosen])
            for index, part_T in zip(chosen, np.split(logprobs_N, ends[:-1]), strict=True):
                logprobs[index] = part_T
        means = {name: value / tokens for name, value in sums.items()}
        every = tuple(part_T for part_T in logprobs if part_T is not None)
        return ForwardBackwardResult(math.fsum(losses), every, {"tokens": float(tokens), **means})

    def _microbatch(self, work: Pass, pack: Pack) -> tuple[float, Logprobs, dict[str, float]]:
        device = self.trainable.weights_P.device
        data = [work.data[index] for index in pack.members]
        with torch.set_grad_enabled(work.backward):
            bound = self._network.bind(self.trainable.leaves())
            inputs = _inputs(data, work.loss, device)
            targets_N = _joined(data, "target_tokens", np.int64, device)
            active_N = inputs[work.loss.scale] != 0
            logprobs_N = bound.target_logprobs(
                [datum.model_input.tokens for datum in work.data], pack, targets_N, active_N
            )
            batch = LossBatch(logprobs_N, inputs, _datum_indices(data, device), work.params)
            loss_N, sums = work.loss.function(batch)
            loss = loss_N.sum()
            if work.backward and bool(active_N.any()):
                loss.backward()  # type: ignore[no-untyped-call]
                self.trainable.collect()
        metrics = {name: float(value) for name, value in sums.items()}
        return float(loss_N.detach().double().sum()), logprobs_N.detach().cpu().numpy(), metrics

    def optim_step(self, params: AdamParams) -> dict[str, float]:
        """One AdamW step (1711.05101) on the accumulated gradients, which it clears. Moments are bias-corrected."""
        broken, self._broken = self._broken, None
        state = self.trainable
        norm = float(state.gradient_P.norm())
        if broken is not None or not math.isfinite(norm):
            state.clear_gradient()
            why = f"an earlier pass failed: {broken}" if broken is not None else f"the gradient's norm is {norm}"
            raise BackendError(
                f"the optimizer step was not taken, and the accumulated gradient was dropped, because {why}"
            )
        adamw(state, params, norm)
        state.changed()
        state.clear_gradient()
        self.version += 1
        return {"grad_norm": norm, "learning_rate": params.learning_rate}

    def restored(self, version: int) -> None:
        """Call after the trainable state was replaced by one of `version`."""
        self.version = version
        self._broken = None
        self.trainable.clear_gradient()
        self.trainable.changed()


def _inputs(data: Sequence[Datum], loss: LossSpec, device: torch.device) -> dict[str, Tensor]:
    return {name: _joined(data, name, np.float32, device) for name in loss.reads}


def _datum_indices(data: Sequence[Datum], device: torch.device) -> Tensor:
    return torch.repeat_interleave(torch.tensor([datum.model_input.length for datum in data], device=device))


def _weighted(data: Sequence[Datum], weights_N: NDArray[np.float32] | None) -> list[Datum]:
    """The datums for a cross-entropy with these weights; None: with none, to learn the log-probabilities alone."""
    lengths = [datum.model_input.length for datum in data]
    weights_N = np.zeros(sum(lengths), np.float32) if weights_N is None else weights_N
    return [
        Datum(datum.model_input, {"target_tokens": datum.loss_inputs["target_tokens"], "weights": weights_T})
        for datum, weights_T in zip(data, np.split(weights_N, np.cumsum(lengths)[:-1]), strict=True)
    ]


def _joined(data: Sequence[Datum], name: str, dtype: type[np.generic], device: torch.device) -> Tensor:
    values_N = np.concatenate([np.asarray(datum.loss_inputs[name], dtype) for datum in data])
    return torch.from_numpy(values_N).to(device)


@torch.no_grad()
def adamw(state: Trainable, params: AdamParams, norm: float) -> None:
    """AdamW with decoupled weight decay (1711.05101) on every trainable number; `norm` is the gradient's."""
    clip = params.grad_clip_norm / norm if 0 < params.grad_clip_norm < norm else 1.0
    state.steps += 1
    rate = params.learning_rate / (1 - params.beta1**state.steps)
    correction = math.sqrt(1 - params.beta2**state.steps)
    buffers = (state.weights_P, state.gradient_P, state.mean_P, state.square_P)
    # On a CPU each part stays in the cache through all the operations.
    part = _ADAM_PART if state.weights_P.device.type == "cpu" else len(state.weights_P)
    for weights, gradient, mean, square in zip(*(torch.split(one, part) for one in buffers), strict=True):
        if clip != 1.0:
            gradient.mul_(clip)
        mean.lerp_(gradient, 1 - params.beta1)
        square.mul_(params.beta2).addcmul_(gradient, gradient, value=1 - params.beta2)
        if params.weight_decay:
            weights.mul_(1 - params.learning_rate * params.weight_decay)
        weights.addcdiv_(mean, square.sqrt().div_(correction).add_(params.eps), value=-rate)
