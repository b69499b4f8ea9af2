"""Tournaments and rubrics pass the suite of all environments."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from engine.completion import ScriptedCompleter
from engine.rendering import Message, user
from envs import conformance
from envs.contracts import GroupDataset
from envs.grading.judges import Judge
from envs.grading.rubrics import Rubric, RubricGrader, RubricGroups, RubricTask
from envs.preference import FunctionPreferenceModel, Tournament, TournamentGroups
from tests.envs.preference.speakers import RENDERER

TALKS = [(user("Name an animal."),), (user("Name two."),)]
pytestmark = pytest.mark.anyio


async def slow_shorter(conversation: object, a: Message, b: Message) -> float:
    await anyio.sleep(0.001)
    return float(len(a.text) < len(b.text)) - float(len(a.text) > len(b.text))


def tournament() -> GroupDataset:
    return TournamentGroups(
        renderer=RENDERER,
        conversations=TALKS,
        tournament=Tournament(FunctionPreferenceModel(slow_shorter)),
        group_size=3,
    )


async def by_length(messages: Sequence[Message]) -> str:
    await anyio.sleep(0.001)
    return f"<score>{len(messages[0].text) % 2}</score>"


def rubrics() -> GroupDataset:
    rubric = Rubric.from_rows(["names an animal", {"criterion": "is rude", "weight": -1}])
    grader = RubricGrader(Judge(ScriptedCompleter(by_length)))
    return RubricGroups(
        renderer=RENDERER, tasks=[RubricTask(talk, rubric) for talk in TALKS], grader=grader, group_size=2
    )


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", [tournament, rubrics])
async def test_conformance(check: conformance.Check, make: object) -> None:
    @asynccontextmanager
    async def opened() -> AsyncIterator[GroupDataset]:
        yield make()  # type: ignore[operator]

    subject = conformance.Subject(opened, RENDERER, answers=["cat", "a very long dog"], cancellations=8)
    if reason := conformance.gap(check, subject):
        pytest.skip(reason)
    await check(subject)
