"""What a student is asked: rows of prompts by flags, or sums that are made on the spot."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs

from envs.arithmetic import Difficulty
from recipes.row_data import SourceConfig, load_split

if TYPE_CHECKING:
    from engine.data import LoadRows
    from engine.rendering import Message, Renderer
    from envs.contracts import GroupDataset

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
    from engine.runtime.seeds import derive_seed
    from envs.arithmetic import ArithmeticGroups

    if config.data is None and config.dataset is None:
        sums = ArithmeticGroups(renderer, config.difficulty, config.group_size, seed=derive_seed(config.seed, 1))
        held = attrs.evolve(sums, group_size=1, count=config.evaluation_problems, seed=derive_seed(config.seed, 2))
        return sums, held
    return _from_rows(config, load, renderer)


def _from_rows(config: ProblemConfig, load: LoadRows, renderer: Renderer) -> tuple[GroupDataset, GroupDataset | None]:
    from engine.data import Examples, Prompt, read_prompts
    from envs.prompts import PromptGroups, as_it_is

    def groups(prompts: Examples[Prompt], group_size: int) -> PromptGroups[Prompt]:
        return PromptGroups(renderer, prompts, as_it_is, group_size)

    read = partial(read_prompts, on_bad_row=config.on_bad_row)
    train, test = load_split(config, load, None, read)
    return groups(train, config.group_size), groups(test, 1) if test is not None else None


def load_hinted(
    config: ProblemConfig, hint: str, load: LoadRows, renderer: Renderer
) -> tuple[GroupDataset, GroupDataset | None]:
    """As `load_problems`, of problems with an answer; a teacher reads `hint`, made of question, answer and solution, in the question's place. Blocks."""
    from engine.data import Examples, Problem, read_problems
    from engine.rendering import user
    from envs.prompts import PromptGroups

    if config.data is None and config.dataset is None:
        return _hinted_sums(config, hint, load, renderer)

    def ask(problem: Problem) -> tuple[list[Message], list[Message]]:
        told = hint.format(question=problem.question, answer=problem.answer, solution=problem.solution or "")
        return [user(problem.question)], [user(told)]

    def groups(problems: Examples[Problem], group_size: int) -> PromptGroups[Problem]:
        return PromptGroups(renderer, problems, ask, group_size)

    read = partial(read_problems, on_bad_row=config.on_bad_row)
    train, test = load_split(config, load, None, read)
    return groups(train, config.group_size), groups(test, 1) if test is not None else None


def _hinted_sums(
    config: ProblemConfig, hint: str, load: LoadRows, renderer: Renderer
) -> tuple[GroupDataset, GroupDataset | None]:
    """Sums, which are graded too."""
    from envs.arithmetic import ArithmeticGroups

    def hinted(groups: GroupDataset | None) -> GroupDataset | None:
        return attrs.evolve(groups, hint=hint) if isinstance(groups, ArithmeticGroups) else groups

    train, held_out = load_problems(config, load, renderer)
    return hinted(train) or train, hinted(held_out)
