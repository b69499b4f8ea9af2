"""How long a run takes when completions have a long tail: every mode on a virtual clock, beside bounds for any schedule.

    python -m benchmarks.makespan                                                   # seconds of virtual time; about ten minutes of real time
    python -m benchmarks.makespan --peer-python peer/bin/python --peer-src wheel/   # beside tinker-cookbook, on a virtual clock too

Ten steps of B groups of 8; completions are log-normal with mean 0.5 s and σ 1.0, cut at 10.24 s (4,096 tokens); 64 slots; a serial trainer. The real
engine runs, `train_rl` with its defaults, on the simulated backend under `engine.runtime.simulate`. A row's columns:

  ideal    sampling spread over all slots, or training, whichever is longer
  bound    no schedule at this staleness can be faster, not even one that knows all lengths beforehand (`benchmarks.makespan_bound`)
  known    the best of several schedules that do know them: what is reachable lies between the two
  rules    an event simulation of the engine's rules in some dozens of lines: what the engine should take
  hard     the engine, hard bound; `predicted`: given the length of each group's longest member; soft: the engine, soft bound
  stale    the soft bound's mean and greatest staleness; under the hard bound the greatest is η
  wasted   groups admitted and not trained, hard and soft together, over all seeds

Times run from the first request to the publishing of the last step's weights. Medians over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

import anyio
import attrs
import numpy as np

from actors.programs import RLSettings, train_rl
from actors.schedule import Schedule
from benchmarks import makespan_bound, makespan_rules, measuring
from benchmarks.workload import Workload
from benchmarks.workload_envs import WorkloadDataset, script
from engine.backends.ports import Snapshot
from engine.backends.simulated import SamplerModel, SimulatedBackend, TrainerModel
from engine.backends.values import SampleRequest, SamplingParams
from engine.runtime import simulate
from envs.rollout import RolloutSettings

SIZE, STEPS, SLOTS, MEAN_SECONDS = 8, 10, 64, 0.5


class Timed(SimulatedBackend):
    """Notes when it was first asked for a sample."""

    first_request: float | None = None

    async def sample(self, snapshot: Snapshot, request: SampleRequest) -> Any:
        """As ever."""
        if self.first_request is None:
            self.first_request = anyio.current_time()
        return await super().sample(snapshot, request)

    @property
    def makespan(self) -> float:
        """From the first request until the last weights are ready."""
        return self.trainer_free_at - (self.first_request or 0.0)


@attrs.frozen
class KnownLengths:
    """A `LengthPredictor` that has looked the lengths up."""

    work: Workload

    def predict(self, problem: int, tags: tuple[str, ...]) -> float | None:  # noqa: ARG002
        """Tokens of the group's longest member."""
        place = divmod(problem, self.work.groups)
        return float(max(self.work.length(*place, member) for member in range(self.work.size)))

    def observe(self, problem: int, tags: tuple[str, ...], tokens: int) -> None:
        """Nothing to learn."""

    def state(self) -> Mapping[str, tuple[int, float]]:
        """Nothing to keep."""
        return {}

    def restore(self, state: Mapping[str, tuple[int, float]]) -> None:
        """Nothing to take back."""


@attrs.frozen
class EngineRun:
    """What one run of the engine took."""

    makespan: float
    staleness_mean: float
    staleness_max: float
    wasted: int


def run_engine(
    case: Mapping[str, Any], seed: int, bound: str, *, known: bool = False, schedule_seed: int = 0
) -> EngineRun:
    """One run of `train_rl` on the virtual clock."""
    work = Workload(seed, case["groups"], SIZE, mean_seconds=MEAN_SECONDS)
    trainer = case["trainer"]

    async def main() -> EngineRun:
        backend = Timed(
            SamplerModel(script=partial(script, work)),
            TrainerModel(
                per_datum=0.8 * trainer / (work.groups * SIZE), optim_step=0.1 * trainer, snapshot=0.1 * trainer
            ),
            slots=SLOTS,
            track_weights=False,
        )
        result = await train_rl(
            backend,
            groups=WorkloadDataset(work, STEPS),
            steps=STEPS,
            schedule=Schedule(
                work.groups,
                minibatches=case["minibatches"],
                max_staleness=case["staleness"],
                bound=bound,  # type: ignore[arg-type]
            ),
            settings=RLSettings(
                rollout=RolloutSettings(sampling=SamplingParams(max_tokens=work.max_tokens)),
                shuffle=False,
                drop_constant_groups=False,
            ),
            predictor=KnownLengths(work) if known else None,
        )
        if result.version != STEPS or result.gate is None:
            raise SystemExit(f"trained {result.version} of {STEPS} steps")
        return EngineRun(
            backend.makespan,
            statistics.mean(row["staleness/mean"] for row in result.rows),
            max(row["staleness/max"] for row in result.rows),
            result.gate.admitted - result.gate.trained,
        )

    return simulate(main, seed=schedule_seed).unwrap()


def problem(case: Mapping[str, Any], seed: int) -> makespan_bound.Problem:
    """The same work as a scheduling problem."""
    work = Workload(seed, case["groups"], SIZE, mean_seconds=MEAN_SECONDS)
    places = [(batch, group) for batch in range(STEPS) for group in range(work.groups)]
    seconds_NG = np.array([[work.seconds(*place, member) for member in range(SIZE)] for place in places])
    return makespan_bound.Problem(
        seconds_NG, work.groups, case["staleness"], SLOTS, case["trainer"], case["minibatches"]
    )


def measure(case: Mapping[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one row."""
    columns: dict[str, list[float]] = {}

    def add(**values: float) -> None:
        for name, value in values.items():
            columns.setdefault(name, []).append(float(value))

    for seed in args.seeds:
        asked = problem(case, seed)
        hard, predicted = run_engine(case, seed, "hard"), run_engine(case, seed, "hard", known=True)
        soft = run_engine(case, seed, "soft") if case["staleness"] else hard
        bound = makespan_bound.simple_bound(asked)
        known = min(makespan_rules.clairvoyant(asked), predicted.makespan)
        if known > 1.03 * bound:
            bound = makespan_bound.lower_bound(asked, args.solver_seconds)
            known = min(makespan_rules.clairvoyant(asked, args.search_moves), known)
        add(
            ideal=asked.ideal,
            bound=bound,
            known=known,
            hard=hard.makespan,
            predicted=predicted.makespan,
            soft=soft.makespan,
        )
        if case["minibatches"] == 1:
            add(rules=makespan_rules.simulate(asked).makespan)
        add(
            staleness_hard=hard.staleness_max,
            staleness_soft=soft.staleness_max,
            mean_staleness_soft=soft.staleness_mean,
        )
        add(over_bound=hard.makespan / bound, over_known=hard.makespan / known)
        add(wasted=hard.wasted + predicted.wasted + soft.wasted)
    row: dict[str, Any] = {"case": dict(case), "seeds": args.seeds, "columns": columns}
    if args.peer_python and case["trainer"] in args.peer_trainers and case["staleness"]:
        row["peer"] = [
            measuring.peer(
                args.peer_python,
                args.peer_src,
                mode="async",
                groups=case["groups"],
                size=SIZE,
                steps=STEPS,
                seed=seed,
                staleness=case["staleness"],
                seconds=MEAN_SECONDS,
                slots=SLOTS,
                trainer_seconds=case["trainer"],
                virtual=True,
            )
            for seed in args.peer_seeds
        ]
    return row


def cases(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows: sync, streaming, and each staleness, for every batch size and trainer."""
    paces = [(0, 1), (0, 4), *((staleness, 1) for staleness in args.staleness)]
    return [
        {"groups": groups, "trainer": trainer, "staleness": staleness, "minibatches": minibatches}
        for trainer in args.trainers
        for groups in args.groups
        for staleness, minibatches in paces
    ]


def named(case: Mapping[str, Any]) -> str:
    """A case in a few words."""
    mode = f"η={case['staleness']}" if case["staleness"] else "streaming" if case["minibatches"] > 1 else "sync"
    return f"{case['groups']}×{SIZE}, trainer {case['trainer']:g} s, {mode}"


COLUMNS = ("ideal", "bound", "known", "rules", "hard", "predicted", "soft")


def shown(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    columns = row["columns"]

    def median(name: str) -> str:
        return f"{statistics.median(columns[name]):.1f}" if name in columns else ""

    stale = f"{statistics.median(columns['mean_staleness_soft']):.1f} / {max(columns['staleness_soft']):.0f}"
    peers = row.get("peer", [])
    beside = ""
    if peers:
        trained = min(peer["steps_trained"] for peer in peers)
        beside = f"{statistics.median(peer['makespan'] for peer in peers):.1f}"
        beside += f" ({trained} steps, {statistics.mean(peer['staleness_mean'] for peer in peers):.1f} /"
        beside += f" {max(peer['staleness_max'] for peer in peers)})"
    return [named(row["case"]), *(median(name) for name in COLUMNS), stale, f"{sum(columns['wasted']):.0f}", beside]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--staleness", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--trainers", type=float, nargs="+", default=[0.5, 0.1, 2.0], help="seconds a step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--solver-seconds", type=float, default=10.0, help="for each bound; more can only raise it")
    parser.add_argument("--search-moves", type=int, default=60000, help="for each schedule that knows all lengths")
    parser.add_argument("--peer-python", help="interpreter that has tinker-cookbook")
    parser.add_argument("--peer-src", help="unpacked wheel of the line to measure")
    parser.add_argument("--peer-trainers", type=float, nargs="+", default=[0.5])
    parser.add_argument("--peer-seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = []
    for case in cases(args):
        rows.append(measure(case, args))
        print("  " + json.dumps(shown(rows[-1]), ensure_ascii=False), flush=True)
    heads = ["groups, trainer, mode", *COLUMNS, "soft's stale", "wasted", "tinker-cookbook (steps, stale)"]
    measuring.show(f"Makespan of {STEPS} steps in seconds, {SLOTS} slots", heads, [shown(row) for row in rows])
    measuring.save(args.json, {"makespan": rows})


if __name__ == "__main__":
    main()
