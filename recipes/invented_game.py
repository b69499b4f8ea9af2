"""An environment of the `verifiers` package in turns, made on the spot: guess a number by hints. Importing this module imports `verifiers`.

The environment speaks as the policy's user, through `agents.player.interaction`: that is how games and conversations are written for verifiers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import verifiers.v1 as vf

from engine.runtime.seeds import derive_seed
from envs.games.guess_number import HIGHER, LOWER, GuessRules, read_guess

__all__ = ["GuessEnv", "GuessTaskset"]

RULES = GuessRules(1, 15, 4, explain=False)
COUNT = 2000


class GuessData(vf.TaskData):  # type: ignore[misc]  # verifiers is no dependency, so its classes are unknown here
    """The number to be found."""

    number: int


class GuessTask(vf.Task[GuessData]):  # type: ignore[misc]
    """Found in time, or not."""

    @vf.reward(weight=1.0)  # type: ignore[untyped-decorator]
    async def found(self, trace: Any) -> float:
        """1 where the last guess was the number."""
        return float(read_guess(trace.last_reply) == self.data.number)

    @vf.metric  # type: ignore[untyped-decorator]
    async def guesses(self, trace: Any) -> float:
        """How many there were."""
        return float(trace.num_turns)


class GuessTaskset(vf.Taskset[GuessTask]):  # type: ignore[misc]
    """Two thousand numbers, always the same."""

    def load(self) -> Iterator[GuessTask]:
        """In order."""
        for index in range(COUNT):
            number = RULES.draw(derive_seed(0, index))
            yield GuessTask(GuessData(prompt=RULES.question(), number=number), self.config.task)


class GuessEnvConfig(vf.EnvConfig):  # type: ignore[misc]
    """One seat."""

    player: vf.AgentConfig = vf.AgentConfig()


class GuessEnv(vf.Env[GuessEnvConfig]):  # type: ignore[misc]
    """Hints after each wrong guess."""

    async def run(self, task: Any, agents: Any) -> None:
        """One game."""
        async with agents.player.interaction(task) as talk:
            segment = await talk.turn()
            for _ in range(RULES.guesses - 1):
                guess = None if segment.terminated else read_guess(segment.last_reply)
                if segment.terminated or guess == task.data.number:
                    break
                segment = await talk.turn(hint(guess, task.data.number))


def hint(guess: int | None, number: int) -> str:
    """What is said to a guess that was wrong."""
    if guess is None:
        return f"a number from {RULES.low} to {RULES.high}, please"
    return HIGHER if guess < number else LOWER
