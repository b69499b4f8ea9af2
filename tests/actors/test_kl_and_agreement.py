"""Evaluations that compare a policy with another: KL by its own samples, and the share of equal answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from actors import ScorersByTag, ScoreSource, group_evaluation
from actors.agreement import agreement_evaluation
from actors.evaluator import EvaluatedPolicy
from engine.backends import Completion, ModelInput, SampleRequest, SamplingParams
from engine.rendering import assistant, get_renderer, user
from engine.runtime.testing import schedules, simulate
from envs.rollout import RolloutSettings
from recipes.tiny import make_tokenizer
from tests.actors.scenarios import Patterns


class Policy:
    """Samples token 40 + prompt's member twice, with logprob −1, −2; scores every token −0.5 less than that of its position in the answer."""

    max_context = None

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        return [
            Completion(np.array([40, 41], np.int32), np.array([-1.0, -2.0], np.float32), "stop", 0)
            for _ in range(request.num_samples)
        ]

    async def compute_logprobs(self, sequence: ModelInput) -> np.ndarray:
        return np.full(sequence.length, -1.25, np.float32)


class Flat:
    def __init__(self, logprob: float) -> None:
        self.logprob = logprob

    async def compute_logprobs(self, sequence: ModelInput) -> np.ndarray:
        return np.full(sequence.length, self.logprob, np.float32)


def test_the_kl_of_an_evaluation_is_the_mean_over_what_was_sampled() -> None:
    teachers = ScorersByTag({"kind_0": Flat(-2.0), "kind_1": Flat(-3.0), "kind_2": Flat(-5.0)})
    sources = [ScoreSource("flat", Flat(-4.0)), ScoreSource("own", "newest"), ScoreSource("teacher", teachers)]
    evaluation = group_evaluation(
        "e", Patterns(problems=6, size=3), RolloutSettings(SamplingParams(max_tokens=2)), kl_to=sources
    )

    async def program() -> Any:
        policy: EvaluatedPolicy = Policy()
        return await evaluation.run(policy)

    reports = [report.unwrap() for report in schedules(program, count=3)]
    assert reports[0] == reports[1] == reports[2]
    metrics = reports[0]
    assert metrics["all/flat"] == pytest.approx(4.0 - 1.5)
    assert metrics["all/own"] == pytest.approx(1.25 - 1.5)
    assert metrics["kind_0/teacher"] == pytest.approx(0.5)
    assert metrics["kind_2/teacher"] == pytest.approx(3.5)
    assert metrics["all/teacher"] == pytest.approx((0.5 + 1.5 + 3.5) / 3)
    assert "all/reward/total" in metrics


def test_an_evaluation_has_no_initial_policy() -> None:
    evaluation = group_evaluation("e", Patterns(problems=1), kl_to=[ScoreSource("x", "initial")])

    async def program() -> Any:
        return await evaluation.run(Policy())

    with pytest.raises(ValueError, match="an evaluation has no initial policy"):
        simulate(program).unwrap()


@pytest.fixture(scope="module")
def renderer() -> Any:
    return get_renderer("role_colon", make_tokenizer())


class Echo:
    """Answers " yes" where the question holds an even number, and " no" otherwise."""

    max_context = 60

    def __init__(self, renderer: Any) -> None:
        self.renderer = renderer
        self.asked: list[SampleRequest] = []

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        self.asked.append(request)
        text = self.renderer.vocabulary.decode(request.prompt.tokens.tolist())
        digit = next(int(letter) for letter in text if letter.isdigit())
        said = " yes \n\nUser:" if digit % 2 == 0 else " no\n\nUser:"
        tokens = np.array(self.renderer.vocabulary.encode(said), np.int32)
        return [Completion(tokens, np.zeros(len(tokens), np.float32), "stop", 0)]

    async def compute_logprobs(self, sequence: ModelInput) -> np.ndarray:
        raise AssertionError


def test_agreement_is_the_share_of_equal_answers(renderer: Any) -> None:
    conversations = [[user(f"Is {number} even?"), assistant("yes")] for number in range(5)]
    policy = Echo(renderer)
    evaluation = agreement_evaluation("e", conversations, renderer)

    async def program() -> Any:
        return await evaluation.run(policy)

    assert simulate(program).unwrap() == {"agreement": 3 / 5}
    assert {request.params.temperature for request in policy.asked} == {0.0}
    assert all(request.prompt.length + request.params.max_tokens <= 60 for request in policy.asked)


@pytest.mark.parametrize(
    ("conversations", "message"),
    [([], "there are no conversations"), ([[user("x")]], "conversation 0 does not end with an answer to something")],
)
def test_what_agreement_cannot_be_measured_on(conversations: Any, message: str, renderer: Any) -> None:
    with pytest.raises(ValueError, match=message):
        agreement_evaluation("e", conversations, renderer)
