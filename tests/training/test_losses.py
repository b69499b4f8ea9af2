"""Losses: hand-computed values, finite differences, and what theory says of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.backends.values import Datum, Loss, ModelInput
from engine.training.corrections import CORRECTIONS, combined, correct
from engine.training.kl import KL_KINDS
from engine.training.losses import LOSSES, default_loss, evaluate, second_moment_mask
from engine.training.normalization import normalize
from tests.training.policies import policy_data, replaced

POLICY = [name for name in LOSSES if name not in {"cross_entropy", "dpo"} and not name.startswith("kl_")]
HOMOGENEOUS = [name for name in POLICY if name != "dro"]
STOPPED = {"cispo", "aipo", "topr", "kl_k1", "kl_k2", "kl_k3", "kl_k3+"}
"""Losses with a stop-gradient: the derivative of their value is not their gradient."""


def one_sequence(ratios: list[float], advantages: list[float], **fields: Any) -> tuple[list[Datum], list[Any]]:
    """One datum without a prompt, whose sampler gave every token the probability 0.1."""
    old = np.full(len(ratios), np.log(0.1))
    inputs = {"logprobs": old, "advantages": np.array(advantages, float), "mask": np.ones(len(ratios)), **fields}
    return [Datum(ModelInput.from_tokens([1] * len(ratios)), inputs)], [old + np.log(ratios)]


LOG = np.log(0.1)
CLOSED_FORM: list[tuple[str, dict[str, float], list[float], list[float], list[float], list[float]]] = [
    # name, parameters, w, A, loss, gradient
    ("importance_sampling", {}, [1.5, 0.5], [2, -1], [-3, 0.5], [-3, 0.5]),
    ("ppo", {}, [1.1, 1.5, 0.5, 1.5, 0.5], [1, 1, 1, -1, -1], [-1.1, -1.2, -0.5, 1.5, 0.8], [-1.1, 0, -0.5, 1.5, 0]),
    ("dapo", {}, [1.25, 1.5], [1, 1], [-1.25, -1.28], [-1.25, 0]),
    ("dual_clip_ppo", {"dual_clip": 3}, [2.0, 5.0, 5.0], [-1, -1, 1], [2, 3, -1.2], [2, 0, 0]),
    ("cispo", {}, [1.5, 8.0], [2, -1], [-3 * (LOG + np.log(1.5)), 4 * (LOG + np.log(8))], [-3, 4]),
    ("aipo", {"cap": 2}, [1.5, 8.0], [1, 1], [-1.5 * (LOG + np.log(1.5)), -2 * (LOG + np.log(8))], [-1.5, -2]),
    ("sapo", {"tau_negative": 2}, [1, 1], [1, -1], [-2, 1], [-1, 1]),
    # probabilities 0.1 -> 0.3 with A > 0 has moved by 0.2; 0.1 -> 0.02 with A < 0 by 0.08
    ("dppo_tv", {"threshold": 0.15}, [3.0, 3.0, 0.2], [1, -1, -1], [0, 3, 0.2], [0, 3, 0.2]),
    ("dppo_tv", {"threshold": 0.05}, [0.2], [-1], [0], [0]),
    ("dro", {"beta": 0.5}, [np.e], [2], [-(2 * (LOG + 1) - 0.25)], [-(2 - 0.5)]),
    # geometric mean of w: 2, counted once for the sequence
    ("gspo", {"clip_high_threshold": 3}, [4, 1], [1, 1], [-1, -1], [-1, -1]),
    ("gspo", {}, [4, 1], [1, 1], [-(1 + 4e-4) / 2] * 2, [0, 0]),
    ("topr", {}, [4, 2], [3, 3], [-3 * (LOG + np.log(4)), -3 * (LOG + np.log(2))], [-3, -3]),
    ("topr", {}, [0.5, 0.5], [-1, -1], [0.25 * (LOG + np.log(0.5))] * 2, [0.25, 0.25]),
    ("opsm", {"delta": 0.6}, [0.5, 1.0], [-1, -1], [0.8, 1], [0, 1]),
    ("opsm", {"delta": 0.3}, [0.5, 1.0], [-1, -1], [0, 0], [0, 0]),
    ("opsm", {"delta": 0.3}, [0.5, 1.0], [1, 1], [-0.5, -1], [-0.5, -1]),
    # (log w)² = 0, 1, 4: their means up to each are 0, 1/2, 5/3
    ("m2po", {"tau": 0.5}, [np.e**2, 1, np.e], [1, 1, 1], [0, -1, -np.e], [0, -1, -np.e]),
    ("m2po", {"tau": 0.4}, [np.e**2, 1, np.e], [1, 1, 1], [0, -1, 0], [0, -1, 0]),
]


@pytest.mark.parametrize(("name", "params", "ratios", "advantages", "loss", "gradient"), CLOSED_FORM)
def test_closed_form(
    name: str,
    params: dict[str, float],
    ratios: list[float],
    advantages: list[float],
    loss: list[float],
    gradient: list[float],
) -> None:
    data, logprobs = one_sequence(ratios, advantages)
    value, (found,) = evaluate(Loss(name, params), data, logprobs)
    assert value == pytest.approx(sum(loss))
    np.testing.assert_allclose(found, gradient, atol=1e-12)


def test_closed_form_of_those_with_other_fields() -> None:
    # ρ = π_p/μ = 3, truncated to 2; r = π/π_p = 1.5, clipped to 1.2, and 1.1, inside
    data, logprobs = one_sequence([4.5, 3.3], [1, 1], proximal_logprobs=np.full(2, LOG + np.log(3)))
    value, (gradient,) = evaluate(Loss("decoupled_ppo"), data, logprobs)
    assert value == pytest.approx(-2 * 1.2 - 2 * 1.1)
    np.testing.assert_allclose(gradient, [0, -2.2], atol=1e-12)

    weights = {"weights": np.array([0.0, 2.0])}
    value, (gradient,) = evaluate(
        Loss("cross_entropy"), [Datum(ModelInput.from_tokens([1, 1]), weights)], [np.array([-1.0, -3.0])]
    )
    assert value == pytest.approx(6)
    np.testing.assert_allclose(gradient, [0, -2])

    pair = [
        Datum(
            ModelInput.from_tokens([1, 1]),
            {"weights": np.array([0.0, 1.0]), "reference_logprobs": np.array([-9.0, -2.0])},
        ),
        Datum(ModelInput.from_tokens([1]), {"weights": np.array([1.0]), "reference_logprobs": np.array([-1.0])}),
    ]
    # margin = 0.5·((−1 + 2) − (−3 + 1)) = 1.5
    value, gradients = evaluate(Loss("dpo", {"beta": 0.5}), pair, [np.array([-5.0, -1.0]), np.array([-3.0])])
    assert value == pytest.approx(np.log1p(np.exp(-1.5)))
    slope = 0.5 / (1 + np.exp(1.5))
    np.testing.assert_allclose(gradients[0], [0, -slope])
    np.testing.assert_allclose(gradients[1], [slope])


@pytest.mark.parametrize("name", sorted(set(LOSSES) - STOPPED))
@pytest.mark.parametrize("seed", range(4))
def test_gradients_are_the_finite_differences_of_the_values(name: str, seed: int) -> None:
    data, logprobs = policy_data(seed, per_token=seed % 2 == 1)
    _, gradients = evaluate(Loss(name), data, logprobs)
    step = 1e-6
    for index, position in [(i, t) for i, each in enumerate(logprobs) for t in range(len(each))]:

        def at(change: float, index: int = index, position: int = position) -> float:
            moved = [each.copy() for each in logprobs]
            moved[index][position] += change
            return evaluate(Loss(name), data, moved)[0]

        assert gradients[index][position] == pytest.approx((at(step) - at(-step)) / (2 * step), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", POLICY)
def test_on_policy_all_have_the_policy_gradient(name: str) -> None:
    data, _ = policy_data(0)
    data = replaced(data, proximal_logprobs=lambda each: each["logprobs"])
    _, gradients = evaluate(Loss(name), data, [np.asarray(datum.loss_inputs["logprobs"]) for datum in data])
    for datum, gradient in zip(data, gradients, strict=True):
        share = 1 / datum.loss_inputs["mask"].sum() if name == "gspo" else 1
        np.testing.assert_allclose(gradient, -share * datum.loss_inputs["advantages"], atol=1e-12)


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_twice_the_advantage_is_twice_the_loss_and_no_advantage_is_no_gradient(name: str) -> None:
    data, logprobs = policy_data(1)
    value, gradients = evaluate(Loss(name), data, logprobs)
    twice, doubled = evaluate(Loss(name), replaced(data, advantages=lambda each: 2 * each["advantages"]), logprobs)
    assert twice == pytest.approx(2 * value)
    np.testing.assert_allclose(np.concatenate(doubled), 2 * np.concatenate(gradients))
    nothing, zeros = evaluate(Loss(name), replaced(data, advantages=lambda each: 0 * each["advantages"]), logprobs)
    assert nothing == 0
    assert not np.concatenate(zeros).any()


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in {"m2po", "dpo"}])
def test_cutting_a_step_into_minibatches_changes_nothing(name: str) -> None:
    data, logprobs = policy_data(2)
    data = normalize(data, "token")
    value, gradients = evaluate(Loss(name), data, logprobs)
    parts = [evaluate(Loss(name), data[cut], logprobs[cut]) for cut in (slice(0, 1), slice(1, 3), slice(3, 4))]
    assert sum(part for part, _ in parts) == pytest.approx(value)
    np.testing.assert_allclose(np.concatenate([g for _, part in parts for g in part]), np.concatenate(gradients))


@pytest.mark.parametrize("name", [*POLICY, *(f"kl_{kind}" for kind in KL_KINDS)])
def test_what_is_not_an_action_has_no_gradient(name: str) -> None:
    data, logprobs = policy_data(3)
    _, gradients = evaluate(Loss(name), data, logprobs)
    outside = np.concatenate([datum.loss_inputs["mask"] for datum in data]) == 0
    assert outside.any()
    assert not np.concatenate(gradients)[outside].any()


def gradient_of(name: str, data: list[Datum], logprobs: list[Any], **params: float) -> Any:
    return np.concatenate(evaluate(Loss(name, params), data, logprobs)[1])


def test_equalities_between_losses() -> None:
    data, logprobs = policy_data(4)
    plain = gradient_of("importance_sampling", data, logprobs)
    assert np.any(gradient_of("ppo", data, logprobs) != plain)
    wide = {"clip_low_threshold": 0.0, "clip_high_threshold": np.inf}
    for same in (
        gradient_of("ppo", data, logprobs, **wide),
        gradient_of("cispo", data, logprobs, **wide),
        gradient_of("aipo", data, logprobs, cap=np.inf),
        gradient_of("dppo_tv", data, logprobs, threshold=1.0),
        gradient_of("m2po", data, logprobs, tau=np.inf),
    ):
        np.testing.assert_allclose(same, plain)
    np.testing.assert_array_equal(
        gradient_of("dapo", data, logprobs), gradient_of("ppo", data, logprobs, clip_high_threshold=1.28)
    )
    np.testing.assert_array_equal(gradient_of("opsm", data, logprobs, delta=np.inf), gradient_of("ppo", data, logprobs))
    short, new = policy_data(5, lengths=(1, 1, 1, 1))
    clip = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
    np.testing.assert_allclose(gradient_of("gspo", short, new, **clip), gradient_of("ppo", short, new, **clip))


def test_dro_is_a_squared_error() -> None:
    """(A − β·log w)²/(2β) has its gradient."""
    data, logprobs = policy_data(6)
    beta = 0.3
    found = gradient_of("dro", data, logprobs, beta=beta)
    expected = [
        -(datum.loss_inputs["advantages"] - beta * (new - datum.loss_inputs["logprobs"])) * datum.loss_inputs["mask"]
        for datum, new in zip(data, logprobs, strict=True)
    ]
    np.testing.assert_allclose(found, np.concatenate(expected))


def test_hard_masking_and_cispo_are_different_things() -> None:
    """At w = 5, A = 1: a masked token pushes nothing, a clamped one pushes with the clamp's weight."""
    data, logprobs = one_sequence([5.0], [1.0])
    assert gradient_of("ppo", data, logprobs)[0] == 0
    assert gradient_of("dppo_tv", data, logprobs)[0] == 0
    assert gradient_of("cispo", data, logprobs)[0] == -4
    masked, _ = correct(data, logprobs, CORRECTIONS["mis"](0.5, 4.0))
    truncated, _ = correct(data, logprobs, CORRECTIONS["tis"](4.0))
    assert gradient_of("importance_sampling", masked, logprobs)[0] == 0
    assert gradient_of("importance_sampling", truncated, logprobs)[0] == pytest.approx(-4)


def test_second_moment_mask_is_the_largest_that_fits() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        log_ratio, trained = random.normal(size=12), random.random(12) < 0.7
        tau = float(random.uniform(0.01, 1.5))
        mask = second_moment_mask(log_ratio, trained, tau)
        assert not (mask & ~trained).any()
        if mask.any():
            assert np.mean(log_ratio[mask] ** 2) <= tau
        left = trained & ~mask
        if left.any():
            nearest = np.flatnonzero(left)[np.argmin(log_ratio[left] ** 2)]
            assert np.mean(np.append(log_ratio[mask] ** 2, log_ratio[nearest] ** 2)) > tau


def test_defaults() -> None:
    assert default_loss(0) == Loss("importance_sampling")
    assert default_loss(1) == default_loss(4) == Loss("ppo")


def test_errors_name_what_and_where() -> None:
    data, logprobs = policy_data(0)
    with pytest.raises(ValueError, match=r"no loss is called 'pppo'; there are aipo, cispo"):
        evaluate(Loss("pppo"), data, logprobs)
    with pytest.raises(
        ValueError, match="loss 'ppo' has no parameter 'clip'; its parameters: clip_low_threshold, clip_high_threshold"
    ):
        evaluate(Loss("ppo", {"clip": 0.2}), data, logprobs)
    with pytest.raises(ValueError, match="4 datums but logprobs for 3"):
        evaluate(Loss("ppo"), data, logprobs[:3])
    with pytest.raises(ValueError, match=r"datum 2: 'logprobs' has [0-9]+ positions, the new logprobs 1"):
        evaluate(Loss("ppo"), data, [*logprobs[:2], logprobs[2][:1], logprobs[3]])
    without = [*data[:1], Datum(data[1].model_input, {"logprobs": np.zeros(len(logprobs[1]))})]
    with pytest.raises(ValueError, match="datum 1 has no 'advantages', which the loss reads; it has logprobs"):
        evaluate(Loss("ppo"), without, logprobs[:2])
    with pytest.raises(ValueError, match="dpo takes datums in pairs, chosen then rejected, but there are 3"):
        evaluate(Loss("dpo"), data[:3], logprobs[:3])


# ---- corrections ---------------------------------------------------------------------------------------------------------------------


def proximal(data: list[Datum]) -> list[Any]:
    return [datum.loss_inputs["proximal_logprobs"] for datum in data]


@pytest.mark.parametrize("correction", sorted(CORRECTIONS))
@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_a_correction_multiplies_any_loss(correction: str, name: str) -> None:
    data, logprobs = policy_data(7)
    data = replaced(data, proximal_logprobs=lambda each: each["proximal_logprobs"])
    weigh = CORRECTIONS[correction]()
    corrected, _ = correct(data, proximal(data), weigh)
    around, _ = correct(data, proximal(data), lambda ratios: np.ones_like(ratios.values))
    weights = [
        np.divide(
            a.loss_inputs["advantages"],
            b.loss_inputs["advantages"],
            where=b.loss_inputs["advantages"] != 0,
            out=np.zeros(len(a.loss_inputs["mask"])),
        )
        for a, b in zip(corrected, around, strict=True)
    ]
    expected = np.concatenate(weights) * gradient_of(name, around, logprobs)
    if name == "gspo":  # its tokens share one gradient, so a weight per token is not a factor of the token's gradient
        expected = np.concatenate(
            [
                np.mean(w[m > 0]) * g
                for w, m, g in zip(
                    weights,
                    [d.loss_inputs["mask"] for d in data],
                    evaluate(Loss(name), around, logprobs)[1],
                    strict=True,
                )
            ]
        )
    np.testing.assert_allclose(gradient_of(name, corrected, logprobs), expected, atol=1e-6)


def test_closed_form_of_corrections() -> None:
    ratios = [0.4, 1.0, 3.0]  # product 1.2, geometric mean 1.0627
    data, logprobs = one_sequence([1, 1, 1], [1, 1, 1])
    shifted = [logprobs[0] + np.log(ratios)]

    def weights(name: str, *params: float) -> Any:
        return correct(data, shifted, CORRECTIONS[name](*params))[0][0].loss_inputs["advantages"]

    np.testing.assert_allclose(weights("tis", 2.0), [0.4, 1, 2], rtol=1e-6)
    np.testing.assert_allclose(weights("mis", 0.5, 2.0), [0, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(weights("sequence_tis", 2.0), [1.2] * 3, rtol=1e-6)
    np.testing.assert_allclose(weights("sequence_tis", 1.1), [1.1] * 3, rtol=1e-6)
    np.testing.assert_allclose(weights("sequence_mis", 0.5, 1.3), [1.2] * 3, rtol=1e-6)
    np.testing.assert_allclose(weights("sequence_mis", 0.5, 1.1), [0] * 3)
    np.testing.assert_allclose(weights("sequence_rejection", 0.5, 1.3), [1] * 3)
    np.testing.assert_allclose(weights("geometric_rejection", 0.9, 1.07), [1] * 3)
    np.testing.assert_allclose(weights("geometric_rejection", 0.9, 1.06), [0] * 3)
    both = combined(CORRECTIONS["geometric_rejection"](0.9, 1.07), CORRECTIONS["tis"](2.0))
    corrected, metrics = correct(data, shifted, both)
    np.testing.assert_allclose(corrected[0].loss_inputs["advantages"], [0.4, 1, 2], rtol=1e-6)
    np.testing.assert_allclose(corrected[0].loss_inputs["logprobs"], shifted[0], rtol=1e-6)
    assert metrics == pytest.approx({"optim/correction_weight_mean": 3.4 / 3, "optim/correction_rejected": 0})
    assert correct(data, shifted, CORRECTIONS["mis"](0.5, 2.0))[1]["optim/correction_rejected"] == pytest.approx(2 / 3)


def test_decoupled_ppo_is_ppo_on_corrected_data() -> None:
    data, logprobs = policy_data(8)
    corrected, _ = correct(data, proximal(data), CORRECTIONS["tis"](2.0))
    np.testing.assert_allclose(
        gradient_of("ppo", corrected, logprobs), gradient_of("decoupled_ppo", data, logprobs, cap=2.0), atol=1e-6
    )


def test_without_a_gap_no_correction_changes_anything() -> None:
    data, _ = policy_data(9)
    same = [datum.loss_inputs["logprobs"] for datum in data]
    for make in CORRECTIONS.values():
        corrected, metrics = correct(data, same, make())
        assert metrics == {"optim/correction_weight_mean": 1.0, "optim/correction_rejected": 0.0}
        for datum, old in zip(corrected, data, strict=True):
            np.testing.assert_allclose(datum.loss_inputs["advantages"], old.loss_inputs["advantages"], rtol=1e-6)


def test_a_long_sequence_overflows_nothing() -> None:
    data, logprobs = one_sequence([1.0] * 5000, [1.0] * 5000)
    far = [logprobs[0] + 2.0]
    for make in CORRECTIONS.values():
        assert np.isfinite(correct(data, far, make())[0][0].loss_inputs["advantages"]).all()


def test_corrections_name_what_does_not_fit() -> None:
    data, _ = policy_data(0)
    with pytest.raises(ValueError, match="4 datums but proximal logprobs for 1"):
        correct(data, proximal(data)[:1], CORRECTIONS["tis"]())
    with pytest.raises(ValueError, match=r"datum 1 has [0-9]+ positions but 9 proximal"):
        correct(data[:2], [proximal(data)[0], np.zeros(9)], CORRECTIONS["tis"]())
    with pytest.raises(ValueError, match="one finite weight of at least 0 for each"):
        correct(data, proximal(data), lambda ratios: -np.ones_like(ratios.values))
    assert correct([], [], CORRECTIONS["tis"]()) == ([], {})


# ---- normalisation -------------------------------------------------------------------------------------------------------------------


def test_normalisation_turns_sums_into_means() -> None:
    data, logprobs = policy_data(10)
    value = [evaluate(Loss("importance_sampling"), [d], [lp])[0] for d, lp in zip(data, logprobs, strict=True)]
    counts = [d.loss_inputs["mask"].sum() for d in data]

    def total(kind: Any, **options: Any) -> float:
        return evaluate(Loss("importance_sampling"), normalize(data, kind, **options), logprobs)[0]

    assert total("sum") == pytest.approx(sum(value))
    assert total("token") == pytest.approx(sum(value) / sum(counts))
    assert total("sequence") == pytest.approx(np.mean([v / c for v, c in zip(value, counts, strict=True)]))
    assert total("constant", constant=16) == pytest.approx(sum(value) / 16 / 4)
    scaled = normalize(data, "token", field="weights")
    assert sum(d.loss_inputs["weights"].sum() for d in scaled) == pytest.approx(1)
    with pytest.raises(ValueError, match="needs a positive constant"):
        normalize(data, "constant")
