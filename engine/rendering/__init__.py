"""Messages to tokens and back: one renderer for each model family.

renderer = get_renderer("qwen3", load_vocabulary("Qwen/Qwen3-8B"))
prompt = renderer.generation_prompt([user("2 + 3?")])
answer = renderer.parse(sampled_tokens).message
examples = renderer.supervised_examples(conversation, TrainOnWhat.ALL_ASSISTANT_MESSAGES)
"""

from __future__ import annotations

from engine.rendering.messages import (
    ImagePart,
    Message,
    RenderError,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolResultPart,
    UnparsedToolCallPart,
    assistant,
    system,
    tool_result,
    user,
)
from engine.rendering.parsing import Delta, Failure, ParsedMessage, PartEnd, StreamParser
from engine.rendering.registry import get_renderer, register_renderer, renderer_names
from engine.rendering.renderer import Renderer
from engine.rendering.supervision import SupervisedExample, TrainOnWhat
from engine.rendering.tools import ToolSpec
from engine.rendering.vocabulary import HuggingFaceVocabulary, Vocabulary, as_vocabulary, load_vocabulary

__all__ = [
    "Delta",
    "Failure",
    "HuggingFaceVocabulary",
    "ImagePart",
    "Message",
    "ParsedMessage",
    "PartEnd",
    "RenderError",
    "Renderer",
    "StreamParser",
    "SupervisedExample",
    "TextPart",
    "ThinkingPart",
    "ToolCallPart",
    "ToolResultPart",
    "ToolSpec",
    "TrainOnWhat",
    "UnparsedToolCallPart",
    "Vocabulary",
    "as_vocabulary",
    "assistant",
    "get_renderer",
    "load_vocabulary",
    "register_renderer",
    "renderer_names",
    "system",
    "tool_result",
    "user",
]
