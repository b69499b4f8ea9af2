"""Reinforcement learning on rubrics: what an answer should do, item by item, judged by a model.

    python -m recipes.rubric                                                            # two minutes on two CPU cores: sums, a tiny model, a judge by rule
    python -m recipes.rubric --model smollm2 --data tasks.jsonl --judge.model smollm2   # one's own tasks, a model of this machine as judge
    python -m recipes.rubric --model Qwen/Qwen3-4B --data tasks.jsonl --judge.model Qwen/Qwen3-32B --judge.backend openai_compatible --judge.base-url http://127.0.0.1:8000/v1

A task is a prompt with a rubric: criteria with weights and scales. Every item of every answer is one question to the judge; all of them are asked concurrently. A
reply without a verdict is asked for again with another seed, and when no attempt is left it is a failure, by setting: never a 0. Without flags, a tiny model that adds carelessly
and talks learns to give the right number and nothing else; the judge is then a rule that reads and writes what a model would (`recipes.tiny_rubrics`). What this
recipe leaves out: rubrics that a model writes, and conversations of several turns.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from engine.data import OnBadRow
from envs.arithmetic import Difficulty
from envs.grading.rubrics import Combine
from recipes import cli, runs
from recipes.judging import JudgeConfig, judge_of, open_judge
from recipes.ports import DEFAULT, Ports
from recipes.reinforcement import FOR_REAL_MODELS as SIZES_FOR_REAL_MODELS
from recipes.reinforcement import ProblemConfig, reinforce

if TYPE_CHECKING:
    from actors import RunResult
    from envs.grading.rubrics import Rubric, RubricGrader, RubricTasks

_optional_positive: Any = attrs.validators.optional(attrs.validators.ge(1))


@attrs.frozen(kw_only=True)
class Config(ProblemConfig):
    """Reinforcement learning on rubrics. Without flags: a tiny model learns to add and to say no more than asked, in two minutes on two CPU cores."""

    dataset: str | None = None
    """A data set of tasks on the Hugging Face hub, as owner/name; None: --data, or sums made here."""
    split: str = "train"
    """Split of the hub's data set."""
    data: Path | None = None
    """A local file of tasks instead, rows with prompt and rubric: .jsonl, .json, .parquet or .csv."""
    rubric: Path | None = None
    """A JSON file with a rubric for rows that have none: a list of criteria, or of objects with criterion, weight, scale, name."""
    limit: int | None = attrs.field(default=None, validator=_optional_positive)
    """Tasks to take at most, the first ones."""
    on_bad_row: OnBadRow = "error"
    """What to do with a row that is no task."""
    difficulty: Difficulty = attrs.field(factory=lambda: Difficulty(digits=2, digits_right=1, carry=1.0))
    """Which sums are drawn."""
    judge: JudgeConfig = attrs.field(factory=JudgeConfig)
    """Who judges."""
    second_judge: JudgeConfig = attrs.field(factory=JudgeConfig)
    """Who judges too."""
    combine: Combine = "mean"
    """How the scores of two judges become one."""
    unfinished_penalty: float = attrs.field(default=0.1, validator=attrs.validators.ge(0.0))
    """Taken from the reward of an answer that was cut off."""

    @property
    def made_here(self) -> bool:
        """Whether no tasks were named."""
        return self.dataset is None and self.data is None

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.dataset is not None and self.data is not None:
            raise ValueError("dataset cannot be given beside --data: both say what to train on")
        if not self.made_here and not self.judge.wanted:
            raise ValueError(
                "judge.model must be given for tasks of one's own: the judge by rule knows the made sums alone"
            )


FOR_REAL_MODELS: dict[str, Any] = SIZES_FOR_REAL_MODELS | {"steps": 50, "group_size": 4, "evaluation_problems": 32}


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the reinforcement learning began."""
    from actors import StopRequest
    from engine.runtime.offload import offload
    from engine.runtime.seeds import derive_seed
    from envs.grading.rubrics import RubricGroups
    from recipes.tiny_rubrics import worked
    from recipes.warm_up import open_worked

    tasks, test = await offload(_tasks, config, ports)  # what cannot be read is said before anything is made
    stop, result = StopRequest(), None
    directory = runs.begin(config, "rubric")
    pupil = partial(worked, config.difficulty, derive_seed(config.seed, 0))
    async with (
        cli.stop_on_interrupt(stop),
        _grader(config, directory, ports) as grader,
        open_worked(config, directory, ports, stop, pupil) as opened,
    ):
        groups = RubricGroups(
            renderer=opened.renderer,
            tasks=tasks,
            grader=grader,
            group_size=config.group_size,
            unfinished_penalty=config.unfinished_penalty,
            blocking=not config.made_here,
        )
        fixed = attrs.evolve(groups, tasks=test, group_size=1)
        if not stop.requested:
            result = await reinforce(config, "rubric", directory, opened, groups, {"fixed tasks": fixed}, stop)
    runs.tell(directory, result, "recipes.rubric")
    return result


@asynccontextmanager
async def _grader(config: Config, directory: Path, ports: Ports) -> AsyncIterator[RubricGrader]:
    from envs.grading.rubrics import RubricGrader
    from recipes.tiny_rubrics import judge_by_rule

    async with AsyncExitStack() as opened:
        judges = [
            await opened.enter_async_context(open_judge(each, directory / name, ports, seed=config.seed))
            for name, each in (("first", config.judge), ("second", config.second_judge))
            if each.wanted
        ]
        if not judges:
            judges = [judge_of(config.judge, judge_by_rule(), seed=config.seed)]
        yield RubricGrader(judges, combine=config.combine, on_failure=config.judge.on_failure)


def _tasks(config: Config, ports: Ports) -> tuple[RubricTasks, RubricTasks]:
    """What is trained on, and what is tested on. Blocks."""
    from engine.runtime.seeds import derive_seed
    from envs.grading.rubric_data import read_rubric_tasks
    from recipes.tiny_rubrics import SumTasks

    count = config.evaluation_problems
    if config.made_here:
        made = SumTasks(config.difficulty, config.limit or 100_000, derive_seed(config.seed, 1))
        return made, attrs.evolve(made, count=count, seed=derive_seed(config.seed, 2))
    split = config.split if config.data is None else None
    rows = ports.load_rows(config.data or config.dataset or "", split=split, limit=config.limit)
    tasks = read_rubric_tasks(rows, common=_common(config.rubric), on_bad_row=config.on_bad_row)
    if config.on_bad_row == "error":
        for index in range(len(tasks)):
            tasks[index]  # raises BadRow, naming file, row and field
    held_out = min(count, len(tasks) // 5)
    if not held_out:
        raise ValueError(
            f"{tasks.name} has {len(tasks)} tasks, too few to hold some out for evaluation: five are needed"
        )
    return tasks.split(held_out, config.seed)


def _common(path: Path | None) -> Rubric | None:
    from envs.grading.rubrics import Rubric

    if path is None:
        return None
    try:
        return Rubric.from_rows(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"rubric: {path} holds none ({error})") from error


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
