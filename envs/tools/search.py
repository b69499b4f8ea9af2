"""Questions that take several searches, in the manner of Search-R1 (Jin et al. 2025, arXiv:2503.09516).

    question ──▶ search("who founded Acme") ──▶ passages ──▶ search("where was Ada born") ──▶ passages ──▶ answer: exact match or F1

The policy is rewarded for the answer alone. What the searches return is observation: in the context and never trained on, as the paper's loss masking wants it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import attrs

from engine.backends.errors import BackendError
from engine.data import Examples, Question
from engine.rendering import Message, Renderer, system, user
from engine.retrieval import Match, SearchIndex
from envs.answers import Worth
from envs.contracts import GroupBuilder
from envs.tools.agent import ToolEnv, ToolGroup, ToolLimits, ToolRewards
from envs.tools.answers_in_words import METRICS, Metric, exact_match, f1, final_answer
from envs.tools.results import ToolError, ToolUnavailable
from envs.tools.tool import Tool, as_tool, tool
from envs.tools.toolbox import Toolbox

INSTRUCTION = (
    "Answer the question. Look up what you do not know with the search tool, one fact at a time, as often as you need to; a search finds passages that are like its "
    "query. When you know the answer, give it alone, in as few words as possible, between <answer> and </answer>."
)


def search_tool(index: SearchIndex, *, top_k: int = 3, passage_characters: int = 1200, name: str = "search") -> Tool:
    """A tool that searches an index. An index or embedder that is out of order (BackendError) raises ToolUnavailable: that is no fault of the model's."""
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")

    @tool(name=name, result_characters=top_k * (passage_characters + 200))
    async def search(query: str) -> str:
        """Finds the passages that are most like a query.

        Args:
            query: what to look for, in words that the passage may have.
        """
        if not query.strip():
            raise ToolError("the query is empty")
        try:
            (matches,) = await index.search([query], top_k)
        except BackendError as error:
            raise ToolUnavailable(f"search: {error}") from error
        return as_text(matches, passage_characters)

    return as_tool(search)


def as_text(matches: Sequence[Match], passage_characters: int) -> str:
    """Passages as a model reads them: numbered, titles first, long ones cut."""
    if not matches:
        return "Nothing was found."
    shown = []
    for number, match in enumerate(matches, 1):
        title = match.metadata.get("title")
        text = match.text if len(match.text) <= passage_characters else f"{match.text[:passage_characters]}…"
        shown.append(f"[{number}] {title}: {text}" if title else f"[{number}] {text}")
    return "\n".join(shown)


@attrs.frozen
class SearchGroups:
    """A dataset of groups: question `index`, attempted by `group_size` members."""

    renderer: Renderer
    questions: Sequence[Question] | Examples[Question]
    toolbox: Toolbox
    """Has a search tool in it, and whatever else may be called."""
    group_size: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    metric: Metric = attrs.field(default="exact_match", validator=attrs.validators.in_(tuple(METRICS)))
    """What the reward is. `exact_match` and `f1` are reported either way."""
    limits: ToolLimits = attrs.field(factory=lambda: ToolLimits(max_turns=5, calls_per_answer=3))
    rewards: ToolRewards = attrs.field(factory=ToolRewards)
    instruction: str | None = INSTRUCTION
    """A system message; None: there is none beside what the model's family says of tools."""

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> GroupBuilder:
        question = self.questions[index]
        tags = ("search", *("_".join(tag.split()) for tag in question.tags if tag.strip()))
        return ToolGroup(partial(self._env, question), self.group_size, tuple(dict.fromkeys(tags)))

    def _env(self, question: Question) -> ToolEnv:
        return ToolEnv(
            self.renderer,
            asked(question.text, self.instruction),
            self.toolbox,
            partial(self._grade, question),
            limits=self.limits,
            rewards=self.rewards,
            reference=" | ".join(question.answers[:3]),
            unanswered=Worth(0.0, {"exact_match": 0.0, "f1": 0.0}),
        )

    def _grade(self, question: Question, answer: str) -> Worth:
        said = final_answer(answer)
        scores = {"exact_match": exact_match(said, question.answers), "f1": f1(said, question.answers)}
        reward = scores.get(self.metric)
        return Worth(METRICS[self.metric](said, question.answers) if reward is None else reward, scores)


def asked(question: str, instruction: str | None = INSTRUCTION) -> list[Message]:
    """How a question is asked."""
    return [*([] if instruction is None else [system(instruction)]), user(question)]
