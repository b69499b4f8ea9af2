"""Tasks of the `verifiers` package (its Taskset API, `verifiers.v1`) as environments of ours.

    groups = VerifiersGroups(load_tasks("my_package.sums:Sums", limit=500), renderer, group_size=8)

A task's prompt is asked, our policy answers, and the task's own `@reward` and `@metric` functions and judges score the answer on a trace of `verifiers`. Tasks that are
played by a harness in a runtime of theirs (containers, tool servers, scores that look into the box) are refused, by name and reason: scored without it they would
be scored wrongly. `verifiers` speaks asyncio alone, and so do these environments.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import attrs

from engine.backends.values import ModelInput
from engine.rendering import Message, Renderer, assistant, from_openai, system, user
from envs.answers import AnswerEnv, Worth, check_question
from envs.contracts import Env, GroupBuilder, Observation

EXTRA = "environments of the package verifiers need it: pip install 'callsheet[verifiers]'"


class UnsupportedTask(ValueError):
    """A task that cannot be played here; the message says which, and why."""


def load_tasks(source: str, *, limit: int | None = None, **config: Any) -> list[Any]:
    """The tasks of a taskset: `module:Class`, or the id of an installed one. Blocks. `config`: fields of the taskset's own configuration.

    Raises ImportError without the package, ValueError for a source that is no taskset, UnsupportedTask for an endless one without a limit, and for tasks that
    cannot be played here.
    """
    try:
        import verifiers.v1 as vf
        from verifiers.v1.utils.generic import concrete_type
        from verifiers.v1.utils.loaders import taskset_class
    except ImportError as error:
        raise ImportError(EXTRA) from error
    module, colon, name = source.partition(":")
    kind: Any = getattr(import_module(module), name, None) if colon else taskset_class(source)
    if not (inspect.isclass(kind) and issubclass(kind, vf.Taskset)):
        raise ValueError(f"{source} is no taskset of verifiers")
    configured: Any = concrete_type(kind, vf.TasksetConfig) or vf.TasksetConfig
    make: Any = kind  # the check above would leave no more of its type than that it is one
    taskset: Any = make(configured(**config))
    if limit is None and not taskset.bounded:
        raise UnsupportedTask(f"{source} has tasks without end: a limit says how many to take")
    tasks = [*itertools.islice(iter(taskset), limit)]
    if not tasks:
        raise ValueError(f"{source} has no tasks")
    for task in tasks:
        check_task(task)
    return tasks


def check_task(task: Any) -> None:
    """Raises UnsupportedTask for a task that needs more than a conversation."""
    name = f"task {task.data.idx} ({type(task).__name__})"
    if type(task).NEEDS_CONTAINER or task.data.image is not None:
        raise UnsupportedTask(f"{name} runs in a container, which is not offered here")
    if type(task).toolsets(task.config):
        raise UnsupportedTask(f"{name} brings tool servers, which are not offered here")
    if task.data.prompt is None:
        raise UnsupportedTask(f"{name} has no prompt: its user speaks first, which is not offered here")
    for function in (*task.hooks("reward"), *task.hooks("metric")):
        parameter = inspect.signature(function).parameters.get("runtime")
        if parameter is not None and parameter.default is inspect.Parameter.empty:
            raise UnsupportedTask(
                f"{name}: {function.__name__} looks into the runtime of a harness, and there is none here"
            )


def conversation_of(task: Any) -> list[Message]:
    """What a task asks: its system prompt, and its prompt. Raises ValueError for messages that are none of ours."""
    prompt = task.data.prompt
    asked = [user(prompt)] if isinstance(prompt, str) else from_openai([_dictionary(each) for each in prompt])
    before = [] if task.data.system_prompt is None else [system(task.data.system_prompt)]
    return [*before, *asked]


def _dictionary(message: Any) -> dict[str, Any]:
    dumped = message.model_dump(mode="json", exclude_none=True)
    return {name: value for name, value in dumped.items() if name in ("role", "content", "tool_calls", "tool_call_id")}


class VerifiersEnv(AnswerEnv):
    """One answer to a task, scored by it."""

    def __init__(self, renderer: Renderer, task: Any, observation: Observation) -> None:
        super().__init__(renderer, conversation_of(task), observation, unfinished_penalty=0.0)
        self._task = task

    async def worth(self, answer: Message) -> Worth:
        """The task's reward: the weighted sum of its own. Raises RuntimeError on an event loop that verifiers does not know, and what scoring raises."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError("verifiers scores on asyncio alone: run with anyio's asyncio backend") from None
        trace = trace_of(self._task, self.conversation, answer)
        await self._task.score(trace)
        scores = {name: float(reward.score) for name, reward in trace.rewards.items() if reward is not None}
        measured = {name: float(value) for name, value in trace.metrics.items() if value is not None}
        metrics = {f"verifiers/{name}": value for name, value in {**scores, **measured}.items()}
        return Worth(float(trace.reward), {"correct": float(trace.reward), **metrics})


def trace_of(task: Any, conversation: Sequence[Message], answer: Message) -> Any:
    """A trace of verifiers: the conversation as it was asked, and the answer as sampled."""
    import verifiers.v1 as vf
    from verifiers.v1.graph import MessageNode
    from verifiers.v1.trace import AgentInfo, Trace, TraceTask
    from verifiers.v1.types import AssistantMessage, SystemMessage, UserMessage

    kinds = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}
    trace = Trace(
        task=TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
        agent=AgentInfo(config=vf.AgentConfig()),
    )
    for number, message in enumerate([*conversation, assistant(answer.text)]):
        if message.role not in kinds:
            raise UnsupportedTask(f"task {task.data.idx}: its prompt has a message of role {message.role!r}")
        trace.nodes.append(
            MessageNode(
                parent=number - 1 if number else None,
                message=kinds[message.role](content=message.text),
                sampled=number == len(conversation),
            )
        )
    return trace


class VerifiersGroup(GroupBuilder):
    """Several answers to one task, asked for in one sampling request."""

    single_turn = True

    def __init__(self, renderer: Renderer, task: Any, size: int, max_tokens: int | None) -> None:
        self._renderer = renderer
        self._task = task
        self._size = size
        self._max_tokens = max_tokens
        self.tags = ("verifiers", type(task).__name__)

    async def make_envs(self) -> Sequence[Env]:
        """The attempts; the prompt is rendered once."""
        conversation = conversation_of(self._task)
        check_question(conversation)
        prompt: ModelInput = self._renderer.generation_prompt(conversation)
        observation = Observation(prompt, self._renderer.stop_sequences(), self._max_tokens)
        return [VerifiersEnv(self._renderer, self._task, observation) for _ in range(self._size)]


@attrs.frozen
class VerifiersGroups:
    """A dataset of groups: task `index`, attempted by `group_size` members."""

    tasks: Sequence[Any]
    renderer: Renderer
    group_size: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    max_tokens: int | None = None
    """Most tokens of an answer; None: the rollout's own limit."""

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> GroupBuilder:
        return VerifiersGroup(self.renderer, self.tasks[index], self.group_size, self.max_tokens)
