"""The timeline of a run as a file that Perfetto (ui.perfetto.dev) and chrome://tracing open.

Recording appends to a list; `flush`, called off the event loop, encodes and writes. The format is the JSON array of Chrome's Trace Event
Format, whose closing bracket is optional: a file that a killed process leaves behind is readable up to its last flush, and a resumed run goes on in it.
"""

from __future__ import annotations

import heapq
import json
import math
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

MICROSECONDS = 1e6
_Event = tuple[str, str, str, float, float, Mapping[str, object]]
"""Phase, track, name, start, end, arguments."""


class TraceWriter:
    """A `Tracer` that writes a file. Times are seconds of one clock; the file's time starts at 0 and, in a resumed run, where it left off.

    Spans of a track that overlap are drawn on lanes below one another. Recording is for one thread; `flush` may run in another.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._events: list[_Event] = []
        self._writing = threading.Lock()
        self._lanes: dict[str, list[tuple[float, int]]] = {}
        """For each track, a heap of the times at which its lanes become free."""
        self._threads: dict[tuple[str, int], int] = {}
        self._tracks: dict[str, int] = {}
        self._floor = 0.0
        self._origin: float | None = None
        """What is subtracted from times: set at the first flush."""

    def span(self, track: str, name: str, start: float, end: float, **args: object) -> None:
        """Something that took from `start` to `end` on `track`."""
        self._events.append(("X", track, name, start, end, args))

    def instant(self, track: str, name: str, at: float, **args: object) -> None:
        """Something that happened at one moment."""
        self._events.append(("i", track, name, at, at, args))

    def counter(self, name: str, at: float, **values: float) -> None:
        """A sampled quantity."""
        self._events.append(("C", name, name, at, at, values))

    def flush(self) -> None:
        """Writes what was recorded since the last flush. Raises OSError."""
        with self._writing:
            events, self._events = self._events, []
            if events:
                self._write(events)

    def close(self) -> None:
        """Flushes, and ends the file as strict JSON readers want it."""
        self.flush()
        with self._writing:
            if self._origin is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("\n]\n")
                self._origin = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, events: list[_Event]) -> None:
        events.sort(key=lambda event: event[3])
        lines = []
        if self._origin is None:
            end = _reopen(self.path)
            self._lanes.clear()
            self._threads.clear()
            self._origin, self._floor = events[0][3] - end, end
            lines.append(_metadata("process_name", 1, {"name": "run"}))
        for event in events:
            lines += self._encode(event)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join((",\n" if index or file.tell() > 2 else "") + line for index, line in enumerate(lines)))

    def _encode(self, event: _Event) -> Iterator[str]:
        phase, track, name, start, end, args = event
        origin = self._origin or 0.0
        began = max(
            self._floor, start - origin
        )  # what began before the first event flushed: a file's time has no minus
        body: dict[str, Any] = {"ph": phase, "name": name, "pid": 1, "ts": _micro(began)}
        if phase == "C":
            yield _dump(body | {"args": args})
            return
        lane = self._lane(track, start, end) if phase == "X" else 0
        thread = self._threads.get((track, lane))
        if thread is None:
            thread = self._threads[track, lane] = len(self._threads) + 1
            yield _metadata("thread_name", thread, {"name": track if lane == 0 else f"{track} ({lane + 1})"})
            yield _metadata("thread_sort_index", thread, {"sort_index": self._order(track) * 1000 + lane})
        body["tid"] = thread
        if phase == "X":
            body["dur"] = max(0.0, _micro(end - origin - began))
        else:
            body["s"] = "t"
        if args:
            body["args"] = args
        yield _dump(body)

    def _lane(self, track: str, start: float, end: float) -> int:
        """The lane of the track that has been free for longest, or a new one."""
        lanes = self._lanes.setdefault(track, [])
        if lanes and lanes[0][0] <= start:
            lane = lanes[0][1]
            heapq.heapreplace(lanes, (end, lane))
        else:
            lane = len(lanes)
            heapq.heappush(lanes, (end, lane))
        return lane

    def _order(self, track: str) -> int:
        """Tracks in the order of their first event."""
        return self._tracks.setdefault(track, len(self._tracks))


def _reopen(path: Path) -> float:
    """Makes the file end with a whole event, ready for the next. Returns the seconds at which its timeline ends."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        path.write_text("[\n", encoding="utf-8")
        return 0.0
    end = 0.0
    kept = [b"["]
    for line in text.splitlines()[1:]:
        try:
            event = json.loads(line.rstrip(b","))
        except ValueError:  # the closing bracket, or what a crash cut off
            break
        if not isinstance(event, dict):
            break
        end = max(end, (event.get("ts", 0.0) + event.get("dur", 0.0)) / MICROSECONDS)
        kept.append(line.rstrip(b","))
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(kept[0] + b"\n" + b",\n".join(kept[1:]))
    partial.replace(path)
    return end


def _micro(seconds: float) -> float:
    return round(seconds * MICROSECONDS, 3)


def _metadata(name: str, thread: int, args: Mapping[str, object]) -> str:
    return _dump({"ph": "M", "name": name, "pid": 1, "tid": thread, "args": args})


def _dump(event: Mapping[str, object]) -> str:
    try:
        return _encode(event)
    except (ValueError, TypeError):  # NaN or infinity, which JSON lacks, or a key that is no string
        return json.dumps(_finite(event), default=_plain)


def _plain(value: object) -> object:
    """numpy's numbers as numbers, everything else as text."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", 1) == 0 else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


_encode = json.JSONEncoder(allow_nan=False, default=_plain).encode
