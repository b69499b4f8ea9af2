"""The command line: flags, messages, exit codes, interrupts, config.json."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actors.inspect_tasks import require_inspect
from recipes import cli
from recipes.flags import WrongFlags, parse
from tests.recipes.cli_example import Config, Pace

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.recipes.cli_example"]


def command(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class TestFlags:
    def test_values_reach_their_fields(self) -> None:
        words = "--steps 3 --learning-rate 1e-3 --resume --run-dir runs/a --stop x y --schedule.minibatches 4 --schedule.bound soft"
        assert parse(Config, words.split(), "example") == Config(
            steps=3,
            learning_rate=1e-3,
            resume=True,
            run_dir=Path("runs/a"),
            stop=("x", "y"),
            schedule=Pace(minibatches=4, bound="soft"),
        )

    def test_an_instance_gives_the_defaults(self) -> None:
        defaults = Config(steps=7, schedule=Pace(groups_per_step=3))
        assert parse(defaults, ["--resume"], "example") == Config(
            steps=7, resume=True, schedule=Pace(groups_per_step=3)
        )

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("--steps abc", "--steps: must be a whole number, not 'abc'"),
            ("--steps", "--steps: needs a value"),
            ("--steps 0", "--steps: must be at least 1, not 0"),
            ("--learning-rate x", "--learning-rate: must be a number or None, not 'x'"),
            ("--schedule.bound x", "--schedule.bound: must be one of hard, soft, not 'x'"),
            ("--schedule.groups-per-step 0", "--schedule.groups-per-step: must be at least 1, not 0"),
            ("--schedule.minibatches x", "--schedule.minibatches: must be a whole number, not 'x'"),
            ("--schedule.minibatches 3", "--schedule.minibatches: must divide --schedule.groups-per-step (8)"),
            ("--stpes 3", "--stpes: there is no such flag; did you mean --steps?"),
            (
                "--schedule.minibatchs 3 --stpes 4",
                "--schedule.minibatchs: there is no such flag; did you mean --schedule.minibatches?",
            ),
            ("--minibatches 3", "--minibatches: there is no such flag; did you mean --schedule.minibatches?"),
            ("--xyzzy", "--xyzzy: there is no such flag; --help lists them"),
            ("hello", "hello: is not a flag; every value follows its flag (--help lists them)"),
            ("--resume=3", "--resume: is a switch and takes no value"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, words: str, message: str) -> None:
        with pytest.raises(WrongFlags) as caught:
            parse(Config, words.split(), "example")
        assert str(caught.value) == message

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("--steps abc", "--steps: must be a whole number, not 'abc'"),
            ("--schedule.minibatches 3", "--schedule.minibatches: must divide --schedule.groups-per-step (8)"),
            ("--stpes 3", "--stpes: there is no such flag; did you mean --steps?"),
            ("--schedule.bound x", "--schedule.bound: must be one of hard, soft, not 'x'"),
        ],
    )
    def test_and_so_it_is_where_a_box_cannot_be_drawn(
        self, words: str, message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
        with pytest.raises(WrongFlags) as caught:
            parse(Config, words.split(), "example")
        assert str(caught.value) == message

    def test_wrong_flags_end_with_code_2_and_nothing_else(self) -> None:
        result = command("--schedule.minibatches", "3")
        assert result.returncode == 2
        assert result.stderr == "example: --schedule.minibatches: must divide --schedule.groups-per-step (8)\n"
        assert result.stdout == ""

    def test_help_shows_every_field_with_its_default(self) -> None:
        result = command("--help", COLUMNS="100")
        assert result.returncode == 0
        text = " ".join(result.stdout.replace("│", " ").split())
        assert "Learns nothing, but is configured like a recipe." in text
        assert "--schedule.groups-per-step INT Groups trained by one optimizer step. (default: 8)" in text
        assert "--learning-rate {None}|FLOAT Of the optimizer; None: what suits the model. (default: None)" in text
        assert "--traceback" in text

    def test_help_for_somebody_who_stops_reading(self) -> None:
        with subprocess.Popen(
            [*COMMAND, "--help"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""

    def test_help_loads_nothing_heavy(self) -> None:
        code = (
            "import sys, runpy; sys.argv = ['example', '--help']\n"
            "try: runpy.run_module('tests.recipes.cli_example', run_name='__main__', alter_sys=True)\n"
            "except SystemExit: pass\n"
            "heavy = {'torch', 'transformers', 'datasets', 'sympy', 'numpy', 'rich', 'trio', 'cattrs'}\n"
            "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
        )
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert result.stderr == "[]\n"


class TestErrors:
    def test_an_error_of_ours_is_one_message(self) -> None:
        result = command("--do", "fail")
        assert result.returncode == 1
        assert result.stderr == (
            "example: the disk is full (in actor 'logger')\nexample: --traceback shows where this came from\n"
        )

    @pytest.mark.parametrize(("flags", "environment"), [(["--traceback"], {}), ([], {"CALLSHEET_TRACEBACK": "1"})])
    def test_its_traceback_on_request(self, flags: list[str], environment: dict[str, str]) -> None:
        result = command("--do", "fail", *flags, **environment)
        assert result.returncode == 1
        assert "cli_example.py" in result.stderr
        assert result.stderr.endswith("example: the disk is full (in actor 'logger')\n")

    def test_its_traceback_in_the_run_directory(self, tmp_path: Path) -> None:
        result = command("--do", "fail", "--run-dir", str(tmp_path))
        assert result.stderr.endswith(f"example: the traceback is in {tmp_path}/error.log\n")
        assert "cli_example.py" not in result.stderr
        assert "cli_example.py" in (tmp_path / "error.log").read_text()

    def test_a_bug_shows_its_traceback(self) -> None:
        result = command("--do", "fail with a bug")
        assert result.returncode == 1
        assert "cli_example.py" in result.stderr
        assert result.stderr.endswith("example: ZeroDivisionError: division by zero\n")

    def test_a_wrong_value_found_late_is_one_message_too(self) -> None:
        result = command("--do", "fail at a value")
        assert result.returncode == 1
        assert result.stderr.splitlines()[0] == (
            "example: minibatches (99) must be at most groups_per_step (32): a minibatch holds at least one group"
        )
        assert "Traceback" not in result.stderr

    def test_a_missing_extra_is_told_in_our_own_words_and_other_imports_by_their_kind(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ImportError) as ours:
            require_inspect()
        assert cli._message(ours.value) == "tasks of inspect-ai need the package: pip install 'callsheet[inspect]'"
        with pytest.raises(ImportError) as other:
            importlib.import_module("there_is_no_such_module")
        assert cli._message(other.value) == "ModuleNotFoundError: No module named 'there_is_no_such_module'"

    def test_a_warning_of_ours_is_one_line_and_others_are_as_ever(self) -> None:
        result = command("--do", "warn")
        assert result.returncode == 0
        ours, place, *_ = result.stderr.splitlines()
        assert ours == "example: warning: gradients are not clipped"
        assert "cli_example.py" in place
        assert place.endswith("UserWarning: an old name")

    def test_an_error_inside_the_interruptible_block_is_not_wrapped(self) -> None:
        result = command("--do", "fail in the block", "--traceback")
        assert result.returncode == 1
        assert "ExceptionGroup" not in result.stderr
        assert result.stderr.endswith("example: inside\n")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
class TestInterrupts:
    def start(self, backend: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, "--do", "wait"],
            cwd=ROOT,
            env=os.environ | {"BACKEND": backend} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_once_stops_after_the_step(self, backend: str, number: int, code: int) -> None:
        process = self.start(backend)
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
        assert output == "asked to stop\ncheckpoint saved\n"
        assert errors == "stopping after this step; press Ctrl-C again to stop now\n"
        assert process.returncode == code

    def test_twice_stops_now_and_cleans_up(self, backend: str) -> None:
        process = self.start(backend, STUBBORN="1")
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "asked to stop\n"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
        assert output == "cleaned up\n"
        assert errors == "stopping after this step; press Ctrl-C again to stop now\nstopping now\n"
        assert process.returncode == 130

    def test_a_third_time_leaves_at_once(self, backend: str) -> None:
        process = self.start(backend, STUBBORN="very")
        assert process.stdout is not None
        for expected in ("asked to stop\n", "cleaned up\n"):
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == expected
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 130


class TestConfigFile:
    def test_there_and_back(self) -> None:
        config = Config(
            steps=3, learning_rate=1e-3, run_dir=Path("a/b"), stop=("x",), schedule=Pace(minibatches=2, bound="soft")
        )
        text = json.dumps(cli.unstructure(config))
        assert json.loads(text)["schedule"] == {"groups_per_step": 8, "minibatches": 2, "bound": "soft"}
        assert cli.structure(json.loads(text), Config) == config
        assert cli.structure(cli.unstructure(Config()), Config) == Config()

    def test_what_does_not_fit_is_named(self) -> None:
        values = cli.unstructure(Config()) | {"steps": "many", "sttop": 1}
        with pytest.raises(ValueError) as caught:
            cli.structure(values, Config)
        assert "steps" in str(caught.value)
        assert "sttop" in str(caught.value)
