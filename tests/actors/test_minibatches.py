"""A step in parts: by a budget of tokens, pairs together, and the same step as in one; what was counted while a batch was built."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import Minibatches, RunResult, train_supervised
from engine.backends import Datum, ModelInput
from engine.backends.simulated import SimulatedBackend
from engine.runtime import ActorsFailed
from engine.runtime.testing import simulate
from engine.training.supervised import Batch


def datum(length: int, first: int = 1) -> Datum:
    tokens = np.full(length, first, np.int32)
    return Datum(ModelInput.from_tokens(tokens), {"target_tokens": tokens, "weights": np.ones(length, np.float32)})


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    budget=st.integers(40, 120),
    together=st.sampled_from([1, 2]),
)
def test_parts_hold_everything_once_within_the_budget(lengths: list[int], budget: int, together: int) -> None:
    data = [datum(length, first=place) for place, length in enumerate(lengths)]
    split = Minibatches(budget * together, together).split(data)
    assert sorted(d.model_input.tokens[0] for part in split for d in part) == list(range(len(lengths)))
    sizes = [sum(d.model_input.length for d in part) for part in split]
    assert max(sizes) <= budget * together
    for part in split:
        places = [int(d.model_input.tokens[0]) for d in part]
        assert places == sorted(places)
        if together == 2:  # pairs stand side by side
            assert all(b == a + 1 for a, b in zip(places[::2], places[1::2], strict=False) if a % 2 == 0)
            assert all(place % 2 == 0 for place in places[::2])
    assert Minibatches(budget * together, together).split(data) == split


def test_what_is_larger_than_a_part_is_refused() -> None:
    with pytest.raises(ValueError, match="a datum has 9 tokens, more than the 8 of a minibatch"):
        Minibatches(8).split([datum(3), datum(9)])
    with pytest.raises(ValueError, match="2 datums that belong together have 10 tokens, more than the 8"):
        Minibatches(8, together=2).split([datum(5), datum(5)])
    assert [[d.model_input.length for d in part] for part in Minibatches().split([datum(3), datum(900)])] == [[3, 900]]


class Varied:
    """Batches of 1 to 6 datums of various lengths, with counts."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Batch:
        return Batch(tuple(datum(3 + 5 * n, 40 + index) for n in range(index + 1)), {"data/skipped": float(index)})


def run(minibatches: Minibatches | None, ahead: int = 1) -> tuple[SimulatedBackend, RunResult]:
    backend = SimulatedBackend(record=True)

    async def program() -> RunResult:
        return await train_supervised(backend, batches=Varied(), minibatches=minibatches, ahead=ahead)

    return backend, simulate(program).unwrap()


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_parts_change_what_is_submitted_and_not_the_step(ahead: int) -> None:
    whole, wanted = run(None, ahead)
    parted, result = run(Minibatches(30), ahead)

    def calls(backend: SimulatedBackend) -> list[str]:
        assert backend.log is not None
        return [entry.call for entry in backend.log.training if entry.call in ("forward_backward", "optim_step")]

    assert calls(whole) == ["forward_backward", "optim_step"] * 6
    parts = [int(row["optim/minibatches"]) for row in result.rows]
    assert parts == [1, 1, 1, 2, 3, 4]
    assert calls(parted) == [call for n in parts for call in (*["forward_backward"] * n, "optim_step")]
    for row, one in zip(result.rows, wanted.rows, strict=True):
        same = ("optim/loss", "optim/datums", "tokens/trained", "tokens/weighted", "train/mean_nll", "data/skipped")
        assert {name: row[name] for name in same} == pytest.approx({name: one[name] for name in same})
    assert [row["data/skipped"] for row in result.rows] == list(range(6))


def test_too_large_a_datum_names_the_batch() -> None:
    with pytest.raises(ActorsFailed) as caught:
        run(Minibatches(20))
    error: Any = caught.value.exceptions[0]
    assert str(error) == "batch 4 of 6: a datum has 23 tokens, more than the 20 of a minibatch"
