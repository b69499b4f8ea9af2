"""`python -m recipes.play`: as it is used, with pipes, files and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from engine.completion import ScriptedCompleter
from recipes import cli, play
from recipes.ports import Ports

COMMAND = [sys.executable, "-m", "recipes.play"]


def command(*args: str, answers: str | None = None, stdin: Any = None, tmp: Path | None = None) -> Any:
    environment = {**os.environ, **({"TMPDIR": str(tmp)} if tmp else {})}
    options: dict[str, Any] = {"stdin": stdin} if stdin is not None else {"input": answers or ""}
    return subprocess.run(
        [*COMMAND, *args], check=False, capture_output=True, text=True, timeout=90, env=environment, **options
    )


GUESS = ("--env", "guess_number", "--set", "low=3", "high=4", "guesses=2")


def test_answers_from_a_pipe_and_from_a_file(tmp_path: Path) -> None:
    piped = command(*GUESS, answers="3\n4\n", tmp=tmp_path)
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout.startswith("I think of a whole number from 3 to 4.")
    assert piped.stdout.endswith("game over: 1\n")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "answers").write_text("3\n4\n")
    with (tmp_path / "answers").open() as answers:
        assert command(*GUESS, stdin=answers).stdout == piped.stdout


def test_the_end_of_the_input_leaves_the_game(tmp_path: Path) -> None:
    left = command("--env", "guess_number", "--problems", "3", answers="50\n", tmp=tmp_path)
    assert left.returncode == 0, left.stderr
    assert left.stdout.endswith("> \nleft the game\n")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_it_waits_for_an_answer_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--env", "guess_number"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    seen = ""
    end = time.monotonic() + 60
    while not seen.endswith("> ") and time.monotonic() < end:
        seen += process.stdout.read(1)
    assert seen.endswith("> ")
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)  # its input stays open: it is the signal that ends it
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert out == "\nleft the game\n"
    assert err == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--env", "guess_numbers"), "no environment is called 'guess_numbers'; did you mean 'guess_number'?"),
        (("--env", "guess_number", "--set", "highest=3"), "'guess_number' has no option 'highest'; there are explain"),
        (("--env", "guess_number", "--set", "high=0"), "low must be at most high, got 1 and 0"),
        (("--env", "guess_number", "--model", "smollm2"), "guess_number has no place for one"),
        (("--env", "guess_number", "--problem", "100000"), "guess_number has 100000 problems"),
    ],
)
def test_wrong_flags_are_one_line(args: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(play.run, play.Config, args=args)
    assert ended.value.code in (1, 2)
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "play: --env: which one is to be played? --list shows what there is"),
        (("--env", "guess_number", "--set", "high"), "play: set: 'high' is not name=value"),
    ],
)
def test_wrong_flags_as_a_shell_shows_them(args: tuple[str, ...], message: str) -> None:
    done = command(*args)
    assert done.returncode in (1, 2)
    assert done.stderr.splitlines()[0] == message
    assert "Traceback" not in done.stderr


def test_the_list_names_every_environment_and_its_options() -> None:
    from envs.registry import envs

    lines = play.listed()
    assert {name for line in lines for name in [line.split()[0]]} >= set(envs())
    assert any("--set low=1 high=100" in line for line in lines)


def test_options() -> None:
    assert play.parse_options(("a=1", "b=text", "c=[1, 2]", 'd="3"', "e=x=y")) == {
        "a": 1,
        "b": "text",
        "c": [1, 2],
        "d": "3",
        "e": "x=y",
    }


def test_blocks_of_several_lines_and_text_without_a_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    path.write_bytes('"""\ndef f():\n    return 1\n"""\nздравствуй\r\n\nlast'.encode())
    written: list[str] = []

    async def read_all() -> list[str | None]:
        with path.open("rb") as file:
            console = play.Console(written.append, file.fileno())
            return [await console.read() for _ in range(6)]

    assert anyio.run(read_all) == ["def f():\n    return 1", "здравствуй", "", "last", None, None]
    assert written[0] == "def f():\n    return 1\n"


def test_a_model_takes_the_place_that_the_environment_has_for_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other player of a game, and the answerer of twenty questions."""
    asked: list[str] = []

    def answer(messages: Any) -> str:
        asked.append(messages[-1].text)
        return "7" if "tic-tac-toe" in messages[0].text else "Yes."

    @asynccontextmanager
    async def open_completer(*args: Any, **options: Any) -> Any:
        yield ScriptedCompleter(answer)

    ports = Ports(open_completer=open_completer)
    for env, answers in (("tic_tac_toe", ["1", "2", "3"]), ("twenty_questions", ["Is it nice?", "Guess: nothing"])):
        given = iter(answers)

        async def read(self: play.Console, given: Any = given) -> str | None:
            return next(given, None)

        monkeypatch.setattr(play.Console, "read", read)
        config = play.Config(env=env, model="any", set=("rules=null",) if env == "tic_tac_toe" else ())
        anyio.run(play.run, config, ports)
    assert "Is it nice?" in asked
    assert "O | 8 | 9" in capsys.readouterr().out
