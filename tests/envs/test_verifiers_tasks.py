"""Tasks of the package verifiers: their prompts, their own scores, and what is refused. Where the package is installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import numpy as np
import pytest

from engine.backends.values import Completion, SampleRequest, SamplingParams
from engine.rendering import get_renderer
from envs import conformance
from envs.rollout import FailFast, RolloutSettings, play_group
from envs.verifiers_tasks import UnsupportedTask, VerifiersGroups, check_task, conversation_of, load_tasks
from recipes.tiny import make_tokenizer

INSTALLED = importlib.util.find_spec("verifiers") is not None
with_verifiers = pytest.mark.skipif(not INSTALLED, reason="verifiers is heavy: pip install 'callsheet[verifiers]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

tokenizer = make_tokenizer()
renderer = get_renderer("role_colon", tokenizer)

if INSTALLED:
    import verifiers.v1 as vf
    from verifiers.v1.types import AssistantMessage, UserMessage

    class Data(vf.TaskData):
        answer: str

    class Word(vf.Task[Data]):
        @vf.reward(weight=2.0)
        async def right(self, trace: Any) -> float:
            return float(trace.last_reply.strip() == self.data.answer)

        @vf.reward(weight=0.5)
        async def short(self, trace: Any) -> float:
            return float(len(trace.last_reply) < 5)

        @vf.metric
        async def asked(self, trace: Any) -> float:
            return float(len(trace.messages))

    class Words(vf.Taskset[Word]):
        def load(self) -> Any:
            yield Word(Data(prompt="Say yes.", answer="yes", system_prompt="Be brief."))
            said = [UserMessage(content="Hello."), AssistantMessage(content="Hi."), UserMessage(content="Say no.")]
            yield Word(Data(prompt=said, answer="no"))

    class Endless(vf.Taskset[Word]):
        INFINITE = True

        def load(self) -> Any:
            while True:
                yield Word(Data(prompt="?", answer="!"))

    class Boxed(Word):
        @vf.reward(weight=1.0)
        async def looks(self, trace: Any, runtime: Any) -> float:
            return 1.0

    class Contained(Word):
        NEEDS_CONTAINER = True


class Says:
    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        found = []
        for text in (" yes\n\nUser:", " nothing\n\nUser:", " no\n\nUser:")[: request.num_samples]:
            tokens = np.array(tokenizer.encode(text).ids, np.int32)
            found.append(Completion(tokens, np.zeros(len(tokens), np.float32), "stop", version=0))
        return found


def play(task: Any, backend: str = "asyncio") -> Any:
    settings = RolloutSettings(SamplingParams(max_tokens=40), failure=FailFast())
    return anyio.run(play_group, VerifiersGroups([task], renderer, 3)[0], Says(), settings, 0, backend=backend)


@with_verifiers
def test_the_task_scores_the_answer() -> None:
    tasks = load_tasks(f"{__name__}:Words")
    first, second = play(tasks[0]), play(tasks[1])
    assert first.rewards_G.tolist() == [2.5, 0.0, 0.5]
    assert second.rewards_G.tolist() == [0.5, 0.0, 2.5]
    assert first.tags == ("verifiers", "Word")
    metrics = first.trajectories[0].turns[0].metrics
    assert (metrics["correct"], metrics["verifiers/right"], metrics["verifiers/short"]) == (2.5, 1.0, 1.0)
    # The trace holds what was asked and what was said: system, user, answer; and three messages before the second's.
    assert metrics["verifiers/asked"] == 3.0
    assert second.trajectories[0].turns[0].metrics["verifiers/asked"] == 4.0


@with_verifiers
def test_prompts_are_rendered_as_conversations() -> None:
    one, two = (conversation_of(task) for task in load_tasks(f"{__name__}:Words"))
    assert [(message.role, message.text) for message in one] == [("system", "Be brief."), ("user", "Say yes.")]
    assert [message.role for message in two] == ["user", "assistant", "user"]


@with_verifiers
def test_what_is_refused() -> None:
    data = Data(prompt="?", answer="!")
    for task, said in (
        (Boxed(data), "looks looks into the runtime of a harness"),
        (Contained(data), "runs in a container"),
        (Word(Data(prompt="?", answer="!", image="python:3.11")), "runs in a container"),
        (Word(Data(answer="!")), "its user speaks first"),
    ):
        with pytest.raises(UnsupportedTask, match=said):
            check_task(task)
    with pytest.raises(UnsupportedTask, match="tasks without end"):
        load_tasks(f"{__name__}:Endless")
    assert len(load_tasks(f"{__name__}:Endless", limit=3)) == 3
    with pytest.raises(ValueError, match="is no taskset of verifiers"):
        load_tasks(f"{__name__}:Says")


@with_verifiers
def test_on_trio_it_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="run with anyio's asyncio backend"):
        play(load_tasks(f"{__name__}:Words")[0], backend="trio")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verifiers", None)
    monkeypatch.setitem(sys.modules, "verifiers.v1", None)
    with pytest.raises(ImportError, match=r"pip install 'callsheet\[verifiers\]'"):
        load_tasks("anything:Taskset")


@with_verifiers
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
def test_conformance(check: conformance.Check) -> None:
    """As every environment; on asyncio."""

    @asynccontextmanager
    async def problems() -> AsyncIterator[Any]:
        yield VerifiersGroups(load_tasks(f"{__name__}:Words"), renderer, 2)

    subject = conformance.Subject(problems, renderer, answers=["yes", "no"], cancellations=4)
    if reason := conformance.gap(check, subject):
        pytest.skip(reason)
    anyio.run(check, subject)
