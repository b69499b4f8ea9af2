"""Tasks of inspect-ai put to a policy: known scores, tools, errors, cancellation, and a run that is evaluated by one. Where the package is installed."""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import pytest

from actors import RLSettings, RunSettings, Schedule, train_rl
from actors.inspect_tasks import InspectTaskFailed, inspect_evaluation, load_tasks
from engine.backends import Completion, SampleRequest, SamplingParams
from engine.backends.ports import Snapshot
from engine.backends.simulated import SimulatedBackend
from engine.completion import ScriptedCompleter
from engine.rendering import Message, ToolCallPart, assistant
from envs.rollout import RolloutSettings
from tests.actors.harness import Watched
from tests.serving.policies import RENDERER, tokens_of

INSTALLED = importlib.util.find_spec("inspect_ai") is not None
with_inspect = pytest.mark.skipif(not INSTALLED, reason="inspect-ai is heavy: pip install 'callsheet[inspect]'")
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # inspect-ai leaves memory streams open behind it, which is noticed whenever they are collected.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

if INSTALLED:
    from inspect_ai import Task
    from inspect_ai.dataset import Sample
    from inspect_ai.log import list_eval_logs, read_eval_log
    from inspect_ai.model import (
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageTool,
        ChatMessageUser,
        ContentImage,
        ContentReasoning,
        ContentText,
        GenerateConfig,
    )
    from inspect_ai.scorer import match
    from inspect_ai.solver import Generate, TaskState, generate, solver, system_message, use_tools
    from inspect_ai.tool import ToolCall, ToolFunction, tool


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Threads want a real clock."""
    return str(request.param)


class Answers:
    """Says what a function of the prompt's text says."""

    max_context: int | None = None

    def __init__(self, answer: Callable[[str], Message], seconds: float = 0.0) -> None:
        self.answer = answer
        self.seconds = seconds
        self.requests: list[SampleRequest] = []
        self.present = self.peak = 0

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        self.requests.append(request)
        self.present += 1
        self.peak = max(self.peak, self.present)
        try:
            await anyio.sleep(self.seconds)
        finally:
            self.present -= 1
        return [said(self.answer(RENDERER.vocabulary.decode(request.prompt.tokens)))] * request.num_samples

    async def compute_logprobs(self, sequence: Any) -> Any:
        raise AssertionError("nothing is scored here")


def said(message: Message, version: int = 0) -> Completion:
    tokens = np.array(tokens_of(message), np.int32)
    return Completion(tokens, np.zeros(len(tokens), np.float32), "stop", version=version)


def last_question(prompt: str) -> str:
    return re.findall(r"(\d+ \+ \d+)", prompt)[-1]


def adds(prompt: str) -> Message:
    """Right but for what begins with a 7."""
    question = last_question(prompt)
    left, right = map(int, question.split(" + "))
    return assistant(str(left + right + (left // 10 == 7)))


def sums(**options: Any) -> Task:
    questions = [(12, 30), (71, 1), (8, 8), (20, 22)]
    samples = [Sample(input=f"What is {left} + {right}?", target=str(left + right)) for left, right in questions]
    return Task(dataset=samples, solver=[system_message("Add."), generate()], scorer=match(), name="sums", **options)


async def evaluated(policy: Answers, *tasks: Any, **options: Any) -> Mapping[str, float]:
    return await inspect_evaluation("inspect", tasks, RENDERER, **options).run(policy)


@with_inspect
async def test_a_known_score_and_its_logs(tmp_path: Path) -> None:
    policy = Answers(adds)
    metrics = await evaluated(policy, sums(), log_dir=tmp_path, sampling=SamplingParams(max_tokens=9, temperature=0.5))
    assert metrics["sums/accuracy"] == 0.75
    assert (metrics["sums/samples"], metrics["sums/errors"]) == (4.0, 0.0)
    assert metrics["sums/stderr"] == pytest.approx(0.25)  # the standard deviation of 1, 0, 1, 1 over the root of 4
    assert {(request.params.max_tokens, request.params.temperature) for request in policy.requests} == {(9, 0.5)}
    prompt = RENDERER.vocabulary.decode(policy.requests[0].prompt.tokens)
    assert "<|im_start|>system\nAdd." in prompt
    assert prompt.endswith("<|im_start|>assistant\n")
    (found,) = await anyio.to_thread.run_sync(list_eval_logs, str(tmp_path))
    log = await anyio.to_thread.run_sync(read_eval_log, found)
    assert log.eval.model == "callsheet/policy"
    assert log.samples is not None
    assert [sample.output.completion for sample in log.samples] == ["42", "73", "16", "42"]
    assert log.samples[0].output.usage.input_tokens == policy.requests[0].prompt.length


@with_inspect
async def test_the_tasks_own_settings_hold_and_seeds_repeat() -> None:
    policy = Answers(adds)
    task = sums(config=GenerateConfig(max_tokens=7, temperature=0.0, stop_seqs=["2"]))
    first = await evaluated(policy, task, epochs=2)
    seeds = sorted(request.seed for request in policy.requests)
    assert len(set(seeds)) == 8  # an epoch asks again, with another seed
    assert {request.params.max_tokens for request in policy.requests} == {7}
    assert all("2" in request.params.stop for request in policy.requests)
    assert first["sums/accuracy"] == 0.25  # 42 was cut at its 2, and what began with a 7 is wrong as ever
    policy.requests.clear()
    await evaluated(policy, task, epochs=2)
    assert sorted(request.seed for request in policy.requests) == seeds


@with_inspect
async def test_tools_are_called_and_their_results_read() -> None:
    called: list[tuple[int, int]] = []

    @tool
    def adder() -> Any:
        async def execute(left: int, right: int) -> str:
            """Adds.

            Args:
                left: A number.
                right: Another.
            """
            called.append((left, right))
            return str(left + right)

        return execute

    def calls(prompt: str) -> Message:
        if results := re.findall(r"<tool_response>\n(\d+)", prompt):
            return assistant(results[-1])
        left, right = map(int, last_question(prompt).split(" + "))
        return assistant(tool_calls=[ToolCallPart("adder", {"left": left, "right": right})])

    task = sums()
    task.solver = [use_tools(adder()), generate()]  # type: ignore[assignment]
    policy = Answers(calls)
    metrics = await evaluated(policy, task)
    assert metrics["sums/accuracy"] == 1.0
    assert sorted(called) == [(8, 8), (12, 30), (20, 22), (71, 1)]
    assert len(policy.requests) == 8
    assert '"name": "adder"' in RENDERER.vocabulary.decode(policy.requests[0].prompt.tokens)


@with_inspect
async def test_the_loop_is_not_held_up_and_samples_run_at_once() -> None:
    gaps: list[float] = []

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await anyio.sleep(0.005)
            gaps.append(time.perf_counter() - before - 0.005)

    @solver
    def holds_up() -> Any:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            time.sleep(0.3)  # noqa: ASYNC251  (a task that blocks its loop)
            return await generate(state)

        return solve

    task = sums()
    task.solver = [holds_up()]  # type: ignore[assignment]
    policy = Answers(adds, seconds=0.5)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await evaluated(policy, task)
        tasks.cancel_scope.cancel()
    assert policy.peak >= 2
    assert sorted(gaps)[len(gaps) // 2] < 0.05


@with_inspect
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # inspect-ai leaves streams open behind samples that fail
async def test_what_a_completer_cannot_do_is_said() -> None:
    @solver
    def forces() -> Any:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            state.tools, state.tool_choice = [echo()], ToolFunction("echo")
            return await generate(state)

        return solve

    @tool
    def echo() -> Any:
        async def execute(text: str) -> str:
            """Echoes.

            Args:
                text: What.
            """
            return text

        return execute

    forced = sums()
    forced.solver = [forces()]  # type: ignore[assignment]
    for task, why in (
        (forced, "a call cannot be forced"),
        (sums(config=GenerateConfig(logprobs=True)), "logprobs: a completer has no such thing"),
        (sums(config=GenerateConfig(frequency_penalty=0.5)), "frequency_penalty: a completer"),
    ):
        with pytest.raises(InspectTaskFailed, match=f"inspect task sums: .*{why}"):
            await evaluated(Answers(adds), task)
    metrics = await evaluated(Answers(adds), forced, fail_on_error=False)
    assert metrics["sums/errors"] == 4.0


@with_inspect
async def test_a_conversation_that_outgrew_the_context_is_not_answered() -> None:
    policy = Answers(adds)
    policy.max_context = 20
    metrics = await evaluated(policy, sums())
    assert policy.requests == []
    assert (metrics["sums/accuracy"], metrics["sums/errors"]) == (0.0, 0.0)
    policy.max_context = 100
    await evaluated(policy, sums(config=GenerateConfig(max_tokens=90)), limit=1)
    (request,) = policy.requests
    assert request.params.max_tokens == 100 - request.prompt.length


@with_inspect
async def test_cancelled_it_leaves_nothing() -> None:
    policy = Answers(adds, seconds=1000.0)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(evaluated, policy, sums())
            while policy.present < 4:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
    assert policy.present == 0
    assert "inspect-ai" not in [thread.name for thread in threading.enumerate()]
    metrics = await evaluated(Answers(adds), sums())  # and another one can be played
    assert metrics["sums/accuracy"] == 0.75


@with_inspect
async def test_the_process_is_left_as_it_was() -> None:
    root = logging.getLogger()

    def state() -> Any:
        return list(root.handlers), root.level, sys.excepthook, Path.cwd()

    before = state()
    await evaluated(Answers(adds), sums(), limit=1)
    assert state() == before


@with_inspect
async def test_two_at_once_take_turns() -> None:
    found: list[float] = []

    async def one() -> None:
        found.append((await evaluated(Answers(adds), sums()))["sums/accuracy"])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one)
        tasks.start_soon(one)
    assert found == [0.75, 0.75]


class Taught(SimulatedBackend):
    """Answers sums of the task, from version 2 on rightly; to the run's own prompts it says what the simulated model says."""

    async def sample(self, snapshot: Snapshot, request: SampleRequest) -> Sequence[Completion]:
        text = RENDERER.vocabulary.decode(request.prompt.tokens)
        if "What is" not in text:
            return await super().sample(snapshot, request)
        left, right = map(int, last_question(text).split(" + "))
        return [said(assistant(str(left + right + (snapshot.version < 2))), snapshot.version)]


@with_inspect
async def test_a_run_is_evaluated_by_a_task(tmp_path: Path) -> None:
    backend = Taught()
    result = await train_rl(
        backend,
        groups=Watched(),
        steps=4,
        schedule=Schedule(groups_per_step=2),
        settings=RLSettings(rollout=RolloutSettings(SamplingParams(max_tokens=10))),
        evaluations=[inspect_evaluation("held out", [sums()], RENDERER, every=2, log_dir=tmp_path / "inspect")],
        run=RunSettings(tmp_path / "run"),
    )
    assert [(report.version, report.metrics["sums/accuracy"]) for report in result.evaluations] == [
        (0, 0.0),
        (2, 1.0),
        (4, 1.0),
    ]
    assert len(await anyio.to_thread.run_sync(list_eval_logs, str(tmp_path / "inspect"))) == 3
    assert backend.live_snapshots == ()


@with_inspect
async def test_inspects_own_loop_may_ask_a_completer(tmp_path: Path) -> None:
    """Without a run: research code that calls inspect-ai itself."""
    from inspect_ai import eval_async

    from engine.completion.inspect_model import inspect_model

    model = inspect_model(ScriptedCompleter(lambda messages: adds(messages[-1].text)))
    (log,) = await eval_async(sums(), model=model, log_dir=str(tmp_path), ctl_server=False)
    assert log.results is not None
    assert log.results.scores[0].metrics["accuracy"].value == 0.75


@with_inspect
def test_messages_keep_what_they_say() -> None:
    from engine.completion.inspect_model import message_of
    from engine.rendering import ImagePart, TextPart, ThinkingPart, ToolResultPart

    call = ToolCall("c1", "add", {"left": 1})
    given = [
        ChatMessageSystem(content="Be brief."),
        ChatMessageUser(content=[ContentText(text="Look: "), ContentImage(image="data:image/png;base64,AA==")]),
        ChatMessageAssistant(content=[ContentReasoning(reasoning="Hm."), ContentText(text="So.")], tool_calls=[call]),
        ChatMessageTool(content="2", function="add", tool_call_id="c1"),
    ]
    assert [message_of(each) for each in given] == [
        Message("system", "Be brief."),
        Message("user", (TextPart("Look: "), ImagePart("data:image/png;base64,AA=="))),
        Message("assistant", (ThinkingPart("Hm."), TextPart("So."), ToolCallPart("add", {"left": 1}, "c1"))),
        Message("tool", (ToolResultPart("2", "add", "c1"),)),
    ]


@with_inspect
def test_tasks_by_reference(tmp_path: Path) -> None:
    (task,) = load_tasks(f"{__name__}:sums")
    assert task.name == "sums"
    file = tmp_path / "mine.py"
    file.write_text(
        "from inspect_ai import Task\n\ndef a():\n    return [Task(name='one'), Task(name='two')]\n\ndef b():\n    return 3\n"
    )
    here = Path.cwd()
    assert [each.name for each in load_tasks(f"{file}@a")] == ["one", "two"]
    assert Path.cwd() == here
    assert load_tasks("inspect_evals/gsm8k") == ["inspect_evals/gsm8k"]
    for source, why in (
        (f"{file}@c", "has no function 'c'"),
        (f"{file}@b", "it gave 3, and a task"),
        ("nowhere.py@a", "there is no such file"),
    ):
        with pytest.raises(ValueError, match=why):
            load_tasks(source)
    with pytest.raises(ValueError, match="there are no tasks"):
        inspect_evaluation("none", [], RENDERER)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    with pytest.raises(ImportError, match=r"pip install 'callsheet\[inspect\]'"):
        inspect_evaluation("any", ["anything"], RENDERER)
    with pytest.raises(ImportError, match=r"pip install 'callsheet\[inspect\]'"):
        load_tasks("anything:task")
