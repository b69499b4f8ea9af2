"""Grading answers of mathematics: pairs a second, the slowest answers, and what the event loop notices of pathological ones.

    python -m benchmarks.grading                                         # this project, beside math-verify called directly
    python -m benchmarks.grading --peer-python PEER/bin/python           # and tinker-cookbook's sympy grader

Three tables. Simple pairs (whole numbers, fractions, decimals, percents, tuples, sets, roots, polynomials, equations, units; half of them wrong), all sides the same
ones, each in a process of its own, in turn, the best of the repetitions. Then 1,000 answers of which 5 % are pathological, graded by this project's `MathGrader` with workers, 64 at a
time: how long the slowest took, and the event loop's largest gap (by the clock, and as CPU time of its thread, which other work on the machine does not lengthen). Then each pathological answer by itself beside its budget.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio

from benchmarks.measuring import save, show

PEER = Path(__file__).parent / "peers" / "grading_tinker_cookbook.py"
Pair = tuple[str, str, bool]
PATHOLOGICAL = (
    "9**9**9",
    "999999999!",
    "2**3**20",
    "(x+y+1)**80",
    "((x+y)**99)**9",
    "9^{9^{9^9}}",
    "9" * 100_000,
    "{" * 50_000,
    "\\frac{" * 300,
    "\\input{/etc/passwd}",
    "__import__('os').system('sleep 60')",
    "\\prod_{k=1}^{99999999} k",
    "\\int (x+y+1)^{80} dx",
)
"""The last two are beyond everything but the budget."""


def _simple(draw: random.Random) -> Pair:
    return draw.choice(_KINDS)(draw, draw.random() < 0.5)


def _whole(draw: random.Random, equal: bool) -> Pair:
    n = draw.randint(-999, 99_999)
    return str(n), f"{n if equal else n + draw.randint(1, 9):,}", equal


def _fraction(draw: random.Random, equal: bool) -> Pair:
    top, bottom, times = draw.randint(1, 99), draw.randint(2, 99), draw.randint(2, 6)
    return f"\\frac{{{top}}}{{{bottom}}}", f"{top * times}/{bottom * times + (not equal)}", equal


def _decimal(draw: random.Random, equal: bool) -> Pair:
    n = draw.randint(1, 9999)
    return f"{n / 100}", f"\\frac{{{n}}}{{{100 if equal else 101}}}", equal


def _percent(draw: random.Random, equal: bool) -> Pair:
    n = draw.randint(1, 200)
    return f"{n}\\%", f"{(n if equal else n + 1) / 100}", equal


def _pair(draw: random.Random, equal: bool) -> Pair:
    a, b = draw.randint(-50, 50), draw.randint(-50, 50)
    return f"({a},{b})", f"({a}, {b if equal else b + 1})", equal


def _set(draw: random.Random, equal: bool) -> Pair:
    items = draw.sample(range(-50, 50), 3)
    other = [*items]
    draw.shuffle(other)
    if not equal:
        other[0] += 100
    return f"\\{{{', '.join(map(str, items))}\\}}", f"\\{{{', '.join(map(str, other))}\\}}", equal


def _root(draw: random.Random, equal: bool) -> Pair:
    a, b = draw.randint(2, 20), draw.randint(2, 30)
    return f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b + (not equal)}}}", equal


def _polynomial(draw: random.Random, equal: bool) -> Pair:
    a, b = draw.randint(2, 20), draw.randint(2, 30)
    return f"x^2+{a}x-{b}", f"-{b if equal else b + 1}+x^2+{a}x", equal


def _equation(draw: random.Random, equal: bool) -> Pair:
    a, b, c = draw.randint(2, 20), draw.randint(2, 20), draw.randint(1, 50)
    return f"{a}x+{b}y={c}", f"{b}y={c if equal else c + 1}-{a}x", equal


def _unit(draw: random.Random, equal: bool) -> Pair:
    n = draw.randint(1, 99)
    return f"{n}\\text{{ cm}}", f"{n if equal else n + 1}", equal


_KINDS: Sequence[Callable[[random.Random, bool], Pair]] = (
    _whole, _whole, _fraction, _fraction, _decimal, _percent, _pair, _set, _root, _polynomial, _equation, _unit,
)  # fmt: skip


def simple_pairs(count: int, seed: int = 0) -> list[Pair]:
    """The same for every side."""
    draw = random.Random(seed)
    return [_simple(draw) for _ in range(count)]


async def _grade_all(pairs: Sequence[Pair], workers: int, budget: float) -> dict[str, Any]:
    """This project: 64 answers at a time, in boxes, as a rollout's members would send them."""
    from envs.grading import open_math_grader

    seconds: list[float] = []
    wrong = {"false_negatives": 0, "false_positives": 0}
    async with open_math_grader(workers=workers, budget=budget) as grader:
        waiting = iter(pairs)
        largest, computing, done = 0.0, 0.0, anyio.Event()

        async def grade() -> None:
            for reference, answer, equal in waiting:
                start = time.perf_counter()
                grade = await grader.grade(f"So it is \\boxed{{{answer}}}.", reference)
                seconds.append(time.perf_counter() - start)
                wrong["false_negatives"] += equal and not grade.score
                wrong["false_positives"] += bool(grade.score and not equal)
                await anyio.lowlevel.checkpoint()

        async def tick() -> None:
            nonlocal largest, computing
            last, used = time.perf_counter(), time.thread_time()
            while not done.is_set():
                await anyio.sleep(0.001)
                now, cpu_now = time.perf_counter(), time.thread_time()
                largest, computing = max(largest, now - last - 0.001), max(computing, cpu_now - used)
                last, used = now, cpu_now

        async with anyio.create_task_group() as ticking:
            ticking.start_soon(tick)
            began, before = time.perf_counter(), time.process_time()
            async with anyio.create_task_group() as tasks:
                for _ in range(64):
                    tasks.start_soon(grade)
            took, used = time.perf_counter() - began, time.process_time() - before
            done.set()
        counts = grader.counts
    seconds.sort()
    return {
        "seconds": took,
        "cpu_s": used,
        "p50_ms": 1000 * seconds[len(seconds) // 2],
        "p99_ms": 1000 * seconds[int(0.99 * len(seconds))],
        "worst_s": seconds[-1],
        "gap_ms": 1000 * largest,
        "gap_cpu_ms": 1000 * computing,
        "at_once": counts.quick,
        "over_budget": counts.over_budget,
        **wrong,
    }


def _math_verify(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Called directly, as its documentation shows."""
    import logging

    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    verify(parse("$\\frac{2}{4}+x$"), parse("$x+0.5$"))
    missed, wrong, began, before = 0, 0, time.perf_counter(), time.process_time()
    for reference, answer, equal in pairs:
        found = verify(parse(f"${reference}$"), parse(f"${answer}$"))
        missed += equal and not found
        wrong += found and not equal
    return {
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - before,
        "false_negatives": missed,
        "false_positives": wrong,
    }


async def _each_alone(budget: float) -> list[tuple[str, float, str]]:
    """Every pathological answer by itself, with a worker that is ready: seconds, and what was said of it."""
    from engine.runtime import WorkerPool
    from envs.grading import PRELOAD, MathGrader

    found = []
    async with WorkerPool(1, spares=1, preload=PRELOAD) as pool:
        grader = MathGrader(pool, budget=budget)
        for answer in PATHOLOGICAL:
            await grader.grade(r"\boxed{\sin^2 x + \cos^2 x}", "1")  # waits until there is a worker
            began = time.perf_counter()
            grade = await grader.grade(f"\\boxed{{{answer}}}", "5")
            found.append((answer, time.perf_counter() - began, grade.reason.rpartition(": ")[2] or grade.reason))
    return found


def child(case: dict[str, Any]) -> Any:
    """One measurement, in this process."""
    pairs = [(str(reference), str(answer), bool(equal)) for reference, answer, equal in case.get("pairs", ())]
    if case["side"] == "math-verify":
        return _math_verify(pairs)
    if case["side"] == "alone":
        return anyio.run(_each_alone, case["budget"])
    return anyio.run(_grade_all, pairs, case["workers"], case["budget"])


def run_child(case: dict[str, Any]) -> Any:
    """One measurement, in a process of its own."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(case, file)
        file.flush()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.grading", "--child", file.name],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode or not done.stdout.strip():
        raise SystemExit(f"{case['side']} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_peer(python: str, pairs: Sequence[Pair]) -> Any:
    """tinker-cookbook's grader, in a process of its own."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(pairs, file)
        file.flush()
        done = subprocess.run([python, str(PEER), file.name], capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        raise SystemExit(f"the peer failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Measures, prints, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6000, help="simple pairs")
    parser.add_argument("--slow-pairs", type=int, default=600, help="of those, how many the other graders get")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--budget", type=float, default=1.0, help="seconds that an answer may take in a worker")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--peer-python", help="python of an environment with tinker-cookbook")
    parser.add_argument("--json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(json.loads(Path(options.child).read_text()))))
        return
    pairs = simple_pairs(options.pairs)
    few = pairs[: options.slow_pairs]
    ours = {"side": "callsheet", "workers": options.workers, "budget": options.budget}
    simple: dict[str, list[Any]] = {"callsheet": [], "math-verify": []}
    for _ in range(options.repetitions):
        simple["callsheet"].append(run_child({**ours, "pairs": pairs}))
        simple["math-verify"].append(run_child({"side": "math-verify", "pairs": few}))
        if options.peer_python:
            simple.setdefault("tinker-cookbook", []).append(run_peer(options.peer_python, few))
    sizes = {"callsheet": len(pairs)}
    _show_simple(simple, {side: sizes.get(side, len(few)) for side in simple})
    draw = random.Random(1)
    thousand: list[Pair] = [
        ("5", draw.choice(PATHOLOGICAL), False) if n % 20 == 0 else pair
        for n, pair in enumerate(simple_pairs(1000, seed=2))
    ]
    mixed = run_child({**ours, "pairs": thousand})
    _show_mixed(mixed, options.budget)
    alone = run_child({**ours, "side": "alone"})
    _show_alone(alone, options.budget)
    save(options.json, {"simple": simple, "mixed": mixed, "alone": alone})


def _show_simple(simple: dict[str, list[Any]], sizes: dict[str, int]) -> None:
    rows = []
    for side, runs in simple.items():
        best = min(runs, key=lambda run: run["seconds"])
        rows.append(
            [
                side,
                str(sizes[side]),
                f"{sizes[side] / best['seconds']:.0f}",
                f"{1e6 * min(run['cpu_s'] for run in runs) / sizes[side]:.0f}",
                f"{best['p99_ms']:.2f} ms" if "p99_ms" in best else "",
                str(best["false_negatives"]),
                str(best["false_positives"]),
            ]
        )
    columns = ["simple pairs", "pairs", "pairs/s", "CPU µs a pair", "p99, 64 at a time", "missed", "wrongly taken"]
    show("simple pairs: the best of the repetitions", columns, rows)


def _show_mixed(mixed: dict[str, Any], budget: float) -> None:
    rows = [
        [
            f"{mixed['seconds']:.1f} s",
            f"{mixed['p50_ms']:.2f} ms",
            f"{mixed['p99_ms']:.0f} ms",
            f"{mixed['gap_ms']:.1f} ms",
            f"{mixed['gap_cpu_ms']:.1f} ms",
            str(mixed["at_once"]),
            str(mixed["over_budget"]),
            str(mixed["false_negatives"] + mixed["false_positives"]),
        ]
    ]
    columns = [
        "all in",
        "p50",
        "p99 (waiting for a worker included)",
        "event loop's largest gap",
        "of that its own CPU time",
        "decided at once",
        "over budget",
        "wrong verdicts",
    ]
    show(f"1,000 answers, 5 % pathological, budget {budget:g} s", columns, rows)


def _show_alone(alone: list[Any], budget: float) -> None:
    rows = [
        [answer[:40], f"{seconds:.4f} s", f"{seconds / budget:.0%}", reason[:70]] for answer, seconds, reason in alone
    ]
    show(f"pathological answers, budget {budget:g} s", ["answer", "took", "of its budget", "said of it"], rows)


if __name__ == "__main__":
    main()
