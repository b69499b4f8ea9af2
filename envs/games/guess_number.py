"""Guess a number: one player, several turns, a hint after each wrong guess.

    user       I think of a whole number from 1 to 100. ...
    assistant  50
    user       lower
    assistant  25
    ...

Whoever halves what is left needs seven guesses for a hundred numbers; whoever ignores the hints finds the number by luck alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import attrs

from engine.backends.values import Completion
from engine.rendering import Dialogue, Message, Renderer, user
from engine.runtime.seeds import derive_seed
from envs.contracts import Env, GroupBuilder, Observation, Step

HIGHER, LOWER = "higher", "lower"
_NUMBER = re.compile(r"(?<![0-9.,])-?[0-9]{1,18}(?![0-9]|[.,][0-9])")


@attrs.frozen
class GuessRules:
    """The game: which numbers, how many guesses, what is won."""

    low: int = 1
    """Smallest number."""
    high: int = 100
    """Largest number."""
    guesses: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    """Most guesses, answers without a number included."""
    patience: float = attrs.field(default=0.0, validator=[attrs.validators.ge(0.0), attrs.validators.le(1.0)])
    """What the last possible guess wins less than the first one would; those between, in proportion. 0: finding it is all that counts."""
    penalty: float = attrs.field(default=0.0, validator=attrs.validators.ge(0.0))
    """Taken for each answer that holds no number, or several."""
    heeding: float = attrs.field(default=0.0, validator=attrs.validators.ge(0.0))
    """Given for each guess that the hints so far leave possible: shaping, for a learner to whom the end alone says too little. 0: none."""
    explain: bool = True
    """Whether the first question says how the game goes; without, it says the numbers alone."""

    def __attrs_post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low must be at most high, got {self.low} and {self.high}")

    def draw(self, seed: int) -> int:
        """The number of a problem."""
        return random.Random(seed).randint(self.low, self.high)

    def question(self) -> str:
        """What is said first."""
        if not self.explain:
            return f"{self.low} to {self.high}?"
        return (
            f"I think of a whole number from {self.low} to {self.high}. Find it in at most {self.guesses} guesses. Answer with a number alone; I say "
            f"whether mine is {HIGHER} or {LOWER}."
        )

    def win(self, guesses: int) -> float:
        """The reward of whoever finds it with so many guesses."""
        return 1.0 - self.patience * (guesses - 1) / max(1, self.guesses - 1)


def read_guess(text: str) -> int | None:
    """The number in an answer; None where there is none, or more than one."""
    found = {int(number) for number in _NUMBER.findall(text[:1000])}
    return found.pop() if len(found) == 1 else None


class GuessNumber:
    """One game.

    Metrics: `format` (whether the answer held a number) and `sensible` (whether the number was still possible), each turn; at the end `correct` and
    `guesses`. Logs: `question`, `answer`; at the end `reference`.
    """

    def __init__(self, renderer: Renderer, rules: GuessRules, number: int) -> None:
        self.rules = rules
        self.number = number
        self._renderer = renderer
        self._said = rules.question()
        self._left = (rules.low, rules.high)
        self._guesses = 0
        self._dialogue = Dialogue(renderer, [user(self._said)])

    async def reset(self) -> Observation:
        """The question."""
        return self._observation()

    async def step(self, completion: Completion) -> Step:
        """Compares the guess."""
        parsed = self._dialogue.answer(completion.tokens)
        guess = read_guess(parsed.message.text) if parsed.ok else None
        self._guesses += 1
        low, high = self._left
        sensible = guess is not None and low <= guess <= high
        metrics = {"format": float(guess is not None), "sensible": float(sensible)}
        logs: dict[str, Any] = {"question": self._said, "answer": parsed.message.text}
        found = guess == self.number
        reward = self.rules.heeding * sensible - self.rules.penalty * (guess is None)
        if not found and self._guesses < self.rules.guesses:
            self._said = self._hint(guess)
            self._dialogue.extend(user(self._said))
            return Step(reward, self._observation(), metrics, logs)
        metrics |= {"correct": float(found), "guesses": float(self._guesses)}
        logs["reference"] = str(self.number)
        return Step(reward + (self.rules.win(self._guesses) if found else 0.0), None, metrics, logs)

    def _hint(self, guess: int | None) -> str:
        low, high = self._left
        if guess is None:
            return f"a number from {low} to {high}, please"
        if guess < self.number:
            self._left = (max(low, guess + 1), high)
            return HIGHER
        self._left = (low, min(high, guess - 1))
        return LOWER

    def _observation(self) -> Observation:
        return Observation(self._dialogue.prompt, self._renderer.stop_sequences())


@attrs.frozen
class GuessGroup(GroupBuilder):
    """Several games with the same number."""

    renderer: Renderer
    rules: GuessRules
    number: int
    size: int = attrs.field(validator=attrs.validators.ge(1))
    tags: tuple[str, ...] = ("guess_number",)

    async def make_envs(self) -> Sequence[Env]:
        """The games."""
        return [GuessNumber(self.renderer, self.rules, self.number) for _ in range(self.size)]


@attrs.frozen
class GuessGroups:
    """A dataset: the number of problem `index` follows from (seed, index)."""

    renderer: Renderer
    rules: GuessRules = attrs.field(factory=GuessRules)
    group_size: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    count: int = attrs.field(default=100_000, validator=attrs.validators.ge(1))
    seed: int = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> GroupBuilder:
        if not 0 <= index < self.count:
            raise IndexError(f"problem {index} of {self.count}")
        number = self.rules.draw(derive_seed(self.seed, index))
        return GuessGroup(self.renderer, self.rules, number, self.group_size)


def groups(
    renderer: Renderer,
    *,
    group_size: int = 8,
    seed: int = 0,
    low: int = 1,
    high: int = 100,
    guesses: int = 8,
    patience: float = 0.0,
    penalty: float = 0.0,
    heeding: float = 0.0,
    explain: bool = True,
) -> GuessGroups:
    """What `envs.registry` opens as "guess_number"."""
    rules = GuessRules(low, high, guesses, patience, penalty, heeding, explain)
    return GuessGroups(renderer, rules, group_size, seed=seed)


# ---- players to learn from and to compare with


def best_play(rules: GuessRules) -> int:
    """How many of the numbers can surely be found within the guesses: all, or 2^guesses − 1."""
    return min(rules.high - rules.low + 1, (1 << rules.guesses) - 1)


def example_game(rules: GuessRules, rng: random.Random, *, knows: float) -> list[tuple[str, str]]:
    """A game as (what was said, what was guessed). At a share `knows` of the games the player halves what is left; in the others it guesses any number."""
    number = rng.randint(rules.low, rules.high)
    halves = rng.random() < knows
    low, high = rules.low, rules.high
    said, turns = rules.question(), []
    for _ in range(rules.guesses):
        guess = (low + high) // 2 if halves else rng.randint(rules.low, rules.high)
        turns.append((said, str(guess)))
        if guess == number:
            break
        if guess < number:
            said, low = HIGHER, max(low, guess + 1)
        else:
            said, high = LOWER, min(high, guess - 1)
    return turns


def conversation(turns: Sequence[tuple[str, str]]) -> list[Message]:
    """A game's turns as messages."""
    return [message for said, answered in turns for message in (user(said), Message("assistant", answered))]
