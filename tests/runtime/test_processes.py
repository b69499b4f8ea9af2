"""Worker processes: real ones, on the real clock."""

from __future__ import annotations

import functools
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import attrs
import pytest

from engine.runtime import simulate
from engine.runtime.jobs import BudgetExceeded, JobError, JobFailed, PoolClosed, QueueTimeout, WorkerDied
from engine.runtime.processes import WorkerPool
from tests.runtime import worker_jobs as jobs

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The real clock on both: processes take real time."""
    return str(request.param)


@attrs.define
class Gap:
    """What was measured, in seconds."""

    worst: float = 0.0
    """Longest time for which the event loop ran nothing else."""
    took: float = 0.0
    next_took: float = 0.0


async def quietest(measure: Callable[[], Awaitable[Gap]], tries: int = 3) -> Gap:
    """The best of a few measurements: what our own code does shows in each of them, a busy machine does not."""
    best = await measure()
    for _ in range(tries - 1):
        if best.worst < 0.05 and best.took < 1.2 and best.next_took < 0.2:
            break
        best = min(best, await measure(), key=lambda gap: (gap.worst, gap.took))
    return best


@asynccontextmanager
async def ticking() -> AsyncIterator[Gap]:
    """Measures the event loop's gaps while the block runs."""
    gap = Gap()

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await anyio.sleep(0.002)
            now = time.perf_counter()
            gap.worst = max(gap.worst, now - last - 0.002)
            last = now

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        yield gap
        group.cancel_scope.cancel()


def alive(pid: int) -> bool:
    """Whether the process runs: a zombie, or a process that somebody else's init has yet to reap, does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


async def until_dead(pid: int) -> None:
    with anyio.fail_after(5):
        while alive(pid):  # noqa: ASYNC110  (it is no child of ours: there is nothing to wait on)
            await anyio.sleep(0.01)


async def until_busy(pid: int) -> None:
    """Waits until the process has used the CPU for some 0.2 s more."""

    def ticks() -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])

    begun = ticks()
    with anyio.fail_after(20):
        while ticks() < begun + 20:  # noqa: ASYNC110
            await anyio.sleep(0.02)


def children() -> set[int]:
    """Child processes of this one, zombies included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class TestResults:
    async def test_value_comes_back_from_another_process(self) -> None:
        async with WorkerPool(1, spares=0) as pool:
            assert await pool.run(jobs.add, 2, 3, budget=5.0) == 5
            assert await pool.run(operator.mul, 6, 7) == 42
            assert await pool.run(jobs.my_pid) not in (os.getpid(), 0)

    async def test_arguments_and_results_larger_than_any_pipe(self) -> None:
        async with WorkerPool(1, spares=0) as pool:

            async def measure() -> Gap:
                async with ticking() as gap:
                    assert await pool.run(jobs.length_of, "x" * 4_000_000) == 4_000_000
                    assert await pool.run(jobs.long_text, 20_000_000) == "x" * 20_000_000
                return gap

            assert (await quietest(measure)).worst < 0.05

    async def test_exception_comes_back_with_its_traceback(self) -> None:
        async with WorkerPool(1, spares=0) as pool:
            with pytest.raises(JobFailed) as caught:
                await pool.run(jobs.square, -3)
            assert await pool.run(jobs.square, 3) == 9  # by the same worker
            assert pool.statistics().started == 1
        error = caught.value
        assert (error.kind, error.message) == ("ValueError", "no square wanted of -3")
        assert "in square" in error.traceback
        assert 'raise ValueError(f"no square wanted of {x}")' in str(error)

    async def test_exit_in_a_job_is_a_failure_and_not_a_death(self) -> None:
        async with WorkerPool(1, spares=0) as pool:
            with pytest.raises(JobFailed, match="SystemExit: graded code said goodbye"):
                await pool.run(jobs.call_exit)
            assert pool.statistics().lost == 0

    async def test_result_that_cannot_be_sent(self) -> None:
        async with WorkerPool(1, spares=0) as pool:
            with pytest.raises(JobFailed, match="returned a Unpicklable, which cannot be sent"):
                await pool.run(jobs.return_unpicklable)
            assert await pool.run(jobs.add, 1, 1) == 2

    async def test_function_that_another_process_would_not_find(self) -> None:
        def nested() -> None: ...

        async with WorkerPool(1, spares=0) as pool:
            for function in (nested, lambda: None, functools.partial(jobs.add, 1), "text".upper):
                with pytest.raises(TypeError, match="top level of a module"):
                    await pool.run(function)

    async def test_module_that_cannot_be_imported_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        module = tmp_path / "only_here_once.py"
        module.write_text("def job():\n    return 1\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        import only_here_once  # type: ignore[import-not-found]

        module.write_text("raise ImportError('gone bad')\n")
        async with WorkerPool(1, spares=0) as pool:
            with pytest.raises(JobFailed, match="gone bad"):
                await pool.run(only_here_once.job)
            assert await pool.run(jobs.add, 1, 1) == 2

    async def test_printing_does_not_disturb_the_conversation(self, capfd: pytest.CaptureFixture[str]) -> None:
        async with WorkerPool(1, spares=0) as pool:
            assert await pool.run(jobs.print_something) is None
        captured = capfd.readouterr()
        assert captured.out == ""
        assert "printed by a job" in captured.err


class TestBudgets:
    async def test_six_second_job_with_a_budget_of_one(self) -> None:
        async with WorkerPool(1, spares=1) as pool:
            assert await pool.run(jobs.burn, 0.0) == "burnt"  # its module is loaded

            async def measure() -> Gap:
                async with ticking() as gap:
                    began = time.perf_counter()
                    with pytest.raises(BudgetExceeded, match=r"worker_jobs:burn exceeded its budget of 1 s"):
                        await pool.run(jobs.burn, 6.0, budget=1.0)
                    gap.took = time.perf_counter() - began
                    assert await pool.run(jobs.add, 1, 2, budget=1.0) == 3
                    gap.next_took = time.perf_counter() - began - gap.took
                return gap

            gap = await quietest(measure)
            statistics = pool.statistics()
        assert 1.0 <= gap.took < 1.2
        assert gap.worst < 0.05
        assert gap.next_took < 0.2, "the spare should have taken over"
        assert statistics.lost == statistics.started - 2

    async def test_job_that_holds_the_interpreter_lock_is_killed_too(self) -> None:
        async with WorkerPool(1, spares=0) as pool:
            with pytest.raises(BudgetExceeded):
                await pool.run(jobs.burn_holding_the_interpreter_lock, budget=0.1)
            assert await pool.run(jobs.add, 1, 2, budget=5.0) == 3  # by the replacement

    async def test_importing_the_module_does_not_count(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "slow_to_import.py").write_text(
            "import sys, time\n"
            "end = time.perf_counter() + (0.3 if sys.argv[0].endswith('worker.py') else 0.0)\n"
            "while time.perf_counter() < end: pass\n"
            "def job(): return 'done'\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        import slow_to_import  # type: ignore[import-not-found]

        async with WorkerPool(1, spares=0) as pool:
            assert await pool.run(slow_to_import.job, budget=0.2) == "done"

    async def test_waiting_in_the_queue_does_not_count(self) -> None:
        async with WorkerPool(1, spares=0) as pool, anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(functools.partial(pool.run, jobs.burn, 0.15, budget=0.4))

    async def test_queue_timeout(self) -> None:
        async with WorkerPool(1, spares=0) as pool, anyio.create_task_group() as group:
            group.start_soon(pool.run, jobs.burn, 0.3)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(QueueTimeout, match=r"no worker was free .* within 0.1 s"):
                await pool.run(jobs.add, 1, 2, queue_timeout=0.1)
            assert pool.statistics().waiting == 0
        with pytest.raises(PoolClosed, match="is not open"):
            await pool.run(jobs.add, 1, 2)

    @pytest.mark.parametrize(("then", "error"), [("burn", BudgetExceeded), ("leave", WorkerDied)])
    async def test_children_of_a_lost_job_die_with_it(self, tmp_path: Path, then: str, error: type[JobError]) -> None:
        pid_file = tmp_path / "pid"
        async with WorkerPool(1, spares=0) as pool:
            with pytest.raises(error):
                await pool.run(jobs.start_child_and, then, str(pid_file), budget=1.0)
        await until_dead(int(pid_file.read_text()))


class TestDeaths:
    @pytest.mark.parametrize(
        ("job", "how"),
        [
            ((jobs.segfault,), "was killed by SIGSEGV"),
            ((jobs.leave, 3), "exited with code 3"),
            ((jobs.kill_myself,), r"was killed by SIGKILL \(out of memory\?\)"),
        ],
    )
    async def test_a_dying_worker_fails_its_job_alone(self, job: tuple[Any, ...], how: str) -> None:
        outcomes: list[object] = []

        async def fails(pool: WorkerPool) -> None:
            with pytest.raises(WorkerDied, match=how):
                await pool.run(*job)

        async def works(pool: WorkerPool) -> None:
            outcomes.append(await pool.run(jobs.burn_if, 0.1, 7))

        async with WorkerPool(2, spares=0) as pool, anyio.create_task_group() as group:
            group.start_soon(fails, pool)
            group.start_soon(works, pool)
            group.start_soon(works, pool)
        assert outcomes == [7, 7]

    async def test_a_worker_that_died_while_idle_fails_nobody(self) -> None:
        async with WorkerPool(1, spares=0) as pool:
            pid = await pool.run(jobs.my_pid)
            os.kill(pid, signal.SIGKILL)
            await until_dead(pid)
            assert await pool.run(jobs.my_pid) != pid
            assert pool.statistics().lost == 1

    async def test_more_deaths_than_spares(self) -> None:
        async with WorkerPool(2, spares=1) as pool:
            for _ in range(4):
                with pytest.raises(WorkerDied):
                    await pool.run(jobs.leave, 1)
            assert await pool.run(jobs.add, 1, 1) == 2

    async def test_preload_that_cannot_be_imported(self) -> None:
        before = children(), open_files()
        with pytest.raises(WorkerDied, match="No module named 'no_such_module_here'"):
            async with WorkerPool(2, preload=["no_such_module_here"]):
                pytest.fail("the pool opened")
        assert (children(), open_files()) == before


class TestCancellation:
    async def test_a_cancelled_call_kills_its_job(self) -> None:
        async with WorkerPool(1, spares=1) as pool:
            pid = await pool.run(jobs.my_pid)
            began = time.perf_counter()
            with anyio.move_on_after(0.1):
                await pool.run(jobs.burn, 6.0)
            assert time.perf_counter() - began < 0.5
            await until_dead(pid)
            assert await pool.run(jobs.add, 1, 2) == 3

    async def test_a_cancelled_wait_takes_no_worker_away(self) -> None:
        async with WorkerPool(1, spares=0) as pool, anyio.create_task_group() as group:
            group.start_soon(pool.run, jobs.burn, 0.3)
            await anyio.wait_all_tasks_blocked()
            with anyio.move_on_after(0.05):
                await pool.run(jobs.add, 1, 2)
            assert pool.statistics().lost == 0
            assert await pool.run(jobs.add, 1, 2) == 3


class TestMap:
    async def test_results_in_order_with_failures_in_their_place(self) -> None:
        async with WorkerPool(2, spares=0) as pool:
            outcomes = await pool.map(jobs.square, [(x,) for x in range(-1, 200)], batch=7)
        assert isinstance(outcomes[0], JobFailed)
        assert outcomes[1:] == [x * x for x in range(200)]

    async def test_a_job_over_budget_fails_alone_in_its_batch(self) -> None:
        arguments = [(3.0 if x == 5 else 0.0, x) for x in range(12)]
        async with WorkerPool(1) as pool:
            outcomes = await pool.map(jobs.burn_if, arguments, budget=0.3, batch=12)
            assert pool.statistics().lost == 1
        assert isinstance(outcomes[5], BudgetExceeded)
        assert outcomes[:5] + outcomes[6:] == [x for x in range(12) if x != 5]

    async def test_the_budget_is_for_each_job_and_not_for_the_batch(self) -> None:
        async with WorkerPool(1, spares=0) as pool:
            assert await pool.map(jobs.burn_if, [(0.1, x) for x in range(5)], budget=0.3, batch=5) == list(range(5))

    async def test_a_job_that_takes_its_worker_down_fails_alone(self) -> None:
        async with WorkerPool(2) as pool:
            outcomes = await pool.map(jobs.leave_if, [(1 if x in (2, 3) else 0, x) for x in range(8)], batch=4)
        assert [x for x in range(8) if isinstance(outcomes[x], WorkerDied)] == [2, 3]
        assert [outcome for outcome in outcomes if not isinstance(outcome, JobError)] == [0, 1, 4, 5, 6, 7]

    async def test_a_pool_that_closes_meanwhile(self) -> None:
        outcomes: list[object] = []

        async def play(pool: WorkerPool) -> None:
            outcomes.extend(await pool.map(jobs.burn_if, [(0.0, 1), (6.0, 2), (0.0, 3)], batch=3))

        async with anyio.create_task_group() as group, WorkerPool(1, spares=0) as pool:
            group.start_soon(play, pool)
            await anyio.sleep(0.3)
        assert outcomes[0] == 1
        assert [type(outcome) for outcome in outcomes[1:]] == [PoolClosed, PoolClosed]

    async def test_nothing_to_do(self) -> None:
        async with WorkerPool(1, spares=0) as pool:
            assert await pool.map(jobs.add, []) == []


class TestClosing:
    async def test_nothing_is_left_behind(self) -> None:
        await anyio.to_thread.run_sync(int)  # anyio's own thread, if it is not there yet
        before = children(), open_files(), threading.active_count()
        async with WorkerPool(2, spares=1) as pool:
            assert len(children()) >= len(before[0]) + 2
            with pytest.raises(BudgetExceeded):
                await pool.run(jobs.burn, 6.0, budget=0.1)
            with pytest.raises(WorkerDied):
                await pool.run(jobs.segfault)
        assert (children(), open_files(), threading.active_count()) == before

    async def test_closing_ends_what_runs(self) -> None:
        before = children(), open_files()
        ended: list[str] = []

        async def told(pool: WorkerPool) -> None:
            with pytest.raises(PoolClosed):
                await pool.run(jobs.burn, 6.0)
            ended.append("told")

        async with anyio.create_task_group() as group, WorkerPool(1, spares=0) as pool:
            group.start_soon(told, pool)  # runs
            group.start_soon(told, pool)  # waits for a worker
            await anyio.sleep(0.1)
            began = time.perf_counter()
        assert ended == ["told", "told"]
        assert time.perf_counter() - began < 1.0
        assert (children(), open_files()) == before

    async def test_the_block_s_own_exception_comes_out_as_it_is(self) -> None:
        before = children()
        with pytest.raises(ZeroDivisionError):
            async with WorkerPool(1, spares=0):
                raise ZeroDivisionError
        assert children() == before

    async def test_cancelled_while_opening_and_while_open(self) -> None:
        before = children(), open_files()
        for patience in (0.0, 0.01, 0.2):
            with anyio.move_on_after(patience):
                async with WorkerPool(2, spares=1):
                    await anyio.sleep_forever()
            assert (children(), open_files()) == before


class TestTheParentsDeath:
    @pytest.fixture
    def anyio_backend(self) -> str:
        """What is tested runs in processes of its own."""
        return "asyncio"

    @pytest.mark.parametrize("job", ["my_pid", "burn, 60.0", "burn_holding_the_interpreter_lock"])
    async def test_workers_do_not_outlive_a_killed_parent(self, job: str) -> None:
        program = f"""
import anyio
from engine.runtime.processes import WorkerPool
from tests.runtime import worker_jobs as jobs

async def main():
    async with WorkerPool(1, spares=0) as pool:
        print(await pool.run(jobs.my_pid), flush=True)
        await pool.run(jobs.{job})
        await anyio.sleep_forever()

anyio.run(main)
"""
        with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:  # noqa: ASYNC220
            assert parent.stdout is not None
            worker = int(await anyio.to_thread.run_sync(parent.stdout.readline))
            assert alive(worker)
            if job != "my_pid":
                await until_busy(worker)
            parent.kill()
        await until_dead(worker)

    async def test_without_the_kernel_s_help_a_thread_notices(self) -> None:
        program = """
import sys, threading
from engine.runtime.worker import exit_at_hangup
threading.Thread(target=exit_at_hangup, args=(0,), daemon=True).start()
print("watching", flush=True)
while True:
    pass
"""
        with subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert await anyio.to_thread.run_sync(process.stdout.readline) == "watching\n"
            process.stdin.close()
            await until_dead(process.pid)
            assert process.wait() == 1


class TestScripts:
    def run_script(self, tmp_path: Path, ending: str) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "script.py"
        script.write_text(
            f"""
import anyio
from engine.runtime.processes import WorkerPool

class Answer:
    def __init__(self, value):
        self.value = value

def grade(answer):
    return Answer(answer.value + 1)

async def main():
    async with WorkerPool(1, spares=0) as pool:
        print((await pool.run(grade, Answer(41))).value)

{ending}
"""
        )
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=30, check=False
        )

    def test_a_script_s_own_functions_and_classes(self, tmp_path: Path) -> None:
        result = self.run_script(tmp_path, 'if __name__ == "__main__":\n    anyio.run(main)')
        assert (result.returncode, result.stdout) == (0, "42\n")

    def test_a_script_that_starts_when_imported_is_told_so(self, tmp_path: Path) -> None:
        result = self.run_script(tmp_path, "anyio.run(main)")
        assert result.returncode == 1
        assert 'put what it starts under `if __name__ == "__main__":`' in result.stderr


def test_on_a_virtual_clock_jobs_run_inline() -> None:
    before = children()

    async def program() -> tuple[int, object]:
        async with WorkerPool(2) as pool:
            value = await pool.run(jobs.my_pid, budget=0.001)
            assert children() == before
            with pytest.raises(JobFailed, match="no square wanted"):
                await pool.run(jobs.square, -1)
            return value, await pool.map(jobs.square, [(2,), (3,)])

    assert simulate(program).unwrap() == (os.getpid(), [4, 9])


def test_a_worker_imports_nothing_of_the_engine_or_its_dependencies() -> None:
    code = "import sys; sys.argv=['w']; from runpy import run_path; run_path(sys.argv_path, run_name='w')".replace(
        "sys.argv_path", repr(str(ROOT / "engine/runtime/worker.py"))
    )
    code += "; print(sorted({name.partition('.')[0] for name in sys.modules} & {'engine', 'anyio', 'trio', 'attr', 'numpy', 'asyncio', 'multiprocessing'}))"
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_pool_may_be_made_outside_the_event_loop(backend: str) -> None:
    pool = WorkerPool(1, spares=0)

    async def use() -> int:
        async with pool:
            return await pool.run(jobs.add, 1, 2)

    assert anyio.run(use, backend=backend) == 3


@pytest.mark.parametrize("arguments", [{"workers": 0}, {"workers": 1, "spares": -1}])
def test_wrong_sizes(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        WorkerPool(**arguments)
