"""What a step minimises, and how its passes are submitted: losses the backend knows, and losses it does not.

    a loss of the backend      minibatch ──▶ forward_backward
    any other loss             minibatch ──▶ forward ──logprobs──▶ the loss's value and gradient ──▶ forward_backward of its linearisation

The second way costs one forward pass more (`engine.training.custom`), unless the backend does it in one (`CustomLossBackend`). A loss that compares the
step's datums is computed once all of its minibatches are there, so that it does not depend on how the step was cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import attrs
from anyio.abc import TaskGroup

from actors.watched import Watched
from engine.backends.ports import CustomLossBackend, Pending, TrainingBackend
from engine.backends.values import Datum, ForwardBackwardResult, Logprobs, Loss
from engine.runtime.offload import offload
from engine.training.custom import (
    CustomLoss,
    CustomLossResult,
    Declared,
    declared,
    evaluated,
    linearized,
    named_loss,
    scoring_datums,
)
from engine.training.losses import LOSSES
from engine.training.transforms import Mean, MeanSums

CROSS_ENTROPY = Loss("cross_entropy")

LossChoice = Loss | CustomLoss


@attrs.frozen
class Objective:
    """The losses of a run, resolved for its backend: each minibatch goes through every one of them, and their gradients add up."""

    losses: tuple[Loss | Declared, ...]

    @property
    def reads(self) -> frozenset[str]:
        """Arrays of a datum that they read, as far as that is known."""
        fields: set[str] = set()
        for loss in self.losses:
            if isinstance(loss, Declared):
                fields.update(loss.reads)
            elif loss.name in LOSSES:
                fields.update(LOSSES[loss.name].reads)
        return frozenset(fields)


def resolve_objective(
    choices: Sequence[LossChoice], backend: TrainingBackend, *, split: bool, note: Callable[[str], None]
) -> Objective:
    """The losses as this backend can compute them; says so where that costs a pass more. `split`: a step may come in several minibatches.

    Raises ValueError for a loss that nobody knows, and for a backend that cannot compute it.
    """
    return Objective(tuple(_resolved(choice, backend, split, note) for choice in choices))


def _resolved(
    choice: LossChoice, backend: TrainingBackend, split: bool, note: Callable[[str], None]
) -> Loss | Declared:
    name, known = backend.capabilities.name, backend.capabilities.losses
    if not isinstance(choice, Loss):
        _check_linear(name, known)
        return declared(choice)
    formula = LOSSES.get(choice.name)
    if choice.name in known:
        if formula is None or not formula.whole_pass or not split:
            return choice
        reason = f"the loss '{choice.name}' compares all datums of a step, which comes in minibatches"
    elif formula is None:
        raise ValueError(
            f"no loss is called '{choice.name}': the backend '{name}' has {', '.join(sorted(known))}, engine.training.losses {', '.join(sorted(LOSSES))}"
        )
    else:
        reason = f"the backend '{name}' has no loss '{choice.name}' of its own"
    _check_linear(name, known)
    note(f"{reason}: it is computed here, which takes one forward pass more")
    return named_loss(choice)


def _check_linear(name: str, known: frozenset[str]) -> None:
    if CROSS_ENTROPY.name not in known:
        raise ValueError(
            f"a loss of one's own needs a backend with the loss 'cross_entropy'; '{name}' has {', '.join(sorted(known))}"
        )


class StepPasses:
    """The passes of one step, as its minibatches come."""

    def __init__(self, backend: TrainingBackend, objective: Objective, watchers: TaskGroup) -> None:
        self._backend = backend
        self._objective = objective
        self._watchers = watchers
        self._minibatches: list[list[Datum]] = []
        self._forwards: list[Watched[ForwardBackwardResult]] = []
        """Logprobs of each minibatch, where a loss is computed here."""
        self._forward_first = not isinstance(backend, CustomLossBackend) and any(
            isinstance(loss, Declared) for loss in objective.losses
        )
        self.submitted: list[Watched[ForwardBackwardResult]] = []
        """Everything that was submitted, in order."""
        self._results: list[list[Watched[ForwardBackwardResult]]] = [[] for _ in objective.losses]
        """For each loss, the result of each minibatch, or one for the whole step."""

    async def add(self, minibatch: list[Datum]) -> None:
        """Submits what a minibatch can be given before the step is complete."""
        self._minibatches.append(minibatch)
        if self._forward_first:
            scoring = self._backend.forward(scoring_datums(minibatch), CROSS_ENTROPY)
            self._forwards.append(Watched("forward", scoring, self._watchers))
            self.submitted.append(self._forwards[-1])
        for results, loss in zip(self._results, self._objective.losses, strict=True):
            if isinstance(loss, Loss):
                results.append(self._watched(self._backend.forward_backward(minibatch, loss)))
            elif loss.scope == "group":
                await self._custom(loss, results, [minibatch], self._forwards[-1:])

    async def complete(self) -> None:
        """Submits the rest: the losses that compare the step's datums."""
        for results, loss in zip(self._results, self._objective.losses, strict=True):
            if isinstance(loss, Declared) and loss.scope == "step" and self._minibatches:
                await self._custom(loss, results, self._minibatches, self._forwards)

    async def results(self) -> tuple[list[ForwardBackwardResult], dict[str, float]]:
        """Results of the first loss, by minibatch or as a whole; and metrics: what custom losses say, and the values of further losses."""
        by_loss = [[await watched.result() for watched in results] for results in self._results]
        metrics: dict[str, float] = {}
        for number, (loss, results) in enumerate(zip(self._objective.losses, by_loss, strict=True)):
            if isinstance(loss, Declared):
                metrics.update(_combined(results))
            if number:
                metrics[f"optim/loss/{loss.name}"] = sum(result.loss for result in results)
        return by_loss[0], metrics

    async def _custom(
        self,
        loss: Declared,
        results: list[Watched[ForwardBackwardResult]],
        minibatches: Sequence[list[Datum]],
        forwards: Sequence[Watched[ForwardBackwardResult]],
    ) -> None:
        data = [datum for minibatch in minibatches for datum in minibatch]
        if isinstance(self._backend, CustomLossBackend):
            results.append(self._watched(self._backend.forward_backward_custom(data, loss)))
            return
        logprobs = [logprobs_T for forward in forwards for logprobs_T in (await forward.result()).logprobs]
        found, surrogates = await offload(_linear, loss, data, logprobs)
        own = ForwardBackwardResult(found.loss, tuple(logprobs), found.metrics)
        pieces = iter(surrogates)
        passes = [
            self._backend.forward_backward(list(itertools.islice(pieces, len(minibatch))), CROSS_ENTROPY)
            for minibatch in minibatches
        ]
        for earlier in passes[:-1]:
            self._watched(earlier)
        results.append(self._watched(_Told(passes[-1], own)))

    def _watched(self, pending: Pending[ForwardBackwardResult]) -> Watched[ForwardBackwardResult]:
        watched = Watched("forward_backward", pending, self._watchers)
        self.submitted.append(watched)
        return watched


def _linear(
    loss: Declared, data: Sequence[Datum], logprobs: Sequence[Logprobs]
) -> tuple[CustomLossResult, list[Datum]]:
    found = evaluated(loss, data, logprobs)
    return found, linearized(data, found.gradients)


class _Told:
    """The linearisation's pass with the custom loss's own result."""

    def __init__(self, pending: Pending[ForwardBackwardResult], own: ForwardBackwardResult) -> None:
        self._pending = pending
        self._own = own

    async def result(self) -> ForwardBackwardResult:
        """See `Pending`."""
        await self._pending.result()
        return self._own


def _combined(results: Sequence[ForwardBackwardResult]) -> Mapping[str, float]:
    """Metrics of a custom loss over minibatches, each counting by its datums."""
    sums = MeanSums()
    for result in results:
        sums.add({name: Mean(value, len(result.logprobs)) for name, value in result.metrics.items()})
    return sums.metrics()
