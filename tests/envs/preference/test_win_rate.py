"""Win rates: against a policy that is asked once, or against given answers."""

from __future__ import annotations

import anyio
import pytest

from engine.backends import SamplingParams
from engine.rendering import Message, assistant, user
from engine.runtime.testing import simulate
from envs.preference.comparing import ComparisonFailed, FunctionPreferenceModel, shorter
from envs.preference.win_rate import Questions, WinRate
from tests.envs.preference.speakers import RENDERER, Says

TALKS = [[user(f"Name {count} animals.")] for count in range(4)]
QUESTIONS = Questions(
    renderer=RENDERER, conversations=TALKS, sampling=SamplingParams(max_tokens=40), concurrency=2, seed=3
)
SHORTER = FunctionPreferenceModel(shorter)


@pytest.mark.anyio
async def test_against_given_answers() -> None:
    rate = WinRate(QUESTIONS, SHORTER, [assistant("xxx")] * 4, measures={"length": lambda _, answer: len(answer.text)})
    # "x" wins, "xxx" ties (it is the same), "xxxxx" loses, "yyy" ties (as long).
    said = {"0": "x", "1": "xxx", "2": "xxxxx", "3": "yyy"}
    policy = Says(lambda question, _: said[question[5]])
    found = await rate(policy)
    assert found == {
        "win_rate": 0.5,
        "ties": 0.5,
        "mean_score": 0.0,
        "answer_tokens": pytest.approx((1 + 3 + 5 + 3) / 4 + len(" \n\nUser:")),
        "format": 1.0,
        "comparisons": 4.0,
        "comparisons_failed": 0.0,
        "length": 3.0,
    }
    # The same seeds every time, one of its own for each question.
    first = {str(request.prompt.tokens): request.seed for request in policy.requests}
    await rate(policy)
    assert {str(request.prompt.tokens): request.seed for request in policy.requests[4:]} == first
    assert len(set(first.values())) == 4


@pytest.mark.anyio
async def test_against_a_policy_that_is_asked_once_and_with_the_same_seeds() -> None:
    baseline = Says(lambda *_: "xxx")
    rate = WinRate(QUESTIONS, SHORTER, baseline)
    winner = Says(lambda *_: "x")
    assert (await rate(winner))["win_rate"] == 1
    assert (await rate(Says(lambda *_: "xxxxx")))["win_rate"] == 0
    assert (await rate(Says(lambda *_: "xxx")))["ties"] == 1
    assert len(baseline.requests) == 4
    assert sorted(r.seed for r in baseline.requests) == sorted(r.seed for r in winner.requests)


def test_answers_are_asked_for_within_the_bound() -> None:
    report = simulate(QUESTIONS.ask, Says(lambda *_: "x", seconds=1.0))
    report.unwrap()
    assert report.seconds == 2.0


@pytest.mark.anyio
async def test_failed_comparisons() -> None:
    async def ill(conversation: list[Message], a: Message, b: Message) -> float:
        await anyio.lowlevel.checkpoint()
        if "2" in conversation[0].text:
            raise RuntimeError("the judge is ill")
        return 1.0

    policy, others = Says(lambda *_: "x"), [assistant("xxx")] * 4
    with pytest.raises(ComparisonFailed, match="question 2 could not be compared: RuntimeError: the judge is ill"):
        await WinRate(QUESTIONS, FunctionPreferenceModel(ill), others)(policy)
    found = await WinRate(QUESTIONS, FunctionPreferenceModel(ill), others, on_failure="skip")(policy)
    assert (found["win_rate"], found["comparisons"], found["comparisons_failed"]) == (1, 3, 1)
    with pytest.raises(ComparisonFailed, match="all 4 comparisons"):
        await WinRate(QUESTIONS, FunctionPreferenceModel(lambda *_: 7.0), others, on_failure="skip")(policy)


def test_what_cannot_be_evaluated() -> None:
    with pytest.raises(ValueError, match="there are none"):
        WinRate(Questions(renderer=RENDERER, conversations=[]), SHORTER, [])
    with pytest.raises(ValueError, match="4 questions but 1 answers"):
        WinRate(QUESTIONS, SHORTER, [assistant("x")])
