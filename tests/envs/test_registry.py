"""Environments by name: all of them can be made, wrong names are told, foreign packages are found."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from engine.rendering import get_renderer
from envs import registry
from envs.arithmetic import ArithmeticGroups
from envs.contracts import GroupDataset
from envs.registry import UnknownEnv, env_entry, envs, open_env, register_env
from recipes.tiny import make_tokenizer

pytestmark = pytest.mark.anyio
RENDERER = get_renderer("role_colon", make_tokenizer())


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_options_reach_the_maker_and_the_same_seed_gives_the_same_problems() -> None:
    async with open_env("arithmetic", RENDERER, group_size=3, seed=4, digits=1) as groups:
        assert isinstance(groups, ArithmeticGroups)
        first = (await groups[7].make_envs())[0]
        assert len(await groups[7].make_envs()) == 3
    async with open_env("arithmetic", RENDERER, group_size=3, seed=4, digits=1) as again:
        assert (await again[7].make_envs())[0].question() == first.question()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", list(envs()))
def test_every_entry_names_a_maker_with_a_seed_and_a_group_size(name: str) -> None:
    entry = env_entry(name)
    assert entry.summary
    try:
        entry.options()
    except ImportError as error:
        pytest.skip(f"needs an extra: {error}")
    assert "seed" not in entry.options()


async def test_wrong_names_are_told_with_the_right_ones() -> None:
    with pytest.raises(UnknownEnv, match="no environment is called 'arithmetics'; did you mean 'arithmetic'"):
        env_entry("arithmetics")
    with pytest.raises(UnknownEnv, match=r"'arithmetic' has no option 'digit'; there are carry, digits, "):
        async with open_env("arithmetic", RENDERER, digit=2):
            pass


CLOSED: list[str] = []


@asynccontextmanager
async def with_resources(renderer: Any, *, group_size: int, seed: int, **options: Any) -> AsyncIterator[GroupDataset]:
    try:
        yield [f"{group_size} {seed} {options}"]  # type: ignore[misc]
    finally:
        CLOSED.append("closed")


async def test_a_maker_that_holds_resources_frees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_BUILT_IN", dict(registry._BUILT_IN))
    monkeypatch.setitem(sys.modules, "resourceful", sys.modules[__name__])
    register_env("resourceful", "resourceful:with_resources", "for this test")
    CLOSED.clear()
    with anyio.fail_after(5):
        async with open_env("resourceful", RENDERER, anything=1) as groups:
            assert groups[0] == "1 0 {'anything': 1}"  # type: ignore[comparison-overlap]
            assert not CLOSED
    assert CLOSED == ["closed"]


def test_foreign_packages_are_found_by_entry_points_and_imported_only_when_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    point = importlib.metadata.EntryPoint("far_away", "no_such_package_at_all:groups", registry.ENTRY_POINTS)
    points = importlib.metadata.EntryPoints([point])
    monkeypatch.setattr(importlib.metadata, "entry_points", points.select)
    assert envs()["far_away"].source == "no_such_package_at_all:groups"
    assert "arithmetic" in envs()
    with pytest.raises(ImportError, match=r"environment 'far_away' \(no_such_package_at_all:groups\)"):
        env_entry("far_away").maker()


def test_a_source_is_module_and_attribute() -> None:
    with pytest.raises(ValueError, match="module:attribute"):
        register_env("x", "somewhere.groups")


def test_listing_imports_no_environment() -> None:
    code = "import sys; from envs.registry import envs; envs(); print(sorted(m for m in sys.modules if m.startswith('envs.')))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "['envs.contracts', 'envs.registry']"
