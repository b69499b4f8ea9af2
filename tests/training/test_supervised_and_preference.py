"""Supervised datums, likelihood figures, preference pairs, tournaments."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.backends.values import Datum, ImageChunk, ModelInput, TokenChunk
from engine.training.preference import dpo_loss, dpo_metrics, preference_pair, tournament_rewards
from engine.training.supervised import bits_per_byte, mean_nll, supervised_datum

IMAGE = ImageChunk("cat.png", 3)


def datum_of(tokens: list[int], weights: list[float]) -> Datum:
    datum = supervised_datum(tokens, weights)
    assert datum is not None
    return datum


def test_targets_and_weights_are_shifted() -> None:
    datum = datum_of([5, 6, 7, 8], [1, 0, 1, 0.5])
    assert datum.model_input.tokens.tolist() == [5, 6, 7]
    assert datum.loss_inputs["target_tokens"].tolist() == [6, 7, 8]
    assert datum.loss_inputs["weights"].tolist() == [0, 1, 0.5]
    assert datum.loss_inputs["target_tokens"].dtype == np.int32
    assert datum.loss_inputs["weights"].dtype == np.float32


def test_too_long_is_an_error_a_skip_or_a_cut() -> None:
    tokens, weights = [1, 2, 3, 4, 5], [0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="the example has 5 tokens, more than the limit of 4"):
        supervised_datum(tokens, weights, max_tokens=4)
    assert supervised_datum(tokens, weights, max_tokens=4, too_long="skip") is None
    cut = supervised_datum(tokens, weights, max_tokens=4, too_long="truncate")
    assert cut is not None
    assert cut.loss_inputs["target_tokens"].tolist() == [2, 3, 4]
    assert cut.loss_inputs["weights"].tolist() == [0, 1, 1]
    assert supervised_datum(tokens, weights, max_tokens=2, too_long="truncate") is None
    assert supervised_datum(tokens, weights, max_tokens=5) is not None


def test_images_are_read_and_never_predicted() -> None:
    example = ModelInput((TokenChunk([1]), IMAGE, TokenChunk([2, 3])))
    datum = supervised_datum(example, [0, 0, 0, 0, 1, 1])
    assert datum is not None
    assert datum.model_input == ModelInput((TokenChunk([1]), IMAGE, TokenChunk([2])))
    assert datum.loss_inputs["target_tokens"].tolist() == [0, 0, 0, 2, 3]
    longer = example.append([4])
    cut = supervised_datum(longer, [0, 0, 0, 0, 1, 1, 1], max_tokens=5, too_long="truncate")
    assert cut is not None
    assert cut.model_input == ModelInput((TokenChunk([1]), IMAGE))
    assert cut.loss_inputs["target_tokens"].tolist() == [0, 0, 0, 2]
    # An image that does not fit whole goes, and leaves too little.
    assert supervised_datum(longer, [0, 0, 0, 0, 1, 1, 1], max_tokens=3, too_long="truncate") is None
    with pytest.raises(ValueError, match="ends in an image"):
        supervised_datum(ModelInput((TokenChunk([1]), IMAGE)), [0, 1, 1, 1])


@pytest.mark.parametrize(
    ("tokens", "weights", "message"),
    [
        ([1], [1], "at least two tokens, one to read and one to predict; this one has 1"),
        ([1, 2, 3], [1, 1], r"3 tokens but weights of shape \(2,\)"),
        ([1, 2, 3], [0, 1, -1], "the weight of token 2 is -1"),
        ([1, 2, 3], [0, math.nan, 1], "the weight of token 1 is nan"),
        ([1, 2, 3], [1, 0, 0], "no token of the example has a weight above 0"),
    ],
)
def test_bad_examples_are_named(tokens: list[int], weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        supervised_datum(tokens, weights)


def test_likelihood_figures() -> None:
    data = [datum_of([1, 2, 3], [0, 0, 1]), datum_of([1, 2, 3], [0, 1, 1])]
    logprobs = [np.array([math.nan, -2.0]), np.array([-1.0, -3.0])]
    assert mean_nll(data, logprobs) == pytest.approx(2)
    assert bits_per_byte(data, logprobs, text_bytes=4) == pytest.approx(6 / math.log(2) / 4)
    assert math.isnan(mean_nll([], []))
    with pytest.raises(ValueError, match="not 0"):
        bits_per_byte(data, logprobs, text_bytes=0)
    with pytest.raises(ValueError, match="datum 1 has 2 positions but 1 logprobs"):
        mean_nll(data, [logprobs[0], logprobs[1][:1]])


def test_dpo_at_the_reference_is_log_two_and_moves_towards_the_chosen() -> None:
    chosen, rejected = datum_of([1, 2, 3], [0, 1, 1]), datum_of([1, 4], [0, 1])
    reference = (np.array([-1.0, -2.0]), np.array([-1.5]))
    pair = preference_pair(chosen, rejected, *reference)
    at_reference = dpo_loss(0.1)(pair, reference)
    assert at_reference.loss == pytest.approx(math.log(2))
    assert at_reference.metrics["accuracy"] == 0
    assert at_reference.metrics["margin"] == 0
    np.testing.assert_allclose(at_reference.gradients[0], [-0.05, -0.05])
    np.testing.assert_allclose(at_reference.gradients[1], [0.05])
    better = dpo_metrics(pair, [np.array([-0.5, -1.0]), np.array([-2.5])], beta=1.0)
    assert better == pytest.approx(
        {
            "dpo_loss": math.log1p(math.exp(-2.5)),
            "accuracy": 1,
            "margin": 2.5,
            "chosen_reward": 1.5,
            "rejected_reward": -1,
        }
    )
    assert dpo_metrics([], []) == {}


def test_a_pair_checks_its_reference() -> None:
    chosen, rejected = datum_of([1, 2, 3], [0, 0, 1]), datum_of([1, 4], [0, 1])
    with pytest.raises(ValueError, match="the rejected answer's datum has 1 positions but 2 reference logprobs"):
        preference_pair(chosen, rejected, np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match="reference logprobs of the chosen answer are not all finite"):
        preference_pair(chosen, rejected, np.array([0, np.nan]), np.zeros(1))
    prompt_may_be_unknown, _ = preference_pair(chosen, rejected, np.array([np.nan, -1]), np.zeros(1))
    assert prompt_may_be_unknown.loss_inputs["reference_logprobs"].tolist() == [0, -1]


def test_tournaments() -> None:
    rewards = tournament_rewards(4, [(0, 1, 1.0), (1, 2, 0.5), (2, 0, -1.0)])
    np.testing.assert_allclose(rewards, [1, -0.25, -0.75, 0])
    everyone = [(i, j, float(np.sign(j - i))) for i in range(5) for j in range(i + 1, 5)]
    np.testing.assert_allclose(tournament_rewards(5, everyone), [1, 0.5, 0, -0.5, -1])
    with pytest.raises(ValueError, match="members 0 and 4 does not fit a group of 4"):
        tournament_rewards(4, [(0, 4, 1.0)])
    with pytest.raises(ValueError, match="members 1 and 1"):
        tournament_rewards(4, [(1, 1, 1.0)])
    with pytest.raises(ValueError, match="has the score nan"):
        tournament_rewards(4, [(0, 1, math.nan)])
