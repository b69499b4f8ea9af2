"""Shorter answers win: the smallest example of rewards that come from comparing answers in pairs.

    python -m recipes.preference.shorter                      # half a minute on two CPU cores: a tiny model, questions made here
    python -m recipes.preference.shorter --model smollm2 --data prompts.jsonl      # rows with a prompt, or conversations up to the answer

Every answer to a question is compared with every other one of its group; its reward is the mean of 1 for each that it is shorter than and −1 for each that it is longer
than. Nobody says how long an answer should be. What this recipe leaves out: that a short answer should still be one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from actors.schedule import Schedule
from recipes import cli, runs
from recipes.learning_rates import LearningRateConfig
from recipes.models import TINY
from recipes.ports import DEFAULT, Ports
from recipes.row_data import RowsConfig, load_split

if TYPE_CHECKING:
    from actors import Evaluation, ReferencePolicy, RunResult, StopRequest
    from engine.data import Examples, Prompt
    from recipes.models import OpenedModel

_at_least_one: Any = attrs.validators.ge(1)
WORDS = (2, 8)
"""How many words the tiny model says before it learns, from and to."""


@attrs.frozen(kw_only=True)
class Config(RowsConfig):
    """Shorter answers win. Without flags: a tiny model comes to answer in a word, in half a minute on two CPU cores."""

    steps: int = attrs.field(default=20, validator=_at_least_one)
    """Optimizer steps."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(groups_per_step=16))
    """Pace: synchronous by default."""
    group_size: int = attrs.field(default=8, validator=attrs.validators.ge(2))
    """Answers to each question, which compete."""
    learning_rate: LearningRateConfig = attrs.field(factory=lambda: LearningRateConfig(peak=1e-3, warmup_steps=3))
    """The learning rate over the run."""
    grad_clip: float = attrs.field(default=1.0, validator=attrs.validators.ge(0.0))
    """Largest norm of a step's gradient, which is a sum over tokens; 0: no limit."""
    warm_up: int = attrs.field(default=100, validator=attrs.validators.ge(0))
    """Supervised steps that the tiny model first takes."""
    max_answer: int = attrs.field(default=24, validator=_at_least_one)
    """Longest answer, in tokens."""
    evaluate_every: int = attrs.field(default=10, validator=_at_least_one)
    """Steps between evaluations."""


FOR_REAL_MODELS: dict[str, Any] = {
    "lora_rank": 16,
    "threads": None,
    "steps": 20,
    "schedule": Schedule(groups_per_step=4),
    "learning_rate": LearningRateConfig(peak=2e-4, warmup_steps=3),
    "warm_up": 0,
    "max_answer": 64,
    "held_out": 16,
}
"""A model that speaks already."""


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the reinforcement learning began."""
    from actors import StopRequest
    from engine.data import read_prompts
    from engine.runtime.offload import offload
    from engine.runtime.seeds import derive_seed
    from recipes.preference.lists import careless_answers
    from recipes.summary import preferences_learnt
    from recipes.tiny_lists import made_questions, make_list_model
    from recipes.warm_up import warm_up

    directory = runs.begin(config, "shorter")
    stop = StopRequest()
    made = made_questions(1024, derive_seed(config.seed, 1))
    train, test = await offload(load_split, config, ports.load_rows, made, read_prompts)
    async with (
        cli.stop_on_interrupt(stop),
        ports.open_model(config, directory, seed=config.seed, make_tiny=make_list_model) as opened,
    ):
        if config.model == TINY and config.warm_up:
            careless = careless_answers(opened, config.warm_up, derive_seed(config.seed, 0), WORDS)
            await warm_up(opened, directory, careless, resume=config.resume, stop=stop)
        result = None if stop.requested else await _train(config, directory, opened, train, test, stop)
    runs.tell(directory, result, "recipes.preference.shorter", learnt=preferences_learnt)
    return result


async def _train(
    config: Config,
    directory: Path,
    opened: OpenedModel,
    train: Examples[Prompt],
    test: Examples[Prompt] | None,
    stop: StopRequest,
) -> RunResult:
    from actors import RLSettings, train_rl
    from engine.backends.values import AdamParams, SamplingParams
    from engine.telemetry import display
    from envs.preference import FunctionPreferenceModel, Tournament, TournamentGroups, shorter
    from envs.rollout import RolloutSettings

    groups = TournamentGroups(
        renderer=opened.renderer,
        conversations=train,
        tournament=Tournament(FunctionPreferenceModel(shorter)),
        group_size=config.group_size,
        tags=("shorter",),
        max_tokens=config.max_answer,
        blocking=True,
    )
    settings = RLSettings(
        rollout=RolloutSettings(sampling=SamplingParams(max_tokens=config.max_answer)),
        optimizer=AdamParams(config.learning_rate.peak_for(config), grad_clip_norm=config.grad_clip),
        learning_rate=config.learning_rate.over(config.steps),
        samples_per_step=4,
        seed=config.seed,
    )
    held_out = list(test) if test is not None else []
    with display.open(config.steps, "shorter") as live:
        return await train_rl(
            opened.backend,
            groups=groups,
            steps=config.steps,
            schedule=config.schedule,
            settings=settings,
            evaluations=lambda reference: _evaluations(config, opened, held_out, reference),
            run=runs.settings(config, directory),
            observers=[live],
            stop=stop,
        )


def _evaluations(
    config: Config, opened: OpenedModel, held_out: list[Prompt], reference: ReferencePolicy
) -> list[Evaluation]:
    from actors import Evaluation
    from engine.backends.values import SamplingParams
    from engine.runtime.seeds import derive_seed
    from envs.preference import FunctionPreferenceModel, Questions, WinRate, shorter

    if not held_out:
        return []
    questions = Questions(
        renderer=opened.renderer,
        conversations=held_out,
        sampling=SamplingParams(max_tokens=config.max_answer),
        seed=derive_seed(config.seed, 2),
    )
    rate = WinRate(questions, FunctionPreferenceModel(shorter), reference)
    return [Evaluation("win rate", rate, every=config.evaluate_every)]


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
