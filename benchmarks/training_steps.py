"""What training costs beside others: data assembly for RL, a supervised step, and a DPO step.

    python -m benchmarks.training_steps --trl-python TRL_VENV/bin/python --cookbook-python COOKBOOK_VENV/bin/python --json training_steps.json

- **assembly**: 1,024 groups of 16 trajectories become datums, advantages given; single-turn (prompt 192, completion 128 tokens) and eight turns that extend each
  other (24 tokens observed and 40 sampled in each). Beside tinker-cookbook 0.5.6's `trajectory_to_data` on the same tokens.
- **sft**: a step on 32 sequences, all tokens trained: 128 tokens each, or 32 to 224. Beside TRL's SFTTrainer. Both pad nothing in the first, TRL pads in the second.
- **dpo**: a step on 16 pairs, a prompt of 48 tokens and answers of 32 to 112, the frozen reference scored in the step. Beside TRL's DPOTrainer.

The two steps are full fine-tuning of the tiny Llama of `benchmarks.local_step` (1.08 million parameters), float32, AdamW with clipping, one thread. Every
repetition is a process of its own, ours and the peer's in turn; figures are medians over all measured steps. What both did is compared: trained tokens, datums.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from numpy.typing import NDArray

from actors.reference import ReferencePolicy
from actors.scoring import with_reference_logprobs
from benchmarks.local_step import byte_tokenizer, measured
from engine.backends import local
from engine.backends.values import AdamParams, Completion, Datum, Loss, ModelInput
from engine.training.assembly import assemble
from engine.training.supervised import supervised_datum
from engine.training.trajectories import Trajectory, TrajectoryGroup, Turn

PEERS = Path(__file__).parent / "peers"
GROUPS, MEMBERS = 1024, 16
ASSEMBLY = {"assembly, 1 turn": (1, 192, 128), "assembly, 8 turns": (8, 24, 40)}
"""Turns, tokens observed and tokens sampled in each."""
STEPS = {"sft, equal lengths": "sft", "sft, 32 to 224 tokens": "sft", "dpo": "dpo"}
END = 258
ADAM = AdamParams(1e-4, beta2=0.999, grad_clip_norm=1.0)


# ---- the work, the same for both sides


def write_trajectories(path: Path, turns: int, observed: int, sampled: int, groups: int, seed: int) -> None:
    """Tokens of every turn; a group's members share the first observation."""
    rng = np.random.default_rng(seed)
    observations = rng.integers(0, 256, (groups, MEMBERS, turns, observed), np.int32)
    observations[:, :, 0] = observations[:, :1, 0]
    actions = rng.integers(0, 256, (groups, MEMBERS, turns, sampled), np.int32)
    logprobs = -rng.random((groups, MEMBERS, turns, sampled), np.float32)
    np.savez(
        path,
        observations=observations,
        actions=actions,
        logprobs=logprobs,
        advantages=rng.normal(size=(groups, MEMBERS)),
    )


def write_rows(path: Path, case: str, steps: int, seed: int) -> None:
    """Printable bytes, as texts: what a tokenizer of bytes makes tokens of."""
    rng = np.random.default_rng(seed)

    def text(length: int) -> str:
        return bytes(rng.integers(97, 123, length, np.uint8)).decode()

    if case == "dpo":
        pairs = [
            {
                "prompt": text(48),
                "chosen": text(int(rng.integers(32, 113))),
                "rejected": text(int(rng.integers(32, 113))),
            }
            for _ in range(16 * steps)
        ]
        path.write_text(json.dumps(pairs))
        return
    lengths = [128] * (32 * steps) if "equal" in case else rng.integers(32, 225, 32 * steps).tolist()
    path.write_text(json.dumps([{"text": text(length)} for length in lengths]))


# ---- ours


def run_assembly(path: Path) -> dict[str, Any]:
    """CPU seconds to make datums of all groups, and what they hold."""
    work = np.load(path)
    groups = [
        TrajectoryGroup(tuple(_trajectory(*member) for member in zip(*arrays, strict=True)))
        for arrays in zip(work["observations"], work["actions"], work["logprobs"], strict=True)
    ]
    advantages = work["advantages"]
    began = time.process_time()
    data = [
        datum for group, advantages_G in zip(groups, advantages, strict=True) for datum in assemble(group, advantages_G)
    ]
    seconds = time.process_time() - began
    return {"cpu_s": [seconds], **_content(data)}


def _trajectory(observations: NDArray[Any], actions: NDArray[Any], logprobs: NDArray[Any]) -> Trajectory:
    turns, prompt = [], np.empty(0, np.int32)
    for observed, action, scores in zip(observations, actions, logprobs, strict=True):
        prompt = np.concatenate((prompt, observed))
        turns.append(Turn(ModelInput.from_tokens(prompt), Completion(action, scores, "stop", 0)))
        prompt = np.concatenate((prompt, action))
    return Trajectory(tuple(turns))


def _content(data: Sequence[Datum]) -> dict[str, Any]:
    return {
        "datums": len(data),
        "tokens": sum(datum.model_input.length for datum in data),
        "advantage": round(sum(float(datum.loss_inputs["advantages"].sum(dtype=np.float64)) for datum in data), 2),
    }


async def run_steps(args: argparse.Namespace, rows: list[dict[str, str]]) -> dict[str, Any]:
    """CPU seconds of every measured step."""
    batch = len(rows) // (args.warmup + args.steps)
    cpu_s, tokens = [], 0
    async with local.open(args.model, threads=1) as backend:
        reference = ReferencePolicy(backend, await backend.snapshot().result())
        for step in range(args.warmup + args.steps):
            began = time.process_time()
            chosen = rows[step * batch : (step + 1) * batch]
            data = [datum for row in chosen for datum in _datums(row, backend.tokenizer)]
            if args.one == "dpo":
                data = await with_reference_logprobs(data, reference)
            loss = Loss("dpo", {"beta": 0.1}) if args.one == "dpo" else Loss("cross_entropy")
            backend.forward_backward(data, loss)
            await backend.optim_step(ADAM).result()
            if step >= args.warmup:
                cpu_s.append(round(time.process_time() - began, 5))
                tokens += sum(int((datum.loss_inputs["weights"] > 0).sum()) for datum in data)
        reference.release()
    return {"cpu_s": cpu_s, "tokens": tokens}


def _datums(row: dict[str, str], tokenizer: Any) -> list[Datum]:
    if "text" in row:
        ids = tokenizer.encode(row["text"])
        return [_datum(ids, [1] * len(ids))]
    prompt = tokenizer.encode(row["prompt"])
    made = []
    for which in ("chosen", "rejected"):
        answer = [*tokenizer.encode(row[which]), END]
        made.append(_datum([*prompt, *answer], [0] * len(prompt) + [1] * len(answer)))
    return made


def _datum(ids: list[int], weights: Sequence[float]) -> Datum:
    datum = supervised_datum(ids, weights)
    if datum is None:
        raise AssertionError("no limit was given")
    return datum


# ---- both, in turn


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Every case, ours and the peer's by turns."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        model = local.tiny_llama(Path(directory) / "tiny", byte_tokenizer(), seed=args.seed)
        for case in [name for name in (*ASSEMBLY, *STEPS) if args.only in name]:
            runs: dict[str, list[dict[str, Any]]] = {}
            for repeat in range(args.repeats):
                work = Path(directory) / ("work.npz" if case in ASSEMBLY else "work.json")
                for name, command in _commands(args, case, work, model, args.seed + repeat).items():
                    runs.setdefault(name, []).append(measured(command))
                _check_same(case, [every[-1] for every in runs.values()])
            results[case] = {name: _summary(every, case) for name, every in runs.items()}
    return results


def _commands(args: argparse.Namespace, case: str, work: Path, model: Path, seed: int) -> dict[str, list[str]]:
    ours = [sys.executable, "-m", "benchmarks.training_steps"]
    if case in ASSEMBLY:
        write_trajectories(work, *ASSEMBLY[case], args.groups, seed)
        commands = {"callsheet": [*ours, "--one", "assembly", "--work", str(work)]}
        if args.cookbook_python:
            commands["tinker-cookbook"] = [args.cookbook_python, str(PEERS / "assembly_tinker_cookbook.py"), str(work)]
        return commands
    kind = STEPS[case]
    write_rows(work, case, args.warmup + args.steps, seed)
    size = ["--warmup", str(args.warmup), "--steps", str(args.steps)]
    commands = {"callsheet": [*ours, "--one", kind, "--work", str(work), "--model", str(model), *size]}
    if args.trl_python:
        commands["trl"] = [args.trl_python, str(PEERS / "trl_training_steps.py"), kind, str(model), str(work), *size]
    return commands


def _check_same(case: str, runs: Sequence[dict[str, Any]]) -> None:
    for what in ("datums", "tokens", "advantage"):
        if len({str(run.get(what)) for run in runs}) > 1:
            sys.exit(f"{case}: {what} differ, so it is not the same work: {[run.get(what) for run in runs]}")


def _summary(runs: Sequence[dict[str, Any]], case: str) -> dict[str, Any]:
    medians = [statistics.median(run["cpu_s"]) for run in runs]
    return {
        "cpu_s": statistics.median(value for run in runs for value in run["cpu_s"]),
        "cpu_s_range": [min(medians), max(medians)],
        "repeats": len(runs),
        "tokens": runs[-1]["tokens"],
        "versions": runs[-1].get("versions"),
        "unit": "all" if case in ASSEMBLY else "step",
    }


def show(results: dict[str, Any], groups: int) -> None:
    """A line for each side of each case, and the ratio where there is a peer."""
    print(f"{'':24}{'':16}{'CPU s':>9}{'range of medians':>20}{'trajectories/s':>16}{'peer/ours':>11}")
    for case, sides in results.items():
        for name, row in sides.items():
            low, high = row["cpu_s_range"]
            rate = f"{groups * MEMBERS / row['cpu_s']:,.0f}" if row["unit"] == "all" else ""
            ratio = f"{row['cpu_s'] / sides['callsheet']['cpu_s']:.2f}" if name != "callsheet" else ""
            print(f"{case:24}{name:16}{row['cpu_s']:9.4f}{f'{low:.4f} to {high:.4f}':>20}{rate:>16}{ratio:>11}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", help="interpreter of an environment with trl 1.16")
    parser.add_argument("--cookbook-python", help="interpreter of an environment with tinker-cookbook 0.5.6")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=3, help="steps of each repetition that are not counted")
    parser.add_argument("--steps", type=int, default=8, help="steps of each repetition that are")
    parser.add_argument("--groups", type=int, default=GROUPS, help="groups of 16 trajectories that are assembled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        work = Path(args.work)
        if args.one == "assembly":
            print(json.dumps(run_assembly(work)))
        else:
            print(json.dumps(anyio.run(run_steps, args, json.loads(work.read_text()))))
        return
    results = compare(args)
    show(results, args.groups)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
