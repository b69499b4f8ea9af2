"""What the recipes of preference share where no data is named: a tiny model that speaks as carelessly as the made lists, and what is known of their answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actors import BatchDataset, Evaluation
    from engine.backends.values import SamplingParams
    from engine.data import Prompt
    from envs.contracts import Policy
    from recipes.models import OpenedModel

BATCH = 64
"""Answers of the careless speaker in a batch."""


def careless_answers(opened: OpenedModel, steps: int, seed: int, words: tuple[int, int] | None = None) -> BatchDataset:
    """So many batches of the careless speaker's answers, of so many words (from and to), for `recipes.warm_up`."""
    from engine.data import SupervisedBatches, ToDatums, read_conversations
    from recipes.tiny_lists import WORDS, made_answers

    answers = read_conversations(made_answers(steps * BATCH, seed, words=words or WORDS))
    return SupervisedBatches(examples=answers, to_datums=ToDatums(renderer=opened.renderer), batch_size=BATCH)


def made_prompts(count: int, seed: int) -> list[Prompt]:
    """Questions about lists."""
    from engine.data import read_prompts
    from recipes.tiny_lists import made_questions

    return list(read_prompts(made_questions(count, seed)))


def counted_evaluation(
    opened: OpenedModel, baseline: Policy, sampling: SamplingParams, *, every: int, seed: int, count: int = 128
) -> Evaluation:
    """How good the policy's lists are, counted: `quality` (0 to 1), and how often they are better than the baseline's to the same questions."""
    from actors import Evaluation
    from engine.runtime.seeds import derive_seed
    from envs.preference import FunctionPreferenceModel, Questions, WinRate, better_by
    from recipes.tiny_lists import quality

    questions = Questions(
        renderer=opened.renderer,
        conversations=made_prompts(count, derive_seed(seed, 3)),
        sampling=sampling,
        seed=derive_seed(seed, 4),
    )
    counted = WinRate(questions, FunctionPreferenceModel(better_by(quality)), baseline, measures={"quality": quality})
    return Evaluation("counted", counted, every=every)
