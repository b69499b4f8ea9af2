"""Renderers by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from engine.rendering.messages import RenderError
from engine.rendering.renderer import Renderer
from engine.rendering.vocabulary import Vocabulary, as_vocabulary

Maker = Callable[[Vocabulary], Renderer]

QWEN2_5_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

# Name: the module in `families`, the class in it, and the options that make the variant.
_FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
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
