"""The trace file: readable at any moment, whatever is recorded."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.runtime.instrumentation import Tracer
from engine.telemetry.trace import TraceWriter


def events(path: Path) -> list[dict[str, Any]]:
    """As Perfetto reads it: the closing bracket may be missing."""
    text = path.read_text()
    return json.loads(text if text.rstrip().endswith("]") else text + "]")  # type: ignore[no-any-return]


def real(path: Path) -> list[dict[str, Any]]:
    return [event for event in events(path) if event["ph"] != "M"]


def thread_names(path: Path) -> dict[int, str]:
    return {event["tid"]: event["args"]["name"] for event in events(path) if event["name"] == "thread_name"}


def test_everything_recorded_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with TraceWriter(path) as writer:
        tracer: Tracer = writer
        tracer.span("trainer", "step 0", 100.0, 101.5, groups=32)
        tracer.instant("trainer", "published", 101.5, version=1)
        tracer.counter("queue", 101.0, depth=3.0)
    assert json.loads(path.read_text()), "a closed file is strict JSON"
    assert real(path) == [
        {"ph": "X", "name": "step 0", "pid": 1, "ts": 0.0, "tid": 1, "dur": 1.5e6, "args": {"groups": 32}},
        {"ph": "C", "name": "queue", "pid": 1, "ts": 1e6, "args": {"depth": 3.0}},
        {"ph": "i", "name": "published", "pid": 1, "ts": 1.5e6, "tid": 1, "s": "t", "args": {"version": 1}},
    ]
    assert thread_names(path) == {1: "trainer"}


def test_nothing_is_written_before_a_flush_and_all_after(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    writer = TraceWriter(path)
    for index in range(5):
        writer.span("a", str(index), index, index + 0.5)
        assert len(real(path)) == index if index else not path.exists()
        writer.flush()
    assert [event["name"] for event in real(path)] == list("01234")  # never closed, as after a crash


def test_spans_that_overlap_get_lanes_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with TraceWriter(path) as writer:
        writer.span("rollouts", "long", 0.0, 10.0)
        writer.span("rollouts", "first", 1.0, 2.0)
        writer.span("rollouts", "second", 2.0, 3.0)
        writer.flush()
        writer.span("rollouts", "later", 4.0, 12.0)
    lanes = {event["name"]: thread_names(path)[event["tid"]] for event in real(path)}
    assert lanes == {"long": "rollouts", "first": "rollouts (2)", "second": "rollouts (2)", "later": "rollouts (2)"}


def test_a_span_that_began_before_the_first_flush_begins_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with TraceWriter(path) as writer:
        writer.span("trainer", "step 0", 10.0, 11.0)
        writer.flush()
        writer.span("actors", "trainer", 9.0, 13.0)
    assert [(event["name"], event["ts"], event["dur"]) for event in real(path)] == [
        ("step 0", 0.0, 1e6),
        ("trainer", 0.0, 3e6),
    ]


def test_arguments_that_json_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with TraceWriter(path) as writer:
        writer.instant(
            "a", "odd", 0.0, nan=math.nan, array=np.float32(0.5), path=Path("x"), nested={(1, 2): [math.inf]}
        )
    assert real(path)[0]["args"] == {"nan": "nan", "array": 0.5, "path": "x", "nested": {"(1, 2)": ["inf"]}}


@pytest.mark.parametrize("torn", ["", '{"ph": "X", "name": "to', "]\n", ","])
def test_a_resumed_run_goes_on_in_the_file(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "trace.json"
    writer = TraceWriter(path)
    writer.span("a", "before", 1000.0, 1002.0)
    writer.flush()
    with path.open("a") as file:
        file.write(torn and f"\n{torn}")
    with TraceWriter(path) as resumed:
        resumed.span("a", "after", 5.0, 6.0)  # another process, another clock
    assert [(event["name"], event["ts"]) for event in real(path)] == [("before", 0.0), ("after", 2e6)]


def test_recording_while_another_thread_flushes_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    writer = TraceWriter(path)
    done = threading.Event()

    def flush() -> None:
        while not done.is_set():
            writer.flush()

    thread = threading.Thread(target=flush)
    thread.start()
    for index in range(20_000):
        writer.span("a", str(index), index, index + 1)
    done.set()
    thread.join()
    writer.close()
    assert sorted(int(event["name"]) for event in real(path)) == list(range(20_000))


def test_nothing_recorded_leaves_no_file(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "trace.json"):
        pass
    assert not (tmp_path / "trace.json").exists()
