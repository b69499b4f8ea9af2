"""What recipes that learn from a teacher's answers share: a teacher writes them, once, and a student learns them by supervised training.

<run>/answers/, <run>/held_out/      what was written, for training and for evaluation (`actors.generation`)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from recipes import runs
from recipes.distillation.teachers import TeacherConfig
from recipes.learning_rates import LearningRateConfig
from recipes.row_data import RowsConfig
from recipes.terminal import say

if TYPE_CHECKING:
    from actors import Evaluation, RunResult, StopRequest
    from actors.generation import Generated, Keep
    from engine.completion import Completer
    from engine.data import Conversation, Examples
    from engine.rendering import Message
    from recipes.models import OpenedModel

_positive = attrs.validators.ge(1)
EVALUATION = "held out"


@attrs.frozen(kw_only=True)
class AnswersConfig(RowsConfig):
    """A teacher that writes answers, and a student that learns them."""

    teacher: TeacherConfig = attrs.field(factory=TeacherConfig)
    """Who writes the answers."""
    samples: int = attrs.field(default=1, validator=_positive)
    """Answers to each prompt."""
    concurrency: int = attrs.field(default=64, validator=_positive)
    """Answers asked for at once."""
    temperature: float = attrs.field(default=1.0, validator=attrs.validators.ge(0.0))
    """Sampling temperature of the teacher's answers; 0 is greedy."""
    answer_tokens: int = attrs.field(default=24, validator=_positive)
    """Longest answer, in tokens; what is cut off there is dropped."""
    epochs: int = attrs.field(default=4, validator=_positive)
    """Walks over the answers."""
    batch_size: int = attrs.field(default=32, validator=_positive)
    """Answers a step."""
    learning_rate: LearningRateConfig = attrs.field(factory=lambda: LearningRateConfig(peak=4e-3, warmup_steps=5))
    """The learning rate over the run."""
    grad_clip: float = attrs.field(default=1.0, validator=attrs.validators.ge(0.0))
    """Largest norm of a step's gradient, which is a mean over tokens; 0: no limit."""
    evaluate_every: int = attrs.field(default=40, validator=_positive)
    """Steps between evaluations on held-out prompts."""
    show: int = attrs.field(default=3, validator=attrs.validators.ge(0))
    """Held-out prompts whose answer is shown at the end."""


FOR_REAL_MODELS: dict[str, Any] = {
    "lora_rank": 16,
    "threads": None,
    "epochs": 1,
    "batch_size": 8,
    "answer_tokens": 1024,
    "learning_rate": LearningRateConfig(warmup_steps=5),
    "evaluate_every": 20,
}
"""A student that speaks already: LoRA, at the learning rate that is recommended for it."""


async def written(
    config: AnswersConfig,
    directory: Path,
    prompts: Sequence[Sequence[Message]],
    teacher: Completer,
    stop: StopRequest,
    *,
    asked: Callable[[Sequence[Message]], Sequence[Message]] = lambda prompt: prompt,
    keep: Keep | None = None,
    held_out: bool = False,
) -> Generated:
    """The teacher's answers to the prompts; those that are written already are not asked for again. Held-out ones are greedy, one to a prompt."""
    from actors.generation import GenerationSettings, generate_answers, only_finished
    from engine.backends.values import SamplingParams

    temperature = 0.0 if held_out else config.temperature
    settings = GenerationSettings(
        sampling=SamplingParams(max_tokens=config.answer_tokens, temperature=temperature),
        samples=1 if held_out else config.samples,
        concurrency=config.concurrency,
        seed=config.seed + held_out,
    )
    name = "held_out" if held_out else "answers"
    generated = await generate_answers(
        prompts, teacher, directory / name, settings, asked=asked, keep=keep or only_finished, stop=stop
    )
    say(f"{name.replace('_', ' '):<9} {generated} ({generated.path})" if generated.complete else f"{name}: stopped")
    return generated


async def learn_answers(
    config: AnswersConfig,
    directory: Path,
    student: OpenedModel,
    answers: Examples[Conversation],
    evaluations: Sequence[Evaluation],
    name: str,
    stop: StopRequest,
) -> RunResult:
    """Supervised training on answers: the last message of each conversation."""
    from actors import train_supervised
    from engine.backends.values import AdamParams
    from engine.data import SupervisedBatches, ToDatums
    from engine.rendering import TrainOnWhat
    from engine.telemetry import display

    batches = SupervisedBatches(
        examples=answers,
        to_datums=ToDatums(
            renderer=student.renderer,
            train_on=TrainOnWhat.LAST_ASSISTANT_MESSAGE,
            max_tokens=config.max_tokens,
            too_long="skip",
        ),
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        on_bad_row=config.on_bad_row,
    )
    steps = len(batches)
    with display.open(steps, name) as live:
        return await train_supervised(
            student.backend,
            batches=batches,
            optimizer=AdamParams(config.learning_rate.peak_for(config), grad_clip_norm=config.grad_clip),
            learning_rate=config.learning_rate.over(steps),
            evaluations=evaluations,
            run=runs.settings(config, directory),
            observers=[live],
            stop=stop,
        )


def read_answers(path: Path) -> Examples[Conversation]:
    """Written answers, each behind its prompt. Blocks."""
    from engine.data import load_rows, read_conversations

    return read_conversations(load_rows(path))


async def sampled(config: AnswersConfig, student: OpenedModel, held_out: Examples[Conversation]) -> list[str]:
    """The student's answers to a few prompts, and in brackets what was answered there, in lines."""
    from recipes.summary import sampled_answers

    return await sampled_answers(student, held_out, config.show)
