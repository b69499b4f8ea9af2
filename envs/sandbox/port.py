"""The port between graders and whatever runs foreign programs: values, errors, and one method.

    async with local.LocalSandbox() as sandbox:
        outcome = await sandbox.run(RunRequest("print(input()[::-1])", stdin="stone"))
        assert outcome.ok and outcome.stdout == "enots\\n"

What a program does ends up in its `RunOutcome`, however badly it behaves: a crash, an endless loop and a fork bomb are outcomes. An exception of `run`
means that the program was not run, or that nobody knows how it ended; no conclusion about the program may be drawn from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Protocol, runtime_checkable

import attrs

Aspect = Literal["filesystem", "network", "processes", "user", "memory", "disk"]
"""What can be isolated:

filesystem   a program reads the interpreter and the system's libraries, and writes its own private directory; it sees no other file
network      it reaches no other machine, no service of this one, and no other program
processes    it sees and signals no process but its own, and all of its own end with the run
user         it has another user's rights than the caller, or none that the caller's user has beyond its own run
memory       the run's processes together stay below the limit (else: each of them alone)
disk         all that the run writes together stays below the limit (else: each file alone)
"""
ASPECTS: tuple[Aspect, ...] = ("filesystem", "network", "processes", "user", "memory", "disk")

Ending = Literal["exited", "signalled", "wall_clock", "cpu", "memory", "processes", "disk", "output"]
"""How a run ended: by itself (`exited`, `signalled`), or because a limit of that name was passed, whereupon all of it was killed."""

_positive: Any = attrs.validators.gt(0)


class SandboxError(Exception):
    """A program could not be run, or its end is unknown. Says nothing about the program."""


class IsolationUnavailable(SandboxError):
    """An isolation that was required cannot be had on this machine. Nothing was run."""


class SandboxUnavailable(SandboxError):
    """The sandbox does not answer, or answers with errors of its own; trying again later may help."""


@attrs.frozen
class Limits:
    """What one run may take. All of its processes together, where the sandbox can count them together (`Isolation`)."""

    wall_clock: float = attrs.field(default=10.0, validator=_positive)
    """Seconds from its start to its end."""
    cpu: float = attrs.field(default=10.0, validator=_positive)
    """CPU seconds. A busy machine does not make a program use more of them."""
    memory: int = attrs.field(default=512, validator=attrs.validators.ge(16))
    """MiB."""
    processes: int = attrs.field(default=32, validator=attrs.validators.ge(1))
    """Processes and threads at one time."""
    open_files: int = attrs.field(default=64, validator=attrs.validators.ge(16))
    """Open files of each process."""
    disk: int = attrs.field(default=32, validator=attrs.validators.ge(1))
    """MiB that it may write into its private directory, and the most that one file may hold."""
    output: int = attrs.field(default=1 << 20, validator=_positive)
    """Bytes of stdout that are kept, and as many of stderr. Writing more ends the run."""


@attrs.frozen
class RunRequest:
    """A program and what it is given."""

    code: str
    """Source of the main file."""
    language: str = "python"
    """Language of the program, as the sandbox calls it; every sandbox runs `python`."""
    stdin: str = ""
    files: Mapping[str, str | bytes] = attrs.field(factory=dict)
    """Further files in the program's working directory, by relative path."""
    limits: Limits = attrs.field(factory=Limits)

    def __attrs_post_init__(self) -> None:
        for path in self.files:
            parts = path.split("/")
            if not path or path.startswith("/") or "\0" in path or any(part in ("", ".", "..") for part in parts):
                raise ValueError(
                    f"RunRequest.files: {path!r} is no relative path inside the program's directory, such as 'data/a.txt'"
                )


@attrs.frozen
class Usage:
    """What a run took; None: the sandbox cannot tell."""

    wall_clock: float | None = None
    """Seconds."""
    cpu: float | None = None
    """Seconds, all processes that it waited for included."""
    memory: float | None = None
    """MiB at its peak."""


@attrs.frozen
class RunOutcome:
    """How a run ended."""

    ending: Ending
    exit_code: int | None = None
    """Exit code of a run that exited."""
    signal: str | None = None
    """Name of the signal that ended it, e.g. `SIGSEGV`."""
    stdout: str = ""
    """At most `limits.output` bytes; what is no UTF-8 is replaced."""
    stderr: str = ""
    usage: Usage = attrs.field(factory=Usage)

    @property
    def ok(self) -> bool:
        """It ended by itself, with exit code 0."""
        return self.ending == "exited" and self.exit_code == 0

    @property
    def timed_out(self) -> bool:
        """It took too long, by either clock."""
        return self.ending in ("wall_clock", "cpu")

    @property
    def reason(self) -> str:
        """How it ended, in words: `exited with code 1`, `was killed by SIGSEGV`, `passed its limit of CPU time`."""
        if self.ending == "exited":
            return f"exited with code {self.exit_code}"
        if self.ending == "signalled":
            return f"was killed by {self.signal}"
        names = {"wall_clock": "wall-clock time", "cpu": "CPU time"}
        return f"passed its limit of {names.get(self.ending, self.ending)}"


@attrs.frozen
class Isolation:
    """What a sandbox isolates here and now."""

    sandbox: str
    """The sandbox's name and the means it found, for people."""
    isolated: Mapping[Aspect, str]
    """Each aspect that is isolated, and by what."""
    missing: Mapping[Aspect, str] = attrs.field(factory=dict)
    """Each aspect that is not, and why."""

    def require(self, aspects: frozenset[Aspect] | set[Aspect] | tuple[Aspect, ...]) -> None:
        """Raises IsolationUnavailable, in one line, where one of `aspects` is not isolated; ValueError for a name that is none."""
        unknown = sorted(set(aspects) - set(ASPECTS))
        if unknown:
            raise ValueError(f"{unknown[0]!r} is nothing that can be isolated: choose among {', '.join(ASPECTS)}")
        lacking = [aspect for aspect in ASPECTS if aspect in set(aspects) and aspect not in self.isolated]
        if lacking:
            why = "; ".join(f"{aspect}: {self.missing.get(aspect, 'not offered')}" for aspect in lacking)
            raise IsolationUnavailable(
                f"{self.sandbox} cannot isolate {', '.join(lacking)} here ({why}). Run on a machine that allows it, use another sandbox, or leave "
                f"{'it' if len(lacking) == 1 else 'them'} out of `require` if these programs may be trusted that far"
            )

    def __str__(self) -> str:
        lines = [self.sandbox]
        lines += [f"  {aspect:<11} isolated: {self.isolated[aspect]}" for aspect in ASPECTS if aspect in self.isolated]
        lines += [f"  {aspect:<11} NOT isolated: {why}" for aspect, why in self.missing.items()]
        return "\n".join(lines)


@runtime_checkable
class Sandbox(Protocol):
    """Runs programs. May be called concurrently; how many run at once is the sandbox's own setting."""

    async def run(self, request: RunRequest, /) -> RunOutcome:
        """Runs the program to its end, or to a limit. When it returns, raises or is cancelled, nothing of the run is left.

        Raises SandboxError where the program could not be run; ValueError for a language that it does not have.
        """
        ...

    def isolation(self) -> Isolation:
        """What is isolated, and what is not."""
        ...

    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
