"""Rows read as conversations, problems, comparisons and prompts: every form, every known set, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.data import (
    KNOWN_SETS,
    BadRow,
    Comparison,
    DataError,
    Examples,
    Rows,
    conversation_of,
    last_boxed,
    load_rows,
    problem_of,
    prompt_of,
    read_comparisons,
    read_conversations,
    read_problems,
    read_prompts,
    read_questions,
    rows_of,
)
from engine.rendering import Message, assistant, system, user

SAMPLES = Path(__file__).parent / "samples"
READERS: dict[str, Any] = {
    "conversations": read_conversations,
    "problems": read_problems,
    "comparisons": read_comparisons,
    "questions": read_questions,
}


def sample(name: str) -> Rows:
    return load_rows(SAMPLES / f"{name}.jsonl", schema=name)


def texts(said: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in said]


# Programs are read by the environment that runs them: tests/envs/test_code*.py.
@pytest.mark.parametrize("name", [name for name, known in KNOWN_SETS.items() if known.kind != "programs"])
def test_every_known_set_has_a_reader_that_reads_its_schema(name: str) -> None:
    read: Examples[Any] = READERS[KNOWN_SETS[name].kind](sample(name), on_bad_row="skip")
    assert len(read) >= 1
    assert all(read)


# ---- conversations

ASKED = [("user", "2 + 3?"), ("assistant", "5")]
HELPFUL = [("system", "Be brief."), *ASKED]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]}, ASKED),
        ({"conversations": [{"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": "5"}]}, ASKED),
        (
            {
                "system": "Be brief.",
                "conversations": [{"from": "user", "value": "2 + 3?"}, {"from": "gpt", "value": "5"}],
            },
            HELPFUL,
        ),
        ({"conversations": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]}, ASKED),
        ({"prompt": "2 + 3?", "response": "5"}, ASKED),
        ({"prompt": "2 + 3?", "completion": "5", "response": None}, ASKED),
        (
            {
                "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3?"}],
                "completion": [{"role": "assistant", "content": "5"}],
            },
            HELPFUL,
        ),
        ({"instruction": "2 + 3?", "input": "", "output": "5"}, ASKED),
        ({"instruction": "2 + 3?", "output": "5", "system": "Be brief."}, HELPFUL),
        ({"instruction": "Add.", "input": "2, 3", "output": "5"}, [("user", "Add.\n\n2, 3"), ("assistant", "5")]),
        ({"instruction": "Add.", "context": "2, 3", "response": "5"}, [("user", "Add.\n\n2, 3"), ("assistant", "5")]),
        # No Robots has both, and means messages.
        (
            {"prompt": "x", "messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]},
            ASKED,
        ),
    ],
)
def test_forms_of_conversations(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert texts(conversation_of(row).messages) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "hello"}, "no conversation in the fields text: wanted are messages"),
        ({}, r"no conversation in the fields \(none\)"),
        ({"messages": []}, "field 'messages' is an empty list"),
        ({"messages": "hello"}, "field 'messages': a list of messages is wanted, not a string"),
        ({"messages": [{"role": "user"}]}, "field 'messages': message 0, field 'content'"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "message 0, field 'role': 'robot' is none of"),
        ({"messages": [{"role": "user", "content": 5}]}, "message 0.*content"),
        ({"prompt": "x", "response": "y", "completion": "z"}, "'response' and 'completion' both have a value"),
        ({"prompt": "x", "instruction": "x", "response": "y"}, "fields of two forms, prompt and instruction"),
        ({"prompt": "", "response": "y"}, "field 'prompt' is empty"),
        ({"prompt": 3, "response": "y"}, "field 'prompt': a list of messages is wanted, not a number"),
        ({"instruction": "x", "output": ["y"]}, "field 'output': a string is wanted, not a list"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, r"field 'conversations\[0\]\.from': 'alien'"),
        (
            {"conversations": [{"from": "human", "value": None}]},
            r"field 'conversations\[0\]\.value': a string is wanted",
        ),
        ({"conversations": ["x"]}, r"field 'conversations\[0\]': an object with 'from' and 'value'"),
        ({"conversations": {"from": "human"}}, "field 'conversations': a list of turns is wanted, not an object"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": "{"}, "field 'tools': not JSON"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [{"a": 1}]}, "field 'tools'"),
    ],
)
def test_what_is_no_conversation(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conversation_of(row)


def test_tools_come_along_also_as_text() -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    said = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    for tools in ([tool], __import__("json").dumps([tool])):
        assert [spec.name for spec in conversation_of({"messages": said, "tools": tools}).tools] == ["add"]


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (["assistant"], "message 0, of the role 'assistant', stands first"),
        (["user", "user", "assistant"], "message 1, of the role 'user', follows a message of the role 'user'"),
        (["user", "assistant", "assistant"], "message 2, of the role 'assistant'"),
        (["user", "system", "assistant"], "message 1, of the role 'system'"),
        (["user", "tool"], "message 1, of the role 'tool'"),
        (["system", "assistant"], "message 1"),
    ],
)
def test_roles_out_of_order(tmp_path: Path, roles: list[str], message: str) -> None:
    rows = rows_of([{"messages": [{"role": role, "content": "x"} for role in roles]}], "made")
    with pytest.raises(BadRow, match=f"made, row 1: roles out of order: .*{message}"):
        read_conversations(rows)[0]
    assert len(read_conversations(rows, any_order=True)[0].messages) == len(roles)


def test_what_does_not_fit_is_an_error_or_a_counted_skip(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    good = '{"prompt": "a", "response": "b"}\n'
    file.write_text(good + '{"prompt": "a"}\n' + good + "{\n" * 4 + good)
    strict = read_conversations(load_rows(file))
    assert len(strict) == 8
    with pytest.raises(BadRow, match=r"chats\.jsonl, line 2: no conversation in the fields prompt"):
        strict[1]
    kept = read_conversations(load_rows(file), on_bad_row="skip")
    assert len(kept) == 3
    assert [kept.where(n).rpartition(" ")[2] for n in range(3)] == ["1", "3", "8"]
    assert (kept.skipped.count, kept.skipped.of) == (5, 8)
    assert "skipped 5 of 8 rows that do not fit" in str(kept.skipped)
    assert "line 2" in str(kept.skipped)
    assert str(kept.skipped).endswith("; ...")
    assert str(read_conversations(load_rows(file, limit=1), on_bad_row="skip").skipped) == "all 1 rows fit"
    with pytest.raises(DataError, match=r"no row fits: .*line 2"):
        read_conversations(load_rows(file)[1:2], on_bad_row="skip")
    with pytest.raises(DataError, match="'error' or 'skip', not 'ignore'"):
        read_conversations(load_rows(file), on_bad_row="ignore")  # type: ignore[arg-type]


def test_an_error_in_a_reader_of_ones_own_names_the_row() -> None:
    examples: Examples[Any] = Examples(rows_of([{"a": 1}], "made"), lambda row: row["b"])
    with pytest.raises(KeyError) as caught:
        examples[0]
    assert caught.value.__notes__ == ["while reading made, row 1"]


# ---- problems


def test_answers_of_the_known_problem_sets() -> None:
    answers = {
        name: [problem.answer for problem in read_problems(sample(name))]
        for name in ("gsm8k", "math", "math500", "polaris", "deepmath")
    }
    assert answers == {
        "gsm8k": ["60", "2000"],
        "math": [r"\frac{7}{2}", "8"],
        "math500": ["81"],
        "polaris": ["55"],
        "deepmath": ["1"],
    }
    assert read_problems(sample("gsm8k"))[0].solution == "He sells 12 * 5 = <<12*5=60>>60 rolls."
    assert read_problems(sample("math"))[1].tags == ("Counting & Probability", "Level 2")
    assert read_problems(sample("math500"))[0].tags == ("Prealgebra", "level 1")


@pytest.mark.parametrize("name", ["gsm8k", "math", "math500", "polaris", "deepmath"])
def test_the_schema_of_a_problem_set_is_seen_from_its_fields_too(name: str) -> None:
    by_schema, by_fields = read_problems(sample(name)), read_problems(load_rows(SAMPLES / f"{name}.jsonl"))
    assert [(p.question, p.answer) for p in by_schema] == [(p.question, p.answer) for p in by_fields]


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"question": "q", "answer": "5"}, "5"),
        ({"problem": "q", "answer": 5}, "5"),
        ({"prompt": "q", "final_answer": 2.5}, "2.5"),
        ({"problem": "q", "solution": "so $\\boxed{1}$, no \\boxed{x_{1}}"}, "x_{1}"),
    ],
)
def test_forms_of_problems(row: dict[str, Any], answer: str) -> None:
    assert (problem_of(row).question, problem_of(row).answer) == ("q", answer)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "5"}, "field 'question or problem' is missing; there are answer"),
        ({"question": "q"}, "field 'answer or solution' is missing"),
        ({"question": "q", "problem": "p", "answer": "5"}, "'question' and 'problem' both have a value"),
        ({"question": "q", "answer": ["5"]}, "field 'answer': a string or a number is wanted, not a list"),
        ({"question": "q", "answer": True}, "field 'answer': a string or a number is wanted"),
        ({"question": "q", "answer": " "}, "field 'answer' is empty"),
        ({"question": "q", "answer": "so ####"}, "field 'answer': no answer after ####"),
        ({"question": "q", "solution": "it is 5"}, r"field 'solution': it holds no answer in \\boxed"),
    ],
)
def test_what_is_no_problem(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        problem_of(row)


@pytest.mark.parametrize(
    ("solution", "found"),
    [
        ("\\boxed{5}", "5"),
        ("\\boxed{1} then \\fbox{2}", "2"),
        ("\\boxed {\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("so $\\boxed 5$ it is", "5"),
        ("none", None),
        ("\\boxed{5", None),
        ("\\boxed{}", ""),
    ],
)
def test_the_last_box(solution: str, found: str | None) -> None:
    assert last_boxed(solution) == found


# ---- comparisons


def test_the_known_comparison_sets() -> None:
    read = {
        name: read_comparisons(sample(name), on_bad_row="skip")
        for name in ("hh", "helpsteer2", "helpsteer3", "ultrafeedback")
    }
    assert {name: (len(found), found.skipped.count) for name, found in read.items()} == {
        "hh": (2, 1),
        "helpsteer2": (2, 1),
        "helpsteer3": (2, 1),
        "ultrafeedback": (1, 0),
    }
    assert texts(read["hh"][1].prompt) == [
        ("user", "Hello"),
        ("assistant", "Hello! What can I do?"),
        ("user", "Tell me a joke."),
    ]
    assert read["hh"][1].rejected == (assistant("No."),)
    assert read["hh"][0] == Comparison(
        (user("How do I boil an egg?"),),
        (assistant("Put it into boiling water for eight minutes."),),
        (assistant("No idea."),),
    )
    first, second = read["helpsteer2"]
    assert (first.chosen[0].text[:3], first.strength, second.rejected[0].text) == ("Air", 3, "An odd number.")
    assert [pair.chosen[0].text for pair in read["helpsteer3"]] == ["Cat.", "xs[::-1]"]
    assert [pair.strength for pair in read["helpsteer3"]] == [3, 2]
    assert len(read["helpsteer3"][1].prompt) == 3
    assert texts(read["ultrafeedback"][0].prompt) == [("user", "Suggest a name for a boat.")]
    assert read["ultrafeedback"][0].chosen == (assistant("Second Wind."),)


def test_helpsteer2_names_both_rows_where_prompts_differ() -> None:
    rows = load_rows(SAMPLES / "helpsteer2.jsonl", schema="helpsteer2")[1:3]
    with pytest.raises(BadRow, match="line 2, field 'prompt': this row and the next have different prompts"):
        read_comparisons(rows)[0]
    with pytest.raises(DataError, match="made of two rows"):
        read_comparisons(rows[:1])


PAIR = Comparison((user("q"),), (assistant("good"),), (assistant("bad"),))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"messages": [{"role": "user", "content": "q"}], "chosen": "good", "rejected": "bad"},
        {
            "prompt": [{"role": "user", "content": "q"}],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        },
        {
            "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
            "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}],
        },
        {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
    ],
)
def test_forms_of_comparisons(row: dict[str, Any]) -> None:
    assert read_comparisons(rows_of([row]))[0] == PAIR


CHAT_ABOUT = {
    word: [{"role": "user", "content": word}, {"role": "assistant", "content": f"about {word}"}] for word in "xy"
}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "chosen": "good"}, "field 'rejected' is missing; there are prompt, chosen"),
        ({"chosen": "good", "rejected": "bad"}, "field 'prompt' is missing"),
        ({"prompt": "q", "chosen": "same", "rejected": "same"}, "are the same, so there is nothing to compare"),
        (
            {"prompt": "q", "chosen": "good", "rejected": 3},
            "field 'rejected': a list of messages is wanted, not a number",
        ),
        ({"prompt": "q", "chosen": "good", "rejected": " "}, "field 'rejected' is empty"),
        (
            {"prompt": "q", "chosen": [{"role": "user", "content": "x"}], "rejected": "bad"},
            "field 'chosen': roles out of order",
        ),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"},
            "fields 'chosen' and 'rejected' share no prompt",
        ),
        (
            {"chosen": CHAT_ABOUT["x"], "rejected": CHAT_ABOUT["y"]},
            "fields 'chosen' and 'rejected' begin with different messages",
        ),
        (
            {"prompt": "z", "chosen": CHAT_ABOUT["x"], "rejected": [*CHAT_ABOUT["x"][:1], CHAT_ABOUT["y"][1]]},
            "field 'prompt': it is not what 'chosen' and 'rejected' answer",
        ),
    ],
)
def test_what_is_no_comparison(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        read_comparisons(rows_of([row]))[0]


# ---- prompts


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q"}, [("user", "q")]),
        ({"question": "q", "answer": "5"}, [("user", "q")]),
        ({"problem": "q"}, [("user", "q")]),
        ({"instruction": "q", "input": "x"}, [("user", "q\n\nx")]),
        (
            {
                "prompt": "other",
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a"},
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a"},
                ],
            },
            [("user", "q"), ("assistant", "a"), ("user", "q")],
        ),
    ],
)
def test_forms_of_prompts(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert texts(prompt_of(row)) == expected


def test_what_is_no_prompt() -> None:
    with pytest.raises(ValueError, match="no prompt in the fields text"):
        prompt_of({"text": "x"})
    with pytest.raises(ValueError, match="nobody asks anything"):
        prompt_of({"messages": [{"role": "system", "content": "x"}]})
    with pytest.raises(BadRow, match="rows, row 1, field 'prompt' is empty"):
        read_prompts(rows_of([{"prompt": ""}]))[0]
    assert system("x").role == "system"
