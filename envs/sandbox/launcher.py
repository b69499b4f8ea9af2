"""The local sandbox's launcher process, seen from its parent: its socket, the runs that it was given, its end."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread
import attrs

from engine.runtime.offload import inline
from envs.sandbox.port import Isolation, RunOutcome, RunRequest, SandboxUnavailable, Usage

START_LIMIT = 60.0
"""Seconds for the launcher to be ready."""
GRACE = 5.0
"""Seconds beyond its wall clock in which a run must have ended, and in which one that is stopped must; after that the launcher itself is ended."""
PACKET = 1 << 16
MAIN = "main.py"
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the order of a set is the same whenever an answer is graded
    "PYTHONDONTWRITEBYTECODE": "1",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""All of a program's environment, beside HOME and TMPDIR."""


class CannotStart(Exception):
    """The launcher says why."""


@attrs.define
class _Run:
    """A run under way."""

    number: int
    ended: anyio.Event = attrs.field(factory=anyio.Event)


class Launcher:
    """Starts the process. Must be made in a thread that outlives it (the event loop's): Linux ties a child to the thread that made it."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup = setup
        self._private: tempfile.TemporaryDirectory[str] | None = None
        self._runs: dict[int, _Run] = {}
        self._count = 0
        self.dead = False
        """It serves nobody any more."""
        self.isolation = Isolation("the local sandbox", {})
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        home, fd = str(Path(__file__).parent), theirs.fileno()
        start = f"import sys; sys.path.insert(0, {home!r}); from inside import launcher; launcher.main({fd})"
        try:
            self._process = subprocess.Popen(  # noqa: S603  (our own interpreter and file)
                [sys.executable, "-S", "-s", "-P", "-c", start],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[fd],
                process_group=0,
                cwd="/",
                env=ENVIRONMENT,
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self._socket.setblocking(False)

    # ---- its life

    async def open(self, failures: Mapping[str, str], tasks: anyio.abc.TaskGroup) -> None:
        """Waits until it is ready; `tasks` is where it is listened to. `failures`: other means, and why they could not be had. Raises CannotStart."""
        if self._setup["means"] == "restricted":
            self._private = tempfile.TemporaryDirectory(prefix="callsheet-sandbox-", ignore_cleanup_errors=True)
            os.chmod(self._private.name, 0o711)  # noqa: PTH101, S103  (each run's directory in it is its user's alone)
            self._setup["private"] = self._private.name
        self._socket.send(json.dumps(self._setup).encode())
        message = None
        with anyio.move_on_after(START_LIMIT) as scope:
            message = await self._packet()
        if scope.cancelled_caught:
            raise CannotStart(f"the launcher was not ready after {START_LIMIT:g} s")
        if message is None:
            raise CannotStart("the launcher ended while it started")
        if "failed" in message:
            raise CannotStart(str(message["failed"]))
        ready = message["ready"]
        lacking = "".join(f"; {means} cannot be had: {why}" for means, why in failures.items())
        self.isolation = Isolation(f"the local sandbox ({ready['name']}{lacking})", ready["isolated"], ready["missing"])
        if not inline.get():
            tasks.start_soon(self._listen)

    async def _listen(self) -> None:
        while (message := await self._packet()) is not None:
            self._take(message)
        self._lose()

    def _take(self, message: Mapping[str, Any]) -> None:
        run = self._runs.pop(message["ended"], None)
        if run is not None:
            run.ended.set()

    def _lose(self) -> None:
        self.dead = True
        for run in self._runs.values():
            run.ended.set()
        self._runs.clear()

    def kill(self) -> None:
        """Ends it at once, and with it everything that runs."""
        self.dead = True
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def close(self) -> None:
        """Ends it, and waits until it and all runs are gone."""
        self.dead = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if inline.get():
            self._wait()
        else:
            await anyio.to_thread.run_sync(self._wait)
        self._socket.close()
        if self._private is not None:
            self._private.cleanup()

    def _wait(self) -> None:
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    async def _packet(self) -> dict[str, Any] | None:
        """The next packet; None at the end."""
        while True:
            try:
                data = self._socket.recv(PACKET)
            except BlockingIOError:
                if inline.get():
                    select.select([self._socket], [], [])
                else:
                    await anyio.wait_readable(self._socket)
            except OSError:
                return None
            else:
                packet: dict[str, Any] | None = json.loads(data) if data else None
                return packet

    # ---- runs

    async def run(self, request: RunRequest, known: Mapping[str, bytes]) -> RunOutcome:
        """One run, to its end. `known`: files that programs find in memory."""
        fds = []
        try:
            for content in (_payload(request, known), _bytes(request.stdin), b"", b"", b""):
                fds.append(_anonymous(content))  # noqa: PERF401  (those that were made are closed when one cannot be)
            self._count += 1
            run = _Run(self._count)
            packet = json.dumps({"run": run.number, "limits": attrs.asdict(request.limits)}).encode()
            self._runs[run.number] = run
            try:
                await self._send(packet, fds)
                await self._end_of(run, request.limits.wall_clock)
            finally:
                self._runs.pop(run.number, None)
            return _outcome(request.limits.output, *fds[2:])
        finally:
            for fd in fds:
                os.close(fd)

    async def _send(self, packet: bytes, fds: Sequence[int] = ()) -> None:
        while True:
            try:
                socket.send_fds(self._socket, [packet], fds)
            except BlockingIOError:
                if inline.get():
                    select.select([], [self._socket], [])
                else:
                    await anyio.wait_writable(self._socket)
            except OSError:
                self._lose()
                raise SandboxUnavailable("the local sandbox's launcher has died") from None
            else:
                return

    async def _end_of(self, run: _Run, wall_clock: float) -> None:
        """Waits until nothing of the run is left. Whoever is cancelled here ends it first."""
        if inline.get():
            while not run.ended.is_set():
                message = await self._packet()
                self._lose() if message is None else self._take(message)
            return
        try:
            with anyio.move_on_after(wall_clock + GRACE) as scope:
                await run.ended.wait()
            if scope.cancelled_caught:
                raise SandboxUnavailable(f"a run had not ended {GRACE:g} s after its wall clock of {wall_clock:g} s")
        except BaseException:
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(GRACE) as scope:
                    with suppress(SandboxUnavailable):
                        await self._send(json.dumps({"kill": run.number}).encode())
                    await run.ended.wait()
                if scope.cancelled_caught:
                    self.kill()
            raise


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _payload(request: RunRequest, known: Mapping[str, bytes]) -> bytes:
    """The program and its files, as `inside.program.read_payload` takes them. What is known there is left out."""
    contents = {MAIN: _bytes(request.code)}
    for path, content in request.files.items():
        data = _bytes(content) if isinstance(content, str) else content
        if known.get(path) != data:
            contents[path] = data
    header = {"language": request.language, "files": [(path, len(content)) for path, content in contents.items()]}
    return b"".join([json.dumps(header).encode(), b"\n", *contents.values()])


def _anonymous(content: bytes) -> int:
    """A file without a name that holds `content`, at its beginning."""
    fd = os.memfd_create("callsheet", os.MFD_CLOEXEC)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _outcome(most: int, stdout: int, stderr: int, report: int) -> RunOutcome:
    told = os.pread(report, PACKET, 0)
    if not told:
        raise SandboxUnavailable("a run was lost: its first process was killed from outside, or the launcher died")
    found = json.loads(told)
    if found.get("ending") == "stopped":
        raise SandboxUnavailable("a run was lost: its first process was told from outside to stop")
    if "failed" in found:
        raise SandboxUnavailable(f"a program could not be run: {found['failed']}")
    return RunOutcome(
        ending=found["ending"],
        exit_code=found.get("exit_code"),
        signal=found.get("signal"),
        stdout=os.pread(stdout, most, 0).decode("utf-8", "replace"),
        stderr=os.pread(stderr, most, 0).decode("utf-8", "replace"),
        usage=Usage(found["wall_clock"], found["cpu"], found["memory"]),
    )
