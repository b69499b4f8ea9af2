"""Environments pass the conformance suite; and the suite notices those that do not."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import IO, Any

import anyio
import anyio.lowlevel
import attrs
import pytest

from engine.backends.values import Completion, ModelInput
from engine.conformance import told
from engine.rendering import get_renderer, user
from engine.training.trajectories import Trajectory
from envs import conformance
from envs.arithmetic import ArithmeticGroups, Difficulty
from envs.contracts import Env, GroupBuilder, GroupDataset, Observation, Step
from recipes.tiny import make_tokenizer

pytestmark = pytest.mark.anyio
renderer = get_renderer("role_colon", make_tokenizer())


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The real clock on both: some of these envs start processes."""
    return str(request.param)


def opening(make: Callable[[], GroupDataset]) -> Callable[[], AbstractAsyncContextManager[GroupDataset]]:
    @asynccontextmanager
    async def open_problems() -> AsyncIterator[GroupDataset]:
        yield make()

    return open_problems


# --- well-behaved ones


def arithmetic(**options: Any) -> conformance.Subject:
    groups = ArithmeticGroups(renderer, Difficulty(digits=1), group_size=3, count=5)
    return conformance.Subject(opening(lambda: groups), renderer, answers=["7", "4", "11"], **options)


class Guess:
    """Find a number below 10 within five turns; keeps a file open meanwhile."""

    def __init__(self, number: int, directory: Path) -> None:
        self.number, self.directory = number, directory
        self.turns = 0
        self.prompt = renderer.generation_prompt([user(f"My number? Not {number + 1}.")])

    async def reset(self) -> Observation:
        (self.directory / "begun").touch()
        await anyio.lowlevel.checkpoint()
        return Observation(self.prompt, renderer.stop_sequences())

    async def step(self, completion: Completion) -> Step:
        await anyio.lowlevel.checkpoint()
        self.turns += 1
        said = renderer.parse(completion.tokens).message.text.strip()[:20]
        right = said == str(self.number)
        metrics = {"correct": float(right), "turns": float(self.turns)}
        if right or self.turns == 5:
            return Step(float(right), None, metrics, {"said": said})
        self.prompt = self.prompt.append(completion.tokens).append([1, 2])
        return Step(0.0, Observation(self.prompt, renderer.stop_sequences()), metrics, {"said": said})


class GuessGroup(GroupBuilder):
    """Holds a directory and an open file for each member."""

    tags = ("guess",)
    env: type[Guess] = Guess

    def __init__(self, number: int) -> None:
        self.number = number
        self.directories: list[Path] = []
        self.files: list[IO[str]] = []

    async def make_envs(self) -> Sequence[Env]:
        envs = []
        for _ in range(2):
            self.directories.append(Path(tempfile.mkdtemp()))
            await anyio.lowlevel.checkpoint()
            self.files.append((self.directories[-1] / "log").open("w"))
            envs.append(self.env(self.number, self.directories[-1]))
        return envs

    async def cleanup(self) -> None:
        while self.files:
            self.files.pop().close()
        while self.directories:
            shutil.rmtree(self.directories.pop())


class WithProcesses(GuessGroup):
    """Holds a process besides."""

    waits = True

    async def make_envs(self) -> Sequence[Env]:
        self.process = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220  (a few milliseconds, in a test)
        await anyio.lowlevel.checkpoint()
        return await super().make_envs()

    async def cleanup(self) -> None:
        process = self.__dict__.pop("process", None)
        if process is not None:
            process.kill()
            if self.waits:
                process.wait()
            process.returncode = -9  # else the garbage collector, too, finds out what is left behind
        await super().cleanup()


class Guesses:
    group: type[GuessGroup] = GuessGroup

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> GroupBuilder:
        return self.group(3 + index)


def guesses(group: type[GuessGroup] = GuessGroup, **options: Any) -> conformance.Subject:
    problems = Guesses()
    problems.group = group
    return conformance.Subject(
        opening(lambda: problems),
        renderer,
        ["3", "4"],
        max_turns=5,
        max_tokens=24,
        cancellations=6,
        seconds=5.0,
        patience=0.2,
        **options,
    )


class Table:
    """Two players who add to one sum in turn, two moves each; a turn waits for the other's move."""

    def __init__(self) -> None:
        self.total = self.moves = 0
        self.left = False
        self.news = anyio.Event()

    def tell(self) -> None:
        self.news.set()
        self.news = anyio.Event()


class Player:
    def __init__(self, table: Table, place: int) -> None:
        self.table, self.place = table, place
        self.prompt = renderer.generation_prompt([user(f"You are player {place}.")])

    async def observe(self) -> Observation | None:
        while self.table.moves < 4 and self.table.moves % 2 != self.place:
            await self.table.news.wait()
        return None if self.table.moves == 4 else Observation(self.prompt, renderer.stop_sequences())

    async def reset(self) -> Observation:
        observation = await self.observe()
        assert observation is not None
        return observation

    async def step(self, completion: Completion) -> Step:
        self.table.total += len(completion.tokens) % 7
        self.table.moves += 1
        self.table.tell()
        self.prompt = self.prompt.append(completion.tokens)
        observation = await self.observe()
        return Step(float(self.table.total) if observation is None else 0.0, observation)


class TableGroup(GroupBuilder):
    interdependent = True

    async def make_envs(self) -> Sequence[Env]:
        table = Table()
        return [Player(table, place) for place in range(2)]


def tables(group: type[GroupBuilder] = TableGroup, **options: Any) -> conformance.Subject:
    return conformance.Subject(opening(lambda: [group(), group()]), renderer, max_turns=2, **options)


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", [arithmetic, guesses, tables, lambda: guesses(WithProcesses)])
async def test_conformance(check: conformance.Check, make: Callable[[], conformance.Subject]) -> None:
    subject = make()
    if reason := conformance.gap(check, subject):
        pytest.skip(reason)
    await check(subject)


# --- ill-behaved ones


class Quadratic(Guess):
    steps = 0

    async def step(self, completion: Completion) -> Step:
        Quadratic.steps += 1
        end = time.thread_time() + (0.08 if Quadratic.steps % 40 == 0 else 0.0)
        while time.thread_time() < end:
            pass
        return await super().step(completion)


class Raises(Guess):
    async def step(self, completion: Completion) -> Step:
        int(renderer.parse(completion.tokens).message.text.strip() or "0")
        return await super().step(completion)


class Endless(Guess):
    async def step(self, completion: Completion) -> Step:
        self.turns = min(self.turns, 3)
        return await super().step(completion)


def changed(change: Callable[[Step], Step]) -> type[Guess]:
    class Changed(Guess):
        async def step(self, completion: Completion) -> Step:
            return change(await super().step(completion))

    return Changed


class Zombies(WithProcesses):
    waits = False


class ForgetsThePartlyMade(GuessGroup):
    """Frees what a finished make_envs took, and only that."""

    async def make_envs(self) -> Sequence[Env]:
        self.finished = False
        envs = await super().make_envs()
        self.finished = True
        return envs

    async def cleanup(self) -> None:
        for file in self.files:
            file.close()
        if self.finished:
            await super().cleanup()


class KeepsAThread(GuessGroup):
    async def make_envs(self) -> Sequence[Env]:
        threading.Thread(target=time.sleep, args=(0.5,)).start()
        return await super().make_envs()


class RandomProblem(GuessGroup):
    def __init__(self, number: int) -> None:
        super().__init__(random.randrange(10**6))


class Shared(GuessGroup):
    async def make_envs(self) -> Sequence[Env]:
        first, *_ = await super().make_envs()
        return [first, first]


class OneForAll(GuessGroup):
    """Groups that are played at once count one another's turns."""

    turns = 0

    async def make_envs(self) -> Sequence[Env]:
        envs = await super().make_envs()
        outer = self

        class Counting(Guess):
            async def step(self, completion: Completion) -> Step:
                type(outer).turns += 1
                await anyio.sleep(0.001)
                step = await super().step(completion)
                return attrs.evolve(step, reward=float(type(outer).turns))

        return [Counting(self.number, env.directory) for env in envs]  # type: ignore[attr-defined]


class WaitsForTheLost(TableGroup):
    """A player who never hears that the other one has left."""

    interdependent = False
    single_turn = False

    async def make_envs(self) -> Sequence[Env]:
        return await super().make_envs()


class Swallows(GuessGroup):
    async def group_rewards(self, trajectories: Sequence[Trajectory]) -> Sequence[float] | None:
        return [float("nan")] * len(trajectories)


def with_env(env: type[Guess]) -> type[GuessGroup]:
    class WithEnv(GuessGroup):
        pass

    WithEnv.env = env
    return WithEnv


class LongPrompt(Guess):
    async def reset(self) -> Observation:
        return Observation(ModelInput.from_tokens([1] * 9000))


class Unpickled(GuessGroup):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.lock = (each for each in ())


MUTANTS: dict[str, tuple[Callable[[], conformance.Subject], str, str]] = {
    "holds the loop": (
        lambda: guesses(with_env(Quadratic)),
        "the_event_loop_stays_free",
        r"Quadratic\.step held the event loop for \d+ ms",
    ),
    "raises at garbage": (
        lambda: guesses(with_env(Raises)),
        "any_answer_is_graded",
        r"invalid literal for int\(\).*problem 0, answer",
    ),
    "gives nan": (
        lambda: guesses(with_env(changed(lambda step: attrs.evolve(step, metrics=step.metrics | {"x": float("nan")})))),
        "metrics_are_consistent",
        r"metric x is nan",
    ),
    "an infinite reward": (
        lambda: guesses(with_env(changed(lambda step: attrs.evolve(step, reward=float("inf"))))),
        "any_answer_is_graded",
        r"has the reward inf",
    ),
    "a nan from comparing": (
        lambda: guesses(Swallows),
        "any_answer_is_graded",
        r"member 0 of group Swallows\['guess'\] has the reward nan",
    ),
    "metrics of the good alone": (
        lambda: guesses(
            with_env(changed(lambda step: attrs.evolve(step, metrics={"won": 1.0} if step.reward else {})))
        ),
        "metrics_are_consistent",
        r"'no token' and 'useful answers' differ in which metrics they give: won",
    ),
    "logs objects": (
        lambda: guesses(with_env(changed(lambda step: attrs.evolve(step, logs={"x": {1, 2}})))),
        "logs_are_json",
        r"the logs are not JSON: Object of type set",
    ),
    "never ends": (lambda: guesses(with_env(Endless)), "episodes_end", r"7 turns, 5 are allowed"),
    "long prompts": (lambda: guesses(with_env(LongPrompt)), "observations_are_well_formed", r"a prompt of 9000 tokens"),
    "another problem each time": (
        lambda: guesses(RandomProblem),
        "equal_episodes_are_equal",
        r"problem 0: first 'User: My number\? Not \d+",
    ),
    "one env for all": (lambda: guesses(Shared), "groups_are_well_formed", r"two members are the same object"),
    "shared state": (
        lambda: guesses(OneForAll),
        "groups_do_not_disturb_each_other",
        r"problem 0 beside others: first ",
    ),
    "zombies": (
        lambda: guesses(Zombies),
        "played_groups_leave_nothing",
        r"left behind after groups that were played to their end: child processes: zombie",
    ),
    "threads": (
        lambda: guesses(KeepsAThread),
        "played_groups_leave_nothing",
        r"left behind after groups that were played to their end: threads: ",
    ),
    "half-made groups": (
        lambda: guesses(ForgetsThePartlyMade),
        "cancelled_groups_leave_nothing",
        r"left behind when cancelled at wait 1 of .*: temporary files: ",
    ),
    "cannot be pickled": (
        lambda: guesses(Unpickled, pickles=True),
        "builders_can_be_pickled",
        r"problem 0 cannot be pickled: TypeError",
    ),
    "members wait undeclared": (
        lambda: tables(WaitsForTheLost, seconds=0.3),
        "limits_end_groups",
        r"was not played to its end within 0.3 s",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
async def test_the_suite_notices(name: str) -> None:
    make, caught_by, message = MUTANTS[name]
    (check,) = (check for check in conformance.CHECKS if check.__name__ == caught_by)
    with pytest.raises(Exception) as caught:  # also what the env itself raised
        await check(make())
    assert re.search(message, told(caught.value))


async def test_reports() -> None:
    report = await conformance.examine(arithmetic())
    assert report.failed == {}
    assert len(report.passed) == len(conformance.CHECKS) - 1
    assert report.gaps == {"builders_can_be_pickled": "not claimed (pickles=False)"}
    with pytest.raises(ValueError, match="no_such_check"):
        await conformance.examine(arithmetic(gaps={"no_such_check": "a typo"}))


def test_importing_it_loads_nothing_heavy() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, envs.conformance; print([m for m in ('torch','sympy','datasets','trio') if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
