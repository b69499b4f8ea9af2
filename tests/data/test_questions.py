"""Questions and passages, from the schemas that people have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.data import KNOWN_SETS, BadRow, Passage, load_rows, passage_of, question_of, read_passages, read_questions

HOTPOT = {
    "id": "5a7",
    "question": " Which river flows through the capital of France? ",
    "answer": "Seine",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": {"title": ["Paris"], "sent_id": [0]},
    "context": {
        "title": ["Paris", "Lyon"],
        "sentences": [["Paris is the capital.", " The Seine flows there."], ["Lyon."]],
    },
}
BOTH = (Passage("Paris is the capital. The Seine flows there.", "Paris"), Passage("Lyon.", "Lyon"))
AS_LISTS = [["Paris", ["Paris is the capital.", " The Seine flows there."]], ["Lyon", ["Lyon."]]]


@pytest.mark.parametrize(
    ("row", "answers", "passages"),
    [
        (HOTPOT, ("Seine",), BOTH),
        ({**HOTPOT, "context": AS_LISTS}, ("Seine",), BOTH),
        ({**HOTPOT, "context": json.dumps(AS_LISTS)}, ("Seine",), BOTH),
        ({**HOTPOT, "context": "Paris is a city."}, ("Seine",), ()),
        ({**HOTPOT, "context": None}, ("Seine",), ()),
        (
            {
                "question": "Q?",
                "answer": "yes",
                "answer_aliases": ["yeah", "yes"],
                "paragraphs": [{"idx": 0, "title": "T", "paragraph_text": "P", "is_supporting": True}],
            },
            ("yes", "yeah"),
            (Passage("P", "T"),),
        ),
        ({"question": "who?", "answer": ["Ann", "Anne"]}, ("Ann", "Anne"), ()),
        ({"question": "who?", "answer": {"value": "Ann", "aliases": ["A.", "Ann"]}}, ("Ann", "A."), ()),
        ({"question": "who?", "possible_answers": '["Ann", "A."]'}, ("Ann", "A."), ()),
        ({"id": "t1", "question": "who?", "golden_answers": ["Ann"], "metadata": {}}, ("Ann",), ()),
        ({"query": "who?", "answers": ["Ann"], "context_doc_ids": ["1"]}, ("Ann",), ()),
        ({"question": "how many?", "answer": 3}, ("3",), ()),
    ],
    ids=[
        "hotpot",
        "as lists",
        "as text",
        "one text",
        "none",
        "musique",
        "nq",
        "trivia",
        "popqa",
        "flashrag",
        "corag",
        "number",
    ],
)
def test_schemas(row: dict[str, Any], answers: tuple[str, ...], passages: tuple[Passage, ...]) -> None:
    question = question_of(row)
    assert (question.answers, question.passages) == (answers, passages)
    assert question.text == row.get("question", row.get("query")).strip()


def test_kinds_are_tags() -> None:
    assert question_of(HOTPOT).tags == ("bridge", "hard")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answer": "x"}, "field 'question or query' is missing"),
        ({"question": "", "answer": "x"}, "field 'question' is empty"),
        ({"question": "q"}, "field 'answer, answers or golden_answers' is missing"),
        ({"question": "q", "answer": "x", "answers": ["y"]}, "ambiguous"),
        ({"question": "q", "answers": []}, "field 'answers': no answer in it"),
        ({"question": "q", "answers": [" ", None]}, "no answer in it"),
        ({"question": "q", "answer": True, "answers": None}, "a string or a list of strings"),
        ({"question": "q", "possible_answers": "[Ann"}, "not a list as JSON text"),
        ({"question": "q", "answer": "x", "context": [["only a title"]]}, r"a list of \[title, sentences\]"),
        ({"question": "q", "answer": "x", "context": {"title": ["a"], "sentences": []}}, "1 titles for 0 passages"),
        ({"question": "q", "answer": "x", "context": [[3, ["s"]]]}, "titles that are strings"),
        (
            {"question": "q", "answer": "x", "paragraphs": [{"title": "T"}]},
            "field 'paragraphs': field 'text or contents' is missing",
        ),
        ({"question": "q", "answer": "x", "paragraphs": "text"}, "field 'paragraphs': a list is wanted"),
    ],
    ids=str,
)
def test_rows_that_do_not_fit(row: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        question_of(row)


@pytest.mark.parametrize(
    ("row", "passage"),
    [
        ({"text": " a "}, Passage("a")),
        ({"id": 7, "title": "T", "text": "a"}, Passage("a", "T", "7")),
        (
            {"id": "0", "contents": '"Aaron"\nAaron is a prophet.\nHe is.'},
            Passage("Aaron is a prophet.\nHe is.", "Aaron", "0"),
        ),
        ({"contents": "no title\nhere"}, Passage("no title\nhere")),
        ({"contents": '"only a title"'}, Passage('"only a title"')),
    ],
    ids=str,
)
def test_passages(row: dict[str, Any], passage: Passage) -> None:
    assert passage_of(row) == passage


def test_files_and_places(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps(HOTPOT) + "\n" + json.dumps({"question": "q"}) + "\n")
    questions = read_questions(load_rows(file))
    assert questions[0].answers == ("Seine",)
    with pytest.raises(BadRow, match=r"q\.jsonl.*2.*is missing"):
        questions[1]
    assert len(read_questions(load_rows(file), on_bad_row="skip")) == 1
    corpus = tmp_path / "c.jsonl"
    corpus.write_text(json.dumps({"contents": '"T"\nt'}) + "\n")
    assert list(read_passages(load_rows(corpus))) == [Passage("t", "T")]


def test_known_sets_of_questions() -> None:
    known = {name for name, each in KNOWN_SETS.items() if each.kind == "questions"}
    assert known >= {"hotpotqa", "2wikimultihopqa", "musique", "nq", "triviaqa", "popqa"}
