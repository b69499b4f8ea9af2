"""Renderers by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.rendering.messages import RenderError
from engine.rendering.renderer import Renderer
from engine.rendering.vocabulary import Vocabulary, as_vocabulary

Maker = Callable[[Vocabulary], Renderer]


def _role_colon(vocabulary: Vocabulary) -> Renderer:
    from engine.rendering.families.role_colon import RoleColon  # noqa: PLC0415

    return RoleColon(vocabulary, name="role_colon")


def _chatml(name: str) -> Maker:
    def make(vocabulary: Vocabulary) -> Renderer:
        from engine.rendering.families import chatml  # noqa: PLC0415

        default = {"chatml": None, "smollm2": chatml.SMOLLM2_SYSTEM, "qwen2_5": chatml.QWEN2_5_SYSTEM}[name]
        return chatml.ChatML(vocabulary, name=name, default_system=default)

    return make


_MAKERS: dict[str, Maker] = {
    "role_colon": _role_colon,
    **{name: _chatml(name) for name in ("chatml", "smollm2", "qwen2_5")},
}


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
