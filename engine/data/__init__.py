"""Data that people bring: rows from the Hugging Face hub or local files, and what they are read as.

rows = load_rows("gsm8k", split="test")                   # or load_rows("my.jsonl"), load_rows("owner/name")
problems = read_problems(rows, on_bad_row="skip")         # problems[7].question
train, test = load_rows("chats.parquet").shuffled(seed=1).split(held_out=200)
conversations = read_conversations(train)
"""

from __future__ import annotations

from engine.data.catalogue import KNOWN_SETS, KnownSet, find_known
from engine.data.comparisons import Comparison, comparison_of, read_comparisons
from engine.data.conversations import Conversation, check_order, conversation_of, read_conversations
from engine.data.errors import BadRow, DataError
from engine.data.examples import Examples, OnBadRow, Skipped
from engine.data.loading import LoadRows, load_rows
from engine.data.pairs import PairTooLong, ToPairs, held_out_pairs, pair_batches, pair_datums
from engine.data.problems import Problem, last_boxed, problem_of, read_problems
from engine.data.prompts import Prompt, prompt_of, read_prompts
from engine.data.questions import Passage, Question, passage_of, question_of, read_passages, read_questions
from engine.data.rows import Row, Rows, Table, rows_of
from engine.data.supervised import HeldOut, SupervisedBatches, ToDatums, held_out_set

__all__ = [
    "KNOWN_SETS",
    "BadRow",
    "Comparison",
    "Conversation",
    "DataError",
    "Examples",
    "HeldOut",
    "KnownSet",
    "LoadRows",
    "OnBadRow",
    "PairTooLong",
    "Passage",
    "Problem",
    "Prompt",
    "Question",
    "Row",
    "Rows",
    "Skipped",
    "SupervisedBatches",
    "Table",
    "ToDatums",
    "ToPairs",
    "check_order",
    "comparison_of",
    "conversation_of",
    "find_known",
    "held_out_pairs",
    "held_out_set",
    "last_boxed",
    "load_rows",
    "pair_batches",
    "pair_datums",
    "passage_of",
    "problem_of",
    "prompt_of",
    "question_of",
    "read_comparisons",
    "read_conversations",
    "read_passages",
    "read_problems",
    "read_prompts",
    "read_questions",
    "rows_of",
]
