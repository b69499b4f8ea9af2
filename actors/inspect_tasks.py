"""Tasks of inspect-ai as evaluations of a run: their own solvers, tools and scorers, put to the policy in training.

    evaluations=[inspect_evaluation("arithmetic", load_tasks("my_tasks:arithmetic"), renderer, every=10)]

inspect-ai plays on an event loop of its own, in a thread; what it asks of the model is sampled over here, at the version that is due, and its logs go where `inspect view` finds them. One such evaluation
runs at a time in a process: inspect-ai allows no more. It needs the extra `inspect`.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from actors.evaluator import EvaluatedPolicy, Evaluation
from engine.backends.values import SamplingParams
from engine.completion import PolicyCompleter
from engine.completion.inspect_model import EXTRA, inspect_model
from engine.rendering import Renderer
from engine.runtime.guest_loop import guest_loop

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.log import EvalLog
    from inspect_ai.model import Model

_one_at_a_time = threading.Lock()


class InspectTaskFailed(RuntimeError):
    """A task that inspect-ai could not finish; the message says which, and why."""


def load_tasks(source: str) -> list[Task | str]:
    """The task that a source names. Blocks.

    `module:function` and `path/to/file.py@function`: a function that gives a task or several, decorated with `@task` or not. Anything else, such as `inspect_evals/gsm8k`: a name that inspect-ai finds for itself
    among the installed ones. Raises ValueError where the function is not there or gives no task, ImportError for a module that is not, and naming the extra where inspect-ai is missing.
    """
    require_inspect()
    from inspect_ai import Task

    path, at, name = source.rpartition("@")
    if at and path.endswith(".py"):
        module = _module_in(Path(path))
    elif ":" in source:
        path, _, name = source.partition(":")
        module = importlib.import_module(path)
    else:
        return [source]
    make = getattr(module, name, None)
    if not callable(make):
        raise ValueError(f"{source}: {path} has no function {name!r}")
    given = make()
    tasks = list(given) if isinstance(given, list | tuple) else [given]
    if not tasks or not all(isinstance(task, Task) for task in tasks):
        raise ValueError(f"{source}: it gave {given!r}, and a task of inspect-ai is wanted")
    return tasks


def require_inspect() -> None:
    """Raises ImportError, naming the pip install that helps, where inspect-ai is missing."""
    if importlib.util.find_spec("inspect_ai") is None:
        raise ImportError(EXTRA)


def _module_in(path: Path) -> ModuleType:
    """Not as inspect-ai loads a file: it changes the working directory for it, which is the whole process's."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: it is no Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inspect_evaluation(
    name: str,
    tasks: Sequence[Task | str],
    renderer: Renderer,
    *,
    sampling: SamplingParams | None = None,
    every: int = 20,
    limit: int | None = None,
    epochs: int | None = None,
    concurrency: int = 16,
    log_dir: Path | None = None,
    seed: int = 0,
    fail_on_error: bool | float = True,
    blocking: bool = False,
) -> Evaluation:
    """Plays tasks of inspect-ai, and reports their metrics as `<task>/<metric>`, or `<task>/<scorer>/<metric>` where there are several scorers, with `<task>/samples` and `<task>/errors`.

    - `sampling`: what holds where a task sets nothing itself. An answer ends at the model's context; a conversation that has outgrown it stops with inspect's `model_length`.
    - `limit`, `epochs`: as inspect-ai has them: the first samples alone, and how often each is played. `concurrency`: samples at once.
    - `log_dir`: where inspect-ai's logs are kept; None: nowhere.
    - `seed`: each evaluation asks with the same seeds, so that two of them differ by the policy alone.
    - `fail_on_error`: True: a sample that fails fails the evaluation, and the run with it; a share or a count: so many may; False: none does.

    A run in which it fails ends with InspectTaskFailed. Raises ImportError naming the extra where inspect-ai is missing, ValueError where there are no tasks.
    """
    require_inspect()
    if not tasks:
        raise ValueError(f"evaluation '{name}': there are no tasks")
    options: dict[str, Any] = {
        "limit": limit,
        "epochs": epochs,
        "max_samples": concurrency,
        "max_connections": concurrency,
        "fail_on_error": fail_on_error,
    }

    async def run(policy: EvaluatedPolicy) -> Mapping[str, float]:
        completer = PolicyCompleter(policy, renderer, max_context=getattr(policy, "max_context", None))
        async with guest_loop("inspect-ai") as guest:

            async def evaluate() -> Mapping[str, float]:
                model = inspect_model(completer, params=sampling, seed=seed, where=guest.home)
                return await _evaluate(tasks, model, log_dir, options)

            return await guest.run(evaluate)

    return Evaluation(name, run, every=every, blocking=blocking)


async def _evaluate(
    tasks: Sequence[Task | str], model: Model, log_dir: Path | None, options: Mapping[str, Any]
) -> dict[str, float]:
    """On the guest's loop."""
    from inspect_ai import eval_async
    from inspect_ai.util._display import init_display_type

    while not _one_at_a_time.acquire(blocking=False):  # noqa: ASYNC110  (the other one may be on another loop)
        await asyncio.sleep(0.05)
    try:
        with tempfile.TemporaryDirectory(prefix="callsheet-inspect-") as nowhere, _process_left_as_it_is():
            init_display_type("none")  # the run has a display of its own
            logs = await eval_async(
                list(tasks),
                model=model,
                log_dir=str(log_dir or nowhere),
                ctl_server=False,
                score_display=False,
                **options,
            )
            return metrics_of(logs)
    finally:
        _one_at_a_time.release()


@contextmanager
def _process_left_as_it_is() -> Iterator[None]:
    """inspect-ai sets up logging and the exception hook of the whole process, for a program that is its own."""
    root = logging.getLogger()
    handlers, level, hook = list(root.handlers), root.level, sys.excepthook
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        sys.excepthook = hook


def metrics_of(logs: Sequence[EvalLog]) -> dict[str, float]:
    """The metrics of an evaluation's logs. Raises InspectTaskFailed where a task was not finished."""
    found: dict[str, float] = {}
    for log in logs:
        task = log.eval.task
        if log.status != "success":
            why = log.error.message if log.error is not None else f"it ended with the status {log.status}"
            raise InspectTaskFailed(f"inspect task {task}: {why}")
        if log.results is None:  # every sample failed, and was allowed to
            found |= {f"{task}/samples": 0.0, f"{task}/errors": float(len(log.samples or ()))}
            continue
        scores = log.results.scores
        for score in scores:
            prefix = task if len(scores) == 1 else f"{task}/{score.name}"
            found |= {f"{prefix}/{metric}": float(value.value) for metric, value in score.metrics.items()}
        done, planned = log.results.completed_samples, log.results.total_samples
        found |= {f"{task}/samples": float(done), f"{task}/errors": float(planned - done)}
    return found
