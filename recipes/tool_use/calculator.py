"""Reinforcement learning of tool use: arithmetic that is too much for the model's head, and a calculator.

    python -m recipes.tool_use                                    # two minutes on two CPU cores, nothing needed but this package and torch
    python -m recipes.tool_use --difficulty.digits 3              # longer numbers: harder to copy
    python -m recipes.tool_use --model smollm2                    # SmolLM2-135M-Instruct, some minutes; any Hugging Face causal LM works by name or path

Without `--model`, a tiny Llama is made and warmed up on the conversations of a pupil who can use the calculator but has become lazy, and mostly
guesses. That looking is better than guessing is for the reward to teach. What this recipe leaves out: thinking, tools that wait for something, several tools; `docs/tools.md` has those.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from actors.schedule import Schedule
from envs.arithmetic import Difficulty
from recipes import cli, runs
from recipes.learning_rates import LearningRateConfig
from recipes.models import TINY, MakeTiny, OpenedModel
from recipes.ports import DEFAULT, Ports
from recipes.reinforcement import ProblemConfig, reinforce

if TYPE_CHECKING:
    from actors import RunResult, StopRequest
    from engine.rendering import Message, Renderer
    from envs.arithmetic import Problem
    from envs.tools.calculator import CalculatorGroups

RENDERER = "qwen3_instruct"
"""The tiny model's format: a family that writes calls as JSON."""
CONTEXT = 192
"""Tokens that the tiny model can see; an episode of three turns takes about 100."""


@attrs.frozen(kw_only=True)
class Config(ProblemConfig):
    """Arithmetic with a calculator. Without flags: a tiny model is made, warmed up and trained in two minutes on two CPU cores."""

    renderer: str | None = RENDERER
    """Chat format, by name, one that has tools; None: the model's own."""
    difficulty: Difficulty = attrs.field(factory=lambda: Difficulty(("add", "subtract"), digits=2))
    """Which problems are drawn."""
    steps: int = attrs.field(default=30, validator=attrs.validators.ge(1))
    """Optimizer steps."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(groups_per_step=16))
    """Pace: synchronous by default."""
    max_tokens: int = attrs.field(default=24, validator=attrs.validators.ge(1))
    """Longest answer, in tokens."""
    evaluate_every: int = attrs.field(default=10, validator=attrs.validators.ge(1))
    """Steps between evaluations on fixed problems."""
    max_turns: int = attrs.field(default=3, validator=attrs.validators.ge(1))
    """Answers of an episode; calls in the last one are not made."""
    call_cost: float = 0.0
    """Taken from the reward for each call."""
    error_penalty: float = 0.0
    """Taken from the reward for each call that ends in an error."""
    instruction: str | None = None
    """A system message before each problem."""
    warm_up: int = attrs.field(default=300, validator=attrs.validators.ge(0))
    """Supervised steps that the tiny model first takes."""
    reaches: float = attrs.field(default=0.3, validator=[attrs.validators.ge(0.0), attrs.validators.le(1.0)])
    """Share of the pupil's problems in which the calculator is used, once the pupil has become lazy: in the last third of the warm-up."""


FOR_REAL_MODELS: dict[str, Any] = {
    "renderer": None,
    "steps": 20,
    "schedule": Schedule(groups_per_step=4),
    "group_size": 8,
    "difficulty": Difficulty(("multiply",), digits=3),
    "instruction": "Use the calculator for arithmetic. Then answer with the number alone.",
    "warm_up": 0,
    "learning_rate": LearningRateConfig(peak=5e-4, warmup_steps=2),
    "max_tokens": 64,
    "lora_rank": 16,
    "threads": None,
    "evaluate_every": 10,
    "evaluation_problems": 16,
    "checkpoint_every": 5,
}
"""A model that speaks already needs no warm-up, and each of its tokens costs a CPU more than the tiny model's whole answers."""


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult | None:
    """Runs the recipe. None when it was asked to stop before the reinforcement learning began."""
    from actors import StopRequest
    from engine.runtime.seeds import derive_seed
    from recipes.summary import tools_learnt

    directory = runs.begin(config, "tool_use")
    stop, result = StopRequest(), None
    async with cli.stop_on_interrupt(stop), _open(config, directory, ports, stop) as opened:
        groups = _groups(config, opened)
        fixed = attrs.evolve(groups, group_size=1, count=config.evaluation_problems, seed=derive_seed(config.seed, 2))
        if not stop.requested:
            result = await reinforce(config, "tool_use", directory, opened, groups, {"fixed problems": fixed}, stop)
    runs.tell(directory, result, "recipes.tool_use", learnt=tools_learnt)
    return result


def _groups(config: Config, opened: OpenedModel) -> CalculatorGroups:
    from engine.runtime.seeds import derive_seed
    from envs.tools import ToolLimits, ToolRewards
    from envs.tools.calculator import CalculatorGroups

    return CalculatorGroups(
        opened.renderer,
        config.difficulty,
        config.group_size,
        seed=derive_seed(config.seed, 1),
        limits=ToolLimits(max_turns=config.max_turns, calls_per_answer=4),
        rewards=ToolRewards(error_penalty=config.error_penalty, call_cost=config.call_cost),
        instruction=config.instruction,
    )


# ---- the tiny model


def _open(config: Config, directory: Path, ports: Ports, stop: StopRequest) -> AbstractAsyncContextManager[OpenedModel]:
    """The model that RL starts from."""
    from envs.tools.calculator import TOOLBOX
    from recipes.warm_up import BATCH, WorkedConversations, open_warmed_up

    def lazy_pupil(renderer: Renderer) -> WorkedConversations:
        diligent = config.warm_up * BATCH * 2 // 3
        pupil = Pupil(config.difficulty, config.reaches, diligent, config.instruction, config.seed)
        return WorkedConversations(renderer, pupil, config.warm_up, tools=TOOLBOX.specs)

    make_tiny = _tiny_model(config) if config.model == TINY else None
    return open_warmed_up(config, directory, ports, stop, lazy_pupil, make_tiny=make_tiny)


def _tiny_model(config: Config) -> MakeTiny:
    from envs.tools.calculator import TOOLBOX
    from recipes.warm_up import tiny_model_for

    pupil = Pupil(config.difficulty, 0.5, 0, config.instruction, config.seed)
    conversations = [pupil(number) for number in range(128)]
    return tiny_model_for(
        config.renderer or RENDERER, conversations, tools=TOOLBOX.specs, vocabulary=1024, context=CONTEXT
    )


@attrs.frozen
class Pupil:
    """Conversation `number`: a problem, and either the calculator's answer or a guess."""

    difficulty: Difficulty
    reaches: float
    """Share of problems in which the calculator is used,"""
    diligent: int = 0
    """after so many in which it always is."""
    instruction: str | None = None
    seed: int = 0

    def __call__(self, number: int) -> Sequence[Message]:
        from engine.rendering import ToolCallPart, assistant, tool_result
        from engine.runtime.seeds import derive_seed
        from envs.tools.calculator import asked, calculate

        seed = derive_seed(self.seed, 3)
        problem, rng = self.difficulty.draw(seed, number), random.Random(derive_seed(seed, number))
        question = asked(problem, self.instruction)
        if number >= self.diligent and rng.random() >= self.reaches:
            return [*question, assistant(str(self._guess(rng, problem)))]
        arguments = {"left": problem.left, "operation": problem.operation, "right": problem.right}
        call = ToolCallPart(calculate.__name__, arguments)
        said = str(problem.answer)
        return [*question, assistant(tool_calls=[call]), tool_result(said, name=call.name), assistant(said)]

    def _guess(self, rng: random.Random, problem: Problem) -> int:
        """A number of about the right size."""
        size = 2 * abs(problem.answer) + 10
        return rng.randrange(-size if problem.answer < 0 else 0, size)
