"""What a student is asked: rows of prompts by flags, or sums that are made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import attrs

from envs.arithmetic import Difficulty
from recipes.row_data import SourceConfig, load_split

if TYPE_CHECKING:
    from engine.data import Examples, LoadRows, Rows
    from engine.rendering import Message, Renderer
    from envs.contracts import GroupDataset
    from envs.prompts import Asks

T = TypeVar("T")
_positive = attrs.validators.ge(1)


@attrs.frozen(kw_only=True)
class ProblemConfig(SourceConfig):
    """Problems for a student."""

    group_size: int = attrs.field(default=4, validator=_positive)
    """Answers to each problem."""
    difficulty: Difficulty = attrs.field(factory=lambda: Difficulty(digits=2, digits_right=1, carry=1.0))
    """Which sums are made where no data is named."""
    evaluation_problems: int = attrs.field(default=128, validator=_positive)
    """How many sums are held out; of rows --held-out says it."""


def load_problems(
    config: ProblemConfig, load: LoadRows, renderer: Renderer
) -> tuple[GroupDataset, GroupDataset | None]:
    """What to train on, and what is held out, one answer to each. Blocks: it may download, and indexes files."""
    from engine.data import read_prompts
    from engine.runtime.seeds import derive_seed
    from envs.arithmetic import ArithmeticGroups
    from envs.prompts import as_it_is

    if config.data is None and config.dataset is None:
        sums = ArithmeticGroups(renderer, config.difficulty, config.group_size, seed=derive_seed(config.seed, 1))
        held = attrs.evolve(sums, group_size=1, count=config.evaluation_problems, seed=derive_seed(config.seed, 2))
        return sums, held
    return _from_rows(config, load, renderer, partial(read_prompts, on_bad_row=config.on_bad_row), as_it_is)


def load_hinted(
    config: ProblemConfig, hint: str, load: LoadRows, renderer: Renderer
) -> tuple[GroupDataset, GroupDataset | None]:
    """Like `load_problems`, for problems with an answer; a teacher reads `hint`, made of question, answer and solution, in the question's place. Blocks."""
    from engine.data import Problem, read_problems
    from engine.rendering import user

    if config.data is None and config.dataset is None:
        return _hinted_sums(config, hint, load, renderer)

    def ask(problem: Problem) -> tuple[list[Message], list[Message]]:
        told = hint.format(question=problem.question, answer=problem.answer, solution=problem.solution or "")
        return [user(problem.question)], [user(told)]

    return _from_rows(config, load, renderer, partial(read_problems, on_bad_row=config.on_bad_row), ask)


def _from_rows(
    config: ProblemConfig, load: LoadRows, renderer: Renderer, read: Callable[[Rows], Examples[T]], ask: Asks[T]
) -> tuple[GroupDataset, GroupDataset | None]:
    """Rows as groups. `ask`: what the student reads of an example, and the teacher."""
    from envs.prompts import PromptGroups

    train, test = load_split(config, load, None, read)
    held_out = PromptGroups(renderer, test, ask, 1) if test is not None else None
    return PromptGroups(renderer, train, ask, config.group_size), held_out


def _hinted_sums(
    config: ProblemConfig, hint: str, load: LoadRows, renderer: Renderer
) -> tuple[GroupDataset, GroupDataset | None]:
    """Sums, which are graded too."""
    from envs.arithmetic import ArithmeticGroups

    def hinted(groups: GroupDataset | None) -> GroupDataset | None:
        return attrs.evolve(groups, hint=hint) if isinstance(groups, ArithmeticGroups) else groups

    train, held_out = load_problems(config, load, renderer)
    return hinted(train) or train, hinted(held_out)
