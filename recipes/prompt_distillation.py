"""Prompt distillation: a teacher answers with a long prompt in front of every question, and the student learns to answer so without it.

    python -m recipes.prompt_distillation                                                            # a tiny model that obeys, and learns to do so unasked
    python -m recipes.prompt_distillation --model Qwen/Qwen3-0.6B --prompt-file rules.txt --data questions.jsonl
    python -m recipes.prompt_distillation --model ... --teacher.model Qwen/Qwen3-8B --prompt-file rules.txt --dataset owner/questions

    1. the teacher (the same model, unless --teacher.model names another) answers every question with the prompt as its system message    <run>/answers/
    2. the student learns question and answer, without the prompt

Answers are written once: a stopped run goes on where it was, and `recipes.chat_sl --data` can read them. What this recipe leaves out: the teacher's whole distribution
(`recipes.distillation.self_distillation` learns from that, with the prompt as a hint).
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from envs.arithmetic import Difficulty
from recipes import cli, runs
from recipes.distillation.answers import (
    EVALUATION,
    FOR_REAL_MODELS,
    AnswersConfig,
    learn_answers,
    read_answers,
    sampled,
    written,
)
from recipes.distillation.teachers import TeacherConfig
from recipes.models import TINY, OpenedModel, frozen_completer
from recipes.ports import DEFAULT, Ports

if TYPE_CHECKING:
    from actors import Evaluation, RunResult, StopRequest
    from engine.completion import Completer
    from engine.data import Conversation, Examples
    from engine.rendering import Message

SAME = "same"
DIFFICULTY = Difficulty(digits=2, digits_right=1, carry=0.5)


@attrs.frozen(kw_only=True)
class Config(AnswersConfig):
    """Distils a prompt into a model. Without flags: a tiny model that obeys a prompt learns to do so without it, in a minute on two CPU cores."""

    prompt: str | None = None
    """The system message that the teacher reads and the student does without; None: --prompt-file, or, for the tiny model, one made here."""
    prompt_file: Path | None = None
    """The prompt, out of a file."""
    teacher: TeacherConfig = attrs.field(factory=lambda: TeacherConfig(model=SAME))
    """Who writes the answers; same: the student's own weights before the training."""
    questions: int = attrs.field(default=768, validator=attrs.validators.ge(1))
    """Sums that are made where no data is named; a sixth as many are held out."""
    temperature: float = attrs.field(default=0.0, validator=attrs.validators.ge(0.0))
    """Sampling temperature of the teacher's answers; 0 is greedy."""
    warm_up: int = attrs.field(default=150, validator=attrs.validators.ge(0))
    """Supervised steps that the tiny model first takes."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.prompt is not None and self.prompt_file is not None:
            raise ValueError("prompt cannot be given beside --prompt-file: both say what is to be distilled")


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the student's training began."""
    from actors import StopRequest
    from engine.rendering import system
    from engine.runtime.offload import offload
    from recipes.distillation.telling import answers_learnt

    if config.model != TINY and config.data is None and config.dataset is None:
        raise ValueError("--data or --dataset must be given: the questions that the teacher answers")
    prompt = system(await offload(_prompt, config))
    directory = runs.begin(config, "prompt_distillation")
    stop = StopRequest()
    result, shown = None, list[str]()
    async with cli.stop_on_interrupt(stop), _open(config, directory, ports, stop) as (student, teacher):
        questions, held_out = await offload(_questions, config, ports)
        asked = lambda question: (prompt, *question)  # noqa: E731
        answers = await written(config, directory, questions, teacher, stop, asked=asked)
        expected = await written(config, directory, held_out, teacher, stop, asked=asked, held_out=True)
        if not stop.requested:
            learnt, held = [await offload(read_answers, each.path) for each in (answers, expected)]
            evaluations = _evaluations(config, student, held)
            result = await learn_answers(config, directory, student, learnt, evaluations, "prompt_distillation", stop)
            shown = await sampled(config, student, held)
    runs.tell(directory, result, "recipes.prompt_distillation", learnt=lambda path: [*answers_learnt(path), *shown])
    return result


@asynccontextmanager
async def _open(
    config: Config, directory: Path, ports: Ports, stop: StopRequest
) -> AsyncIterator[tuple[OpenedModel, Completer]]:
    """The student before its training, and who writes the answers."""
    from recipes.distillation import pupils
    from recipes.warm_up import tiny_model_for, warm_up

    pupil = partial(pupils.obeys, DIFFICULTY, config.seed)
    make_tiny = tiny_model_for(config.renderer or "role_colon", [pupil(number) for number in range(64)])
    async with ports.open_model(config, directory, seed=config.seed, make_tiny=make_tiny) as student:
        if config.model == TINY and config.warm_up:
            batches = pupils.conversations(student, config.warm_up, pupil)
            await warm_up(student, directory, batches, resume=config.resume, stop=stop)
        if config.teacher.model != SAME:
            async with ports.open_completer(config.teacher, directory / "teacher", seed=config.seed + 1) as teacher:
                yield student, teacher
            return
        async with frozen_completer(student) as teacher:
            yield student, teacher


def _prompt(config: Config) -> str:
    from recipes.distillation.pupils import TELEGRAPH

    if config.prompt_file is not None:
        text = config.prompt_file.read_text(encoding="utf-8").strip()
        if not text:
            raise ValueError(f"{config.prompt_file} is empty: what is to be distilled?")
        return text
    if config.prompt is None and config.model != TINY:
        raise ValueError("--prompt or --prompt-file must be given: what is to be distilled into the model?")
    return config.prompt or TELEGRAPH


def _questions(config: Config, ports: Ports) -> tuple[Sequence[Sequence[Message]], Sequence[Sequence[Message]]]:
    """To learn from, and held out."""
    from engine.data import read_prompts
    from engine.rendering import user
    from engine.runtime.seeds import derive_seed
    from recipes.row_data import load_split
    from recipes.tiny import WORDING

    if config.data is not None or config.dataset is not None:
        read = partial(read_prompts, on_bad_row=config.on_bad_row)
        train, test = load_split(config, ports.load_rows, None, read)
        if test is None:
            raise ValueError("--held-out must not be 0: what the student has learnt shows on held-out questions")
        return list(train), list(test)
    sums = [DIFFICULTY.draw(derive_seed(config.seed, 1), n) for n in range(config.questions + config.questions // 6)]
    # What is held out is not asked in training.
    asked = list(dict.fromkeys(WORDING.format(problem) for problem in sums))
    count = max(1, len(asked) // 7)
    return [(user(text),) for text in asked[count:]], [(user(text),) for text in asked[:count]]


def _evaluations(config: Config, student: OpenedModel, held_out: Examples[Conversation]) -> list[Evaluation]:
    """How often the student, without the prompt, answers held-out questions in the teacher's words."""
    from actors.agreement import agreement_evaluation
    from engine.backends.values import SamplingParams

    conversations = [conversation.messages for conversation in held_out]
    greedy = SamplingParams(max_tokens=config.answer_tokens, temperature=0.0)
    return [agreement_evaluation(EVALUATION, conversations, student.renderer, greedy, every=config.evaluate_every)]


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
