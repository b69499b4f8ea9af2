"""Chats made on the spot, for supervised recipes without data: questions about a few animals, each asked in several wordings, two to a chat.

What an answer says does not depend on the wording, and no chat is there twice. So a model that has learnt the facts also answers the chats that were
held out, and one that has only learnt chats by heart does not.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from engine.data import Rows, rows_of
from recipes.tiny import make_model

ANIMALS: Mapping[str, tuple[str, str, str, str]] = {
    # plural, home, number of legs, sound
    "cow": ("cows", "a barn", "4", "moo"),
    "bee": ("bees", "a hive", "6", "buzz"),
    "fox": ("foxes", "a den", "4", "yip"),
    "hen": ("hens", "a coop", "2", "cluck"),
    "pig": ("pigs", "a sty", "4", "oink"),
    "owl": ("owls", "a tree", "2", "hoot"),
    "dog": ("dogs", "a kennel", "4", "woof"),
    "duck": ("ducks", "a pond", "2", "quack"),
    "mouse": ("mice", "a hole", "4", "squeak"),
    "horse": ("horses", "a stable", "4", "neigh"),
    "goose": ("geese", "a field", "2", "honk"),
    "cricket": ("crickets", "a meadow", "6", "chirp"),
}
QUESTIONS: Sequence[tuple[tuple[str, ...], str]] = (
    (
        ("What is the plural of {}?", "More than one {}?", "One {}, two of what?"),
        "{plural}.",
    ),
    (
        ("Where does a {} live?", "What is the home of a {}?", "Where do I find a {}?"),
        "In {home}.",
    ),
    (
        ("How many legs has a {}?", "Legs of a {}?", "On how many legs does a {} walk?"),
        "It has {legs}.",
    ),
    (
        ("What does a {} say?", "Sound of a {}?", "How does a {} sound?"),
        "It goes {sound}.",
    ),
)


def made_chats(count: int = 2048, seed: int = 0) -> Rows:
    """So many chats, as rows with `messages`; no two are the same."""
    asked = [(animal, kind, wording) for animal in ANIMALS for kind in range(len(QUESTIONS)) for wording in range(3)]
    pairs = list(itertools.permutations(range(len(asked)), 2))
    rng = random.Random(seed)
    return rows_of(
        [{"messages": [*_turn(*asked[first]), *_turn(*asked[second])]} for first, second in rng.sample(pairs, count)],
        "made chats",
    )


def _turn(animal: str, kind: int, wording: int) -> list[dict[str, Any]]:
    plural, home, legs, sound = ANIMALS[animal]
    wordings, answer = QUESTIONS[kind]
    said = answer.format(plural=plural, home=home, legs=legs, sound=sound)
    return [
        {"role": "user", "content": wordings[wording].format(animal)},
        {"role": "assistant", "content": said},
    ]


def _texts() -> list[str]:
    return [
        f"\n\n{message['role'].capitalize()}: {message['content']}"
        for row in made_chats(400)
        for message in row["messages"]
    ]


make_chat_model = partial(make_model, texts=_texts(), vocabulary=384, context=128)
"""A tiny model whose tokenizer knows the chats' words."""
