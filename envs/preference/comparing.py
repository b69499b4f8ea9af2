"""The port of preference: which of two answers to a conversation is better.

    conversation, answer a, answer b ──PreferenceModel──> score in [−1, 1], above 0 where a is better

A trained language model (`envs.preference.labels`), a judge over any completer (`envs.preference.judged`), or a function (`FunctionPreferenceModel`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from engine.rendering import Message
from envs.answers import spoken

Conversation = Sequence[Message]


class ComparisonFailed(Exception):
    """A comparison that came to no verdict, or to one that is no score."""


class PreferenceModel(Protocol):
    """Whoever compares two answers."""

    async def compare(self, conversation: Conversation, answer_a: Message, answer_b: Message) -> float:
        """From −1 (b is clearly better) to 1 (a is), 0 where neither is.

        Implementations of this project give −s for the answers the other way round. Raises whatever kept it from a verdict.
        """
        ...


Comparer = Callable[[Conversation, Message, Message], float | Awaitable[float]]


class FunctionPreferenceModel:
    """A function, plain or async, as a preference model: a rule, or what a test scripts."""

    def __init__(self, function: Comparer) -> None:
        """`function(conversation, answer_a, answer_b)` gives the score."""
        self._function = function

    async def compare(self, conversation: Conversation, answer_a: Message, answer_b: Message) -> float:
        """See `PreferenceModel.compare`."""
        given = self._function(conversation, answer_a, answer_b)
        return float(await given if inspect.isawaitable(given) else given)


def shorter(conversation: Conversation, answer_a: Message, answer_b: Message) -> float:  # noqa: ARG001  (any question)
    """The shorter answer wins, by characters; equal lengths tie, and nothing at all loses against any answer. The smallest preference: for trying a setup out."""
    length_a, length_b = (len(spoken(answer).strip()) or math.inf for answer in (answer_a, answer_b))
    return float(length_a < length_b) - float(length_a > length_b)


def better_by(score: Callable[[Conversation, Message], float]) -> Comparer:
    """The answer with the higher score wins, by however little."""

    def compare(conversation: Conversation, answer_a: Message, answer_b: Message) -> float:
        score_a, score_b = score(conversation, answer_a), score(conversation, answer_b)
        return float(score_a > score_b) - float(score_a < score_b)

    return compare


def checked(score: float) -> float:
    """The score. Raises ComparisonFailed for one that is no number in [−1, 1]."""
    if not math.isfinite(score) or not -1 <= score <= 1:
        raise ComparisonFailed(f"a comparison gave the score {score}, which is not in [-1, 1]")
    return score
