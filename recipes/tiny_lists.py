"""Lists of words made on the spot, for recipes of preference without data: "Name four animals." and a speaker who does not listen well.

Half of what the careless speaker says are words of another kind, and some come twice. How good an answer is can be counted here (`quality`), so a run on these
data also shows whether a policy that its preference model likes better *is* better.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from engine.data import Rows, rows_of
from engine.rendering import Message
from recipes.tiny import make_model

KINDS: Mapping[str, Sequence[str]] = {
    "animals": ("cat", "dog", "cow", "fox", "hen", "owl"),
    "colours": ("red", "blue", "green", "black", "white", "pink"),
    "fruits": ("apple", "pear", "plum", "fig", "lemon", "peach"),
    "tools": ("saw", "axe", "drill", "file", "rake", "spade"),
}
WORDINGS = ("Name four {}.", "Four {}, please.", "Which {} do you know?", "List some {}.")
WANTED = 4
"""Words that an answer should have."""
LISTENS = 0.5
"""Share of the careless speaker's words that are of the kind asked for."""
WORDS = (3, 5)
"""How many words the careless speaker says, from and to."""
DREAMS = 0.2
"""Share of his words that are of the kind asked for when he does not listen at all."""
SLIPS = 0.3
"""Share of the careful speaker's answers in which one word is of another kind."""
CLEAR = 2 / 3
"""Share of the made comparisons that are clear."""


def made_questions(count: int, seed: int = 0) -> Rows:
    """So many questions, as rows with a `prompt`."""
    rng = random.Random(seed)
    return rows_of([{"prompt": _question(rng)[1]} for _ in range(count)], "made questions")


def made_answers(count: int, seed: int = 0, *, words: tuple[int, int] = WORDS) -> Rows:
    """So many questions, each answered by the careless speaker in so many words, as rows with `messages`."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        kind, question = _question(rng)
        said = {"role": "assistant", "content": _careless(rng, kind, rng.randint(*words))}
        rows.append({"messages": [{"role": "user", "content": question}, said]})
    return rows_of(rows, "made answers")


def made_comparisons(count: int, seed: int = 0) -> Rows:
    """So many questions with two answers, the better one chosen; as rows with `prompt`, `chosen` and `rejected`.

    Two of three are clear: one answer of somebody who listens, says four words, and none of them twice, and one of the careless speaker. The others are both of
    the careless speaker.
    """
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        kind, question = _question(rng)
        clear = rng.random() < CLEAR
        first = _careful(rng, kind) if clear else _careless(rng, kind, rng.randint(*WORDS))
        second = _careless(rng, kind, rng.randint(*WORDS), DREAMS if clear else LISTENS)
        if _share(kind, first) != _share(kind, second):
            better, worse = (first, second) if _share(kind, first) > _share(kind, second) else (second, first)
            rows.append({"prompt": question, "chosen": better, "rejected": worse})
    return rows_of(rows, "made comparisons")


def quality(conversation: Sequence[Message], answer: Message) -> float:
    """How good an answer is, 0 to 1: different words of the kind asked for, of four, or of as many as it says where it says more."""
    kind = next((kind for kind in KINDS if kind in conversation[-1].text), None)
    if kind is None:
        raise ValueError(f"{conversation[-1].text!r} asks for none of {', '.join(KINDS)}")
    return _share(kind, answer.text)


def _share(kind: str, answer: str) -> float:
    said = re.findall(r"[^\s,]+", answer)
    return len(set(said) & set(KINDS[kind])) / max(WANTED, len(said))


def _question(rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(list(KINDS))
    return kind, rng.choice(WORDINGS).format(kind)


def _careless(rng: random.Random, kind: str, count: int, listens: float = LISTENS) -> str:
    others = [word for other, words in KINDS.items() if other != kind for word in words]
    return ", ".join(rng.choice(KINDS[kind] if rng.random() < listens else others) for _ in range(count))


def _careful(rng: random.Random, kind: str) -> str:
    words = rng.sample(KINDS[kind], WANTED)
    if rng.random() < SLIPS:
        words[rng.randrange(WANTED)] = rng.choice(KINDS[rng.choice([other for other in KINDS if other != kind])])
    return ", ".join(words)


def _texts() -> list[str]:
    asked = [f"User: {wording.format(kind)}" for wording in WORDINGS for kind in KINDS]
    said = [f" {word}{end}" for words in KINDS.values() for word in words for end in (",", "")]
    return [*asked, *said, "\n\nAssistant:", "\n\nUser:", "\nA:", "\nB:", "\nA or B?", " A", " B"]


make_list_model = partial(make_model, texts=_texts(), vocabulary=768, context=128)
"""A tiny model whose tokenizer knows the lists' words."""
