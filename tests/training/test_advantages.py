"""Advantages: hand-computed values, invariances, oracles, and bad data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.signal import lfilter

from engine.backends.values import Completion, ModelInput
from engine.training import advantages as adv
from engine.training.advantages import ADVANTAGES, Advantage, resolve_advantage, reward_to_go
from engine.training.assembly import assemble
from engine.training.trajectories import Trajectory, TrajectoryGroup, Turn

rewards = arrays(np.float64, st.integers(2, 12), elements=st.floats(-10, 10).map(lambda x: round(x, 3)))


def group_of(
    rewards_G: Sequence[float], lengths: Sequence[int] | None = None, tags: tuple[str, ...] = ()
) -> TrajectoryGroup:
    lengths = lengths or [2] * len(rewards_G)
    return TrajectoryGroup(
        tuple(Trajectory((turn(length, reward),)) for reward, length in zip(rewards_G, lengths, strict=True)), tags
    )


def turn(length: int, reward: float = 0.0) -> Turn:
    return Turn(
        ModelInput.from_tokens([1]),
        Completion(np.ones(length, np.int32), np.full(length, -1, np.float32), "stop", 0),
        reward,
    )


def test_closed_form() -> None:
    values = np.array([1.0, 0.0, 0.0, 3.0])  # mean 1, deviations 0 -1 -1 2, std √1.5
    np.testing.assert_allclose(adv.centred(values), [0, -1, -1, 2])
    np.testing.assert_allclose(adv.grpo(values, eps=0), np.array([0, -1, -1, 2]) / np.sqrt(1.5))
    np.testing.assert_allclose(adv.rloo(values), [0, -4 / 3, -4 / 3, 8 / 3])
    np.testing.assert_allclose(adv.maxrl(values, eps=0), [0, -1, -1, 2])
    np.testing.assert_allclose(adv.maxrl(values / 2, eps=0), [0, -1, -1, 2])
    np.testing.assert_allclose(adv.opo(values, np.array([1, 1, 1, 5])), values - 2)
    np.testing.assert_allclose(
        adv.whiten(np.array([1.0, 3.0]), np.array([3, 1]), eps=0), [-0.5 / np.sqrt(0.75), 1.5 / np.sqrt(0.75)]
    )
    np.testing.assert_allclose(adv.discounted_returns(np.array([1.0, 2.0, 4.0]), 0.5), [3, 4, 4])
    # δ = 1 + 0.5·2 − 1, 0 + 0.5·4 − 2, 3 + 0.5·6 − 4 = 1, 0, 2; γλ = 0.25
    found = adv.gae(np.array([1.0, 0.0, 3.0]), np.array([1.0, 2.0, 4.0]), gamma=0.5, lam=0.5, bootstrap=6)
    np.testing.assert_allclose(found, [1 + 0.25 * 0.5, 0.5, 2])


def test_seats_are_compared_with_their_like() -> None:
    """Whoever moves first wins three of four matches: an average game. Winning as second is what stands out."""
    matches = [1.0, -1.0, 1.0, -1.0, 1.0, -1.0, -1.0, 1.0]
    (advantages_G,) = adv.by_seat(2)([group_of(matches)])
    np.testing.assert_allclose(advantages_G, [0.5, -0.5, 0.5, -0.5, 0.5, -0.5, -1.5, 1.5])
    (plain_G,) = adv.by_group(adv.centred)([group_of(matches)])
    np.testing.assert_allclose(plain_G, matches)
    (one_seat_G,) = adv.by_seat(1)([group_of([1.0, 3.0])])
    np.testing.assert_allclose(one_seat_G, [-1, 1])
    (loo_G,) = adv.by_seat(2, adv.rloo)([group_of([1.0, 5.0, 3.0, 5.0])])
    np.testing.assert_allclose(loo_G, [-2, 0, 2, 0])
    with pytest.raises(ValueError, match=r"group 0 \(chess\) has 3 members, which are no whole matches of 2 seats"):
        adv.by_seat(2)([group_of([1.0, 2.0, 3.0], tags=("chess",))])
    with pytest.raises(ValueError, match="at least one seat"):
        adv.by_seat(0)


@settings(deadline=None)
@given(rewards)
def test_rloo_leaves_one_out(values: Any) -> None:
    expected = [value - np.mean(np.delete(values, index)) for index, value in enumerate(values)]
    np.testing.assert_allclose(adv.rloo(values), expected, atol=1e-9)


@settings(deadline=None)
@given(rewards, st.floats(-100, 100), st.floats(0.1, 10), st.integers(0, 2**31))
def test_shifts_and_scales(values: Any, shift: float, scale: float, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 50, len(values))
    for formula in (adv.centred, adv.rloo, lambda r: adv.opo(r, lengths)):
        np.testing.assert_allclose(formula(values + shift), formula(values), atol=1e-9)
        np.testing.assert_allclose(formula(scale * values), scale * formula(values), atol=1e-8)
    if np.std(values) > 1e-2:
        np.testing.assert_allclose(adv.grpo(scale * values + shift, eps=0), adv.grpo(values, eps=0), atol=1e-7)
    if values.min() >= 0 and values.mean() > 1e-2:
        np.testing.assert_allclose(adv.maxrl(scale * values, eps=0), adv.maxrl(values, eps=0), atol=1e-9)


@settings(deadline=None)
@given(rewards)
def test_means_are_zero_and_relations_hold(values: Any) -> None:
    for formula in (adv.centred, adv.rloo, adv.grpo, adv.whiten):
        assert abs(np.mean(formula(values))) < 1e-6
    np.testing.assert_allclose(adv.opo(values, np.full(len(values), 7)), adv.centred(values), atol=1e-9)
    np.testing.assert_allclose(adv.rloo(values), adv.centred(values) * len(values) / (len(values) - 1), atol=1e-9)
    lengths = np.arange(1, len(values) + 1)
    assert abs(np.dot(lengths, adv.opo(values, lengths))) < 1e-6


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
@pytest.mark.parametrize("reward", [0.0, 0.1, 1.0])
def test_constant_rewards_teach_nothing(name: str, reward: float) -> None:
    for values in ADVANTAGES[name]([group_of([reward] * 7), group_of([reward] * 3)]):
        np.testing.assert_allclose(values, 0, atol=1e-7)


@given(arrays(np.float64, st.integers(1, 70), elements=st.floats(-5, 5)), st.floats(0, 1))
@settings(deadline=None)
def test_discounted_sums_equal_the_recursive_filter(values: Any, discount: float) -> None:
    expected = lfilter([1.0], [1.0, -discount], values[::-1])[::-1]
    np.testing.assert_allclose(adv.discounted_sums(values, discount), expected, atol=1e-9)


def test_a_discount_of_zero_ends_an_episode() -> None:
    values, discount = np.arange(1.0, 8.0), np.array([0.9, 0.9, 0.0, 0.9, 0.9, 0.9, 0.9])
    expected = np.concatenate([adv.discounted_returns(values[:3], 0.9), adv.discounted_returns(values[3:], 0.9)])
    np.testing.assert_allclose(adv.discounted_sums(values, discount), expected)


def test_gae_at_its_ends() -> None:
    random = np.random.default_rng(0)
    rewards_T, values_T = random.normal(size=(2, 300))
    np.testing.assert_allclose(
        adv.gae(rewards_T, values_T, 0.99, 1.0), adv.discounted_returns(rewards_T, 0.99) - values_T
    )
    errors = rewards_T + 0.99 * np.append(values_T[1:], 0.5) - values_T
    np.testing.assert_allclose(adv.gae(rewards_T, values_T, 0.99, 0.0, bootstrap=0.5), errors)
    expected = lfilter([1.0], [1.0, -0.99 * 0.9], errors[::-1])[::-1]
    np.testing.assert_allclose(adv.gae(rewards_T, values_T, 0.99, 0.9, bootstrap=0.5), expected)
    with pytest.raises(ValueError, match="2 values and 3 rewards"):
        adv.gae(np.zeros(3), np.zeros(2))


def test_reinforce_pp_whitens_the_tokens_of_the_whole_step() -> None:
    groups = [group_of([1.0, 0.0], [3, 5]), group_of([4.0, 2.0, 2.0], [1, 2, 9])]
    lengths = np.array([3, 5, 1, 2, 9])
    for name in ("reinforce_pp", "reinforce_pp_baseline"):
        assert ADVANTAGES[name].scope == "step"
        values = ADVANTAGES[name](groups)
        assert [len(each) for each in values] == [2, 3]
        tokens = np.repeat(np.concatenate(values), lengths)
        assert tokens.mean() == pytest.approx(0, abs=1e-7)
        assert tokens.std() == pytest.approx(1, abs=1e-6)
    flat = np.concatenate(ADVANTAGES["reinforce_pp"](groups))
    assert flat[3] == pytest.approx(flat[4])  # equal rewards, equal advantages
    assert ADVANTAGES["reinforce_pp"]([]) == []


def test_group_scope_does_not_look_at_other_groups() -> None:
    groups = [group_of([1.0, 0.0, 0.5], [3, 5, 1]), group_of([4.0, 2.0, 2.0], [1, 2, 9])]
    for name, advantage in ADVANTAGES.items():
        together = advantage(groups)
        alone = [advantage([group])[0] for group in groups]
        same = all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
        assert same == (advantage.scope == "group"), name


def test_reward_to_go_credits_turns() -> None:
    first = Trajectory((turn(2, 1.0), turn(3, 2.0)), final_reward=4.0)  # returns 7, 6; at γ = 0.5: 4, 6
    second = Trajectory((turn(1, 3.0),))
    (values,) = ADVANTAGES["reward_to_go"]([TrajectoryGroup((first, second))])
    np.testing.assert_allclose(values, [2, 2, 0, 0, 0, -2])
    (values,) = reward_to_go(0.5)([TrajectoryGroup((first, second))])
    np.testing.assert_allclose(values, [0.5, 0.5, 0, 0, 0, -0.5])
    group = group_of([1.0, 0.0, 3.0], [2, 1, 4])
    np.testing.assert_allclose(
        ADVANTAGES["reward_to_go"]([group])[0], np.repeat(ADVANTAGES["centred"]([group])[0], [2, 1, 4])
    )
    assert sum(len(datum.loss_inputs["mask"]) for datum in assemble(group, ADVANTAGES["reward_to_go"]([group])[0])) == 7


def test_a_name_or_a_callable() -> None:
    assert resolve_advantage("centred") is ADVANTAGES["centred"]

    def mine(groups: Sequence[TrajectoryGroup]) -> list[Any]:
        return [np.ones(len(group.trajectories)) for group in groups]

    found = resolve_advantage(mine)
    assert isinstance(found, Advantage)
    assert found.scope == "step"
    assert found([group_of([1.0, 2.0])])[0].tolist() == [1, 1]
    mine.scope = "group"  # type: ignore[attr-defined]
    assert resolve_advantage(mine).scope == "group"
    assert resolve_advantage(adv.by_group(adv.centred)).scope == "group"
    mine.scope = "batch"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="is 'group' or 'step', not 'batch'"):
        resolve_advantage(mine)
    with pytest.raises(ValueError, match="no advantage is called 'ppo'; there are centred, grpo"):
        resolve_advantage("ppo")


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_rewards_are_named(name: str, bad: float) -> None:
    groups = [group_of([1.0, 0.0]), group_of([0.0, bad, 1.0], tags=("arithmetic", "digits_2"))]
    with pytest.raises(ValueError, match=rf"group 1 \(arithmetic, digits_2\): the reward of member 1 is {bad}"):
        ADVANTAGES[name](groups)
    with pytest.raises(ValueError, match="group 0 is empty: advantages need at least one trajectory"):
        ADVANTAGES[name]([TrajectoryGroup(())])


def test_huge_rewards_are_not_mistaken_for_bad_ones() -> None:
    assert adv.finite_rewards(group_of([1e308, 1e308])).tolist() == [1e308, 1e308]


def test_formulas_refuse_what_they_have_no_meaning_for() -> None:
    with pytest.raises(ValueError, match="maxrl needs rewards of at least 0, but the smallest is -1"):
        ADVANTAGES["maxrl"]([group_of([1.0, -1.0])])
    with pytest.raises(ValueError, match="group 0: no member has a sampled token"):
        ADVANTAGES["opo"]([group_of([1.0, 0.0], [0, 0])])
    assert ADVANTAGES["rloo"]([group_of([1.0])])[0].tolist() == [0]
