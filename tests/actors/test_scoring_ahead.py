"""Scoring in the pipeline: what is asked, when, in which order; what a checkpoint keeps of it; and that a resumed run goes on as an unbroken one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import attrs
import numpy as np
import pytest
import trio

from actors import KLPenalty, RLSettings, RunResult, SamplerSettings, Schedule, ScorersByTag, train_rl
from actors.scoring import sequences_to_score
from engine.backends import Completion, ModelInput
from engine.backends.errors import TransientError
from engine.backends.simulated import LogNormal, SamplerModel, SimulatedBackend, TrainerModel, Uniform
from engine.backends.values import SamplingParams
from engine.runtime import ActorsFailed
from engine.runtime.testing import every_cancellation, simulate
from engine.storage.files import read_lines
from engine.training.trajectories import Trajectory, TrajectoryGroup, Turn
from envs.rollout import FailFast, RolloutSettings
from tests.actors import harness
from tests.actors.harness import Accountant, Watched, nothing_left
from tests.actors.scenarios import MODES, SETTINGS, Patterns, run_patterns
from tests.actors.test_resume import DiskWatcher, run_watched, training_of
from tests.thoroughness import stride

STEPS = 6


def slow_to_score(seed: int = 0, **options: Any) -> SimulatedBackend:
    """Scoring a sequence takes about as long as sampling it: at any moment something is being scored. No two groups are played to the end at the same
    instant, so that the order in which they are scored is no matter of scheduling."""
    sampler = SamplerModel(
        length=Uniform(8, 24),
        seconds=LogNormal(mean=0.5, sigma=1.0, maximum=10.0),
        scoring=LogNormal(mean=0.3, sigma=0.5, maximum=2.0),
        policy_dependent=True,
    )
    trainer = TrainerModel(per_call=0.1, per_datum=0.01, optim_step=0.05, snapshot=0.05, save=0.3)
    return SimulatedBackend(sampler, trainer, seed=seed, record=True, **options)


SHAPES = {
    "initial": (KLPenalty(coef=0.1), {}),
    "newest": (KLPenalty(coef=0.1, to="newest", centre=False, discount=0.5), {}),
    "proximal": (KLPenalty(coef=0.1, centre=False), {"correction": "tis", "proximal": "newest"}),
    "forward": (KLPenalty(coef=0.1, kind="k3"), {"correction": "mis+geometric_rejection:low=0.5,high=2"}),
}


def shaped(name: str, **options: Any) -> RLSettings:
    penalty, more = SHAPES[name]
    return attrs.evolve(SETTINGS, kl=[penalty], scoring_concurrency=3, **more, **options)


@pytest.mark.parametrize(
    ("mode", "shape", "turns"),
    [
        ("streaming", "newest", 3),
        ("async", "initial", 1),
        ("async-soft", "forward", 1),
        ("async-streaming-turn", "proximal", 1),
    ],
)
def test_resumed_run_equals_uninterrupted_run(mode: str, shape: str, turns: int, tmp_path: Path) -> None:
    """With groups in the middle of being scored at many of the cuts."""
    schedule, settings, dataset = MODES[mode], shaped(shape), Patterns(turns=turns)
    backend = slow_to_score()

    async def uninterrupted() -> RunResult:
        directory = tmp_path / "run"
        return await run_patterns(
            backend, schedule, steps=STEPS, dataset=dataset, settings=settings, directory=directory, checkpoint_every=1
        )

    watcher = DiskWatcher(tmp_path / "run", tmp_path / "copies", every=stride(397, 199))
    result = run_watched(uninterrupted, watcher=watcher, seed=1)
    wanted = training_of(backend)
    assert sorted(wanted) == list(range(STEPS))
    assert len(watcher.taken) > 3
    resumed_from = set()
    for copy in watcher.taken:
        again = slow_to_score()

        async def resumed(copy: Path = copy, again: SimulatedBackend = again) -> RunResult:
            return await run_patterns(
                again, schedule, steps=STEPS, dataset=dataset, settings=settings, directory=copy, resume=True
            )

        outcome = simulate(resumed, seed=5).unwrap()
        redone = training_of(again)
        resumed_from.add(min(redone, default=STEPS))
        assert redone == {step: data for step, data in wanted.items() if step in redone}, copy.name
        assert [row["env/all/reward/total"] for row in outcome.rows] == [
            row["env/all/reward/total"] for row in result.rows
        ]
        assert [row["kl_policy_base"] for row in outcome.rows] == [row["kl_policy_base"] for row in result.rows]
        assert set(again.log.sampling) <= set(backend.log.sampling)  # nothing was sampled again that was played
        assert set(again.log.scoring) <= set(backend.log.scoring)
        assert again.live_snapshots == ()
    assert len(resumed_from) > 2


def test_a_checkpoint_keeps_what_was_played_and_not_scored(tmp_path: Path) -> None:
    """A group that is being scored when the checkpoint is cut is not played again."""
    backend, again = slow_to_score(slots=4), slow_to_score(slots=4)
    schedule, settings = Schedule(groups_per_step=2, max_staleness=3), shaped("initial")

    async def run(backend: SimulatedBackend, steps: int, resume: bool) -> RunResult:
        return await run_patterns(
            backend, schedule, steps=steps, settings=settings, directory=tmp_path, resume=resume, checkpoint_every=1
        )

    simulate(run, backend, 5, False).unwrap()
    kept = [
        [group for group in read(tmp_path / "checkpoints" / f"{step:06d}") if not group["scores"]] for step in (3, 4)
    ]
    assert sum(map(len, kept)) > 0
    for step in (4, 5):
        shutil.rmtree(tmp_path / "checkpoints" / f"{step:06d}")
    simulate(run, again, 5, True).unwrap()
    numbers = {group["assignment"]["ticket"]["number"] for group in kept[0]}
    events = read_lines(tmp_path / "events.jsonl")
    resumed = next(index for index, event in enumerate(events) if event["event"] == "resumed")
    replayed = {event["ticket"] for event in events[resumed:] if event["event"] in ("reissued", "admitted")}
    assert not numbers & replayed


def read(checkpoint: Path) -> list[dict[str, Any]]:
    return list(json.loads((checkpoint / "work.json").read_text())["finished"])


@attrs.define
class SlowTeacher:
    """Scores after a while; keeps a record."""

    seconds: float = 1.0
    logprob: float = -2.0
    asked: list[int] = attrs.field(factory=list)
    under_way: int = 0
    most: int = 0
    breaks: int = 0
    """How many calls fail first."""

    async def compute_logprobs(self, sequence: ModelInput) -> np.ndarray:
        self.asked.append(int(sequence.tokens[1]))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await anyio.sleep(self.seconds)
            if self.breaks:
                self.breaks -= 1
                raise TransientError("busy")
            return np.full(sequence.length, self.logprob, np.float32)
        finally:
            self.under_way -= 1


def rows_with(teacher: Any, schedule: Schedule, *, steps: int = 4, seed: int = 0, **options: Any) -> list[Any]:
    backend = SimulatedBackend(
        SamplerModel(seconds=LogNormal(mean=0.5, sigma=0.5, maximum=2.0), sec_per_token=0.05),
        TrainerModel(per_call=1.0),
    )
    settings = attrs.evolve(
        SETTINGS, kl=[KLPenalty(coef=1.0, to=teacher, centre=False, metric="teacher_kl")], **options
    )

    async def program() -> RunResult:
        return await run_patterns(backend, schedule, steps=steps, settings=settings)

    return list(simulate(program, seed=seed).unwrap().rows)


def test_scoring_overlaps_with_sampling_and_training() -> None:
    """A teacher that takes a second costs an asynchronous run nothing, as long as it keeps up."""
    schedule = Schedule(groups_per_step=4, max_staleness=3)
    quick = rows_with(SlowTeacher(0.0), schedule, steps=8)
    slow = rows_with(SlowTeacher(1.0), schedule, steps=8)
    assert slow[-1]["time/elapsed"] - slow[3]["time/elapsed"] == pytest.approx(
        quick[-1]["time/elapsed"] - quick[3]["time/elapsed"], rel=0.02
    )


@pytest.mark.parametrize("concurrency", [1, 3, 100])
def test_the_bound_on_concurrency_holds(concurrency: int) -> None:
    teacher = SlowTeacher()
    rows_with(teacher, Schedule(groups_per_step=4), steps=2, scoring_concurrency=concurrency)
    assert teacher.most == min(concurrency, 16)
    assert len(teacher.asked) == 2 * 4 * 4


def test_a_transient_failure_is_tried_again() -> None:
    teacher = SlowTeacher(breaks=5)
    rows = rows_with(teacher, Schedule(groups_per_step=4), steps=2)
    assert len(teacher.asked) == 2 * 4 * 4 + 5
    assert [row["groups/failed"] for row in rows] == [0, 0]


class Broken:
    """Fails on the problems below `until`, or gives what is no logprob."""

    def __init__(self, until: int, logprob: float | None = None) -> None:
        self.until, self.logprob = until, logprob

    async def compute_logprobs(self, sequence: ModelInput) -> np.ndarray:
        await anyio.sleep(0.1)
        scores = np.full(sequence.length, -1.0, np.float32)
        if int(sequence.tokens[1]) < self.until:
            if self.logprob is None:
                raise RuntimeError("the teacher is ill")
            scores[-1] = self.logprob
        return scores


@pytest.mark.parametrize("logprob", [None, np.nan, -np.inf])
def test_a_group_that_cannot_be_scored_is_counted_and_replaced(logprob: float | None) -> None:
    rows = rows_with(Broken(20, logprob), Schedule(groups_per_step=4), steps=3, failure_limit=40)
    assert [row["groups/trained"] for row in rows] == [4, 4, 4]
    assert sum(row["groups/failed"] for row in rows) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"failure_limit": 5},
            "5 groups in a row failed, the last one so: group .* could not be scored: RuntimeError: the teacher is ill",
        ),
        ({"rollout": RolloutSettings(SamplingParams(max_tokens=40), failure=FailFast())}, "the teacher is ill"),
        ({"sampler": SamplerSettings(attempts=2, backoff=0.1)}, "8 groups in a row failed"),
    ],
)
def test_a_teacher_that_never_answers_ends_the_run(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ActorsFailed) as failed:
        rows_with(Broken(1000), Schedule(groups_per_step=4), **options)
    assert "in actor 'scoring'" in failed.value.exceptions[0].__notes__
    error: BaseException = failed.value.exceptions[0]
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert re.search(message, str(error)), str(error)


def test_teachers_by_tag() -> None:
    """Each tag's groups are scored by its own teacher, and the KL is told by tag."""
    teachers = {f"kind_{kind}": SlowTeacher(0.1, -1.0 - kind) for kind in range(3)}
    rows = rows_with(ScorersByTag(teachers), Schedule(groups_per_step=4), steps=4)
    for kind in range(3):
        assert {problem % 3 for problem in teachers[f"kind_{kind}"].asked} == {kind}
    for row in rows:
        told = [row[f"teacher_kl/kind_{kind}"] for kind in range(3) if f"teacher_kl/kind_{kind}" in row]
        assert min(told) <= row["teacher_kl"] <= max(told)


def test_a_group_without_a_teacher_is_an_error() -> None:
    with pytest.raises(ActorsFailed) as failed:
        rows_with(ScorersByTag({"kind_0": SlowTeacher()}), Schedule(groups_per_step=4))
    assert "has no scorer: there are scorers for kind_0" in str(failed.value.exceptions[0])
    with pytest.raises(ValueError, match="at least one tag"):
        ScorersByTag({})


# ---- cancellation, and the books


@pytest.mark.parametrize("mode", ["streaming", "async-3", "async-turn"])
def test_nothing_is_left_over_wherever_it_is_cancelled(mode: str) -> None:
    left: list[str] = []
    accountant = Accountant()
    settings = RLSettings(
        rollout=RolloutSettings(SamplingParams(max_tokens=40)),
        kl=[KLPenalty(coef=0.1), KLPenalty(coef=0.1, to="newest", centre=False, metric="kl_newest")],
        scoring_concurrency=2,
        seed=3,
    )

    async def program() -> RunResult:
        trio.lowlevel.add_instrument(accountant)
        accountant.runs.clear()
        backend, dataset = slow_to_score(), Watched(turns=2 if "turn" in mode else 1)
        try:
            return await train_rl(backend, groups=dataset, steps=2, schedule=harness.MODES[mode], settings=settings)
        finally:
            left.extend(nothing_left(backend, dataset.record))

    complete = 0
    with accountant.at_work():
        for report in every_cancellation(program, seed=4, stride=stride(7, 3), horizon=1e4, max_steps=20_000):
            assert report.error is None, (report.steps, report.error)
            assert left == [], report.steps
            assert accountant.wrong == []
            complete += not report.cancelled
    assert complete > 0


# ---- what is scored


def turn(prompt: Sequence[int], answer: Sequence[int], teacher: Sequence[int] | None = None) -> Turn:
    completion = Completion(np.array(answer, np.int32), np.full(len(answer), -1.0, np.float32), "stop", 0)
    return Turn(
        ModelInput.from_tokens(prompt),
        completion,
        teacher_prompt=None if teacher is None else ModelInput.from_tokens(teacher),
    )


def test_turns_that_extend_one_another_are_one_sequence() -> None:
    group = TrajectoryGroup(
        (
            Trajectory((turn([1, 2], [7, 8]), turn([1, 2, 7, 8, 3], [9]), turn([5], [6]))),
            Trajectory((turn([1, 2], [4]),)),
        )
    )
    sequences = sequences_to_score(group, privileged=False)
    assert [each.sequence.tokens.tolist() for each in sequences] == [[1, 2, 7, 8, 3, 9], [5, 6], [1, 2, 4]]
    assert [each.sampled.tolist() for each in sequences] == [[2, 3, 5], [1], [2]]
    assert [each.sequence.tokens.tolist() for each in sequences_to_score(group, privileged=True)] == [
        each.sequence.tokens.tolist() for each in sequences
    ]


def test_a_teacher_reads_its_own_prompt() -> None:
    group = TrajectoryGroup((Trajectory((turn([1, 2], [7, 8], [9, 9, 9, 1, 2]), turn([1, 2, 7, 8, 3], [6]))),))
    sequences = sequences_to_score(group, privileged=True)
    assert [each.sequence.tokens.tolist() for each in sequences] == [[9, 9, 9, 1, 2, 7, 8], [1, 2, 7, 8, 3, 6]]
    assert [each.pick(np.arange(each.sequence.length, dtype=np.float32)).tolist() for each in sequences] == [
        [5, 6],
        [5],
    ]
    assert [each.sequence.tokens.tolist() for each in sequences_to_score(group, privileged=False)] == [
        [1, 2, 7, 8, 3, 6]
    ]
