"""What happens to datums before the loss: values, scopes, and that the number of minibatches changes none of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import pytest

from actors import KLPenalty, RLSettings, RunResult, Schedule, train_rl
from engine.backends import Datum, Loss, ModelInput
from engine.backends.simulated import SamplerModel, SimulatedBackend
from engine.runtime import ActorsFailed
from engine.runtime.testing import simulate
from engine.training.corrections import combined, correct, correction_scope, resolve_correction, truncated
from engine.training.custom import CustomLossResult, Declared, function_loss
from engine.training.kl import kl_penalized
from engine.training.metrics import step_metrics
from engine.training.transforms import (
    Mean,
    MeanSums,
    ScoredDatums,
    Transform,
    kl_in_reward,
    normalization,
    resolve_transform,
    transformed,
)
from tests.actors.test_equality import SETTINGS, make_backend, problems, run_actors
from tests.actors.test_feed import TimedGroup, timed


def pulled_together(data: Sequence[Datum], logprobs: Sequence[np.ndarray]) -> CustomLossResult:
    """A loss that compares all datums of the step: the spread of their mean logprobs."""
    means = np.array([float(np.mean(each)) for each in logprobs])
    apart = means - means.mean()
    gradients = [np.full(len(each), 2 * a / len(each)) for each, a in zip(logprobs, apart, strict=True)]
    return CustomLossResult(float(np.sum(apart**2)), gradients, {"spread": float(np.sum(apart**2))})


def square_root(tokens: Any) -> tuple[np.ndarray, np.ndarray]:
    loss = -2 * np.sqrt(tokens.ratio) * tokens.inputs["advantages"]
    return loss, loss / 2


def doubled(scored: ScoredDatums) -> tuple[list[Datum], Mapping[str, float]]:
    """A transform of one's own: advantages relative to the step's largest."""
    largest = max(float(np.abs(datum.loss_inputs["advantages"]).max()) for datum in scored.data)
    data = [
        attrs.evolve(d, loss_inputs={**d.loss_inputs, "advantages": d.loss_inputs["advantages"] / np.float32(largest)})
        for d in scored.data
    ]
    return data, {"optim/largest_advantage": largest}


CHOICES: dict[str, dict[str, Any]] = {
    "kl centred": {"kl": [KLPenalty(coef=0.1)]},
    "kl of futures, k3": {"kl": [KLPenalty(coef=0.1, kind="k3", discount=0.9)]},
    "kl not centred": {"kl": [KLPenalty(coef=0.1, centre=False, discount=0.5)]},
    "kl to two": {"kl": [KLPenalty(coef=0.1), KLPenalty(coef=0.2, to="newest", metric="kl_newest")]},
    "tis": {"correction": "tis"},
    "masked and rejected": {"correction": "mis+geometric_rejection:low=0.9,high=1.2"},
    "decoupled": {"loss": Loss("decoupled_ppo")},
    "token means": {"normalization": "token"},
    "sequence means": {"normalization": "sequence"},
    "constant": {"normalization": "constant", "normalization_constant": 24.0},
    "own transform": {"transforms": [doubled]},
    "own loss over the step": {"loss": pulled_together},
    "own loss by token": {"loss": function_loss(square_root, scope="group")},
    "whole pass": {"loss": Loss("m2po", {"tau": 1e-4})},
    "not of the backend": {"loss": Loss("gspo")},
    "kl as a loss": {"extra_losses": [Loss("kl_k2", {"coef": 0.01})]},
    "everything": {
        "advantages": "reinforce_pp",
        "kl": [KLPenalty(coef=0.1, kind="k3")],
        "correction": "sequence_tis",
        "normalization": "token",
        "loss": Loss("ppo"),
        "extra_losses": [pulled_together],
    },
}


@pytest.mark.parametrize("choice", CHOICES)
def test_minibatches_do_not_change_the_gradient(choice: str) -> None:
    settings = attrs.evolve(SETTINGS, **CHOICES[choice])
    weights, rows = set(), []
    for minibatches in (1, 2, 5):
        schedule = Schedule(groups_per_step=5, minibatches=minibatches)
        backend, result = run_actors(schedule, steps=3, seed=minibatches, groups=problems(), settings=settings)
        weights.add(backend._weights)
        rows.append([untimed(row) for row in result.rows])
        assert backend.live_snapshots == ()
    plain, _ = run_actors(Schedule(groups_per_step=5), steps=3, seed=1, groups=problems())
    assert len(weights) == 1
    assert plain._weights not in weights
    for other in rows[1:]:
        for row, first in zip(other, rows[0], strict=True):
            assert row.keys() == first.keys()
            for name, value in row.items():
                assert value == pytest.approx(first[name], rel=1e-5, abs=1e-7), name


def untimed(row: Mapping[str, float]) -> dict[str, float]:
    skipped = ("time/", "busy/", "tokens/per_second")
    return {name: value for name, value in row.items() if not name.startswith(skipped)}


# ---- streaming stays streaming


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({}, 0.1),
        ({"kl": [KLPenalty(coef=0.1, centre=False, discount=0.9)], "correction": "tis"}, 0.1),
        ({"kl": [KLPenalty(coef=0.1, centre=False)], "correction": combined(truncated(2.0))}, 0.1),
        ({"loss": Loss("gspo"), "extra_losses": [Loss("kl_k2")]}, 0.1),
        ({"transforms": [Transform(lambda scored: (scored.data, {}), "group")]}, 0.1),
        ({"kl": [KLPenalty(coef=0.1)]}, 2.0),
        ({"normalization": "token"}, 2.0),
        ({"transforms": [lambda scored: (scored.data, {})]}, 2.0),
        ({"correction": lambda ratios: np.ones(len(ratios.values))}, 2.0),
        ({"loss": pulled_together}, 2.0),
    ],
)
def test_only_what_looks_at_the_whole_step_waits_for_it(options: dict[str, Any], first: float) -> None:
    """One group is played after 0.1 s, the other after 2 s."""
    backend = SimulatedBackend(SamplerModel(script=timed), record=True)

    async def program() -> RunResult:
        settings = RLSettings(shuffle=False, drop_constant_groups=False, **options)
        return await train_rl(
            backend,
            groups=[TimedGroup(0), TimedGroup(2)],
            steps=1,
            schedule=Schedule(groups_per_step=2, minibatches=2),
            settings=settings,
        )

    simulate(program).unwrap()
    assert backend.log is not None
    passes = [entry for entry in backend.log.training if entry.call == "forward_backward"]
    assert passes[0].submitted == pytest.approx(first, abs=1e-3)
    assert passes[-1].submitted == pytest.approx(2.0, abs=1e-3)


# ---- values


class Flat:
    """A teacher that gives every token the same logprob."""

    async def compute_logprobs(self, sequence: ModelInput) -> np.ndarray:
        return np.full(sequence.length, -3.0, np.float32)


@attrs.define
class Spy:
    """A transform that keeps what it sees."""

    seen: list[list[Datum]] = attrs.field(factory=list)
    scope: str = "group"
    look: Callable[[ScoredDatums], None] = lambda scored: None

    def __call__(self, scored: ScoredDatums) -> tuple[Sequence[Datum], Mapping[str, float]]:
        self.look(scored)
        self.seen.append(list(scored.data))
        return scored.data, {}


def trained(datum: Datum, name: str) -> np.ndarray:
    values: np.ndarray = datum.loss_inputs[name][datum.loss_inputs["mask"] > 0]
    return values


def test_the_penalty_is_what_it_says() -> None:
    plain, spy = Spy(), Spy()
    run_actors(
        Schedule(groups_per_step=5),
        steps=1,
        seed=0,
        groups=problems(),
        settings=attrs.evolve(SETTINGS, transforms=[plain]),
    )
    penalty = KLPenalty(coef=0.5, to=Flat(), discount=0.9, metric="teacher_kl")
    settings = attrs.evolve(SETTINGS, kl=[penalty], transforms=[spy])
    _, result = run_actors(
        Schedule(groups_per_step=5, minibatches=3), steps=1, seed=0, groups=problems(), settings=settings
    )
    (before,), (after,) = plain.seen, spy.seen
    kl = [trained(datum, "logprobs") + 3.0 for datum in before]
    mean = float(np.concatenate(kl).mean())
    assert result.rows[0]["teacher_kl"] == pytest.approx(mean, rel=1e-5)
    for datum, penalized, kl_T in zip(before, after, kl, strict=True):
        wanted = trained(datum, "advantages").astype(np.float64)
        for place in range(len(kl_T)):
            later = np.arange(len(kl_T) - place)
            wanted[place] -= 0.5 * np.sum(0.9**later * (kl_T[place:] - mean))
        np.testing.assert_allclose(trained(penalized, "advantages"), wanted, atol=1e-4)


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("loss", ["decoupled_ppo", "ppo"])
def test_proximal_logprobs_are_the_trainers_own_at_the_start_of_the_step(loss: str, turns: int) -> None:
    """With stale groups: the trainer's present weights, not those that sampled."""
    backend = make_backend()
    stale = 0

    def look(scored: ScoredDatums) -> None:
        nonlocal stale
        for datum in scored.data:
            now = np.where(
                datum.loss_inputs["mask"] > 0, backend._tokens.logprobs(datum.loss_inputs["target_tokens"]), 0.0
            )
            name = "proximal_logprobs" if loss == "decoupled_ppo" else "logprobs"
            held = datum.loss_inputs[name] * (datum.loss_inputs["mask"] > 0)
            np.testing.assert_array_equal(held, now.astype(np.float32))
            sampler = datum.loss_inputs["logprobs" if loss == "decoupled_ppo" else "sampler_logprobs"]
            stale += not np.array_equal(sampler, now)

    options: dict[str, Any] = {"loss": Loss(loss)}
    if loss == "ppo":
        options["correction"] = "tis"
    settings = attrs.evolve(SETTINGS, transforms=[Spy(look=look)], **options)

    async def program() -> RunResult:
        return await train_rl(
            backend,
            groups=problems(turns),
            steps=4,
            schedule=Schedule(groups_per_step=4, max_staleness=1, minibatches=2),
            settings=settings,
        )

    result = simulate(program).unwrap()
    assert stale > 10
    if loss == "ppo":
        assert [0 <= row["optim/correction_rejected"] <= 1 for row in result.rows] == [True] * 4
        assert (
            max(row["optim/kl_sample_train_v2"] for row in result.rows) > 1e-6
        )  # of the sampler, not of the proximal policy


def test_turns_that_are_not_trained_stay_in_the_context() -> None:
    """And the scores of the others keep their places."""
    spy = Spy()
    settings = attrs.evolve(
        SETTINGS,
        train_turn=lambda turn: len(turn.completion.tokens) % 2 == 0,
        kl=[KLPenalty(coef=0.0, to="initial", centre=False)],
        transforms=[spy],
        drop_constant_groups=False,
    )
    _, result = run_actors(Schedule(groups_per_step=5), steps=1, seed=0, groups=problems(3), settings=settings)
    (data,) = spy.seen
    untrained = sum(int(np.sum(datum.loss_inputs["logprobs"] != 0) - datum.loss_inputs["mask"].sum()) for datum in data)
    assert untrained > 0
    assert result.rows[0]["kl_policy_base"] == pytest.approx(0.0, abs=1e-6)  # every score is beside its own token


def test_a_kl_that_is_not_centred_trains_constant_groups() -> None:
    def settings(**options: Any) -> RLSettings:
        return attrs.evolve(SETTINGS, **options)

    assert settings().drops_constant_groups
    assert settings(kl=[KLPenalty(coef=1)]).drops_constant_groups
    assert not settings(kl=[KLPenalty(coef=1, centre=False)]).drops_constant_groups
    assert settings(kl=[KLPenalty(coef=1, centre=False)], drop_constant_groups=True).drops_constant_groups


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correction": "tsi"}, "no correction is called 'tsi'; there are tis, mis"),
        ({"correction": "tis:gap=3"}, "correction 'tis': 'gap=3' is none of its parameters, which are cap"),
        ({"correction": "tis:cap=x"}, "cap must be a number, not 'x'"),
        ({"normalization": "constant"}, "needs a positive constant"),
        ({"normalization": "tokens"}, "no normalization is called 'tokens'; there are sum, token"),
        ({"kl": [KLPenalty(coef=1, to="start")]}, "'initial', 'newest' or a scorer of your own, not 'start'"),
        ({"kl": [KLPenalty(coef=1), KLPenalty(coef=2)]}, "two KL penalties report under one name"),
        ({"loss": Loss("poo")}, "no loss is called 'poo': the backend 'simulated' has cispo"),
        ({"transforms": [Transform(lambda s: (s.data, {}), "step", ("mine",))]}, "reads scores called 'mine'"),
    ],
)
def test_wrong_settings_are_told_before_anything_runs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_actors(
            Schedule(groups_per_step=5), steps=1, seed=0, groups=problems(), settings=attrs.evolve(SETTINGS, **options)
        )


def nan_loss(tokens: Any) -> tuple[np.ndarray, np.ndarray]:
    loss = -tokens.logprobs * tokens.inputs["mask"]
    bad = np.where(tokens.sequence == 4, np.nan, loss)
    return bad, np.zeros(len(loss))


def nan_gradient(tokens: Any) -> tuple[np.ndarray, np.ndarray]:
    loss, _ = nan_loss(tokens)
    return np.zeros(len(loss)), np.where(tokens.sequence == 2, np.inf, 0.0)


def nan_together(data: Sequence[Datum], logprobs: Sequence[np.ndarray]) -> CustomLossResult:
    return CustomLossResult(np.nan if len(data) > 1 else 0.0, [np.zeros(len(each)) for each in logprobs])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (function_loss(nan_gradient), "datum 2: the custom loss's gradient is inf at position 0"),
        (Declared(nan_together, "step"), "the custom loss is nan over 15 datums together, and not of a single one"),
        (
            function_loss(lambda t: (t.logprobs / 0.0, t.logprobs)),
            "the custom loss is -inf: that of datum 0 alone is -inf",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_loss_that_is_no_number_names_the_datum(loss: Any, message: str) -> None:
    with pytest.raises(ActorsFailed) as failed:
        run_actors(
            Schedule(groups_per_step=5), steps=1, seed=0, groups=problems(), settings=attrs.evolve(SETTINGS, loss=loss)
        )
    assert message in str(failed.value.exceptions[0])


# ---- the pure parts


def sample_data() -> list[Datum]:
    random = np.random.default_rng(0)
    data = []
    for length in (4, 6, 3):
        mask = (np.arange(length) >= 1).astype(np.float32)
        data.append(
            Datum(
                ModelInput.from_tokens(np.arange(length)),
                {
                    "target_tokens": np.arange(1, length + 1, dtype=np.int32),
                    "logprobs": (-random.random(length) * mask).astype(np.float32),
                    "advantages": (random.normal(size=length) * mask).astype(np.float32),
                    "mask": mask,
                },
            )
        )
    return data


def test_metrics_after_a_correction_are_still_about_the_sampler() -> None:
    data = sample_data()
    proximal = [datum.loss_inputs["logprobs"] - 0.3 for datum in data]
    new = [datum.loss_inputs["logprobs"] + 0.1 for datum in data]
    corrected, _ = correct(data, proximal, truncated(5.0))
    before, after = step_metrics(data, new), step_metrics(corrected, new)
    assert after["optim/kl_sample_train_v1"] == pytest.approx(before["optim/kl_sample_train_v1"]) == pytest.approx(-0.1)
    assert after["optim/entropy"] == before["optim/entropy"]


def test_parts_of_a_mean_add_up() -> None:
    data = sample_data()
    reference = [datum.loss_inputs["logprobs"] - 1.5 * datum.loss_inputs["advantages"] for datum in data]
    tags = [("a",), ("b",), ("a", "b")]
    transform = kl_in_reward("r", 0.2, kind="k2", centre=False, tags=["a", "b"])
    whole, found = transformed(ScoredDatums(data, {"r": reference}, tags), [transform])
    sums = MeanSums()
    parts: list[Datum] = []
    for cut in (slice(0, 1), slice(1, 3)):
        part, metrics = transformed(ScoredDatums(data[cut], {"r": reference[cut]}, tags[cut]), [transform])
        parts += part
        sums.add(metrics)
    assert sums.metrics() == pytest.approx({name: mean.value for name, mean in found.items()})
    wanted, metrics_of_whole = kl_penalized(data, reference, 0.2, kind="k2", centre=False)
    assert sums.metrics()["kl_policy_base"] == pytest.approx(metrics_of_whole["kl_policy_base"])
    for one, two, three in zip(parts, whole, wanted, strict=True):
        assert np.array_equal(one.loss_inputs["advantages"], two.loss_inputs["advantages"])
        assert np.array_equal(one.loss_inputs["advantages"], three.loss_inputs["advantages"])
    (_, of_b) = kl_penalized(data[1:], reference[1:], 0.2, kind="k2", centre=False)
    assert sums.metrics()["kl_policy_base/b"] == pytest.approx(of_b["kl_policy_base"])
    assert MeanSums().metrics() == {}
    sums = MeanSums()
    sums.add({"nothing": Mean(0.0, 0.0)})
    assert sums.metrics() == {}


def test_scopes() -> None:
    assert kl_in_reward("r", 1.0).scope == "step"
    assert kl_in_reward("r", 1.0, centre=False).scope == "group"
    assert normalization("sum").scope == "group"
    assert normalization("token").scope == "step"
    assert correction_scope(resolve_correction("tis:cap=3+mis")) == "group"
    assert correction_scope(lambda ratios: ratios.values) == "step"
    assert correction_scope(combined(truncated(), lambda ratios: ratios.values)) == "step"
    with pytest.raises(ValueError, match="'group' or 'step', not 'all'"):
        resolve_transform(Spy(scope="all"))
    losing = Transform(lambda scored: (scored.data[1:], {}), "step")
    with pytest.raises(ValueError, match="2 datums of 3; give what is dropped an advantage of 0"):
        losing(ScoredDatums(sample_data()))
