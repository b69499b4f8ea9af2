"""A supervised or a DPO step of TRL, measured: a peer of `benchmarks.training_steps`, run by it in an interpreter of its own.

    pip install torch==2.13.0 trl==1.16.0 transformers peft
    python benchmarks/peers/trl_training_steps.py sft MODEL WORK.json --steps 8

MODEL is a directory with a model and `tokenizer.json`, WORK a list of {"text"} or {"prompt", "chosen", "rejected"}. The data set is tokenised before the first
step, which is not measured. The last line is JSON: CPU seconds of every step after the warm-up, and the tokens they trained on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("sft", "dpo"))
    parser.add_argument("model")
    parser.add_argument("work")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    return parser.parse_args()


def main() -> None:
    args = parse()
    import torch

    torch.set_num_threads(1)
    import datasets
    import transformers
    import trl

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]  # untyped here
        """CPU time at the end of every step; a step is what lies between two of them."""

        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_step_end(self, *_: object, **__: object) -> None:
            self.marks.append(time.process_time())

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(Path(args.model) / "tokenizer.json"), pad_token="<|pad|>", eos_token="<|end|>"
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    rows = json.loads(Path(args.work).read_text())
    batch = len(rows) // (args.warmup + args.steps)
    rows += rows[:batch]  # one step more: its beginning is the end of the last one that is measured
    if args.kind == "sft":
        rows = [{"input_ids": tokenizer(row["text"], add_special_tokens=False)["input_ids"]} for row in rows]
    clock, trained = Clock(), []
    with tempfile.TemporaryDirectory() as directory:
        common: dict[str, Any] = {
            "output_dir": directory,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": 1,
            "learning_rate": 1e-4,
            "adam_beta2": 0.999,
            "max_grad_norm": 1.0,
            "lr_scheduler_type": "constant",
            "max_steps": args.warmup + args.steps + 1,
            "max_length": 512,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "bf16": False,
            "fp16": False,
            "gradient_checkpointing": False,
            "seed": 0,
        }
        data = datasets.Dataset.from_list(rows)
        made: Any = trl.SFTTrainer if args.kind == "sft" else trl.DPOTrainer
        config: Any = trl.SFTConfig(**common) if args.kind == "sft" else trl.DPOConfig(**common, beta=0.1)

        class Counting(made):  # type: ignore[misc]  # the trainer's own order of rows, so that steps are those of the work
            def _get_train_sampler(self, *_: object, **__: object) -> Any:
                return torch.utils.data.SequentialSampler(self.train_dataset)

            def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
                trained.append(_trained_tokens(args.kind, inputs))
                return super().training_step(model, inputs, *rest)

        trainer = Counting(model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[clock])
        trainer.train()
    marks = clock.marks[args.warmup - 1 : args.warmup + args.steps]
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    result = {
        "cpu_s": [round(after - before, 5) for before, after in itertools.pairwise(marks)],
        "tokens": sum(trained[args.warmup : args.warmup + args.steps]),
        "versions": versions,
    }
    print(json.dumps(result))


def _trained_tokens(kind: str, inputs: Any) -> int:
    if kind == "sft":  # a sequence's first token is predicted from nothing
        return int((inputs["labels"][:, 1:] != -100).sum())
    return int(inputs["completion_mask"].sum())


if __name__ == "__main__":
    main()
