r"""Reinforcement learning of mathematics: the answer in a box, graded by value.

    python -m recipes.math_rl                                                          # two minutes on two CPU cores: sums, a tiny model
    python -m recipes.math_rl --env gsm8k --model HuggingFaceTB/SmolLM2-1.7B-Instruct   # GSM8K from the Hugging Face hub
    python -m recipes.math_rl --env math --model Qwen/Qwen3-4B-Instruct-2507 --form.few-shot 1
    python -m recipes.math_rl --env deepmath --data deepmath.parquet --test-data mine.jsonl

Problems are GSM8K, MATH, Polaris or DeepMath, by name from the hub, or a local file with the fields of one of them; or sums made on the spot. The reward is 1 for an answer that
has the reference's value (docs/environments.md says how that is found out, and what a strange answer can cost), less a penalty where it is not in \boxed{}. GSM8K and MATH are tested
on their own test sets (MATH on MATH-500), the others on problems held out.

Without `--model`, a tiny Llama is warmed up on the sums of a pupil who mostly forgets to carry, and puts every other answer into no box; the reward teaches both. What this recipe leaves
out: rewards for steps on the way, tools, several attempts.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio.to_thread
import attrs

from engine.data import Examples, OnBadRow, Problem, read_problems
from envs.arithmetic import Difficulty
from envs.math_problems import ArithmeticProblems, MathForm, MathGroups, Problems
from recipes import cli, runs
from recipes.ports import DEFAULT, Ports
from recipes.reinforcement import FOR_REAL_MODELS as SIZES_FOR_REAL_MODELS
from recipes.reinforcement import ProblemConfig, reinforce

if TYPE_CHECKING:
    from actors import RunResult
    from envs.grading import MathGrader

EnvName = Literal["arithmetic", "gsm8k", "math", "polaris", "deepmath"]
TESTED_ON = {"gsm8k": "gsm8k", "math": "math500"}
"""Data sets with a test set that is known by name."""
CHECKED = 20_000
"""Problems that are read once before anything else, so that a bad one is told at once and not in the middle of the run."""

_optional_positive: Any = attrs.validators.optional(attrs.validators.ge(1))


@attrs.frozen
class GradingConfig:
    """How answers are graded."""

    budget: float = attrs.field(default=2.0, validator=attrs.validators.gt(0))
    """Seconds that one answer may take in a worker process, beyond which it is killed, wrong and counted."""
    workers: int | None = attrs.field(default=None, validator=_optional_positive)
    """Worker processes; None: one for each CPU. Sums need none."""
    on_failure: Literal["wrong", "raise"] = "wrong"
    """What an answer is whose grading fails: wrong, or the end of the run."""


@attrs.frozen(kw_only=True)
class Config(ProblemConfig):
    """Reinforcement learning of mathematics. Without flags: a tiny model learns to carry, and to put its answers into boxes, in two minutes on two CPU cores."""

    env: EnvName = "arithmetic"
    """Which problems."""
    data: Path | None = None
    """A local file with such problems: .jsonl, .json, .parquet or .csv; None: they come from the Hugging Face hub."""
    test_data: Path | None = None
    """A local file with problems to be tested on; None: the test set that belongs to the problems, else some of them that are held out."""
    limit: int | None = attrs.field(default=None, validator=_optional_positive)
    """Problems to take at most, the first ones."""
    on_bad_row: OnBadRow = "error"
    """What to do with a row that is no problem."""
    difficulty: Difficulty = attrs.field(factory=lambda: Difficulty(digits=2, digits_right=1, carry=1.0))
    """Which sums are drawn."""
    form: MathForm = attrs.field(factory=lambda: MathForm(instruction=""))
    """How problems are asked, and in which form an answer is wanted."""
    grading: GradingConfig = attrs.field(factory=GradingConfig)
    """How answers are graded."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.env == "arithmetic" and (self.data is not None or self.test_data is not None):
            raise ValueError("data needs --env: with which fields? gsm8k, math, polaris or deepmath")


FOR_REAL_MODELS: dict[str, Any] = SIZES_FOR_REAL_MODELS | {"form": MathForm()}


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the reinforcement learning began."""
    from actors import StopRequest
    from engine.runtime.seeds import derive_seed
    from recipes.tiny_maths import worked
    from recipes.warm_up import open_worked

    # What cannot be read is said before a directory or a model is made.
    problems, test = await anyio.to_thread.run_sync(_problems, config, ports)
    pupil = partial(worked, config.difficulty, derive_seed(config.seed, 0))
    stop, result = StopRequest(), None
    async with cli.stop_on_interrupt(stop), _grader(config) as grader:
        directory = runs.begin(config, "math_rl")
        async with open_worked(config, directory, ports, stop, pupil) as opened:
            groups = MathGroups(opened.renderer, problems, grader, config.group_size, config.form, (config.env,))
            fixed = attrs.evolve(groups, problems=test, group_size=1)
            if not stop.requested:
                result = await reinforce(config, "math_rl", directory, opened, groups, {"test problems": fixed}, stop)
    runs.tell(directory, result, "recipes.math_rl")
    return result


@asynccontextmanager
async def _grader(config: Config) -> AsyncIterator[MathGrader]:
    from envs.grading import MathGrader, open_math_grader

    if config.env == "arithmetic":
        yield MathGrader(None)
        return
    grading = config.grading
    async with open_math_grader(
        workers=grading.workers, budget=grading.budget, on_failure=grading.on_failure
    ) as grader:
        yield grader


def _problems(config: Config, ports: Ports) -> tuple[Problems, Problems]:
    """What is trained on, and what is tested on. Blocks."""
    from engine.runtime.seeds import derive_seed

    count = config.evaluation_problems
    if config.env == "arithmetic":
        made = ArithmeticProblems(config.difficulty, config.limit or 100_000, derive_seed(config.seed, 1))
        return made, attrs.evolve(made, count=count, seed=derive_seed(config.seed, 2))
    rows = ports.load_rows(config.data or config.env, schema=config.env, limit=config.limit)
    problems = _checked(read_problems(rows, on_bad_row=config.on_bad_row))
    if config.test_data is not None:
        test = read_problems(ports.load_rows(config.test_data), on_bad_row=config.on_bad_row)
        return problems, _checked(test.take(count))
    if config.data is None and config.env in TESTED_ON:
        test = read_problems(ports.load_rows(TESTED_ON[config.env], split="test"), on_bad_row=config.on_bad_row)
        return problems, _checked(test.shuffled(config.seed).take(count))
    held_out = min(count, len(problems) // 5)
    if not held_out:
        raise ValueError(f"{problems.name} has {len(problems)} problems, too few to hold some out: give --test-data")
    return problems.split(held_out, config.seed)


def _checked(problems: Examples[Problem]) -> Examples[Problem]:
    for index in range(min(len(problems), CHECKED)):
        problems[index]  # raises BadRow, naming file, row and field
    return problems


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
