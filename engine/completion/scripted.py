"""A completer that answers as it is told to: for tests and offline runs."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence

from engine.backends.errors import BackendError
from engine.backends.values import SamplingParams
from engine.completion.ports import Reply
from engine.rendering.messages import Message, assistant
from engine.rendering.tools import ToolSpec

Answer = str | Message | Reply
Script = Callable[[Sequence[Message]], Answer | Awaitable[Answer]] | Sequence[Answer]


class ScriptedCompleter:
    """Answers from a function of the messages, or from a list in order. Remembers what it was asked (`asked`)."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.asked: list[tuple[Message, ...]] = []

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        params: SamplingParams,  # noqa: ARG002  (the port's)
        seed: int,  # noqa: ARG002
        tools: Sequence[ToolSpec] = (),  # noqa: ARG002
    ) -> Reply:
        """See `Completer.complete`. Raises BackendError when a list of answers is used up."""
        self.asked.append(tuple(messages))
        if callable(self._script):
            given = self._script(messages)
            answer = await given if inspect.isawaitable(given) else given
        elif len(self.asked) <= len(self._script):
            answer = self._script[len(self.asked) - 1]
        else:
            raise BackendError(f"the script has {len(self._script)} answers and was asked for one more")
        if isinstance(answer, Reply):
            return answer
        return Reply(answer if isinstance(answer, Message) else assistant(answer))
