"""The local sandbox: its promises, its life, and what happens when something dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from engine.runtime import simulate
from envs.sandbox import (
    IsolationUnavailable,
    Limits,
    RunOutcome,
    RunRequest,
    Sandbox,
    SandboxUnavailable,
    conformance,
)
from envs.sandbox.local import LocalSandbox, Means
from tests.envs.sandbox.leftovers import here, namespaces, none_beside
from tests.envs.sandbox.loops import LOOPS_OWN
from tests.thoroughness import THOROUGH

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="the local sandbox needs Linux")]
ROOT = Path(__file__).parents[3]
SLEEPER = RunRequest("import time; print('up', flush=True); time.sleep(600)", limits=Limits(wall_clock=60, cpu=60))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The real clock on both: processes take real time."""
    return str(request.param)


@pytest.fixture
async def sandbox() -> AsyncIterator[LocalSandbox]:
    async with LocalSandbox() as opened:
        yield opened


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
def test_conformance(check: conformance.Check) -> None:
    before = here()
    anyio.run(check, conformance.Subject(LocalSandbox, seconds=0.5))
    assert here().processes <= before.processes


def test_conformance_of_the_other_means() -> None:
    subject = conformance.Subject(lambda: LocalSandbox(means="restricted", require=()), seconds=0.5)
    report = anyio.run(conformance.examine, subject, backend="trio")
    assert not report.failed, str(report)


@pytest.mark.parametrize("check", conformance.CHECKS if THOROUGH else LOOPS_OWN, ids=lambda check: check.__name__)
def test_conformance_on_trio(check: conformance.Check) -> None:
    anyio.run(check, conformance.Subject(LocalSandbox, seconds=0.5), backend="trio")


def test_is_a_sandbox() -> None:
    assert isinstance(LocalSandbox(), Sandbox)


# ---- isolation


async def test_this_machine_isolates_all(sandbox: LocalSandbox) -> None:
    """With namespaces, everything; elsewhere `isolation()` says what is missing."""
    if not namespaces():
        pytest.skip("this machine has no namespaces for us")
    assert set(sandbox.isolation().missing) == set(), str(sandbox.isolation())


async def test_refuses_what_it_cannot_isolate() -> None:
    before = here()
    with pytest.raises(IsolationUnavailable, match=r"cannot isolate disk here \(disk: only the size") as caught:
        async with LocalSandbox(means="restricted", require={"disk", "network"}):
            pytest.fail("it was opened")
    assert "\n" not in str(caught.value)
    await none_beside(before)


async def test_refuses_to_require_what_there_is_not() -> None:
    with pytest.raises(ValueError, match="'internet' is nothing that can be isolated"):
        async with LocalSandbox(require={"internet"}):  # type: ignore[arg-type]
            pytest.fail("it was opened")


async def test_programs_see_no_environment_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_KEY", "5ecret")
    code = "import os\nprint(sorted(os.environ))\nprint('5ecret' in open('/proc/self/environ').read())\n"
    async with LocalSandbox() as sandbox:
        outcome = await sandbox.run(RunRequest(code))
    assert "SECRET_KEY" not in outcome.stdout
    assert outcome.stdout.endswith("False\n")


async def test_programs_hold_only_their_streams(sandbox: LocalSandbox) -> None:
    code = (
        "import os\nfds = os.listdir('/proc/self/fd')\nprint([f for f in fds if os.path.exists(f'/proc/self/fd/{f}')])"
    )
    read, write = os.pipe()
    os.set_inheritable(read, True)
    outcome = await sandbox.run(RunRequest(code))
    os.close(read)
    os.close(write)
    assert outcome.stdout == "['0', '1', '2']\n"


async def test_no_memory_of_earlier_programs(sandbox: LocalSandbox) -> None:
    """A program is a fork of the launcher, which has never held what it ran before."""
    await sandbox.run(RunRequest("x = 'MARK-' + 'first'  # MARK-first", stdin="MARK-first"))
    code = textwrap.dedent(
        """
        needle = b"MARK-" + b"first"
        found = 0
        with open("/proc/self/mem", "rb", 0) as memory:
            for line in open("/proc/self/maps"):
                span, rights = line.split()[:2]
                if "r" in rights and "[v" not in line:
                    begin, end = (int(part, 16) for part in span.split("-"))
                    try:
                        memory.seek(begin)
                        found += memory.read(end - begin).count(needle)
                    except (OSError, ValueError, OverflowError):
                        pass
        print(found)
        """
    )
    # The needle itself is there once or twice, put together; the other program's text is not.
    outcome = await sandbox.run(RunRequest(code, limits=Limits(memory=1024)))
    control = await sandbox.run(RunRequest(code + "# MARK-first", limits=Limits(memory=1024)))
    assert outcome.ok, outcome.stderr
    assert control.ok, control.stderr
    assert int(outcome.stdout) < int(control.stdout)
    assert int(outcome.stdout) <= 2


@pytest.mark.parametrize("means", ["namespaces", "restricted"])
async def test_installed_packages_are_out_of_reach(means: Means) -> None:
    """A benchmark's solutions, installed beside us, must not be there to be read."""
    code = """
import glob, sys
for root in ('/usr', '/usr/local', sys.base_prefix):
    for path in glob.glob(root + '/lib*/python3*/*-packages/**/*.*', recursive=True):
        try: print(path, len(open(path, 'rb').read()))
        except OSError: pass
print('[]')
import attr
"""
    async with LocalSandbox(means=means, require=()) as closed:
        outcome = await closed.run(RunRequest(code, limits=Limits(wall_clock=60, cpu=60)))
    assert outcome.stdout == "[]\n"
    assert "ModuleNotFoundError" in outcome.stderr
    async with LocalSandbox(packages=True, means=means, require=()) as open_:
        outcome = await open_.run(RunRequest("import attr; print(attr.__name__)"))
    assert outcome.stdout == "attr\n", outcome.stderr


# ---- what programs are given


async def test_preloaded_modules_and_a_library_of_ones_own(tmp_path: Path) -> None:
    package = tmp_path / "ours"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "answer.py").write_text("ANSWER = 42\n")
    async with LocalSandbox(library=[package], preload=["csv"]) as sandbox:
        request = RunRequest(
            "import sys\nprint('csv' in sys.modules)\nfrom ours.answer import ANSWER\nimport os\nprint(ANSWER, sorted(os.listdir('.')))",
            files={"ours/answer.py": "ANSWER = 42\n", "ours/__init__.py": ""},
        )
        known = await sandbox.run(request)
    async with LocalSandbox() as sandbox:
        unknown = await sandbox.run(request)
    assert known.stdout == "True\n42 ['main.py']\n", known.stderr
    assert unknown.stdout == "False\n42 ['main.py', 'ours']\n", unknown.stderr


async def test_other_languages_by_their_command() -> None:
    async with LocalSandbox(commands={"shell": ("/bin/sh",)}) as sandbox:
        outcome = await sandbox.run(RunRequest("read x; echo $x $(id -u); exit 4", "shell", stdin="7\n"))
    assert outcome.stdout == "7 1000\n"
    assert outcome.exit_code == 4


async def test_the_interpreter_ends_as_it_should(sandbox: LocalSandbox) -> None:
    """Handlers at exit and threads that are no daemons have their turn; what was printed is there; an exit message goes to stderr."""
    code = (
        "import atexit, threading, time, sys\natexit.register(print, 'bye')\n"
        "threading.Thread(target=lambda: (time.sleep(0.05), print('thread'))).start()\nsys.stdout.write('no newline ')\nsys.exit('sorry')"
    )
    outcome = await sandbox.run(RunRequest(code))
    assert (outcome.stdout, outcome.stderr, outcome.exit_code) == ("no newline thread\nbye\n", "sorry\n", 1)


async def test_says_what_a_run_took(sandbox: LocalSandbox) -> None:
    code = "import time\nx = bytearray(100 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1\nwhile time.process_time() < 0.3: pass"
    usage = (await sandbox.run(RunRequest(code))).usage
    assert usage.cpu is not None
    assert usage.wall_clock is not None
    assert usage.memory is not None
    assert 0.3 <= usage.cpu < 1.0
    assert usage.wall_clock >= usage.cpu * 0.9
    assert 100 < usage.memory < 180


async def test_files_must_lie_inside() -> None:
    for path in ("/etc/x", "../x", "a//b", "", "a/../../b"):
        with pytest.raises(ValueError, match="no relative path inside"):
            RunRequest("", files={path: ""})


# ---- life and death


async def test_at_most_so_many_at_once() -> None:
    code = "import time; print(time.time()); time.sleep(0.15); print(time.time())"
    spans = []
    async with LocalSandbox(concurrency=2) as sandbox:

        async def run() -> None:
            begin, end = map(float, (await sandbox.run(RunRequest(code))).stdout.split())
            spans.append((begin, end))

        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(run)
    assert max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans) <= 2


async def test_cancelled_runs_are_gone(sandbox: LocalSandbox) -> None:
    before = here()
    code = "import os, time\nfor _ in range(3): os.fork()\nos.setsid\ntime.sleep(600)"
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(sandbox.run, RunRequest(code, limits=Limits(wall_clock=60)))
        await anyio.sleep(0.3)
        assert len(here().processes) > len(before.processes)
        group.cancel_scope.cancel()
    await none_beside(before)


async def test_leaving_ends_what_runs() -> None:
    before = here()
    raised = []
    async with anyio.create_task_group() as group:

        async def run(sandbox: LocalSandbox) -> None:
            try:
                await sandbox.run(SLEEPER)
            except SandboxUnavailable as error:
                raised.append(str(error))

        async with LocalSandbox() as sandbox:
            group.start_soon(run, sandbox)
            await anyio.sleep(0.3)
    assert len(raised) == 1
    await none_beside(before)


async def test_a_dead_launcher_is_replaced(sandbox: LocalSandbox) -> None:
    errors = []

    async def run() -> None:
        with pytest.raises(SandboxUnavailable) as caught:
            await sandbox.run(SLEEPER)
        errors.append(caught.value)

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await anyio.sleep(0.3)
        assert sandbox._launcher is not None
        os.kill(sandbox._launcher._process.pid, signal.SIGKILL)
    assert len(errors) == 1
    outcome = await sandbox.run(RunRequest("print(1)"))
    assert outcome.stdout == "1\n"


async def test_must_be_open() -> None:
    sandbox = LocalSandbox()
    with pytest.raises(SandboxUnavailable, match="is not open"):
        await sandbox.run(RunRequest(""))
    with pytest.raises(SandboxUnavailable, match="is not open"):
        sandbox.isolation()


async def test_the_event_loop_goes_on(sandbox: LocalSandbox) -> None:
    """While programs run, and while a large one is handed over."""
    worst = 0.0
    big = RunRequest("import sys; print(len(sys.stdin.read()))", stdin="x" * (4 << 20), limits=Limits(disk=64))

    async def tick(scope: anyio.CancelScope) -> None:
        nonlocal worst
        last = time.thread_time()  # not the wall clock: a busy machine is not our doing
        with scope:
            while True:
                await anyio.sleep(0.002)
                now = time.thread_time()
                worst = max(worst, now - last)
                last = now

    async with anyio.create_task_group() as group:
        scope = anyio.CancelScope()
        group.start_soon(tick, scope)
        for request in [big, *[RunRequest("print(1)")] * 5]:
            assert (await sandbox.run(request)).ok
        scope.cancel()
    assert worst < 0.05


def test_if_we_die_everything_dies() -> None:
    """SIGKILL to the process that opened the sandbox, with a program running."""
    code = (
        "import anyio\nfrom envs.sandbox import *\nfrom envs.sandbox.local import LocalSandbox\n"
        "async def main():\n    async with LocalSandbox() as sandbox:\n"
        "        print('open', flush=True)\n        await sandbox.run(RunRequest('import time; time.sleep(600)', limits=Limits(wall_clock=600)))\n"
        "anyio.run(main)"
    )
    before = here()
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        deadline = time.monotonic() + 5
        while len(here().processes - before.processes) < 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        ours = here().processes - before.processes
        assert len(ours) >= 5  # it, the launcher and its inner process, the run's two
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    deadline = time.monotonic() + 5
    while (alive := [pid for pid in ours if Path("/proc", str(pid)).exists()]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive


def test_under_a_virtual_clock() -> None:
    """`simulate` runs programs inline: they take real time, and none of the clock's."""

    async def program() -> tuple[RunOutcome, float]:
        async with LocalSandbox() as sandbox:
            outcome = await sandbox.run(RunRequest("print(input())", stdin="x"))
            return outcome, anyio.current_time()

    before = here()
    outcome, now = simulate(program, seed=1).unwrap()
    assert outcome.stdout == "x\n"
    assert now == 0.0
    assert here().processes <= before.processes


# ---- another user


def _interpreter_of_nobody() -> str | None:
    """An interpreter of our version that the user `nobody` can run, with our packages."""
    if os.geteuid() != 0:
        return None
    for candidate in (sys.executable, f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"):
        try:
            done = _as_nobody(candidate, "import attrs, anyio, envs.sandbox.local")
        except OSError:
            continue
        if done.returncode == 0:
            return candidate
    return None


def _as_nobody(python: str, code: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    return subprocess.run(
        [python, "-c", code],
        cwd="/",
        env={"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PATH": "/usr/bin:/bin"},
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("means", ["namespaces", "restricted"])
def test_as_an_ordinary_user(means: str) -> None:
    """Without any privilege: the same conformance, with what such a user can isolate."""
    python = _interpreter_of_nobody()
    if python is None:
        pytest.skip("needs root, and an interpreter that the user nobody may run")
    code = (
        "import anyio\nfrom envs.sandbox import conformance\nfrom envs.sandbox.local import LocalSandbox\n"
        f"subject = conformance.Subject(lambda: LocalSandbox(means={means!r}, require={{'filesystem', 'network'}}))\n"
        "print(anyio.run(conformance.examine, subject))\n"
    )
    done = _as_nobody(python, code)
    assert done.returncode == 0, done.stderr
    assert "FAILED" not in done.stdout, done.stdout
    assert done.stdout.count("passed") == len(conformance.CHECKS)
