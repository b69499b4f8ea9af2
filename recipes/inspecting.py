"""The flag `--inspect-tasks` of training recipes: tasks of inspect-ai that a run is evaluated by, beside the recipe's own evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from actors import Evaluation
    from engine.rendering import Renderer

LOGS = "inspect"
"""In the run's directory: what `inspect view --log-dir` shows."""


class Inspects(Protocol):
    """What a recipe's configuration has to have."""

    @property
    def inspect_tasks(self) -> tuple[str, ...]: ...

    @property
    def evaluate_every(self) -> int: ...

    @property
    def seed(self) -> int: ...


def check(sources: Sequence[str]) -> None:
    """Raises ImportError or ValueError for what can be seen to be wrong before anything costs time."""
    if not sources:
        return
    from actors.inspect_tasks import require_inspect

    require_inspect()
    for source in sources:
        path, at, _ = source.rpartition("@")
        if at and path.endswith(".py") and not Path(path).is_file():
            raise ValueError(f"--inspect-tasks {source}: there is no file {path}")


async def inspect_evaluations(
    config: Inspects, directory: Path, renderer: Renderer, *, max_tokens: int = 256
) -> list[Evaluation]:
    """The evaluations that were asked for, each named as in its flag, without the folders. `max_tokens`: of an answer, where a task does not say."""
    if not config.inspect_tasks:
        return []
    from actors.inspect_tasks import inspect_evaluation, load_tasks
    from engine.backends.values import SamplingParams
    from engine.runtime.offload import offload

    return [
        inspect_evaluation(
            Path(source).name if "@" in source else source,
            await offload(load_tasks, source),
            renderer,
            sampling=SamplingParams(max_tokens),
            every=config.evaluate_every,
            log_dir=directory / LOGS,
            seed=config.seed,
        )
        for source in config.inspect_tasks
    ]
