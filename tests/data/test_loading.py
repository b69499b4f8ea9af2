"""Rows from files and, with a stand-in for the library's loader, from the hub."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data import BadRow, DataError, load_rows, rows_of
from engine.data.json_lines import JsonLines

ROWS = [{"question": f"q{n}", "answer": str(n)} for n in range(10)]


def write_lines(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_file(path: Path, suffix: str) -> Path:
    path = path / f"rows{suffix}"
    if suffix == ".jsonl":
        return write_lines(path, ROWS)
    if suffix == ".json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    elif suffix == ".parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(str(path))
    else:
        path.write_text("question,answer\n" + "".join(f"{r['question']},{r['answer']}\n" for r in ROWS))
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = load_rows(as_file(tmp_path, suffix))
    assert len(rows) == 10
    assert [dict(row) for row in rows] == ROWS
    assert rows[-1] == ROWS[9]
    place = {".jsonl": "line 4", ".csv": "line 5"}.get(suffix, "row 4")
    assert rows.columns == ("question", "answer")
    assert rows.where(3).endswith(f"rows{suffix}, {place}")
    with pytest.raises(IndexError):
        rows[10]


def test_text_in_a_csv_file_stays_text(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("question,answer\nagent?,007\nnothing?,NA\nempty?,\n")
    assert [row["answer"] for row in load_rows(file)] == ["007", "NA", ""]
    file.write_text('\ufeffquestion,answer\n"two\nlines",1\n\nlast,2\n', encoding="utf-8")
    rows = load_rows(file)
    assert [row["question"] for row in rows] == ["two\nlines", "last"]
    assert [rows.where(n).rpartition(" ")[2] for n in range(2)] == ["2", "5"]


def test_json_lines_keep_rows_as_they_were_written(tmp_path: Path) -> None:
    """An Arrow table would fill up missing keys, and refuse a column of two types."""
    rows = [{"tools": {"a": 1}}, {"tools": {"b": "x"}}, {"tools": "none", "more": [1, "x"]}]
    assert list(load_rows(write_lines(tmp_path / "rows.jsonl", rows))) == rows


@given(
    lines=st.lists(
        st.one_of(st.just(""), st.just("  \t"), st.fixed_dictionaries({"text": st.text(max_size=8)}).map(json.dumps)),
        min_size=1,
        max_size=20,
    ),
    newline=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
    mark=st.booleans(),
)
def test_the_line_index_finds_what_splitting_finds(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], newline: str, last: bool, mark: bool
) -> None:
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + (newline.join(lines) + (newline if last else "")).encode())
    expected = [(number, json.loads(line)) for number, line in enumerate(lines, start=1) if line.strip()]
    if not expected:
        with pytest.raises(DataError, match="empty"):
            JsonLines.open(path)
        return
    table = JsonLines.open(path)
    assert [(table.where(i).rpartition(" ")[2], table.row(i)) for i in range(len(table))] == [
        (str(number), row) for number, row in expected
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": \n', r"rows.jsonl, line 2: not JSON \(Expecting value"),
        (b'{"a": 1}\n\n[1, 2]\n', "rows.jsonl, line 3: a row is a JSON object, not a list"),
        (b'{"a": 1}\n"text"\n', "line 2: a row is a JSON object, not a string"),
        (b'{"a": 1}\n{"a": "\xff"}\n', r"line 2: not UTF-8 \(byte 7"),
        (b'{"a": 1}\n' + b"[" * 100_000, "line 2: nested too deeply"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    rows = load_rows(file)
    assert rows[0] == {"a": 1}
    with pytest.raises(BadRow, match=message):
        rows[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "a.jsonl: the file is empty"),
        ("a.jsonl", "\n \n", "nothing but empty lines"),
        ("a.json", "", "the file is empty"),
        ("a.json", "[]", "there are no rows"),
        ("a.json", '{"a": 1}\n{"a": 2}', "a row a line is JSON Lines and ends in .jsonl"),
        ("a.json", '{"a": 1, "b": 2}', "a list of rows is wanted"),
        ("a.json", "[1]", "row 1: a row is a JSON object"),
        ("a.parquet", "PAR", "a.parquet cannot be read as Parquet"),
        ("a.csv", "q,a\n1,2\n1,2,3,4\n", "a.csv, line 3: 4 values for the 2 columns"),
        ("a.csv", 'q,a\n1,"2', r"a\.csv cannot be read as CSV \(line 2"),
        ("a.csv", "", "the file is empty"),
        ("a.csv", "q,a\n", "there are no rows"),
        ("a.txt", "text", "files of rows end in .jsonl"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_rows(tmp_path / name)


def test_what_does_not_exist_and_what_does_not_apply(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(DataError, match=r"missing\.jsonl does not exist"):
        load_rows("missing.jsonl")
    with pytest.raises(DataError, match="single file and has no split 'test'"):
        load_rows(file, split="test")
    with pytest.raises(DataError, match="neither subset nor revision"):
        load_rows(file, subset="main")
    with pytest.raises(DataError, match="a limit of 0"):
        load_rows(file, limit=0)
    with pytest.raises(DataError, match="no known data set is called 'gsm9k'"):
        load_rows(file, schema="gsm9k")


def test_columns_are_required_and_all_that_is_given(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [{"a": 1, "b": 2}, {"b": 3}])
    rows = load_rows(file, columns=["a"])
    assert rows[0] == {"a": 1}
    with pytest.raises(BadRow, match=r"rows.jsonl, line 2, field 'a' is missing; there are b"):
        rows[1]
    table = as_file(tmp_path, ".parquet")
    assert load_rows(table, columns=["answer"])[2] == {"answer": "2"}
    with pytest.raises(DataError, match="has no column 'solution'; there are question, answer"):
        load_rows(table, columns=["solution"])


def test_a_directory_is_its_files_in_order(tmp_path: Path) -> None:
    for name, part in (("train-0.jsonl", ROWS[:4]), ("train-1.jsonl", ROWS[4:9]), ("test.jsonl", ROWS[9:])):
        write_lines(tmp_path / name, part)
    (tmp_path / "README.md").write_text("made")
    rows = load_rows(tmp_path, split="train")
    assert list(rows) == ROWS[:9]
    assert rows.where(4).endswith("train-1.jsonl, line 1")
    assert list(load_rows(tmp_path, split="test")) == ROWS[9:]
    with pytest.raises(DataError, match=r"no file whose name begins with 'validation'; there are test.jsonl, train-0"):
        load_rows(tmp_path, split="validation")
    with pytest.raises(DataError, match="no file whose name begins with 'tra'"):
        load_rows(tmp_path, split="tra")
    write_lines(tmp_path / "train.json", ROWS)
    with pytest.raises(DataError, match="several kinds"):
        load_rows(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.jsonl"):
        load_rows(tmp_path / "empty")


def test_what_the_library_saved(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(tmp_path / "two"))
    assert list(load_rows(tmp_path / "one")) == ROWS
    assert len(load_rows(tmp_path / "two")) == 10
    assert list(load_rows(tmp_path / "two", split="test")) == ROWS[:1]
    with pytest.raises(DataError, match="has no split 'dev'; there are train, test"):
        load_rows(tmp_path / "two", split="dev")
    with pytest.raises(DataError, match="without splits"):
        load_rows(tmp_path / "one", split="test")


# ---- the hub


def test_known_sets_are_asked_for_by_their_names_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def load_dataset(name: str, subset: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((name, subset, split, revision))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    gsm8k = load_rows("gsm8k", split="test", revision="abc", limit=3)
    assert (gsm8k.schema, len(gsm8k), gsm8k.where(0)) == ("gsm8k", 3, "openai/gsm8k (main)[test], row 1")
    assert load_rows("openai/gsm8k").schema == "gsm8k"
    assert load_rows("somebody/rows").schema is None
    assert load_rows("ultrafeedback", split="test").name == "HuggingFaceH4/ultrafeedback_binarized[test_prefs]"
    assert len(load_rows("math", subset="geometry")) == 10
    assert asked == [
        ("openai/gsm8k", "main", "test", "abc"),
        ("openai/gsm8k", "main", "train", None),
        ("somebody/rows", None, "train", None),
        ("HuggingFaceH4/ultrafeedback_binarized", None, "test_prefs", None),
        ("EleutherAI/hendrycks_math", "geometry", "train", None),
    ]
    whole = load_rows("math", columns=["answer"])
    assert (len(whole), whole[69], whole.where(69)) == (
        70,
        {"answer": "9"},
        "EleutherAI/hendrycks_math (precalculus)[train], row 10",
    )


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (ConnectionError("Couldn't reach it"), r"hub cannot be reached .*--data path/to/file\.jsonl works offline"),
        (datasets.exceptions.DatasetNotFoundError("no"), "somebody/rows: the Hugging Face hub has no data set"),
        (ValueError('Unknown split "dev".\n Should be one of []'), r'rows\[dev\]: Unknown split "dev"\. Should be'),
    ],
)
def test_what_the_hub_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, raised: Exception, message: str) -> None:
    def load_dataset(*args: object, **options: object) -> None:
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=message) as caught:
        load_rows("somebody/rows", split="dev")
    assert "\n" not in str(caught.value)


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "{'datasets', 'pyarrow', 'pandas', 'torch', 'transformers', 'httpx', 'sympy', 'anyio'}"
    code = f"import sys, engine.data; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


# ---- views


@given(size=st.integers(2, 60), seed=st.integers(0, 2**32), data=st.data())
def test_views_are_rearrangements(size: int, seed: int, data: st.DataObject) -> None:
    rows = rows_of([{"n": n} for n in range(size)])
    shuffled = rows.shuffled(seed)
    assert sorted(row["n"] for row in shuffled) == list(range(size))
    assert [row["n"] for row in shuffled] == [row["n"] for row in rows.shuffled(seed)]
    count = data.draw(st.integers(1, size - 1))
    others, held = shuffled.split(count, seed)
    assert len(held) == count
    assert sorted(row["n"] for row in [*others, *held]) == list(range(size))
    order = [row["n"] for row in shuffled]
    assert [row["n"] for row in others] == [n for n in order if n in {row["n"] for row in others}]
    assert [row["n"] for row in shuffled.skip(count)] == order[count:]
    assert [row["n"] for row in shuffled.take(count)] == order[:count]
    assert shuffled.where(0) == f"rows, row {order[0] + 1}"
    assert rows.split(0.5)[1].positions_V is not None


def test_views_that_make_no_sense() -> None:
    rows = rows_of([{"n": n} for n in range(4)])
    for held_out in (0, 4, 5, 0.01, 1.0):
        with pytest.raises(DataError, match="cannot be held out"):
            rows.split(held_out)
    with pytest.raises(DataError, match="there are no rows"):
        rows_of([])
    assert len({tuple(row["n"] for row in rows_of([{"n": n} for n in range(30)]).shuffled(s)) for s in range(20)}) == 20
