"""`recipes.checkpoints` and what lies on a Tinker server: deleted with a run's checkpoints, listed, and swept of what nobody holds."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import attrs
import numpy as np
import pytest

from actors import RunSettings, train_supervised
from engine.backends import BackendError, Datum, ModelInput, UnusableState
from engine.backends.tinker import states
from engine.backends.tinker.states import FILE, saved_in
from engine.backends.tinker.testing import FakeTinker, Fault, values
from engine.storage import RunDirectory, RunDirectoryError, list_checkpoints
from engine.storage.discarded import noted
from recipes import checkpoints
from recipes.checkpoints import Config

TOKENS = np.arange(6)
LESSON = Datum(ModelInput.from_tokens(TOKENS[:-1]), {"target_tokens": TOKENS[1:], "weights": np.ones(5, np.float32)})


def train(fake: FakeTinker, run: Path, steps: int = 3, **settings: Any) -> Path:
    """A run with a checkpoint after every step."""

    async def main() -> None:
        async with fake.open() as backend:
            await train_supervised(
                backend, batches=[[LESSON]] * steps, run=RunSettings(run, checkpoint_every=1, **settings)
            )

    anyio.run(main)
    return run


@pytest.fixture(params=["0.25", "0.38"])
def fake(request: pytest.FixtureRequest) -> FakeTinker:
    made = FakeTinker(request.param, vocab=16)
    made.service.began = datetime.now(UTC) - timedelta(days=2)
    return made


@pytest.fixture
def run(fake: FakeTinker, tmp_path: Path) -> Path:
    return train(fake, tmp_path / "runs" / "first")


def held(run: Path) -> set[str]:
    return {state.path for _, state in saved_in(run)}


def refused() -> AbstractAsyncContextManager[Any]:
    raise BackendError("the server at https://fake does not answer: Connection refused")


def unreachable_fails(config: Config) -> str:
    with pytest.raises(BackendError) as failed:
        checkpoints.main(config, refused)
    return str(failed.value)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    def command(fake: FakeTinker, config: Config) -> str:
        capsys.readouterr()
        checkpoints.main(config, fake.open_store)
        return capsys.readouterr().out

    return command


def test_deleting_a_checkpoint_deletes_its_weights(fake: FakeTinker, run: Path, said: Any) -> None:
    assert set(fake.service.checkpoints) == held(run)
    printed = said(fake, Config(run=run, delete=(1, 3)))
    assert "deleted checkpoint 1\ndeleted checkpoint 3\ndeleted 2 of its weights on the server\n" in printed
    assert "goes on from step 2" in printed
    assert [checkpoint.step for checkpoint in list_checkpoints(run)] == [2]
    assert set(fake.service.checkpoints) == held(run)
    assert len(held(run)) == 1
    assert not (run / "discarded.jsonl").exists()


def test_a_server_that_does_not_answer_loses_nothing(fake: FakeTinker, run: Path, said: Any) -> None:
    (going,) = (state.path for _, state in saved_in(run / "checkpoints" / "000001"))
    failed = unreachable_fails(Config(run=run, delete=(1,)))
    assert "does not answer: Connection refused; still there are tinker://" in failed
    assert f"--run {run} --reclaim asks for them again" in failed
    assert [checkpoint.step for checkpoint in list_checkpoints(run)] == [2, 3]
    assert [remote.path for remote in noted(run)] == [going]
    assert "1 of the weights of deleted checkpoints are still on the server at https://fake: --reclaim" in said(
        fake, Config(run=run)
    )
    assert unreachable_fails(Config(run=run, reclaim=True)) == failed
    assert going in fake.service.checkpoints
    assert "deleted 1 of its weights on the server" in said(fake, Config(run=run, reclaim=True))
    assert set(fake.service.checkpoints) == held(run)
    assert noted(run) == []
    assert "weights" not in said(fake, Config(run=run, reclaim=True))


def test_some_fail_some_expired_and_the_rest_goes(fake: FakeTinker, run: Path) -> None:
    paths = [next(state.path for _, state in saved_in(run / "checkpoints" / f"{step:06d}")) for step in (1, 2, 3)]
    errors = (values.AuthenticationError("no"), values.NotFoundError("gone"))
    fake.service.plan("delete", *(Fault(error=error) for error in errors))
    with pytest.raises(BackendError, match=r"the API key is refused .*; still there are") as failed:
        checkpoints.main(Config(run=run, delete=(1, 2, 3)), fake.open_store)
    assert paths[0] in str(failed.value)
    assert paths[1] not in str(failed.value)
    assert [remote.path for remote in noted(run)] == [paths[0]]
    assert paths[2] not in fake.service.checkpoints
    assert list_checkpoints(run) == []


@pytest.mark.parametrize(("expires", "forgotten"), [(None, False), ("2020-01-01T00:00:00+00:00", True)])
def test_another_server_does_not_know_them_which_says_nothing(
    fake: FakeTinker, run: Path, expires: str | None, forgotten: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless they have expired anyway. Asked without --base-url, say, where a run was on a server of one's own."""
    real = states.remotes
    monkeypatch.setattr(
        "engine.backends.tinker.states.remotes",
        lambda directory: [
            attrs.evolve(each, server="the server at https://old", expires=expires) for each in real(directory)
        ],
    )
    other = FakeTinker(vocab=16)
    if forgotten:
        checkpoints.main(Config(run=run, delete=(1,)), other.open_store)
        assert noted(run) == []
    else:
        said = "https://fake has no such weights; they were saved on the server at https://old"
        with pytest.raises(BackendError, match=said):
            checkpoints.main(Config(run=run, delete=(1,)), other.open_store)
        assert len(noted(run)) == 1
        checkpoints.main(Config(run=run, reclaim=True), fake.open_store)  # the old one at its new address
        assert noted(run) == []
    assert len(list_checkpoints(run)) == 2


def test_a_run_in_use_keeps_all(fake: FakeTinker, run: Path) -> None:
    before = set(fake.service.checkpoints)
    with RunDirectory(run, resume=True), pytest.raises(RunDirectoryError, match="in use by another process"):
        checkpoints.main(Config(run=run, delete=(1,)), fake.open_store)
    with pytest.raises(RunDirectoryError, match="no checkpoint of step 9"):
        checkpoints.main(Config(run=run, delete=(1, 9)), fake.open_store)
    with pytest.raises(RunDirectoryError, match="is no directory"):
        checkpoints.main(Config(run=run.with_name("typo"), reclaim=True), fake.open_store)
    assert not run.with_name("typo").exists()
    assert set(fake.service.checkpoints) == before == held(run)


def test_showing_one_says_where_its_weights_lie(fake: FakeTinker, run: Path, said: Any) -> None:
    ((_, state),) = saved_in(run / "checkpoints" / "000002")
    assert f"weights    {state.path} on the server at https://fake (trainer)" in said(fake, Config(run=run, show="2"))


# ---- all that lies on the server


def rows(printed: str) -> list[list[str]]:
    return [line.split("   ") for line in printed.splitlines() if "tinker://" in line]


@pytest.mark.parametrize("has_one_list", [True, False])
def test_the_listing_says_whose_what_is(
    fake: FakeTinker, run: Path, tmp_path: Path, said: Any, has_one_list: bool
) -> None:
    gone = train(fake, tmp_path / "elsewhere", 1)
    if not has_one_list:
        fake.service.plan("list", Fault(error=values.NotFoundError("Not Found")))
    printed = said(fake, Config(on_server=True, runs=(tmp_path / "runs",)))
    cells = {row[-1].strip(): [cell.strip() for cell in row if cell.strip()] for row in rows(printed)}
    assert set(cells) == set(fake.service.checkpoints)
    for directory, state in saved_in(run):
        step = int(directory.parent.name)
        assert cells[state.path][1:6] == [str(step), "training", "2.05 KB", "-", f"{run} step {step}"]
    (orphan,) = held(gone)
    assert cells[orphan][5] == "nobody"
    assert "1 of these, named callsheet-..., are older than 24 hours and held by no run below" in printed
    assert len(fake.service.checkpoints) == 4  # a listing deletes nothing


def test_what_nobody_holds_is_deleted_by_a_flag(fake: FakeTinker, run: Path, tmp_path: Path, said: Any) -> None:
    """If it is ours by name, and old enough that no run elsewhere can be about to note it."""
    train(fake, tmp_path / "elsewhere", 1)
    fake.service.checkpoints["tinker://run-9/weights/mine"] = next(iter(fake.service.checkpoints.values()))
    fake.service.began = datetime.now(UTC) - timedelta(hours=1)
    young = held(train(fake, tmp_path / "another", 1))
    config = Config(delete_unreferenced=True, runs=(tmp_path / "runs",))
    assert said(fake, config) == "deleted 1 that no run holds\n"
    assert set(fake.service.checkpoints) == held(run) | young | {"tinker://run-9/weights/mine"}
    both = attrs.evolve(config, runs=(tmp_path / "runs", tmp_path / "another"), older_than=0.0)
    assert said(fake, both) == "deleted 0 that no run holds\n"
    printed = said(fake, attrs.evolve(config, older_than=0.0, on_server=True))
    assert "deleted 1 that no run holds" in printed
    assert "nobody" in printed  # somebody else's
    assert set(fake.service.checkpoints) == held(run) | {"tinker://run-9/weights/mine"}


def test_nothing_is_deleted_on_a_doubt(fake: FakeTinker, run: Path, tmp_path: Path) -> None:
    """A record that cannot be read may be of weights that are there; a directory that does not exist may be misspelt."""
    before = set(fake.service.checkpoints)
    config = Config(delete_unreferenced=True, older_than=0.0, runs=(tmp_path / "runs",))
    with pytest.raises(ValueError, match="rnus is no directory: --runs says"):
        checkpoints.main(attrs.evolve(config, runs=(tmp_path / "rnus",)), fake.open_store)
    record = run / "checkpoints" / "000002" / "trainer" / FILE
    record.write_text(record.read_text()[:-20])
    with pytest.raises(UnusableState, match=r"000002/trainer/tinker\.json cannot be read"):
        checkpoints.main(config, fake.open_store)
    assert set(fake.service.checkpoints) == before


def test_what_cannot_be_deleted_is_said(fake: FakeTinker, run: Path, tmp_path: Path) -> None:
    train(fake, tmp_path / "elsewhere", 2)
    fake.service.plan("delete", Fault(error=values.InternalServerError("disk full")))
    with pytest.raises(BackendError, match=r"1 could not be deleted: .*disk full; status 500"):
        checkpoints.main(Config(delete_unreferenced=True, runs=(tmp_path / "runs",)), fake.open_store)
    assert len(set(fake.service.checkpoints) - held(run)) == 1


def test_neither_a_run_nor_the_server() -> None:
    with pytest.raises(ValueError, match="which run's checkpoints"):
        checkpoints.main(Config())
