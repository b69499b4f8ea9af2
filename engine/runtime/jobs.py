"""Jobs for worker processes: how a function is named so that another process finds it, and what may become of it there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from engine.runtime.worker import Failure, describe, resolve

Outcome = Any
"""What a job returned, or the JobError it ended with."""
_found: dict[str, Callable[..., Any]] = {}


class JobError(Exception):
    """A job gave no result. The other jobs, and the pool, go on."""


class BudgetExceeded(JobError):
    """The job ran longer than its budget, and was killed."""


class JobFailed(JobError):
    """The job raised an exception. The message ends with the traceback from the worker."""

    def __init__(self, function: str, failure: Failure) -> None:
        self.function = function
        self.kind = failure.kind
        """Qualified name of the exception's class; builtins without a module: `ValueError`, `json.decoder.JSONDecodeError`."""
        self.message = failure.message
        self.traceback = failure.traceback
        super().__init__(
            f"{function} raised {failure.kind}: {failure.message}\n\nin the worker process:\n{failure.traceback.rstrip()}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.function, Failure(self.kind, self.message, self.traceback))


class WorkerDied(JobError):
    """The process that ran the job ended in the middle of it: a segfault, `os._exit`, the kernel's out-of-memory killer."""


class QueueTimeout(JobError):
    """No worker became free in time; the job was not started."""


class PoolClosed(JobError):
    """The pool was closed while the job ran or waited, or before."""


def name_of(function: Callable[..., Any]) -> str:
    """`module:qualname`. Raises TypeError for what another process cannot import."""
    module, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    name = f"{module}:{qualname}"
    if _found.get(name) is not function:
        try:
            found = resolve(name)
        except (ImportError, AttributeError, ValueError):
            found = None
        if found != function:
            raise TypeError(
                f"{function!r} cannot be run in another process, which would not find it by its name: pass a function defined at the "
                "top level of a module (not a lambda, a nested function, a method of an object or a partial), and the rest as arguments"
            )
        _found[name] = function
    return name


def run_inline(name: str, args: Sequence[Any]) -> Outcome:
    """The outcome of a job in this process."""
    try:
        return resolve(name)(*args)
    except Exception as error:  # noqa: BLE001  (as in a worker)
        return JobFailed(name, describe(error))
