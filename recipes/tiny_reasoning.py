"""What the tiny model of `recipes.gym_rl` learns to speak from: words spelt backward by a pupil who mostly spells them forward."""

from __future__ import annotations

import random
from collections.abc import Sequence

from engine.rendering import Message, assistant, user
from engine.runtime.seeds import derive_seed

QUESTION = "Spell this word backward (example: sun -> nus): {}"
FORGETS = 0.6
"""Share of the words that the pupil copies instead."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
LENGTHS = (3, 3, 4, 4, 5, 5, 6, 7)
CAPITAL = 0.1
VOCABULARY = 256 + 48
"""Tokens: the bytes, and what joins the question's own words; the letters of a word stay apart."""


def worked(seed: int, number: int) -> Sequence[Message]:
    """Worked example `number`. The words are not words, so that none of the task's own is learnt by heart."""
    rng = random.Random(derive_seed(seed, number))
    word = "".join(rng.choice(LETTERS) for _ in range(rng.choice(LENGTHS)))
    word = word.capitalize() if rng.random() < CAPITAL else word
    return [user(QUESTION.format(word)), assistant(word if rng.random() < FORGETS else word[::-1])]
