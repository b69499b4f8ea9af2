"""The tools of an episode, and the calls that a model makes of them.

    answer's parts ──calls_in──> call, call, ... ──Toolbox.run──> outcome, outcome, ... ──messages──> tool results

Whatever a call does, it ends in an outcome: a result, or an error in words for the model. Nothing a model writes raises here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Literal

import anyio
import attrs

from engine.rendering.messages import Message, ToolCallPart, UnparsedToolCallPart, tool_result
from engine.rendering.tools import Call, ToolSpec
from engine.runtime.jobs import BudgetExceeded, JobFailed, PoolClosed, WorkerDied
from engine.runtime.offload import offload
from engine.runtime.processes import WorkerPool
from envs.together import together
from envs.tools.results import ToolError, ToolResult, ToolUnavailable, as_result
from envs.tools.tool import Tool, WrongArguments, as_tool

ErrorKind = Literal["unparsed", "unknown_tool", "wrong_arguments", "raised", "timeout", "refused"]
"""Why a call has no result: it could not be read, names no tool, does not fit its signature, the tool raised, took too long, or no more calls are allowed."""

_positive: Any = attrs.validators.optional(attrs.validators.gt(0))


@attrs.frozen(kw_only=True)
class CallBudget:
    """What one call may take, where the tool itself says nothing else. None: no limit."""

    seconds: float | None = attrs.field(default=10.0, validator=_positive)
    """Most seconds of one call; waiting for a worker process is not counted."""
    result_characters: int | None = attrs.field(default=4000, validator=_positive)
    """Longest result; the rest is cut off, and the model is told."""


@attrs.frozen
class CallOutcome:
    """How a call ended."""

    call: Call
    text: str
    """What the model is told."""
    error: ErrorKind | None = None
    final: bool = False
    """The tool ended the episode; `text` is the final answer."""
    truncated: bool = False
    metrics: dict[str, float] = attrs.field(factory=dict)

    def message(self) -> Message:
        """The tool's answer in the conversation."""
        if isinstance(self.call, UnparsedToolCallPart):
            return tool_result(self.text, name="unknown")
        return tool_result(self.text, name=self.call.name, id=self.call.id)

    def log(self) -> dict[str, Any]:
        """For people: JSON values."""
        if isinstance(self.call, UnparsedToolCallPart):
            called: dict[str, Any] = {"unparsed": self.call.text}
        else:
            called = {"name": self.call.name, "arguments": dict(self.call.arguments)}
        return {**called, "error" if self.error else "result": self.text}


def calls_in(message: Message) -> list[Call]:
    """The calls of an answer in their order, those that could not be read included."""
    return [part for part in message.content if isinstance(part, ToolCallPart | UnparsedToolCallPart)]


class Toolbox:
    """Tools by name, and what their calls may take. Holds no state of an episode: one may serve many, where its tools do."""

    def __init__(
        self,
        tools: Sequence[Callable[..., Any] | Tool],
        *,
        budget: CallBudget | None = None,
        parallel: bool = True,
        pool: WorkerPool | None = None,
        threads: int = 16,
    ) -> None:
        """`parallel`: calls of one answer run at once; otherwise one after another, as tools that share state want it. `pool`: for tools that run in processes.
        `threads`: most calls in threads at once, those included that were given up and are still running.

        Raises ValueError for two tools of one name, and for a tool that wants a pool where there is none; TypeError as `as_tool`.
        """
        made = [as_tool(each) for each in tools]
        self.tools = {each.name: each for each in made}
        if len(self.tools) < len(made):
            names = [each.name for each in made]
            raise ValueError(f"two tools are called {next(name for name in names if names.count(name) > 1)!r}")
        wanting = [each.name for each in made if each.runs == "process"]
        if wanting and pool is None:
            raise ValueError(
                f"tool {wanting[0]!r} runs in a worker process: give the toolbox a pool (engine.runtime.WorkerPool)"
            )
        self._budget = budget or CallBudget()
        self._parallel = parallel
        self._pool = pool
        self._limiter = anyio.CapacityLimiter(threads)

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """What a model is told of the tools."""
        return tuple(each.spec for each in self.tools.values())

    async def run(self, calls: Sequence[Call], *, allowed: int | None = None) -> list[CallOutcome]:
        """An outcome for each call, in order. `allowed`: how many are made; the others are refused.

        Raises ToolUnavailable where a tool does, and PoolClosed; never for what the model wrote.
        """
        made = len(calls) if allowed is None else max(0, allowed)
        if self._parallel:
            outcomes = await together([partial(self._one, each) for each in calls[:made]])
        else:
            outcomes = []
            for each in calls[:made]:
                outcomes.append(await self._one(each))
                if outcomes[-1].final:
                    made = len(outcomes)
                    break
        refused = "this call was not made: " + (
            "no calls are left" if not made else f"only the first {made} of this answer were"
        )
        return outcomes + [CallOutcome(each, f"Error: {refused}", "refused") for each in calls[made:]]

    async def _one(self, call: Call) -> CallOutcome:
        try:
            found, arguments = self._read(call)
            seconds = found.options.seconds or self._budget.seconds
            try:
                result = await self._result(found, arguments, seconds)
            except (ToolUnavailable, PoolClosed):
                raise
            except (BudgetExceeded, _TookTooLong):
                raise _Failed("timeout", f"{found.name} did not finish within {seconds:g} s") from None
            except Exception as error:  # noqa: BLE001  (whatever a tool does, the model is told)
                raise _Failed("raised", _in_words(error, found)) from None
        except _Failed as failed:
            text, truncated = self._cut(failed.said, None)
            return CallOutcome(call, f"Error: {text}", failed.kind, truncated=truncated)
        text, truncated = self._cut(result.text, found)
        return CallOutcome(call, text, None, result.final, truncated, dict(result.metrics))

    def _read(self, call: Call) -> tuple[Tool, dict[str, Any]]:
        """The tool and its arguments. Raises _Failed."""
        if isinstance(call, UnparsedToolCallPart):
            raise _Failed("unparsed", f"the call could not be read: {call.error}")
        found = self.tools.get(call.name)
        if found is None:
            names = ", ".join(self.tools) or "none"
            raise _Failed("unknown_tool", f"there is no tool {call.name[:80]!r}; there are {names}")
        try:
            return found, found.read(call.arguments)
        except WrongArguments as wrong:
            raise _Failed("wrong_arguments", str(wrong)) from None

    async def _result(self, found: Tool, arguments: dict[str, Any], seconds: float | None) -> ToolResult:
        if found.runs == "process":
            assert self._pool is not None  # noqa: S101  (checked when the toolbox was made)
            try:
                return as_result(await self._pool.run(found.function, *found.by_place(arguments), budget=seconds))
            except JobFailed as failed:
                if failed.kind.endswith(ToolUnavailable.__name__):
                    raise ToolUnavailable(failed.message) from failed
                raise
        work: Callable[[], Awaitable[Any]] = partial(_called, found.function, arguments)
        if found.runs == "thread":
            in_thread = partial(_text_of, found.function, arguments)
            work = partial(offload, in_thread, abandon=True, limiter=self._limiter)
        with anyio.move_on_after(seconds) as scope:
            return as_result(await work())
        if scope.cancelled_caught:
            raise _TookTooLong
        raise AssertionError("unreachable: the block returns or is cancelled")

    def _cut(self, text: str, found: Tool | None) -> tuple[str, bool]:
        most = (found.options.result_characters if found else None) or self._budget.result_characters
        if most is None or len(text) <= most:
            return text, False
        return f"{text[:most]}\n[cut off: {len(text) - most} more characters]", True


class _Failed(Exception):
    """A call has no result."""

    def __init__(self, kind: ErrorKind, said: str) -> None:
        super().__init__(said)
        self.kind = kind
        self.said = said


class _TookTooLong(Exception):
    """Not a TimeoutError: the tool may raise one of its own."""


def _in_words(error: Exception, found: Tool) -> str:
    """What the model is told of an exception."""
    if isinstance(error, ToolError):
        return str(error)
    if isinstance(error, WorkerDied):
        return f"{found.name} crashed"
    if isinstance(error, JobFailed):
        kind = error.kind.rpartition(".")[2]
        return error.message if kind == ToolError.__name__ else f"{kind}: {error.message}"
    return f"{type(error).__name__}: {error}"


async def _called(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    value = function(**arguments)
    return await value if hasattr(value, "__await__") else value


def _text_of(function: Callable[..., Any], arguments: dict[str, Any]) -> ToolResult:
    """Calls the function and makes a text of its result. Runs in a thread, since a large result takes a while to become text."""
    return as_result(function(**arguments))
