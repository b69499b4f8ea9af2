"""Playing by hand: the format for people, and a person at the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from engine.rendering import (
    Dialogue,
    ImagePart,
    Message,
    TextPart,
    ToolCallPart,
    ToolSpec,
    UnparsedToolCallPart,
    assistant,
    system,
    tool_result,
    user,
)
from engine.runtime.simulation import simulate
from engine.training.trajectories import TrajectoryGroup
from envs.by_hand.format import END, make_format, read_calls
from envs.by_hand.playing import LeftTheGame, play_by_hand
from envs.contracts import Env, GroupBuilder, Observation, Step
from envs.games import guess_number, tic_tac_toe
from envs.registry import open_env

FORMAT = make_format()
TOOL = ToolSpec(
    "add",
    "Adds  two\nnumbers.",
    {"properties": {"a": {"type": "integer"}, "how": {"enum": ["up", "down"]}}, "required": ["a"]},
)
PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x08\x00\x00\x00\x04\x08\x02\x00\x00\x00" + b"\0" * 20
)  # as much of one as a header needs


@attrs.define
class Sheet:
    """A terminal that is a sheet of paper."""

    answers: list[str]
    text: str = ""

    def show(self, text: str, kind: str = "") -> None:
        self.text += text

    async def read(self) -> str | None:
        if not self.answers:
            return None
        self.text += self.answers[0] + "\n"
        return self.answers.pop(0)


def played(builder: GroupBuilder, *answers: str, images: Path | None = None) -> tuple[TrajectoryGroup, str]:
    sheet = Sheet(list(answers))
    report = simulate(lambda: play_by_hand(builder, FORMAT, sheet, images=images))
    return report.unwrap(), sheet.text


# ---- the format


def text_of(messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> str:
    return FORMAT.vocabulary.decode(FORMAT.generation_prompt(messages, tools=tools).tokens.tolist()).replace(END, "")


def test_a_conversation_reads_as_one() -> None:
    call = ToolCallPart("add", {"a": 2})
    messages = [
        system("Be brief."),
        user("What is 2 + 3?"),
        assistant("Let me see.", tool_calls=[call]),
        tool_result("5", name="add"),
    ]
    assert text_of(messages, [TOOL]) == (
        'Tools, called by lines such as  /call name {"argument": "value"}\n'
        "  add(a: integer, how?: up | down)  Adds two numbers.\n\n"
        "(system) Be brief.\nWhat is 2 + 3?\n"
        '> Let me see.\n/call add {"a": 2}\n[add] 5\n> '
    )


def typed(text: str) -> list[int]:
    return [*FORMAT.vocabulary.encode(text), FORMAT.vocabulary.special_tokens[END]]


def test_what_is_typed_is_parsed() -> None:
    assert FORMAT.parse(typed("52")).message == assistant("52")
    assert FORMAT.parse(typed("<|im_end|> Привет 🦊\nzwei")).message.text == "<|im_end|> Привет 🦊\nzwei"
    parsed = FORMAT.parse(typed('/call add {"a": 2}\n/call stop'))
    assert parsed.ok
    assert parsed.message.tool_calls == (ToolCallPart("add", {"a": 2}), ToolCallPart("stop"))
    assert FORMAT.parse(typed("/callous words")).message == assistant("/callous words")
    assert not FORMAT.parse(FORMAT.vocabulary.encode("52")).ok


def test_calls_that_cannot_be_read_say_why() -> None:
    (call,) = read_calls("/call add {a: 2}") or ()
    assert isinstance(call, UnparsedToolCallPart)
    assert "not JSON" in call.error
    first, second = read_calls("/call add {}\nand then") or ()
    assert isinstance(first, ToolCallPart)
    assert isinstance(second, UnparsedToolCallPart)
    assert read_calls("/callous") is None


def test_a_dialogue_goes_on_where_it_was() -> None:
    dialogue = Dialogue(FORMAT, [user("One?")])
    dialogue.answer(typed("yes"))
    before = dialogue.prompt
    dialogue.extend(user("Two?"))
    whole = FORMAT.vocabulary.decode(dialogue.prompt.tokens.tolist())
    assert dialogue.extends_last
    assert whole.replace(END, "") == "One?\n> yes\nTwo?\n> "
    assert whole.startswith(FORMAT.vocabulary.decode(before.tokens.tolist()))
    assert text_of([user("One?"), assistant("yes"), user("Two?")]) == whole.replace(END, "")


def test_what_is_trained_of_an_answer_is_what_is_typed() -> None:
    """So that the conformance suite, and anybody else, can make answers for it."""
    (example,) = FORMAT.supervised_examples([user("?"), assistant("52")])
    assert example.model_input.tokens[example.weights_T > 0].tolist() == typed("52")


# ---- games


def test_a_game_of_several_turns_shows_only_what_is_new() -> None:
    group, text = played(guess_number.groups(FORMAT, group_size=1, low=7, high=7, guesses=3)[0], "3", "nine", "7")
    assert text.count("I think of a whole number") == 1
    assert text.splitlines()[1:] == [
        "> 3",
        "reward 0   format 1   sensible 0",
        "higher",
        "> nine",
        "reward 0   format 0   sensible 0",
        "a number from 7 to 7, please",
        "> 7",
        "reward 1   format 1   sensible 1   correct 1   guesses 3   (reference: 7)",
    ]
    assert group.rewards_G.tolist() == [1.0]


def test_both_sides_of_a_board_are_told_apart() -> None:
    builder = tic_tac_toe.groups(FORMAT, group_size=1, seed=1)[0]
    group, text = played(builder, "1", "4", "2", "5", "3")
    assert group.rewards_G.tolist() == [1.0, -1.0]
    assert [line[:10] for line in text.splitlines() if line.startswith("[player") and "play" in line[9:]] == [
        "[player 0]",
        "[player 1]",
    ]
    assert "outcome: over: 1, -1" in text


def test_a_game_that_is_over_before_ones_turn_says_so() -> None:
    group, text = played(tic_tac_toe.groups(FORMAT, group_size=1)[0], "pass")
    assert "[player 1] the game is over before your turn" in text
    assert group.rewards_G.tolist() == [-1.0, 1.0]


class Cleaned(GroupBuilder):
    """Asks for ever; counts its cleanups."""

    cleanups = 0

    def __init__(self, members: int = 1, messages: Sequence[Message] = (user("Well?"),)) -> None:
        self.members = members
        self.messages = messages

    async def make_envs(self) -> Sequence[Env]:
        return [Asking(self.messages) for _ in range(self.members)]

    async def cleanup(self) -> None:
        self.cleanups += 1


class Asking:
    def __init__(self, messages: Sequence[Message]) -> None:
        self.dialogue = Dialogue(FORMAT, messages)

    async def reset(self) -> Observation:
        return Observation(self.dialogue.prompt)

    async def step(self, completion: Any) -> Step:
        self.dialogue.answer(completion.tokens)
        return Step(observation=Observation(self.dialogue.extend(user("And?"))))


@pytest.mark.parametrize("members", [1, 3])
def test_who_leaves_is_let_go_and_everything_is_cleaned_up(members: int) -> None:
    builder = Cleaned(members)
    with pytest.raises(LeftTheGame):
        played(builder, "one", "two", "three", "four")
    assert builder.cleanups == 1


def test_images_are_written_where_they_can_be_looked_at(tmp_path: Path) -> None:
    question = user([TextPart("What is this?\n"), ImagePart(PNG), ImagePart("shown.png", 8, 4)])
    for directory, expected in ((tmp_path, f"[image: {tmp_path}/image-1.png]"), (None, f"[image 1: {len(PNG)} bytes]")):
        builder = Cleaned(1, [question])
        sheet = Sheet(["a flag"])
        simulate(lambda builder=builder, sheet=sheet, d=directory: play_by_hand(builder, FORMAT, sheet, images=d))
        assert sheet.text.startswith(f"What is this?\n{expected}\n[image: shown.png]\n")
        assert sheet.text.count("What is this?") == 1  # not again in the second turn
    assert (tmp_path / "image-1.png").read_bytes() == PNG


async def calculated(*answers: str) -> tuple[TrajectoryGroup, str]:
    async with open_env("calculator", FORMAT, group_size=1, digits=1, operations=["add"]) as groups:
        sheet = Sheet(list(answers))
        return await play_by_hand(groups[0], FORMAT, sheet), sheet.text


def test_tools_are_called_by_lines() -> None:
    group, text = simulate(calculated, '/call calculate {"left": 2, "operation": "add", "right": 40}', "0").unwrap()
    assert "Tools, called by lines such as" in text
    assert "[calculate] 42\n> 0\n" in text
    assert len(group.trajectories[0].turns) == 2
