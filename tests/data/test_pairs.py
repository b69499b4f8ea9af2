"""Comparisons as pairs of datums, in batches of whole pairs."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.backends.values import Datum
from engine.data import (
    Comparison,
    DataError,
    PairTooLong,
    Rows,
    ToPairs,
    held_out_pairs,
    load_rows,
    pair_batches,
    pair_datums,
    read_comparisons,
    rows_of,
)
from engine.rendering import Renderer, ToolCallPart, assistant, get_renderer, tool_result, user
from engine.rendering.registry import control_tokens
from engine.rendering.vocabulary import byte_vocabulary

COLON = get_renderer("role_colon", byte_vocabulary(()))
QWEN = get_renderer("qwen3", byte_vocabulary(control_tokens("qwen3")))
PAIR = Comparison((user("2 + 3?"),), (assistant("5"),), (assistant("it is 6"),))


def trained(renderer: Renderer, datum: Datum) -> str:
    weights = datum.loss_inputs["weights"]
    return renderer.vocabulary.decode(datum.loss_inputs["target_tokens"][weights > 0])


def numbers(batch: object) -> list[int]:
    """The questions of a batch's chosen answers."""
    texts = [COLON.vocabulary.decode(datum.model_input.tokens) for datum in list(batch)[::2]]  # type: ignore[call-overload]
    return [int(text.removeprefix("User: ").partition("?")[0]) for text in texts]


@pytest.mark.parametrize("renderer", [COLON, QWEN], ids=["role_colon", "qwen3"])
def test_a_pair_trains_the_answers_alone(renderer: Renderer) -> None:
    chosen, rejected = pair_datums(renderer, PAIR)
    assert "5" in trained(renderer, chosen)
    assert "it is 6" in trained(renderer, rejected)
    assert "2 + 3" not in trained(renderer, chosen) + trained(renderer, rejected)
    first = int(np.flatnonzero(chosen.loss_inputs["weights"])[0])
    assert chosen.model_input.tokens[: first + 1].tolist() == rejected.model_input.tokens[: first + 1].tolist()
    assert (
        renderer.generation_prompt(PAIR.prompt).tokens.tolist()[-4:]
        == chosen.model_input.tokens[: first + 1].tolist()[-4:]
    )


def test_earlier_answers_are_read_and_not_trained_and_a_later_one_is() -> None:
    talk = (user("1?"), assistant("one"), user("2?"))
    long = Comparison(talk, (assistant("two"), user("sure?"), assistant("yes")), (assistant("three"),))
    chosen, rejected = pair_datums(COLON, long)
    assert "one" not in trained(COLON, chosen)
    assert trained(COLON, chosen) == " two\n\nUser: yes\n\nUser:"
    assert trained(COLON, rejected) == " three\n\nUser:"


def test_an_answer_of_several_messages_needs_a_renderer_that_rewrites_nothing() -> None:
    used = (assistant(thinking="hm", tool_calls=[ToolCallPart("add", {"a": 1})]), tool_result("1", name="add"))
    two = Comparison((user("1?"),), (*used, assistant("1"), user("sure?"), assistant("yes")), (assistant("2"),))
    with pytest.raises(
        ValueError, match="the chosen answer has 5 messages, which the renderer 'qwen3' cannot write as one"
    ):
        pair_datums(QWEN, two)


def test_a_prompt_that_is_written_differently_is_refused() -> None:
    class Peeks:
        """Writes the prompt by what follows it."""

        name = "peeks"

        def supervised_examples(self, messages: list[object], train_on: object) -> object:
            said = [user(str(len(messages[-1].text))), *messages[1:]]  # type: ignore[attr-defined]
            return COLON.supervised_examples([m.__class__(m.role, m.content) for m in said])  # type: ignore[attr-defined]

    with pytest.raises(ValueError, match="'peeks' writes the prompt in front of the chosen answer differently"):
        pair_datums(Peeks(), PAIR)  # type: ignore[arg-type]


def test_a_pair_that_is_too_long() -> None:
    needed = max(datum.model_input.length + 1 for datum in pair_datums(COLON, PAIR))
    assert pair_datums(COLON, PAIR, max_tokens=needed)
    with pytest.raises(
        PairTooLong,
        match=f"the rejected answer has {needed} tokens with its prompt, more than the limit of {needed - 1}",
    ):
        pair_datums(COLON, PAIR, max_tokens=needed - 1)


# ---- batches


def rows(*lengths: int) -> Rows:
    return rows_of(
        [{"prompt": f"{n}?", "chosen": "x" * length, "rejected": "y"} for n, length in enumerate(lengths)], "made"
    )


TO_PAIRS = ToPairs(renderer=COLON)
SHORT = ToPairs(renderer=COLON, max_tokens=40)


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 3))
def test_batches_hold_whole_pairs_and_every_epoch_every_pair(count: int, size: int, epochs: int) -> None:
    batches = pair_batches(read_comparisons(rows(*[1] * count)), TO_PAIRS, batch_size=size, epochs=epochs, seed=3)
    seen = [numbers(batches[index]) for index in range(len(batches))]
    for epoch in range(epochs):
        order = [
            number
            for batch in seen[epoch * batches.batches_per_epoch :][: batches.batches_per_epoch]
            for number in batch
        ]
        assert sorted(order) == list(range(count))
    for index in range(len(batches)):
        chosen, rejected = batches[index][0::2], batches[index][1::2]
        assert [trained(COLON, datum).split()[0] for datum in chosen] == ["x"] * len(seen[index])
        assert [trained(COLON, datum).split()[0] for datum in rejected] == ["y"] * len(seen[index])
        assert {float(weight) for datum in batches[index] for weight in datum.loss_inputs["weights"]} == {0.0, 1.0}


def test_pairs_that_are_too_long_are_named_or_left_out_and_counted() -> None:
    comparisons = read_comparisons(rows(1, 50, 1, 1, 50, 1))
    strict = pair_batches(comparisons, SHORT, batch_size=3, shuffle=False)
    with pytest.raises(
        DataError, match=r"made, row 2: the chosen answer has .* more than the limit of 40: raise it, or"
    ):
        strict[0]
    lenient = attrs.evolve(SHORT, too_long="skip")
    batches = pair_batches(comparisons, lenient, batch_size=3, shuffle=False)
    assert [numbers(batches[index]) for index in range(2)] == [[0, 2], [3, 5]]
    assert batches[0].metrics == {"data/rows": 3, "data/bad_rows": 0, "data/too_long": 1, "data/truncated": 0}
    with pytest.raises(DataError, match="none of its 1 rows can be trained on: every example is too long"):
        pair_batches(comparisons, lenient, batch_size=1, shuffle=False)[1]
    datums, counts = held_out_pairs(comparisons, lenient)
    assert (len(datums), counts["data/too_long"]) == (8, 2)
    with pytest.raises(DataError, match="made: none of its 1 held-out pairs can be scored: all are too long"):
        held_out_pairs(read_comparisons(rows(50)), lenient)


def test_bad_rows_are_named_by_file_and_line_or_left_out_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        '{"prompt": "q", "chosen": "good", "rejected": "bad"}\n'
        f'{{"prompt": "q", "chosen": "{"x" * 99}", "rejected": "bad"}}\n'
        '{"prompt": "q", "chosen": "same", "rejected": "same"}\n'
        '{"messages": [], "chosen": "good", "rejected": "bad"}\n'
        '{"prompt": [{"role": "assistant", "content": "hi"}], "chosen": "good", "rejected": "bad"}\n',
        encoding="utf-8",
    )
    comparisons = read_comparisons(load_rows(file))
    batches = pair_batches(comparisons, attrs.evolve(SHORT, max_tokens=60), batch_size=1, shuffle=False)
    assert len(batches[0]) == 2
    for index, message in enumerate(
        (
            "line 2: the chosen answer has",
            "line 3: the chosen and the rejected answer are the same",
            "line 4, field 'messages'",
            "line 5, field 'chosen': roles out of order: message 0, of the role 'assistant', stands first",
        ),
        1,
    ):
        with pytest.raises(DataError, match=rf"pairs\.jsonl, {message}"):
            batches[index]
    lenient = attrs.evolve(SHORT, max_tokens=60, too_long="skip")
    (batch,) = pair_batches(comparisons, lenient, shuffle=False, on_bad_row="skip")
    assert len(batch) == 2
    assert batch.metrics == {"data/rows": 5, "data/bad_rows": 3, "data/too_long": 1, "data/truncated": 0}
    _, counts = held_out_pairs(comparisons, lenient, on_bad_row="skip")
    assert counts["data/bad_rows"] == 3
