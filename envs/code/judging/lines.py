"""Messages between processes, and calls made through them."""

from __future__ import annotations

import builtins
import json
import select
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .values import Reference, Unsendable, decode, encode

MOST_VALUE = 8 << 20
"""Bytes of one call's arguments or result."""
LOOK = 0.02
"""Seconds between two looks at the clocks."""
HEADER = struct.Struct("<I")


class Failed(Exception):
    """A test that the solution did not pass."""

    def __init__(self, outcome: str, detail: str) -> None:
        super().__init__(outcome, detail)
        self.outcome = outcome
        self.detail = detail


class Line:
    """Messages over a stream socket: 4 bytes of length, then JSON; descriptors may come along."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.descriptors: list[int] = []
        """Those that have come and have not been taken."""
        self._received = bytearray()

    def send(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        """Blocks until it is on its way."""
        body = json.dumps(message).encode()
        frame = HEADER.pack(len(body)) + body
        if descriptors:
            sent = socket.send_fds(self.end, [frame], descriptors)
            frame = frame[sent:]
        self.end.sendall(frame)

    def _end(self) -> int:
        """Where the first message ends, as far as that is known."""
        if len(self._received) < HEADER.size:
            return HEADER.size
        return HEADER.size + int(HEADER.unpack_from(self._received)[0])

    def has_message(self) -> bool:
        """Whether a whole message has come already."""
        return len(self._received) >= max(HEADER.size + 1, self._end())

    def receive(self, *, most: int = MOST_VALUE, wait: Callable[[], None] | None = None) -> Any:
        """The next message. `wait()` is called now and then while there is none. EOFError at the end; ValueError for what is no message."""
        while True:
            end = self._end()
            if end > most:
                raise ValueError(f"a value of more than {most >> 20} MiB")
            if self.has_message():
                body = bytes(self._received[HEADER.size : end])
                del self._received[:end]
                return json.loads(body)
            while wait is not None and not select.select([self.end], [], [], LOOK)[0]:
                wait()
            data, descriptors, _, _ = socket.recv_fds(self.end, 1 << 16, 8)
            self.descriptors += descriptors
            if not data:
                raise EOFError
            self._received += data


class Calls:
    """The solution's functions, called from the referee's side."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.wait: Callable[[], None] | None = None
        self.over: Failed | None = None
        """Why the solution answers no more."""

    def call(self, target: str | int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Raises what the solution raised, as a built-in exception, or Failed where it gave no answer."""
        message = {"target": target, "args": encode(list(args)), "kwargs": encode(dict(kwargs))}
        try:
            self.line.send(message)
            answer = self.line.receive(wait=self.wait)
            if "value" in answer:
                return decode(answer["value"], lambda number: Remote(self, number))
            kind, text = answer["raised"]
        except (EOFError, ConnectionError):
            self.over = Failed("died", "the solution ended in the middle of a call")
        except Failed as failed:
            self.over = failed
        except Exception as error:  # noqa: BLE001  (whatever is wrong with what a solution sends)
            self.over = Failed("malformed", f"the answer is no plain data: {error}")
        else:
            raise _builtin(str(kind), str(text))
        raise self.over


def _builtin(kind: str, text: str) -> Exception:
    known = getattr(builtins, kind, None)
    if isinstance(known, type) and issubclass(known, Exception):
        try:
            return known(text)
        except TypeError:  # UnicodeDecodeError takes five arguments
            pass
    return RuntimeError(f"{kind}: {text}")


class Remote(Reference):
    """A function, a class or an object of the solution's that can be called and passed back to it."""

    def __init__(self, calls: Calls, target: str | int) -> None:
        super().__init__(target if isinstance(target, int) else -1)
        self._calls = calls
        self._target = target

    def __repr__(self) -> str:
        return "<an object that is no plain data>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls it, in the solution's process."""
        return self._calls.call(self._target, args, kwargs)


__all__ = ["LOOK", "Calls", "Failed", "Line", "Remote", "Unsendable"]
