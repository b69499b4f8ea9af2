"""Judges one solution: starts it through the nursery, gives it inputs, compares what comes back. See the package's docstring for why it is made like this."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any, NoReturn

from . import nursery
from .lines import LOOK, Calls, Failed, Line, Remote
from .values import same_output, same_value

MOST_OUTPUT = 8 << 20
"""Bytes that a solution may print in one test."""
MOST_DETAIL = 400
PATIENCE = 5.0
"""Seconds for an answer of the nursery."""
FATAL = ("timed_out", "died", "malformed")
"""Outcomes after which the solution's process is of no use."""


class Clocks:
    """The budget of one test: CPU time of the processes that work on it, and the wall clock."""

    def __init__(self, limit: float, processes: Sequence[int]) -> None:
        self._limit = limit
        self._before = {process: _cpu_of(process) for process in processes}
        self._began = time.monotonic()

    def check(self) -> None:
        """Raises Failed when either has run out. By the wall clock a test has twice its CPU time and a second: a busy machine is no fault of its."""
        used = sum(_cpu_of(process) - before for process, before in self._before.items())
        if used > self._limit or time.monotonic() - self._began > 2 * self._limit + 1:
            raise Failed("timed_out", f"took more than {self._limit:g} s")


def _cpu_of(process: int) -> float:
    """CPU seconds of another process; 0 when it is gone. The clock's number is the C library's formula (clock_getcpuclockid)."""
    try:
        return time.clock_gettime((~process << 3) | 2)
    except OSError:
        return 0.0


class Referee:
    """Judges one solution."""

    def __init__(self, line: Line, task: dict[str, Any]) -> None:
        self._line = line
        self._task = task
        self._limit: float = task["seconds"]
        self._tolerance: float | None = task["tolerance"]
        self._deadline = time.monotonic() + task["budget"]
        self._process = 0
        self._calls: Calls | None = None
        line.send({"source": task["source"]})

    def verdict(self) -> list[list[str]]:
        """[outcome, detail] of each test."""
        results: list[list[str]] = []
        for test in self._task["tests"]:
            if time.monotonic() > self._deadline:
                results.append(["not_run", "the budget of the whole answer was used up"])
                continue
            failed = self._judge(test)
            if failed is None:
                results.append(["passed", ""])
                continue
            results.append([failed.outcome, failed.detail[:MOST_DETAIL]])
            if failed.outcome in FATAL:
                self._end_solution()
            if self._task["stop_early"]:
                break
        left = len(self._task["tests"]) - len(results)
        return results + [["not_run", "an earlier test failed"]] * left

    def _judge(self, test: dict[str, Any]) -> Failed | None:
        judges = {"stdin": self._judge_output, "call": self._judge_call, "assertion": self._judge_assertion}
        try:
            judges[test["kind"]](test)
        except Failed as failed:
            return failed
        except OSError as error:  # no process can be forked any more, the disk is full
            return Failed("died", f"the solution left no room to work in: {error}")
        return None

    # ---- processes of the solution

    def _start(self, descriptors: Sequence[int], cpu: float) -> int:
        try:
            self._line.send({"start": {"cpu": cpu, "output": MOST_OUTPUT}}, descriptors)
            return int(self._hear(None)["process"])
        except (EOFError, OSError):
            raise Failed("died", "the solution killed the process that started it") from None

    def _hear(self, clocks: Clocks | None) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE

        def check() -> None:
            if time.monotonic() > deadline:
                raise Failed("died", "the solution stopped the process that started it")

        message: dict[str, Any] = self._line.receive(wait=check if clocks is None else clocks.check)
        return message

    def _end_solution(self) -> None:
        """Ends all of the solution's processes."""
        self._process = 0
        if self._calls is not None:
            self._calls.line.end.close()
            self._calls = None
        try:
            self._line.send({"clean": True})
            while "clean" not in (message := self._hear(None)):
                pass
        except (EOFError, OSError, Failed):
            message = {"clean": False}
        if not message["clean"]:
            self._deadline = (
                0.0  # its processes cannot be ended, or it has stopped or killed who would: nothing else will be run
            )

    # ---- programs

    def _judge_output(self, test: dict[str, Any]) -> None:
        self._end_solution()
        with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            stdin.write(test["input"].encode("utf-8", "surrogateescape"))
            stdin.seek(0)
            process = self._start([stdin.fileno(), stdout.fileno(), stderr.fileno()], self._limit)
            try:
                status = self._hear(Clocks(self._limit, [process]))["status"]
            except EOFError:
                raise Failed("died", "the solution killed the process that started it") from None
            if status == -signal.SIGXCPU:
                raise Failed("timed_out", f"took more than {self._limit:g} s")
            if os.fstat(stdout.fileno()).st_size >= MOST_OUTPUT:
                raise Failed("wrong", f"printed more than {MOST_OUTPUT >> 20} MiB")
            if status:
                raise Failed("raised", _tail(stderr) or _ended(status))
            stdout.seek(0)
            printed = stdout.read().decode("utf-8", "replace")
        if not same_output(printed, test["expected"], self._tolerance):
            raise Failed("wrong", f"printed {_short(printed)}")

    # ---- functions

    def _connect(self) -> Calls:
        """The solution as a module, loaded."""
        if self._calls is not None and self._calls.over is None:
            return self._calls
        self._end_solution()
        ours, theirs = socket.socketpair()
        silence = os.open(os.devnull, os.O_RDWR)
        try:
            self._process = self._start([silence, silence, silence, theirs.fileno()], self._task["budget"])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(silence)
        self._calls = calls = Calls(Line(ours))
        try:
            raised = calls.line.receive(wait=Clocks(self._limit, [self._process]).check).get("raised")
        except Failed as failed:
            calls.over = failed
            raise
        except Exception:  # noqa: BLE001  (whatever a solution sends instead)
            raised = ["the solution ended while it was loaded"]
        if raised:
            calls.over = Failed("raised", ": ".join(map(str, raised)))
            raise calls.over
        return calls

    def _judge_call(self, test: dict[str, Any]) -> None:
        calls = self._connect()
        calls.wait = Clocks(self._limit, [self._process]).check
        try:
            value = calls.call(test["function"], test["arguments"], {})
        except Failed:
            raise
        except Exception as error:  # noqa: BLE001  (what the solution raised)
            raise Failed("raised", f"{type(error).__name__}: {error}") from None
        finally:
            calls.wait = None
        try:
            right = same_value(value, test["expected"], self._tolerance)
        except RecursionError:
            right = False
        if not right:
            raise Failed("wrong", f"returned {_shown(value)}")

    # ---- assertions: the test's own code, in a process of its own, calls the solution

    def _judge_assertion(self, test: dict[str, Any]) -> None:
        calls = self._connect()
        told, tell = os.pipe()
        judge = -1
        try:
            judge = os.fork()
            if judge == 0:
                _assert(calls, test, tell)
            os.close(tell)
            tell = -1
            clocks = Clocks(self._limit, [self._process, judge])
            while not select.select([told], [], [], LOOK)[0]:
                clocks.check()
            answer = os.read(told, 1 << 16)
        finally:
            os.close(told)
            if tell >= 0:
                os.close(tell)
            if judge > 0:
                os.kill(judge, signal.SIGKILL)
                os.waitpid(judge, 0)
        outcome, detail = json.loads(answer) if answer else ("wrong", "the test ended without a result")
        if outcome != "passed":
            raise Failed(outcome, detail)


def _assert(calls: Calls, test: dict[str, Any], tell: int) -> NoReturn:
    """Runs the test's code, which sees the solution's functions as its own."""
    outcome, detail = "wrong", "the test ended without a result"
    try:
        silence = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(silence, fd)
        names: dict[str, Any] = {"__name__": "test", "__builtins__": builtins}
        try:
            exec(compile(test["prelude"], "prelude.py", "exec", dont_inherit=True), names)  # noqa: S102  (the problem's own code)
            for name, target in test["exposed"].items():
                names[name] = Remote(calls, target)
            exec(compile(test["code"], "test.py", "exec", dont_inherit=True), names)  # noqa: S102
            outcome, detail = "passed", ""
        except Failed as failed:
            outcome, detail = failed.outcome, failed.detail
        except AssertionError as error:
            detail = str(error) or "the assertion does not hold"
        except BaseException as error:  # noqa: BLE001
            outcome, detail = "raised", f"{type(error).__name__}: {error}"
        if calls.over is not None:  # whatever the test made of it
            outcome, detail = calls.over.outcome, calls.over.detail
        os.write(tell, json.dumps([outcome, detail[:MOST_DETAIL]]).encode())
    finally:
        os._exit(0)


def _ended(status: int) -> str:
    if status > 0:
        return f"ended with exit code {status}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"


def _shown(value: Any) -> str:
    try:
        return _short(repr(value))
    except (ValueError, RecursionError):  # an integer of too many digits
        return f"a {type(value).__name__} that is too large to show"


def _short(text: str, most: int = 200) -> str:
    text = text.strip()
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def _tail(file: IO[bytes]) -> str:
    """The last lines, as far as they fit."""
    file.seek(max(0, os.fstat(file.fileno()).st_size - MOST_DETAIL))
    return file.read().decode("utf-8", "replace").strip()


def main() -> NoReturn:
    """Forks the nursery, then reads the task, judges, and prints the verdict."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        with contextlib.suppress(BaseException):
            nursery.serve(Line(theirs))
        os._exit(0)
    theirs.close()
    nursery.hide()
    task = json.loads(sys.stdin.buffer.read())
    results = Referee(Line(ours), task).verdict()
    sys.stdout.write(json.dumps({"nonce": task["nonce"], "results": results}) + "\n")
    sys.stdout.flush()
    os._exit(0)
