"""What matches are tested with: a game that shows nothing but its coordination, and a policy that says what it is told to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import numpy as np

from engine.backends import Completion, SampleRequest
from engine.rendering import get_renderer
from engine.runtime.seeds import derive_seed
from envs.games.game import Game, IllegalMove
from recipes.tiny import make_tokenizer

TOKENIZER = make_tokenizer()
RENDERER = get_renderer("role_colon", TOKENIZER)


@attrs.define
class Rounds(Game):
    """`seats` players say numbers for `rounds` rounds, in turn or at once; who said the most has won. "bad" is illegal, "out" eliminates oneself."""

    seats: int = 2
    rounds: int = 3
    at_once: bool = False
    at_play: Callable[[], Awaitable[None]] | None = None
    at_start: Callable[[], Awaitable[None]] | None = None
    said: list[int] = attrs.field(init=False)
    moves_made: int = 0
    out: set[int] = attrs.field(factory=set)
    closed: int = 0

    @said.default
    def _(self) -> list[int]:
        return [0] * self.seats

    async def start(self) -> None:
        if self.at_start is not None:
            await self.at_start()

    def acting(self) -> Sequence[int]:
        alive = [seat for seat in range(self.seats) if seat not in self.out]
        if self.moves_made >= self.rounds * (1 if self.at_once else self.seats) or len(alive) < 2:
            return ()
        if self.at_once:
            return alive
        return (next(s for n in range(self.seats) if (s := (self.moves_made + n) % self.seats) in alive),)

    def rules(self, seat: int) -> str:
        return f"You are {seat}."

    def news(self, seat: int) -> str:
        return f"Move {self.moves_made}."

    def read(self, seat: int, text: str) -> int | str:
        if text.strip() == "out":
            return "out"
        if not text.strip().isdecimal():
            raise IllegalMove("A number, please.")
        return int(text)

    async def play(self, moves: Mapping[int, Any]) -> None:
        assert set(moves) == set(self.acting())
        if self.at_play is not None:
            await self.at_play()
        for seat, move in moves.items():
            if move == "out":
                self.out.add(seat)
            else:
                self.said[seat] += move
        self.moves_made += 1

    def scores(self) -> Sequence[float]:
        best = max(self.said)
        winners = [seat for seat in range(self.seats) if self.said[seat] == best and seat not in self.out]
        losers = self.seats - len(winners)
        if not losers or not winners:
            return [0.0] * self.seats
        return [1.0 if seat in winners else -len(winners) / losers for seat in range(self.seats)]

    def legal_moves(self, seat: int) -> Sequence[str]:
        return ("1", "2", "3")

    def eliminated(self, seat: int) -> bool:
        return seat in self.out

    async def close(self) -> None:
        self.closed += 1


Says = Callable[[str, SampleRequest], str]
"""From the text of the prompt to the answer."""


@attrs.define
class Speaker:
    """A policy that answers `says(prompt, request)` after `seconds(request)`."""

    says: Says
    seconds: Callable[[SampleRequest], float] = lambda request: derive_seed(request.seed, 3) % 1000 / 250
    asked: list[str] = attrs.field(factory=list)
    version: int = 0

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        prompt = TOKENIZER.decode(request.prompt.tokens.tolist())
        self.asked.append(prompt)
        await anyio.sleep(self.seconds(request))
        return [self.complete(self.says(prompt, request), request) for _ in range(request.num_samples)]

    def complete(self, text: str, request: SampleRequest) -> Completion:
        tokens = np.array(TOKENIZER.encode(f" {text}\n\nUser:").ids[: request.params.max_tokens], np.int32)
        return Completion(tokens, np.zeros(len(tokens), np.float32), "stop", self.version)


def number(prompt: str, request: SampleRequest) -> str:
    """Some number, by the request's seed."""
    return str(derive_seed(request.seed, 1) % 4)


def zero_sum(scores: Collection[float]) -> bool:
    return abs(sum(scores)) < 1e-9
