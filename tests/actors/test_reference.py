"""The reference policy of a run: frozen before training, the original after a resume, released at the end; and batches prepared with it."""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from actors import RunResult, RunSettings, open_reference, score_targets, train_supervised, with_reference_logprobs
from actors.scoring import Scorer
from engine.backends import AdamParams, Datum, ModelInput
from engine.backends.errors import BackendError
from engine.backends.simulated import SimulatedBackend
from engine.runtime import ActorsFailed
from engine.runtime.testing import every_cancellation, schedules, simulate
from engine.storage.run_directory import RunDirectoryError
from engine.training.kl import full_sequence
from tests.actors.harness import training_of
from tests.actors.scenarios import Batches, make_backend
from tests.thoroughness import stride

STEPS = 6


def first_weights(data: Sequence[Datum]) -> list[np.ndarray]:
    """Logprobs of the targets under the weights before any training."""
    backend = make_backend()

    async def score() -> list[np.ndarray]:
        snapshot = await backend.snapshot().result()
        return [(await backend.compute_logprobs(snapshot, full_sequence(datum)))[1:] for datum in data]

    return simulate(score).unwrap()


class Prepared:
    """A `prepare` that keeps what it gave, by the batch's first target."""

    def __init__(self) -> None:
        self.given: dict[int, list[np.ndarray]] = {}

    async def __call__(self, data: Sequence[Datum], reference: Scorer) -> list[Datum]:
        prepared = await with_reference_logprobs(data, reference)
        self.given[int(data[0].loss_inputs["target_tokens"][0])] = [
            datum.loss_inputs["reference_logprobs"] for datum in prepared
        ]
        return prepared


async def train(backend: SimulatedBackend, path: Path | None, *, resume: bool = False, **options: Any) -> RunResult:
    run = RunSettings(path, resume=resume, checkpoint_every=2) if path is not None else None
    options.setdefault("prepare", with_reference_logprobs)
    return await train_supervised(
        backend, batches=Batches(), steps=STEPS, run=run, optimizer=AdamParams(0.1), **options
    )


def run(backend: SimulatedBackend, path: Path | None = None, *, seed: int = 0, **options: Any) -> RunResult:
    return simulate(functools.partial(train, **options), backend, path, seed=seed).unwrap()


def test_the_reference_is_the_policy_before_training() -> None:
    prepared, backend = Prepared(), make_backend()
    run(backend, prepare=prepared)
    assert sorted(prepared.given) == [40 + index for index in range(STEPS)]
    for index in range(STEPS):
        wanted = first_weights(Batches()[index])
        for given_T, wanted_T in zip(prepared.given[40 + index], wanted, strict=True):
            assert np.array_equal(given_T, wanted_T)
    assert backend.live_snapshots == ()


def test_a_resumed_run_loads_the_original(tmp_path: Path) -> None:
    """Wherever it was cut: the same datums, reference logprobs included, are trained in the same steps."""
    whole = make_backend()
    run(whole, tmp_path / "whole")
    began_at = set()
    backends = []

    async def begin() -> RunResult:
        backends.append(make_backend())
        return await train(backends[-1], tmp_path / "run")

    for report in every_cancellation(begin, stride=stride(37, 11)):
        assert report.error is None
        assert backends[-1].live_snapshots == ()
        again = make_backend()
        run(again, tmp_path / "run", resume=True, seed=7)
        redone = training_of(again)
        began_at.add(min(redone, default=STEPS))
        assert redone == {step: data for step, data in training_of(whole).items() if step in redone}
        assert again.live_snapshots == ()
        shutil.rmtree(tmp_path / "run")
    assert began_at == {0, 2, 4, 6}


def test_another_policy_as_reference_would_show(tmp_path: Path) -> None:
    """That the comparison above can fail: weights of step 2 in the reference's place give other datums."""
    run(make_backend(), tmp_path / "run")
    resumed = []
    for name in ("same", "swapped"):
        path = tmp_path / name
        shutil.copytree(tmp_path / "run", path)
        for step in (4, 6):  # go on from step 2
            shutil.rmtree(path / "checkpoints" / f"{step:06d}")
        if name == "swapped":

            async def swap(path: Path = path) -> None:
                backend = make_backend()
                await backend.load_state(path / "checkpoints" / "000002" / "trainer").result()
                shutil.rmtree(path / "reference")
                (path / "reference").mkdir()
                await backend.save_snapshot(await backend.snapshot().result(), path / "reference").result()

            simulate(swap).unwrap()
        backend = make_backend()
        run(backend, path, resume=True)
        resumed.append(training_of(backend))
    assert sorted(resumed[0]) == sorted(resumed[1]) == [2, 3, 4, 5]
    assert all(resumed[0][step] != resumed[1][step] for step in resumed[0])


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_reference_that_is_gone_is_said_so(damage: str, tmp_path: Path) -> None:
    run(make_backend(), tmp_path)
    if damage == "missing":
        shutil.rmtree(tmp_path / "reference")
    else:
        file = next((tmp_path / "reference").iterdir())
        file.write_bytes(file.read_bytes()[:-9])
    backend = make_backend()
    wanted = "reference is missing: a resumed run needs" if damage == "missing" else "damaged or incomplete"
    with pytest.raises(RunDirectoryError, match=wanted):
        run(backend, tmp_path, resume=True)
    assert backend.live_snapshots == ()


def test_a_run_that_never_came_to_a_checkpoint_begins_with_a_new_reference(tmp_path: Path) -> None:
    """What an earlier attempt left may be of other weights: nothing was trained, so the weights at hand are the reference."""
    other = SimulatedBackend(seed=99, record=True)

    async def attempt() -> None:
        async with open_reference(other, tmp_path, resumed=False):
            pass

    simulate(attempt).unwrap()
    backend, wanted = make_backend(), make_backend()
    run(backend, tmp_path, resume=True)
    run(wanted, None)
    assert training_of(backend) == training_of(wanted)


def test_a_scorer_of_ones_own_takes_the_references_place() -> None:
    class Flat:
        async def compute_logprobs(self, sequence: ModelInput) -> np.ndarray:
            return np.full(sequence.length, -2.0, np.float32)

    prepared, backend = Prepared(), make_backend()
    run(backend, prepare=prepared, reference=Flat())
    assert all((array == -2.0).all() for arrays in prepared.given.values() for array in arrays)
    assert backend.log is not None
    assert [entry.call for entry in backend.log.training].count("snapshot") == 1  # the one that is served


def test_preparing_overlaps_with_training() -> None:
    """A slow scorer is hidden behind the steps: after the first ones the trainer never waits for it."""

    class Slow:
        async def compute_logprobs(self, sequence: ModelInput) -> np.ndarray:
            await anyio.sleep(0.1)
            return np.full(sequence.length, -2.0, np.float32)

    # A step takes 0.1 + 2·0.01 + 0.05 s; both sequences of a batch are scored at once.
    for report in schedules(functools.partial(train, reference=Slow()), make_backend(), None, count=3):
        waits = [row["time/wait_for_groups"] for row in report.unwrap().rows]
        assert waits[0] == pytest.approx(0.1)
        assert max(waits[3:]) == 0.0


def test_sequences_are_scored_in_order_and_within_the_bound() -> None:
    log: list[tuple[str, int]] = []

    class Watched:
        async def compute_logprobs(self, sequence: ModelInput) -> np.ndarray:
            log.append(("begin", int(sequence.tokens[1])))
            await anyio.sleep(1.0)
            log.append(("end", int(sequence.tokens[1])))
            return np.arange(sequence.length, dtype=np.float32)

    data = [Batches.datum(40 + number, 50) for number in range(7)]
    for seed in range(5):
        log.clear()
        report = simulate(lambda: score_targets(Watched(), data, concurrency=3), seed=seed)
        assert [score_T.tolist() for score_T in report.unwrap()] == [[1.0, 2.0, 3.0]] * 7
        begun = [number for what, number in log if what == "begin"]
        assert [set(begun[:3]), set(begun[3:6]), set(begun[6:])] == [{40, 41, 42}, {43, 44, 45}, {46}]
        under_way = most = 0
        for what, _ in log:
            under_way += 1 if what == "begin" else -1
            most = max(most, under_way)
        assert most == 3
        assert report.seconds == 3.0


@pytest.mark.parametrize(
    ("logprobs", "message"),
    [
        ([np.nan, -1.0, np.inf, -1.0], "datum 0: the reference logprob of the target at position 1 is inf"),
        ([np.nan, -1.0], r"datum 0: the scorer gave logprobs of shape \(2,\) for a sequence of 4 tokens"),
    ],
)
def test_bad_scores_are_errors_that_name_the_datum(logprobs: list[float], message: str) -> None:
    class Bad:
        async def compute_logprobs(self, sequence: ModelInput) -> np.ndarray:
            return np.array(logprobs, np.float32)

    with pytest.raises(ActorsFailed) as failed:
        run(make_backend(), reference=Bad())
    (error,) = failed.value.exceptions
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ValueError)
    assert re.search(message, str(error))


def test_what_no_loss_reads_may_be_anything() -> None:
    """A target without weight: its logprob does not matter, and becomes 0."""

    class Holes:
        async def compute_logprobs(self, sequence: ModelInput) -> np.ndarray:
            return np.array([np.nan, np.nan, -1.0, -2.0], np.float32)

    datum = Batches.datum(40, 41)
    datum = Datum(datum.model_input, {**datum.loss_inputs, "weights": np.array([0, 1, 1], np.float32)})

    async def run() -> list[Datum]:
        return await with_reference_logprobs([datum], Holes())

    (scored,) = simulate(run).unwrap()
    assert scored.loss_inputs["reference_logprobs"].tolist() == [0.0, -1.0, -2.0]


def test_a_batch_that_is_prepared_away_is_an_error() -> None:
    async def nothing(data: Sequence[Datum], reference: Scorer) -> list[Datum]:
        return []

    with pytest.raises(ActorsFailed) as failed:
        run(make_backend(), prepare=nothing)
    assert "nothing was left of batch 0 of 6" in str(failed.value.exceptions[0])


def test_a_released_reference_is_not_asked() -> None:
    async def run() -> None:
        async with open_reference(make_backend(), None, resumed=False) as reference:
            pass
        reference.release()  # a second time does nothing
        with pytest.raises(BackendError, match="released"):
            await reference.compute_logprobs(ModelInput.from_tokens([33, 34]))

    simulate(run).unwrap()
