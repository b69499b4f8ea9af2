"""Weights on a server are noted before what names them goes, whatever removes it, and a crash at any moment forgets none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.storage import CheckpointStore, Keeping, RunDirectory
from engine.storage.discarded import DISCARDED, Remote, forget, noted, unwanted


def elsewhere(directory: Path) -> Sequence[Remote]:
    return [Remote(**json.loads(path.read_text())) for path in sorted(directory.rglob("where.json"))]


def commit(store: CheckpointStore, step: int, *names: str) -> None:
    partial = store.begin(step)
    for name in names:
        (partial / name).mkdir()
        (partial / name / "where.json").write_text(json.dumps({"path": name, "server": "there", "expires": None}))
    store.commit(step, partial)
    store.prune()


def there(run: Path) -> list[str]:
    return [remote.path for remote in noted(run)]


def test_pruning_notes_and_what_another_checkpoint_holds_is_wanted(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        store = CheckpointStore(run, Keeping(last=1), elsewhere)
        commit(store, 1, "s1", "shared")
        assert not (tmp_path / DISCARDED).exists()
        commit(store, 2, "s2", "shared")
        assert there(tmp_path) == ["s1", "shared"]
        assert unwanted(tmp_path, elsewhere) == [Remote("s1", "there")]
        commit(store, 3, "s3")
        assert [remote.path for remote in unwanted(tmp_path, elsewhere)] == ["s1", "shared", "s2"]
        forget(tmp_path, {"s1", "s2"})
        assert there(tmp_path) == ["shared"]
        forget(tmp_path, {"shared"})
        assert not (tmp_path / DISCARDED).exists()


def test_every_way_to_remove_notes(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        store = CheckpointStore(run, elsewhere=elsewhere)
        for step in (1, 2, 3, 4):
            commit(store, step, f"s{step}")
        store.delete(1)
        assert there(tmp_path) == ["s1"]
        run.rewind(3)
        store.sweep()  # step 4 was dropped from the list
        assert there(tmp_path) == ["s1", "s4"]
        half = store.begin(5)
        (half / "s5").mkdir()
        (half / "s5" / "where.json").write_text('{"path": "s5"}')
        store.begin(5)  # as after a crash
        assert there(tmp_path) == ["s1", "s4", "s5"]


def test_a_crash_while_removing_forgets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunDirectory(tmp_path) as run:
        store = CheckpointStore(run, Keeping(last=1), elsewhere)
        commit(store, 1, "s1")

        def crash(_: Path) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(shutil, "rmtree", crash)
            commit(store, 2, "s2")
        assert there(tmp_path) == ["s1"]
        assert unwanted(tmp_path, elsewhere) == []  # its checkpoint is there yet
        store.prune()
        assert [remote.path for remote in unwanted(tmp_path, elsewhere)] == ["s1"]
