"""A language model as a preference model: it reads a conversation and two answers, and its next word says which is better.

    conversation, first, second ──worded──> question ──renderer──> prompt + "A", prompt + "B" ──log-probabilities──> P(A), P(B)

What it is asked is the same in training (`label_examples`) and in use (`LabelPreferenceModel`). Both orders are trained on and both are asked, so that where an
answer stands decides nothing.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import attrs
import numpy as np

from engine.backends.values import Datum, Logprobs, ModelInput
from engine.data import Comparison, DataError
from engine.rendering import Message, Renderer, SupervisedExample, TrainOnWhat, assistant, user
from engine.training.supervised import supervised_datum
from envs.answers import check_question, sections, spoken, transcript
from envs.preference.comparing import ComparisonFailed, Conversation
from envs.together import alike

Wording = Callable[[Conversation, Message, Message], str]
"""The question about two answers, as text."""


def worded(conversation: Conversation, first: Message, second: Message) -> str:
    """The question in full: conversation and answers between tags that nothing in them can end."""
    material = sections(
        {"conversation": transcript(conversation), "answer_a": spoken(first), "answer_b": spoken(second)}
    )
    return f"Which of two answers to a conversation is better?\n\n{material}\n\nReply with A or B and nothing else."


def worded_briefly(conversation: Conversation, first: Message, second: Message) -> str:
    """The question in as few words as a model needs that was trained on nothing else."""
    return f"{transcript(conversation)}\nA: {spoken(first)}\nB: {spoken(second)}\nA or B?"


@attrs.frozen
class ComparisonFormat:
    """How a preference model is asked, and what it answers. Training and use must share it."""

    worded: Wording = worded
    first: str = "A"
    """What it says when the first answer is the better one."""
    second: str = "B"

    def messages(self, conversation: Conversation, first: Message, second: Message) -> list[Message]:
        """What the model reads."""
        check_question(conversation)
        return [user(self.worded(conversation, first, second))]

    def example(self, renderer: Renderer, asked: Sequence[Message], label: str) -> SupervisedExample:
        """The question with a label as its answer, whose tokens alone have weight."""
        return renderer.supervised_examples([*asked, assistant(label)], TrainOnWhat.LAST_ASSISTANT_MESSAGE)[-1]


def label_examples(
    renderer: Renderer,
    form: ComparisonFormat,
    conversation: Conversation,
    chosen: Message,
    rejected: Message,
    *,
    max_tokens: int | None = None,
) -> tuple[Datum, Datum] | None:
    """Two supervised datums of one comparison: the chosen answer first, and second. None where one of them has more than `max_tokens`."""
    datums = []
    for first, second, label in ((chosen, rejected, form.first), (rejected, chosen, form.second)):
        example = form.example(renderer, form.messages(conversation, first, second), label)
        datum = supervised_datum(example.model_input, example.weights_T, max_tokens=max_tokens, too_long="skip")
        if datum is None:
            return None
        datums.append(datum)
    return datums[0], datums[1]


@attrs.frozen(kw_only=True)
class ToLabels:
    """How a comparison becomes two datums for `engine.data.SupervisedBatches`: a preference model's training."""

    renderer: Renderer
    form: ComparisonFormat = attrs.field(factory=ComparisonFormat)
    max_tokens: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(2)))
    """The most tokens of a question with its label; None: no limit."""
    too_long: Literal["error", "skip"] = "error"
    """What to do with a comparison whose question is longer: an error, or leave it out and count it (`data/too_long`)."""

    def __call__(self, comparison: Comparison, counts: Counter[str]) -> list[Datum]:
        """The chosen answer first, and second; nothing for a comparison that is left out."""
        answers = one_message(comparison.chosen), one_message(comparison.rejected)
        pair = label_examples(self.renderer, self.form, comparison.prompt, *answers, max_tokens=self.max_tokens)
        if pair is not None:
            return list(pair)
        if self.too_long == "error":
            raise DataError(
                f"the question about its two answers has more than {self.max_tokens} tokens: raise the limit, or have such comparisons skipped"
            )
        counts["data/too_long"] += 1
        return []


def one_message(answer: Sequence[Message]) -> Message:
    """An answer as the one message that is compared; one of several messages as its transcript."""
    return answer[0] if len(answer) == 1 else assistant(transcript(answer))


class Scores(Protocol):
    """What a label model needs of a policy: `actors.ReferencePolicy` and `actors.ServedPolicy` are such."""

    async def compute_logprobs(self, sequence: ModelInput) -> Logprobs:
        """Log-probability of every token given those before it, shape (T,); position 0 is NaN."""
        ...


class LabelPreferenceModel:
    """Compares by the probabilities of the two labels, averaged over both orders."""

    def __init__(self, scores: Scores, renderer: Renderer, form: ComparisonFormat | None = None) -> None:
        self._scores = scores
        self._renderer = renderer
        self._form = form or ComparisonFormat()

    async def compare(self, conversation: Conversation, answer_a: Message, answer_b: Message) -> float:
        """P(a is better) − P(b is better), the mean of both orders; exactly the negative when the answers change places."""
        one_way, other_way = await alike(
            [
                functools.partial(self.preference, conversation, answer_a, answer_b),
                functools.partial(self.preference, conversation, answer_b, answer_a),
            ]
        )
        return (one_way - other_way) / 2

    async def preference(self, conversation: Conversation, first: Message, second: Message) -> float:
        """P(first label) − P(second label) in this one order, where the model could only say one of the two. What position does to it is still in it."""
        asked = self._form.messages(conversation, first, second)
        one, other = await alike(
            [functools.partial(self._logprob, asked, label) for label in (self._form.first, self._form.second)]
        )
        return math.tanh((one - other) / 2)  # of p/(p+q) − q/(p+q)

    async def _logprob(self, asked: Sequence[Message], label: str) -> float:
        """Log-probability of the label, and of ending there."""
        example = self._form.example(self._renderer, asked, label)
        logprobs_T = await self._scores.compute_logprobs(example.model_input)
        logprob = float(np.asarray(logprobs_T, np.float64)[example.weights_T > 0].sum())
        if not math.isfinite(logprob):
            raise ComparisonFailed(f"the preference model gave the label {label!r} the log-probability {logprob}")
        return logprob
