"""Reinforcement learning in the fewest lines: an environment, a dataset of groups, `train_rl`. Copy it and put your own problem in.

    python -m recipes.rl_basic                                    # half a minute: a tiny model that counts like a distracted pupil
    python -m recipes.rl_basic --model smollm2

`recipes.rl_loop` adds evaluation, schedules and what a long run needs.
"""

from __future__ import annotations

import sys
from random import Random
from typing import TYPE_CHECKING

import attrs

from engine.rendering import Message, Renderer, assistant, user
from envs.problem import ProblemEnv, ProblemGroup
from recipes import cli, runs
from recipes.models import TINY
from recipes.ports import DEFAULT, Ports

if TYPE_CHECKING:
    from actors import RunResult


@attrs.frozen(kw_only=True)
class Config(runs.RunConfig):
    """Reinforcement learning, as small as it gets: what comes after a digit?"""

    steps: int = attrs.field(default=30, validator=attrs.validators.ge(1))
    """Optimizer steps."""
    group_size: int = attrs.field(default=32, validator=attrs.validators.ge(1))
    """Answers to each question; their rewards are compared with one another."""
    learning_rate: float = attrs.field(default=2e-3, validator=attrs.validators.gt(0.0))
    """AdamW's learning rate, the same at every step."""
    max_tokens: int = attrs.field(default=4, validator=attrs.validators.ge(1))
    """Longest answer, in tokens."""


FOR_REAL_MODELS = {"lora_rank": 16, "threads": None, "group_size": 8, "learning_rate": 5e-4, "max_tokens": 8}


class NextDigit(ProblemEnv):
    """What comes after a digit? The reward is 1 for the right one."""

    def __init__(self, renderer: Renderer, digit: int) -> None:
        super().__init__(renderer)
        self.digit = digit

    def question(self) -> str:
        """The question as the model reads it."""
        return f"What comes after {self.digit}?"

    def grade(self, answer: str) -> float:
        """1 or 0."""
        return float(answer.strip().rstrip(".") == self.reference())

    def reference(self) -> str:
        """The right digit; behind 9 comes 0."""
        return str((self.digit + 1) % 10)


async def run(config: Config, ports: Ports = DEFAULT) -> RunResult:
    """Runs the recipe."""
    from actors import RLSettings, Schedule, StopRequest, train_rl
    from engine.backends.values import AdamParams, SamplingParams
    from engine.telemetry import display
    from envs.rollout import RolloutSettings
    from recipes.warm_up import WorkedConversations, warm_up

    directory, stop = runs.begin(config, "rl_basic"), StopRequest()
    async with cli.stop_on_interrupt(stop), ports.open_model(config, directory, seed=config.seed) as opened:
        if config.model == TINY:  # it has never seen a word
            await warm_up(opened, directory, WorkedConversations(opened.renderer, distracted, 60), resume=config.resume)
        groups = [
            ProblemGroup(lambda digit=digit: NextDigit(opened.renderer, digit), config.group_size)  # type: ignore[misc]
            for digit in range(10)
        ]
        with display.open(config.steps, "rl_basic") as live:
            result = await train_rl(
                opened.backend,
                groups=groups,
                steps=config.steps,
                schedule=Schedule(groups_per_step=len(groups)),
                settings=RLSettings(
                    rollout=RolloutSettings(SamplingParams(max_tokens=config.max_tokens)),
                    optimizer=AdamParams(config.learning_rate, grad_clip_norm=1.0),
                    drop_constant_groups=False,
                    samples_per_step=4,
                    seed=config.seed,
                ),
                run=runs.settings(config, directory),
                observers=[live],
                stop=stop,
            )
    runs.tell(directory, result, "recipes.rl_basic")
    return result


def distracted(number: int) -> list[Message]:
    """A question and its answer, of a pupil who is right in one of three and says any digit otherwise."""
    random = Random(number)
    digit = random.randrange(10)
    answer = (digit + 1) % 10 if random.random() < 1 / 3 else random.randrange(10)
    return [user(f"What comes after {digit}?"), assistant(str(answer))]


if __name__ == "__main__":
    cli.main(run, runs.defaults(Config, sys.argv[1:], by_model=FOR_REAL_MODELS))
