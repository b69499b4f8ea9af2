"""Which tokens of a conversation are trained on.

Dimension suffix: `T` positions of one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.backends.values import ModelInput, TokenChunk
from engine.rendering.messages import Message, RenderError
from engine.rendering.script import Kind, Label


class TrainOnWhat(StrEnum):
    """What of a conversation has weight 1. Headers have it in `ALL_TOKENS` alone."""

    LAST_ASSISTANT_MESSAGE = "last_assistant_message"
    LAST_ASSISTANT_TURN = "last_assistant_turn"
    """The assistant's messages after the last user message."""
    ALL_ASSISTANT_MESSAGES = "all_assistant_messages"
    ALL_MESSAGES = "all_messages"
    ALL_TOKENS = "all_tokens"
    ALL_USER_AND_SYSTEM_MESSAGES = "all_user_and_system_messages"
    CUSTOMIZED = "customized"
    """The messages whose `trainable` is true; every message must say so or not."""


@attrs.frozen
class SupervisedExample:
    """One sequence to train on."""

    model_input: ModelInput
    weights_T: NDArray[np.float32] = attrs.field(eq=attrs.cmp_using(eq=np.array_equal))
    """Shape (T,) with T = `model_input.length`: 1 on trained positions, 0 elsewhere and on images."""


def check_trainable(messages: Sequence[Message], train_on: TrainOnWhat) -> None:
    """Raises RenderError where `trainable` is missing (CUSTOMIZED) or said for nothing (every other choice)."""
    for index, message in enumerate(messages):
        if (train_on is TrainOnWhat.CUSTOMIZED) != (message.trainable is not None):
            wanted = (
                "every message must say trainable"
                if message.trainable is None
                else "trainable is for 'customized' alone"
            )
            raise RenderError(f"message {index} ({message.role}): {wanted} when training on {train_on.value!r}")


def last_user_index(messages: Sequence[Message]) -> int:
    """Index of the last user message, -1 where there is none."""
    return next((n for n in range(len(messages) - 1, -1, -1) if messages[n].role == "user"), -1)


def trained_messages(messages: Sequence[Message], train_on: TrainOnWhat) -> frozenset[int]:
    """Indices of the messages whose output has weight 1."""
    said = [index for index, message in enumerate(messages) if message.role == "assistant"]
    match train_on:
        case TrainOnWhat.LAST_ASSISTANT_MESSAGE:
            return frozenset(said[-1:])
        case TrainOnWhat.LAST_ASSISTANT_TURN:
            start = last_user_index(messages)
            return frozenset(index for index in said if index > start)
        case TrainOnWhat.ALL_ASSISTANT_MESSAGES:
            return frozenset(said)
        case TrainOnWhat.ALL_MESSAGES | TrainOnWhat.ALL_TOKENS:
            return frozenset(range(len(messages)))
        case TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES:
            return frozenset(n for n, message in enumerate(messages) if message.role in ("user", "system", "developer"))
        case TrainOnWhat.CUSTOMIZED:
            return frozenset(index for index, message in enumerate(messages) if message.trainable)


def weight_of(train_on: TrainOnWhat, trained: frozenset[int]) -> Callable[[Label], float]:
    """The weight of a stretch by its label. What a generation prompt supplies is never trained as an answer."""
    if train_on is TrainOnWhat.ALL_TOKENS:
        return lambda _: 1.0
    return lambda label: float(label[1] is Kind.OUTPUT and label[0] in trained)


def add_example(examples: list[SupervisedExample], new: SupervisedExample) -> None:
    """Appends `new`, or lets it take in the example before where it only extends that one."""
    if examples and _extends(new.model_input, examples[-1].model_input):
        weights_T = new.weights_T.copy()
        before_T = examples[-1].weights_T
        weights_T[: len(before_T)] = np.maximum(weights_T[: len(before_T)], before_T)
        examples[-1] = SupervisedExample(new.model_input, weights_T)
    else:
        examples.append(new)


def _extends(longer: ModelInput, shorter: ModelInput) -> bool:
    """Whether `longer` begins with all of `shorter`."""
    if len(longer.chunks) < len(shorter.chunks):
        return False
    if longer.chunks[: len(shorter.chunks) - 1] != shorter.chunks[:-1]:
        return False
    ours, theirs = longer.chunks[len(shorter.chunks) - 1], shorter.chunks[-1]
    if isinstance(ours, TokenChunk) and isinstance(theirs, TokenChunk):
        return len(ours.tokens) >= len(theirs.tokens) and np.array_equal(
            ours.tokens[: len(theirs.tokens)], theirs.tokens
        )
    return ours == theirs
