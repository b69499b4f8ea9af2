"""Scripted agents: what a model samples to say something, in any family's format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.backends.values import Completion, SampleRequest, SamplingParams
from engine.rendering import Message, Renderer, ToolCallPart, assistant, get_renderer, renderer_names, tool_result, user
from engine.rendering.registry import control_tokens
from engine.rendering.supervision import TrainOnWhat
from envs.rollout import FailFast, RolloutSettings
from envs.tools import Toolbox, ToolResult, tool
from recipes.tiny import make_tokenizer


@tool(runs="loop")
def multiply(left: int, right: int) -> int:
    """Multiplies."""
    return left * right


@tool(runs="loop")
def submit(answer: str) -> ToolResult:
    """Ends the episode."""
    return ToolResult(answer, final=True, metrics={"submitted": 1.0})


WITH_TOOLS = [name for name in renderer_names() if name not in ("role_colon", "template")]
ONE_OF_EACH = (
    "chatml",
    "deepseekv3",
    "deepseekv3_thinking",
    "glm",
    "glm4_5",
    "gpt_oss",
    "kimi_k2",
    "kimi_k25",
    "llama3_1",
    "nemotron3",
    "qwen3",
    "qwen3_5",
)
_renderers: dict[str, Renderer] = {}


def renderer_of(name: str) -> Renderer:
    if name not in _renderers:
        _renderers[name] = get_renderer(name, make_tokenizer(["abc"], controls=control_tokens(name)))
    return _renderers[name]


def sampled(renderer: Renderer, answer: Message | str, *, after_tool: bool = False) -> np.ndarray[Any, Any]:
    """What a model samples to say this: its content and its stop."""
    message = assistant(answer) if isinstance(answer, str) else answer
    before = [user("?")]
    if after_tool:
        before += [
            assistant("", tool_calls=[calling("multiply")]),
            tool_result("6", name="multiply", id="functions.multiply:0"),
        ]
    example = renderer.supervised_examples(
        [*before, message], TrainOnWhat.LAST_ASSISTANT_MESSAGE, tools=Toolbox([multiply, submit]).specs
    )[-1]
    return example.model_input.tokens[np.asarray(example.weights_T) > 0]


def calling(name: str, **arguments: Any) -> ToolCallPart:
    return ToolCallPart(name, arguments, f"functions.{name}:0")


class Script:
    """Answers in order, whoever asks; remembers the prompts."""

    def __init__(self, renderer: Renderer, *answers: Message | str | Sequence[int]) -> None:
        self.tokens = [
            sampled(renderer, answer, after_tool=bool(place))
            if isinstance(answer, Message | str)
            else np.asarray(answer, np.int32)
            for place, answer in enumerate(answers)
        ]
        self.asked: list[SampleRequest] = []

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        tokens = self.tokens[len(self.asked)][: request.params.max_tokens]
        self.asked.append(request)
        return [Completion(tokens, np.full(len(tokens), -0.5, np.float32), "stop", 0)]


SETTINGS = RolloutSettings(SamplingParams(max_tokens=500), failure=FailFast())
