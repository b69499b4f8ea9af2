"""Conversations to batches: determinism by position, epochs, limits on length, what is left out and counted, weights, bytes."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data import (
    BadRow,
    DataError,
    Rows,
    SupervisedBatches,
    ToDatums,
    held_out_set,
    read_conversations,
    rows_of,
)
from engine.rendering import TrainOnWhat, get_renderer
from engine.rendering.registry import control_tokens
from engine.rendering.vocabulary import byte_vocabulary

RENDERER = get_renderer("qwen3", byte_vocabulary(control_tokens("qwen3")))
TO_DATUMS = ToDatums(renderer=RENDERER)
GOOD = {"prompt": "abc", "response": "defg"}
BAD = {"prompt": "abc"}


def pairs(count: int, length: int = 3) -> Rows:
    return rows_of([{"prompt": f"{n:03}", "response": "x" * (1 + n % length)} for n in range(count)], "made")


def batches(rows: Rows, **options: Any) -> SupervisedBatches:
    return SupervisedBatches(examples=read_conversations(rows), **{"to_datums": TO_DATUMS, **options})


def prompts(batch: Any) -> list[str]:
    texts = [RENDERER.vocabulary.decode(datum.model_input.tokens) for datum in batch]
    return [text.split("user\n")[1][:3] for text in texts]


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 30), size=st.integers(1, 12), epochs=st.integers(1, 3), seed=st.integers(-5, 2**40))
def test_every_epoch_has_every_row_once_in_an_order_of_its_own(count: int, size: int, epochs: int, seed: int) -> None:
    made = batches(pairs(count), batch_size=size, epochs=epochs, seed=seed)
    assert len(made) == epochs * -(-count // size)
    seen = [prompts(made[index]) for index in range(len(made))]
    again = batches(pairs(count), batch_size=size, epochs=epochs, seed=seed)
    assert [prompts(again[index]) for index in reversed(range(len(made)))] == seen[::-1]
    orders = [
        [text for batch in seen[start : start + made.batches_per_epoch] for text in batch]
        for start in range(0, len(made), made.batches_per_epoch)
    ]
    for order in orders:
        assert sorted(order) == [f"{n:03}" for n in range(count)]
    if count > 12:
        assert len({tuple(order) for order in orders}) == epochs
    plain = attrs.evolve(made, shuffle=False)
    assert [text for index in range(made.batches_per_epoch) for text in prompts(plain[index])] == sorted(orders[0])


def test_outside_there_is_no_batch() -> None:
    made = batches(pairs(3), batch_size=2)
    for index in (2, -1):
        with pytest.raises(IndexError):
            made[index]


def test_weights_of_a_step_add_up_to_one_or_count_tokens() -> None:
    mean, total = batches(pairs(5), batch_size=5), batches(pairs(5), batch_size=5, mean=False)
    weights = [datum.loss_inputs["weights"] for datum in mean[0]]
    assert sum(float(w.sum(dtype=np.float64)) for w in weights) == pytest.approx(1.0)
    ones = [datum.loss_inputs["weights"] for datum in total[0]]
    assert all(set(np.unique(w)) == {0.0, 1.0} for w in ones)
    for scaled, one in zip(weights, ones, strict=True):
        np.testing.assert_array_equal(scaled != 0, one != 0)
    assert len({w.max() for w in weights}) == 1


def test_what_is_trained_on_is_the_renderers_choice() -> None:
    rows = rows_of([{"messages": [{"role": r, "content": r[0] * 4} for r in ("user", "assistant") * 2]}])

    def trained(choice: TrainOnWhat) -> str:
        made = batches(rows, to_datums=ToDatums(renderer=RENDERER, train_on=choice), mean=False)
        return "|".join(
            RENDERER.vocabulary.decode(d.loss_inputs["target_tokens"][d.loss_inputs["weights"] > 0]) for d in made[0]
        )

    assert trained(TrainOnWhat.LAST_ASSISTANT_MESSAGE).count("aaaa") == 1
    assert trained(TrainOnWhat.ALL_ASSISTANT_MESSAGES).count("aaaa") == 2
    assert "uuuu" not in trained(TrainOnWhat.ALL_ASSISTANT_MESSAGES)
    assert trained(TrainOnWhat.ALL_MESSAGES).count("uuuu") == 2


# --- length


def long_rows() -> Rows:
    return rows_of(
        [GOOD, {"prompt": "abc", "response": "x" * 200}, {"prompt": "q" * 200, "response": "x"}, GOOD], "made"
    )


def test_too_long_is_an_error_that_names_the_row() -> None:
    made = batches(long_rows(), to_datums=ToDatums(renderer=RENDERER, max_tokens=60, too_long="error"), shuffle=False)
    with pytest.raises(DataError, match=r"made, row 2: \d+ tokens, more than the limit of 60: raise it"):
        made[0]
    # It is no bad row: skipping those does not hide it.
    with pytest.raises(DataError, match="made, row 2"):
        attrs.evolve(made, on_bad_row="skip")[0]


def test_too_long_is_cut_or_left_out_and_counted() -> None:
    cut = batches(long_rows(), to_datums=ToDatums(renderer=RENDERER, max_tokens=60), shuffle=False)[0]
    # The third keeps nothing to learn from: its answer begins behind the limit.
    assert cut.metrics == {"data/rows": 4, "data/bad_rows": 0, "data/too_long": 1, "data/truncated": 1}
    assert [datum.model_input.length for datum in cut][1] == 59
    skip = ToDatums(renderer=RENDERER, max_tokens=60, too_long="skip")
    left = batches(long_rows(), to_datums=skip, shuffle=False)[0]
    assert left.metrics == {"data/rows": 4, "data/bad_rows": 0, "data/too_long": 2, "data/truncated": 0}
    assert len(left) == 2
    whole = batches(long_rows(), shuffle=False)[0]
    assert whole.metrics == {"data/rows": 4, "data/bad_rows": 0, "data/too_long": 0, "data/truncated": 0}


# --- rows that do not fit


NOTHING_TO_LEARN = {"messages": [{"role": "user", "content": "x"}]}
SAYS_TRAINABLE = {"messages": [{"role": "user", "content": "x", "trainable": True}]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (BAD, "made, row 2: no conversation in the fields prompt"),
        (NOTHING_TO_LEARN, "made, row 2: no token of the example has a weight above 0"),
        (SAYS_TRAINABLE, r"made, row 2: message 0 \(user\): trainable is for 'customized' alone"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "made, row 2: roles out of order"),
    ],
)
def test_a_row_that_does_not_fit_is_an_error_or_counted(row: dict[str, Any], message: str) -> None:
    made = batches(rows_of([GOOD, row, GOOD], "made"), shuffle=False)
    with pytest.raises(BadRow, match=message):
        made[0]
    skipping = attrs.evolve(made, on_bad_row="skip")
    batch = skipping[0]
    assert (len(batch), batch.metrics["data/bad_rows"], batch.metrics["data/rows"]) == (2, 1, 3)
    assert len(skipping.reasons) == 1
    assert skipping.reasons[0].startswith("made, row 2")


def test_a_batch_of_which_nothing_is_left_says_why() -> None:
    made = batches(rows_of([BAD, BAD, GOOD], "made"), shuffle=False, batch_size=2, on_bad_row="skip")
    with pytest.raises(DataError, match=r"step 0: none of its 2 rows can be trained on: made, row 1.*; made, row 2"):
        made[0]
    assert len(made[1]) == 1
    long = ToDatums(renderer=RENDERER, max_tokens=4, too_long="skip")
    with pytest.raises(DataError, match="every example is too long"):
        batches(rows_of([GOOD]), to_datums=long)[0]


def test_reasons_are_the_first_few() -> None:
    made = batches(rows_of([GOOD, *[BAD] * 9], "made"), shuffle=False, on_bad_row="skip")
    assert made[0].metrics["data/bad_rows"] == 9
    assert [reason.split(":")[0] for reason in made.reasons] == [f"made, row {n}" for n in (2, 3, 4)]


# --- held out


def test_bytes_are_those_of_the_weighted_text() -> None:
    rows = rows_of([{"prompt": "?", "response": "né"}, {"prompt": "??", "response": "x"}], "made")
    held = held_out_set(read_conversations(rows), TO_DATUMS)
    said = "".join(
        RENDERER.vocabulary.decode(d.loss_inputs["target_tokens"][d.loss_inputs["weights"] > 0]) for d in held.data
    )
    for name in RENDERER.vocabulary.special_tokens:
        said = said.replace(name, "")
    assert held.text_bytes == len(said.encode())
    assert "né" in said
    assert str(held) == "2 examples"


def test_held_out_rows_are_counted_too() -> None:
    limited = ToDatums(renderer=RENDERER, max_tokens=60)
    rows = rows_of([*long_rows(), BAD], "made")
    held = held_out_set(read_conversations(rows), limited, "skip")
    assert str(held) == "3 examples, 2 left out, 1 cut short"
    assert held.reasons[0].startswith("made, row 5")
    with pytest.raises(BadRow, match="made, row 5"):
        held_out_set(read_conversations(rows), limited)
    with pytest.raises(DataError, match="none of its 1 held-out rows can be scored"):
        held_out_set(read_conversations(rows_of([BAD])), limited, "skip")
