"""Comparisons for a recipe, by flags: from the hub by name, from local files, or made on the spot; and a part of them held out for evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from engine.data import LoadRows, read_comparisons
from engine.data.pairs import PairTooLongPolicy
from recipes.row_data import RowsConfig, load_split

if TYPE_CHECKING:
    from engine.data import Comparison, Conversation, Examples, Row, ToPairs
    from engine.rendering import Message, Renderer


MADE = 16384
"""Comparisons that are made here."""


@attrs.frozen(kw_only=True)
class ComparisonConfig(RowsConfig):
    """Comparisons, and which of them are trained on."""

    dataset: str | None = None
    """hh, helpsteer2, helpsteer3, ultrafeedback, or any data set of comparisons on the Hugging Face hub, as owner/name; None: --data, or lists of words made
    here."""
    data: Path | None = None
    """Local comparisons instead, rows with prompt, chosen and rejected: a .jsonl, .json, .parquet or .csv file, or a directory of them."""
    too_long: PairTooLongPolicy = "error"
    """What to do with a pair of which one answer has more than --max-tokens, its prompt included. skip is counted in the metrics."""

    @property
    def made_here(self) -> bool:
        """Whether no data was named."""
        return self.dataset is None and self.data is None

    def to_pairs(self, renderer: Renderer) -> ToPairs:
        """How a comparison becomes its two datums."""
        from engine.data import ToPairs

        return ToPairs(renderer=renderer, max_tokens=self.max_tokens, too_long=self.too_long)


def load_comparisons(
    config: ComparisonConfig, load: LoadRows
) -> tuple[Examples[Comparison], Examples[Comparison] | None]:
    """What to train on, and what is held out; lists of words, made here, where no data is named. Blocks: it may download, and indexes files."""
    from engine.runtime.seeds import derive_seed
    from recipes.tiny_lists import made_comparisons

    made = made_comparisons(MADE, derive_seed(config.seed, 1)) if config.made_here else None
    return load_split(config, load, made, read_comparisons)


def fitting_only(config: ComparisonConfig, comparisons: Examples[Comparison]) -> Examples[Comparison]:
    """The comparisons without those that do not fit, where such ones are to be skipped, for whoever asks for one at a time. Blocks: it reads them all."""
    return comparisons.fitting() if config.on_bad_row == "skip" else comparisons


@attrs.frozen
class Prompts:
    """The prompts of comparisons, by position."""

    comparisons: Examples[Comparison]

    def __len__(self) -> int:
        return len(self.comparisons)

    def __getitem__(self, index: int) -> tuple[Message, ...]:
        return self.comparisons[index].prompt


def as_conversations(comparisons: Examples[Comparison]) -> Examples[Conversation]:
    """Prompts with their chosen answers: what is shown beside a policy's own, and what a policy may be trained on before."""
    from engine.data import Conversation, Examples

    def read(row: Row) -> Conversation:
        comparison = comparisons.read(row)
        return Conversation((*comparison.prompt, *comparison.chosen))

    return Examples(comparisons.rows, read)
