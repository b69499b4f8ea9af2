"""Episodes of many turns, rendered incrementally: only what is new is written and tokenised.

    dialogue = Dialogue(renderer, [system("..."), user("...")])
    sampled = sample(dialogue.prompt)          # turn by turn:
    answer = dialogue.answer(sampled)          # the message, parsed
    dialogue.extend(tool_result("42"))         # the next prompt: the last one, what was sampled, and the new messages

What was sampled stays as it was: it is never tokenised again. A family that drops thinking from history cannot do that across a new question,
so there the prompt is written anew (`extends_last` is False, and the trajectory's next turn begins a new sequence); within a question, in
tool calls and their results, every family extends. `history="keep"` keeps all of it, at the price of prompts that the official template would
not have written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from engine.backends.values import ModelInput, TokenChunk
from engine.rendering.lexing import as_list
from engine.rendering.messages import Message
from engine.rendering.parsing import ParsedMessage
from engine.rendering.renderer import Renderer
from engine.rendering.tools import ToolSpec


class Dialogue:
    """A conversation in the making, and the prompt for its next answer."""

    def __init__(
        self,
        renderer: Renderer,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        history: Literal["family", "keep"] = "family",
        prompt: ModelInput | None = None,
    ) -> None:
        """`prompt`: what the renderer gives for these messages and tools, where it is known: many dialogues may begin in the same way."""
        self._renderer = renderer
        self._messages = list(messages)
        self._tools = tuple(tools)
        self._keeps = history == "keep" or renderer.keeps_history
        self._runs: dict[str, list[int]] = {}
        self._answered: tuple[list[int], int, bool] | None = None
        self.prompt: ModelInput = renderer.generation_prompt(messages, tools=tools) if prompt is None else prompt
        """What the model is to be given next."""
        self.extends_last = True
        """Whether the prompt begins with the prompt and the sampled tokens of the turn before."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """Everything said so far, answers as they were parsed."""
        return tuple(self._messages)

    def answer(self, tokens: Iterable[Any]) -> ParsedMessage:
        """Takes the sampled answer to the prompt, and gives it parsed."""
        sampled = as_list(tokens)
        after_tool = bool(self._messages) and self._messages[-1].role == "tool"
        parsed = self._renderer.parse(sampled, tools=self._tools, after_tool=after_tool)
        last = sampled[-1] if sampled else -1
        ended = last in self._renderer.stop_sequences() or parsed.termination == "stop_sequence"
        self._answered = (sampled, last, ended)
        self._messages.append(parsed.message)
        return parsed

    def extend(self, *messages: Message) -> ModelInput:
        """Adds what others say to the answer; gives the next prompt.

        Raises RuntimeError before an answer was taken.
        """
        if self._answered is None:
            raise RuntimeError(
                "extend() wants an answer first: call answer(tokens) with what was sampled for the prompt"
            )
        sampled, last, ended = self._answered
        first = len(self._messages)
        self._messages.extend(messages)
        self._answered = None
        tail = None
        if self._keeps or not any(message.role == "user" for message in messages):
            tail = self._renderer.continuation(self._messages, first, tools=self._tools, last_token=last, ended=ended)
        self.extends_last = tail is not None
        if tail is None:
            self.prompt = self._renderer.generation_prompt(self._messages, tools=self._tools, known=self._runs)
        else:
            self.prompt = join(self.prompt, sampled, tail)
        return self.prompt


def join(prompt: ModelInput, sampled: list[int], tail: ModelInput) -> ModelInput:
    """A prompt, what was sampled for it, and what follows; all neighbouring text is one chunk."""
    before, after = prompt.chunks, tail.chunks
    middle = [np.asarray(sampled, np.int32)]
    if before and isinstance(before[-1], TokenChunk):
        middle.insert(0, before[-1].tokens)
        before = before[:-1]
    if after and isinstance(after[0], TokenChunk):
        middle.append(after[0].tokens)
        after = after[1:]
    return ModelInput((*before, TokenChunk(np.concatenate(middle)), *after))
