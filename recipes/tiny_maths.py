r"""What the tiny model of `recipes.math_rl` learns to speak from: sums by a pupil who forgets to carry, and to put the answer into a box."""

from __future__ import annotations

import random
from collections.abc import Sequence

import attrs

from engine.rendering import Message, assistant, user
from engine.runtime.seeds import derive_seed
from envs.arithmetic import Difficulty
from envs.math_problems import ArithmeticProblems
from recipes.tiny import forgetful

FORGETS_TO_CARRY = 0.65
FORGETS_THE_BOX = 0.5


def worked(difficulty: Difficulty, seed: int, number: int) -> Sequence[Message]:
    """Worked example `number`."""
    rng = random.Random(derive_seed(seed, number, 1))
    # Mostly with a carry, because that is where there is something to learn.
    problem = attrs.evolve(difficulty, carry=0.8).draw(seed, number)
    answer = forgetful(problem) if problem.carries and rng.random() < FORGETS_TO_CARRY else problem.answer
    said = str(answer) if rng.random() < FORGETS_THE_BOX else f"\\boxed{{{answer}}}"
    return [user(ArithmeticProblems().wording.format(problem)), assistant(said)]
