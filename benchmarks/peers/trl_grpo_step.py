"""One GRPO step of TRL, measured: the peer of `benchmarks.local_step`, run by it in an interpreter of its own.

    pip install torch==2.13.0 trl==1.16.0 transformers peft
    python benchmarks/peers/trl_grpo_step.py MODEL --steps 8

MODEL is a directory with a model and `tokenizer.json`. A step samples `--samples` completions of `--tokens` tokens for each of
`--prompts` prompts (an end-of-text token is not let through), takes the reward, and makes one optimizer step on them. The last line is
JSON: CPU and wall seconds of every step after the warm-up.
"""

import argparse
import itertools
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = parse()
    import torch

    torch.set_num_threads(args.threads)
    import datasets
    import transformers
    import trl

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]  # untyped here
        """CPU and wall time at the end of every step; a step is what lies between two of them."""

        def __init__(self) -> None:
            self.marks: list[tuple[float, float]] = []

        def on_step_end(self, *_: object, **__: object) -> None:
            self.marks.append((time.process_time(), time.perf_counter()))

    produced: list[int] = []

    def share_of_e(completions: list[str], completion_ids: list[list[int]], **_: object) -> list[float]:
        produced.append(sum(len(ids) for ids in completion_ids))
        return [text.count("e") / max(1, len(text)) for text in completions]

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(Path(args.model) / "tokenizer.json"),
        pad_token="<|pad|>",
        eos_token="<|end|>",
        padding_side="left",
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    total = args.warmup + args.steps + 1
    rows = [{"prompt": f"count {number:03d}: "} for number in range(args.prompts * total)]
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        config = trl.GRPOConfig(
            output_dir=directory,
            per_device_train_batch_size=args.prompts * args.samples,
            gradient_accumulation_steps=1,
            num_generations=args.samples,
            max_completion_length=args.tokens,
            generation_kwargs={"min_new_tokens": args.tokens},
            temperature=1.0,
            beta=0.0,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            max_steps=total,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            fp16=False,
            gradient_checkpointing=False,
            seed=args.seed,
        )
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=share_of_e,
            args=config,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    marks = clock.marks[args.warmup :]
    steps = [(after[0] - before[0], after[1] - before[1]) for before, after in itertools.pairwise(marks)]
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    result = {
        "cpu_s": [round(cpu, 5) for cpu, _ in steps],
        "wall_s": [round(wall, 5) for _, wall in steps],
        "tokens_per_step": produced[-1],
        "versions": versions,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
