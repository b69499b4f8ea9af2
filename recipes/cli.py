"""The command line of every recipe: flags from a frozen attrs class, one clear line for what is wrong, exit codes as shells expect them.

    python -m recipes.rl_loop --steps 30 --schedule.max-staleness 2

    from recipes import cli
    cli.main(run, Config)        # run(config): an async function, or a plain one

Each field of the configuration is a flag, with the docstring below it as its help; nested classes give `--schedule.max-staleness`. A class that
configures must live in a module that is quick to import, and `run` imports what is heavy: `--help` pays for neither.

Exit codes: 0; 1 an error; 2 wrong flags or values; 130 interrupted (`stop_on_interrupt`).
"""

from __future__ import annotations

import inspect
import linecache
import os
import sys
import traceback
import warnings
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from recipes.flags import WrongFlags, parse
from recipes.interrupts import Interrupted, Interrupts, received, stop_on_interrupt
from recipes.terminal import warn

C = TypeVar("C")

TRACEBACK = "CALLSHEET_TRACEBACK"
ERROR_LOG = "error.log"
OURS = ("engine", "actors", "envs", "recipes")

__all__ = ["main", "parse", "report_errors_in", "stop_on_interrupt", "structure", "unstructure"]

_error_directory: ContextVar[list[Path] | None] = ContextVar("callsheet_error_directory", default=None)


def main(
    run: Callable[[C], Awaitable[object] | object],
    config: type[C] | C,
    *,
    name: str | None = None,
    args: Sequence[str] | None = None,
    backend: str = "asyncio",
) -> NoReturn:
    """Parses the command line into `config` (a class, or an instance whose values are the defaults), runs `run(config)`, and exits.

    `name`: of the command in messages; default: that of the module which runs. `backend`: anyio's, for an async `run`.
    """
    given = list(sys.argv[1:] if args is None else args)
    with_traceback = "--traceback" in given or os.environ.get(TRACEBACK, "") not in ("", "0")
    given = [word for word in given if word != "--traceback"]
    name = name or Path(inspect.getfile(run)).stem
    try:
        parsed = parse(config, given, name)
    except WrongFlags as wrong:
        warn(f"{name}: {wrong}")
        sys.exit(2)
    except BrokenPipeError:  # `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more as it exits
        sys.exit(0)
    with _plain_warnings(name):
        sys.exit(_run(run, parsed, name, backend, with_traceback=with_traceback))


def _run(
    run: Callable[[C], Awaitable[object] | object], config: C, name: str, backend: str, *, with_traceback: bool
) -> int:
    interrupts = Interrupts()
    received.set(interrupts)
    directories: list[Path] = []
    _error_directory.set(directories)
    try:
        if inspect.iscoroutinefunction(run):
            import anyio

            anyio.run(run, config, backend=backend)
        else:
            run(config)
    except BaseException as error:
        if _only(error, Interrupted):
            return interrupts.exit_code
        if _only(error, KeyboardInterrupt):
            warn(f"{name}: interrupted")
            return Interrupts().exit_code
        if not isinstance(error, Exception):
            raise
        _tell(error, name, directories, with_traceback=with_traceback)
        return 1
    return interrupts.exit_code if interrupts.count else 0


def report_errors_in(directory: Path) -> None:
    """Tells the command line where the run lies: the traceback of an error goes into its `error.log`."""
    directories = _error_directory.get()
    if directories is not None:
        directories.append(directory)


@contextmanager
def _plain_warnings(name: str) -> Iterator[None]:
    """Shows warnings of our own classes as one line without the place in the code, which means nothing to the user; others as ever."""
    show_others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        if category.__module__.partition(".")[0] in OURS:
            warn(f"{name}: warning: {message}")
        else:
            show_others(message, category, *place, **options)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


# ---- errors


def _tell(error: Exception, name: str, directories: Sequence[Path], *, with_traceback: bool) -> None:
    """Each error in the (perhaps nested) groups as one message; the traceback where it was asked for, or where the error is no message of ours."""
    leaves = list(_leaves(error))
    expected = all(_is_ours(leaf) for leaf in leaves)
    if with_traceback or not expected:
        traceback.print_exception(error)
    for leaf in leaves:
        warn(f"{name}: {_message(leaf)}")
    log = _write_log(error, directories)
    if log is not None:
        warn(f"{name}: the traceback is in {log}")
    elif not with_traceback and expected:
        warn(f"{name}: --traceback shows where this came from")


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _only(error: BaseException, kind: type[BaseException]) -> bool:
    return all(isinstance(leaf, kind) for leaf in _leaves(error))


def _is_ours(error: BaseException) -> bool:
    """Whether the message is made for people: our own classes, a ValueError of ours, and what a file system or a missing extra says."""
    if isinstance(error, ValueError) and _raised_by_us(error):
        return True
    return type(error).__module__.partition(".")[0] in OURS or isinstance(error, OSError | ImportError)


def _raised_by_us(error: BaseException) -> bool:
    """Whether a `raise` statement in our own packages raised it: not a call that went wrong there."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    frame = trace.tb_frame
    line = linecache.getline(frame.f_code.co_filename, trace.tb_lineno)
    # `python -m recipes.rl_loop` calls that module __main__; its spec still has the name.
    module = getattr(frame.f_globals.get("__spec__"), "name", None) or str(frame.f_globals.get("__name__", ""))
    return module.partition(".")[0] in OURS and line.strip().startswith("raise ")


def _message(error: BaseException) -> str:
    text = str(error) or "no message"
    if not _is_ours(error) or (isinstance(error, ImportError) and not _raised_by_us(error)):
        text = f"{type(error).__name__}: {text}"
    notes = [note for note in getattr(error, "__notes__", ()) if "\n" not in note]
    return f"{text} ({'; '.join(notes)})" if notes else text


def _write_log(error: Exception, directories: Sequence[Path]) -> Path | None:
    for directory in reversed(directories):
        log = directory / ERROR_LOG
        try:
            with log.open("a", encoding="utf-8") as file:
                traceback.print_exception(error, file=file)
        except OSError:
            continue
        return log
    return None


# ---- config.json


def unstructure(config: object) -> dict[str, Any]:
    """The configuration as JSON values."""
    return _converter().unstructure(config)  # type: ignore[no-any-return]


def structure(values: Mapping[str, Any], config: type[C]) -> C:
    """The configuration that `unstructure` took apart. Raises ValueError naming each value that does not fit."""
    from cattrs import BaseValidationError, transform_error

    try:
        structured: C = _converter().structure(values, config)
    except BaseValidationError as error:
        raise ValueError("; ".join(transform_error(error, path="config", format_exception=_said))) from error
    return structured


def _said(error: BaseException, kind: type | None) -> str:
    """What a class's own check says of a value; cattrs' words for everything else."""
    from cattrs.v import format_exception

    return str(error) if isinstance(error, ValueError) and str(error) else format_exception(error, kind)


def _converter() -> Any:
    from cattrs.preconf.json import make_converter

    return make_converter(forbid_extra_keys=True)
