"""How recipes open models, and what they take from outside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from actors import Schedule
from engine.backends import SamplingParams
from engine.backends.simulated import SimulatedBackend
from engine.rendering import get_renderer, user
from recipes import models, rl_loop, tiny
from recipes.models import ModelConfig, ModelSource, OpenedModel, find_opener, open_completer, open_model
from recipes.ports import Ports


def test_an_unknown_backend_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no backend 'locla'; there are .*local"):
        find_opener("locla")


def test_another_package_adds_a_backend_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("theirs", "recipes.models:open_local", models.ENTRY_POINTS)
    monkeypatch.setattr(models, "entry_points", lambda *, group: [entry] if group == models.ENTRY_POINTS else [])
    assert find_opener("theirs") is models.open_local
    with pytest.raises(ValueError, match=r"local, .*theirs"):
        find_opener("nobody's")


@pytest.mark.local
@pytest.mark.anyio
async def test_a_tiny_model_is_made_once_and_may_be_ones_own(tmp_path: Path, anyio_backend: Any) -> None:
    pytest.importorskip("torch")
    made: list[int] = []

    def make(directory: Path, seed: int) -> Path:
        made.append(seed)
        return tiny.make_model(directory, seed, texts=["one two"], controls=["<end>"], hidden=16, layers=1, context=32)

    for _ in range(2):
        async with open_model(ModelConfig(), tmp_path, seed=5, make_tiny=make) as opened:
            assert opened.renderer.name == "role_colon"
            assert opened.backend.capabilities.max_context == 32
    assert made == [5]
    async with open_completer(ModelConfig(), tmp_path) as completer:
        reply = await completer.complete([user("one")], params=SamplingParams(max_tokens=3), seed=0)
    assert reply.completion_tokens == 3


def test_a_recipe_runs_on_what_its_ports_open(tmp_path: Path) -> None:
    opened: list[ModelSource | ModelConfig] = []

    @asynccontextmanager
    async def simulated(config: ModelConfig, directory: Path, **_: Any) -> AsyncIterator[OpenedModel]:
        opened.append(config)
        yield OpenedModel(SimulatedBackend(), get_renderer("role_colon", tiny.make_tokenizer()))

    config = rl_loop.Config(
        steps=2, schedule=Schedule(2), group_size=2, warm_up=0, evaluation_problems=2, run_dir=tmp_path / "run"
    )
    result = anyio.run(rl_loop.run, config, Ports(open_model=simulated))
    assert (result.version, opened) == (2, [config])


def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "recipes.rl_loop", "--model", "./nothing", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "rl_loop: no model './nothing': there is no such directory"


def test_the_configuration_of_a_subclass_keeps_the_order_and_the_checks() -> None:
    with pytest.raises(ValueError, match="threads"):
        ModelConfig(threads=0)
    assert attrs.fields(rl_loop.Config).model.default == "tiny"
