"""report.html and reward.svg: what they show, that they need nothing else, and that no run directory upsets them."""

from __future__ import annotations

import json
import math
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.telemetry.charts import Series, axis, chart, plain, smoothed
from engine.telemetry.figures import evaluation_reward
from engine.telemetry.report import reward_plot_svg, write_report, write_reward_plot

HOSTILE = "</pre></div><script>alert('x')</script><img src=x onerror=alert(1)>\"'&\x00\x1b[2J\u202e\ud800"


class Page(HTMLParser):
    """The tags and the text of a page; fails on tags that do not match."""

    VOID = frozenset({"meta", "circle", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID or (tag == "circle"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data


def row(step: int, steps: int = 40) -> dict[str, Any]:
    return {
        "step": step,
        "env/all/reward/total": 0.3 + 0.6 * step / steps,
        "env/digits_1/reward/total": 0.5,
        "env/digits_2/reward/total": 0.1,
        "staleness/max": step % 3,
        "staleness/in_flight_mean": 0.5,
        "staleness/in_queue_mean": 0.25,
        "busy/sampler": 0.8,
        "busy/trainer": 0.4,
        "tokens/sampled": 1000,
        "tokens/per_second": 500.0,
        "groups/filtered": 2,
        "time/total": 2.0,
        "time/wait_for_groups": 1.0,
        "time/forward_backward": 0.9,
        "time/elapsed": 2.0 * (step + 1),
        "optim/lr": 1e-4,
        "optim/grad_norm": 0.5,
    }


def sample(step: int, answer: str, reward: float, **changes: Any) -> dict[str, Any]:
    turn = {"question": "What is 17 + 25?", "answer": answer, "reward": reward}
    base = {
        "step": step,
        "ticket": step * 8,
        "tags": ["digits_2"],
        "member": 0,
        "reward": reward,
        "end": "done",
        "turns": [turn],
    }
    return base | changes


def write_lines(path: Path, rows: list[Any], torn: str = "") -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows) + torn)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "arithmetic run"
    directory.mkdir()
    write_lines(directory / "metrics.jsonl", [row(step) for step in range(40)], torn='{"step": 40, "env/al')
    evaluations = [
        {"step": step, "name": "held out", "metrics": {"all/reward/total": 0.2 + step / 100}} for step in (0, 20, 40)
    ]
    write_lines(directory / "evaluations.jsonl", evaluations)
    write_lines(directory / "samples.jsonl", [sample(step, f"answer {step}", step / 39) for step in range(40)])
    (directory / "config.json").write_text(json.dumps({"model": "tiny", "steps": 40}))
    return directory


class TestReport:
    def test_what_it_shows(self, run: Path) -> None:
        path = write_report(run)
        assert path == run / "report.html"
        page = Page(path.read_text())
        for expected in (
            *("arithmetic run", "0.32 → 0.87", "40.0k", "evaluation 'held out' after step 40", "0.600"),
            *("Mean reward", "Reward by kind", "Staleness", "Busy share", "Time per step", "Tokens per second"),
            *("Gradient norm", "Learning rate", "Groups not trained", "Evaluations", "Last step, 39"),
            *("optim/grad_norm", "What is 17 + 25?", "answer 0", "answer 39", '"model": "tiny"'),
        ):
            assert expected in page.text, expected
        assert "answer 20" not in page.text
        assert "Entropy" not in page.text, "there is no such metric in this run"

    def test_it_needs_nothing_from_outside(self, run: Path) -> None:
        html = write_report(run).read_text()
        page = Page(html)
        assert {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "video"} == set()
        assert not [attrs for _, attrs in page.tags if {"src", "href"} & set(attrs)]
        assert "url(" not in html
        assert "prefers-color-scheme:dark" in html
        assert "default-src 'none'" in html

    def test_everything_that_comes_from_a_run_is_text(self, run: Path) -> None:
        write_lines(run / "metrics.jsonl", [row(0) | {HOSTILE: 1.0, f"env/{HOSTILE}/reward/total": 0.5}])
        write_lines(run / "evaluations.jsonl", [{"step": 1, "name": HOSTILE, "metrics": {HOSTILE: 0.5, "reward": 1.0}}])
        hostile_turn = {"question": HOSTILE, "answer": HOSTILE, HOSTILE: HOSTILE}
        rows = [
            sample(0, "", 0.0, tags=[HOSTILE], end=HOSTILE, ticket=HOSTILE, turns=[hostile_turn])
            | {"reward": HOSTILE, "step": HOSTILE},
            sample(1, "", 0.0, turns=[{HOSTILE: HOSTILE}, hostile_turn]),
        ]
        write_lines(run / "samples.jsonl", rows)
        (run / "config.json").write_text(json.dumps({HOSTILE: HOSTILE}))
        page = Page(write_report(run).read_text())
        assert {tag for tag, _ in page.tags} & {"script", "img"} == set()
        assert "<script>alert('x')</script>" in page.text
        assert not set(page.text) & set("\x00\x1b\u202e\ud800")
        ET.fromstring(write_reward_plot(run).read_text())

    def test_a_group_asked_the_same_shows_the_question_once(self, run: Path) -> None:
        members = [sample(0, f"answer of {member}", 0.0, member=member, end="max_tokens") for member in range(3)]
        write_lines(run / "samples.jsonl", members)
        text = Page(write_report(run).read_text()).text
        assert text.count("What is 17 + 25?") == 1
        assert all(f"answer of {member}" in text for member in range(3))
        assert text.count("ended by max tokens") == 3

    def test_kinds_that_say_nothing_of_their_own_are_not_drawn(self, run: Path) -> None:
        rows = [{"step": step, "env/all/reward/total": 0.5, "env/sums/reward/total": 0.5} for step in range(3)]
        write_lines(run / "metrics.jsonl", rows)
        assert "Reward by kind" not in Page(write_report(run).read_text()).text
        write_lines(run / "metrics.jsonl", [one | {"env/carry/reward/total": 0.25} for one in rows])
        assert "Reward by kind" in Page(write_report(run).read_text()).text

    def test_the_right_answer_stands_below_the_question(self, run: Path) -> None:
        turn = {"question": "What is 1 + 1?", "answer": "3", "reference": 2, "reward": 0.0}
        write_lines(run / "samples.jsonl", [sample(0, "", 0.0, turns=[turn])])
        assert "right: 2" in Page(write_report(run).read_text()).text

    def test_a_supervised_run_shows_its_loss(self, run: Path) -> None:
        (run / "evaluations.jsonl").unlink()
        write_lines(
            run / "metrics.jsonl",
            [{"step": step, "train/mean_nll": 3.0 - step, "optim/loss": 100.0} for step in range(3)],
        )
        text = Page(write_report(run).read_text()).text
        assert "Mean NLL of a token" in text
        assert "Mean reward" not in text

    def test_every_turn_of_a_long_episode_is_shown(self, run: Path) -> None:
        turns = [{"question": f"question {turn}", "answer": f"reply {turn}", "reward": 0.0} for turn in range(3)]
        write_lines(run / "samples.jsonl", [sample(0, "", 1.0, turns=turns)])
        text = Page(write_report(run).read_text()).text
        assert all(f"question {turn}" in text and f"reply {turn}" in text for turn in range(3))

    def test_a_very_long_answer_is_cut(self, run: Path) -> None:
        write_lines(run / "samples.jsonl", [sample(0, "x" * 100_000, 0.0)])
        html = write_report(run).read_text()
        assert "97000 more characters" in html
        assert len(html) < 150_000

    def test_an_empty_directory(self, tmp_path: Path) -> None:
        assert "No step has been taken yet." in Page(write_report(tmp_path).read_text()).text
        assert "no step has been taken yet" in write_reward_plot(tmp_path).read_text()

    def test_one_step(self, run: Path) -> None:
        write_lines(run / "metrics.jsonl", [row(0)])
        page = Page(write_report(run).read_text())
        assert "Last step, 0" in page.text
        assert any(tag == "circle" for tag, _ in page.tags), "a single point is a dot"

    def test_lines_that_cannot_be_read_are_left_out(self, run: Path) -> None:
        (run / "metrics.jsonl").write_text(
            '{"step": 0, "env/all/reward/total": NaN}\nnot json\n[1]\n{"step": "x"}\n{"no": 1}\n\xff\n{"step": 2, "busy/sampler": null, "optim/lr": "text"}\n',
            encoding="latin-1",
        )
        (run / "evaluations.jsonl").write_text(
            '{"step": 1, "name": "a"}\n{"step": 1, "metrics": {"reward": Infinity}}\n{"step":'
        )
        (run / "samples.jsonl").write_text('{"turns": 3}\n{"step": 1, "turns": [1, {}]}\n{"step": 2, "turns": []}\n')
        (run / "config.json").write_text("{")
        text = Page(write_report(run).read_text()).text
        assert "Last step, 2" in text
        ET.fromstring(write_reward_plot(run).read_text())

    def test_many_steps_make_a_small_page_quickly(self, run: Path) -> None:
        write_lines(run / "metrics.jsonl", [row(step, 20_000) for step in range(20_000)])
        began = time.process_time()
        path = write_report(run)
        assert time.process_time() - began < 5
        assert path.stat().st_size < 400_000

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.dictionaries(
                st.sampled_from([*row(0), "env/all/reward/total", "optim/entropy", "time/snapshot"]),
                st.none() | st.floats() | st.integers(-(10**20), 10**20) | st.booleans() | st.text(max_size=5),
            ),
            max_size=6,
        )
    )
    def test_any_rows_make_a_whole_page(
        self, tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
    ) -> None:
        directory = tmp_path_factory.mktemp("run")
        write_lines(directory / "metrics.jsonl", rows)
        html = write_report(directory).read_text()
        Page(html)
        assert "nan," not in re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
        ET.fromstring(write_reward_plot(directory).read_text())


class TestWhatMattersInARun:
    """The first chart and the figures at the top tell how the run went, whatever kind of run it was."""

    def test_rewards_from_comparisons_are_told_by_the_win_rate(self, tmp_path: Path) -> None:
        rows = [
            {"step": n, "env/all/reward/total": -1e-18, "env/all/comparisons": 4.0, "kl_policy_base": 0.1 * n}
            for n in range(20)
        ]
        write_lines(tmp_path / "metrics.jsonl", rows)
        evaluations = [
            {"step": step, "name": "judged", "metrics": {"win_rate": rate, "comparisons": 64}}
            for step, rate in ((0, 0.5), (20, 0.875))
        ]
        write_lines(tmp_path / "evaluations.jsonl", evaluations)
        text = Page(write_report(tmp_path).read_text()).text
        assert "Win rate" in text
        assert "win rate, 'judged'0.50 → 0.88" in text
        assert "KL to the reference" in text
        assert "Mean reward" not in text
        assert "mean reward" not in text
        assert "Win rate" in " ".join(ET.fromstring(write_reward_plot(tmp_path).read_text()).itertext())

    def test_without_an_evaluation_the_mean_reward_is_shown_all_the_same(self, tmp_path: Path) -> None:
        write_lines(tmp_path / "metrics.jsonl", [{"step": 0, "env/all/reward/total": 0.1, "env/all/comparisons": 4.0}])
        assert "Mean reward" in Page(write_report(tmp_path).read_text()).text

    def test_the_distance_to_the_teacher(self, tmp_path: Path) -> None:
        rows = [{"step": n, "env/all/reward/total": 0.5, "teacher_kl": 2.0 - 0.1 * n} for n in range(8)]
        write_lines(tmp_path / "metrics.jsonl", rows)
        evaluations = [
            {"step": step, "name": "held out", "metrics": {"all/reward/total": 0.5, "all/teacher_kl": kl}}
            for step, kl in ((0, 1.5), (8, 0.25))
        ]
        write_lines(tmp_path / "evaluations.jsonl", evaluations)
        html = write_report(tmp_path).read_text()
        assert "KL to the teacher, 'held out'1.50 → 0.25" in Page(html).text
        assert "KL to the teacher, nats a token" in html
        assert html.count("evaluation &#x27;held out&#x27;, 8") >= 2  # beside the rewards, and beside the distances


class TestRewardPlot:
    def test_what_it_shows(self, run: Path) -> None:
        path = write_reward_plot(run)
        assert path == run / "reward.svg"
        root = ET.fromstring(path.read_text())
        text = " ".join(root.itertext())
        assert "Mean reward, arithmetic run" in text
        assert "training, mean over 5 steps" in text
        assert "evaluation 'held out'" in text
        tips = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
        assert "evaluation 'held out', 40: 0.6" in tips

    def test_from_rows_alone(self) -> None:
        assert ET.fromstring(reward_plot_svg([row(0), row(1)])) is not None

    def test_an_evaluation_s_reward(self) -> None:
        assert evaluation_reward({"all/reward/total": 0.5, "x/reward/total": 0.1}) == 0.5
        assert evaluation_reward({"n": 3, "correct": 0.25}) == 0.25
        assert evaluation_reward({"digits/reward/total": 0.1}) == 0.1
        assert math.isnan(evaluation_reward({"n": 3}))


class TestCharts:
    def test_marks_of_an_axis_are_round_and_hold_the_values(self) -> None:
        assert list(axis([0.12, 0.87]).ticks) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
        assert list(axis([0, 39], whole=True).ticks) == [0, 10, 20, 30]
        assert list(axis([3], whole=True).ticks) == [3]
        assert axis([5.0, 5.0]).low < 5.0 < axis([5.0, 5.0]).high
        assert axis([-3, 40], low=0).low <= -3

    @given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=20))
    def test_every_axis_holds_its_values(self, values: list[float]) -> None:
        found = axis(values)
        assert found.low <= min(values) + 1e-6 * (found.high - found.low)
        assert found.high >= max(values) - 1e-6 * (found.high - found.low)
        assert found.low < found.high
        assert len(found.ticks) <= 12

    def test_a_line_breaks_where_there_is_no_number(self) -> None:
        svg = chart("x", [Series("a", range(5), [1, 2, math.nan, 3, 4])])
        (path,) = re.findall(r'<path class="line s0" d="([^"]*)"', svg)
        assert path.count("M") == 2
        assert path.count("L") == 2

    def test_areas_are_stacked(self) -> None:
        svg = chart("x", [Series("a", [0, 1], [1, 1], "area"), Series("b", [0, 1], [3, 3], "area")])
        below, above = (
            [float(point.split(",")[1]) for point in points.split()] for points in re.findall(r'points="([^"]*)"', svg)
        )
        assert above[2:] == below[1::-1], "one stands on the other"
        assert below[3] - below[0] == pytest.approx((below[3] - above[0]) / 4, abs=0.2)

    def test_thinning_keeps_the_extremes(self) -> None:
        ys = [0.0] * 10_000
        ys[1234], ys[8765] = 7.0, -7.0
        svg = chart("x", [Series("spiky", range(10_000), ys)])
        (path,) = re.findall(r' d="([^"]*)"', svg)
        heights = [float(point.split()[1]) for point in re.split("[ML]", path)[1:]]
        assert len(heights) < 900
        assert heights.count(min(heights)) == heights.count(max(heights)) == 1

    def test_nothing_to_draw(self) -> None:
        assert chart("x", [Series("a", [0, 1], [math.nan, math.nan])]) == chart("x", []) == ""

    def test_smoothed(self) -> None:
        assert smoothed([0, 3, 6, 3, 0], 3) == [1.5, 3, 4, 3, 1.5]
        assert smoothed([math.nan, 2.0, math.nan, math.nan, math.nan], 3)[:3] == [2.0, 2.0, 2.0]
        assert math.isnan(smoothed([math.nan] * 4, 3)[3])

    def test_plain(self) -> None:
        assert [plain(value) for value in (0, 0.25, 12500, 2e-5, 2.5e-4, -0.5)] == [
            "0",
            "0.25",
            "12.5k",
            "2e-5",
            "2.5e-4",
            "-0.5",
        ]
