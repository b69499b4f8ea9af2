"""Preference training: evaluations on held-out pairs, and evaluations that compare with the policy a run began as."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
import numpy as np
import pytest

from actors import (
    Evaluation,
    ReferencePolicy,
    RunResult,
    RunSettings,
    pair_evaluation,
    pair_metrics,
    train_rl,
    train_supervised,
    with_reference_logprobs,
)
from actors.evaluator import EvaluatedPolicy
from engine.backends import AdamParams, Datum, Loss, ModelInput
from engine.backends.simulated import SimulatedBackend
from engine.runtime.testing import simulate
from engine.training.kl import full_sequence
from tests.actors.scenarios import MODES, SETTINGS, Batches, Patterns, make_backend

PAIR = [Batches.datum(40, 41), Batches.datum(42)]


class Flat:
    """Gives every token the same log-probability; counts what it was asked, and how much at once."""

    def __init__(self, logprob: float) -> None:
        self.logprob = logprob
        self.asked = self.now = self.most = 0

    async def compute_logprobs(self, sequence: ModelInput) -> np.ndarray:
        self.asked += 1
        self.now += 1
        self.most = max(self.most, self.now)
        await anyio.sleep(1.0)
        self.now -= 1
        return np.full(sequence.length, self.logprob, np.float32)

    async def sample(self, request: object) -> Sequence[object]:
        raise AssertionError("a pair evaluation samples nothing")


def test_a_pair_evaluation_is_the_closed_form_and_asks_the_reference_once() -> None:
    reference, policy = Flat(-1.0), Flat(-0.5)
    evaluation = pair_evaluation("held out", PAIR * 4, reference, beta=0.2, concurrency=3)

    async def program() -> list[Mapping[str, float]]:
        return [await evaluation.run(policy) for _ in range(2)]  # type: ignore[arg-type]

    report = simulate(program)
    for found in report.unwrap():
        # Three targets of the chosen answer and two of the rejected one, each half a nat likelier than before.
        assert found == pytest.approx(
            {
                "chosen_reward": 0.2 * 3 * 0.5,
                "rejected_reward": 0.2 * 2 * 0.5,
                "margin": 0.2 * 0.5,
                "accuracy": 1.0,
                "dpo_loss": float(np.log1p(np.exp(-0.1))),
            }
        )
    assert (reference.asked, policy.asked) == (8, 16)
    assert max(reference.most, policy.most) == 3
    assert report.seconds == 9.0  # three rounds for the reference, three for each evaluation


@pytest.mark.parametrize("pairs", [[], PAIR[:1]])
def test_half_a_pair_cannot_be_evaluated(pairs: list[Datum]) -> None:
    with pytest.raises(ValueError, match="pairs are two datums each"):
        pair_evaluation("held out", pairs, Flat(0.0))


# ---- evaluations of the reference


def first_logprobs() -> list[float]:
    """Of a sequence's tokens under the weights before any training."""
    backend = make_backend()

    async def score() -> list[float]:
        snapshot = await backend.snapshot().result()
        return list(await backend.compute_logprobs(snapshot, full_sequence(PAIR[0])))[1:]

    return simulate(score).unwrap()


def comparing(seen: list[list[float]], every: int = 2) -> object:
    """An evaluation that keeps what the reference gives a sequence, and reports by how much the policy differs."""

    def evaluations(reference: ReferencePolicy) -> list[Evaluation]:
        async def run(policy: EvaluatedPolicy) -> Mapping[str, float]:
            ours, theirs = [list(await who.compute_logprobs(full_sequence(PAIR[0])))[1:] for who in (policy, reference)]
            seen.append(theirs)
            return {"gap": float(np.abs(np.subtract(ours, theirs)).max())}

        return [Evaluation("gap", run, every=every)]

    return evaluations


async def supervised(
    backend: SimulatedBackend, path: Path | None, steps: int, seen: list[list[float]], resume: bool
) -> RunResult:
    run = RunSettings(path, resume=resume, checkpoint_every=2) if path is not None else None
    return await train_supervised(
        backend,
        batches=Batches(),
        steps=steps,
        optimizer=AdamParams(0.1),
        evaluations=comparing(seen),  # type: ignore[arg-type]
        run=run,
    )


async def reinforced(
    backend: SimulatedBackend, path: Path | None, steps: int, seen: list[list[float]], resume: bool
) -> RunResult:
    run = RunSettings(path, resume=resume, checkpoint_every=2) if path is not None else None
    return await train_rl(
        backend,
        groups=Patterns(),
        steps=steps,
        schedule=MODES["sync"],
        settings=SETTINGS,
        evaluations=comparing(seen),  # type: ignore[arg-type]
        run=run,
    )


@pytest.mark.parametrize("train", [supervised, reinforced])
def test_evaluations_may_compare_with_the_policy_a_run_began_as(train: object, tmp_path: Path) -> None:
    """Also after a resume: a reference taken from the resumed weights would have a gap of 0 there."""
    wanted = first_logprobs()
    seen: list[list[float]] = []
    backend = make_backend()
    whole = simulate(functools.partial(train, backend, None, 6, seen, False)).unwrap()  # type: ignore[call-overload]
    assert all(theirs == wanted for theirs in seen)
    gaps = [row.metrics["gap"] for row in whole.evaluations]
    assert gaps[0] == 0.0
    assert min(gaps[1:]) > 0.0
    assert backend.live_snapshots == ()

    seen.clear()
    simulate(functools.partial(train, make_backend(), tmp_path, 4, [], False)).unwrap()  # type: ignore[call-overload]
    resumed = make_backend()
    after = simulate(functools.partial(train, resumed, tmp_path, 6, seen, True)).unwrap()  # type: ignore[call-overload]
    assert seen
    assert all(theirs == wanted for theirs in seen)
    assert [row.metrics["gap"] for row in after.evaluations] == gaps
    assert resumed.live_snapshots == ()


def test_a_step_reports_what_tinker_cookbook_calls_the_same() -> None:
    """On a backend without the loss: it is computed here, on the run's own reference policy."""
    backend = make_backend()

    async def program() -> RunResult:
        return await train_supervised(
            backend,
            batches=Batches(batches=3, size=4),
            loss=Loss("dpo", {"beta": 0.5}),
            prepare=with_reference_logprobs,
            metrics=pair_metrics(0.5),
            optimizer=AdamParams(0.1),
        )

    rows = simulate(program).unwrap().rows
    assert rows[0]["dpo_loss"] == pytest.approx(np.log(2))
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-6)
    assert abs(rows[2]["margin"]) > 1e-4
    for row in rows:
        assert row["optim/loss"] / 2 == pytest.approx(row["dpo_loss"], rel=1e-6)  # two pairs a step
        assert {"accuracy", "chosen_reward", "rejected_reward"} <= row.keys()
