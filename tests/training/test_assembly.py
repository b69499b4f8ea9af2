"""Datum assembly against a slow, obvious second implementation, and its errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends.values import Completion, ImageChunk, ModelInput, TokenChunk
from engine.training.assembly import assemble, pack_by_tokens, split_by_tokens
from engine.training.trajectories import Trajectory, TrajectoryGroup, Turn


def turn(prompt: Any, action: list[int], logprob: float = -0.5, reward: float = 0.0) -> Turn:
    model_input = prompt if isinstance(prompt, ModelInput) else ModelInput.from_tokens(prompt)
    logprobs = np.array([logprob - 0.01 * i for i in range(len(action))], np.float32)
    return Turn(model_input, Completion(np.array(action, np.int32), logprobs, "stop", 0), reward)


def group_of(*trajectories: list[Turn], tags: tuple[str, ...] = ()) -> TrajectoryGroup:
    return TrajectoryGroup(tuple(Trajectory(tuple(turns)) for turns in trajectories), tags)


def plain(group: TrajectoryGroup, advantages: Any) -> list[dict[str, list[float]]]:
    """Token by token, with lists."""
    datums: list[dict[str, list[float]]] = []
    values = iter(advantages) if len(advantages) != len(group.trajectories) else None
    for member, trajectory in enumerate(group.trajectories):
        current: dict[str, list[float]] | None = None
        for each in trajectory.turns:
            prompt, action = each.prompt.tokens.tolist(), each.completion.tokens.tolist()
            if not action:
                continue
            if current is None or current["tokens"] != prompt[: len(current["tokens"])]:
                current = {"tokens": [], "logprobs": [], "advantages": [], "mask": []}
                datums.append(current)
            new = len(prompt) - len(current["tokens"])
            current["tokens"] += prompt[len(current["tokens"]) :] + action
            current["logprobs"] += [0.0] * new + each.completion.logprobs.tolist()
            current["advantages"] += [0.0] * new + [
                float(advantages[member]) if values is None else float(next(values)) for _ in action
            ]
            current["mask"] += [0.0] * new + [1.0] * len(action)
    return datums


def assert_same(group: TrajectoryGroup, advantages: Any) -> None:
    datums = assemble(group, np.asarray(advantages))
    expected = plain(group, advantages)
    assert len(datums) == len(expected)
    for datum, want in zip(datums, expected, strict=True):
        assert datum.model_input.tokens.tolist() == want["tokens"][:-1]
        assert datum.loss_inputs["target_tokens"].tolist() == want["tokens"][1:]
        for name in ("logprobs", "advantages", "mask"):
            np.testing.assert_array_equal(datum.loss_inputs[name], np.array(want[name][1:], np.float32))
            assert datum.loss_inputs[name].dtype == np.float32


tokens = st.lists(st.integers(0, 3), min_size=1, max_size=4)


@st.composite
def trajectories(draw: st.DrawFn) -> list[Turn]:
    """Turns that sometimes extend the last and sometimes start over, or share only a part with it."""
    turns: list[Turn] = []
    context: list[int] = draw(tokens)
    for _ in range(draw(st.integers(1, 5))):
        action = draw(tokens)
        turns.append(turn(context, action, -draw(st.floats(0.1, 5.0))))
        full = context + action
        context = draw(st.sampled_from([full, [*full, 1], full + draw(tokens), [*full[:-1], 9], draw(tokens)]))
    return turns


@given(st.lists(trajectories(), min_size=1, max_size=4), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_equals_the_token_by_token_assembly(members: list[list[Turn]], per_token: bool, seed: int) -> None:
    group = group_of(*members)
    count = group.sampled_tokens if per_token else len(members)
    assert_same(group, np.random.default_rng(seed).normal(size=count))


@given(st.lists(trajectories(), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_every_sampled_token_is_trained_exactly_once(members: list[list[Turn]]) -> None:
    group = group_of(*members)
    datums = assemble(group, np.ones(len(members)))
    trained = [datum.loss_inputs["target_tokens"][datum.loss_inputs["mask"] > 0] for datum in datums]
    sampled = [each.completion.tokens for member in members for each in member]
    assert np.concatenate(trained).tolist() == np.concatenate(sampled).tolist()


def test_one_turn() -> None:
    (datum,) = assemble(group_of([turn([5, 6], [7, 8])]), np.array([2.0]))
    assert datum.model_input.tokens.tolist() == [5, 6, 7]
    assert datum.loss_inputs["target_tokens"].tolist() == [6, 7, 8]
    assert datum.loss_inputs["advantages"].tolist() == [0, 2, 2]
    assert datum.loss_inputs["mask"].tolist() == [0, 1, 1]
    np.testing.assert_allclose(datum.loss_inputs["logprobs"], [0, -0.5, -0.51])


def test_turns_that_extend_merge_and_a_rewritten_history_starts_a_new_datum() -> None:
    turns = [turn([1, 2], [3]), turn([1, 2, 3, 4], [5, 6]), turn([1, 2, 9, 9, 9, 9, 9], [7])]
    first, second = assemble(group_of(turns), np.array([1.0]))
    assert first.model_input.tokens.tolist() == [1, 2, 3, 4, 5]
    assert first.loss_inputs["mask"].tolist() == [0, 1, 0, 1, 1]
    assert second.model_input.tokens.tolist() == [1, 2, 9, 9, 9, 9, 9]


def test_a_turn_that_said_nothing_leaves_no_gap() -> None:
    turns = [turn([1, 2], [3]), turn([1, 2, 3, 4], []), turn([1, 2, 3, 4, 4], [5])]
    (datum,) = assemble(group_of(turns), np.array([1.0]))
    assert datum.loss_inputs["target_tokens"].tolist() == [2, 3, 4, 4, 5]
    assert datum.loss_inputs["mask"].tolist() == [0, 1, 0, 0, 1]


def test_turns_can_be_kept_out_of_training() -> None:
    turns = [turn([1, 2], [3], reward=-1.0), turn([1, 2, 3, 4], [5, 6])]
    (datum,) = assemble(group_of(turns), np.array([1.5]), train_turn=lambda each: each.reward >= 0)
    assert datum.loss_inputs["target_tokens"].tolist() == [2, 3, 4, 5, 6]
    assert datum.loss_inputs["mask"].tolist() == [0, 0, 0, 1, 1]
    assert datum.loss_inputs["advantages"].tolist() == [0, 0, 0, 1.5, 1.5]


def test_images_keep_their_place_and_are_never_predicted() -> None:
    picture, other = ImageChunk("a.png", 3), ImageChunk("b.png", 3)
    first = ModelInput((TokenChunk([1]), picture, TokenChunk([2])))
    (datum,) = assemble(group_of([turn(first, [3, 4]), turn(first.append([3, 4, 5]), [6])]), np.array([1.0]))
    assert datum.model_input == ModelInput((TokenChunk([1]), picture, TokenChunk([2, 3, 4, 5])))
    assert datum.loss_inputs["target_tokens"].tolist() == [0, 0, 0, 2, 3, 4, 5, 6]
    assert datum.loss_inputs["mask"].tolist() == [0, 0, 0, 0, 1, 1, 0, 1]

    swapped = ModelInput((TokenChunk([1]), other, TokenChunk([2, 3, 4, 5])))
    assert len(assemble(group_of([turn(first, [3, 4]), turn(swapped, [6])]), np.array([1.0]))) == 2


def test_a_member_that_was_never_asked_gives_no_datum_and_keeps_its_place_among_the_advantages() -> None:
    """The other player ended the game before its first turn: no fault of its own."""
    (datum,) = assemble(group_of([], [turn([1, 2], [3])]), np.array([0.5, -0.5]))
    assert datum.loss_inputs["advantages"].tolist() == [0, -0.5]


def test_bad_data_is_named() -> None:
    good = [turn([1, 2], [3])]
    with pytest.raises(ValueError, match=r"empty group \(chess\)"):
        assemble(group_of(tags=("chess",)), np.empty(0))
    with pytest.raises(ValueError, match=r"member 1 of the group \(chess\) has no sampled tokens"):
        assemble(group_of(good, [turn([1, 2], [])], tags=("chess",)), np.zeros(2))
    assert len(assemble(group_of(good, [turn([1, 2], [])]), np.zeros(2), without_tokens="skip")) == 1
    assert assemble(group_of([turn([1, 2], [])]), np.zeros(1), without_tokens="skip") == []
    with pytest.raises(ValueError, match=r"shape \(3,\) fit neither the group's 2 members nor its 4 sampled tokens"):
        assemble(group_of(good, [turn([1], [2, 3, 4])]), np.zeros(3))
    with pytest.raises(ValueError, match=r"advantage of member 1 .* is nan"):
        assemble(group_of(good, [turn([1], [2, 3, 4])]), np.array([0, np.nan]))
    with pytest.raises(ValueError, match=r"advantage of member 1 .* is inf"):
        assemble(group_of(good, [turn([1], [2, 3, 4])]), np.array([0, 0, np.inf, 0]))
    with pytest.raises(ValueError, match="member 1: the sampler's logprob of a sampled token is nan"):
        assemble(group_of(good, [turn([1], [2, 3], logprob=float("nan"))]), np.zeros(2))
    with pytest.raises(ValueError, match="member 0, turn 0: the prompt has no tokens"):
        assemble(group_of([turn([], [2, 3])]), np.zeros(1))
    short = Turn(
        ModelInput.from_tokens([1]), Completion(np.array([2, 3], np.int32), np.zeros(1, np.float32), "stop", 0)
    )
    with pytest.raises(ValueError, match="turn 1: 2 sampled tokens but 1 logprobs"):
        assemble(group_of([turn([1], [2]), short]), np.zeros(1))


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30), st.data())
@settings(max_examples=150, deadline=None)
def test_splitting_is_a_balanced_partition(lengths: list[int], data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, len(lengths)))
    split = split_by_tokens(lengths, parts)
    assert sorted(index for part in split for index in part) == list(range(len(lengths)))
    assert len(split) == parts
    assert all(part and part == sorted(part) for part in split)
    loads = [sum(lengths[i] for i in part) for part in split]
    assert max(loads) - min(loads) <= max(lengths)  # no part lags by more than one item
    assert split == split_by_tokens(lengths, parts)


@given(st.lists(st.integers(0, 100), max_size=30), st.integers(100, 400))
@settings(max_examples=150, deadline=None)
def test_packing_keeps_to_the_budget(lengths: list[int], budget: int) -> None:
    packed = pack_by_tokens(lengths, budget)
    assert sorted(index for part in packed for index in part) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in part) <= budget for part in packed)
    # Any two neighbours in a packing that wastes half of every minibatch could be joined: a packing is never that bad.
    assert len(packed) <= max(1, -(-2 * sum(lengths) // budget)) + 1 or not lengths


def test_packing_says_what_does_not_fit() -> None:
    assert pack_by_tokens([60, 30, 50, 40], 100) == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="item 2 has 101 tokens, more than the budget of 100"):
        pack_by_tokens([1, 2, 101], 100)
    with pytest.raises(ValueError, match="cannot split 2 items into 3"):
        split_by_tokens([1, 2], 3)
