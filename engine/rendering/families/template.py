"""Any other model of Hugging Face, through the chat template it ships.

The template is run by jinja in a sandbox. Where what somebody says holds the name of a control token, a private-use character breaks the name
up while the template runs, and is taken out again before the text is encoded: so text never becomes a control token. What is trained is found by
comparing the template's text with and without a message.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from engine.backends.values import ModelInput
from engine.rendering.grammar import NEWLINES, AnswerGrammar
from engine.rendering.messages import Message, RenderError, Role
from engine.rendering.openai_format import to_openai
from engine.rendering.parsing import GrammarParser, ParsedMessage, StreamParser
from engine.rendering.supervision import SupervisedExample, TrainOnWhat, add_example, check_trainable, trained_messages
from engine.rendering.tools import ToolSpec
from engine.rendering.vocabulary import HuggingFaceVocabulary, Vocabulary

_BREAK = "\ue000"


@attrs.define(eq=False, kw_only=True)
class Template:
    """A renderer that is a chat template. Tool calls and thinking are written as the template does, and read where they are plain `<think>` tags."""

    vocabulary: Vocabulary = attrs.field(kw_only=False, repr=False)
    source: str | None = attrs.field(default=None, repr=False)
    """The template; None: that of the model the vocabulary was loaded from."""
    variables: Mapping[str, Any] = attrs.field(factory=dict)
    """Further variables of the template, such as `enable_thinking`."""
    name: str = "template"
    _run: Any = attrs.field(init=False, repr=False, default=None)
    _names: Any = attrs.field(init=False, repr=False, default=None)

    def __attrs_post_init__(self) -> None:
        found = find_template(self.vocabulary) if self.source is None else {"chat_template": self.source}
        self.variables = {**{key: value for key, value in found.items() if key != "chat_template"}, **self.variables}
        self.source = str(found["chat_template"])
        self._run = compile_template(self.source)
        names = sorted(self.vocabulary.special_tokens, key=len, reverse=True)
        self._names = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else re.compile(r"((?!))")

    @property
    def has_extension_property(self) -> bool:
        """Unknown of a template, so not claimed."""
        return False

    @property
    def keeps_history(self) -> bool:
        """Unknown of a template, so not claimed."""
        return False

    def text(self, messages: Sequence[Message], *, tools: Sequence[ToolSpec] = (), generating: bool = False) -> str:
        """What the template writes; names of control tokens that somebody typed are broken up by U+E000."""
        said = [self._guard(_for_template(message)) for message in messages]
        declared = {"tools": [self._guard(tool.to_openai()) for tool in tools]} if tools else {}
        try:
            return str(self._run.render(messages=said, add_generation_prompt=generating, **declared, **self.variables))
        except RenderError:
            raise
        except Exception as error:
            raise RenderError(f"the chat template cannot write this conversation: {error}") from error

    def _guard(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._names.sub(lambda found: found[0][:1] + _BREAK + found[0][1:], value.replace(_BREAK, "\ufffd"))
        if isinstance(value, dict):
            return {key: self._guard(inner) for key, inner in value.items()}
        return [self._guard(inner) for inner in value] if isinstance(value, list) else value

    def encode(self, text: str) -> list[int]:
        """Tokens of a template's text."""
        if _BREAK not in text and isinstance(self.vocabulary, HuggingFaceVocabulary):
            return self.vocabulary.full.encode(text, add_special_tokens=False).ids
        tokens: list[int] = []
        for piece in self._names.split(text):
            if piece in self.vocabulary.special_tokens:
                tokens.append(self.vocabulary.special_tokens[piece])
            elif piece:
                tokens.extend(self.vocabulary.encode(piece.replace(_BREAK, "")))
        return tokens

    def generation_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        role: Role = "assistant",
        prefill: str = "",
        known: dict[str, list[int]] | None = None,
    ) -> ModelInput:
        """See `Renderer`. A template can only begin the assistant's answer."""
        if role != "assistant":
            raise RenderError(f"a chat template begins answers of the assistant alone, not of {role!r}")
        tokens = self.encode(self.text(messages, tools=tools, generating=True))
        return ModelInput.from_tokens([*tokens, *(self.vocabulary.encode(prefill) if prefill else ())])

    def continuation(
        self,
        messages: Sequence[Message],
        start: int,
        *,
        tools: Sequence[ToolSpec] = (),
        last_token: int,
        ended: bool,
    ) -> ModelInput | None:
        """None: what a template writes between two answers depends on the whole."""
        return None

    def supervised_examples(
        self,
        messages: Sequence[Message],
        train_on: TrainOnWhat | str = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
        *,
        tools: Sequence[ToolSpec] = (),
    ) -> list[SupervisedExample]:
        """See `Renderer`. Only answers can be told from their headers, so only they (or all tokens) can be trained."""
        train_on = TrainOnWhat(train_on)
        check_trainable(messages, train_on)
        if not messages:
            raise RenderError("an empty conversation has nothing to train on")
        if train_on is TrainOnWhat.ALL_TOKENS:
            tokens = self.encode(self.text(messages, tools=tools))
            return [SupervisedExample(ModelInput.from_tokens(tokens), np.ones(len(tokens), np.float32))]
        examples: list[SupervisedExample] = []
        for index in sorted(trained_messages(messages, train_on)):
            if messages[index].role != "assistant":
                raise RenderError(
                    f"message {index} ({messages[index].role}): with a chat template only the assistant's messages can be trained"
                )
            add_example(examples, self._example(messages[: index + 1], tools))
        if not examples:
            tokens = self.encode(self.text(messages, tools=tools))
            examples.append(SupervisedExample(ModelInput.from_tokens(tokens), np.zeros(len(tokens), np.float32)))
        return examples

    def _example(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> SupervisedExample:
        asked = self.text(messages[:-1], tools=tools, generating=True)
        whole = self.text(messages, tools=tools)
        if not whole.startswith(asked):
            raise RenderError(
                f"message {len(messages) - 1} (assistant): the chat template writes it in another way than its generation prompt begins "
                f"({asked[-40:]!r}), so what to train cannot be told"
            )
        before, said = self.encode(asked), self.encode(whole[len(asked) :])
        stops = set(self.stop_sequences())
        end = next((n + 1 for n in range(len(said) - 1, -1, -1) if said[n] in stops), len(said))
        weights = np.zeros(len(before) + len(said), np.float32)
        weights[len(before) : len(before) + end] = 1.0
        return SupervisedExample(ModelInput.from_tokens([*before, *said]), weights)

    def stop_sequences(self) -> tuple[str | int, ...]:
        """The control token that ends an answer in the template, and the end-of-text tokens of the vocabulary."""
        probe = self.text([Message("user", "a"), Message("assistant", "b")])
        tail = [
            piece for piece in self._names.split(probe.rpartition("b")[2]) if piece in self.vocabulary.special_tokens
        ]
        ends = [self.vocabulary.special_tokens[name] for name in tail[:1]]
        return tuple(dict.fromkeys([*ends, *self.vocabulary.eos_tokens]))

    def stream_parser(
        self, *, tools: Sequence[ToolSpec] = (), prefill: str = "", after_tool: bool = False
    ) -> StreamParser:
        """Reads `<think>` where the template knows it; calls stay text."""
        stops = set(self.stop_sequences())
        names = tuple(name for name, token in self.vocabulary.special_tokens.items() if token in stops)
        opened = self.text([Message("user", "a")], generating=True).rstrip().endswith("<think>")
        grammar = AnswerGrammar(
            stops=names,
            think=("<think>", "</think>") if "</think>" in (self.source or "") else None,
            starts_thinking=opened,
            thinking_lead=NEWLINES,
            thinking_trail=NEWLINES,
            text_lead_after_thinking=NEWLINES,
        )
        parser = GrammarParser(self.vocabulary, grammar)
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


def _for_template(message: Message) -> dict[str, Any]:
    """A message as templates expect it: arguments as mappings, and no field that says nothing."""
    found = to_openai(message)
    found.pop("trainable", None)
    for call in found.get("tool_calls", ()):
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return found


def find_template(vocabulary: Vocabulary) -> dict[str, Any]:
    """The chat template that came with a vocabulary, and the tokens that it may write.

    Raises RenderError where there is none.
    """
    name = getattr(vocabulary, "name", "")
    config = _read(name, "tokenizer_config.json")
    found: dict[str, Any] = json.loads(config) if config is not None else {}
    template = (
        getattr(vocabulary, "chat_template", None) or _read(name, "chat_template.jinja") or found.get("chat_template")
    )
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    if not isinstance(template, str):
        raise RenderError(
            f"no chat template was found beside the tokenizer {name or 'at hand'!r}: give Template(vocabulary, source=...)"
        )
    tokens = {
        key: _content(found[key])
        for key in ("bos_token", "eos_token", "pad_token", "unk_token")
        if found.get(key) is not None
    }
    return {"chat_template": template, **tokens}


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, Mapping) else str(token)


def _read(name: str, file: str) -> str | None:
    path = Path(name) if name else None
    if path is not None and path.is_file():
        path = path.parent
    if path is not None and path.is_dir():
        return (path / file).read_text(encoding="utf-8") if (path / file).is_file() else None
    if path is None or path.is_absolute():
        return None
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, file)).read_text(encoding="utf-8")
    except Exception:  # noqa: BLE001 - not there, or not to be reached: the caller says what was looked for
        return None


def compile_template(source: str, *, mutable: bool = False) -> Any:
    """A chat template as Hugging Face runs it: `tojson` without escapes, `raise_exception`, `strftime_now`, loop controls.

    `mutable` lets a template change lists, which Hugging Face does not and a few templates want. Raises RenderError where jinja2
    is not installed or the template is not valid.
    """
    try:
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment
    except ImportError as error:
        raise RenderError("chat templates need jinja2: pip install 'callsheet[templates]'") from error

    def raise_exception(message: str) -> None:
        raise RenderError(f"the chat template refuses this conversation: {message}")

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    kind = SandboxedEnvironment if mutable else ImmutableSandboxedEnvironment
    environment = kind(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _generation_tag()])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: dt.datetime.now(tz=dt.UTC).strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise RenderError(f"the chat template is not valid: {error}") from error


def _generation_tag() -> Any:
    """`{% generation %}` marks what is trained in some templates; it writes nothing."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja's own form

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    return Generation
