"""Comparisons as pairs of datums, in batches of whole pairs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.backends.values import Datum
from engine.data import BadRow, Comparison, PairBatches, PairTooLong, all_pairs, pair_datums, read_comparisons, rows_of
from engine.data.loading import load_rows
from engine.rendering import Renderer, ToolCallPart, assistant, get_renderer, tool_result, user
from engine.rendering.registry import control_tokens
from engine.rendering.vocabulary import byte_vocabulary

COLON = get_renderer("role_colon", byte_vocabulary(()))
QWEN = get_renderer("qwen3", byte_vocabulary(control_tokens("qwen3")))
PAIR = Comparison((user("2 + 3?"),), (assistant("5"),), (assistant("it is 6"),))


def trained(renderer: Renderer, datum: Datum) -> str:
    weights = datum.loss_inputs["weights"]
    return renderer.vocabulary.decode(datum.loss_inputs["target_tokens"][weights > 0])


def comparison(number: int, length: int = 1) -> Comparison:
    return Comparison((user(f"{number}?"),), (assistant("x" * length),), (assistant("y"),))


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


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_every_epoch_trains_every_pair_once_in_an_order_of_its_own(
    count: int, size: int, epochs: int, shuffle: bool
) -> None:
    batches = PairBatches(
        comparisons=[comparison(number) for number in range(count)],
        renderer=COLON,
        pairs_per_batch=size,
        epochs=epochs,
        shuffle=shuffle,
        seed=3,
    )
    seen = [number for index in range(len(batches)) for number in numbers(batches[index])]
    assert len(seen) == count * epochs
    for epoch in range(epochs):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))
    if not shuffle:
        assert seen == list(range(count)) * epochs
    assert [len(batches[index]) for index in range(len(batches) - 1)] == [2 * size] * (len(batches) - 1)
    # The same position gives the same batch, whichever was asked for before: a resumed run depends on it.
    again = numbers(batches[len(batches) - 1])
    assert again == seen[(len(batches) - 1) * size :]


def test_orders_differ_by_epoch_and_by_seed() -> None:
    many = [comparison(number) for number in range(40)]
    orders = [
        tuple(numbers(PairBatches(comparisons=many, renderer=COLON, pairs_per_batch=40, epochs=2, seed=seed)[epoch]))
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(orders)) == 4


def test_pairs_that_are_too_long_are_named_or_left_out_and_counted() -> None:
    rows = [comparison(number, length=50 if number in (1, 4) else 1) for number in range(6)]
    strict = PairBatches(comparisons=rows, renderer=COLON, pairs_per_batch=3, shuffle=False, max_tokens=40)
    with pytest.raises(BadRow, match=r"comparison 1: the chosen answer has .* more than the limit of 40"):
        strict[0]
    lenient = PairBatches(
        comparisons=rows, renderer=COLON, pairs_per_batch=3, shuffle=False, max_tokens=40, too_long="skip"
    )
    assert [numbers(lenient[index]) for index in range(2)] == [[0, 2], [3, 5]]
    assert lenient[0].metrics == {"data/pairs": 2.0, "data/pairs_too_long": 1.0}
    alone = PairBatches(
        comparisons=rows, renderer=COLON, pairs_per_batch=1, shuffle=False, max_tokens=40, too_long="skip"
    )
    with pytest.raises(ValueError, match=r"none of its 1 pairs fits: the chosen answer has .*; raise max_tokens"):
        alone[1]


def test_bad_rows_are_named_by_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        '{"prompt": "q", "chosen": "good", "rejected": "bad"}\n'
        f'{{"prompt": "q", "chosen": "{"x" * 99}", "rejected": "bad"}}\n'
        '{"prompt": "q", "chosen": "same", "rejected": "same"}\n',
        encoding="utf-8",
    )
    batches = PairBatches(
        comparisons=read_comparisons(load_rows(file)), renderer=COLON, pairs_per_batch=1, shuffle=False, max_tokens=60
    )
    assert len(batches[0]) == 2
    with pytest.raises(BadRow, match=r"pairs\.jsonl, line 2: the chosen answer has"):
        batches[1]
    with pytest.raises(BadRow, match=r"pairs\.jsonl, line 3: the chosen and the rejected answer are the same"):
        batches[2]
    kept = read_comparisons(load_rows(file), on_bad_row="skip")
    assert (len(kept), kept.skipped.count) == (2, 1)


def test_all_pairs_in_order() -> None:
    held_out = all_pairs(
        COLON, read_comparisons(rows_of([{"prompt": f"{n}?", "chosen": "a", "rejected": "b"} for n in range(3)]))
    )
    assert numbers(held_out) == [0, 1, 2]
    assert Counter(trained(COLON, datum).split()[0] for datum in held_out) == {"a": 3, "b": 3}
    with pytest.raises(ValueError, match="no comparisons"):
        PairBatches(comparisons=[], renderer=COLON)
