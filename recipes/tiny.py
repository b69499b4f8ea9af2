"""The tiny model of the two-minute job: a Llama of some 150,000 numbers, its tokenizer, and the worked examples that it first learns from.

The worked examples come from a pupil who mostly forgets to carry: 47 + 5 = 42. A model warmed up on them writes sums fluently, adds right
where nothing is carried, and gets most of the sums with a carry wrong. What is missing there only the reward can teach.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import attrs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.backends.values import Datum
from engine.rendering import Renderer, assistant, user
from engine.runtime.seeds import derive_seed
from engine.training.supervised import supervised_datum
from envs.arithmetic import SIGNS, Difficulty, Problem

WORDING = "What is {}?"


def make_model(
    directory: Path,
    seed: int,
    *,
    texts: Sequence[str] | None = None,
    controls: Sequence[str] = (),
    vocabulary: int = 512,
    hidden: int = 64,
    layers: int = 2,
    context: int = 128,
) -> Path:
    """Writes the untrained model and its tokenizer into `directory`. Blocks: torch is loaded for it.

    The defaults are the two-minute job's. For another task, `texts` are examples of what is read and written there (`make_tokenizer`), and `context` is
    the longest sequence. Bind them with functools.partial to have what `recipes.models.open_model` takes as `make_tiny`.
    """
    from engine.backends import local

    # A wider initialisation than a big model's 0.02 halves the steps that a model of this width needs before it adds at all.
    return local.tiny_llama(
        directory,
        make_tokenizer(texts, controls=controls, vocabulary=vocabulary),
        hidden=hidden,
        layers=layers,
        heads=4,
        context=context,
        seed=seed,
        initializer_range=0.06,
    )


def make_tokenizer(
    texts: Sequence[str] | None = None, *, controls: Sequence[str] = (), vocabulary: int = 512
) -> Tokenizer:
    """Byte-level BPE, so that any text can be written; frequent stretches of `texts` become one token each, and so does every digit.

    `texts`: None: questions and answers of sums. `controls`: special tokens of the chat format (`engine.rendering.registry.control_tokens`).
    `vocabulary`: most tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    if texts is None:
        texts = _sums()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(controls),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _sums() -> list[str]:
    return [f"User: {WORDING.format(f'1 {sign} 2')}\n\nAssistant:" for sign in SIGNS.values()] + [
        " -3\n\nUser:",
        " 3\n\nUser:",
    ]


@attrs.frozen
class WorkedExamples:
    """Batches of sums, worked by the forgetful pupil. The same position gives the same batch."""

    renderer: Renderer
    difficulty: Difficulty
    steps: int
    batch_size: int = 128
    carry: float = 0.8
    """Share of examples with a carry: mostly, because that is where there is something to learn."""
    forgets: float = 0.65
    """Share of the problems with a carry (or a borrow) in which the pupil forgets it."""
    seed: int = 0

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Sequence[Datum]:
        rng = random.Random(derive_seed(self.seed, index))
        first = index * self.batch_size
        difficulty = attrs.evolve(self.difficulty, carry=self.carry)
        return [self._datum(difficulty.draw(self.seed, first + n), rng) for n in range(self.batch_size)]

    def _datum(self, problem: Problem, rng: random.Random) -> Datum:
        answer = forgetful(problem) if problem.carries and rng.random() < self.forgets else problem.answer
        conversation = [user(WORDING.format(problem)), assistant(str(answer))]
        (example,) = self.renderer.supervised_examples(conversation)
        datum = supervised_datum(example.model_input, example.weights_T)
        if datum is None:
            raise AssertionError("only a limit on the length leaves an example out, and none was given")
        return datum


def forgetful(problem: Problem) -> int:
    """The answer without what the units carry to the tens (or borrow from them)."""
    if problem.operation == "multiply":
        return problem.answer - problem.left % 10 * (problem.right % 10) // 10 * 10
    return problem.answer + (10 if problem.operation == "subtract" else -10) * problem.carries
