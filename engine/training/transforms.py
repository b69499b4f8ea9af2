"""What happens to a step's datums between assembly and loss: KL in the reward, off-policy corrections, normalisation, one's own.

    assemble ──▶ KL penalties ──▶ correction ──▶ one's own ──▶ normalisation ──▶ cut into minibatches

Each is a function from datums to datums that says how much of an optimizer step it has to see (`scope`) and whose logprobs of the targets it reads
(`reads`). With `group` alone a minibatch goes to the trainer as soon as its groups are there; one `step` among them makes the whole step wait before
the first minibatch is cut. Either way the gradient does not depend on the cut.

Dimension suffixes: `T` positions of one datum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.backends.values import Datum
from engine.training.advantages import Scope
from engine.training.corrections import Correction, correct, correction_scope
from engine.training.kl import KLKind, kl_penalized
from engine.training.normalization import Normalization, normalize

Scores = Sequence[NDArray[Any]]
"""Logprobs of the targets, one array (T,) for each datum; 0 where nothing was sampled."""


@attrs.frozen(eq=False)
class ScoredDatums:
    """Datums on their way to the trainer: a whole step's, or those of a minibatch."""

    data: Sequence[Datum]
    scores: Mapping[str, Scores] = attrs.field(factory=dict)
    """What other policies say of the targets, by the name under which a transform reads it."""
    tags: Sequence[tuple[str, ...]] = ()
    """Tags of the group that each datum is of."""

    @property
    def trained_tokens(self) -> float:
        """Tokens with mask 1, over all datums."""
        return float(sum(np.count_nonzero(datum.loss_inputs["mask"]) for datum in self.data))


@attrs.frozen
class Mean:
    """A metric that a step has in parts: the mean, and what it is the mean of."""

    value: float
    weight: float


TransformFn = Callable[[ScoredDatums], tuple[Sequence[Datum], Mapping[str, float | Mean]]]
"""New datums, as many and in the same order, and metrics. A plain number counts as a mean over trained tokens. `data`, its arrays and `scores` are not to be changed."""


@attrs.frozen
class Transform:
    """A function on datums, and what it needs."""

    function: TransformFn
    scope: Scope
    reads: tuple[str, ...] = ()
    """Names of the scores it reads."""

    def __call__(self, scored: ScoredDatums) -> tuple[Sequence[Datum], Mapping[str, float | Mean]]:
        """New datums and metrics. Raises ValueError where the function loses or adds one."""
        data, metrics = self.function(scored)
        if len(data) != len(scored.data):
            raise ValueError(
                f"a transform made {len(data)} datums of {len(scored.data)}; give what is dropped an advantage of 0"
            )
        return data, metrics


def resolve_transform(choice: TransformFn) -> Transform:
    """A `Transform`, or a callable of one's own.

    Such a callable may have the attributes `scope` and `reads`; without the first it is taken to need the whole step, which is always right and only costs
    waiting.
    """
    if isinstance(choice, Transform):
        return choice
    scope: Scope = getattr(choice, "scope", "step")
    if scope not in ("group", "step"):
        raise ValueError(f"the scope of a transform is 'group' or 'step', not {scope!r}")
    return Transform(choice, scope, tuple(getattr(choice, "reads", ())))


def kl_in_reward(
    reads: str,
    coef: float,
    *,
    kind: KLKind = "k1",
    discount: float = 0.0,
    centre: bool = True,
    metric: str = "kl_policy_base",
    tags: Sequence[str] = (),
) -> Transform:
    """`kl_penalized` with the scores called `reads`. `tags`: those whose mean KL is reported too, as `<metric>/<tag>`.

    The mean that centring takes off is the whole step's, so then it needs the step.
    """

    def function(scored: ScoredDatums) -> tuple[Sequence[Datum], Mapping[str, Mean]]:
        reference = scored.scores[reads]
        options: dict[str, Any] = {"kind": kind, "discount": discount, "centre": centre, "metric": metric}
        penalized, means = kl_penalized(scored.data, reference, coef, **options)
        metrics = {name: Mean(value, scored.trained_tokens) for name, value in means.items()}
        for tag in tags:
            chosen = [index for index, of_group in enumerate(scored.tags) if tag in of_group]
            part = ScoredDatums([scored.data[index] for index in chosen])
            _, means = kl_penalized(part.data, [reference[index] for index in chosen], coef, **options)
            metrics |= {f"{name}/{tag}": Mean(value, part.trained_tokens) for name, value in means.items()}
        return penalized, metrics

    return Transform(function, "step" if centre else "group", (reads,))


def correction(reads: str, weights: Correction) -> Transform:
    """`correct` with the scores called `reads` as the proximal policy's."""
    return Transform(
        lambda scored: correct(scored.data, scored.scores[reads], weights), correction_scope(weights), (reads,)
    )


def attached(reads: str, field: str) -> Transform:
    """Puts scores into the datums under a name that the loss reads, such as `proximal_logprobs`."""

    def function(scored: ScoredDatums) -> tuple[Sequence[Datum], Mapping[str, float]]:
        return [
            attrs.evolve(datum, loss_inputs={**datum.loss_inputs, field: np.asarray(score_T, np.float32)})
            for datum, score_T in zip(scored.data, scored.scores[reads], strict=True)
        ], {}

    return Transform(function, "group", (reads,))


def normalization(kind: Normalization, constant: float = 0.0) -> Transform:
    """`normalize`: with the counts of the whole step, which it therefore needs, but for `sum`."""
    normalize([], kind, constant=constant)  # says what is missing now rather than at the first step
    return Transform(
        lambda scored: (normalize(scored.data, kind, constant=constant), {}), "group" if kind == "sum" else "step"
    )


def needed_scope(transforms: Iterable[Transform]) -> Scope:
    """`step` where any of them needs the whole step."""
    return "step" if any(transform.scope == "step" for transform in transforms) else "group"


def transformed(scored: ScoredDatums, transforms: Sequence[Transform]) -> tuple[Sequence[Datum], dict[str, Mean]]:
    """The datums after all of them, in their order, and every metric with its weight."""
    metrics: dict[str, Mean] = {}
    for transform in transforms:
        data, found = transform(scored)
        scored = attrs.evolve(scored, data=data)
        for name, value in found.items():
            metrics[name] = value if isinstance(value, Mean) else Mean(float(value), scored.trained_tokens)
    return scored.data, metrics


class MeanSums:
    """Metrics of a step that come in parts, put together."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, metrics: Mapping[str, Mean]) -> None:
        """Counts a part."""
        for name, mean in metrics.items():
            sums = self._sums.setdefault(name, [0.0, 0.0])
            sums[0] += mean.value * mean.weight
            sums[1] += mean.weight

    def metrics(self) -> dict[str, float]:
        """Means over all parts; what has no weight is left out."""
        return {name: total / weight for name, (total, weight) in self._sums.items() if weight > 0}
