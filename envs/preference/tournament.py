"""Pairwise rewards: the answers of a group compete, and each is worth its mean score.

    group's answers ──pairs──> comparisons, concurrently ──PreferenceModel──> scores ──mean by member──> rewards in [−1, 1]

What is compared is the text; an answer like another's is a tie, of which nobody need be asked.

Dimension suffix: `G` members of the group.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import anyio
import attrs

from engine.rendering import Message, Renderer
from engine.training.preference import tournament_rewards
from engine.training.trajectories import Trajectory
from envs.answers import AnswerEnv, question, spoken
from envs.budgets import within
from envs.contracts import Env, GroupBuilder, GroupGrade
from envs.preference.comparing import ComparisonFailed, Conversation, PreferenceModel, checked
from envs.together import alike

OnFailure = Literal["error", "skip"]
_positive: Any = attrs.validators.ge(1)


@attrs.frozen(eq=False, kw_only=True)
class TournamentSettings:
    """Who is compared with whom, and what becomes of a comparison that fails."""

    opponents: int | None = attrs.field(default=None, validator=attrs.validators.optional(_positive))
    """Others that each member is compared with, one more where the numbers do not come out even; None: all of them. Comparisons grow with the square of the group
    size otherwise."""
    concurrency: int = attrs.field(default=32, validator=_positive)
    """Most comparisons under way at once, over all groups."""
    on_failure: OnFailure = "error"
    """error: a failed comparison fails the group, with which the rollout's failure policy deals. skip: it is left out and counted; a member that has none left fails
    the group."""
    timeout: float | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.gt(0)))
    """Most seconds of one comparison; running out counts as a failure. None: no limit."""


@attrs.frozen
class Comparison:
    """How a comparison of two members went."""

    first: int
    second: int
    score: float | None
    """How much better the first is, in [−1, 1], below 0 where the second is; None: it failed, and was left out."""
    error: str | None = None


class Tournament:
    """Compares the answers of groups by a preference model, at most `settings.concurrency` comparisons at a time over all groups that share it."""

    def __init__(self, model: PreferenceModel, settings: TournamentSettings | None = None) -> None:
        self.model = model
        self.settings = settings or TournamentSettings()
        self._slots = anyio.Semaphore(self.settings.concurrency)

    async def grade(self, conversation: Conversation, answers: Sequence[Message]) -> GroupGrade:
        """Each member's mean score; with each, as metrics, `comparisons`, `comparisons_failed` and `ties`.

        Raises ComparisonFailed where a comparison failed that must not, or where a member has none left.
        """
        played = await self.play(conversation, answers)
        counts = [_counted(member, played) for member in range(len(answers))]
        for member, count in enumerate(counts):
            if count["comparisons_failed"] and not count["comparisons"]:
                error = next(each.error for each in played if each.error and member in (each.first, each.second))
                raise ComparisonFailed(
                    f"member {member} of a group has no comparison left, for all of them failed: {error}"
                )
        scores = [(each.first, each.second, each.score) for each in played if each.score is not None]
        return GroupGrade(tuple(tournament_rewards(len(answers), scores).tolist()), tuple(counts))

    async def play(self, conversation: Conversation, answers: Sequence[Message]) -> list[Comparison]:
        """All comparisons, concurrently. Raises ComparisonFailed, when the others have been cancelled, for one that must not fail."""
        texts = [spoken(answer) for answer in answers]
        played: dict[tuple[int, int], Comparison] = {}
        asked = []
        for pair in pairing(len(answers), self.settings.opponents):
            if texts[pair[0]] == texts[pair[1]]:
                played[pair] = Comparison(*pair, 0.0)
            else:
                asked.append(pair)
        for comparison in await alike(
            [functools.partial(self._compare, conversation, answers, *pair) for pair in asked]
        ):
            played[comparison.first, comparison.second] = comparison
        return [played[pair] for pair in sorted(played)]

    async def _compare(
        self, conversation: Conversation, answers: Sequence[Message], first: int, second: int
    ) -> Comparison:
        try:
            async with self._slots:
                with within(self.settings.timeout, "grading", "the verdict"):
                    score = await self.model.compare(conversation, answers[first], answers[second])
            return Comparison(first, second, checked(score))
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            if self.settings.on_failure == "error":
                raise ComparisonFailed(
                    f"members {first} and {second} of a group could not be compared: {said}"
                ) from error
            return Comparison(first, second, None, said)


def pairing(members: int, opponents: int | None = None) -> list[tuple[int, int]]:
    """Who meets whom: everybody everybody else, or, round a table, those who sit nearest. Each pair once, the lower number first.

    With `opponents`, each member has that many, one more where members × opponents is odd.
    """
    if opponents is None or opponents >= members - 1:
        return [(first, second) for first in range(members) for second in range(first + 1, members)]
    pairs = set()
    for distance in range(1, -(-opponents // 2) + 1):
        opposite = (
            2 * distance > opponents and members % 2 == 0
        )  # the odd one: across the table, where there is somebody
        for member in range(members):
            other = (member + (members // 2 if opposite else distance)) % members
            pairs.add((min(member, other), max(member, other)))
    return sorted(pairs)


def _counted(member: int, played: Sequence[Comparison]) -> dict[str, float]:
    own = [each for each in played if member in (each.first, each.second)]
    valid = [each.score for each in own if each.score is not None]
    return {
        "comparisons": float(len(valid)),
        "comparisons_failed": float(len(own) - len(valid)),
        "ties": float(valid.count(0.0)),
    }


class TournamentGroup(GroupBuilder):
    """Several answers to one conversation, rewarded by comparing them."""

    single_turn = True

    def __init__(
        self,
        renderer: Renderer,
        conversation: Conversation,
        tournament: Tournament,
        size: int,
        *,
        tags: Sequence[str] = (),
        max_tokens: int | None = None,
        unfinished_penalty: float = 0.1,
    ) -> None:
        """`size` answers make the group. `unfinished_penalty`: taken from the reward of an answer that was cut off."""
        if size < 1:
            raise ValueError(f"a group has at least one member, got size {size}")
        self._renderer = renderer
        self._conversation = tuple(conversation)
        self._tournament = tournament
        self._size = size
        self._max_tokens = max_tokens
        self._unfinished_penalty = unfinished_penalty
        self.tags = tuple(tags)

    async def make_envs(self) -> Sequence[Env]:
        """The answers; the prompt is rendered once."""
        asked = question(self._renderer, self._conversation, self._max_tokens)
        return [
            AnswerEnv(self._renderer, self._conversation, asked, unfinished_penalty=self._unfinished_penalty)
            for _ in range(self._size)
        ]

    async def group_rewards(self, trajectories: Sequence[Trajectory]) -> GroupGrade:
        """Compares the members' answers."""
        answers = [self._renderer.parse(trajectory.turns[-1].completion.tokens).message for trajectory in trajectories]
        return await self._tournament.grade(self._conversation, answers)


class Conversations(Protocol):
    """Conversations by position; a list is such."""

    def __getitem__(self, index: int, /) -> Conversation: ...

    def __len__(self) -> int: ...


@attrs.frozen(kw_only=True)
class TournamentGroups:
    """A dataset of groups: conversation `index`, answered by `group_size` members that compete."""

    renderer: Renderer
    conversations: Conversations
    tournament: Tournament
    group_size: int = attrs.field(default=8, validator=_positive)
    tags: tuple[str, ...] = ("preference",)
    max_tokens: int | None = None
    unfinished_penalty: float = 0.1
    blocking: bool = False
    """Whether reading a conversation may take long (a data set on disk), so that it must not be done on the event loop."""

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> GroupBuilder:
        return TournamentGroup(
            self.renderer,
            self.conversations[index],
            self.tournament,
            self.group_size,
            tags=self.tags,
            max_tokens=self.max_tokens,
            unfinished_penalty=self.unfinished_penalty,
        )
