"""Conversations for a recipe, by flags: from the hub by name, from local files, or made on the spot; and a part of them held out for evaluation."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from engine.data import LoadRows, Rows, read_conversations
from engine.data.supervised import TooLong
from engine.rendering.supervision import TrainOnWhat
from recipes.row_data import RowsConfig, load_split

if TYPE_CHECKING:
    from engine.data import Conversation, Examples, ToDatums
    from engine.rendering import Renderer


@attrs.frozen(kw_only=True)
class ConversationConfig(RowsConfig):
    """Conversations, and how they become training sequences."""

    dataset: str | None = None
    """no_robots, tulu3, or any data set of conversations on the Hugging Face hub, as owner/name; None: --data, or chats made here."""
    data: Path | None = None
    """Local conversations instead: a .jsonl, .json, .parquet or .csv file, or a directory of them."""
    train_on: TrainOnWhat = TrainOnWhat.ALL_ASSISTANT_MESSAGES
    """What of a conversation is learnt."""
    too_long: TooLong = "truncate"
    """What to do with examples of more than --max-tokens. truncate and skip are counted in the metrics."""
    any_order: bool = False
    """Take messages whose roles come in an order that no chat has."""

    def to_datums(self, renderer: Renderer) -> ToDatums:
        """How a conversation becomes datums."""
        from engine.data import ToDatums

        return ToDatums(renderer=renderer, train_on=self.train_on, max_tokens=self.max_tokens, too_long=self.too_long)


def load_conversations(
    config: ConversationConfig, load: LoadRows, made: Rows
) -> tuple[Examples[Conversation], Examples[Conversation] | None]:
    """What to train on, and what is held out. Blocks: it may download, and indexes files. `made`: the rows where no data is named."""
    return load_split(config, load, made, functools.partial(read_conversations, any_order=config.any_order))
