"""Checkpoints: complete or not there, verified, pruned; and the values in them."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest
from numpy.typing import NDArray

from actors.work import Assignment, FinishedGroup, LedgerState, RLWork, TagSums, UnderWay
from engine.backends import Completion, ModelInput
from engine.backends.values import ImageChunk, TokenChunk
from engine.runtime.gate import GateState, Ticket
from engine.storage import (
    Best,
    CheckpointStore,
    Keeping,
    RunDirectory,
    RunDirectoryError,
    UnusableCheckpoint,
    list_checkpoints,
    read_value,
    select_checkpoint,
    write_value,
)
from engine.training.trajectories import Trajectory, TrajectoryGroup, Turn


def commit(store: CheckpointStore, step: int) -> None:
    partial = store.begin(step)
    (partial / "trainer").mkdir()
    (partial / "trainer" / "weights").write_bytes(bytes([step]) * 100)
    (partial / "run.json").write_text("{}")
    store.commit(step, partial)
    store.prune()


def test_newest_first_and_pruned(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        store = CheckpointStore(run, Keeping(last=2))
        for step in (2, 4, 6):
            commit(store, step)
        assert [checkpoint.step for checkpoint in store.newest_first()] == [6, 4, 2]
        assert sorted(path.name for path in store.directory.iterdir()) == ["000004", "000006"]
        for checkpoint in list(store.newest_first())[:2]:
            store.verify(checkpoint)
        with pytest.raises(UnusableCheckpoint, match="is missing"):
            store.verify(list(store.newest_first())[2])


def test_what_was_not_committed_is_not_there(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        store = CheckpointStore(run)
        partial = store.begin(2)
        (partial / "half").write_text("x")
        assert list(store.newest_first()) == []
        commit(store, 2)  # begins anew
        (checkpoint,) = store.newest_first()
        assert not (checkpoint.path / "half").exists()
        store.verify(checkpoint)
        assert [path.name for path in store.directory.iterdir()] == ["000002"]


def test_a_step_committed_again_replaces_the_first(tmp_path: Path) -> None:
    """After a rewind the same step is reached again."""
    with RunDirectory(tmp_path) as run:
        store = CheckpointStore(run)
        commit(store, 2)
        (store.directory / "000002" / "left").write_text("x")
        commit(store, 2)
        assert [checkpoint.step for checkpoint in store.newest_first()] == [2]
        assert not (store.directory / "000002" / "left").exists()


def test_a_sweep_removes_what_is_no_checkpoint_of_this_run(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        store = CheckpointStore(run)
        store.sweep()  # before there is any
        for step in (2, 4):
            commit(store, step)
        store.begin(6)
        (store.directory / "000008").mkdir()
        (store.directory / "best").mkdir()  # somebody's own
        run.rewind(2)
        store.sweep()
        assert sorted(path.name for path in store.directory.iterdir()) == ["000002", "best"]
        store.verify(next(store.newest_first()))


@pytest.mark.parametrize("name", ["trainer/weights", "run.json"])
@pytest.mark.parametrize("content", [b"", b"x", b"\x02" * 99, b"\x02" * 99 + b"\x03"])
def test_every_changed_byte_is_noticed(tmp_path: Path, name: str, content: bytes) -> None:
    with RunDirectory(tmp_path) as run:
        store = CheckpointStore(run)
        commit(store, 2)
        (checkpoint,) = store.newest_first()
        (checkpoint.path / name).write_bytes(content)
        with pytest.raises(UnusableCheckpoint, match=f"{name} is damaged"):
            store.verify(checkpoint)


@pytest.mark.parametrize("nothing", [{"last": 0}, {"every": 0}])
def test_keeping_keeps_at_least_one(nothing: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be >= 1"):
        Keeping(**nothing)


# --- which stay


def evaluated(run: RunDirectory, step: int, **metrics: float) -> None:
    run.append("evaluations.jsonl", [{"step": step, "name": "held out", "metrics": metrics}])


def left(store: CheckpointStore) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(store.run.path)]


def test_every_so_many_steps_one_stays(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        store = CheckpointStore(run, Keeping(last=1, every=4))
        for step in range(1, 11):
            commit(store, step)
        assert left(store) == [4, 8, 10]
        assert [checkpoint.step for checkpoint in store.newest_first()] == list(range(10, 0, -1))


def test_the_best_stays_until_a_better_one_comes(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        store = CheckpointStore(run, Keeping(last=1, best=Best("held out/nll", highest=False)))
        for step, nll in enumerate([3.0, 1.0, 2.0, 1.0, float("nan"), 0.5, 2.0], start=1):
            evaluated(run, step, nll=nll, accuracy=-nll)
            commit(store, step)
            assert select_checkpoint(tmp_path).step == step
            assert select_checkpoint(tmp_path, "best").step == [1, 2, 2, 2, 2, 6, 6][step - 1]
        assert left(store) == [6, 7]


def test_a_checkpoint_whose_evaluation_is_still_to_come_stays(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        store = CheckpointStore(run, Keeping(last=1, best=Best("held out/accuracy")))
        pending = set()
        for step in (1, 2, 3, 4):
            store.commit(step, store.begin(step))
            if step != 3:
                pending.add((step, "held out"))
            pending.add((step, "something else"))
            store.prune(pending)
        assert left(store) == [1, 2, 4]
        evaluated(run, 1, accuracy=0.4)
        store.prune(pending - {(1, "held out")})
        assert left(store) == [1, 2, 4]
        evaluated(run, 2, accuracy=0.6)
        store.prune({(4, "held out")})
        assert left(store) == [2, 4]
        assert select_checkpoint(tmp_path, "best").step == 2


def test_selecting_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="nowhere is no directory"):
        select_checkpoint(tmp_path / "nowhere")
    with pytest.raises(RunDirectoryError, match="holds no checkpoints"):
        select_checkpoint(tmp_path)
    with RunDirectory(tmp_path) as run:
        store = CheckpointStore(run)
        for step in (2, 4):
            commit(store, step)
        assert select_checkpoint(tmp_path, 2).path.name == "000002"
        with pytest.raises(RunDirectoryError, match="no checkpoint of step 3; there are 2, 4"):
            select_checkpoint(tmp_path, 3)
        with pytest.raises(RunDirectoryError, match=r"keeps no best checkpoint .*; there are 2, 4"):
            select_checkpoint(tmp_path, "best")
        store = CheckpointStore(run, Keeping(best=Best("held out/nll")))
        commit(store, 6)
        with pytest.raises(RunDirectoryError, match="no checkpoint was evaluated by 'held out/nll' yet"):
            select_checkpoint(tmp_path, "best")


def test_what_is_deleted_is_gone_and_the_rest_is_as_it_was(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        store = CheckpointStore(run)
        for step in (2, 4, 6):
            commit(store, step)
        store.delete(4)
        assert left(store) == [2, 6]
        assert [checkpoint.step for checkpoint in store.newest_first()] == [6, 2]
        with pytest.raises(RunDirectoryError, match="no checkpoint of step 4"):
            store.delete(4)
        for step in (6, 2):
            store.delete(step)
        with pytest.raises(RunDirectoryError, match="has no checkpoint left"):
            select_checkpoint(tmp_path)


# --- values


def turn(prompt: ModelInput, length: int, version: int) -> Turn:
    tokens = np.arange(length, dtype=np.int32)
    logprobs = np.linspace(-3.0, -0.1, length).astype(np.float32)
    return Turn(prompt, Completion(tokens, logprobs, "stop", version), 0.25, {"m": 1.5}, {"text": "né", "n": [1, None]})


def test_a_runs_work_comes_back_the_same(tmp_path: Path) -> None:
    image = ModelInput((TokenChunk([1, 2]), ImageChunk(b"\x89PNG\x00", 3), ImageChunk("a/path.png", 2)))
    first = Trajectory((turn(image, 3, 4), turn(ModelInput.from_tokens([5]), 0, 5)), "max_turns", -0.5, {"x": 2.0})
    second = Trajectory((turn(ModelInput.from_tokens([]), 2, 4),))
    group = TrajectoryGroup((first, second), ("a", "b"), {"g": 1.0})
    ticket = Ticket(7, 4)
    assignment = Assignment(ticket, 9, 1, 2**62 + 3)
    work = RLWork(
        GateState(5, 8, 6, 0, 0, (Ticket(6, 5), ticket)),
        8,
        (FinishedGroup(assignment, group, 5),),
        UnderWay({6: Assignment(Ticket(6, 5), 8, 0, 2**63 - 1)}, {6: {2**62: 4}}),
        LedgerState({"all": TagSums(2, 1, {"reward": 0.1 + 0.2})}, 1, 2, 3, 4),
        {"problem 3": (2, 0.1)},
    )
    write_value(work, tmp_path, "work")
    assert read_value(RLWork, tmp_path, "work") == work


@attrs.frozen
class Arrays:
    values: dict[str, NDArray[np.float64]]
    flags: NDArray[np.bool_]


def test_arrays_of_every_shape(tmp_path: Path) -> None:
    arrays = Arrays({"empty": np.empty((0, 3)), "matrix": np.eye(3)[:, ::2], "number": np.array(2.5)}, np.array([True]))
    write_value(arrays, tmp_path, "a")
    read = read_value(Arrays, tmp_path, "a")
    for name, array in arrays.values.items():
        assert read.values[name].shape == array.shape
        np.testing.assert_array_equal(read.values[name], array)
    assert read.flags.dtype == bool


def test_objects_cannot_be_saved_as_arrays(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="only numbers and booleans can"):
        write_value({"a": np.array([object()])}, tmp_path, "a")


def test_cut_short_arrays_are_noticed(tmp_path: Path) -> None:
    write_value(Arrays({"a": np.arange(4.0)}, np.array([True])), tmp_path, "a")
    np.savez(tmp_path / "a.npz", **{"<f8": np.arange(2.0), "|b1": np.array([True])})
    with pytest.raises(Exception, match=r"structuring|cut short"):
        read_value(Arrays, tmp_path, "a")
