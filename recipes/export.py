"""A run's trained weights for others: LoRA adapters in PEFT's format, or a whole model that transformers, vLLM and the like load.

    python -m recipes.export --run DIR --out my-model                                  # a merged model, from the newest checkpoint
    python -m recipes.export --run DIR --checkpoint best --format peft --out my-lora
    python -m recipes.chat_sl --model my-model ...                                     # it is a model like any other

What is written gives the log-probabilities that the trainer had (tests/backends/local/test_export.py). It is for runs on the local backend.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import attrs

from recipes import cli
from recipes.models import RENDERERS, TINY
from recipes.run_models import find_run_model
from recipes.terminal import say


@attrs.frozen(kw_only=True)
class Config:
    """Writes the weights of a run's checkpoint as a model directory."""

    run: Path
    """The run's directory."""
    out: Path
    """A new directory for what is written."""
    checkpoint: str = "latest"
    """latest, best, or a step."""
    format: Literal["merged", "peft"] = "merged"
    """merged: a whole model; peft: the LoRA adapters alone, to be loaded on the base model."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of a merged model; None: that of the run."""


def main(config: Config) -> None:
    """Runs the command."""
    from engine.backends import local

    trained = find_run_model(f"{config.run}@{config.checkpoint}")
    if trained is None:
        raise ValueError(
            f"{config.run} is no directory of a run: it has no config.json that says which model was trained"
        )
    if trained.settings.get("backend") != "local":
        raise ValueError(
            f"{config.run} was trained on the backend {trained.settings.get('backend')}, whose weights are not in its run directory: download them there"
        )
    checkpoint = trained.checkpoint()
    base, made_by = trained.base()
    model: Any = made_by / "model" if base == TINY else base
    written = local.export(checkpoint.path / "trainer", model, config.out, form=config.format, dtype=config.dtype)
    what = f"LoRA adapters of {model}" if written.form == "peft" else "a whole model"
    say(f"{written.directory}: {what}, {written.parameters:,} numbers, from step {checkpoint.step}")
    if not written.chat_template:
        said = trained.settings.get("renderer") or RENDERERS.get(base, "the chat format of its family")
        say(
            f"the base model has no chat template, so none is there: prompts have to be written as the run wrote them ({said})"
        )


if __name__ == "__main__":
    cli.main(main, Config)
