"""KL estimators by enumeration over a whole vocabulary, and the penalty against its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends.values import Datum, Loss, ModelInput
from engine.training.kl import KL_KINDS, full_sequence, kl_penalized, kl_value_and_gradient
from engine.training.losses import evaluate
from tests.training.policies import policy_data, replaced


def softmax(logits: Any) -> Any:
    return np.exp(logits - np.logaddexp.reduce(logits))


@pytest.fixture
def policies() -> tuple[Any, Any, Any]:
    """Logits of π, probabilities of the reference and of a third policy that samples."""
    random = np.random.default_rng(0)
    return random.normal(size=7), softmax(random.normal(size=7)), softmax(random.normal(size=7))


def exact_kl(logits: Any, reference: Any) -> float:
    policy = softmax(logits)
    return float(np.dot(policy, np.log(policy) - np.log(reference)))


def test_values_in_expectation(policies: Any) -> None:
    logits, reference, _ = policies
    policy = softmax(logits)
    log_ratio = np.log(policy) - np.log(reference)
    means = {kind: float(np.dot(policy, kl_value_and_gradient(log_ratio, kind)[0])) for kind in KL_KINDS}
    assert means["k1"] == pytest.approx(exact_kl(logits, reference))
    assert means["k3"] == means["k3+"] == pytest.approx(exact_kl(logits, reference))
    assert abs(means["k2"] - exact_kl(logits, reference)) > 1e-3  # biased, and known to be


def expected_gradient(policy: Any, weights: Any, slopes: Any) -> Any:
    """Σ_y weight(y)·slope(y)·∂log π(y)/∂logits."""
    return sum(weights[y] * slopes[y] * (np.eye(len(policy))[y] - policy) for y in range(len(policy)))


def test_only_the_gradient_of_k2_is_the_gradient_of_the_kl(policies: Any) -> None:
    logits, reference, _ = policies
    policy, step = softmax(logits), 1e-6
    true = [
        (exact_kl(logits + step * e, reference) - exact_kl(logits - step * e, reference)) / (2 * step)
        for e in np.eye(7)
    ]
    found = {
        kind: expected_gradient(policy, policy, kl_value_and_gradient(np.log(policy) - np.log(reference), kind)[1])
        for kind in KL_KINDS
    }
    np.testing.assert_allclose(found["k2"], true, atol=1e-8)
    np.testing.assert_allclose(found["k3+"], true, atol=1e-8)
    np.testing.assert_allclose(found["k1"], 0, atol=1e-12)
    assert np.abs(found["k3"] - true).max() > 1e-2
    np.testing.assert_allclose(found["k3"], policy - reference)  # that of KL(reference ‖ π)


def test_off_policy_the_loss_is_weighted_and_its_gradient_stays_right(policies: Any) -> None:
    logits, reference, sampler = policies
    policy = softmax(logits)
    data = [
        Datum(
            ModelInput.from_tokens([1]),
            {"logprobs": np.log(sampler[[y]]), "mask": np.ones(1), "reference_logprobs": np.log(reference[[y]])},
        )
        for y in range(7)
    ]
    for name in ("kl_k2", "kl_k3+"):
        _, slopes = evaluate(Loss(name, {"coef": 0.5}), data, [np.log(policy[[y]]) for y in range(7)])
        weighted = expected_gradient(policy, sampler, np.concatenate(slopes))
        on_policy = expected_gradient(policy, policy, np.log(policy) - np.log(reference))
        np.testing.assert_allclose(weighted, 0.5 * on_policy, atol=1e-12)


@settings(deadline=None)
@given(st.floats(-5, 5))
def test_values_are_the_formulas_and_gradients_their_derivatives(log_ratio: float) -> None:
    point, step = np.array([log_ratio]), 1e-6
    expected = {
        "k1": log_ratio,
        "k2": log_ratio**2 / 2,
        "k3": np.exp(-log_ratio) - 1 + log_ratio,
        "k3+": np.exp(-log_ratio) - 1 + log_ratio,
    }
    for kind in KL_KINDS:
        value, gradient = kl_value_and_gradient(point, kind)
        assert value[0] == pytest.approx(expected[kind], abs=1e-12)
        if kind != "k3+":
            slope = (kl_value_and_gradient(point + step, kind)[0] - kl_value_and_gradient(point - step, kind)[0]) / (
                2 * step
            )
            assert gradient[0] == pytest.approx(slope[0], rel=1e-5, abs=1e-6)
    assert kl_value_and_gradient(point, "k3+")[1] == kl_value_and_gradient(point, "k2")[1]


def penalty_of(data: list[Datum], reference: list[Any], coef: float, **options: Any) -> list[Any]:
    penalized, _ = kl_penalized(data, reference, coef, **options)
    return [
        new.loss_inputs["advantages"] - old.loss_inputs["advantages"] for new, old in zip(penalized, data, strict=True)
    ]


def reference_of(data: list[Datum]) -> list[Any]:
    return [datum.loss_inputs["reference_logprobs"] for datum in data]


@pytest.mark.parametrize("kind", KL_KINDS)
@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("centre", [True, False])
def test_the_penalty_by_its_definition(kind: Any, discount: float, centre: bool) -> None:
    data, _ = policy_data(0)
    found, metrics = kl_penalized(data, reference_of(data), 0.3, kind=kind, discount=discount, centre=centre)
    values = [
        [
            kl_value_and_gradient(np.array([old - ref]), kind)[0][0]
            for old, ref, mask in zip(
                *(datum.loss_inputs[name] for name in ("logprobs", "reference_logprobs", "mask")), strict=True
            )
            if mask
        ]
        for datum in data
    ]
    mean = np.mean(np.concatenate(values))
    assert metrics == {"kl_policy_base": pytest.approx(mean)}
    for datum, new, kl in zip(data, found, values, strict=True):
        costs = [-0.3 * (value - (mean if centre else 0)) for value in kl]
        expected = [sum(cost * discount**k for k, cost in enumerate(costs[t:])) for t in range(len(costs))]
        trained = datum.loss_inputs["mask"] > 0
        np.testing.assert_allclose(
            new.loss_inputs["advantages"][trained] - datum.loss_inputs["advantages"][trained], expected, atol=1e-6
        )
        np.testing.assert_array_equal(
            new.loss_inputs["advantages"][~trained], datum.loss_inputs["advantages"][~trained]
        )


def test_centring_takes_a_common_drift_out_over_the_whole_step() -> None:
    data, _ = policy_data(1)
    assert sum(part.sum() for part in penalty_of(data, reference_of(data), 0.5)) == pytest.approx(0, abs=1e-5)
    drifted = [datum.loss_inputs["logprobs"] - 0.7 for datum in data]
    for part in penalty_of(data, drifted, 0.5):
        np.testing.assert_allclose(part, 0, atol=1e-6)


def test_a_k1_reward_is_a_k2_loss() -> None:
    """On-policy, with no credit for later tokens, the policy gradient of −coef·k1 is the gradient of coef·k2."""
    data, _ = policy_data(2)
    logprobs = [datum.loss_inputs["logprobs"] for datum in data]
    penalized, _ = kl_penalized(data, reference_of(data), 0.2, centre=False)
    rewarded = np.concatenate(evaluate(Loss("importance_sampling"), penalized, logprobs)[1])
    plain = np.concatenate(evaluate(Loss("importance_sampling"), data, logprobs)[1])
    added = np.concatenate(evaluate(Loss("kl_k2", {"coef": 0.2}), data, logprobs)[1])
    np.testing.assert_allclose(rewarded, plain + added, atol=1e-6)


def test_a_full_sequence_has_the_last_target_behind_it() -> None:
    datum = Datum(ModelInput.from_tokens([5, 6, 7]), {"target_tokens": np.array([6, 7, 8], np.int32)})
    assert full_sequence(datum).tokens.tolist() == [5, 6, 7, 8]


def test_what_does_not_fit_is_named() -> None:
    data, _ = policy_data(3)
    reference = reference_of(data)
    assert kl_penalized([], [], 0.1) == ([], {})
    with pytest.raises(ValueError, match="4 datums but reference logprobs for 1"):
        kl_penalized(data, reference[:1], 0.1)
    with pytest.raises(ValueError, match="position 0 of a full sequence has no logprob: leave it out"):
        kl_penalized(data[:1], [np.zeros(data[0].model_input.length + 1)], 0.1)
    reference[2] = np.full_like(reference[2], np.nan)
    with pytest.raises(ValueError, match="datum 2: the reference logprob of a trained token is nan"):
        kl_penalized(data, reference, 0.1)
    with pytest.raises(ValueError, match="no KL estimator is called 'k4'; there are k1, k2, k3, k3"):
        kl_value_and_gradient(np.zeros(1), "k4")  # type: ignore[arg-type]
    outside = replaced(data[:1], mask=lambda each: 0 * each["mask"])
    assert kl_penalized(outside, reference[:1], 0.1) == (outside, {})
