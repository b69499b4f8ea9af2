"""Environments with tools pass the suite of all environments."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from engine.rendering import ToolCallPart, assistant, get_renderer, user
from engine.rendering.registry import control_tokens
from engine.retrieval import Document, HashingEmbedder, InMemoryVectorStore, SearchIndex
from envs import conformance
from envs.contracts import GroupBuilder, GroupDataset
from envs.registry import open_env
from envs.tools import Toolbox, ToolEnv, ToolGroup, ToolLimits, ToolSession, tool
from envs.tools.invented_facts import World
from envs.tools.search import SearchGroups, search_tool
from recipes.tiny import make_tokenizer

pytestmark = pytest.mark.anyio
renderer = get_renderer("qwen3_instruct", make_tokenizer(["abc"], controls=control_tokens("qwen3_instruct")))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The real clock: tools run in threads."""
    return str(request.param)


@asynccontextmanager
async def calculator() -> AsyncIterator[GroupDataset]:
    async with open_env("calculator", renderer, group_size=2, seed=3, digits=2, max_turns=3) as groups:
        yield groups


def calling(name: str, **arguments: Any) -> Any:
    return assistant("", tool_calls=[ToolCallPart(name, arguments)])


class Notebook(ToolSession):
    """Notes in a file of the episode's own."""

    file: IO[str] | None = None

    async def setup(self) -> None:
        self.file = tempfile.NamedTemporaryFile("w+", suffix=".notes", delete=False)  # noqa: SIM115  (closed by teardown)

    async def teardown(self) -> None:
        if self.file is not None:
            self.file.close()
            os.unlink(self.file.name)  # noqa: PTH108

    @tool
    def note(self, text: str) -> int:
        """Writes a line, and says how many there are."""
        assert self.file is not None
        self.file.write(text + "\n")
        self.file.flush()
        return len(Path(self.file.name).read_text().splitlines())


class Notebooks:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> GroupBuilder:
        return ToolGroup(lambda: self.env(index), 2, ("notes",))

    def env(self, index: int) -> ToolEnv:
        session = Notebook()
        box = Toolbox(session.tools(), parallel=session.parallel)
        limits = ToolLimits(max_turns=4)
        return ToolEnv(
            renderer, [user(f"note {index}")], box, lambda answer: float(answer == "1"), limits=limits, session=session
        )


@asynccontextmanager
async def notebooks() -> AsyncIterator[GroupDataset]:
    yield Notebooks()


@asynccontextmanager
async def searches() -> AsyncIterator[GroupDataset]:
    world = World.invented(1, 20)
    index = SearchIndex(HashingEmbedder(), InMemoryVectorStore())
    await index.add(Document(str(number), each.text) for number, each in enumerate(world.passages))
    questions = [person.question for person in world.people]
    yield SearchGroups(renderer, questions, Toolbox([search_tool(index)]), 2, limits=ToolLimits(max_turns=3))


SUBJECTS = {
    "search": conformance.Subject(
        searches,
        renderer,
        answers=[calling("search", query="works at"), calling("search", query=""), "<answer>Bern</answer>"],
        max_turns=3,
        max_context=4096,
        cancellations=8,
    ),
    "calculator": conformance.Subject(
        calculator,
        renderer,
        answers=[
            calling("calculate", left=3, operation="add", right=4),
            "7",
            calling("calculate", left="x"),
            calling("none"),
        ],
        max_turns=3,
        max_context=4096,
    ),
    "sessions": conformance.Subject(
        notebooks,
        renderer,
        answers=[calling("note", text="a"), calling("note", text="b"), "1"],
        max_turns=4,
        max_context=4096,
        cancellations=8,
    ),
}


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
async def test_conformance(name: str, check: conformance.Check) -> None:
    if reason := conformance.gap(check, SUBJECTS[name]):
        pytest.skip(reason)
    await check(SUBJECTS[name])
