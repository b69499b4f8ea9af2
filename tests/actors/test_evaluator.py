"""Evaluations: each exactly once when due, at the version it was due at, blocking or not, however slow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import numpy as np
import pytest

from actors import (
    EvaluatedPolicy,
    Evaluation,
    RLSettings,
    RunResult,
    RunSettings,
    Schedule,
    StopRequest,
    group_evaluation,
    nll_evaluation,
    train_rl,
)
from actors.evaluator import Evaluator
from actors.sampler import Sampler
from engine.backends import AdamParams, Completion, Datum, ModelInput, SampleRequest, SamplingParams
from engine.backends.simulated import SamplerModel, SimulatedBackend, TrainerModel
from engine.runtime import NullTracer
from engine.runtime.testing import every_cancellation, schedules, simulate
from envs.contracts import Env, GroupBuilder, Observation, Policy, Step
from envs.rollout import MinViable, RolloutSettings
from tests.actors.harness import MODES, Watched, small_backend
from tests.thoroughness import seeds, stride

SETTINGS = RLSettings(rollout=RolloutSettings(SamplingParams(max_tokens=10)), seed=2)


@attrs.define
class Watching:
    """An evaluation that notes when it ran, and which version answered."""

    seconds: float = 0.0
    versions: list[int] = attrs.field(factory=list)
    spans: list[tuple[float, float]] = attrs.field(factory=list)

    async def __call__(self, policy: Policy) -> Mapping[str, float]:
        began = anyio.current_time()
        await anyio.sleep(self.seconds)
        request = SampleRequest(ModelInput.from_tokens([1, 2]), SamplingParams(max_tokens=4), seed=1)
        (completion,) = await policy.sample(request)
        self.versions.append(completion.version)
        self.spans.append((began, anyio.current_time()))
        return {"score": float(completion.version)}


def run(backend: SimulatedBackend, mode: str, *, seed: int = 0, steps: int = 5, **options: object) -> RunResult:
    async def program() -> RunResult:
        return await train_rl(
            backend, groups=Watched(), steps=steps, schedule=MODES[mode], settings=SETTINGS, **options
        )

    return simulate(program, seed=seed, horizon=1e5).unwrap()


@pytest.mark.parametrize("seconds", [0.0, 3.0, 300.0])
@pytest.mark.parametrize("mode", MODES)
def test_each_once_when_due_at_its_version(mode: str, seconds: float) -> None:
    for seed in seeds(2, 4):
        often, seldom, never = Watching(seconds), Watching(seconds), Watching()
        backend = small_backend()
        evaluations = [
            Evaluation("often", often, every=1),
            Evaluation("seldom", seldom, every=2, at_ends=False),
            Evaluation("never", never, every=100, at_ends=False),
        ]
        result = run(backend, mode, seed=seed, evaluations=evaluations)
        assert often.versions == [0, 1, 2, 3, 4, 5]
        assert seldom.versions == [2, 4]
        assert never.versions == []
        told = [(report.version, report.name) for report in result.evaluations]
        assert told == sorted(told, key=lambda row: row[0])  # in order, none skipped
        assert len(set(told)) == len(told) == 8
        assert backend.live_snapshots == ()


@pytest.mark.parametrize("mode", MODES)
def test_blocking_holds_training_and_not_blocking_does_not(mode: str) -> None:
    for blocking in (False, True):
        watching = Watching(60.0)
        evaluation = Evaluation("slow", watching, every=2, blocking=blocking)
        result = run(small_backend(), mode, evaluations=[evaluation])
        ends = [row["time/elapsed"] for row in result.rows]
        if blocking:  # the steps after it end after it
            for version, (_, end) in zip(watching.versions, watching.spans, strict=True):
                assert all(ends[step] > end for step in range(version, len(ends)))
        else:
            assert ends[-1] < 60.0


def test_last_version_is_evaluated_once_whether_or_not_it_was_due() -> None:
    for steps, wanted in ((4, [0, 2, 4]), (5, [0, 2, 4, 5])):
        watching = Watching()
        run(small_backend(), "sync", steps=steps, evaluations=[Evaluation("e", watching, every=2)])
        assert watching.versions == wanted


def test_stopped_run_leaves_the_last_evaluation_to_its_continuation(tmp_path: Path) -> None:
    stop, watching = StopRequest(), Watching()
    stop()
    evaluations = [Evaluation("e", watching, every=3)]
    result = run(small_backend(), "async", stop=stop, evaluations=evaluations, run=RunSettings(tmp_path))
    assert (result.ending, result.version, watching.versions) == ("stopped", 0, [0])
    result = run(small_backend(), "async", evaluations=evaluations, run=RunSettings(tmp_path, resume=True))
    assert [report.version for report in result.evaluations] == [0, 3, 5]


@pytest.mark.parametrize("mode", ["sync", "async", "async-turn"])
def test_exactly_once_across_cancellation_and_resume(mode: str, tmp_path: Path) -> None:
    number = 0

    async def begin() -> None:
        nonlocal number
        number += 1
        await train_rl(
            small_backend(),
            groups=Watched(),
            steps=3,
            schedule=MODES[mode],
            settings=SETTINGS,
            evaluations=[Evaluation("slow", Watching(2.5), every=1), Evaluation("quick", Watching(), every=2)],
            run=RunSettings(tmp_path / str(number), checkpoint_every=1),
        )

    wanted = [(0, "slow"), (0, "quick"), (1, "slow"), (2, "slow"), (2, "quick"), (3, "slow"), (3, "quick")]
    for report in every_cancellation(begin, seed=3, stride=stride(67, 31)):
        assert report.error is None
        slow = Watching(0.5)
        evaluations = [Evaluation("slow", slow, every=1), Evaluation("quick", Watching(), every=2)]
        settings = RunSettings(tmp_path / str(number), checkpoint_every=1, resume=True)
        result = run(small_backend(), mode, steps=3, evaluations=evaluations, run=settings)
        assert sorted((row.version, row.name) for row in result.evaluations) == sorted(wanted)
        assert all(row.metrics == {"score": float(row.version)} for row in result.evaluations)


def test_what_is_pending_is_still_served_whenever_a_checkpoint_is_cut() -> None:
    """While the report of an evaluation waits to be taken, a checkpoint holds the evaluation as pending, and so it must hold its weights."""

    async def program() -> list[dict[int, Any]]:
        backend, pending, seen = small_backend(), {(0, "watching")}, list[dict[int, Any]]()
        sampler = Sampler(backend)
        sampler.publish(await backend.snapshot().result())
        sampler.pin(0)
        await backend.optim_step(AdamParams()).result()
        sampler.publish(await backend.snapshot().result())

        class Reports:
            async def send(self, report: object) -> None:
                await anyio.lowlevel.checkpoint()
                assert pending
                seen.append(sampler.in_use())

        evaluator = Evaluator(sampler, NullTracer(), pending)
        await evaluator._evaluate(0, Evaluation("watching", Watching()), Reports())  # type: ignore[arg-type]
        assert not pending
        assert sampler.in_use() == {}
        with pytest.raises(RuntimeError, match="broken"):
            sampler.pin(1)
            await evaluator._evaluate(1, Evaluation("broken", broken), Reports())  # type: ignore[arg-type]
        assert sampler.in_use() == {}
        sampler.close()
        return seen

    async def broken(policy: Policy) -> Mapping[str, float]:
        raise RuntimeError("broken")

    (served,) = simulate(program).unwrap()
    assert list(served) == [0]


def test_an_evaluation_that_was_pending_and_is_given_up_is_forgotten(tmp_path: Path) -> None:
    async def begin() -> None:
        await train_rl(
            small_backend(),
            groups=Watched(),
            steps=3,
            schedule=MODES["sync"],
            settings=SETTINGS,
            evaluations=[Evaluation("slow", Watching(1000.0), every=1)],
            run=RunSettings(tmp_path, checkpoint_every=1),
        )

    assert simulate(begin, cancel_at=160).cancelled
    backend = small_backend()
    result = run(backend, "sync", run=RunSettings(tmp_path, checkpoint_every=1, resume=True))
    assert result.ending == "complete"
    assert result.evaluations == []
    assert backend.live_snapshots == ()


# --- evaluations made of groups


@pytest.mark.parametrize("concurrency", [1, 2, 5, 100])
def test_group_evaluation_keeps_its_bound(concurrency: int) -> None:
    dataset = Watched(problems=12)
    open_groups = []

    class Counting(Watched):
        def __getitem__(self, index: int):  # type: ignore[no-untyped-def]
            open_groups.append(dataset.record.made - dataset.record.cleaned)
            return dataset[index]

    evaluation = group_evaluation("held out", Counting(problems=12), SETTINGS.rollout, every=2, concurrency=concurrency)
    result = run(small_backend(), "sync", steps=2, evaluations=[evaluation])
    assert [report.version for report in result.evaluations] == [0, 2]
    assert set(result.evaluations[0].metrics) == {
        f"{tag}/{metric}" for tag in ("all", "kind_0", "kind_1") for metric in ("reward/total", "tokens")
    }
    assert dataset.record.made == 24
    assert max(open_groups) <= concurrency - 1
    with pytest.raises(ValueError, match="evaluation 'x': concurrency must be at least 1, got 0"):
        group_evaluation("x", dataset, concurrency=0)


def test_group_evaluation_is_the_same_under_every_schedule() -> None:

    values = set()

    async def program() -> RunResult:
        evaluation = group_evaluation("held out", Watched(problems=7), SETTINGS.rollout, every=1)
        return await train_rl(
            SimulatedBackend(SamplerModel(), TrainerModel()),
            groups=Watched(),
            steps=1,
            schedule=Schedule(groups_per_step=2),
            settings=SETTINGS,
            evaluations=[evaluation],
        )

    for report in schedules(program, count=10):
        values.add(tuple(sorted(report.unwrap().evaluations[0].metrics.items())))
    assert len(values) == 1


def test_group_that_fails_fails_the_evaluation_and_is_no_wrong_answer() -> None:
    dataset = Watched(problems=4, breaks=lambda problem, where, attempt: where == "step" and problem == 2)
    with pytest.raises(ExceptionGroup) as caught:
        run(small_backend(), "sync", evaluations=[group_evaluation("held out", dataset, SETTINGS.rollout)])
    notes = [note for error in caught.value.exceptions for note in error.__notes__]
    assert "in evaluation 'held out' at version 0" in notes
    assert "in actor 'evaluator'" in notes
    forgiving = RolloutSettings(SamplingParams(max_tokens=10), failure=MinViable(1))
    result = run(small_backend(), "sync", evaluations=[group_evaluation("held out", dataset, forgiving)])
    assert len(result.evaluations) == 2


# --- held-out likelihood


class Uniform:
    """Scores each token with the log of 1 over its position, in whatever order it is asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    async def compute_logprobs(self, sequence: ModelInput) -> Any:
        self.asked.append(sequence.tokens.tolist())
        await anyio.sleep(1.0 / len(self.asked))
        scores_T = -np.log(np.arange(1, sequence.length + 1))
        scores_T[0] = np.nan
        return scores_T.astype(np.float32)

    async def sample(self, request: SampleRequest) -> Any:
        raise AssertionError("nothing is to be sampled")


def scored(tokens: list[int], weights: list[float]) -> Datum:
    inputs = ModelInput.from_tokens(tokens[:-1])
    return Datum(inputs, {"target_tokens": np.array(tokens[1:], np.int32), "weights": np.array(weights, np.float32)})


def test_likelihood_of_held_out_data() -> None:
    data = [scored([1, 2, 3], [0, 1]), scored([4, 5, 6, 7], [1, 0, 1])]
    policy = Uniform()
    evaluation = nll_evaluation("held out", data, text_bytes=5, concurrency=1)
    metrics = simulate(evaluation.run, policy).unwrap()
    total = math.log(3) + math.log(2) + math.log(4)
    assert metrics == pytest.approx({"nll": total / 3, "bits_per_byte": total / math.log(2) / 5})
    assert policy.asked == [[1, 2, 3], [4, 5, 6, 7]]
    assert set(simulate(nll_evaluation("held out", data).run, Uniform()).unwrap()) == {"nll"}
    with pytest.raises(ValueError, match="'held out': there is nothing to score"):
        nll_evaluation("held out", [])


def test_likelihood_is_scored_by_the_version_it_was_due_at() -> None:
    """The policy an evaluation is given scores with the pinned version, also when training has gone on."""
    scored_by: list[int] = []

    class Noting(SimulatedBackend):
        async def compute_logprobs(self, snapshot: Any, sequence: ModelInput) -> Any:
            scored_by.append(snapshot.version)
            return await super().compute_logprobs(snapshot, sequence)

    async def slow(policy: EvaluatedPolicy) -> Mapping[str, float]:
        await anyio.sleep(100.0)
        await policy.compute_logprobs(ModelInput.from_tokens([1, 2, 3]))
        return {}

    run(Noting(), "async", steps=3, evaluations=[Evaluation("slow", slow, every=1)])
    assert scored_by == [0, 1, 2, 3]


class Talks:
    """An episode whose prompt grows by what was said, for ever."""

    def __init__(self) -> None:
        self.prompt = ModelInput.from_tokens([1, 2, 3])

    async def reset(self) -> Observation:
        return Observation(self.prompt)

    async def step(self, completion: Completion) -> Step:
        self.prompt = self.prompt.append(completion.tokens)
        return Step(1.0, Observation(self.prompt))


class Talking(GroupBuilder):
    async def make_envs(self) -> list[Env]:
        return [Talks()]


def test_an_evaluation_ends_episodes_at_the_model_s_context() -> None:
    """As training does: a prompt that has outgrown the model is no failure of the run."""
    backend = SimulatedBackend(max_context=64)
    evaluation = group_evaluation("talk", [Talking()], SETTINGS.rollout)
    result = run(backend, "sync", steps=1, evaluations=[evaluation])
    assert all(report.metrics["all/reward/total"] >= 1 for report in result.evaluations)
