"""The displays: what they say, where, and that nothing in a row or a note upsets them."""

from __future__ import annotations

import io
import math
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, Group

from actors.reports import Observer
from engine.telemetry import display
from engine.telemetry.figures import Progress, clock, number, printable, short, sparkline
from engine.telemetry.live_panel import LivePanel, panel_lines

ROOT = Path(__file__).parents[2]


def row(step: int, **changes: Any) -> dict[str, float]:
    base = {
        "step": step,
        "env/all/reward/total": 0.5 + 0.04 * step,
        "busy/sampler": 0.83,
        "busy/trainer": 0.41,
        "tokens/per_second": 12_345.0,
        "staleness/mean": 0.8,
        "staleness/max": 0.0,
        "groups/trained": 32,
        "groups/filtered": 0,
        "groups/failed": 0,
        "optim/loss": -0.02,
        "optim/grad_norm": 0.53,
        "time/total": 2.0,
        "time/elapsed": 2.0 * (step + 1),
    }
    return base | changes


def lines_of(*rows: dict[str, float], total: int = 10) -> list[str]:
    stream = io.StringIO()
    with display.open(total, "test", stream=stream) as shown:
        for one in rows:
            shown.step(one)
    return stream.getvalue().splitlines()


class TestLines:
    def test_one_aligned_line_a_step(self) -> None:
        stream = io.StringIO()
        with display.open(10, "rl_loop", stream=stream) as shown:
            observer: Observer = shown
            observer.step(row(0))
            observer.step(row(8, **{"busy/sampler": 1.0, "staleness/max": 2, "groups/filtered": 3, "groups/failed": 1}))
            observer.step(row(9, **{"tokens/per_second": 9.5}))
            observer.evaluation(
                10,
                "held out",
                {"all/reward/total": 0.91234, "sums/reward/total": 0.91234, "carry/reward/total": 0.5, "n": 64},
            )
            observer.note("checkpoint 10 saved")
        assert stream.getvalue().splitlines() == [
            "rl_loop: 10 steps",
            "step  1/10  reward  0.500  sampler  83%  trainer  41%  12.3k tok/s   0:02  ETA  0:18",
            "step  9/10  reward  0.820  sampler 100%  trainer  41%  12.3k tok/s   0:18  ETA  0:02  stale 0.8 (max 2)  filtered 3  failed 1",
            "step 10/10  reward  0.860  sampler  83%  trainer  41%    9.5 tok/s   0:20  ETA  0:00",
            "  evaluation 'held out' after step 10: reward 0.912, carry 0.500, n 64",
            "  checkpoint 10 saved",
        ]

    def test_a_supervised_run_shows_its_loss(self) -> None:
        assert lines_of({"step": 0, "optim/loss": 2.5})[1] == "step  1/10  loss   2.5000   -:--  ETA  -:--"

    def test_the_mean_nll_says_more_than_a_summed_loss(self) -> None:
        found = {
            "step": 0,
            "optim/loss": 2844.6,
            "train/mean_nll": 2.5,
            "busy/sampler": 0.0,
            "busy/trainer": 0.9,
            "tokens/per_second": 0.0,
        }
        assert lines_of(found)[1] == "step  1/10  nll   2.5000  trainer  90%   -:--  ETA  -:--"
        assert panel(80, found).splitlines()[1:3] == ["nll 2.500", "trainer ━━━━━━━━━─  90% busy"]

    def test_only_every_so_many_steps_where_that_is_asked_for(self) -> None:
        stream = io.StringIO()
        with display.open(10, "test", every=4, stream=stream) as shown:
            for step in range(10):
                shown.step(row(step))
        assert [line[:10] for line in stream.getvalue().splitlines()[1:]] == [
            "step  1/10",
            "step  4/10",
            "step  8/10",
            "step 10/10",
        ]

    def test_what_is_missing_or_no_number_upsets_nothing(self) -> None:
        assert lines_of({})[1].startswith("step  1/10")
        odd: Any = row(0, **{"env/all/reward/total": math.nan, "tokens/per_second": math.inf, "busy/sampler": None})
        assert "reward    nan  sampler nan%" in lines_of(odd)[1]

    def test_rewards_from_comparisons_have_no_level_and_distances_are_shown(self) -> None:
        compared = row(0, **{"env/all/comparisons": 4.0, "env/all/ties": 0.25, "kl_policy_base": 0.5})
        assert lines_of(compared)[1].startswith("step  1/10  ties  25%  kl to reference  0.500  sampler")
        taught = row(0, teacher_kl=1.25)
        assert "reward  0.500  teacher kl  1.250  sampler" in lines_of(taught)[1]

    def test_a_reader_that_has_gone_ends_no_run(self) -> None:
        class Gone(io.StringIO):
            def write(self, text: str) -> int:
                raise BrokenPipeError

        with display.open(3, "test", stream=Gone()) as shown:
            shown.step(row(0))
            shown.note("still here")

    def test_a_stream_that_knows_ascii_alone(self) -> None:
        raw = io.BytesIO()
        with display.open(3, "naïve", stream=io.TextIOWrapper(raw, encoding="ascii")) as shown:
            shown.note("→ done\x1b[31m\r")
            assert raw.getvalue() == b"na?ve: 3 steps\n  ? done [31m \n"

    def test_rich_is_not_loaded_for_them(self) -> None:
        code = (
            "import sys\nfrom engine.telemetry import display\n"
            "with display.open(1, 'x') as shown: shown.step({'step': 0})\n"
            "print('rich' in sys.modules)"
        )
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert result.stdout.splitlines()[-1] == "False"


def panel(width: int, *rows: dict[str, float], plain: bool = False) -> str:
    progress = Progress(20, "rl_loop")
    for one in rows:
        progress.add(one)
    console = Console(width=width, file=io.StringIO(), record=True, force_terminal=True)
    console.print(Group(*panel_lines(progress, width, plain=plain)))
    return console.export_text()


class TestPanel:
    def test_what_it_says(self) -> None:
        text = panel(120, row(0), row(1), row(2, **{"staleness/max": 2, "groups/failed": 1}))
        first, second, third, fourth = text.splitlines()
        assert first.startswith("rl_loop  step 3/20")
        assert first.endswith("15%   0:06 elapsed, ETA 0:34")
        assert second == "reward 0.580  ▁▅█   first 0.500, best 0.580   loss -0.02"
        assert third == "sampler ━━━━━━━━──  83% busy   trainer ━━━━──────  41% busy   12.3k tokens/s"
        assert fourth == "staleness 0.800, max 2   groups 32 trained, 0 filtered, 1 failed   grad norm 0.530"

    def test_rewards_from_comparisons_have_no_level_and_distances_are_shown(self) -> None:
        compared = row(0, **{"env/all/comparisons": 4.0, "env/all/ties": 0.25, "kl_policy_base": 0.5})
        assert panel(120, compared).splitlines()[1].startswith("ties 25%   kl to reference 0.500")
        assert "teacher kl 1.250" in panel(120, row(0, teacher_kl=1.25))

    def test_before_the_first_step(self) -> None:
        assert "waiting for the first step" in panel(80)

    @pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
    def test_no_line_is_wider_than_the_terminal(self, width: int) -> None:
        text = panel(width, *(row(step, **{"staleness/max": 2}) for step in range(40)))
        assert max(map(len, text.splitlines())) <= width
        assert "reward" in text

    def test_plain_terminals_get_ascii(self) -> None:
        assert panel(100, row(0), row(1), plain=True).isascii()

    def test_what_is_missing_or_no_number_upsets_nothing(self) -> None:
        odd: Any = row(0, **{"env/all/reward/total": math.nan, "busy/sampler": math.nan, "optim/loss": None})
        assert "nan" in panel(80, odd)
        assert "step 1/20" in panel(80, {})

    def test_no_thread_is_started(self) -> None:
        before = threading.active_count()
        with LivePanel(Progress(3, "x"), io.StringIO(), width=60) as shown:
            shown.step(row(0))
            assert threading.active_count() == before


def on_a_terminal(code: str, **environment: str) -> str:
    """What a program writes to a (pseudo) terminal."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"COLUMNS": "100", "TERM": "xterm-256color"} | environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
    finally:
        os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait(timeout=30) == 0, written.decode()
    return written.decode()


SHORT_RUN = """
from engine.telemetry import display
with display.open(2, "short run") as shown:
    shown.step({"step": 0, "env/all/reward/total": 0.25, "time/total": 1.0, "time/elapsed": 1.0})
    shown.evaluation(1, "test", {"reward": 0.5})
    shown.note("checkpoint 1 saved \\x1b[2J")
    shown.step({"step": 1, "env/all/reward/total": 0.75, "time/total": 1.0, "time/elapsed": 2.0})
"""


class TestTerminals:
    def test_a_terminal_gets_the_panel(self) -> None:
        text = on_a_terminal(SHORT_RUN)
        assert "\x1b[?25l" in text, "the cursor is hidden"
        assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "and shown again at the end"
        assert "evaluation 'test' after step 1" in text
        assert "checkpoint 1 saved" in text
        assert "\x1b[2J" not in text, "a note cannot clear the screen"
        assert "step 2/2" in text
        assert "\x1b[36m" in text

    def test_no_color(self) -> None:
        assert "\x1b[3" not in on_a_terminal(SHORT_RUN, NO_COLOR="1")

    @pytest.mark.parametrize("term", ["dumb", ""])
    def test_a_dumb_terminal_gets_lines(self, term: str) -> None:
        text = on_a_terminal(SHORT_RUN, TERM=term)
        assert "\x1b" not in text
        assert "step 2/2  reward  0.750" in text


class TestFigures:
    def test_clock(self) -> None:
        assert [clock(value) for value in (0, 7.4, 59.6, 754, 3723, None, math.inf)] == [
            *("0:00", "0:07", "1:00", "12:34", "1:02:03", "-:--", "-:--")
        ]

    def test_short(self) -> None:
        values = (0, 3, 9.5, 987, 999.9, 12_345, 123_456, 4.5e6, 7.8e9, math.nan)
        assert [short(value) for value in values] == [
            "0",
            "3",
            "9.5",
            "987",
            "1.0k",
            "12.3k",
            "123k",
            "4.5M",
            "7.8G",
            "nan",
        ]
        assert all(len(short(10**power * 1.2345)) <= 5 for power in range(11))

    def test_number(self) -> None:
        values = (0.123456, 12.5, 3.0, 2.5e-5, 1234.56, math.inf, True, "text")
        assert [number(value) for value in values] == ["0.123", "12.500", "3", "2.5e-05", "1235", "inf", "True", "text"]

    def test_sparkline(self) -> None:
        assert sparkline([0, 0.5, math.nan, 1], 10) == "▁▅ █"
        assert sparkline([0, 1, 2], 2) == "▁█"
        assert sparkline([3, 3], 5) == "▁▁"
        assert sparkline([], 5) == sparkline([math.nan], 5) == ""

    def test_printable(self) -> None:
        assert printable("a\x1b[31mb\rc\u202ed") == "a [31mb c d"

    def test_progress_of_a_resumed_run(self) -> None:
        progress = Progress(100)
        progress.add(row(49))
        assert (progress.done, progress.remaining) == (50, 100.0)
