"""Bodies of requests, checked field by field. A field that is not known is refused: it would be ignored in silence."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import attrs

from engine.backends.values import ModelInput, SampleRequest, SamplingParams
from engine.rendering.messages import Message, RenderError
from engine.rendering.openai_format import MalformedMessage, from_openai
from engine.rendering.tools import ToolSpec
from engine.serving.errors import ApiError, wrong
from engine.serving.limits import Limits
from engine.serving.served import ServedPolicy

_SHARED = frozenset(
    [
        "model",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "n",
        "seed",
        "stop",
        "stop_token_ids",
        "stream",
        "stream_options",
        "logprobs",
        "return_token_ids",
        "user",
        "metadata",
        "store",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
    ]
)
_CHAT = _SHARED | frozenset(
    [
        "messages",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "max_completion_tokens",
        "top_logprobs",
        "response_format",
    ]
)
_TEXT = _SHARED | frozenset(
    ["prompt", "echo", "suffix", "best_of", "return_tokens_as_token_ids", "include_stop_str_in_output"]
)
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0, 0.0),
    "presence_penalty": (None, 0, 0.0),
    "logit_bias": (None, {}),
    "top_logprobs": (None, 0),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "best_of": (None, 1),
}
"""Fields of the API that are not served, with the values that ask for nothing."""


@attrs.frozen
class Asked:
    """What every request says of how it wants its answers."""

    params: SamplingParams
    cut: tuple[str, ...]
    """The client's stop strings: an answer's text ends before them."""
    choices: int
    seed: int
    stream: bool
    usage_at_end: bool
    logprobs: bool
    token_ids: bool
    """Whether the answer names the token ids of prompt and answer."""


@attrs.frozen
class Chat:
    """A request to `/v1/chat/completions`."""

    messages: Sequence[Message]
    tools: Sequence[ToolSpec]
    asked: Asked


@attrs.frozen
class Text:
    """A request to `/v1/completions`."""

    prompts: Sequence[ModelInput]
    echo: bool
    names_are_ids: bool
    """Whether tokens in `logprobs` are named by their ids."""
    keep_stop: bool
    """Whether an answer's text includes the stop string that ended it."""
    asked: Asked


def body_of(raw: bytes) -> dict[str, Any]:
    """The JSON object of a request."""
    try:
        body = json.loads(raw, parse_constant=_no_constant)
        if b"\\ud" in raw.lower():  # half a surrogate pair is no text that could be written or sent back
            json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the request is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the request must be a JSON object, not {type(body).__name__}")
    return body


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def chat(body: Mapping[str, Any], served: ServedPolicy, limits: Limits) -> Chat:
    """Checks a chat request."""
    _check_fields(body, _CHAT)
    try:
        messages = from_openai(_list(body, "messages"))
    except MalformedMessage as error:
        raise wrong("messages", str(error)) from None
    if not messages:
        raise wrong("messages", "there must be at least one")
    if any(
        isinstance(image.source, str) and not image.source.startswith("data:") for m in messages for image in m.images
    ):
        raise wrong(
            "messages", "an image must come as a data URL: this server fetches nothing, and reads no files for a client"
        )
    choice = body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise wrong("tool_choice", "'auto' and 'none' are served; a call cannot be forced")
    declared = _list(body, "tools") if body.get("tools") is not None else []
    tools = [] if choice == "none" else [_tool(n, tool) for n, tool in enumerate(declared)]
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    asked = _asked(body, limits, limit, served.renderer.stop_sequences(), logprobs=_flag(body, "logprobs"))
    return Chat(messages, tools, asked)


def text(body: Mapping[str, Any], served: ServedPolicy, limits: Limits) -> Text:
    """Checks a completions request."""
    _check_fields(body, _TEXT)
    prompts = _prompts(body.get("prompt"), served, limits)
    wanted = body.get("logprobs")
    if wanted not in (None, False, True, 0, 1):
        raise wrong("logprobs", f"those of the sampled tokens are served (0 or 1), not the {wanted} likeliest")
    asked = _asked(body, limits, body.get("max_tokens"), (), logprobs=wanted is not None and wanted is not False)
    if (echo := _flag(body, "echo")) and asked.stream:
        raise wrong("echo", "is not served in a stream")
    return Text(
        prompts, echo, _flag(body, "return_tokens_as_token_ids"), _flag(body, "include_stop_str_in_output"), asked
    )


def sample_request(prompt: ModelInput, asked: Asked, served: ServedPolicy) -> SampleRequest:
    """The request to the policy. Refuses a prompt that leaves no room in the model's context."""
    longest = served.max_context
    if not prompt.length:
        raise wrong("prompt", "it is empty; the model needs at least one token")
    if longest is not None and prompt.length >= longest:
        raise ApiError(
            400,
            f"the prompt has {prompt.length} tokens, which leaves no room for an answer in the model's context of {longest}",
            code="context_length_exceeded",
        )
    return SampleRequest(prompt, asked.params, asked.seed, asked.choices)


def rendered(chat: Chat, served: ServedPolicy) -> ModelInput:
    """The prompt of a chat request."""
    try:
        return served.renderer.generation_prompt(chat.messages, tools=chat.tools)
    except (RenderError, OSError) as error:
        raise wrong("messages", str(error)) from None


def _check_fields(body: Mapping[str, Any], known: frozenset[str]) -> None:
    for name, value in body.items():
        if name not in known:
            raise wrong(name, "is not a field that this server knows")
        if name in _NEUTRAL and value not in _NEUTRAL[name]:
            raise wrong(name, "is not served")


def _asked(body: Mapping[str, Any], limits: Limits, limit: Any, stop: Sequence[str | int], *, logprobs: bool) -> Asked:
    stops = body.get("stop")
    cut = [stops] if isinstance(stops, str) else stops or []
    if not isinstance(cut, list) or not all(isinstance(each, str) and each for each in cut):
        raise wrong("stop", "must be a string or a list of strings, none of them empty")
    ids = body.get("stop_token_ids") or []
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        raise wrong("stop_token_ids", "must be a list of token ids")
    params = SamplingParams(
        max_tokens=_number(body, "max_tokens", int, limits.default_tokens, 1, limits.max_tokens, given=limit),
        temperature=_number(body, "temperature", float, 1.0, 0.0, 10.0),
        top_p=_number(body, "top_p", float, 1.0, 1e-9, 1.0),
        top_k=_number(body, "top_k", int, -1, -1, 2**31) or -1,
        stop=tuple(dict.fromkeys((*stop, *cut, *ids))),
    )
    options = body.get("stream_options") or {}
    return Asked(
        params,
        tuple(cut),
        _number(body, "n", int, 1, 1, limits.max_choices),
        _number(body, "seed", int, secrets.randbits(48), -(2**63), 2**64) % 2**63,
        _flag(body, "stream"),
        isinstance(options, Mapping) and bool(options.get("include_usage")),
        logprobs,
        _flag(body, "return_token_ids"),
    )


def _number(
    body: Mapping[str, Any], name: str, kind: type, default: Any, least: float, most: float, given: Any = None
) -> Any:
    value = body.get(name) if given is None else given
    if value is None:
        return default
    finite = math.isfinite(value) if isinstance(value, float) else isinstance(value, int)
    number = finite and not isinstance(value, bool)
    if not number or (kind is int and value != int(value)):
        raise wrong(name, f"must be a {'whole ' if kind is int else ''}number, not {value!r}")
    if not least <= value <= most:
        raise wrong(name, f"must be between {least:g} and {most:g}, not {value!r}")
    return kind(value)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value not in (None, True, False):
        raise wrong(name, f"must be true or false, not {value!r}")
    return bool(value)


def _list(body: Mapping[str, Any], name: str) -> list[Any]:
    value = body.get(name)
    if not isinstance(value, list):
        raise wrong(name, f"must be a list, not {type(value).__name__}")
    return value


def _tool(n: int, tool: Any) -> ToolSpec:
    if not isinstance(tool, Mapping):
        raise wrong(f"tools[{n}]", "must be an object")
    try:
        return ToolSpec.from_openai(tool)
    except ValueError as error:
        raise wrong(f"tools[{n}]", str(error)) from None


def _prompts(given: Any, served: ServedPolicy, limits: Limits) -> list[ModelInput]:
    """A string, a list of token ids, or a list of either."""
    several = given if isinstance(given, list) and not all(isinstance(each, int) for each in given) else [given]
    if len(several) > limits.max_choices:
        raise wrong("prompt", f"at most {limits.max_choices} at once, not {len(several)}")
    return [_prompt(each, served) for each in several]


def _prompt(given: Any, served: ServedPolicy) -> ModelInput:
    vocabulary = served.renderer.vocabulary
    if isinstance(given, str):
        return ModelInput.from_tokens(vocabulary.encode(given))
    if isinstance(given, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in given):
        outside = [token for token in given if not 0 <= token < vocabulary.vocab_size]
        if outside:
            raise wrong("prompt", f"token id {outside[0]}; the vocabulary ends at {vocabulary.vocab_size - 1}")
        return ModelInput.from_tokens(given)
    raise wrong("prompt", "must be a string, a list of token ids, or a list of those")
