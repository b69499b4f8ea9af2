"""Recipes: each chooses and wires, and has no logic of its own. Run one with `python -m recipes.<name>`, or from Python with `run("<name>", ...)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recipes.embedding import Manifest, StopHandle, in_memory_rows, models_at, run

__all__ = ["Manifest", "StopHandle", "in_memory_rows", "models_at", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from recipes import embedding

        return getattr(embedding, name)
    raise AttributeError(f"module 'recipes' has no attribute '{name}'")
