"""Problem environments: reward, format, logs; groups that share a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from engine.backends.values import Completion, SampleRequest, SamplingParams
from engine.rendering import get_renderer, system, user
from engine.rendering.messages import Message
from envs.contracts import Step
from envs.problem import ProblemEnv, ProblemGroup
from envs.rollout import RolloutSettings, play_group
from recipes.tiny import make_tokenizer

tokenizer = make_tokenizer()
renderer = get_renderer("role_colon", tokenizer)


class Capital(ProblemEnv):
    def question(self) -> str:
        return "Capital of France?"

    def grade(self, answer: str) -> float:
        return float(answer.strip() == "Paris")

    def reference(self) -> str:
        return "Paris"

    def well_formed(self, answer: str) -> bool:
        return answer.strip().istitle()


def completion(text: str) -> Completion:
    tokens = np.array(tokenizer.encode(text).ids, np.int32)
    return Completion(tokens, np.zeros(len(tokens), np.float32), "stop", version=0)


async def answered(text: str, env: ProblemEnv | None = None) -> Step:
    env = env or Capital(renderer)
    await env.reset()
    return await env.step(completion(text))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("text", "reward", "correct", "formed"),
    [
        (" Paris\n\nUser:", 1.0, 1.0, 1.0),
        (" Lyon\n\nUser:", 0.0, 0.0, 1.0),
        (" lyon\n\nUser:", -0.1, 0.0, 0.0),
        (" Paris", 0.9, 1.0, 0.0),
        ("", -0.1, 0.0, 0.0),
    ],
    ids=["right", "wrong", "wrong form", "no end", "nothing"],
)
async def test_reward(text: str, reward: float, correct: float, formed: float) -> None:
    step = await answered(text)
    assert step.reward == pytest.approx(reward)
    assert step.metrics == {"correct": correct, "format": formed}
    assert step.observation is None


@pytest.mark.anyio
async def test_logs_are_for_people() -> None:
    step = await answered(" Lyon\n\nUser:")
    assert (step.logs["question"], step.logs["reference"]) == ("Capital of France?", "Paris")
    assert step.logs["answer"].strip() == "Lyon"


@pytest.mark.anyio
async def test_no_penalty_where_the_form_does_not_matter() -> None:
    class Lenient(Capital):
        format_penalty = 0.0

    assert (await answered(" Paris", Lenient(renderer))).reward == 1.0


@pytest.mark.anyio
async def test_a_grader_may_be_async() -> None:
    class Slow(Capital):
        async def grade(self, answer: str) -> float:  # type: ignore[override]
            return 0.25

    assert (await answered(" Paris\n\nUser:", Slow(renderer))).reward == 0.25


@pytest.mark.anyio
async def test_a_grade_that_is_no_number_is_an_error() -> None:
    class Broken(Capital):
        def grade(self, answer: str) -> float:
            return float("nan")

    with pytest.raises(ValueError, match=r"Broken\.grade gave nan"):
        await answered(" Paris\n\nUser:", Broken(renderer))


@pytest.mark.anyio
async def test_the_prompt_holds_the_messages() -> None:
    class Briefed(Capital):
        max_tokens = 5

        def messages(self) -> Sequence[Message]:
            return [system("One word."), user(self.question())]

    observation = await Briefed(renderer).reset()
    assert tokenizer.decode(observation.prompt.tokens.tolist()) == (
        "System: One word.\n\nUser: Capital of France?\n\nAssistant:"
    )
    assert observation.stop == ("\n\nUser:",)
    assert observation.max_tokens == 5


class Scripted:
    """A policy that answers from a list."""

    def __init__(self, *answers: str) -> None:
        self.answers = answers
        self.requests: list[SampleRequest] = []

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        self.requests.append(request)
        return [completion(text) for text in self.answers[: request.num_samples]]


@pytest.mark.anyio
async def test_a_group_is_one_request_and_one_rendering() -> None:
    rendered = 0

    class Counted(Capital):
        def messages(self) -> Sequence[Message]:
            nonlocal rendered
            rendered += 1
            return super().messages()

    policy = Scripted(" Paris\n\nUser:", " Rome\n\nUser:", " Paris\n\nUser:")
    group = ProblemGroup(lambda: Counted(renderer), 3, tags=("geography",))
    played = await play_group(group, policy, RolloutSettings(SamplingParams(max_tokens=4)), seed=3)
    assert played.rewards_G.tolist() == [1.0, 0.0, 1.0]
    assert played.tags == ("geography",)
    assert [request.num_samples for request in policy.requests] == [3]
    assert rendered == 1


def test_an_empty_group_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one member"):
        ProblemGroup(lambda: Capital(renderer), 0)
