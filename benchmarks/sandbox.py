"""What running a program in the local sandbox costs, beside a plain process without any isolation.

    python -m benchmarks.sandbox
    python -m benchmarks.sandbox --runs 400 --json sandbox.json

Each row: milliseconds one after another (median), runs a second with one at a time for each CPU, and CPU milliseconds of all processes together. The peer starts
`python -I -S main.py` and reads its output, which is the least that a fresh interpreter costs; what a grader that starts one for each test pays.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

import anyio
import anyio.to_thread

from benchmarks.measuring import save, show
from engine.runtime.processes import usable_cpus
from envs.code import JUDGING, CallTest, CodeGrader, CodeProblem, OutputTest
from envs.sandbox import RunRequest
from envs.sandbox.local import LocalSandbox

HELLO = "print(input())\n"
ADD = "def add(a, b): return a + b\n"
SUM = "print(sum(map(int, input().split())))\n"
Run = Callable[[], Awaitable[Any]]


def _cpu() -> float:
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total


async def _times(run: Run, runs: int) -> dict[str, float]:
    spans = []
    for _ in range(runs):
        began = time.perf_counter()
        await run()
        spans.append(time.perf_counter() - began)

    async def share() -> None:
        for _ in range(runs // usable_cpus()):
            await run()

    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(usable_cpus()):
            group.start_soon(share)
    together = time.perf_counter() - began
    done = runs // usable_cpus() * usable_cpus()
    return {"ms": median(spans) * 1e3, "per_second": done / together, "runs": runs + done}


def _written(directory: str) -> str:
    path = Path(directory, "main.py")
    path.write_text(HELLO, encoding="utf-8")
    return str(path)


async def _plain(runs: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-I", "-S", _written(directory)]

        def start() -> None:
            subprocess.run(command, input=b"x\n", capture_output=True, check=True)

        before = _cpu()
        found = await _times(lambda: anyio.to_thread.run_sync(start), runs)
        return found | {"cpu_ms": (_cpu() - before) / found["runs"] * 1e3}


async def _sandboxed(make: Callable[[LocalSandbox], Run], runs: int) -> dict[str, float]:
    before = _cpu()
    async with LocalSandbox(library=[JUDGING], require=()):
        pass
    opening = _cpu() - before
    before = _cpu()
    async with LocalSandbox(library=[JUDGING], require=()) as sandbox:
        found = await _times(make(sandbox), runs)
    return found | {"cpu_ms": (_cpu() - before - opening) / found["runs"] * 1e3}


def _program(sandbox: LocalSandbox) -> Run:
    return lambda: sandbox.run(RunRequest(HELLO, stdin="x\n"))


def _grading(problem: CodeProblem, code: str) -> Callable[[LocalSandbox], Run]:
    return lambda sandbox: lambda: CodeGrader(sandbox).grade(problem, code)


async def measure(runs: int) -> dict[str, dict[str, float]]:
    """Every row."""
    calls = CodeProblem("calls", "", [CallTest("add", [n, 1], n + 1) for n in range(16)])
    outputs = CodeProblem("outputs", "", [OutputTest(f"{n} 1\n", f"{n + 1}\n") for n in range(16)])
    return {
        "plain process (peer)": await _plain(runs),
        "sandbox, one program": await _sandboxed(_program, runs),
        "graded: 16 calls": await _sandboxed(_grading(calls, ADD), runs // 2),
        "graded: 16 programs on stdin": await _sandboxed(_grading(outputs, SUM), runs // 4),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=120)
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    results = anyio.run(measure, options.runs)
    rows = [
        (name, f"{row['ms']:.1f}", f"{row['per_second']:.0f}", f"{row['cpu_ms']:.1f}") for name, row in results.items()
    ]
    show("programs", ["", "ms, one by one", "a second", "CPU ms"], rows)
    save(options.json, json.loads(json.dumps(results)))


if __name__ == "__main__":
    main()
