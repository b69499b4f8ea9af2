"""What the tiny model of `recipes.code_rl` learns to speak from: small functions written by a pupil who knows Python, but often not which function is asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence

from engine.rendering import Message, assistant, user
from engine.runtime.seeds import derive_seed
from envs.code.toys import NUMBERS, TASKS, drawn, toy_problem, written
from recipes.models import MakeTiny

CARELESS = 0.65
"""Share of the worked examples in which the pupil writes any function, not the one that was asked for."""


def worked(seed: int, number: int) -> Sequence[Message]:
    """Worked example `number`: a question, and what the pupil wrote."""
    kind, constant = drawn(seed, number)
    rng = random.Random(derive_seed(seed, number, 1))
    said = rng.choice(list(TASKS)) if rng.random() < CARELESS else kind
    return [user(toy_problem(kind, constant).statement), assistant(written(rng.choice(TASKS[said].right), constant))]


def make_tiny_coder(renderer: str) -> MakeTiny:
    """A tiny model whose tokenizer has these questions and answers in few tokens."""
    from recipes.warm_up import tiny_model_for

    conversations = [
        [user(toy_problem(kind, number).statement), assistant(written(expression, number))]
        for kind, task in TASKS.items()
        for number in NUMBERS
        for expression in task.right
    ]
    return tiny_model_for(renderer, conversations)
