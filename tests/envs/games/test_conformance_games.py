"""Games keep what every environment promises."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from envs import conformance
from envs.contracts import GroupDataset
from envs.games.match import MatchRules
from envs.registry import open_env
from tests.envs.games.tables import RENDERER

pytestmark = pytest.mark.anyio
SCORES = frozenset({"seat_0/score", "seat_1/score"})


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def subject(name: str, answers: list[str], max_turns: int, **options: Any) -> conformance.Subject:
    @asynccontextmanager
    async def opened() -> AsyncIterator[GroupDataset]:
        async with open_env(name, RENDERER, group_size=2, seed=3, **options) as groups:
            yield groups

    return conformance.Subject(
        opened, RENDERER, answers, max_turns=max_turns, cancellations=8, optional_metrics=SCORES, max_tokens=24
    )


SQUARES = [str(square) for square in range(1, 10)]
SUBJECTS = {
    "guess_number": subject("guess_number", ["3", "7", "5", "one"], 4, high=9, guesses=4, penalty=0.1),
    "tic_tac_toe against itself": subject("tic_tac_toe", SQUARES, 10, rules=MatchRules(retries=1)),
    "twenty_questions": subject(
        "twenty_questions", ["Is it alive?", "Guess: dog", "Is it a cat?", "Is it red?"], 5, turns=5
    ),
    "tic_tac_toe against a perfect player": subject("tic_tac_toe", SQUARES, 10, opponent="minimax", terse=True),
}


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", SUBJECTS)
async def test_conformance(check: Callable[[conformance.Subject], Any], name: str) -> None:
    if reason := conformance.gap(check, SUBJECTS[name]):
        pytest.skip(reason)
    await check(SUBJECTS[name])
