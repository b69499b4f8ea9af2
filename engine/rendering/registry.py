"""Renderers by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import attrs

from engine.rendering.messages import RenderError
from engine.rendering.renderer import Renderer
from engine.rendering.vocabulary import Vocabulary, as_vocabulary

Maker = Callable[[Vocabulary], Renderer]

QWEN2_5_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

_KIMI_K25: dict[str, Any] = {"thinking": "prefilled", "default_system": None, "typescript_tools": True, "vision": True}
_GLM5: dict[str, Any] = {"effort": "Max", "open_in_history": True, "whole_declarations": False}

# Name: the module in `families`, the class in it, and the options that make the variant.
_FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "template": ("template", "Template", {}),
    "role_colon": ("role_colon", "RoleColon", {}),
    "chatml": ("chatml", "ChatML", {}),
    "smollm2": ("chatml", "ChatML", {"default_system": SMOLLM2_SYSTEM}),
    "qwen2_5": ("chatml", "ChatML", {"default_system": QWEN2_5_SYSTEM}),
    "llama3": ("llama3", "Llama3", {}),
    "llama3_1": ("llama3", "Llama3", {"date": "26 Jul 2024"}),
    "qwen3": ("qwen3", "Qwen3", {}),
    "qwen3_disable_thinking": ("qwen3", "Qwen3", {"thinking": "disabled"}),
    "qwen3_instruct": ("qwen3", "Qwen3", {"thinking": "none"}),
    "qwen3_vl": ("qwen3", "Qwen3", {"thinking": "prefilled", "vision": True}),
    "qwen3_vl_instruct": ("qwen3", "Qwen3", {"thinking": "none", "vision": True}),
    "qwen3_5": ("qwen3_5", "Qwen35", {}),
    "qwen3_5_disable_thinking": ("qwen3_5", "Qwen35", {"thinking": "disabled"}),
    "qwen3_6": ("qwen3_5", "Qwen35", {"python_words": False}),
    "qwen3_6_disable_thinking": ("qwen3_5", "Qwen35", {"python_words": False, "thinking": "disabled"}),
    "qwen3_6_preserve_thinking": ("qwen3_5", "Qwen35", {"python_words": False, "keep_thinking": True}),
    "qwen3_8": ("qwen3_5", "Qwen35", {"python_words": False, "keep_thinking": True, "effort": "xhigh"}),
    "qwen3_8_medium": ("qwen3_5", "Qwen35", {"python_words": False, "keep_thinking": True, "effort": "medium"}),
    "qwen3_8_low": ("qwen3_5", "Qwen35", {"python_words": False, "keep_thinking": True, "effort": "low"}),
    "qwen3_8_disable_thinking": (
        "qwen3_5",
        "Qwen35",
        {"python_words": False, "keep_thinking": True, "effort": "xhigh", "thinking": "disabled"},
    ),
    "deepseekv3": ("deepseekv3", "DeepSeekV3", {}),
    "deepseekv3_thinking": ("deepseekv3", "DeepSeekV3", {"thinking": "prefilled"}),
    "kimi_k2": ("kimi_k2", "Kimi", {}),
    "kimi_k2_preserve_thinking": ("kimi_k2", "Kimi", {"keep_thinking": True}),
    "kimi_k2_instruct": ("kimi_k2", "Kimi", {"thinking": "none"}),
    "kimi_k25": ("kimi_k2", "Kimi", _KIMI_K25),
    "kimi_k25_disable_thinking": ("kimi_k2", "Kimi", _KIMI_K25 | {"thinking": "disabled"}),
    "kimi_k25_preserve_thinking": ("kimi_k2", "Kimi", _KIMI_K25 | {"keep_thinking": True}),
    "kimi_k26": ("kimi_k2", "Kimi", _KIMI_K25),
    "kimi_k26_disable_thinking": ("kimi_k2", "Kimi", _KIMI_K25 | {"thinking": "disabled"}),
    "kimi_k26_preserve_thinking": ("kimi_k2", "Kimi", _KIMI_K25 | {"keep_thinking": True}),
    "nemotron3": ("nemotron3", "Nemotron3", {}),
    "nemotron3_low": ("nemotron3", "Nemotron3", {"effort": "low"}),
    "nemotron3_disable_thinking": ("nemotron3", "Nemotron3", {"thinking": "disabled"}),
    "nemotron3_preserve_thinking": ("nemotron3", "Nemotron3", {"keep_thinking": True}),
    "nemotron3_ultra": ("nemotron3", "Nemotron3", {"ultra": True}),
    "nemotron3_ultra_medium": ("nemotron3", "Nemotron3", {"ultra": True, "effort": "efficient"}),
    "nemotron3_ultra_disable_thinking": ("nemotron3", "Nemotron3", {"ultra": True, "thinking": "disabled"}),
    "nemotron3_ultra_preserve_thinking": ("nemotron3", "Nemotron3", {"ultra": True, "keep_thinking": True}),
    "gpt_oss": ("gpt_oss", "GptOss", {}),
    "gpt_oss_no_sysprompt": ("gpt_oss", "GptOss", {"effort": None}),
    "gpt_oss_low": ("gpt_oss", "GptOss", {"effort": "low"}),
    "gpt_oss_medium": ("gpt_oss", "GptOss", {"effort": "medium"}),
    "gpt_oss_high": ("gpt_oss", "GptOss", {"effort": "high"}),
    "glm": ("glm", "Glm", _GLM5),
    "glm4_5": ("glm", "Glm", {"thinking": "hybrid", "newlines": True, "open_in_history": True}),
    "glm4_5_disable_thinking": ("glm", "Glm", {"thinking": "disabled", "newlines": True, "open_in_history": True}),
    "glm4_7": ("glm", "Glm", {}),
    "glm4_7_disable_thinking": ("glm", "Glm", {"thinking": "disabled"}),
    "glm4_7_preserve_thinking": ("glm", "Glm", {"keep_thinking": True}),
    "glm5": ("glm", "Glm", _GLM5),
    "glm5_high": ("glm", "Glm", _GLM5 | {"effort": "High"}),
    "glm5_low": ("glm", "Glm", _GLM5 | {"effort": "Low"}),
    "glm5_preserve_thinking": ("glm", "Glm", _GLM5 | {"keep_thinking": True}),
}


def _maker(name: str) -> Maker:
    module, family, options = _FAMILIES[name]

    def make(vocabulary: Vocabulary) -> Renderer:
        found = getattr(importlib.import_module(f"engine.rendering.families.{module}"), family)
        renderer: Renderer = found(vocabulary, name=name, **options)
        return renderer

    return make


_MAKERS: dict[str, Maker] = {name: _maker(name) for name in _FAMILIES}


def register_renderer(name: str, make: Maker) -> None:
    """Adds a renderer of one's own, or replaces one: `make` gets the vocabulary."""
    _MAKERS[name] = make


def renderer_names() -> tuple[str, ...]:
    """All names `get_renderer` takes."""
    return tuple(sorted(_MAKERS))


def get_renderer(name: str, tokenizer: Any) -> Renderer:
    """The renderer `name` for a tokenizer: a `Vocabulary`, a `tokenizers.Tokenizer`, a transformers tokenizer, or a backend's.

    Raises RenderError for an unknown name, and where the tokenizer lacks a control token of the family.
    """
    if name not in _MAKERS:
        raise RenderError(f"no renderer is called {name!r}; there are {', '.join(renderer_names())}")
    return _MAKERS[name](as_vocabulary(tokenizer))


def control_tokens(name: str) -> tuple[str, ...]:
    """The control tokens that a family of this project names, in order, without repetition. Raises RenderError for an unknown renderer."""
    if name not in _FAMILIES:
        raise RenderError(f"no family is called {name!r}; there are {', '.join(sorted(_FAMILIES))}")
    module, family, options = _FAMILIES[name]
    found = getattr(importlib.import_module(f"engine.rendering.families.{module}"), family)
    defaults = {field.name: field.default for field in attrs.fields(found)}
    sees = getattr(found, "image_controls", ()) if options.get("vision", defaults.get("vision")) else ()
    grammar = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
    used = grammar if module in ("qwen3", "qwen3_5", "nemotron3", "glm", "kimi_k2") else ()
    return tuple(dict.fromkeys((*getattr(found, "controls", ()), *getattr(found, "stops", ()), *used, *sees)))
