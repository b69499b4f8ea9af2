"""What one RL step costs the `local` backend in CPU time, beside TRL's GRPOTrainer on the same model, prompts and token counts.

    python -m benchmarks.local_step --peer-python PEER_VENV/bin/python --repeats 5 --json local_step.json

One step: sample 8 prompts × 8 completions × 32 tokens (nothing stops them early), centre the rewards, one clipped-policy-gradient
pass over the 64 sequences, one AdamW step with gradient clipping, and the new weights handed to the sampler. A tiny Llama (hidden 128,
4 layers, 4 heads, byte-level vocabulary of 259: 1.08 million parameters), float32, one thread. Ours and the peer's repetitions take turns, each in
a process of its own, so that what else the machine does hits both; figures are medians over all measured steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engine.backends import local
from engine.backends.ports import Snapshot
from engine.backends.values import AdamParams, Completion, Datum, Loss, ModelInput, SampleRequest, SamplingParams

PEER = Path(__file__).parent / "peers" / "trl_grpo_step.py"


def byte_tokenizer() -> Tokenizer:
    """Every byte a token, and three special ones: 259."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|pad|>", "<|start|>", "<|end|>"])
    return tokenizer


def datums(prompt: ModelInput, completions: list[Completion], rewards_G: list[float]) -> list[Datum]:
    """The group's training sequences, with centred advantages."""
    advantages_G = np.array(rewards_G) - np.mean(rewards_G)
    known = prompt.length - 1
    made = []
    for completion, advantage in zip(completions, advantages_G, strict=True):
        whole = prompt.append(completion.tokens).tokens
        inputs = {
            "target_tokens": whole[1:],
            "logprobs": np.concatenate((np.zeros(known, np.float32), completion.logprobs)),
            "advantages": np.repeat(np.array([0, advantage], np.float32), [known, len(completion.tokens)]),
        }
        made.append(Datum(ModelInput.from_tokens(whole[:-1]), inputs))
    return made


async def run_ours(args: argparse.Namespace) -> dict[str, Any]:
    """CPU and wall seconds of every measured step."""
    cpu_s, wall_s, tokens = [], [], 0
    async with local.open(args.model, threads=args.threads) as backend:
        tokenizer = backend.tokenizer

        async def group(number: int, snapshot: Snapshot, made: list[Datum]) -> None:
            prompt = ModelInput.from_tokens(tokenizer.encode(f"count {number:03d}: "))
            params = SamplingParams(max_tokens=args.tokens)
            request = SampleRequest(prompt, params, seed=args.seed + number, num_samples=args.samples)
            completions = list(await backend.sample(snapshot, request))
            texts = [tokenizer.decode(completion.tokens) for completion in completions]
            made += datums(prompt, completions, [text.count("e") / max(1, len(text)) for text in texts])

        snapshot = await backend.snapshot().result()
        for step in range(args.warmup + args.steps):
            before = time.process_time(), time.perf_counter()
            made: list[Datum] = []
            async with anyio.create_task_group() as tasks:
                for place in range(args.prompts):
                    tasks.start_soon(group, step * args.prompts + place, snapshot, made)
            backend.forward_backward(made, Loss("ppo"))
            stepped = backend.optim_step(AdamParams(1e-4, beta2=0.999, grad_clip_norm=1.0))
            following = backend.snapshot()
            await stepped.result()
            backend.release(snapshot)
            snapshot = await following.result()
            if step >= args.warmup:
                cpu_s.append(round(time.process_time() - before[0], 5))
                wall_s.append(round(time.perf_counter() - before[1], 5))
            tokens = sum(int((datum.loss_inputs["logprobs"] != 0).sum()) for datum in made)
    return {"cpu_s": cpu_s, "wall_s": wall_s, "tokens_per_step": tokens}


def measured(command: list[str]) -> dict[str, Any]:
    """Runs a repetition in a process of its own; its last line is the result."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if finished.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{finished.stderr.strip()}")
    result: dict[str, Any] = json.loads(finished.stdout.strip().splitlines()[-1])
    return result


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Repetitions of ours and the peer's in turn."""
    runs: dict[str, list[dict[str, Any]]] = {"callsheet": []}
    with tempfile.TemporaryDirectory() as directory:
        model = local.tiny_llama(Path(directory) / "tiny", byte_tokenizer(), seed=args.seed)
        size = [
            f"--{name}={getattr(args, name)}" for name in ("prompts", "samples", "tokens", "warmup", "steps", "threads")
        ]
        for repeat in range(args.repeats):
            options = [str(model), *size, f"--seed={args.seed + 1000 * repeat}"]
            ours = [sys.executable, "-m", "benchmarks.local_step", "--one", *options]
            runs["callsheet"].append(measured(ours))
            if args.peer_python:
                runs.setdefault("trl", []).append(measured([args.peer_python, str(PEER), *options]))
    wanted = args.prompts * args.samples * args.tokens
    for name, every in runs.items():
        for run in every:
            if run["tokens_per_step"] != wanted:
                sys.exit(
                    f"{name} sampled {run['tokens_per_step']} tokens in a step instead of {wanted}: not the same work"
                )
    return {name: summary(every) for name, every in runs.items()}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over all steps of all repetitions, and the range of the repetitions' own medians."""
    medians = [statistics.median(run["cpu_s"]) for run in runs]
    return {
        "cpu_s_per_step": statistics.median(value for run in runs for value in run["cpu_s"]),
        "cpu_s_range": [min(medians), max(medians)],
        "wall_s_per_step": statistics.median(value for run in runs for value in run["wall_s"]),
        "repeats": len(runs),
        "tokens_per_step": runs[0]["tokens_per_step"],
        "versions": runs[0].get("versions"),
    }


def show(results: dict[str, Any]) -> None:
    """A table, and the ratio where the peer ran."""
    print(f"{'':12}{'CPU s a step':>14}{'range of medians':>22}{'wall s a step':>16}{'tokens':>9}")
    for name, row in results.items():
        low, high = row["cpu_s_range"]
        print(
            f"{name:12}{row['cpu_s_per_step']:14.3f}{f'{low:.3f} to {high:.3f}':>22}{row['wall_s_per_step']:16.3f}{row['tokens_per_step']:9}"
        )
    if "trl" in results:
        ratio = results["trl"]["cpu_s_per_step"] / results["callsheet"]["cpu_s_per_step"]
        print(f"\nTRL's GRPOTrainer takes {ratio:.2f} times the CPU seconds (bar: at least 1.5)")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="(with --one) directory of the model")
    parser.add_argument(
        "--peer-python", help="interpreter of an environment with trl 1.16; without it only ours is measured"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--warmup", type=int, default=3, help="steps of each repetition that are not counted")
    parser.add_argument("--steps", type=int, default=8, help="steps of each repetition that are")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(anyio.run(run_ours, args)))
        return
    results = compare(args)
    show(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
