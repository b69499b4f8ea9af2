"""One worker process, seen from its parent: its socket, its life and its end."""

from __future__ import annotations

import math
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from engine.runtime import worker as program
from engine.runtime.worker import HEADER, Failure, describe, encode

CHUNK = 1 << 16
"""Bytes read at once, unless more are known to come."""
LARGE = 1 << 20
"""Bytes from which a reply is unpickled in a thread: below, that takes less than a few milliseconds."""
HANGUP_GRACE = 1.0
"""Seconds an idle worker has for its own exit handlers once its socket is closed."""


class Lost(Exception):
    """The worker's end of the socket is closed: it is dead or dying."""


class WorkerHandle:
    """Starts a process. Must be made in a thread that outlives it (the event loop's): Linux ties a child to the thread that made it.

    Then `setup`; after that one conversation at a time. `kill` and `hang_up` return at once; `reap` waits for the end.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(  # noqa: S603  (our own interpreter and file)
                [sys.executable, "-P", str(Path(program.__file__)), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what jobs print belongs beside our own messages, not into our output
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self._socket.setblocking(False)
        self._received = bytearray()
        self._over = False
        self.loaded: set[str] = set()
        """Functions that the worker has found."""

    @property
    def usable(self) -> bool:
        """It has not been killed, and has not been seen dead."""
        return not self._over

    async def setup(self, modules: Sequence[str], limit: float) -> Failure | None:
        """Waits until the worker runs and has imported `modules`. Raises TimeoutError, Lost."""
        return await self._ask(("setup", os.getpid(), sys.path, tuple(modules)), limit)

    async def load(self, function: str, limit: float) -> Failure | None:
        """Lets the worker import a function. Raises TimeoutError, Lost."""
        main = None
        if function.startswith("__main__:"):
            from multiprocessing import spawn

            main = spawn.get_preparation_data("worker")
            main.pop("authkey", None)  # a secret of multiprocessing's own processes
        failure = await self._ask(("load", function, sys.path, main), limit)
        if failure is None:
            self.loaded.add(function)
        return failure

    async def _ask(self, message: tuple[Any, ...], limit: float) -> Failure | None:
        await self.send(encode(message))
        kind, content = await self.receive(anyio.current_time() + limit)
        return Failure(*content) if kind == "failed" else None

    async def send(self, frame: bytes) -> None:
        """Raises Lost."""
        rest = memoryview(frame)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                await anyio.wait_writable(self._socket)
            except OSError:
                self._over = True
                raise Lost from None

    async def receive(self, deadline: float) -> tuple[str, Any]:
        """The next reply. Raises Lost, or TimeoutError at `deadline` (anyio's clock)."""
        await self._fill(HEADER.size, deadline)
        (length,) = HEADER.unpack_from(self._received)
        end = HEADER.size + length
        await self._fill(end, deadline)
        frame, self._received = self._received, self._received[end:]
        if length >= LARGE:
            return await anyio.to_thread.run_sync(_decode, frame)
        return _decode(frame)

    async def _fill(self, size: int, deadline: float) -> None:
        while len(self._received) < size:
            if deadline == math.inf:
                await anyio.wait_readable(self._socket)
            else:
                with anyio.CancelScope(deadline=deadline):
                    await anyio.wait_readable(self._socket)
            try:
                data = self._socket.recv(CHUNK if size - len(self._received) <= CHUNK else LARGE)
            except BlockingIOError:  # asked after the deadline too: a reply that waited for a late event loop counts
                raise TimeoutError from None
            except OSError:
                data = b""
            if not data:
                self._over = True
                raise Lost
            self._received += data

    def hung_up(self) -> bool:
        """Whether an idle worker has died."""
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def hang_up(self) -> None:
        """Tells an idle worker to exit."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        """SIGKILL to the worker and the processes that its job has started."""
        self._over = True
        if self._process.returncode is None:  # not reaped yet, so the number is still ours
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def reap(self) -> str:
        """Waits for the end of a worker that was killed or hung up, or has died. Says how it ended."""
        with anyio.CancelScope(shield=True):
            if not self._over:
                with anyio.move_on_after(HANGUP_GRACE):
                    await self._ended()
            self.kill()  # what its jobs left running, too
            await self._ended()
        return _describe_end(self._process.wait())

    async def _ended(self) -> None:
        """Waits until the process has ended. Where the system allows it, without reaping: its process group keeps its number until then."""
        if self._process.returncode is not None:
            return
        if not hasattr(os, "pidfd_open"):
            await anyio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)
            return
        fd = os.pidfd_open(self._process.pid)
        try:
            await anyio.wait_readable(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Frees the socket."""
        self._socket.close()


def _decode(frame: bytearray) -> tuple[str, Any]:
    """The message in a frame, whatever follows it."""
    try:
        return pickle.loads(memoryview(frame)[HEADER.size :])  # type: ignore[no-any-return]  # noqa: S301  (from our own child)
    except Exception as error:  # noqa: BLE001  (whatever a class does when it is unpickled)
        error.add_note("the job's result could be sent, but not be put together again here")
        return "failed", describe(error)


def _describe_end(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    name = signal.Signals(-code).name
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"
