"""Prompts without a right answer: what a student answers while a teacher looks on.

    {"prompt": ...} ──▶ conversation ──renderer──▶ the student's prompt                 an answer is worth nothing by itself
                                     └─privileged─▶ the teacher's prompt, where it reads another

The reward is 0; what is learnt comes from elsewhere, a KL to a teacher for instance (`actors.KLPenalty`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import attrs

from engine.rendering import Message, Renderer
from envs.answers import AnswerEnv, question
from envs.contracts import Env, GroupBuilder, GroupDataset, Observation

Conversation = Sequence[Message]
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class PromptGroup(GroupBuilder):
    """Several answers to one conversation."""

    single_turn = True

    def __init__(
        self, renderer: Renderer, conversation: Conversation, observation: Observation, size: int, tags: Sequence[str]
    ) -> None:
        self._renderer = renderer
        self._conversation = conversation
        self._observation = observation
        self._size = size
        self.tags = tuple(tags)

    async def make_envs(self) -> Sequence[Env]:
        """The answers to be; the prompt is rendered once."""
        return [
            AnswerEnv(self._renderer, self._conversation, self._observation, unfinished_penalty=0.0)
            for _ in range(self._size)
        ]


class Items(Protocol[T_co]):
    """Values by position: a list, or `engine.data.Examples`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> T_co: ...


Asks = Callable[[T], tuple[Conversation, Conversation | None]]
"""From an item: what the student is asked, and what a teacher reads in its place (None: the same)."""


def as_it_is(conversation: Conversation) -> tuple[Conversation, None]:
    """The item is the conversation."""
    return conversation, None


@attrs.frozen(eq=False)
class PromptGroups(Generic[T]):
    """A dataset of groups: item `index`, answered by `group_size` members."""

    renderer: Renderer
    items: Items[T]
    asks: Asks[T]
    group_size: int = attrs.field(default=4, validator=attrs.validators.ge(1))
    tags: tuple[str, ...] = ("prompts",)
    blocking: bool = True
    """Rows may come from a file, so they are read off the event loop."""

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> GroupBuilder:
        """Raises what the items raise for a row that does not fit."""
        conversation, privileged = self.asks(self.items[index])
        observation = question(self.renderer, conversation)
        if privileged is not None:
            observation = attrs.evolve(observation, teacher_prompt=self.renderer.generation_prompt(privileged))
        return PromptGroup(self.renderer, conversation, observation, self.group_size, self.tags)


class JoinedGroups:
    """Several datasets as one, one behind the other; every group also carries the name of its own as its first tag.

    A run draws from them in proportion to their lengths, since it shuffles the positions.
    """

    def __init__(self, parts: Mapping[str, GroupDataset]) -> None:
        """Raises ValueError where there are none, or one of them is empty."""
        if not parts:
            raise ValueError("there are no datasets of groups to join")
        if empty := [name for name, part in parts.items() if not len(part)]:
            raise ValueError(f"the dataset of groups '{empty[0]}' is empty")
        self._parts = dict(parts)
        self.blocking = any(getattr(part, "blocking", False) for part in parts.values())

    def __len__(self) -> int:
        return sum(map(len, self._parts.values()))

    def __getitem__(self, index: int) -> GroupBuilder:
        """Raises IndexError outside of 0 … len − 1."""
        place = index
        for name, part in self._parts.items():
            if 0 <= place < len(part):
                builder = part[place]
                builder.tags = tuple(dict.fromkeys((name, *builder.tags)))
                return builder
            place -= len(part)
        raise IndexError(f"group {index} of {len(self)}")
