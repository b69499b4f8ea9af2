"""Blob stores: one suite for every address, and copies of runs in them."""

from __future__ import annotations

import importlib.util
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.storage import mirror
from engine.storage.blobs import BlobError, BlobStore, open_blobs
from engine.storage.checkpoints import CheckpointStore, list_checkpoints
from engine.storage.mirror import pull_run, push_run
from engine.storage.run_directory import CHECKPOINTS, METRICS, RunDirectory


@pytest.fixture(params=["directory", "memory", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobStore]:
    if request.param == "directory":
        yield open_blobs(tmp_path / "store")
    elif request.param == "memory":
        yield open_blobs(f"memory://{uuid.uuid4()}")
    else:
        with s3(tmp_path) as address_and_options:
            yield open_blobs(address_and_options[0], **address_and_options[1])


def s3(tmp_path: Path) -> object:
    """moto's server, which speaks S3's protocol: `pip install 'callsheet[s3]' 'moto[server]'`."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("s3fs") is None:
        pytest.skip("s3fs or moto is not installed: pip install 'callsheet[s3]' 'moto[server]'")
    from tests.storage.s3_server import bucket

    return bucket()


def test_what_was_written_is_read(blobs: BlobStore, tmp_path: Path) -> None:
    assert list(blobs.names()) == []
    blobs.write("a/b.bin", b"one")
    blobs.write("a/b.bin", b"two")
    blobs.write("empty", b"")
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    blobs.upload("a/c.bin", tmp_path / "file")
    assert list(blobs.names()) == ["a/b.bin", "a/c.bin", "empty"]
    assert list(blobs.names("a/")) == ["a/b.bin", "a/c.bin"]
    assert (blobs.read("a/b.bin"), blobs.read("empty")) == (b"two", b"")
    blobs.download("a/c.bin", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"x" * 100_000
    blobs.delete("a/b.bin")
    blobs.delete("a/b.bin")
    assert list(blobs.names()) == ["a/c.bin", "empty"]
    with pytest.raises(BlobError, match=r"holds no a/b\.bin"):
        blobs.read("a/b.bin")
    with pytest.raises(BlobError, match=r"holds no a/b\.bin"):
        blobs.download("a/b.bin", tmp_path / "no")


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x"])
def test_a_name_stays_inside(name: str) -> None:
    with pytest.raises(ValueError, match="relative path"):
        open_blobs("memory://names").write(name, b"")


@pytest.mark.parametrize(
    ("address", "said"), [("nonsense://x/y", "nonsense"), ("memory://", "names no place"), ("/", "names no place")]
)
def test_an_address_that_is_none_is_one_line(address: str, said: str) -> None:
    with pytest.raises(BlobError, match=said):
        open_blobs(address)


# ---- copies of runs


def make_run(path: Path, steps: int = 3) -> RunDirectory:
    run = RunDirectory(path, resume=False)
    run.write_config({"seed": 0})
    for step in range(1, steps + 1):
        save(run, step)
    return run


def save(run: RunDirectory, step: int) -> None:
    run.append(METRICS, [{"step": step - 1}])
    store = CheckpointStore(run)
    partial = store.begin(step)
    (partial / "trainer").mkdir()
    (partial / "trainer" / "weights").write_bytes(bytes([step]) * 1000)
    store.commit(step, partial)


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "run.lock"
    }


def test_a_copy_is_the_run_and_sends_only_what_is_new(blobs: BlobStore, tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as run:
        first = push_run(run.path, blobs)
        assert first.sent == first.files
        assert pull_run(blobs, tmp_path / "copy") == first.files
        assert contents(tmp_path / "copy") == contents(run.path)
        assert push_run(run.path, blobs).sent == 0
        save(run, 4)
        # The new weights, their manifest, the list of checkpoints and the metrics.
        assert push_run(run.path, blobs).sent == 4
        CheckpointStore(run).delete(1)
        push_run(run.path, blobs)
    named = json.loads(blobs.read("index.json"))["files"]
    assert {name.removeprefix("objects/") for name in blobs.names("objects/")} == {
        facts["sha256"] for facts in named.values()
    }
    pull_run(blobs, tmp_path / "later")
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "later")] == [2, 3, 4]
    with RunDirectory(tmp_path / "later", resume=True) as later:
        for checkpoint in list_checkpoints(later.path):
            CheckpointStore(later).verify(checkpoint)


class Interrupted(Exception):
    pass


class Breaks:
    """A store whose n-th write or upload fails, before or after it took effect."""

    def __init__(self, inner: BlobStore, at: int, after: bool) -> None:
        self._inner, self._left, self._after = inner, at, after

    def __getattr__(self, name: str) -> object:
        method = getattr(self._inner, name)
        if name not in {"write", "upload", "delete"}:
            return method

        def call(*args: object) -> object:
            self._left -= 1
            if self._left < 0 and not self._after:
                raise Interrupted
            result = method(*args)
            if self._left < 0:
                raise Interrupted
            return result

        return call


@pytest.mark.parametrize("after", [False, True])
def test_a_push_that_is_cut_off_anywhere_leaves_a_whole_run(tmp_path: Path, after: bool) -> None:
    with make_run(tmp_path / "run") as run:
        blobs = open_blobs(f"memory://{uuid.uuid4()}")
        push_run(run.path, blobs)
        old = contents(run.path)
        save(run, 4)
        CheckpointStore(run).delete(1)
        new = contents(run.path)
        cuts = 0
        while True:
            try:
                push_run(run.path, Breaks(blobs, cuts, after))  # type: ignore[arg-type]
            except Interrupted:
                cuts += 1
                pull_run(blobs, tmp_path / f"copy{cuts}")
                assert contents(tmp_path / f"copy{cuts}") in (old, new)
            else:
                break
            if after and cuts > 20:
                break
        assert cuts >= 2
        assert push_run(run.path, blobs).sent == 0
        pull_run(blobs, tmp_path / "whole")
        assert contents(tmp_path / "whole") == new


def test_a_checkpoint_that_goes_while_it_is_copied_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make_run(tmp_path / "run") as run:
        blobs = open_blobs(f"memory://{uuid.uuid4()}")
        digest_of, left = mirror.digest_of, [1]

        def and_meanwhile(path: Path) -> str:
            if left and path.name == "manifest.json":
                left.pop()
                CheckpointStore(run).delete(2)
            return digest_of(path)

        monkeypatch.setattr(mirror, "digest_of", and_meanwhile)
        push_run(run.path, blobs)
        pull_run(blobs, tmp_path / "copy")
        assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "copy")] == [1, 3]


def test_a_torn_last_line_travels_as_the_resume_finds_it(tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as run:
        with (run.path / METRICS).open("a") as file:
            file.write('{"step": 3, "lo')
        with (run.path / CHECKPOINTS).open("a") as file:
            file.write('{"step": 4, ')
        blobs = open_blobs(f"memory://{uuid.uuid4()}")
        push_run(run.path, blobs)
        pull_run(blobs, tmp_path / "copy")
    assert (tmp_path / "copy" / METRICS).read_text().endswith('"lo')
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "copy")] == [1, 2, 3]


def test_what_is_no_run_does_not_replace_one(tmp_path: Path) -> None:
    blobs = open_blobs(tmp_path / "store")
    with make_run(tmp_path / "run") as run:
        push_run(run.path, blobs)
    (tmp_path / "empty").mkdir()
    for name in ("nothing", "empty"):
        with pytest.raises(BlobError, match=f"{name} holds no run"):
            push_run(tmp_path / name, blobs)
    pull_run(blobs, tmp_path / "copy")
    assert len(list_checkpoints(tmp_path / "copy")) == 3


def test_what_is_damaged_is_not_taken_for_a_run(tmp_path: Path) -> None:
    blobs = open_blobs(f"memory://{uuid.uuid4()}")
    with pytest.raises(BlobError, match="holds no run"):
        pull_run(blobs, tmp_path / "copy")
    with make_run(tmp_path / "run") as run:
        push_run(run.path, blobs)
    name = next(name for name in blobs.names("objects/") if len(blobs.read(name)) == 1000)
    whole = blobs.read(name)
    blobs.write(name, whole[:-1])
    with pytest.raises(BlobError, match="weights is damaged"):
        pull_run(blobs, tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    blobs.write(name, whole)
    (tmp_path / "copy").mkdir()
    pull_run(blobs, tmp_path / "copy")
    with pytest.raises(FileExistsError, match="is not empty"):
        pull_run(blobs, tmp_path / "copy")
    for text, said in (("{", "cannot be read"), ('{"files": {"../x": {}}}', "lies outside")):
        blobs.write("index.json", text.encode())
        with pytest.raises(BlobError, match=said):
            pull_run(blobs, tmp_path / "other")
