"""Outcomes given in advance, for tests and simulations: nothing is run."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

import anyio
import anyio.lowlevel

from envs.sandbox.port import ASPECTS, Isolation, RunOutcome, RunRequest, SandboxError

Answer = Callable[[RunRequest], RunOutcome | SandboxError]


class ScriptedSandbox:
    """Answers each request with `answer(request)`, after `seconds` of anyio's clock; an error is raised. `requests` keeps what was asked."""

    def __init__(self, answer: Answer, *, seconds: float = 0.0) -> None:
        self._answer = answer
        self._seconds = seconds
        self.requests: list[RunRequest] = []

    async def run(self, request: RunRequest) -> RunOutcome:
        """As of `Sandbox`."""
        self.requests.append(request)
        await anyio.sleep(self._seconds)
        answer = self._answer(request)
        if isinstance(answer, SandboxError):
            raise answer
        return answer

    def isolation(self) -> Isolation:
        """Nothing is run, so nothing gets out."""
        return Isolation("the scripted sandbox", dict.fromkeys(ASPECTS, "nothing is run"))

    async def __aenter__(self) -> Self:
        await anyio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await anyio.lowlevel.checkpoint()
