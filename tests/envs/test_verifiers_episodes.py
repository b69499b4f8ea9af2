"""Environments of verifiers that are played in turns: the tokens that are trained, tools, users, limits, errors. Where the package is installed."""

from __future__ import annotations

import importlib.util
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import numpy as np
import pytest

from engine.backends.values import Completion, SampleRequest, SamplingParams
from engine.rendering import Message, ToolCallPart, assistant, get_renderer, user
from engine.rendering.registry import control_tokens
from engine.rendering.vocabulary import byte_vocabulary
from engine.training.assembly import assemble
from envs import conformance
from envs.rollout import FailFast, RolloutLimits, RolloutSettings, play_group

INSTALLED = importlib.util.find_spec("verifiers") is not None
with_verifiers = pytest.mark.skipif(not INSTALLED, reason="verifiers is heavy: pip install 'callsheet[verifiers]'")
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

if INSTALLED:
    import verifiers.v1 as vf

    from envs.verifiers_episodes import EpisodeFailed, playing
    from envs.verifiers_tasks import UnsupportedTask

__all__ = ["Env", "Numbers"]
RENDERER = get_renderer("qwen3_instruct", byte_vocabulary(control_tokens("qwen3_instruct")))


def tokens_of(message: Message) -> list[int]:
    """What a model samples that says this."""
    (example,) = RENDERER.supervised_examples([user("?"), message])
    tokens: list[int] = example.model_input.tokens[example.weights_T > 0].tolist()
    return tokens


if INSTALLED:

    class Data(vf.TaskData):
        number: int

    class Guess(vf.Task[Data]):
        @vf.reward(weight=2.0)
        async def found(self, trace: Any) -> float:
            return float(str(self.data.number) in trace.last_reply)

        @vf.metric
        async def turns(self, trace: Any) -> float:
            return float(trace.num_turns)

    class Numbers(vf.Taskset[Guess]):
        def load(self) -> Any:
            for number in (3, 5):
                yield Guess(Data(prompt="From 1 to 9?", system_prompt="Guess.", number=number))

    class EnvConfig(vf.EnvConfig):
        player: vf.AgentConfig = vf.AgentConfig()

    class Env(vf.Env[EnvConfig]):
        """Says whether it is higher, until it is found."""

        async def run(self, task: Any, agents: Any) -> None:
            async with agents.player.interaction(task) as talk:
                segment = await talk.turn()
                while not segment.terminated:
                    guess = int(re.findall(r"\d+", segment.last_reply)[-1])
                    if guess == task.data.number:
                        break
                    segment = await talk.turn("higher" if guess < task.data.number else "lower")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Threads and sockets want a real clock."""
    return str(request.param)


class Plays:
    """Answers with what a function of the prompt's text says; notes what it was asked."""

    def __init__(self, answer: Callable[[str], Message | Sequence[int]], seconds: float = 0.0) -> None:
        self.answer = answer
        self.seconds = seconds
        self.requests: list[SampleRequest] = []
        self.present = 0

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        self.requests.append(request)
        self.present += 1
        try:
            await anyio.sleep(self.seconds)
        finally:
            self.present -= 1
        said = self.answer(RENDERER.vocabulary.decode(request.prompt.tokens))
        tokens = np.array(tokens_of(said) if isinstance(said, Message) else said, np.int32)
        logprobs = -np.arange(len(tokens), dtype=np.float32) / 8
        return [Completion(tokens, logprobs, "stop", version=4)] * request.num_samples


def counts_up(prompt: str) -> Message:
    """1, 2, 3 ..."""
    return assistant(str(prompt.count("higher") + 1))


def settings(**limits: Any) -> RolloutSettings:
    return RolloutSettings(SamplingParams(max_tokens=40), RolloutLimits(**limits), failure=FailFast())


@with_verifiers
async def test_turns_carry_the_tokens_that_were_sampled() -> None:
    policy = Plays(counts_up)
    async with playing(__name__, RENDERER, group_size=2) as groups:
        assert len(groups) == 2
        group = await play_group(groups[0], policy, settings(), seed=1)
    assert group.rewards_G.tolist() == [2.0, 2.0]
    assert group.tags == ("verifiers", "Guess")
    first, _ = group.trajectories
    assert [RENDERER.vocabulary.decode(turn.completion.tokens) for turn in first.turns] == [
        f"{n}<|im_end|>" for n in "123"
    ]
    for before, after in zip(first.turns, first.turns[1:], strict=False):
        so_far = [*before.prompt.tokens, *before.completion.tokens]
        assert after.prompt.tokens[: len(so_far)].tolist() == so_far
    last = first.turns[-1]
    assert (last.metrics["correct"], last.metrics["verifiers/found"], last.metrics["verifiers/turns"]) == (
        2.0,
        1.0,
        3.0,
    )
    assert first.oldest_version == 4
    assert [turn.logs["question"] for turn in first.turns] == ["From 1 to 9?", "higher", "higher"]
    prompt = RENDERER.vocabulary.decode(first.turns[0].prompt.tokens)
    assert "<|im_start|>system\nGuess." in prompt
    (one, _) = assemble(group, np.array([1.0, -1.0]))  # an episode is one sequence
    trained = one.loss_inputs["mask"] > 0
    assert one.loss_inputs["target_tokens"][trained].tolist() == [
        token for turn in first.turns for token in turn.completion.tokens
    ]
    assert one.loss_inputs["logprobs"][trained].tolist() == pytest.approx([0.0, -0.125] * 3)
    assert "verifiers" not in [thread.name for thread in threading.enumerate()]


@with_verifiers
async def test_what_was_sampled_is_never_tokenised_again() -> None:
    """The same text in other tokens than the tokenizer's own stays as it was sampled."""
    broken = RENDERER.vocabulary.encode("\u20ac")[0]  # a third of a character: no text gives it back
    end = tokens_of(assistant("1"))[-1]

    def answer(prompt: str) -> Sequence[int] | Message:
        return assistant("3") if "higher" in prompt else [*RENDERER.vocabulary.encode("1"), broken, end]

    policy = Plays(answer)
    async with playing(__name__, RENDERER, group_size=1) as groups:
        group = await play_group(groups[0], policy, settings(), seed=1)
    one, two = group.trajectories[0].turns
    so_far = [*one.prompt.tokens, *one.completion.tokens]
    assert so_far[-2:] == [broken, end]
    assert two.prompt.tokens[: len(so_far)].tolist() == so_far


@with_verifiers
async def test_verifiers_own_limit_ends_it_and_scores_it() -> None:
    async with playing(__name__, RENDERER, group_size=1, max_turns=2) as groups:
        group = await play_group(groups[1], Plays(counts_up), settings(), seed=1)
    (trajectory,) = group.trajectories
    assert (len(trajectory.turns), trajectory.end, trajectory.reward) == (2, "done", 0.0)
    assert trajectory.turns[-1].metrics["verifiers/turns"] == 2.0
    assert trajectory.turns[-1].logs["stopped"] == "max_turns"


@with_verifiers
async def test_our_limit_ends_it_and_leaves_nothing_running() -> None:
    async with playing(__name__, RENDERER, group_size=3) as groups:
        group = await play_group(groups[1], Plays(counts_up), settings(max_turns=2), seed=1)
        assert [trajectory.end for trajectory in group.trajectories] == ["max_turns"] * 3
        assert groups.host.client.episodes == {}


@with_verifiers
async def test_cancelled_in_mid_turn_it_leaves_nothing() -> None:
    policy = Plays(counts_up, seconds=1000.0)
    async with playing(__name__, RENDERER, group_size=2) as groups:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(play_group, groups[0], policy, settings(), 1)
                while policy.present < 2:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()
        assert policy.present == 0
        assert groups.host.client.episodes == {}
        quick = await play_group(groups[0], Plays(counts_up), settings(), seed=1)
        assert quick.rewards_G.tolist() == [2.0, 2.0]


@with_verifiers
async def test_what_breaks_there_is_said_here() -> None:
    async with playing(__name__, RENDERER, group_size=1) as groups:
        with pytest.raises(EpisodeFailed, match=r"EnvError: Env.run\(\): IndexError"):
            await play_group(groups[0], Plays(lambda _: assistant("no number")), settings(), seed=1)


class Table:
    """A softmax over three numbers for each thing that is said last: a policy that learns by REINFORCE from nothing but what trajectories hold."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.logits = {said: np.zeros(3) for said in ("1 to 3?", "higher", "lower")}
        self.number_of = {RENDERER.vocabulary.encode(str(n + 1))[0]: n for n in range(3)}
        self.end = tokens_of(assistant("1"))[-1]

    def probabilities(self, prompt: Any) -> tuple[str, Any]:
        heard = RENDERER.vocabulary.decode(prompt.tokens).split("<|im_start|>user\n")[-1].split("<|im_end|>")[0]
        odds = np.exp(self.logits[heard])
        return heard, odds / odds.sum()

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        _, p = self.probabilities(request.prompt)
        drawn = int(self.rng.choice(3, p=p))
        token = next(token for token, number in self.number_of.items() if number == drawn)
        logprobs = np.array([np.log(p[drawn]), 0.0], np.float32)
        return [Completion(np.array([token, self.end], np.int32), logprobs, "stop", version=0)]

    def learn(self, group: Any) -> None:
        steps = {said: np.zeros(3) for said in self.logits}
        for trajectory, advantage in zip(group.trajectories, group.rewards_G - group.rewards_G.mean(), strict=True):
            for turn in trajectory.turns:
                heard, p = self.probabilities(turn.prompt)
                number = self.number_of[int(turn.completion.tokens[0])]
                assert turn.completion.logprobs[0] == pytest.approx(np.log(p[number]), abs=1e-5)
                steps[heard] += advantage * (np.eye(3)[number] - p)
        for heard, step in steps.items():
            self.logits[heard] += 0.1 * step


@with_verifiers
@pytest.mark.slow
def test_a_game_in_turns_is_learnt_from_its_trajectories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three numbers, two guesses: whoever guesses anything finds five of nine, whoever begins with 2 and heeds the hint all of them."""
    from envs.games.guess_number import GuessRules
    from recipes import invented_game

    monkeypatch.setattr(invented_game, "RULES", GuessRules(1, 3, 2, explain=False))

    async def play() -> tuple[float, float]:
        policy, won = Table(), []
        async with playing("recipes.invented_game", RENDERER, group_size=12, limit=100) as groups:
            for index in range(100):
                group = await play_group(groups[index], policy, settings(), seed=index)
                won.append(float(group.rewards_G.mean()))
                policy.learn(group)
        return float(np.mean(won[:10])), float(np.mean(won[-10:]))

    before, after = anyio.run(play)
    assert before < 0.75
    assert after > 0.85  # 0.94 to 0.98 with the first seeds


# ---- tools


TOOLS = """
from typing import Any
import verifiers.v1 as vf

__all__ = ["Sums"]

class Data(vf.TaskData):
    answer: int

class Adder(vf.Toolset[vf.ToolsetConfig, vf.State]):
    @vf.tool
    async def add(self, left: int, right: int) -> str:
        "Adds two numbers."
        return str(left + right)

class Sum(vf.Task[Data]):
    @classmethod
    def toolsets(cls, config: Any) -> list[Any]:
        return [Adder(vf.ToolsetConfig())]

    @vf.reward
    async def right(self, trace: Any) -> float:
        return float(trace.last_reply == str(self.data.answer))

class Sums(vf.Taskset[Sum]):
    def load(self) -> Any:
        yield Sum(Data(prompt="What is 123456 + 654321?", answer=777777))
        yield Sum(Data(prompt="What is 1 + 1?", answer=2))

if __name__ == "__main__":
    Adder.run()
"""


@pytest.fixture
def tools_module(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that is found by its name, here and by the tool server's own process."""
    (tmp_path / "callsheet_adder.py").write_text(TOOLS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(sys.path)}")
    return "callsheet_adder"


@with_verifiers
@pytest.mark.slow
async def test_tool_servers_answer_the_policys_calls(tools_module: str) -> None:
    names: list[str] = []

    def answer(prompt: str) -> Message:
        if found := re.findall(r"<tool_response>\n(.+)\n", prompt):
            return assistant(found[-1])
        names[:] = re.findall(r'"name": "(\w+)"', prompt)
        return assistant(tool_calls=[ToolCallPart(names[0], {"left": 123456, "right": 654321})])

    async with playing(tools_module, RENDERER, group_size=1) as groups:
        group = await play_group(groups[0], Plays(answer), settings(), seed=1)
    (trajectory,) = group.trajectories
    assert trajectory.reward == 1.0
    assert names[0].endswith("add")
    assert [turn.logs.get("calls", [{}])[0].get("name") for turn in trajectory.turns] == [names[0], None]
    one, two = trajectory.turns
    so_far = [*one.prompt.tokens, *one.completion.tokens]
    assert two.prompt.tokens[: len(so_far)].tolist() == so_far
    assert trajectory.turns[-1].logs["answer"] == "777777"


# ---- what is refused


@with_verifiers
async def test_what_is_refused() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_environment"):
        async with playing("no_such_environment", RENDERER):
            pass
    async with playing(__name__, RENDERER, config={"id": "best-of-n"}) as groups:
        with pytest.raises(UnsupportedTask, match="a second agent of the policy's"):
            await play_group(groups[0], Plays(counts_up), settings(), seed=1)
    async with playing(__name__, RENDERER, config={"id": "user-sim"}) as groups:
        with pytest.raises(
            (EpisodeFailed, UnsupportedTask), match="'user' is not trained, and has no model of its own"
        ):
            await play_group(groups[0], Plays(counts_up), settings(), seed=1)


async def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from envs.verifiers_episodes import playing

    monkeypatch.setitem(sys.modules, "verifiers", None)
    with pytest.raises(ImportError, match=r"pip install 'callsheet\[verifiers\]'"):
        async with playing("anything", RENDERER):
            pass


@with_verifiers
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
def test_conformance(check: conformance.Check) -> None:
    """As every environment; on asyncio, with a real clock."""

    @asynccontextmanager
    async def games() -> AsyncIterator[Any]:
        async with playing("recipes.invented_game", RENDERER, group_size=2, limit=2) as groups:
            yield groups

    subject = conformance.Subject(games, RENDERER, answers=["3", "8"], max_turns=4, cancellations=4)
    if reason := conformance.gap(check, subject):
        pytest.skip(reason)
    anyio.run(check, subject)
