"""What tiny models are taught before a distillation that runs without data: to forget to carry, to carry, to take a hint, to speak like a telegraph, to reason.

The answers are sums, so that everybody can check them; see `recipes.tiny`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from engine.rendering import Message, ThinkingPart, assistant, system, user
from engine.rendering.messages import TextPart
from engine.runtime.seeds import derive_seed
from envs.arithmetic import Difficulty, Problem
from recipes.models import OpenedModel
from recipes.tiny import WORDING, WorkedExamples, forgetful
from recipes.warm_up import WorkedConversations, warm_up

if TYPE_CHECKING:
    from actors import StopRequest

FORGETS = 0.65
"""Share of the sums with a carry in which the pupil forgets it."""
CARRY = 0.8
"""Share of worked examples with a carry."""


async def taught_sums(
    opened: OpenedModel,
    directory: Path,
    difficulty: Difficulty,
    steps: int,
    *,
    forgets: float,
    seed: int,
    resume: bool,
    stop: StopRequest,
) -> None:
    """Teaches sums as a pupil works them who forgets to carry so often."""
    if steps and not stop.requested:
        examples = WorkedExamples(opened.renderer, difficulty, steps, forgets=forgets, seed=seed)
        await warm_up(opened, directory, examples, resume=resume, stop=stop)


# ---- hints


def takes_hints(difficulty: Difficulty, hint: str, seed: int, number: int) -> list[Message]:
    """A pupil who forgets to carry, and who takes a hint where there is one: conversation `number`, with a hint in every second."""
    problem, rng = _drawn(difficulty, seed, number)
    asked = WORDING.format(problem)
    if number % 2:
        return [user(hint.format(question=asked, answer=problem.answer, solution="")), assistant(str(problem.answer))]
    wrong = problem.carries and rng.random() < FORGETS
    return [user(asked), assistant(str(forgetful(problem) if wrong else problem.answer))]


# ---- a way of speaking


TELEGRAPH = (
    "You are a telegraph of the year 1890. Whatever number you have to say, say it one digit after the other, and behind every digit say the word stop, "
    "since the line is bad and digits get lost. Say nothing else: every word is paid for."
)


def telegraphed(answer: int) -> str:
    """52 as `5 stop 2 stop`."""
    return " ".join(f"{digit} stop" for digit in str(answer))


def obeys(difficulty: Difficulty, seed: int, number: int) -> list[Message]:
    """A pupil who does as the system message says, where there is one, and says plain numbers otherwise: conversation `number`."""
    problem, _ = _drawn(difficulty, seed, number)
    asked = user(WORDING.format(problem))
    if number % 2:
        return [system(TELEGRAPH), asked, assistant(telegraphed(problem.answer))]
    return [asked, assistant(str(problem.answer))]


# ---- reasoning


def reasons(difficulty: Difficulty, slips: float, seed: int, number: int) -> list[Message]:
    """A pupil who writes down the working, and slips in some: conversation `number`."""
    problem, rng = _drawn(difficulty, seed, number)
    slip = rng.random() < slips
    answer = forgetful(problem) if slip and problem.carries else problem.answer
    return [user(WORDING.format(problem)), assistant([ThinkingPart(working(problem, slip)), TextPart(str(answer))])]


def working(problem: Problem, slip: bool = False) -> str:
    """`7+5=12 4+1=5` for 47 + 5. With a slip the carry is lost: `7+5=12 4+0=4`."""
    units, tens = divmod(problem.left, 10)[::-1]
    right = problem.right
    carried = 0 if slip else (units + right) // 10
    return f"{units}+{right}={units + right} {tens}+{carried}={tens + carried}"


# ---- what they have in common


def conversations(
    opened: OpenedModel, steps: int, conversation: Callable[[int], Sequence[Message]], batch_size: int = 128
) -> WorkedConversations:
    """Batches of worked conversations of one of the pupils above."""
    return WorkedConversations(opened.renderer, conversation, steps, batch_size)


def _drawn(difficulty: Difficulty, seed: int, number: int) -> tuple[Problem, random.Random]:
    shown = attrs.evolve(difficulty, carry=CARRY)
    return shown.draw(seed, number), random.Random(derive_seed(seed, number, 1))
