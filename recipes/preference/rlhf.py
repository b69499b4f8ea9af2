"""Reinforcement learning from preferences, in three stages: imitate answers, train a preference model on comparisons, and train the policy against it.

    python -m recipes.preference.rlhf                                                    # two minutes on two CPU cores: tiny models, data made here
    python -m recipes.preference.rlhf --model Qwen/Qwen3-0.6B --dataset helpsteer3       # all three stages on public comparisons
    python -m recipes.preference.rlhf --preference-run runs/reward_model-...             # the last stage alone, against a model trained before
    python -m recipes.preference.rlhf --model smollm2 --data prompts.jsonl --judge.model Qwen/Qwen3-8B --judge.backend openai_compatible

    comparisons ──> sft/ ──> preference_model/ ──frozen──┐
                      └────> policy ──answers of a group──> every one against others ──mean score──> reward

A group's answers to one prompt compete: each is compared with others of its group, concurrently, in both orders, and its mean score is its reward. Evaluation is
the win rate against the policy that this stage began with, or against the data's own answers. Where lists are made here, how good they are is counted, too: a
preference model can be pleased without them getting better. What this recipe leaves out: a value function, and preference models that are trained along.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from actors.schedule import Schedule
from recipes import cli, runs
from recipes.comparison_data import ComparisonConfig, load_comparisons
from recipes.judging import JudgeConfig, open_judge
from recipes.learning_rates import LearningRateConfig
from recipes.models import TINY
from recipes.ports import DEFAULT, Ports
from recipes.preference.stages import PreferenceStage, SftStage, Stages, frozen_model, start_from

if TYPE_CHECKING:
    from actors import Evaluation, ReferencePolicy, RLSettings, RunResult, StopRequest
    from engine.data import Comparison, Examples
    from envs.preference import PreferenceModel
    from recipes.models import OpenedModel

_at_least_one: Any = attrs.validators.ge(1)
_optional_at_least_one: Any = attrs.validators.optional(_at_least_one)
SFT, PREFERENCE = "sft", "preference_model"


@attrs.frozen(kw_only=True)
class Config(ComparisonConfig):
    """Reinforcement learning from preferences. Without flags: tiny models and made data, all three stages in two minutes on two CPU cores."""

    sft: SftStage = attrs.field(factory=SftStage)
    """First stage: supervised training on answers."""
    preference_model: PreferenceStage = attrs.field(factory=PreferenceStage)
    """Second stage: the preference model."""
    preference_run: Path | None = None
    """Run directory of recipes.preference.reward_model, whose preference model is used; None: one is trained here."""
    judge: JudgeConfig = attrs.field(factory=JudgeConfig)
    """A model that compares answers in place of a trained preference model."""
    steps: int = attrs.field(default=40, validator=_at_least_one)
    """Optimizer steps of the last stage, reinforcement learning."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(groups_per_step=16))
    """Its pace: synchronous by default."""
    group_size: int = attrs.field(default=8, validator=attrs.validators.ge(2))
    """Answers to each prompt, which compete."""
    opponents: int | None = attrs.field(default=4, validator=_optional_at_least_one)
    """Others of its group that an answer is compared with; None: all of them."""
    comparisons: int = attrs.field(default=512, validator=_at_least_one)
    """Most comparisons at once."""
    kl: float = attrs.field(default=0.05, validator=attrs.validators.ge(0.0))
    """What a nat of KL to the policy that this stage began with costs, so that the answers stay such as the preference model knows; 0: nothing."""
    learning_rate: LearningRateConfig = attrs.field(factory=lambda: LearningRateConfig(peak=2e-3, warmup_steps=3))
    """The learning rate of the last stage."""
    grad_clip: float = attrs.field(default=1.0, validator=attrs.validators.ge(0.0))
    """Largest norm of a step's gradient, which is a sum over tokens; 0: no limit."""
    loss: str | None = None
    """Loss of the last stage, by name; None: importance_sampling where every group is on-policy, ppo where --schedule.max-staleness lets some be older."""
    max_answer: int = attrs.field(default=16, validator=_at_least_one)
    """Longest answer, in tokens."""
    baseline: Literal["initial", "data"] = "initial"
    """What win rates are against: the policy that this stage began with, or the chosen answers of the held-out comparisons."""
    evaluate_every: int = attrs.field(default=10, validator=_at_least_one)
    """Steps between win rates."""


FOR_REAL_MODELS: dict[str, Any] = {
    "lora_rank": 16,
    "threads": None,
    "sft": SftStage(steps=100, batch_size=8, learning_rate=LearningRateConfig(warmup_steps=10)),
    "preference_model": PreferenceStage(
        steps=200, batch_size=8, learning_rate=LearningRateConfig(warmup_steps=10), wording="full"
    ),
    "steps": 50,
    "schedule": Schedule(groups_per_step=16),
    "group_size": 4,
    "opponents": None,
    "comparisons": 64,
    "kl": 0.02,
    "learning_rate": LearningRateConfig(peak=1e-5, warmup_steps=3),
    "max_answer": 256,
    "too_long": "skip",
    "on_bad_row": "skip",
}
"""Models that speak already: LoRA, and a KL penalty, since a preference model is soon outwitted."""


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the last stage began."""
    from actors import StopRequest
    from engine.runtime.offload import offload
    from recipes.summary import preferences_learnt
    from recipes.tiny_lists import make_list_model

    peak = config.learning_rate.peak_for(config)  # first: loading a model takes longer than saying that there is none
    directory = runs.begin(config, "rlhf")
    stop = StopRequest()
    train, test = await offload(load_comparisons, config, ports.load_rows)
    result = None
    async with (
        cli.stop_on_interrupt(stop),
        ports.open_model(config, directory, seed=config.seed, make_tiny=make_list_model) as opened,
    ):
        stages = Stages(config=config, train=train, test=test, stop=stop)
        await stages.sft(config.sft, opened, directory / SFT)
        async with _preference_model(config, directory, ports, stages) as model:
            if model is not None and not stop.requested:
                result = await _reinforce(config, directory, opened, model, train, test, peak, stop)
    runs.tell(directory, result, "recipes.preference.rlhf", learnt=preferences_learnt)
    return result


@asynccontextmanager
async def _preference_model(
    config: Config, directory: Path, ports: Ports, stages: Stages
) -> AsyncIterator[PreferenceModel | None]:
    """Whoever compares: the judge that was named, the model of another run, or one that is trained here. None: it was asked to stop meanwhile."""
    from actors import RunSettings
    from envs.preference import JudgePreferenceModel
    from recipes.preference import reward_model
    from recipes.tiny_lists import make_list_model

    if config.judge.wanted:
        async with open_judge(config.judge, directory, ports, seed=config.seed) as judge:
            yield JudgePreferenceModel(judge)
        return
    if config.preference_run is not None:
        theirs = runs.configuration(config.preference_run, reward_model.Config)
        where, stage = config.preference_run, theirs.training
        async with ports.open_model(theirs, where, seed=theirs.seed, make_tiny=make_list_model) as opened:
            await start_from(opened, where)
            async with frozen_model(opened, stage.form) as model:
                yield model
        return
    where, stage = directory / PREFERENCE, config.preference_model
    async with ports.open_model(config, directory, seed=config.seed, make_tiny=make_list_model) as opened:
        if config.sft.steps and not stages.stop.requested:
            await start_from(opened, directory / SFT)
        settings = RunSettings(where, resume=config.resume, checkpoint_every=50)
        if await stages.preference_model(stage, opened, settings) is None or stages.stop.requested:
            yield None
            return
        async with frozen_model(opened, stage.form) as model:
            yield model


async def _reinforce(
    config: Config,
    directory: Path,
    opened: OpenedModel,
    model: PreferenceModel,
    train: Examples[Comparison],
    test: Examples[Comparison] | None,
    peak: float,
    stop: StopRequest,
) -> RunResult:
    from actors import train_rl
    from engine.runtime.offload import offload
    from engine.telemetry import display
    from envs.preference import Tournament, TournamentGroups, TournamentSettings
    from recipes.comparison_data import Prompts, fitting_only

    train = await offload(fitting_only, config, train)
    held_out = await offload(_read_all, config, test) if test is not None else []
    settings = TournamentSettings(
        opponents=config.opponents, concurrency=config.comparisons, on_failure=config.judge.on_failure
    )
    groups = TournamentGroups(
        renderer=opened.renderer,
        conversations=Prompts(train),
        tournament=Tournament(model, settings),
        group_size=config.group_size,
        max_tokens=config.max_answer,
        blocking=True,
    )
    with display.open(config.steps, "rlhf") as live:
        if train.skipped.count:
            live.note(str(train.skipped))
        return await train_rl(
            opened.backend,
            groups=groups,
            steps=config.steps,
            schedule=config.schedule,
            settings=_settings(config, peak),
            evaluations=lambda reference: _evaluations(config, opened, model, held_out, reference),
            run=runs.settings(config, directory),
            observers=[live],
            stop=stop,
        )


def _read_all(config: Config, comparisons: Examples[Comparison]) -> list[Comparison]:
    from recipes.comparison_data import fitting_only

    return list(fitting_only(config, comparisons))


def _settings(config: Config, peak: float) -> RLSettings:
    from actors import KLPenalty, RLSettings
    from engine.backends.values import AdamParams, Loss, SamplingParams
    from envs.rollout import RolloutSettings

    return RLSettings(
        rollout=RolloutSettings(sampling=SamplingParams(max_tokens=config.max_answer)),
        loss=None if config.loss is None else Loss(config.loss),
        kl=(KLPenalty(coef=config.kl),) if config.kl else (),
        optimizer=AdamParams(peak, grad_clip_norm=config.grad_clip),
        learning_rate=config.learning_rate.over(config.steps),
        samples_per_step=4,
        seed=config.seed,
    )


def _evaluations(
    config: Config,
    opened: OpenedModel,
    model: PreferenceModel,
    held_out: list[Comparison],
    reference: ReferencePolicy,
) -> list[Evaluation]:
    from actors import Evaluation
    from engine.backends.values import SamplingParams
    from engine.runtime.seeds import derive_seed
    from envs.preference import Questions, WinRate
    from envs.preference.labels import one_message
    from recipes.preference.lists import counted_evaluation

    sampling, every = SamplingParams(max_tokens=config.max_answer), config.evaluate_every
    evaluations = []
    if held_out:
        questions = Questions(
            renderer=opened.renderer,
            conversations=[comparison.prompt for comparison in held_out],
            sampling=sampling,
            seed=derive_seed(config.seed, 2),
        )
        chosen = [one_message(comparison.chosen) for comparison in held_out]
        baseline = reference if config.baseline == "initial" else chosen
        rate = WinRate(questions, model, baseline, concurrency=config.comparisons, on_failure=config.judge.on_failure)
        evaluations.append(Evaluation("win rate", rate, every=every))
    if config.made_here and config.model == TINY:
        evaluations.append(counted_evaluation(opened, reference, sampling, every=every, seed=config.seed))
    return evaluations


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
