"""Environments by name, for whoever chooses one at run time: recipes, `recipes.play`, a configuration file.

    async with open_env("guess_number", renderer, group_size=8, high=50) as groups:
        builder = groups[0]

An entry is a *maker*, named as `module:attribute` and imported when it is used:

    make(renderer, *, group_size: int, seed: int, **options) -> GroupDataset          options: its own keywords, with defaults

A maker that needs resources (worker processes, a sandbox, a server) is an async context manager that gives the dataset and frees them. Nothing has to be
registered to be trained on; a package adds its environments with entry points, so that they are found without being imported:

    [project.entry-points."callsheet.envs"]
    chess_puzzles = "my_package.chess:groups"
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import import_module
from typing import Any

import attrs

from engine.rendering import Renderer
from envs.contracts import GroupDataset

ENTRY_POINTS = "callsheet.envs"

Maker = Callable[..., GroupDataset | AbstractAsyncContextManager[GroupDataset]]

# Name: where the maker is, and what is learnt, in a few words. One line each, by name.
_BUILT_IN: dict[str, tuple[str, str]] = {
    "arithmetic": ("envs.arithmetic:groups", "sums, differences and products of adjustable difficulty"),
    "calculator": ("envs.tools.calculator:groups", "arithmetic with a calculator to call"),
    "code": ("envs.code.opening:groups", "programming problems, graded by running the answers in a sandbox"),
    "guess_number": ("envs.games.guess_number:groups", "finding a number by hints, in several turns"),
    "images": ("envs.vision.classification:groups", "which of some classes an image shows"),
    "math": ("envs.math_problems:groups", "problems of mathematics from data sets, graded by value"),
    "reasoning": ("envs.reasoning_tasks:groups", "reasoning-gym's procedural tasks, each with its own scorer"),
    "textarena": ("envs.games.arena:groups", "a game of TextArena, for one player or several"),
    "tic_tac_toe": ("envs.games.tic_tac_toe:groups", "tic-tac-toe against oneself, a random or a perfect player"),
    "twenty_questions": ("envs.games.twenty_questions:groups", "finding a thing by questions that a model answers"),
}

_GIVEN = ("renderer", "group_size", "seed")
"""Parameters of a maker that are not options."""


class UnknownEnv(ValueError):
    """No environment of that name, or no option of that name: the message lists those there are."""


@attrs.frozen
class EnvEntry:
    """An environment that can be opened by name."""

    name: str
    source: str
    """`module:attribute` of its maker."""
    summary: str = ""

    def maker(self) -> Maker:
        """Imports it. Raises ImportError naming the entry."""
        module, _, attribute = self.source.partition(":")
        try:
            maker: Maker = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ImportError(f"environment {self.name!r} ({self.source}) cannot be imported: {error}") from error
        return maker

    def options(self) -> Mapping[str, inspect.Parameter]:
        """What may be set beside renderer, group size and seed. A maker that takes any keyword has `**` among them."""
        parameters = inspect.signature(self.maker()).parameters
        return {
            "**" if parameter.kind is inspect.Parameter.VAR_KEYWORD else name: parameter
            for name, parameter in parameters.items()
            if name not in _GIVEN
        }


def register_env(name: str, source: str, summary: str = "") -> None:
    """Adds an environment, or replaces one, for this process: `source` is `module:attribute` of its maker."""
    if source.count(":") != 1:
        raise ValueError(f"environment {name!r}: the source is written module:attribute, not {source!r}")
    _BUILT_IN[name] = (source, summary)


def envs() -> Mapping[str, EnvEntry]:
    """All that can be opened, by name: those of this project, and those of installed packages' entry points. Imports none of them."""
    from importlib.metadata import entry_points

    found = {
        point.name: EnvEntry(point.name, point.value, f"of the package {point.dist.name}" if point.dist else "")
        for point in entry_points(group=ENTRY_POINTS)
    }
    found.update({name: EnvEntry(name, source, summary) for name, (source, summary) in _BUILT_IN.items()})
    return dict(sorted(found.items()))


def env_entry(name: str) -> EnvEntry:
    """One of them. Raises UnknownEnv."""
    known = envs()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownEnv(f"no environment is called {name!r}; {hint}there are {', '.join(known)}")
    return known[name]


@asynccontextmanager
async def open_env(
    name: str, renderer: Renderer, *, group_size: int = 1, seed: int = 0, **options: Any
) -> AsyncIterator[GroupDataset]:
    """The environment's dataset of groups, with what it needs while the block runs. Raises UnknownEnv for a name or an option that does not exist."""
    entry = env_entry(name)
    possible = entry.options()
    wrong = [option for option in options if option not in possible and "**" not in possible]
    if wrong:
        raise UnknownEnv(
            f"environment {name!r} has no option {wrong[0]!r}; there are {', '.join(sorted(possible)) or 'none'}"
        )
    made = entry.maker()(renderer, group_size=group_size, seed=seed, **options)
    if isinstance(made, AbstractAsyncContextManager):
        async with made as groups:
            yield groups
    else:
        yield made
