"""A completer as a model of inspect-ai, so that its tasks (solvers, tools, scorers) can be put to any policy of this engine.

    model = inspect_model(PolicyCompleter(policy, renderer), name="policy")
    logs = await inspect_ai.eval_async(task, model=model)

No server, no text that is tokenised again: inspect's messages become ours, the completer's renderer writes them, and what was sampled is read by it. What a completer cannot do (logprobs, penalties, a
forced call) is refused by name, as the endpoint refuses it. `actors.inspect_tasks` puts such an evaluation into a run. It needs the extra `inspect`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from engine.backends.errors import ContextExceeded
from engine.backends.values import SamplingParams
from engine.completion.ports import Completer, Reply
from engine.rendering.messages import (
    ImagePart,
    Message,
    Part,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolResultPart,
    UnparsedToolCallPart,
)
from engine.rendering.tools import ToolSpec
from engine.runtime.seeds import derive_seed

if TYPE_CHECKING:
    from inspect_ai.model import ChatMessage, GenerateConfig, Model, ModelOutput
    from inspect_ai.tool import ToolChoice, ToolInfo

EXTRA = "tasks of inspect-ai need the package: pip install 'callsheet[inspect]'"

_UNSERVED = (
    "best_of",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "response_schema",
    "modalities",
    "extra_body",
)
"""Settings that would change the answers, and that a completer does not take. Others concern connections, caches and providers."""


class UnservedRequest(ValueError):
    """A task asks for what a completer cannot do; the message names it."""


class Where(Protocol):
    """Runs an async function where the completer lives."""

    def __call__(self, function: Callable[[], Awaitable[Reply]], /) -> Awaitable[Reply]: ...


def inspect_model(
    completer: Completer,
    *,
    name: str = "policy",
    params: SamplingParams | None = None,
    seed: int = 0,
    where: Where | None = None,
) -> Model:
    """The completer as a `Model` of inspect-ai.

    `name`: in its logs. `params`: what holds where a task says nothing of its own. `seed`: the same conversation gets the same seed in each evaluation, and another one each time it is asked within one (epochs,
    choices). `where`: None: the completer is called on inspect's own event loop; otherwise it is called through this. Raises ImportError naming the extra where inspect-ai is missing.
    """
    try:
        from inspect_ai.model import GenerateConfig, Model
    except ImportError as error:
        raise ImportError(EXTRA) from error

    api = _api()(name)
    api.asked = _Asked(completer, params or SamplingParams(), seed, where)
    return Model(api, GenerateConfig())


@functools.cache
def _api() -> Any:
    """The class of our models, which can only be there where inspect-ai is."""
    from inspect_ai.model import ModelAPI, ModelOutput, modelapi

    @modelapi(name="callsheet")
    class CompleterAPI(ModelAPI):  # type: ignore[misc]  # inspect-ai is no dependency, so its classes are unknown here
        """Asks the completer."""

        asked: _Asked

        async def generate(
            self,
            input: list[ChatMessage],  # noqa: A002  (inspect's)
            tools: list[ToolInfo],
            tool_choice: ToolChoice,
            config: GenerateConfig,
        ) -> ModelOutput:
            try:
                replies = await self.asked.replies(input, tools, tool_choice, config)
            except ContextExceeded as error:
                return ModelOutput.from_content(self.model_name, "", stop_reason="model_length", error=str(error))
            return _output(replies, self.model_name, config.stop_seqs or ())

    return CompleterAPI


class _Asked:
    """What inspect asks, in our terms."""

    def __init__(self, completer: Completer, params: SamplingParams, seed: int, where: Where | None) -> None:
        self._completer = completer
        self._params = params
        self._seed = seed
        self._where = where
        self._times: Counter[bytes] = Counter()

    async def replies(self, given: Sequence[Any], tools: Sequence[Any], choice: Any, config: Any) -> list[Reply]:
        """One for each choice that is wanted."""
        _check(config)
        if choice not in ("auto", "none"):
            raise UnservedRequest("tool_choice: 'auto' and 'none' are served; a call cannot be forced")
        messages = [message_of(each) for each in given]
        specs = [] if choice == "none" else [spec_of(tool) for tool in tools]
        params = self._params_of(config)
        return [await self._reply(messages, specs, params, config.seed) for _ in range(config.num_choices or 1)]

    async def _reply(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], params: SamplingParams, seed: int | None
    ) -> Reply:
        seed = self._seed_of(messages, tools, self._seed if seed is None else seed)

        async def ask() -> Reply:
            return await self._completer.complete(messages, params=params, seed=seed, tools=tools)

        return await (ask() if self._where is None else self._where(ask))

    def _seed_of(self, messages: Sequence[Message], tools: Sequence[ToolSpec], seed: int) -> int:
        """By what is asked and how often it was, not by when: samples of a task run at once, in any order."""
        digest = hashlib.blake2b(repr((messages, [tool.name for tool in tools])).encode(), digest_size=8).digest()
        self._times[digest] += 1
        return derive_seed(derive_seed(seed, int.from_bytes(digest) % 2**63), self._times[digest])

    def _params_of(self, config: Any) -> SamplingParams:
        own = self._params

        def given(value: Any, default: Any) -> Any:
            return default if value is None else value

        return SamplingParams(
            given(config.max_tokens, own.max_tokens),
            given(config.temperature, own.temperature),
            given(config.top_p, own.top_p),
            given(config.top_k, own.top_k),
            tuple(given(config.stop_seqs, own.stop)),
        )


def _check(config: Any) -> None:
    for name in _UNSERVED:
        value = getattr(config, name, None)
        if value not in (None, False, 0, {}, []) and (name, value) != ("best_of", 1):
            raise UnservedRequest(f"{name}: a completer has no such thing; leave it out of the task's settings")


# ---- messages


def message_of(message: Any) -> Message:
    """A message of inspect's as one of ours. Raises UnservedRequest for content that is neither text, reasoning nor an image."""
    content = message.content
    parts = [TextPart(content)] if isinstance(content, str) and content else []
    said: list[Part] = [*parts] if isinstance(content, str) else [_part(each) for each in content]
    if message.role == "tool":
        error = None if message.error is None else message.error.message
        text = "".join(part.text for part in said if isinstance(part, TextPart)) or error or ""
        images = [part for part in said if isinstance(part, ImagePart)]
        return Message("tool", (ToolResultPart(text, message.function, message.tool_call_id), *images))
    if message.role == "assistant":
        said += [ToolCallPart(call.function, call.arguments, call.id) for call in message.tool_calls or ()]
    return Message(message.role, tuple(said))


def _part(content: Any) -> Part:
    match content.type:
        case "text":
            return TextPart(content.text)
        case "reasoning":
            return ThinkingPart(content.reasoning)
        case "image":
            return ImagePart(content.image)
    raise UnservedRequest(f"a message holds {content.type}, which no renderer here writes")


def spec_of(tool: Any) -> ToolSpec:
    """A tool of inspect's as a declaration of ours."""
    function = tool.model_dump(include={"name", "description", "parameters"}, exclude_none=True)
    return ToolSpec.from_openai({"type": "function", "function": function})


def _output(replies: Sequence[Reply], model: str, stops: Sequence[str]) -> ModelOutput:
    from inspect_ai.model import ChatCompletionChoice, ModelOutput, ModelUsage

    read, written = replies[0].prompt_tokens or 0, sum(reply.completion_tokens or 0 for reply in replies)
    known = all(reply.completion_tokens is not None for reply in replies)
    return ModelOutput(
        model=model,
        choices=[
            ChatCompletionChoice(message=_assistant(reply, model, stops), stop_reason=_stop_reason(reply))
            for reply in replies
        ],
        usage=ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written) if known else None,
    )


def _stop_reason(reply: Reply) -> str:
    if reply.message.tool_calls:
        return "tool_calls"
    return "max_tokens" if reply.stop_reason == "length" else "stop"


def _assistant(reply: Reply, model: str, stops: Sequence[str]) -> Any:
    from inspect_ai.model import ChatMessageAssistant, ContentReasoning, ContentText
    from inspect_ai.tool import ToolCall

    message = reply.message
    # A call that could not be read is text, as it is at the endpoint.
    text = "".join(part.text for part in message.content if isinstance(part, TextPart | UnparsedToolCallPart))
    text = text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
    thinking = [] if message.thinking is None else [ContentReasoning(reasoning=message.thinking)]
    calls = [
        # Without an id of its own a call gets one: inspect pairs results with calls by it.
        ToolCall(call.id or _call_id(n, call, message), call.name, dict(call.arguments))
        for n, call in enumerate(message.tool_calls)
    ]
    return ChatMessageAssistant(
        content=[*thinking, ContentText(text=text)] if thinking else text,
        tool_calls=calls or None,
        model=model,
        source="generate",
    )


def _call_id(n: int, call: ToolCallPart, message: Message) -> str:
    written = json.dumps([n, call.name, dict(call.arguments), message.text], default=str).encode()
    return f"call_{hashlib.blake2b(written, digest_size=6).hexdigest()}"
