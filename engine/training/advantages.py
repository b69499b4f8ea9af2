"""Advantages: how much better than expected each member of a group did.

Each estimator is a small function on arrays, with its source. `ADVANTAGES` has them by name, ready for a step's groups; a function of your
own goes wherever a name does (`by_group`, `by_step` or any callable of the same shape).

Dimension suffixes: `G` members of one group, `B` members of a whole step, `T` steps in time, `N` sampled tokens of one group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from engine.training.trajectories import TrajectoryGroup

Array = NDArray[np.float64]
Scope = Literal["group", "step"]

AdvantageFn = Callable[[Sequence[TrajectoryGroup]], list[Array]]
"""From groups to one array for each: shape (G,), a number for each member that all its sampled tokens share; or shape (N,), a number for
each sampled token, members one after another and their turns in order. (Where G equals N, both mean the same.)"""


@attrs.frozen
class Advantage:
    """An advantage function that says how much of a step it has to see at once."""

    function: AdvantageFn
    scope: Scope
    """`group`: a group's advantages depend on that group alone, so it can be trained as soon as it is there. `step`: all groups of an
    optimizer step are needed before any of them."""

    def __call__(self, groups: Sequence[TrajectoryGroup]) -> list[Array]:
        """One array of advantages for each group. Raises ValueError for an empty group and for a reward that is not finite."""
        return self.function(groups)


# ---- formulas, one group at a time ---------------------------------------------------------------------------------------------------


def centred(rewards_G: Array) -> Array:
    """R − mean(R). Dr. GRPO, arXiv 2503.20783: no division, so easy and hard problems weigh what their rewards say."""
    return rewards_G - np.mean(rewards_G)


def grpo(rewards_G: Array, eps: float = 1e-6) -> Array:
    """(R − mean) / (std + eps), std over the group's members without correction. GRPO, arXiv 2402.03300."""
    deviations_G = rewards_G - np.mean(rewards_G)
    return deviations_G / float(np.sqrt(np.mean(deviations_G**2)) + eps)


def rloo(rewards_G: Array) -> Array:
    """R_i − mean of the others' rewards. Leave-one-out, arXiv 2402.14740. Zero for a group of one, which has no others."""
    members = len(rewards_G)
    return centred(rewards_G) * (members / (members - 1) if members > 1 else 0.0)


def opo(rewards_G: Array, lengths_G: NDArray[Any]) -> Array:
    """R − Σ len·R / Σ len: the baseline of least variance when a gradient's norm grows with its length. OPO, arXiv 2505.23585."""
    return rewards_G - float(np.average(rewards_G, weights=lengths_G))


def maxrl(rewards_G: Array, eps: float = 1e-6) -> Array:
    """(R − mean) / (mean + eps), for rewards ≥ 0: rare successes weigh more. MaxRL, arXiv 2602.02710.

    Raises ValueError for a negative reward, where the formula means nothing.
    """
    if rewards_G.min() < 0:
        raise ValueError(f"maxrl needs rewards of at least 0, but the smallest is {rewards_G.min():g}")
    mean = float(np.mean(rewards_G))
    return (rewards_G - mean) / (mean + eps)


def whiten(values_B: Array, weights_B: NDArray[Any] | None = None, eps: float = 1e-8) -> Array:
    """(x − mean) / (std + eps), the moments weighted by `weights_B` (a member's tokens, where every token is to count once)."""
    weights_B = np.ones(len(values_B)) if weights_B is None else weights_B
    deviations_B = values_B - float(np.average(values_B, weights=weights_B))
    return deviations_B / float(np.sqrt(np.average(deviations_B**2, weights=weights_B)) + eps)


# ---- formulas over time --------------------------------------------------------------------------------------------------------------


def discounted_sums(values_T: Array, discount: float | Array) -> Array:
    """y_t = x_t + c_t·y_{t+1}, with y = 0 behind the end. `discount` may be one number or shape (T,), where a 0 ends an episode.

    A doubling scan: O(T log T) array work without the division by powers of c that makes the cumulative-sum form overflow.
    """
    sums_T = np.array(values_T, np.float64)
    factors_T = np.array(np.broadcast_to(np.asarray(discount, np.float64), sums_T.shape))
    step = 1
    while step < len(sums_T):
        sums_T[:-step] += factors_T[:-step] * sums_T[step:]
        factors_T[:-step] *= factors_T[step:]
        factors_T[-step:] = 0.0
        step *= 2
    return sums_T


def discounted_returns(rewards_T: Array, gamma: float = 1.0) -> Array:
    """Σ_k γ^k r_{t+k}: the return from each step on, shape (T,)."""
    return discounted_sums(rewards_T, gamma)


def gae(rewards_T: Array, values_T: Array, gamma: float = 1.0, lam: float = 0.95, bootstrap: float = 0.0) -> Array:
    """Generalised advantage estimates of one episode, shape (T,). arXiv 1506.02438.

    `values_T` are a critic's values of the states acted in; `bootstrap` is its value of the state behind the last action, 0 where the
    episode had ended.
    """
    if len(rewards_T) != len(values_T):
        raise ValueError(
            f"gae needs one value for each reward, but there are {len(values_T)} values and {len(rewards_T)} rewards"
        )
    errors_T = rewards_T + gamma * np.append(values_T[1:], bootstrap) - values_T
    return discounted_sums(errors_T, gamma * lam)


# ---- from formulas to groups ---------------------------------------------------------------------------------------------------------


def describe_group(index: int, group: TrajectoryGroup) -> str:
    """How an error names a group: its place among those at hand and its tags."""
    return f"group {index}" + (f" ({', '.join(group.tags)})" if group.tags else "")


def finite_rewards(group: TrajectoryGroup, index: int = 0) -> Array:
    """Returns of the members, shape (G,). Raises ValueError, naming the group and the member, for an empty group or a reward that is not finite."""
    rewards_G = group.rewards_G
    if not len(rewards_G):
        raise ValueError(f"{describe_group(index, group)} is empty: advantages need at least one trajectory")
    finite_G = np.isfinite(rewards_G)
    if not finite_G.all():
        member = int(np.argmin(finite_G))
        raise ValueError(
            f"{describe_group(index, group)}: the reward of member {member} is {rewards_G[member]}; rewards must be finite numbers"
        )
    return rewards_G


def by_group(formula: Callable[[Array], Array]) -> Advantage:
    """An advantage from a formula on one group's rewards, (G,) to (G,)."""

    def function(groups: Sequence[TrajectoryGroup]) -> list[Array]:
        return [formula(finite_rewards(group, index)) for index, group in enumerate(groups)]

    return Advantage(function, "group")


def by_seat(seats: int, formula: Callable[[Array], Array] = centred) -> Advantage:
    """For games with roles: a formula on the rewards of the members that have the same seat, which are every `seats`-th of a group.

    In a zero-sum match that the policy plays against itself, a group's mean is what the rules make it (0), and says nothing of how much the first move is worth.
    Compared within a seat, the first mover gets credit for winning more than first movers do. Raises ValueError for a group that is not whole matches.
    """
    if seats < 1:
        raise ValueError(f"a game has at least one seat, got {seats}")

    def function(groups: Sequence[TrajectoryGroup]) -> list[Array]:
        return [_by_seat(finite_rewards(group, index), group, index) for index, group in enumerate(groups)]

    def _by_seat(rewards_G: Array, group: TrajectoryGroup, index: int) -> Array:
        if len(rewards_G) % seats:
            raise ValueError(
                f"{describe_group(index, group)} has {len(rewards_G)} members, which are no whole matches of {seats} seats"
            )
        advantages_G = np.empty_like(rewards_G)
        for seat in range(seats):
            advantages_G[seat::seats] = formula(rewards_G[seat::seats])
        return advantages_G

    return Advantage(function, "group")


def by_step(formula: Callable[[list[Array], list[NDArray[np.int64]]], list[Array]]) -> Advantage:
    """An advantage from a formula on the rewards and the sampled tokens of every group of a step, each a list of arrays (G,)."""

    def function(groups: Sequence[TrajectoryGroup]) -> list[Array]:
        rewards = [finite_rewards(group, index) for index, group in enumerate(groups)]
        return formula(rewards, [sampled_lengths(group) for group in groups]) if rewards else []

    return Advantage(function, "step")


def sampled_lengths(group: TrajectoryGroup) -> NDArray[np.int64]:
    """Sampled tokens of each member, shape (G,)."""
    return np.array([trajectory.sampled_tokens for trajectory in group.trajectories], np.int64)


def _opo_groups(groups: Sequence[TrajectoryGroup]) -> list[Array]:
    advantages = []
    for index, group in enumerate(groups):
        lengths_G = sampled_lengths(group)
        rewards_G = finite_rewards(group, index)
        if not lengths_G.any():
            raise ValueError(
                f"{describe_group(index, group)}: no member has a sampled token, so opo's length-weighted mean does not exist"
            )
        advantages.append(opo(rewards_G, lengths_G))
    return advantages


def _split_like(values_B: Array, parts: Sequence[Array]) -> list[Array]:
    return np.split(values_B, np.cumsum([len(part) for part in parts])[:-1])


def reinforce_pp(rewards: list[Array], lengths: list[NDArray[np.int64]]) -> list[Array]:
    """Rewards whitened over the whole step, every token counting once. REINFORCE++, arXiv 2501.03262."""
    return _split_like(whiten(np.concatenate(rewards), np.concatenate(lengths)), rewards)


def reinforce_pp_baseline(rewards: list[Array], lengths: list[NDArray[np.int64]]) -> list[Array]:
    """The group's mean taken off, then whitened over the whole step, every token counting once. REINFORCE++-baseline, arXiv 2501.03262."""
    return _split_like(whiten(np.concatenate([centred(r) for r in rewards]), np.concatenate(lengths)), rewards)


def reward_to_go(gamma: float = 1.0) -> Advantage:
    """Per-token credit for multi-turn episodes: the discounted return from each turn on, less the mean of the group's at that turn.

    Turn k of a member gets Σ_{j≥k} γ^{j−k} r_j − mean over the members that reached turn k; the final reward counts at the last turn. A turn that one member
    alone reached is compared with nothing and gets 0. Arrays have shape (N,). With one turn it is `centred`.
    """

    def function(groups: Sequence[TrajectoryGroup]) -> list[Array]:
        return [_reward_to_go(group, gamma, finite_rewards(group, index)) for index, group in enumerate(groups)]

    return Advantage(function, "group")


def _reward_to_go(group: TrajectoryGroup, gamma: float, rewards_G: Array) -> Array:
    longest = max(len(trajectory.turns) for trajectory in group.trajectories)
    returns_GT = np.full((len(rewards_G), longest), np.nan)
    for row, trajectory in enumerate(group.trajectories):
        rewards_T = np.array([turn.reward for turn in trajectory.turns], np.float64)
        if len(rewards_T):
            rewards_T[-1] += trajectory.final_reward
            returns_GT[row, : len(rewards_T)] = discounted_returns(rewards_T, gamma)
    reached_GT = ~np.isnan(returns_GT)
    means_T = np.nansum(returns_GT, axis=0) / np.maximum(reached_GT.sum(axis=0), 1)
    tokens = [len(turn.completion.tokens) for trajectory in group.trajectories for turn in trajectory.turns]
    return np.repeat((returns_GT - means_T)[reached_GT], tokens)


ADVANTAGES: Mapping[str, Advantage] = {
    "centred": by_group(centred),
    "grpo": by_group(grpo),
    "rloo": by_group(rloo),
    "opo": Advantage(_opo_groups, "group"),
    "maxrl": by_group(maxrl),
    "reinforce_pp": by_step(reinforce_pp),
    "reinforce_pp_baseline": by_step(reinforce_pp_baseline),
    "reward_to_go": reward_to_go(),
}
"""Advantage functions by the name a configuration gives."""


def weighted(choice: str | AdvantageFn, weight: float) -> Advantage:
    """An advantage times `weight`: what a reward counts beside something else, such as a KL to a teacher. With 0 the rewards are still checked."""
    advantage = resolve_advantage(choice)

    def function(groups: Sequence[TrajectoryGroup]) -> list[Array]:
        return [weight * values for values in advantage(groups)]

    return Advantage(function, advantage.scope)


def resolve_advantage(choice: str | AdvantageFn) -> Advantage:
    """The advantage function of a name, or a callable of one's own.

    A callable that is not an `Advantage` may have an attribute `scope`; without one it is taken to need the whole step, which is always right and
    only costs waiting. Raises ValueError, listing the names, for an unknown one.
    """
    if isinstance(choice, Advantage):
        return choice
    if isinstance(choice, str):
        if choice not in ADVANTAGES:
            raise ValueError(f"no advantage is called {choice!r}; there are {', '.join(sorted(ADVANTAGES))}")
        return ADVANTAGES[choice]
    scope: Scope = getattr(choice, "scope", "step")
    if scope not in ("group", "step"):
        raise ValueError(f"the scope of an advantage function is 'group' or 'step', not {scope!r}")
    return Advantage(choice, scope)
