"""Reinforcement learning of programming: the policy writes code, a sandbox runs it, tests decide.

    python -m recipes.code_rl                                              # two minutes on two CPU cores: a tiny model, small functions, a real sandbox
    python -m recipes.code_rl --model smollm2 --dataset mbpp               # MBPP from the hub, or --data mbpp.jsonl
    python -m recipes.code_rl --model Qwen/Qwen3-4B-Instruct-2507 --dataset deepcoder --grading.partial-credit --task.attempts 2
    python -m recipes.code_rl --sandbox.kind sandbox_fusion --sandbox.url http://localhost:8080

Without `--model`, a tiny Llama is made and warmed up on the functions of a pupil who knows Python but mostly does not listen ("7 less than x": `return x * 7`). Which
function was asked for only the tests can teach: each answer is run on inputs in the sandbox (docs/sandbox.md), in its own process, on no network. The reward is whether all
outputs are right, or the share of them. What this recipe leaves out: thinking with a budget of its own, languages other than Python, tools while writing.
"""

from __future__ import annotations

import sys
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import attrs

from actors.schedule import Schedule
from engine.data import OnBadRow
from envs.code.env import CodeSettings
from envs.code.grading import GradingSettings
from envs.code.opening import SandboxConfig
from recipes import cli, runs
from recipes.learning_rates import LearningRateConfig
from recipes.models import RENDERERS, TINY, OpenedModel
from recipes.ports import DEFAULT, Ports
from recipes.reinforcement import ProblemConfig, reinforce

if TYPE_CHECKING:
    from actors import RunResult, StopRequest
    from engine.rendering import Renderer
    from envs.code.problem import CodeProblems

_positive = attrs.validators.ge(1)
_optional_positive: Any = attrs.validators.optional(_positive)


@attrs.frozen(kw_only=True)
class Config(ProblemConfig):
    """Reinforcement learning of programming. Without flags: a tiny model learns small functions, run in a real sandbox, in two minutes."""

    dataset: str | None = None
    """humaneval, mbpp, mbpp_sanitized, livecodebench, deepcoder, or any set on the Hugging Face hub with such fields, as owner/name; None: --data, or small
    functions made here."""
    subset: str | None = None
    """Configuration of the hub's data set; None: the default one."""
    split: str | None = None
    """Split of the hub's data set that is trained on; None: train."""
    data: Path | None = None
    """Local problems instead: a .jsonl, .json or .parquet file with the fields of one of those sets, or problem and tests."""
    test_data: Path | None = None
    """Local problems for evaluation; None: held out of those that are trained on."""
    limit: int | None = attrs.field(default=None, validator=_optional_positive)
    """Problems to take at most, the first ones."""
    on_bad_row: OnBadRow = "error"
    """What to do with a row that is no problem."""
    sandbox: SandboxConfig = attrs.field(factory=SandboxConfig)
    """Where the answers' code runs."""
    grading: GradingSettings = attrs.field(factory=lambda: GradingSettings(seconds=2.0, budget=20.0))
    """How it is graded."""
    task: CodeSettings = attrs.field(factory=lambda: CodeSettings(form="bare"))
    """How problems are asked and rewarded."""
    steps: int = attrs.field(default=30, validator=_positive)
    """Optimizer steps."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(groups_per_step=12))
    """Pace: synchronous by default."""
    warm_up: int = attrs.field(default=120, validator=attrs.validators.ge(0))
    """Supervised steps that the tiny model first takes."""
    learning_rate: LearningRateConfig = attrs.field(factory=lambda: LearningRateConfig(peak=1.5e-3, warmup_steps=3))
    """The learning rate over the run."""
    max_tokens: int = attrs.field(default=24, validator=_positive)
    """Longest answer, in tokens."""
    evaluate_every: int = attrs.field(default=15, validator=_positive)
    """Steps between evaluations on fixed problems."""
    evaluation_problems: int = attrs.field(default=48, validator=_positive)
    """How many those are, at most; out of what is trained on no more than a fifth."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.dataset is not None and self.data is not None:
            raise ValueError("dataset cannot be given beside --data: both say what to train on")


FOR_REAL_MODELS: dict[str, Any] = {
    "task": CodeSettings(),
    "grading": GradingSettings(),
    "schedule": Schedule(groups_per_step=8),
    "group_size": 8,
    "warm_up": 0,
    "learning_rate": LearningRateConfig(peak=5e-4, warmup_steps=3),
    "max_tokens": 1024,
    "lora_rank": 32,
    "threads": None,
    "evaluate_every": 10,
    "evaluation_problems": 64,
}
"""A model that speaks already writes whole blocks, and needs no warm-up."""


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the reinforcement learning began."""
    from actors import StopRequest
    from envs.code.env import CodeGroups
    from envs.code.grading import CodeGrader

    # What cannot be read, and what cannot be isolated, is said before a directory or a model is made.
    problems, test = await anyio.to_thread.run_sync(_problems, config, ports)
    stop, result = StopRequest(), None
    async with cli.stop_on_interrupt(stop), ports.open_sandbox(config.sandbox) as sandbox:
        directory = runs.begin(config, "code_rl")
        async with _open(config, directory, ports, stop) as opened:
            grader = CodeGrader(sandbox, config.grading)
            groups = CodeGroups(opened.renderer, problems, grader, config.group_size, config.task)
            fixed = attrs.evolve(groups, problems=test, group_size=1)
            if not stop.requested:
                result = await reinforce(config, "code_rl", directory, opened, groups, {"fixed problems": fixed}, stop)
    runs.tell(directory, result, "recipes.code_rl")
    return result


def _problems(config: Config, ports: Ports) -> tuple[CodeProblems, CodeProblems]:
    """What is trained on, and what is evaluated on. Blocks."""
    from engine.runtime.seeds import derive_seed
    from envs.code.datasets import installed_humaneval, read_code_problems
    from envs.code.toys import ToyProblems

    if config.dataset is None and config.data is None:
        fixed = ToyProblems(config.evaluation_problems, derive_seed(config.seed, 2))
        return ToyProblems(config.limit or 100_000, derive_seed(config.seed, 1)), fixed
    rows = installed_humaneval() if config.dataset == "humaneval" and config.split is None else None
    if config.data is not None:
        rows = ports.load_rows(config.data, limit=config.limit)
    elif rows is None:
        rows = ports.load_rows(config.dataset or "", split=config.split, subset=config.subset, limit=config.limit)
    problems = read_code_problems(rows, on_bad_row=config.on_bad_row)
    if config.test_data is not None:
        test = read_code_problems(ports.load_rows(config.test_data), on_bad_row=config.on_bad_row)
        return problems.shuffled(config.seed), test.take(config.evaluation_problems)
    if len(problems) < 2:
        raise ValueError(f"{problems.name} has one problem: give --test-data too")
    held_out = max(1, min(config.evaluation_problems, len(problems) // 5))
    train, test = problems.split(held_out, config.seed)
    return train.shuffled(config.seed), test


def _open(config: Config, directory: Path, ports: Ports, stop: StopRequest) -> AbstractAsyncContextManager[OpenedModel]:
    """The model that RL starts from; the tiny one is taught what the careless pupil wrote."""
    from engine.runtime.seeds import derive_seed
    from recipes.tiny_code import make_tiny_coder, worked
    from recipes.warm_up import WorkedConversations, open_warmed_up

    def careless_pupil(renderer: Renderer) -> WorkedConversations:
        return WorkedConversations(renderer, partial(worked, derive_seed(config.seed, 0)), config.warm_up)

    make_tiny = make_tiny_coder(config.renderer or RENDERERS[TINY]) if config.model == TINY else None
    return open_warmed_up(config, directory, ports, stop, careless_pupil, make_tiny=make_tiny)


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
