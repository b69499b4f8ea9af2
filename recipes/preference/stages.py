"""The supervised stages before reinforcement learning from preferences: answers to imitate, and a preference model. Each is a run of its own in its directory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from recipes.comparison_data import ComparisonConfig, as_conversations
from recipes.learning_rates import LearningRateConfig

if TYPE_CHECKING:
    from actors import BatchDataset, Evaluation, RunResult, RunSettings, StopRequest
    from engine.data import Comparison, Examples
    from envs.preference import ComparisonFormat, LabelPreferenceModel
    from recipes.models import OpenedModel

_at_least_one: Any = attrs.validators.ge(1)
AGREEMENT = "agreement"


@attrs.frozen(kw_only=True)
class SftStage:
    """Supervised training before: on the careless speaker's answers where lists are made here, on the chosen answers of named data."""

    steps: int = attrs.field(default=150, validator=attrs.validators.ge(0))
    """Optimizer steps; 0: none."""
    batch_size: int = attrs.field(default=64, validator=_at_least_one)
    """Answers a step."""
    learning_rate: LearningRateConfig = attrs.field(factory=lambda: LearningRateConfig(peak=4e-3, warmup_steps=10))
    """The learning rate over the stage."""


@attrs.frozen(kw_only=True)
class PreferenceStage:
    """Training of a preference model: a language model that reads a prompt and two answers, and says A or B."""

    steps: int = attrs.field(default=500, validator=_at_least_one)
    """Optimizer steps."""
    batch_size: int = attrs.field(default=32, validator=_at_least_one)
    """Comparisons a step, each in both orders."""
    learning_rate: LearningRateConfig = attrs.field(factory=lambda: LearningRateConfig(peak=3e-3, warmup_steps=20))
    """The learning rate over the stage."""
    wording: Literal["brief", "full"] = "brief"
    """How the model is asked: in as few words as can be, which a tiny model learns; or in full, with conversation and answers between tags."""
    evaluate_every: int = attrs.field(default=100, validator=_at_least_one)
    """Steps between evaluations on the held-out comparisons."""

    @property
    def form(self) -> ComparisonFormat:
        """How the model is asked."""
        from envs.preference import ComparisonFormat, worded, worded_briefly

        return ComparisonFormat(worded_briefly if self.wording == "brief" else worded)


@attrs.frozen(kw_only=True)
class Stages:
    """What the stages of one recipe share."""

    config: ComparisonConfig
    """The recipe's."""
    train: Examples[Comparison]
    test: Examples[Comparison] | None
    stop: StopRequest

    async def sft(self, stage: SftStage, opened: OpenedModel, directory: Path) -> None:
        """Imitates answers; a run of its own in `directory`."""
        from actors import RunSettings

        if not stage.steps or self.stop.requested:
            return
        run = RunSettings(directory, resume=self.config.resume, checkpoint_every=None)
        await self._supervise("sft", stage.steps, stage.learning_rate, opened, self._answers(stage, opened), run)

    def _answers(self, stage: SftStage, opened: OpenedModel) -> BatchDataset:
        from engine.data import SupervisedBatches, ToDatums, read_conversations
        from engine.rendering import TrainOnWhat
        from engine.runtime.seeds import derive_seed
        from recipes.tiny_lists import made_answers

        if self.config.made_here:
            made = made_answers(stage.steps * stage.batch_size, derive_seed(self.config.seed, 0))
            answers = read_conversations(made)
        else:
            answers = as_conversations(self.train)
        to_datums = ToDatums(
            renderer=opened.renderer,
            train_on=TrainOnWhat.LAST_ASSISTANT_MESSAGE,
            max_tokens=self.config.max_tokens,
            too_long=self.config.too_long,
        )
        batches = SupervisedBatches(
            examples=answers,
            to_datums=to_datums,
            batch_size=stage.batch_size,
            seed=self.config.seed,
            on_bad_row=self.config.on_bad_row,
        )
        return batches.for_steps(stage.steps)

    async def preference_model(self, stage: PreferenceStage, opened: OpenedModel, run: RunSettings) -> RunResult | None:
        """Learns which of two answers is better, and how often it agrees with the held-out comparisons. None: it was asked to stop before."""
        from engine.data import SupervisedBatches
        from engine.runtime.offload import offload
        from envs.preference import ToLabels

        if self.stop.requested:
            return None
        to_labels = ToLabels(
            renderer=opened.renderer, form=stage.form, max_tokens=self.config.max_tokens, too_long=self.config.too_long
        )
        batches = SupervisedBatches(
            examples=self.train,
            to_datums=to_labels,
            batch_size=stage.batch_size,
            seed=self.config.seed,
            on_bad_row=self.config.on_bad_row,
        )
        evaluations = await offload(self._agreement, stage, opened)
        return await self._supervise(
            "preference model",
            stage.steps,
            stage.learning_rate,
            opened,
            batches.for_steps(stage.steps),
            run,
            evaluations,
        )

    def _agreement(self, stage: PreferenceStage, opened: OpenedModel) -> list[Evaluation]:
        from actors import Evaluation
        from engine.data import BadRow
        from envs.preference import Agreement, LabelPreferenceModel

        held_out = []
        for index in range(len(self.test) if self.test is not None else 0):
            try:
                held_out.append(self.test[index])  # type: ignore[index]
            except BadRow:
                if self.config.on_bad_row == "error":
                    raise
        if not held_out:
            return []
        agreement = Agreement(held_out, lambda policy: LabelPreferenceModel(policy, opened.renderer, stage.form))
        return [Evaluation(AGREEMENT, agreement, every=stage.evaluate_every)]

    async def _supervise(
        self,
        title: str,
        steps: int,
        rate: LearningRateConfig,
        opened: OpenedModel,
        batches: BatchDataset,
        run: RunSettings,
        evaluations: list[Evaluation] | None = None,
    ) -> RunResult:
        from actors import train_supervised
        from engine.backends.values import AdamParams
        from engine.telemetry import display

        with display.open(steps, title) as live:
            return await train_supervised(
                opened.backend,
                batches=batches,
                steps=steps,
                optimizer=AdamParams(rate.peak_for(self.config), beta2=0.98, grad_clip_norm=1.0),
                learning_rate=rate.over(steps),
                evaluations=evaluations or [],
                run=run,
                observers=[live],
                stop=self.stop,
            )


async def start_from(opened: OpenedModel, run: Path) -> None:
    """Loads the newest weights of a finished stage; the next run on them begins at step 0."""
    from engine.runtime.offload import offload
    from engine.storage import select_checkpoint

    checkpoint = await offload(select_checkpoint, run)
    await opened.backend.load_state(checkpoint.path / "trainer").result()


@asynccontextmanager
async def frozen_model(opened: OpenedModel, form: ComparisonFormat) -> AsyncIterator[LabelPreferenceModel]:
    """A preference model of the weights as they are now."""
    from actors import ReferencePolicy
    from envs.preference import LabelPreferenceModel

    policy = ReferencePolicy(opened.backend, await opened.backend.snapshot().result())
    try:
        yield LabelPreferenceModel(policy, opened.renderer, form)
    finally:
        policy.release()
