"""The port: messages to tokens and back. `engine.rendering.family` has the mechanism that the model families share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from engine.backends.values import ModelInput
from engine.rendering.messages import Message, Role
from engine.rendering.parsing import ParsedMessage, StreamParser
from engine.rendering.supervision import SupervisedExample, TrainOnWhat
from engine.rendering.tools import ToolSpec
from engine.rendering.vocabulary import Vocabulary


@runtime_checkable
class Renderer(Protocol):
    """Messages to tokens and back, for one model family."""

    @property
    def name(self) -> str:
        """What `get_renderer` knows it by."""
        ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def has_extension_property(self) -> bool:
        """Whether each turn's prompt extends the tokens of the turn before. Where not, the family rewrites history."""
        ...

    @property
    def keeps_history(self) -> bool:
        """Whether what was sampled in earlier turns may stay in the context as it was sampled."""
        ...

    def generation_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        role: Role = "assistant",
        prefill: str = "",
        known: dict[str, list[int]] | None = None,
    ) -> ModelInput:
        """What a model is given to write the next message of `role`; `prefill` is put into its mouth.

        `known` is a memory of tokenised text that a caller may keep over calls for growing conversations.
        """
        ...

    def continuation(
        self, messages: Sequence[Message], start: int, *, tools: Sequence[ToolSpec] = (), last_token: int, ended: bool
    ) -> ModelInput | None:
        """What follows a sampled answer up to the next one: the rest of its frame, the messages from `start` on, and the header.

        `last_token` is the answer's last, `ended` whether it ended by the family's stop. None: the renderer cannot tell, and the
        conversation has to be rendered as a whole.
        """
        ...

    def supervised_examples(
        self,
        messages: Sequence[Message],
        train_on: TrainOnWhat | str = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
        *,
        tools: Sequence[ToolSpec] = (),
    ) -> list[SupervisedExample]:
        """The sequences that train what is asked for: several where the family rewrites history, so that every answer is trained in the
        context in which the model will write it."""
        ...

    def stop_sequences(self) -> tuple[str | int, ...]:
        """What ends an answer: token ids, or text for formats without control tokens. As `SamplingParams.stop` takes it."""
        ...

    def stream_parser(
        self, *, tools: Sequence[ToolSpec] = (), prefill: str = "", after_tool: bool = False
    ) -> StreamParser:
        """A parser to be fed while an answer is sampled. Arguments as those of `parse`."""
        ...

    def parse(
        self, tokens: Iterable[Any], *, tools: Sequence[ToolSpec] = (), prefill: str = "", after_tool: bool = False
    ) -> ParsedMessage:
        """What was sampled after a generation prompt, as a message. Never raises.

        `tools` give the types of arguments where a family writes them without quotes. `after_tool`: the prompt ended with a tool's result, behind
        which some families begin their answers in another way.
        """
        ...
