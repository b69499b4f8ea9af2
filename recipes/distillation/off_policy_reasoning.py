"""Off-policy distillation of reasoning: the student learns, word by word, how somebody else came to an answer.

    python -m recipes.distillation.off_policy_reasoning                             # a tiny teacher that writes down its working, an untrained tiny student
    python -m recipes.distillation.off_policy_reasoning --model Qwen/Qwen3-0.6B --traces --dataset owner/traces         # traces that are there already
    python -m recipes.distillation.off_policy_reasoning --model Qwen/Qwen3-0.6B --dataset gsm8k --samples 4 \\
        --teacher.backend openai_compatible --teacher.model Qwen/Qwen3-32B --teacher.base-url http://host:8000/v1       # a teacher writes them

A teacher's traces are kept where their answer is right, and counted where it is not; each is written once, whatever interrupts the work, as
`{"messages": [..., {"role": "assistant", "reasoning_content": "...", "content": "..."}]}`. Any teacher will do that answers messages: its vocabulary does not matter.
What this recipe leaves out: grading beyond numbers and equal words.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Sequence
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
    written,
)
from recipes.models import TINY, MakeTiny, OpenedModel, frozen_completer
from recipes.ports import DEFAULT, Ports

if TYPE_CHECKING:
    from actors import Evaluation, RunResult, StopRequest
    from engine.completion import Completer
    from engine.data import Conversation, Examples, Problem, Rows

DIFFICULTY = Difficulty(digits=2, digits_right=1, carry=0.8)
SLIPS = 0.1
"""Share of its sums in which the tiny teacher loses a carry."""


@attrs.frozen(kw_only=True)
class Config(AnswersConfig):
    """Learns from reasoning that a teacher wrote. Without flags: a tiny teacher writes down its working, and an untrained tiny student learns it, in two minutes."""

    traces: bool = False
    """The rows of --data or --dataset are conversations with reasoning already, and nobody is asked; otherwise they are problems that the teacher solves."""
    problems: int = attrs.field(default=1200, validator=attrs.validators.ge(1))
    """Sums that are made where no data is named; a twelfth of them is held out."""
    samples: int = attrs.field(default=2, validator=attrs.validators.ge(1))
    """Traces for each problem."""
    epochs: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    """Walks over the traces."""
    keep_wrong: bool = False
    """Keep answers whatever they come to."""
    warm_up: int = attrs.field(default=120, validator=attrs.validators.ge(0))
    """Supervised steps of the tiny teacher."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.traces and self.data is None and self.dataset is None:
            raise ValueError("traces needs --data or --dataset: which rows?")


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the student's training began."""
    from actors import StopRequest
    from recipes.distillation.telling import answers_learnt, reasoned

    if config.model == TINY and config.renderer is None:
        config = attrs.evolve(config, renderer="qwen3")  # a format with a place for reasoning
    directory = runs.begin(config, "off_policy_reasoning")
    stop = StopRequest()
    result, shown = None, list[str]()
    async with cli.stop_on_interrupt(stop):
        material = await (_given(config, ports) if config.traces else _asked(config, directory, ports, stop))
        if material is not None and not stop.requested:
            async with ports.open_model(config, directory, seed=config.seed, make_tiny=_make_tiny(config)) as student:
                result = await learn_answers(
                    config,
                    directory,
                    student,
                    material.traces,
                    await _evaluations(config, student, material),
                    "off_policy_reasoning",
                    stop,
                )
                shown = await reasoned(student, material.problems[: config.show], config.answer_tokens)
    module = "recipes.distillation.off_policy_reasoning"
    runs.tell(directory, result, module, learnt=lambda path: [*answers_learnt(path), *shown])
    return result


@attrs.frozen
class Material:
    """What is learnt, and what is held out: other traces, or problems."""

    traces: Examples[Conversation]
    held_out: Examples[Conversation] | None = None
    problems: Sequence[Problem] = ()


async def _given(config: Config, ports: Ports) -> Material:
    """Traces that are there already."""
    from engine.data import read_conversations
    from engine.runtime.offload import offload
    from recipes.row_data import load_split

    # A row that does not fit is its batch's business.
    read: Callable[[Rows], Examples[Conversation]] = read_conversations
    traces, held_out = await offload(load_split, config, ports.load_rows, None, read)
    return Material(traces, held_out)


async def _asked(config: Config, directory: Path, ports: Ports, stop: StopRequest) -> Material | None:
    """Traces that the teacher writes. None where it was stopped before all were there."""
    from actors.generation import only_finished
    from engine.completion import Reply
    from engine.rendering import Message, user
    from engine.runtime.offload import offload
    from envs.short_answers import same_answer

    problems, held_out = await offload(_problems, config, ports)

    def judged(index: int, prompt: Sequence[Message], reply: Reply) -> str | None:
        right = config.keep_wrong or same_answer(reply.text, problems[index].answer)
        return only_finished(index, prompt, reply) or (None if right else "wrong")

    prompts = [(user(problem.question),) for problem in problems]
    async with _open_teacher(config, directory, ports, stop) as teacher:
        generated = await written(config, directory, prompts, teacher, stop, keep=judged)
    if not generated.complete:
        return None
    if not generated.kept:
        raise ValueError(f"nothing is left to learn from: {generated}")
    return Material(await offload(read_answers, generated.path), problems=held_out)


@asynccontextmanager
async def _open_teacher(config: Config, directory: Path, ports: Ports, stop: StopRequest) -> AsyncIterator[Completer]:
    """Who writes the traces."""
    from recipes.distillation import pupils
    from recipes.warm_up import warm_up

    path, seed = directory / "teacher", config.seed + 1
    if config.teacher.model != TINY:
        async with ports.open_completer(config.teacher, path, seed=seed) as completer:
            yield completer
        return
    tiny = attrs.evolve(config.teacher, renderer=config.renderer)
    async with ports.open_model(tiny, path, seed=seed, make_tiny=_make_tiny(config)) as opened:
        batches = pupils.conversations(opened, config.warm_up, partial(pupils.reasons, DIFFICULTY, SLIPS, seed))
        await warm_up(opened, path, batches, resume=config.resume, stop=stop)
        async with frozen_completer(opened) as completer:
            yield completer


def _make_tiny(config: Config) -> MakeTiny:
    from recipes.distillation.pupils import reasons
    from recipes.warm_up import tiny_model_for

    return tiny_model_for(config.renderer or "qwen3", [reasons(DIFFICULTY, 0.0, 0, number) for number in range(64)])


def _problems(config: Config, ports: Ports) -> tuple[Sequence[Problem], Sequence[Problem]]:
    """To be solved by the teacher, and held out. Blocks."""
    from engine.data import Problem, read_problems
    from engine.runtime.seeds import derive_seed
    from recipes.row_data import load_split
    from recipes.tiny import WORDING

    if config.data is not None or config.dataset is not None:
        read = partial(read_problems, on_bad_row=config.on_bad_row)
        train, test = load_split(config, ports.load_rows, None, read)
        return list(train), list(test) if test is not None else []
    drawn = [DIFFICULTY.draw(derive_seed(config.seed, 1), number) for number in range(config.problems)]
    made = [Problem(WORDING.format(each), str(each.answer)) for each in dict.fromkeys(drawn)]
    held = max(1, len(made) // 12)
    return made[held:], made[:held]


async def _evaluations(config: Config, student: OpenedModel, material: Material) -> list[Evaluation]:
    """The share of held-out problems that the student gets right, or the likelihood of held-out traces."""
    from actors import group_evaluation, nll_evaluation
    from engine.backends.values import SamplingParams
    from engine.data import ToDatums, held_out_set
    from engine.runtime.offload import offload
    from envs.rollout import RolloutSettings
    from envs.short_answers import ShortAnswerGroups

    if material.problems:
        groups = ShortAnswerGroups(student.renderer, material.problems)
        rollout = RolloutSettings(SamplingParams(max_tokens=config.answer_tokens))
        return [group_evaluation(EVALUATION, groups, rollout, every=config.evaluate_every, seed=config.seed)]
    if material.held_out is None:
        return []
    to_datums = ToDatums(renderer=student.renderer, max_tokens=config.max_tokens, too_long="skip")
    held_out = await offload(held_out_set, material.held_out, to_datums, config.on_bad_row)
    return [nll_evaluation(EVALUATION, held_out.data, text_bytes=held_out.text_bytes, every=config.evaluate_every)]


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
