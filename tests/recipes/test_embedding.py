"""Recipes inside other programs: by name, in the loop that is there, with something else behind their ports."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

import recipes
from recipes import Manifest, StopHandle, in_memory_rows, rl_loop, run
from recipes.ports import Ports

SHORT = {
    "steps": 3,
    "schedule": {"groups_per_step": 2},
    "group_size": 2,
    "warm_up": 2,
    "evaluation_problems": 2,
    "checkpoint_every": 2,
}
CHATS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "yes"}]} for n in range(8)
]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The real clock: recipes write files in threads, which look idle to a clock that jumps. Nothing here sleeps."""
    return str(request.param)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.anyio
async def test_a_recipe_runs_inside_a_task_group_and_gives_its_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results: list[Any] = []
    before = signal.getsignal(signal.SIGINT)

    async def host(name: str) -> None:
        results.append(await run("rl_loop", {**SHORT, "run_dir": str(tmp_path / name)}, manifest="test"))
        assert signal.getsignal(signal.SIGINT) == before

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(host, "a")
        tasks.start_soon(host, "b")
    assert [(result.ending, result.version, len(result.rows)) for result in results] == [("complete", 3, 3)] * 2
    assert results[0].rows[0]["optim/loss"] == results[1].rows[0]["optim/loss"]
    assert (tmp_path / "a" / "report.html").exists()
    assert capsys.readouterr().out == ""


@pytest.mark.anyio
async def test_it_may_talk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await run("rl_loop", {**SHORT, "run_dir": str(tmp_path / "run")}, manifest="test", quiet=False)
    assert "step 3/3" in (said := capsys.readouterr().out)
    assert f"run       {tmp_path / 'run'}" in said


@pytest.mark.anyio
async def test_a_data_set_of_ones_own_is_a_port(tmp_path: Path) -> None:
    config = {"data": "mine", "steps": 2, "batch_size": 4, "held_out": 2, "run_dir": str(tmp_path / "run")}
    result = await run("chat_sl", config, manifest="test", ports={"load_rows": in_memory_rows({"mine": CHATS})})
    assert result.version == 2


@pytest.mark.anyio
async def test_a_handle_stops_after_the_step_under_way_with_a_checkpoint(tmp_path: Path) -> None:
    stop = StopHandle()
    config = {**SHORT, "warm_up": 0, "steps": 10_000, "run_dir": str(tmp_path / "run")}
    async with anyio.create_task_group() as tasks:

        async def host() -> None:
            result = await run("rl_loop", config, manifest="test", stop=stop)
            assert result.ending == "stopped"
            assert 0 < result.version < 10_000
            resumed = await run("rl_loop", {**config, "steps": result.version + 1, "resume": True}, manifest="test")
            assert (resumed.ending, resumed.version) == ("complete", result.version + 1)

        tasks.start_soon(host)
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            await anyio.lowlevel.checkpoint()
        stop()
    assert stop.requested


@pytest.mark.anyio
async def test_cancelling_the_call_cancels_the_run(tmp_path: Path) -> None:
    config = {**SHORT, "warm_up": 0, "steps": 10_000, "run_dir": str(tmp_path / "run")}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: run("rl_loop", config, manifest="test"))
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_an_instance_is_taken_as_it_is_and_a_manifest_may_be_ones_own(tmp_path: Path) -> None:
    config = rl_loop.Config(steps=1, warm_up=0, group_size=2, evaluation_problems=1, run_dir=tmp_path / "run")
    opened: list[Any] = []
    inner = recipes.embedding.simulated_model

    def open_model(config: Any, directory: Path, **more: Any) -> Any:
        opened.append(config)
        return inner(config, directory, **more)

    await run("rl_loop", config, manifest=Manifest(Ports(open_model=open_model)))
    assert opened == [config]
    other = Manifest(Ports(open_model=open_model), {"backend": "theirs", "no_such_field": 1})
    await run("rl_loop", {**SHORT, "run_dir": str(tmp_path / "other")}, manifest=other)
    assert (opened[1].backend, opened[1].steps) == ("theirs", 3)


@pytest.mark.anyio
async def test_a_name_may_stand_for_a_model_of_ones_own(tmp_path: Path) -> None:
    seen: list[str] = []
    inner = recipes.embedding.simulated_model

    def open_model(config: Any, directory: Path, **more: Any) -> Any:
        seen.append(config.model)
        return inner(config, directory, **more)

    hub = recipes.models_at({"org/mine": tmp_path / "mine"}, open_model)
    for name in ("org/mine", "org/theirs"):
        config = {**SHORT, "warm_up": 0, "steps": 1, "model": name, "run_dir": str(tmp_path / name)}
        await run("rl_loop", config, manifest="test", ports={"open_model": hub})
    assert seen == [str(tmp_path / "mine"), "org/theirs"]


@pytest.mark.anyio
async def test_search_runs_on_the_test_manifest(tmp_path: Path) -> None:
    config = {"steps": 1, "warm_up": 0, "run_dir": str(tmp_path / "run")}
    result = await run("tool_use.search", config, manifest="test")
    assert result.version == 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("no_such",), "there is no recipe 'no_such'"),
        (("distillation.no_such",), "there is no recipe 'distillation.no_such'"),
        (("cli",), r"recipes\.cli is no recipe"),
        (("rl_loop", {"stepz": 1}), "stepz"),
        (("rl_loop", {"steps": "many"}), "steps"),
        (("rl_loop", {"steps": 0}), "steps"),
        (("rl_loop", ["--steps", "3"]), r"is a Config of recipes\.rl_loop"),
    ],
)
async def test_what_is_wrong_is_said(arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        await run(*arguments, manifest="test")


@pytest.mark.anyio
async def test_manifests_and_ports_are_known_by_name() -> None:
    with pytest.raises(ValueError, match="no manifest 'cloud'; there are local, tinker, test"):
        await run("rl_loop", manifest="cloud")
    with pytest.raises(ValueError, match="no port 'judge'; there are open_model, open_completer, load_rows"):
        await run("rl_loop", manifest="test", ports={"judge": None})


def test_importing_recipes_loads_next_to_nothing() -> None:
    code = "import sys, recipes; recipes.run; heavy = {'torch', 'datasets', 'numpy.random'} & set(sys.modules); sys.exit(str(heavy) if 'torch' in heavy or 'datasets' in heavy else 0)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
