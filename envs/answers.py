"""One answer to a conversation, and how it is shown to whoever judges it.

    conversation --renderer--> prompt --policy--> answer --worth()--> reward

`AnswerEnv` is the episode; by itself an answer is worth nothing: a subclass says what it is worth (a rubric), or the group compares its
members (a tournament). `transcript` and `sections` write conversations and answers as text, so that nothing in them can be taken for what stands around them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from engine.backends.values import Completion
from engine.rendering import ImagePart, Message, Renderer, TextPart, ToolCallPart, ToolResultPart
from envs.contracts import Observation, Step


@attrs.frozen
class Worth:
    """What an answer is worth by itself."""

    reward: float = 0.0
    metrics: Mapping[str, float] = attrs.field(factory=dict)
    logs: Mapping[str, Any] = attrs.field(factory=dict)
    """For people: JSON values shown in samples and reports."""


class AnswerEnv:
    """One answer to a conversation.

    Metrics of its only step: `format` (1 where the answer ended as the renderer expects) and those of `worth`. Logs: `question` (the last message) and
    `answer`.
    """

    def __init__(
        self,
        renderer: Renderer,
        conversation: Sequence[Message],
        observation: Observation,
        *,
        unfinished_penalty: float = 0.1,
    ) -> None:
        """`observation`: of `question`, made once for all members of a group. `unfinished_penalty`: taken from the reward of an answer that was cut off."""
        self.renderer = renderer
        self.conversation = tuple(conversation)
        self._observation = observation
        self._unfinished_penalty = unfinished_penalty

    async def worth(self, answer: Message) -> Worth:  # noqa: ARG002  (what follows is a default)
        """What the answer is worth. Override it where an answer can be judged alone."""
        return Worth()

    async def reset(self) -> Observation:
        """The conversation."""
        return self._observation

    async def step(self, completion: Completion) -> Step:
        """Judges the answer; the episode is over. Raises ValueError for a reward that is no finite number."""
        parsed = self.renderer.parse(completion.tokens)
        worth = await self.worth(parsed.message)
        if not math.isfinite(worth.reward):
            raise ValueError(
                f"{type(self).__name__}.worth gave the reward {worth.reward} for {parsed.message.text!r}; a reward is a finite number"
            )
        return Step(
            reward=worth.reward - (0.0 if parsed.ok else self._unfinished_penalty),
            metrics={"format": float(parsed.ok), **worth.metrics},
            logs={"question": self.conversation[-1].text, "answer": parsed.message.text, **worth.logs},
        )


def question(renderer: Renderer, conversation: Sequence[Message], max_tokens: int | None = None) -> Observation:
    """The observation that asks for the next message of a conversation.

    Raises ValueError for a conversation in which it is not the assistant's turn.
    """
    check_question(conversation)
    return Observation(renderer.generation_prompt(conversation), renderer.stop_sequences(), max_tokens)


def check_question(conversation: Sequence[Message]) -> None:
    """Raises ValueError where nothing was asked: no message at all, or the assistant has spoken last."""
    if not conversation:
        raise ValueError("the conversation is empty: there is nothing to answer")
    if conversation[-1].role == "assistant":
        raise ValueError(
            f"the conversation's last message (of {len(conversation)}) is the assistant's: there is nothing left to answer"
        )


# ---- as text


def spoken(message: Message) -> str:
    """What a message says openly: text, tool calls as JSON, `[image]`; reasoning is left out."""
    said = []
    for part in message.content:
        if isinstance(part, TextPart | ToolResultPart):
            said.append(part.text)
        elif isinstance(part, ToolCallPart):
            said.append(json.dumps({"name": part.name, "arguments": dict(part.arguments)}, ensure_ascii=False))
        elif isinstance(part, ImagePart):
            said.append("[image]")
    return "\n".join(said) if any(not isinstance(part, TextPart) for part in message.content) else "".join(said)


def transcript(conversation: Sequence[Message]) -> str:
    """`User: ...`, `Assistant: ...`, a blank line between; the text alone where the user has said one thing and nobody else anything."""
    if len(conversation) == 1 and conversation[0].role == "user":
        return spoken(conversation[0])
    return "\n\n".join(f"{message.role.title()}: {spoken(message)}" for message in conversation)


def sections(texts: Mapping[str, str]) -> str:
    """Each text between tags of its name, on lines of their own: `<answer>`, text, `</answer>`.

    Where a text holds something that looks like one of the tags, all tags get a number that no text has: what stands inside can neither end its section
    nor open another one.
    """
    names = "|".join(re.escape(name) for name in texts)
    taken = {
        match[1] for text in texts.values() for match in re.finditer(rf"</?\s*(?:{names})(\w*)", text, re.IGNORECASE)
    }
    suffix, number = "", 2
    while suffix in taken:
        suffix, number = f"_{number}", number + 1
    return "\n\n".join(f"<{name}{suffix}>\n{text}\n</{name}{suffix}>" for name, text in texts.items())
