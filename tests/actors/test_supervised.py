"""Supervised training: equality with a loop, batches submitted ahead, resume, evaluations, prefetch, errors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import anyio
import attrs
import pytest

from actors import Evaluation, RunResult, RunSettings, train_supervised
from engine.backends import AdamParams, Loss, ModelInput, SampleRequest, SamplingParams
from engine.backends.errors import BackendError
from engine.backends.simulated import Failures, Fault, SimulatedBackend
from engine.runtime import ActorsFailed
from engine.runtime.testing import every_cancellation, schedules, simulate
from envs.contracts import Policy
from tests.actors.harness import names_of, training_of
from tests.actors.scenarios import Batches, make_backend
from tests.thoroughness import stride

AHEAD = [0, 1, 3]
ADAM = AdamParams(learning_rate=0.01)


def halving(step: int) -> float:
    return 0.5**step


def run(backend: SimulatedBackend, *, seed: int = 0, batches: Any = None, **options: Any) -> RunResult:
    options = {"optimizer": ADAM, "learning_rate": halving, **options}

    async def program() -> RunResult:
        return await train_supervised(backend, batches=batches or Batches(), **options)

    return simulate(program, seed=seed, horizon=1e5, max_steps=100_000).unwrap()


async def plain_loop(backend: SimulatedBackend, steps: int) -> list[float]:
    losses = []
    for step in range(steps):
        result = await backend.forward_backward(Batches()[step % 6], Loss("cross_entropy")).result()
        await backend.optim_step(attrs.evolve(ADAM, learning_rate=0.01 * halving(step))).result()
        losses.append(result.loss)
    return losses


def calls(backend: SimulatedBackend) -> list[Any]:
    assert backend.log is not None
    return [entry for entry in backend.log.training if entry.call in ("forward_backward", "optim_step")]


@pytest.mark.parametrize("ahead", AHEAD)
@pytest.mark.parametrize("steps", [None, 4, 15])
def test_equals_a_loop(ahead: int, steps: int | None) -> None:
    wanted = make_backend()
    losses = simulate(plain_loop, wanted, steps or 6).unwrap()
    for seed in range(3):
        backend = make_backend()
        result = run(backend, seed=seed, steps=steps, ahead=ahead)
        assert calls(backend) == calls(wanted)
        assert backend._weights == wanted._weights
        assert [row["optim/loss"] for row in result.rows] == losses
        assert [row["step"] for row in result.rows] == list(range(steps or 6))
        assert result.ending == "complete"
        assert backend.live_snapshots == ()


def test_submitting_ahead_hides_the_wait_between_steps() -> None:
    """One step's results are awaited while the next is worked on, so the trainer is never idle; with 0 the order is strict."""
    for ahead in AHEAD:
        backend = make_backend()
        run(backend, ahead=ahead)
        assert backend.log is not None
        passes = [entry for entry in backend.log.training if entry.call == "forward_backward"]
        steps = [entry for entry in backend.log.training if entry.call == "optim_step"]
        submitted_before_end = sum(entry.submitted < steps[index].finished for index, entry in enumerate(passes[1:]))
        assert submitted_before_end == (0 if ahead == 0 else 5)


@pytest.mark.parametrize("ahead", AHEAD)
def test_resume_repeats_and_skips_nothing(ahead: int, tmp_path: Path) -> None:
    whole = make_backend()
    wanted = run(whole, ahead=ahead, steps=8)
    began_at = set()
    number = 0

    async def begin() -> RunResult:
        nonlocal number
        number += 1
        settings = RunSettings(tmp_path / str(number), checkpoint_every=3)
        return await train_supervised(
            make_backend(), batches=Batches(), steps=8, ahead=ahead, run=settings, optimizer=ADAM, learning_rate=halving
        )

    for report in every_cancellation(begin, stride=stride(31, 15)):
        assert report.error is None
        backend = make_backend()
        settings = RunSettings(tmp_path / str(number), checkpoint_every=3, resume=True)
        result = run(backend, steps=8, ahead=ahead, run=settings)
        redone = training_of(backend)
        began_at.add(min(redone, default=8))
        assert redone == {step: data for step, data in training_of(whole).items() if step in redone}
        assert backend._weights == whole._weights
        assert [row["step"] for row in result.rows] == list(range(8))
        assert [row["optim/loss"] for row in result.rows] == [row["optim/loss"] for row in wanted.rows]
    assert began_at == {0, 3, 6, 8}


@pytest.mark.parametrize("ahead", AHEAD)
def test_checkpoint_labelled_k_holds_k_steps(ahead: int, tmp_path: Path) -> None:
    run(make_backend(), ahead=ahead, steps=6, run=RunSettings(tmp_path, checkpoint_every=2, keep_checkpoints=None))
    for step in (2, 4, 6):
        loop, loaded = make_backend(), make_backend()
        simulate(plain_loop, loop, step).unwrap()

        async def load(loaded: SimulatedBackend = loaded, step: int = step) -> None:
            await loaded.load_state(tmp_path / "checkpoints" / f"{step:06d}" / "trainer").result()

        simulate(load).unwrap()
        assert (loaded.version, loaded._weights) == (step, loop._weights)


# --- evaluations


@attrs.define
class Score:
    """An evaluation that samples, and notes which version answered."""

    seconds: float = 0.0
    versions: list[int] = attrs.field(factory=list)

    async def __call__(self, policy: Policy) -> Mapping[str, float]:
        await anyio.sleep(self.seconds)
        request = SampleRequest(ModelInput.from_tokens([1, 2]), SamplingParams(max_tokens=4), seed=1)
        (completion,) = await policy.sample(request)
        self.versions.append(completion.version)
        return {"first": float(completion.tokens[0])}


@pytest.mark.parametrize("seconds", [0.0, 100.0])
@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("ahead", AHEAD)
def test_evaluations_see_the_version_they_were_due_at(ahead: int, blocking: bool, seconds: float) -> None:
    score = Score(seconds)
    backend = make_backend()
    evaluation = Evaluation("score", score, every=2, blocking=blocking)
    result = run(backend, steps=7, ahead=ahead, evaluations=[evaluation])
    assert [report.version for report in result.evaluations] == score.versions == [0, 2, 4, 6, 7]
    loop = make_backend()
    simulate(plain_loop, loop, 7).unwrap()
    assert backend._weights == loop._weights
    assert backend.live_snapshots == ()


@pytest.mark.parametrize("ahead", AHEAD)
def test_slow_evaluation_of_an_older_version_survives_a_resume(ahead: int, tmp_path: Path) -> None:
    """The weights it is due at are in the checkpoint although training has gone on, and nothing else samples from them."""
    wanted = make_backend()
    result = run(wanted, steps=6, ahead=ahead, evaluations=[Evaluation("score", Score(), every=2)])
    metrics = [(report.version, report.metrics) for report in result.evaluations]
    number = 0

    async def begin() -> None:
        nonlocal number
        number += 1
        await train_supervised(
            make_backend(),
            batches=Batches(),
            ahead=ahead,
            run=RunSettings(tmp_path / str(number), checkpoint_every=1),
            evaluations=[Evaluation("score", Score(30.0), every=2)],
            optimizer=ADAM,
            learning_rate=halving,
        )

    resumed_with_older = 0
    for report in every_cancellation(begin, stride=stride(83, 29)):
        assert report.error is None
        path = tmp_path / str(number)
        newest = sorted((path / "checkpoints").glob("0*"))[-1:]
        resumed_with_older += any((checkpoint / "snapshots").exists() for checkpoint in newest)
        score = Score(1.0)
        backend = make_backend()
        result = run(
            backend,
            ahead=ahead,
            evaluations=[Evaluation("score", score, every=2)],
            run=RunSettings(path, checkpoint_every=1, resume=True),
        )
        assert [(report.version, report.metrics) for report in result.evaluations] == metrics
        assert backend.live_snapshots == ()
    assert resumed_with_older > 0


# --- batches and errors


class Counted(Batches):
    built: ClassVar[list[int]] = []

    def __getitem__(self, index: int) -> Any:
        Counted.built.append(index)
        return super().__getitem__(index)


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_prefetch_builds_so_many_batches_ahead(prefetch: int) -> None:
    Counted.built = []
    most = 0

    class Watching:
        def step(self, row: Mapping[str, float]) -> None:
            nonlocal most
            most = max(most, len(Counted.built) - int(row["step"]))

        def evaluation(self, step: int, name: str, metrics: Mapping[str, float]) -> None: ...

        def note(self, text: str) -> None: ...

    run(make_backend(), batches=Counted(30), prefetch=prefetch, ahead=0, observers=[Watching()])
    assert Counted.built == list(range(30))
    assert prefetch + 1 <= most <= prefetch + 4  # the reported step, one in training, one in the source's hand


class Holed(Batches):
    def __getitem__(self, index: int) -> Any:
        if index == 3:
            raise OSError("shard 3 is gone")
        return [] if index == 4 else super().__getitem__(index)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (Holed(6), "the dataset could not give batch 3 of 6: OSError: shard 3 is gone"),
        ([Batches()[0], []], "batch 1 of 2 is empty: there is nothing to take a step on"),
    ],
)
@pytest.mark.parametrize("ahead", AHEAD)
def test_failing_and_empty_batches_are_named(batches: Any, message: str, ahead: int) -> None:
    for report in schedules(
        lambda: train_supervised(make_backend(), batches=batches, ahead=ahead), count=5, horizon=1e4
    ):
        assert isinstance(report.error, ActorsFailed)
        assert names_of(report.error) == ["in actor 'batches'"]
        assert str(report.error.exceptions[0]) == message


@pytest.mark.parametrize("call", ["forward_backward", "optim_step", "snapshot"])
@pytest.mark.parametrize("ahead", AHEAD)
def test_failing_backend_ends_the_run_and_releases_what_it_had_frozen(call: Any, ahead: int) -> None:
    for nth in (2, 3):
        backend = make_backend(failures=Failures(plan=(Fault(call, nth, lambda: BackendError("no")),)))
        evaluation = Evaluation("score", Score(50.0), every=1)
        with pytest.raises(ActorsFailed) as caught:
            run(backend, ahead=ahead, evaluations=[evaluation])
        assert names_of(caught.value) == ["in actor 'trainer'"]
        assert backend.live_snapshots == ()


def test_wrong_settings_are_told_before_anything_runs() -> None:
    backend = make_backend()
    for options, message in (
        ({"steps": 0}, "there is nothing to train on: 0 steps"),
        ({"batches": [], "steps": 3}, "0 batches"),
        ({"loss": Loss("dop")}, "no loss is called 'dop': the backend 'simulated' has cispo, cross_entropy"),
        ({"loss": Loss("dpo", {"bata": 0.1})}, "loss 'dpo' has no parameter 'bata'"),
    ):
        with pytest.raises(ValueError, match=message):
            simulate(lambda options=options: train_supervised(backend, **{"batches": Batches(), **options})).unwrap()
    assert backend.log is not None
    assert backend.log.training == []


@pytest.mark.parametrize("ahead", AHEAD)
def test_failing_evaluation_releases_weights_that_were_frozen_meanwhile(ahead: int) -> None:
    async def broken(policy: Policy) -> Mapping[str, float]:
        await anyio.sleep(50.0)
        raise ValueError("no")

    backend = make_backend()
    with pytest.raises(ActorsFailed) as caught:
        run(backend, ahead=ahead, evaluations=[Evaluation("broken", broken, every=1, at_ends=False, blocking=True)])
    assert names_of(caught.value) == ["in actor 'evaluator'"]
    assert "in evaluation 'broken' at version 1" in caught.value.exceptions[0].__notes__
    assert backend.live_snapshots == ()
