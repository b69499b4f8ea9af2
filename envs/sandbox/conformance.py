"""What every sandbox promises, as checks that any adapter can be run through, third parties' included.

With pytest, one test a check (and a gap shows as a skip with its reason):

    @pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
    async def test_conformance(check):
        if reason := conformance.gap(check, SUBJECT):
            pytest.skip(reason)
        await check(SUBJECT)

Without pytest: `print(await conformance.examine(SUBJECT))`. A sandbox that waits for processes or a server needs an event loop with a real clock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager

import anyio
import attrs

from engine.conformance import NotConforming, Report, declared_gap, require, run_checks
from envs.sandbox.port import ASPECTS, IsolationUnavailable, Limits, RunRequest, Sandbox


@attrs.frozen
class Subject:
    """A sandbox under test."""

    open: Callable[[], AbstractAsyncContextManager[Sandbox]]
    """Opens it afresh."""
    seconds: float = 2.0
    """A wall clock within which a program starts and prints, also on a busy machine."""
    gaps: Mapping[str, str] = attrs.field(factory=dict)
    """Checks it does not pass by design: name of the check → why. They are reported, not run."""


Check = Callable[[Subject], Awaitable[None]]


async def prints_what_the_program_prints(subject: Subject) -> None:
    """stdin, stdout, stderr and the exit code are the program's own, whatever characters they hold."""
    text = "enots ↯ \x00 é\n"
    code = "import sys\nsys.stdout.write(sys.stdin.read())\nsys.stderr.write('oops ↯')\nsys.exit(3)\n"
    async with subject.open() as sandbox:
        outcome = await sandbox.run(RunRequest(code, stdin=text))
    require(outcome.stdout == text, f"stdout is {outcome.stdout!r}, and stdin was {text!r}")
    require("oops ↯" in outcome.stderr, f"stderr is {outcome.stderr!r}")
    require(
        (outcome.ending, outcome.exit_code) == ("exited", 3), f"the program exited with code 3, not: {outcome.reason}"
    )
    require(not outcome.ok, "exit code 3 is not ok")


async def tells_an_error(subject: Subject) -> None:
    """An exception ends the program with code 1 and its traceback."""
    async with subject.open() as sandbox:
        outcome = await sandbox.run(RunRequest("def f():\n    raise ValueError('a pity')\nf()\n"))
    require((outcome.ending, outcome.exit_code) == ("exited", 1), f"exit code 1 is due, not: {outcome.reason}")
    require("ValueError: a pity" in outcome.stderr, f"stderr is {outcome.stderr!r}")


async def is_main(subject: Subject) -> None:
    """The program is `__main__`, and finds `exit`."""
    async with subject.open() as sandbox:
        outcome = await sandbox.run(
            RunRequest("if __name__ == '__main__':\n    print('main')\n    exit(0)\nprint('on')")
        )
    require(outcome.ok and outcome.stdout == "main\n", f"{outcome}")


async def lays_files_beside_it(subject: Subject) -> None:
    """The request's files lie in the working directory, text and bytes, and modules among them can be imported."""
    files: dict[str, str | bytes] = {
        "data/a.txt": "one\n",
        "b.bin": b"\x00\xff",
        "helper/__init__.py": "",
        "helper/value.py": "VALUE = 7\n",
    }
    code = (
        "from helper.value import VALUE\nprint(open('data/a.txt').read().strip(), open('b.bin', 'rb').read(), VALUE)\n"
    )
    async with subject.open() as sandbox:
        outcome = await sandbox.run(RunRequest(code, files=files))
    require(outcome.stdout == "one b'\\x00\\xff' 7\n", f"{outcome}")


async def ends_at_the_wall_clock(subject: Subject) -> None:
    """A program that sleeps on is ended, and what it had printed is kept."""
    code = "import time\nprint('begun', flush=True)\ntime.sleep(600)\n"
    async with subject.open() as sandbox:
        began = anyio.current_time()
        outcome = await sandbox.run(RunRequest(code, limits=Limits(wall_clock=subject.seconds)))
        took = anyio.current_time() - began
    require(outcome.ending == "wall_clock" and outcome.timed_out, f"{outcome.reason}")
    require(outcome.exit_code is None and not outcome.ok, f"{outcome}")
    require(outcome.stdout == "begun\n", f"stdout is {outcome.stdout!r}")
    require(subject.seconds * 0.9 <= took <= subject.seconds + 5, f"it took {took:.1f} s")


async def cuts_the_output(subject: Subject) -> None:
    """No more of an endless output is kept than was asked for."""
    code = "while True:\n    print('x' * 10000)\n"
    async with subject.open() as sandbox:
        outcome = await sandbox.run(RunRequest(code, limits=Limits(wall_clock=3 * subject.seconds, output=5000)))
    require(len(outcome.stdout) <= 5000, f"{len(outcome.stdout)} characters were kept")
    require(not outcome.ok, f"{outcome.reason}")


async def limits_memory(subject: Subject) -> None:
    """A program that takes more memory than it may does not end well."""
    code = "hoard = []\nwhile True:\n    hoard.append(bytearray(1 << 24))\n"
    async with subject.open() as sandbox:
        outcome = await sandbox.run(RunRequest(code, limits=Limits(wall_clock=5 * subject.seconds, memory=64)))
    require(not outcome.ok and not outcome.timed_out, f"{outcome.reason}")


async def names_the_signal(subject: Subject) -> None:
    """A program that a signal ends did not exit."""
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    async with subject.open() as sandbox:
        outcome = await sandbox.run(RunRequest(code))
    require((outcome.ending, outcome.signal) == ("signalled", "SIGSEGV"), f"{outcome}")


async def keeps_runs_apart(subject: Subject) -> None:
    """A run finds nothing of an earlier one."""
    code = "import os\nprint(sorted(os.listdir('.')))\nopen('left.txt', 'w').write('x')\n"
    async with subject.open() as sandbox:
        first = await sandbox.run(RunRequest(code))
        second = await sandbox.run(RunRequest(code))
    require(first.ok and first.stdout == second.stdout, f"{first.stdout!r}, then {second.stdout!r}")


async def runs_concurrently(subject: Subject) -> None:
    """Many requests at once each get their own outcome."""
    outcomes = {}
    async with subject.open() as sandbox:

        async def run(number: int) -> None:
            outcomes[number] = await sandbox.run(RunRequest("print(input())", stdin=str(number)))

        async with anyio.create_task_group() as group:
            for number in range(12):
                group.start_soon(run, number)
    wrong = {number: outcome for number, outcome in outcomes.items() if outcome.stdout != f"{number}\n"}
    require(not wrong, f"{wrong}")


async def can_be_cancelled(subject: Subject) -> None:
    """A cancelled run is over when the call is, and the sandbox serves on."""
    async with subject.open() as sandbox:
        began = anyio.current_time()
        with anyio.move_on_after(subject.seconds / 2):
            await sandbox.run(RunRequest("while True: pass", limits=Limits(wall_clock=60, cpu=60)))
        took = anyio.current_time() - began
        outcome = await sandbox.run(RunRequest("print(1)"))
    require(took < subject.seconds / 2 + 5, f"cancelling took {took:.1f} s")
    require(outcome.ok, f"after a cancelled run: {outcome}")


async def says_what_it_isolates(subject: Subject) -> None:
    """Every aspect is isolated or missing with a reason, and what is missing cannot be required."""
    async with subject.open() as sandbox:
        isolation = sandbox.isolation()
    require(
        {*isolation.isolated} | {*isolation.missing} == {*ASPECTS} and not {*isolation.isolated} & {*isolation.missing},
        f"each of {', '.join(ASPECTS)} is to be named once: {isolation}",
    )
    require(all([*isolation.isolated.values(), *isolation.missing.values()]), "each has a reason")
    isolation.require(tuple(isolation.isolated))
    for aspect in isolation.missing:
        try:
            isolation.require((aspect,))
        except IsolationUnavailable as error:
            require("\n" not in str(error) and aspect in str(error), f"not one line that names it: {error}")
        else:
            raise NotConforming(f"{aspect} is missing, and can be required")


async def refuses_unknown_languages(subject: Subject) -> None:
    """A language that it does not have is an error, not an outcome."""
    async with subject.open() as sandbox:
        try:
            outcome = await sandbox.run(RunRequest("x", language="klingon"))
        except Exception as error:  # noqa: BLE001  (a ValueError here, a server's refusal there)
            require("klingon" in str(error), f"the message does not name the language: {error}")
        else:
            raise NotConforming(f"it ran klingon: {outcome}")


CHECKS: tuple[Check, ...] = (
    prints_what_the_program_prints,
    tells_an_error,
    is_main,
    lays_files_beside_it,
    ends_at_the_wall_clock,
    cuts_the_output,
    limits_memory,
    names_the_signal,
    keeps_runs_apart,
    runs_concurrently,
    can_be_cancelled,
    says_what_it_isolates,
    refuses_unknown_languages,
)
"""All of them, each independent of the others."""


def gap(check: Check, subject: Subject) -> str | None:
    """Why the subject declares that it does not pass this check; None: it does not declare so."""
    return declared_gap(CHECKS, check.__name__, subject)


async def examine(subject: Subject) -> Report:
    """Runs every check that is not a declared gap, one after the other, and reports on all of them."""
    return await run_checks(CHECKS, subject)
