"""Teach a vision-language model to name what an image shows, by examples or by reward.

    python -m recipes.vlm_classifier --backend tinker --model Qwen/Qwen3-VL-30B-A3B-Instruct --lora-rank 32
    python -m recipes.vlm_classifier --backend tinker --model Qwen/Qwen3-VL-30B-A3B-Instruct --data photos/ --method rl

Without `--data`, shapes are drawn on the spot. The backend must take images (`capabilities.images`): `tinker` does; `local` reads text alone, and is refused before anything is
trained.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from actors.schedule import Schedule
from recipes import cli, runs
from recipes.learning_rates import LearningRateConfig
from recipes.models import OpenedModel
from recipes.ports import DEFAULT, Ports

if TYPE_CHECKING:
    from actors import RunResult, StopRequest

_positive = attrs.validators.ge(1)


@attrs.frozen(kw_only=True)
class Config(runs.RunConfig):
    """Teach a vision-language model to name what an image shows."""

    backend: str = "tinker"
    """What samples and trains; it must take images."""
    method: Literal["supervised", "rl"] = "supervised"
    """supervised: by the labels as answers. rl: by a reward of 1 for the right class."""
    data: str | None = None
    """A directory whose subdirectories are the classes, or rows with an image column by hub name or file; None: drawn shapes."""
    classes: tuple[str, ...] = ()
    """Names of the classes; empty: those the labels have."""
    split: str | None = None
    """Split of a hub data set; None: train."""
    steps: int = attrs.field(default=20, validator=_positive)
    """Optimizer steps."""
    batch_size: int = attrs.field(default=16, validator=_positive)
    """Images in a supervised step."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(groups_per_step=8))
    """Pace of reinforcement learning."""
    group_size: int = attrs.field(default=8, validator=_positive)
    """Answers to each image, with rl."""
    max_tokens: int = attrs.field(default=16, validator=_positive)
    """Longest answer, in tokens, with rl."""
    learning_rate: LearningRateConfig = attrs.field(factory=lambda: LearningRateConfig(peak=2e-4, warmup_steps=3))
    """The learning rate over the run."""


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. Raises ValueError where the backend takes no images."""
    from actors import StopRequest

    directory = runs.begin(config, "vlm_classifier")
    stop = StopRequest()
    async with cli.stop_on_interrupt(stop), ports.open_model(config, directory, seed=config.seed) as opened:
        if not opened.backend.capabilities.images:
            name = opened.backend.capabilities.name
            raise ValueError(f"backend: '{name}' takes no images; --backend tinker does, with a model that sees")
        result = await _train(config, directory, opened, ports, stop)
    runs.tell(directory, result, "recipes.vlm_classifier")
    return result


async def _train(config: Config, directory: Path, opened: OpenedModel, ports: Ports, stop: StopRequest) -> RunResult:
    from actors import RLSettings, train_rl, train_supervised
    from engine.backends.values import AdamParams, SamplingParams
    from engine.runtime.offload import offload
    from envs.rollout import RolloutSettings
    from envs.vision.classification import ImageGroups, answered, labelled_images
    from recipes.warm_up import WorkedConversations

    images, classes = await offload(
        lambda: labelled_images(
            config.data, classes=config.classes, split=config.split, seed=config.seed, load_rows=ports.load_rows
        )
    )
    rate: dict[str, Any] = {
        "optimizer": AdamParams(config.learning_rate.peak_for(config)),
        "learning_rate": config.learning_rate.over(config.steps),
    }
    settings = runs.settings(config, directory)
    if config.method == "supervised":
        batches = WorkedConversations(
            opened.renderer,
            lambda number: answered(images[number % len(images)], classes),
            config.steps,
            config.batch_size,
        )
        return await train_supervised(opened.backend, batches=batches, run=settings, stop=stop, **rate)
    return await train_rl(
        opened.backend,
        groups=ImageGroups(opened.renderer, images, classes, config.group_size),
        steps=config.steps,
        schedule=config.schedule,
        settings=RLSettings(
            RolloutSettings(SamplingParams(config.max_tokens)), seed=config.seed, drop_constant_groups=False, **rate
        ),
        run=settings,
        stop=stop,
    )


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:]))
