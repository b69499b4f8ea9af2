"""The queue of submissions: order, holding, failures, closing; in the calling thread and in the worker's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends import BackendError
from engine.backends.tinker.submissions import RELEASE, Inline, Operation, Runs, Submissions, worker_thread

RUNS: list[Callable[[], Runs]] = [Inline, worker_thread]


def operation(log: list[str], name: str, held: list[Future[Any]], later: list[Future[Any]]) -> Operation[str]:
    log.append(f"{name} begins")
    for future in held:
        yield future
        log.append(f"{name} goes on")
    yield RELEASE
    for future in later:
        yield future
    return name


@pytest.mark.parametrize("runs", RUNS)
def test_an_operation_holds_until_it_releases(runs: Callable[[], Runs]) -> None:
    submissions, log = Submissions(runs()), []
    answer, late = Future[Any](), Future[Any]()
    first = submissions.submit(operation(log, "first", [answer], [late]))
    second = submissions.submit(operation(log, "second", [], []))
    aside = submissions.aside(operation(log, "aside", [], []))
    assert aside.result(5) == "aside"
    assert not second.done()
    answer.set_result(None)
    assert second.result(5) == "second"
    assert not first.done()
    late.set_result(None)
    assert first.result(5) == "first"
    assert [entry for entry in log if not entry.startswith("aside")] == [
        "first begins",
        "first goes on",
        "second begins",
    ]
    assert submissions.unfinished == 0
    submissions.close()


@pytest.mark.parametrize("runs", RUNS)
def test_failures_are_their_own(runs: Callable[[], Runs]) -> None:
    """Thrown in where they are awaited; an operation that ends, however, lets the next one begin."""
    submissions, log = Submissions(runs()), []
    failed = Future[Any]()
    failed.set_exception(ValueError("no"))
    cancelled = Future[Any]()
    cancelled.cancel()

    def caught() -> Operation[str]:
        try:
            yield failed
        except ValueError as error:
            return f"caught {error}"
        return "nothing"

    outcomes = [
        submissions.submit(operation(log, "first", [failed], [])),
        submissions.submit(operation(log, "second", [cancelled], [])),
        submissions.submit(caught()),
        submissions.submit(operation(log, "last", [], [])),
    ]
    assert isinstance(outcomes[0].exception(5), ValueError)
    assert outcomes[1].exception(5) is not None
    assert outcomes[2].result(5) == "caught no"
    assert outcomes[3].result(5) == "last"
    submissions.close()


@pytest.mark.parametrize("runs", RUNS)
def test_closing(runs: Callable[[], Runs]) -> None:
    submissions, log = Submissions(runs()), []
    waits = Future[Any]()
    begun = threading.Event()

    def waiting() -> Operation[None]:
        begun.set()
        yield waits

    under_way = submissions.submit(waiting())
    queued = submissions.submit(operation(log, "queued", [], []))
    assert begun.wait(5)
    submissions.close()
    for future in (under_way, queued):
        assert isinstance(future.exception(5), BackendError)
    assert waits.cancelled()
    assert log == []
    with pytest.raises(BackendError, match="closed"):
        submissions.submit(operation(log, "late", [], []))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("callsheet-tinker")]


@settings(max_examples=60, deadline=None)
@given(
    holds=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_begins_are_in_order_whatever_is_answered_when(holds: list[tuple[int, int]], order: Any) -> None:
    submissions, log = Submissions(Inline()), []
    pending: list[Future[Any]] = []
    results = []
    for index, (held, later) in enumerate(holds):
        mine = [Future[Any]() for _ in range(held + later)]
        pending += mine
        results.append(submissions.submit(operation(log, str(index), mine[:held], mine[held:])))
    order.shuffle(pending)
    for future in pending:
        future.set_result(None)
    assert [result.result(0) for result in results] == [str(index) for index in range(len(holds))]
    begins = [int(entry.split()[0]) for entry in log if entry.endswith("begins")]
    assert begins == sorted(begins)
    for index, (held, _) in enumerate(holds):
        # Nothing of a later operation happens before the last thing that an earlier one held the queue for.
        last = max(place for place, entry in enumerate(log) if entry.startswith(f"{index} "))
        later_begins = [place for place, entry in enumerate(log) if entry == f"{index + 1} begins"]
        assert not later_begins or later_begins[0] > last
        assert log.count(f"{index} goes on") == held
    submissions.close()
