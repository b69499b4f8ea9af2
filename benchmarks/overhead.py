"""What the engine itself costs: RL steps on a backend that answers at once.

    python -m benchmarks.overhead                                        # this project
    python -m benchmarks.overhead --peer-python peer/bin/python          # beside tinker-cookbook, alternating, in one run

CPU microseconds of the whole process (simulated backend, environments and run directory included, default settings, garbage collector on) per
sample, which with one turn is an environment step. Each run is a process of its own; a figure is the median over its steps without the first, and
over repeats. Memory is the process's peak above what it had before the run. The peer does the same groups, samples, tokens and steps.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio

from actors.checkpoint import RunSettings
from actors.programs import RLSettings, train_rl
from actors.schedule import Schedule
from benchmarks import measuring
from benchmarks.workload import Workload
from benchmarks.workload_envs import WorkloadDataset
from engine.backends.simulated import Constant, SamplerModel, SimulatedBackend
from engine.backends.values import AdamParams, SamplingParams
from envs.rollout import RolloutSettings

IDLE_SECONDS = 3.0
"""How long the idle engine is watched."""


class Marked(SimulatedBackend):
    """Notes the CPU time at every optimizer step."""

    def __init__(self, sampler: SamplerModel | None = None) -> None:
        super().__init__(sampler, track_weights=False)
        self.marks: list[float] = []

    def optim_step(self, params: AdamParams) -> Any:
        """As ever."""
        self.marks.append(time.process_time())
        return super().optim_step(params)


async def _train(backend: SimulatedBackend, work: Workload, case: dict[str, Any], directory: Path) -> None:
    schedule = Schedule(
        work.groups, minibatches=case["minibatches"], max_staleness=case["staleness"], bound=case.get("bound", "hard")
    )
    settings = RLSettings(
        rollout=RolloutSettings(sampling=SamplingParams(max_tokens=work.max_tokens)),
        shuffle=False,
        drop_constant_groups=False,
    )
    result = await train_rl(
        backend,
        groups=WorkloadDataset(work, case["steps"]),
        steps=case["steps"],
        schedule=schedule,
        settings=settings,
        run=RunSettings(directory),
    )
    if result.version != case["steps"]:
        raise SystemExit(f"trained {result.version} of {case['steps']} steps")


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """One run in this process."""
    work = Workload(0, case["groups"], case["size"], case["turns"])
    backend = Marked()
    if not case["gc"]:
        gc.disable()
    before = _peak_mb()
    with tempfile.TemporaryDirectory() as directory:
        anyio.run(_train, backend, work, case, Path(directory) / "run", backend=case["loop"])
    per_step = work.groups * work.size * work.turns
    cpu = [1e6 * (after - first) / per_step for first, after in itertools.pairwise(backend.marks)]
    return {**case, "cpu_us": cpu, "before_mb": before, "peak_mb": _peak_mb()}


def run_idle(case: dict[str, Any]) -> dict[str, Any]:
    """CPU share while every request waits for the model."""
    work = Workload(0, case["groups"], case["size"])
    backend = Marked(SamplerModel(seconds=Constant(IDLE_SECONDS + 2.0)))
    watched: list[float] = []

    async def watch() -> None:
        await anyio.sleep(1.0)
        if backend.requests_in_flight != work.groups:
            raise SystemExit(f"{backend.requests_in_flight} requests are waiting, not {work.groups}")
        began = time.process_time()
        await anyio.sleep(IDLE_SECONDS)
        watched.append((time.process_time() - began) / IDLE_SECONDS)

    async def main(directory: Path) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await _train(backend, work, {**case, "steps": 1}, directory)

    with tempfile.TemporaryDirectory() as directory:
        anyio.run(main, Path(directory) / "run", backend=case["loop"])
    return {**case, "idle_share": watched[0]}


def median_us(runs: list[dict[str, Any]]) -> float:
    """Over repeats, of each run's median over its steps but the first."""
    return float(statistics.median(statistics.median(run["cpu_us"]) for run in runs))


def peak_mb(runs: list[dict[str, Any]]) -> float:
    """Peak above what the process had before."""
    return float(statistics.median(run["peak_mb"] - run["before_mb"] for run in runs))


def compare(case: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Repeats of one case, each followed by the peer's."""
    ours, theirs = [], []
    options = {name: case[name] for name in ("mode", "groups", "size", "turns", "staleness", "minibatches")}
    for _ in range(args.repeats):
        ours.append(measuring.fresh("benchmarks.overhead", case))
        if args.peer_python and case["mode"] in args.peer_modes and case["groups"] <= args.peer_groups:
            steps = min(case["steps"], args.peer_steps)
            theirs.append(measuring.peer(args.peer_python, args.peer_src, steps=steps, no_gc=not case["gc"], **options))
    outcome = {"case": case, "us": median_us(ours), "peak_mb": peak_mb(ours), "runs": ours, "peer_runs": theirs}
    if theirs:
        outcome |= {"peer_us": median_us(theirs), "peer_peak_mb": peak_mb(theirs)}
    return outcome


def cases(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What is measured."""
    pace = {"sync": (0, 1), "streaming": (0, 4), "async": (1, 1)}

    def case(groups: int, turns: int, mode: str, *, collect: bool = True, steps: int = args.steps) -> dict[str, Any]:
        staleness, minibatches = pace[mode]
        return {
            "groups": groups,
            "size": args.size,
            "turns": turns,
            "mode": mode,
            "staleness": staleness,
            "minibatches": minibatches,
            "steps": steps,
            "gc": collect,
            "loop": args.loop,
        }

    listed = [case(groups, turns, mode) for turns in args.turns for groups in args.groups for mode in args.modes]
    listed.append(case(args.groups[0], 1, args.modes[0], collect=False))
    listed.append(case(args.groups[0], 1, args.modes[0], steps=6 * args.steps))
    return listed


def named(case: dict[str, Any]) -> str:
    """A case in a few words."""
    extra = "" if case["gc"] else ", gc off"
    turns = "1 turn" if case["turns"] == 1 else f"{case['turns']} turns"
    return f"{case['groups']}×{case['size']}, {turns}, {case['mode']}, {case['steps']} steps{extra}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--turns", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--modes", nargs="+", default=["sync", "streaming", "async"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loop", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--peer-python", help="interpreter that has tinker-cookbook")
    parser.add_argument("--peer-src", help="unpacked wheel of the line to measure")
    parser.add_argument("--peer-modes", nargs="+", default=["sync"])
    parser.add_argument("--peer-groups", type=int, default=1024, help="largest batch the peer is asked for")
    parser.add_argument("--peer-steps", type=int, default=4)
    parser.add_argument("--json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        case = json.loads(args.child)
        print(json.dumps(run_idle(case) if case.get("idle") else run_case(case)))
        return
    results = []
    for case in cases(args):
        results.append(compare(case, args))
        print(f"  {named(case)}: {results[-1]['us']:.1f}", flush=True)
    idle = measuring.fresh("benchmarks.overhead", {**cases(args)[0], "idle": True})
    rows = [
        [
            named(result["case"]),
            f"{result['us']:.1f}",
            f"{result['peak_mb']:.0f}",
            f"{result['peer_us']:.0f}" if "peer_us" in result else "",
            f"{result['peer_peak_mb']:.0f}" if "peer_us" in result else "",
            f"{result['peer_us'] / result['us']:.1f}×" if "peer_us" in result else "",
        ]
        for result in results
    ]
    load = " / ".join(f"{value:.1f}" for value in os.getloadavg())
    columns = ["case", "CPU µs per env step", "peak MB", "tinker-cookbook µs", "its peak MB", "ratio"]
    measuring.show(f"Engine cost (load average {load}, {os.cpu_count()} cores)", columns, rows)
    print(f"idle, {idle['groups']} requests waiting: {100 * idle['idle_share']:.2f} % CPU")
    measuring.save(args.json, {"overhead": results, "idle": idle, "load_average": os.getloadavg()})


if __name__ == "__main__":
    main()
