"""How often a policy's answers are preferred to others': those of another policy (the one it began as), or given ones (a data set's)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import anyio
import attrs
import numpy as np

from engine.backends.values import SampleRequest, SamplingParams
from engine.rendering import Message, Renderer
from engine.runtime.seeds import derive_seed
from envs.answers import question
from envs.contracts import Policy
from envs.preference.comparing import ComparisonFailed, Conversation, PreferenceModel, checked
from envs.preference.tournament import OnFailure
from envs.together import alike

Measure = Callable[[Conversation, Message], float]
Answers = Sequence[Message]
_positive: Any = attrs.validators.ge(1)


@attrs.frozen
class Sampled:
    """Answers of a policy, with what they cost."""

    messages: tuple[Message, ...]
    tokens: tuple[int, ...]
    """Length of each answer in tokens."""
    finished: tuple[bool, ...]
    """Whether each ended as the renderer expects."""


@attrs.frozen(kw_only=True)
class Questions:
    """Conversations to be answered, always with the same seeds: two policies' answers then differ by the policies alone."""

    renderer: Renderer
    conversations: Sequence[Conversation]
    sampling: SamplingParams = attrs.field(factory=SamplingParams)
    concurrency: int = attrs.field(default=64, validator=_positive)
    """Most answers asked for at once."""
    seed: int = 0

    async def ask(self, policy: Policy) -> Sampled:
        """One answer to each."""
        slots = anyio.Semaphore(self.concurrency)

        async def one(index: int) -> tuple[Message, int, bool]:
            async with slots:
                asked = question(self.renderer, self.conversations[index])
                params = attrs.evolve(self.sampling, stop=asked.stop or self.sampling.stop)
                (completion,) = await policy.sample(SampleRequest(asked.prompt, params, derive_seed(self.seed, index)))
            parsed = self.renderer.parse(completion.tokens)
            return parsed.message, len(completion.tokens), parsed.ok

        answers = await alike([functools.partial(one, index) for index in range(len(self.conversations))])
        return Sampled(*(tuple(each) for each in zip(*answers, strict=True)))


class WinRate:
    """What an `actors.Evaluation` runs: the policy's answers against the baseline's, compared by a preference model.

    Metrics: `win_rate` (a tie is half a win), `ties`, `mean_score`, `answer_tokens`, `format`, `comparisons`, `comparisons_failed`, and each measure's mean.
    """

    def __init__(
        self,
        questions: Questions,
        model: PreferenceModel,
        baseline: Policy | Answers,
        *,
        concurrency: int = 32,
        on_failure: OnFailure = "error",
        measures: Mapping[str, Measure] | None = None,
    ) -> None:
        """`baseline`: a policy, which is asked once, or an answer to each question.

        `concurrency`: most comparisons at once. `on_failure`: error: a failed comparison fails the evaluation; skip: it is left out and counted.
        `measures`: further things to know of each answer, by name: `measure(conversation, answer)`.
        """
        if not len(questions.conversations):
            raise ValueError("a win rate needs questions: there are none")
        if isinstance(baseline, Sequence) and len(baseline) != len(questions.conversations):
            raise ValueError(
                f"there are {len(questions.conversations)} questions but {len(baseline)} answers to compare with"
            )
        self._questions = questions
        self._model = model
        self._baseline = baseline
        self._slots = anyio.Semaphore(concurrency)
        self._on_failure = on_failure
        self._measures = measures or {}
        self._asking = anyio.Lock()

    async def __call__(self, policy: Policy) -> Mapping[str, float]:
        """Answers, compares, counts. Raises ComparisonFailed where a comparison failed that must not, or all did."""
        others = await self._others()
        answers = await self._questions.ask(policy)
        outcomes = await alike(
            [
                functools.partial(self._compare, index, answer, other)
                for index, (answer, other) in enumerate(zip(answers.messages, others, strict=True))
            ]
        )
        scores = [outcome for outcome in outcomes if isinstance(outcome, float)]
        failures = [outcome for outcome in outcomes if isinstance(outcome, ComparisonFailed)]
        if not scores:
            raise ComparisonFailed(f"all {len(failures)} comparisons of an evaluation failed: {failures[0]}")
        pairs = list(zip(self._questions.conversations, answers.messages, strict=True))
        return {
            "win_rate": fmean((np.sign(score) + 1) / 2 for score in scores),
            "ties": fmean(score == 0 for score in scores),
            "mean_score": fmean(scores),
            "answer_tokens": fmean(answers.tokens),
            "format": fmean(answers.finished),
            "comparisons": float(len(scores)),
            "comparisons_failed": float(len(failures)),
            **{name: fmean(measure(*pair) for pair in pairs) for name, measure in self._measures.items()},
        }

    async def _others(self) -> Answers:
        async with self._asking:
            if not isinstance(self._baseline, Sequence):
                self._baseline = (await self._questions.ask(self._baseline)).messages
        return self._baseline

    async def _compare(self, index: int, answer: Message, other: Message) -> float | ComparisonFailed:
        if answer.content == other.content:
            return 0.0
        try:
            async with self._slots:
                return checked(await self._model.compare(self._questions.conversations[index], answer, other))
        except Exception as error:
            failure = ComparisonFailed(
                f"the answers to question {index} could not be compared: {type(error).__name__}: {error}"
            )
            if self._on_failure == "error":
                raise failure from error
            return failure
