"""Learning to use tools: `python -m recipes.tool_use` (a calculator) and `python -m recipes.tool_use.search` (questions of several hops)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recipes.tool_use.calculator import FOR_REAL_MODELS, Config, run

__all__ = ["FOR_REAL_MODELS", "Config", "run"]


def __getattr__(name: str) -> Any:
    """The calculator's, so that `recipes.run("tool_use")` runs what the command line does; search is not made to wait for it."""
    if name in __all__:
        from recipes.tool_use import calculator

        return getattr(calculator, name)
    raise AttributeError(f"module 'recipes.tool_use' has no attribute '{name}'")
