"""One seeded workload for every system measured here, whatever it is written with: needs numpy alone.

Each completion, its duration and its reward are functions of (seed, batch, group, member, turn), so that every scheduler is handed the same work.
A prompt starts with four ids [batch, group, member, turn] which a fake service reads to know what it is asked for; where one request asks for all
members of a group, member stands for the sample's index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_BITS = (1 << 64) - 1
_POOL_SIZE = 1 << 16
_LOWEST, _HIGHEST = 32, 127  # printable bytes: any byte-level tokenizer can show them


def _pools() -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    random = np.random.RandomState(1234)
    tokens = random.randint(_LOWEST, _HIGHEST, size=_POOL_SIZE).astype(np.int32)
    return tokens, (-random.exponential(0.7, size=_POOL_SIZE)).astype(np.float32)


TOKENS, LOGPROBS = _pools()
"""Completions are windows of these."""


def hashed(*numbers: int) -> int:
    """64 bits of the numbers, in the manner of SplitMix64."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state ^ (number & _BITS)) * 0xBF58476D1CE4E5B9 & _BITS
        state ^= state >> 27
        state = state * 0x94D049BB133111EB & _BITS
        state ^= state >> 31
    return state


def uniform(*numbers: int) -> float:
    """A number in (0, 1)."""
    return ((hashed(*numbers) >> 11) + 0.5) / (1 << 53)


def normal(*numbers: int) -> float:
    """A standard normal number (Box and Muller)."""
    return math.sqrt(-2 * math.log(uniform(1, *numbers))) * math.cos(2 * math.pi * uniform(2, *numbers))


@dataclass(frozen=True)
class Workload:
    """What is asked and answered. `mean_seconds` 0: completions of `fixed_length` tokens in no time; otherwise a log-normal long tail."""

    seed: int = 0
    groups: int = 16
    """Groups a batch, which is a step."""
    size: int = 8
    """Members a group."""
    turns: int = 1
    prompt_length: int = 64
    env_tokens: int = 16
    """Tokens the environment adds between turns."""
    fixed_length: int = 32
    mean_seconds: float = 0.0
    """Mean duration of a completion, before the cut."""
    sigma: float = 1.0
    """Of the duration's logarithm."""
    seconds_per_token: float = 0.0025
    max_tokens: int = 4096

    def length(self, batch: int, group: int, member: int, turn: int = 0) -> int:
        """Tokens of a completion."""
        if self.mean_seconds == 0.0:
            return self.fixed_length
        middle = math.log(self.mean_seconds) - self.sigma**2 / 2
        seconds = math.exp(middle + self.sigma * normal(self.seed, batch, group, member, turn))
        return max(1, min(self.max_tokens, math.ceil(seconds / self.seconds_per_token)))

    def seconds(self, batch: int, group: int, member: int, turn: int = 0) -> float:
        """How long a completion takes to decode."""
        return 0.0 if self.mean_seconds == 0.0 else self.length(batch, group, member, turn) * self.seconds_per_token

    def completion(
        self, batch: int, group: int, member: int, turn: int = 0
    ) -> tuple[NDArray[np.int32], NDArray[np.float32], float]:
        """Tokens, log-probs and seconds."""
        length = self.length(batch, group, member, turn)
        start = hashed(7, self.seed, batch, group, member, turn) % (_POOL_SIZE - length)
        end = start + length
        return TOKENS[start:end], LOGPROBS[start:end], self.seconds(batch, group, member, turn)

    def reward(self, batch: int, group: int, member: int) -> float:
        """0 or 1, of the whole episode."""
        return float(hashed(9, self.seed, batch, group, member) & 1)

    def prompt(self, batch: int, group: int, member: int) -> list[int]:
        """The first prompt of an episode."""
        return [batch, group, member, 0, *self._filler]

    @cached_property
    def _filler(self) -> list[int]:
        filler: list[int] = TOKENS[4 : self.prompt_length].tolist()
        return filler

    def turn_of(self, prompt_length: int) -> int:
        """Which turn a prompt of this length belongs to; completions have a fixed length where there are several turns."""
        return (prompt_length - self.prompt_length) // (self.fixed_length + self.env_tokens)
