"""Messages to tokens and back: one renderer for each model family.

renderer = get_renderer("qwen3", load_vocabulary("Qwen/Qwen3-8B"))
prompt = renderer.generation_prompt([user("2 + 3?")])
answer = renderer.parse(sampled_tokens).message
examples = renderer.supervised_examples(conversation, TrainOnWhat.ALL_ASSISTANT_MESSAGES)
"""

from __future__ import annotations

from engine.rendering.dialogue import Dialogue
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
from engine.rendering.models import ModelInfo, model_info, register_model
from engine.rendering.openai_format import MalformedMessage, from_openai, to_openai
from engine.rendering.parsing import Delta, Failure, ParsedMessage, PartEnd, StreamParser
from engine.rendering.registry import get_renderer, register_renderer, renderer_names
from engine.rendering.renderer import Renderer
from engine.rendering.supervision import SupervisedExample, TrainOnWhat
from engine.rendering.tools import ToolSpec
from engine.rendering.vocabulary import HuggingFaceVocabulary, Vocabulary, as_vocabulary, load_vocabulary

__all__ = [
    "Delta",
    "Dialogue",
    "Failure",
    "HuggingFaceVocabulary",
    "ImagePart",
    "MalformedMessage",
    "Message",
    "ModelInfo",
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
    "from_openai",
    "get_renderer",
    "load_vocabulary",
    "model_info",
    "register_model",
    "register_renderer",
    "renderer_names",
    "system",
    "to_openai",
    "tool_result",
    "user",
]
