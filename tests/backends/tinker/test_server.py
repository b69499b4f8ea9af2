"""The tinker backend against a real server: SkyRL's, on this machine's CPU, started here. See `server.py` for how to have one and how to run this.

Whichever line of the SDK is installed is the one that is tested; `python tests/backends/tinker/server.py test` runs both.
"""

from __future__ import annotations

import gc
import importlib.util
import shutil
import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import attrs
import numpy as np
import pytest

from actors import RLSettings, RunResult, RunSettings, Schedule, train_rl
from engine.backends import (
    AdamParams,
    Completion,
    Datum,
    IgnoredSetting,
    Loss,
    ModelInput,
    SampleRequest,
    SamplingParams,
    conformance,
    tinker,
)
from engine.backends.tinker.backend import TinkerBackend
from engine.runtime import ActorsFailed
from engine.storage import list_checkpoints
from engine.storage.discarded import noted
from envs.contracts import Env, GroupBuilder, Observation, Step
from envs.rollout import RolloutSettings
from recipes import checkpoints


def load(name: str) -> Any:
    """A module that lies beside this one: tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


server = load("server")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.tinker_server,
    pytest.mark.slow,
    pytest.mark.timeout(600),  # the first use of every shape is compiled
    pytest.mark.skipif(
        importlib.util.find_spec("tinker") is None or not server.installed(),
        reason="no server: python tests/backends/tinker/server.py install",
    ),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="the server's model is made with torch"),
    # The SDK's own, of both lines: connections and generators of its thread that outlive a session.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _connections_of_the_sdk() -> Iterator[None]:
    """The SDK leaves connections behind (its first request's, of both lines). What they say when they are collected is said here, and not at the end."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(5):
            gc.collect()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from engine.backends import local
    from recipes.tiny import make_tokenizer

    directory = tmp_path_factory.mktemp("tinker") / "model"
    # A wide initialisation: adapters on a narrow one hardly learn.
    return local.tiny_llama(
        directory, make_tokenizer(), hidden=32, layers=2, heads=2, context=128, initializer_range=0.2
    )


@pytest.fixture(scope="session")
def running(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with server.running(model, tmp_path_factory.mktemp("tinker-server")) as started:
        yield started


@asynccontextmanager
async def opened(running: Any, **options: Any) -> AsyncIterator[TinkerBackend]:
    async with tinker.open(
        running.model, base_url=running.url, api_key=server.KEY, **{"lora_rank": 8, "seed": 1, **options}
    ) as backend:
        yield backend


GAPS: dict[str, str] = {}
"""None: what this server does in its own way, the backend makes up for (`engine.backends.tinker.servers`)."""


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: conformance.Check, running: Any) -> None:
    subject = conformance.Subject(open=lambda: opened(running), tokens=range(100, 164), tolerance=1e-4, gaps=GAPS)
    if reason := conformance.gap(check, subject):
        pytest.skip(reason)
    await check(subject)


@pytest.mark.parametrize("anyio_backend", ["trio"], scope="session")
@pytest.mark.parametrize(
    "name", ["work_is_done_in_submission_order", "completions_are_well_formed", "cancelled_calls_leave_nothing"]
)
async def test_on_trio(name: str, anyio_backend: str, running: Any) -> None:
    (check,) = [check for check in conformance.CHECKS if check.__name__ == name]
    await check(conformance.Subject(open=lambda: opened(running), tokens=range(100, 164), tolerance=1e-4))


# ---- learning --------------------------------------------------------------------------------------------------------------------------


def lessons() -> list[Datum]:
    """Four sequences to know by heart."""
    stream = np.random.default_rng(0)
    rows = stream.integers(0, 200, (4, 13))
    return [
        Datum(ModelInput.from_tokens(row[:-1]), {"target_tokens": row[1:], "weights": np.ones(12, np.float32)})
        for row in rows
    ]


async def learn_by_heart(backend: Any, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        losses.append(backend.forward_backward(lessons(), Loss("cross_entropy")))
        backend.optim_step(AdamParams(learning_rate=2e-2))
    return [(await each.result()).loss / 48 for each in losses]


async def test_a_supervised_loss_falls_as_it_does_here(running: Any) -> None:
    from engine.backends import local

    async with opened(running) as backend:
        there = await learn_by_heart(backend, 25)
    async with local.open(running.model, lora_rank=8, threads=1) as backend:
        here = await learn_by_heart(backend, 25)
    # The adapters begin at nothing, so the first loss is the model's own: the same one.
    assert there[0] == pytest.approx(here[0], abs=1e-3)
    for losses in (there, here):
        assert losses[-1] < losses[0] / 4
    print(f"\nnats a token: there {there[0]:.2f} -> {there[-1]:.3f}, here {here[0]:.2f} -> {here[-1]:.3f}")


class Low:
    """The reward is the share of token ids in the lower half of the vocabulary."""

    def __init__(self, problem: int) -> None:
        self._problem = problem

    async def reset(self) -> Observation:
        return Observation(ModelInput.from_tokens([100 + self._problem, 7]))

    async def step(self, completion: Completion) -> Step:
        return Step(reward=float(np.mean(completion.tokens < 128)))


@attrs.frozen
class LowGroup(GroupBuilder):
    problem: int

    async def make_envs(self) -> Sequence[Env]:
        return [Low(self.problem) for _ in range(16)]


REWARD = "env/all/reward/total"


async def reinforce(
    running: Any, schedule: Schedule, steps: int, run: RunSettings | None = None, learning_rate: float = 4e-3
) -> RunResult:
    settings = RLSettings(
        rollout=RolloutSettings(sampling=SamplingParams(max_tokens=2)),
        optimizer=AdamParams(learning_rate),
        seed=1,
        epochs=None,
    )
    problems = [LowGroup(problem) for problem in range(6)]
    async with opened(running, unreachable_after=3.0, attempts=1) as backend:
        return await train_rl(backend, groups=problems, steps=steps, schedule=schedule, settings=settings, run=run)


@pytest.mark.parametrize(
    ("schedule", "learning_rate"),
    [(Schedule(groups_per_step=4), 8e-3), (Schedule(groups_per_step=4, max_staleness=1), 4e-3)],
    ids=["sync", "async"],
)
async def test_reinforcement_learning_learns_and_staleness_holds(
    running: Any, schedule: Schedule, learning_rate: float
) -> None:
    """At half the rate where groups may be stale: adapters begin wide on this server, which makes steps long (docs/backends.md)."""
    result = await reinforce(running, schedule, 20, learning_rate=learning_rate)
    rewards = [row[REWARD] for row in result.rows]
    assert max(row["staleness/max"] for row in result.rows) <= schedule.max_staleness
    # What a straight line through all steps gains over them: 0 ± 0.034 where nothing is learnt; here 0.43, and 0.16 to 0.22 with staleness (three seeds). Such a run
    # takes another course each time, so neither its first steps nor its last tell as much.
    gained = np.polyfit(range(20), rewards, 1)[0] * 20
    print(f"\nreward by step: {' '.join(f'{reward:.2f}' for reward in rewards)}: gained {gained:.2f}")
    assert gained > 0.08


def leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


@pytest.mark.parametrize("max_staleness", [0, 1])
async def test_a_killed_server_ends_the_run_clearly_and_a_restarted_one_resumes_it(
    model: Path, tmp_path: Path, max_staleness: int
) -> None:
    """kill -9 of API and engine in the middle of a step; its directory is all that is left."""
    schedule = Schedule(groups_per_step=4, max_staleness=max_staleness)
    run = RunSettings(tmp_path / "run", checkpoint_every=1)
    with server.running(model, tmp_path / "server") as started:

        async def kill_later() -> None:
            metrics = tmp_path / "run" / "checkpoints.jsonl"
            while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:  # noqa: ASYNC110
                await anyio.sleep(0.05)
            await anyio.sleep(0.2)
            started.kill()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill_later)
            with pytest.raises(ActorsFailed) as failed:
                await reinforce(started, schedule, 50, run)
        messages = [str(error) for error in leaves(failed.value)]
        assert any(f"the server at {started.url} has been out of reach for" in message for message in messages), (
            messages
        )
        started.start()
        result = await reinforce(started, schedule, 8, attrs.evolve(run, resume=True))
    assert result.version == 8
    assert [row["step"] for row in result.rows] == list(range(8))
    assert max(row["staleness/max"] for row in result.rows) <= max_staleness


async def test_the_recipe(running: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from envs.arithmetic import Difficulty
    from recipes import rl_loop

    monkeypatch.setenv("TINKER_API_KEY", server.KEY)
    config = rl_loop.Config(
        model=str(running.model),
        backend="tinker",
        base_url=running.url,
        renderer="role_colon",
        lora_rank=8,
        steps=2,
        schedule=Schedule(groups_per_step=2),
        group_size=4,
        difficulty=Difficulty(digits=1),
        evaluation_problems=4,
        run_dir=tmp_path / "run",
    )
    with pytest.warns(IgnoredSetting, match="does not clip gradients: a clipping norm of 1 has no effect"):
        result = await rl_loop.run(config)
    assert result is not None
    assert result.version == 2
    assert (tmp_path / "run" / "checkpoints" / "000002" / "trainer" / "tinker.json").exists()


async def test_what_lies_on_the_server(running: Any, tmp_path: Path) -> None:
    async with opened(running) as backend:
        await backend.save_state(tmp_path).result()
        snapshot = await backend.snapshot().result()
        await backend.sample(snapshot, SampleRequest(ModelInput.from_tokens([1, 2]), SamplingParams(max_tokens=2), 1))
    (saved,) = [state for _, state in tinker.saved_in(tmp_path)]
    async with tinker.open_store(base_url=running.url, api_key=server.KEY) as store:
        run = saved.path.split("/")[2]
        found = await store.checkpoints(run)
        assert [stored.path for stored in found] == [saved.path]  # the snapshot went when it was released
        assert saved.path in {stored.path for stored in await store.checkpoints()}
        await store.delete(saved.path)
        assert await store.checkpoints(run) == []


async def test_deleted_checkpoints_leave_nothing_on_the_server(
    running: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pruned by the run, deleted by the command, and swept when the run's directory is gone."""
    monkeypatch.setenv("TINKER_API_KEY", server.KEY)
    run = tmp_path / "runs" / "first"
    schedule = Schedule(groups_per_step=4, max_staleness=1)
    await reinforce(running, schedule, 4, RunSettings(run, checkpoint_every=1, keep_checkpoints=2))

    def held() -> set[str]:
        return {state.path for _, state in tinker.saved_in(run)}

    async def there() -> set[str]:
        """Of what begins with the run's own id on the server, all of it."""
        async with tinker.open_store(base_url=running.url, api_key=server.KEY) as store:
            found = [stored.path for each in ids for stored in await store.checkpoints(each)]
        return set(found)

    async def command(**options: Any) -> str:
        capsys.readouterr()
        config = checkpoints.Config(base_url=running.url, runs=(tmp_path / "runs",), **options)
        await anyio.to_thread.run_sync(checkpoints.main, config)
        return capsys.readouterr().out

    ids = {path.split("/")[2] for path in held()}
    assert [checkpoint.step for checkpoint in list_checkpoints(run)] == [3, 4]
    assert await there() == held() | {remote.path for remote in noted(run)}
    printed = await command(run=run, delete=(4,))
    assert "deleted checkpoint 4" in printed
    assert "of its weights on the server" in printed
    assert await there() == held() != set()
    assert not (run / "discarded.jsonl").exists()
    printed = await command(on_server=True)
    for path in held():
        (line,) = [line for line in printed.splitlines() if line.endswith(path)]
        assert f"{run} step 3" in line
    shutil.rmtree(run)
    assert "that no run holds" in await command(delete_unreferenced=True, older_than=0.0)
    assert await there() == set()
    assert "callsheet-" not in await command(on_server=True, older_than=0.0)
