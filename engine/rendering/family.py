"""The mechanism all families share. A family states its grammar: what opens a conversation, how a message is written, how an answer
begins, and how an answer is read. Everything else follows from that, here.

    messages ──family──> Script (control tokens, text, images, labelled) ──tokenise──> Written ──labels──> prompt or weights
    tokens   ──family's AnswerGrammar──> GrammarParser ──> ParsedMessage
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import attrs

from engine.backends.values import ModelInput
from engine.rendering.grammar import AnswerGrammar
from engine.rendering.messages import ImagePart, Message, Part, RenderError, Role, ThinkingPart, ToolCallPart
from engine.rendering.parsing import GrammarParser, ParsedMessage, StreamParser
from engine.rendering.script import Kind, Script, missing_controls
from engine.rendering.supervision import (
    SupervisedExample,
    TrainOnWhat,
    add_example,
    check_trainable,
    last_user_index,
    trained_messages,
    weight_of,
)
from engine.rendering.tools import ToolSpec
from engine.rendering.vocabulary import Vocabulary


@attrs.frozen
class Conversation:
    """What a family writes: messages, the tools declared for them, and what is known of the whole."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    generating: bool = False
    """A generation prompt follows the last message."""
    last_user: int = attrs.field(init=False)
    """Index of the last user message, -1 where there is none."""

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "last_user", last_user_index(self.messages))

    def is_last(self, index: int) -> bool:
        """Whether nothing is said after message `index`."""
        return index == len(self.messages) - 1

    @property
    def leading_system(self) -> Message | None:
        """The first message where it is a system message."""
        return self.messages[0] if self.messages and self.messages[0].role == "system" else None

    def tool_name(self, index: int) -> str | None:
        """Name of the tool that message `index` answers for: its own, or that of the call with its id, or of the call at its place."""
        return answered_call(self.messages, index)[0]

    def role_before(self, index: int) -> str | None:
        """Role of the message before, None at the start."""
        return self.messages[index - 1].role if index else None

    def role_after(self, index: int) -> str | None:
        """Role of the message after, None at the end."""
        return self.messages[index + 1].role if index + 1 < len(self.messages) else None


def answered_call(messages: Sequence[Message], index: int) -> tuple[str | None, str | None]:
    """Name and id of the call that tool message `index` answers."""
    result = next((part for part in messages[index].content if hasattr(part, "id")), None)
    name, call_id = (getattr(result, "name", None), getattr(result, "id", None))
    asked = index - 1
    while asked >= 0 and messages[asked].role == "tool":
        asked -= 1
    calls = messages[asked].tool_calls if asked >= 0 else ()
    if call_id is not None:
        for message in reversed(messages[:index]):
            for call in message.tool_calls:
                if call.id == call_id:
                    return name or call.name, call_id
    place = index - asked - 1
    if place < len(calls):
        return name or calls[place].name, call_id or calls[place].id
    return name, call_id


@attrs.define(eq=False, kw_only=True)
class Family(ABC):
    """A model family's renderer. Subclasses state `controls`, `stops` and the abstract methods; options are attrs fields."""

    vocabulary: Vocabulary = attrs.field(kw_only=False, repr=False)
    name: str = ""

    controls: ClassVar[tuple[str, ...]] = ()
    """Control tokens without which the family cannot be written."""
    stops: ClassVar[tuple[str, ...]] = ()
    """Control tokens that end an answer; the first is the usual one."""

    def __attrs_post_init__(self) -> None:
        missing = missing_controls(self.vocabulary.special_tokens, (*self.controls, *self.stops[:1]))
        if missing:
            raise RenderError(
                f"renderer {self.name or type(self).__name__!r} needs {', '.join(missing)}, which this tokenizer lacks: "
                "take the renderer of the model's own family, 'template' for its chat template, or 'role_colon' for a base model"
            )

    # What a family states.

    @property
    def keeps_history(self) -> bool:
        """Whether what was sampled in earlier turns stays as it was; where not, the family drops parts of it, usually thinking."""
        return self.has_extension_property

    @property
    @abstractmethod
    def has_extension_property(self) -> bool:
        """Whether each turn's prompt extends the last one's tokens."""

    def open(self, out: Script, conversation: Conversation) -> int:
        """Writes what comes before the messages (default system message, tools). Gives the index of the first message still to write."""
        return 0

    @abstractmethod
    def write_message(self, out: Script, conversation: Conversation, index: int) -> None:
        """Writes message `index`: marks header and output, and cuts between the two where the assistant speaks."""

    @abstractmethod
    def write_generation(self, out: Script, conversation: Conversation, role: Role) -> None:
        """Writes the header of an answer and what the family puts before it, marked HEADER and PREFILL."""

    @abstractmethod
    def grammar(self, tools: Sequence[ToolSpec], *, after_tool: bool = False) -> AnswerGrammar:
        """How an answer after `write_generation` is read."""

    def close_answer(self, out: Script, *, last_token: int, ended: bool, next_role: str | None) -> None:
        """Writes what stands between a sampled answer and the next message: the stop where it was not sampled, and a newline in some families."""
        if not ended:
            out.control(self.stops[0])

    def check(self, conversation: Conversation) -> None:  # noqa: B027 - most families can write everything
        """Raises RenderError for what the family cannot write."""

    # What follows.

    def write(self, conversation: Conversation, role: Role = "assistant", prefill: str = "") -> Script:
        """Writes a whole conversation, and the beginning of an answer where one is to be generated."""
        self.check(conversation)
        out = Script(self.vocabulary)
        for index in range(self.open(out, conversation), len(conversation.messages)):
            self.write_message(out, conversation, index)
        if conversation.generating:
            self._generate(out, conversation, role, prefill)
        return out

    def _generate(self, out: Script, conversation: Conversation, role: Role, prefill: str) -> None:
        self.write_generation(out, conversation, role)
        out.cut()
        out.mark(len(conversation.messages), Kind.PREFILL)
        out.text(prefill)

    def generation_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        role: Role = "assistant",
        prefill: str = "",
        known: dict[str, list[int]] | None = None,
    ) -> ModelInput:
        """See `Renderer`."""
        conversation = Conversation(tuple(messages), tuple(tools), generating=True)
        return self.write(conversation, role, prefill).finish(known).model_input

    def continuation(
        self, messages: Sequence[Message], start: int, *, tools: Sequence[ToolSpec] = (), last_token: int, ended: bool
    ) -> ModelInput | None:
        """See `Renderer`."""
        conversation = Conversation(tuple(messages), tuple(tools), generating=True)
        self.check(conversation)
        out = Script(self.vocabulary)
        next_role = messages[start].role if start < len(messages) else None
        self.close_answer(out, last_token=last_token, ended=ended, next_role=next_role)
        for index in range(start, len(messages)):
            self.write_message(out, conversation, index)
        self._generate(out, conversation, "assistant", "")
        return out.finish().model_input

    def supervised_examples(
        self,
        messages: Sequence[Message],
        train_on: TrainOnWhat | str = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
        *,
        tools: Sequence[ToolSpec] = (),
    ) -> list[SupervisedExample]:
        """See `Renderer`. Examples that the next one extends are one with it."""
        train_on = TrainOnWhat(train_on)
        check_trainable(messages, train_on)
        if not messages:
            raise RenderError("an empty conversation has nothing to train on")
        trained = trained_messages(messages, train_on)
        ends = self._example_ends(messages, train_on, trained)
        known: dict[str, list[int]] | None = {} if len(ends) > 1 else None
        examples: list[SupervisedExample] = []
        done: set[int] = set()
        for end in ends:
            now = frozenset(index for index in trained if index < end and index not in done)
            done |= now
            written = self.write(Conversation(tuple(messages[:end]), tuple(tools))).finish(known)
            add_example(examples, SupervisedExample(written.model_input, written.weights(weight_of(train_on, now))))
        return examples

    def _example_ends(self, messages: Sequence[Message], train_on: TrainOnWhat, trained: frozenset[int]) -> list[int]:
        whole = len(messages)
        if train_on not in (
            TrainOnWhat.ALL_ASSISTANT_MESSAGES,
            TrainOnWhat.CUSTOMIZED,
            TrainOnWhat.LAST_ASSISTANT_TURN,
        ):
            if train_on is TrainOnWhat.LAST_ASSISTANT_MESSAGE and trained:
                return [max(trained) + 1]
            return [whole]
        answers = sorted(index for index in trained if messages[index].role == "assistant")
        if self.has_extension_property or not answers:
            return [whole]
        ends = [index + 1 for index in answers]
        others = [index for index in trained if messages[index].role != "assistant"]
        if others and max(others) >= ends[-1]:
            ends.append(whole)
        return ends

    def stop_sequences(self) -> tuple[str | int, ...]:
        """Ids of the stop tokens this vocabulary has."""
        special = self.vocabulary.special_tokens
        return tuple(special[name] for name in self.stops if name in special)

    def stream_parser(
        self, *, tools: Sequence[ToolSpec] = (), prefill: str = "", after_tool: bool = False
    ) -> StreamParser:
        """See `Renderer`."""
        parser = GrammarParser(self.vocabulary, self.grammar(tools, after_tool=after_tool))
        if prefill:
            parser.feed(self.vocabulary.encode(prefill))
        return parser

    def parse(
        self, tokens: Iterable[Any], *, tools: Sequence[ToolSpec] = (), prefill: str = "", after_tool: bool = False
    ) -> ParsedMessage:
        """See `Renderer`."""
        parser = self.stream_parser(tools=tools, prefill=prefill, after_tool=after_tool)
        parser.feed(tokens)
        return parser.finish()

    # What families use.

    def begin_output(self, out: Script, conversation: Conversation, index: int) -> None:
        """From here on, message `index` says what a model would sample.

        No token reaches over this place where a model's own tokens stand, or will be trained, behind it. In a history that the
        family rewrites anyway, the text is tokenised as the official template has it.
        """
        if self.has_extension_property or (conversation.is_last(index) and not conversation.generating):
            out.cut()
        out.mark(index, Kind.OUTPUT)

    def write_content(self, out: Script, index: int, parts: Iterable[Part]) -> None:
        """Text as it is; images by the family's own placeholder."""
        for part in parts:
            if isinstance(part, ImagePart):
                self.write_image(out, index, part)
            elif hasattr(part, "text"):
                out.text(part.text)

    def write_image(self, out: Script, index: int, image: ImagePart) -> None:
        """Writes an image. Families that see override it."""
        raise RenderError(f"message {index}: renderer {self.name!r} has no place for images")


def refuse_tools(name: str, conversation: Conversation) -> None:
    """For families that have no way to write tools: better an error than a call lost."""
    if conversation.tools:
        raise RenderError(f"renderer {name!r} cannot declare tools: its format has none")
    for index, message in enumerate(conversation.messages):
        if message.role == "tool" or message.tool_calls:
            raise RenderError(
                f"message {index} ({message.role}): renderer {name!r} cannot write tool calls and results: its format has none"
            )


def visible(parts: Iterable[Part]) -> tuple[Part, ...]:
    """What is said openly: text and images, and what the model wrote where a call was expected, so that it is not lost."""
    return tuple(part for part in parts if not isinstance(part, ThinkingPart | ToolCallPart))
