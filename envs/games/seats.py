"""Members at a match's table, as envs; groups of matches; datasets of such groups.

    self-play            every seat is a member: a group of n matches has n × seats members, match by match, seat by seat
    fixed opponents      one seat of each match is a member, which one follows from the problem; the group's members are not each other's players

In self-play the two sides of a match always sum to what the game says (usually zero), so the mean over a group says nothing about how good a seat is: where moving first
is an advantage, compare first movers with first movers (`engine.training.advantages.by_seat`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import attrs

from engine.backends.values import Completion, ModelInput
from engine.rendering import Dialogue, Message, Renderer, system, user
from engine.runtime.seeds import derive_seed
from engine.training.trajectories import EndReason
from envs.contracts import Env, GroupBuilder, Observation, Step
from envs.games.game import Game
from envs.games.match import Match, MatchRules, Opponent

UNFINISHED = "Your answer was cut off before it ended."


@attrs.frozen
class SeatOptions:
    """How a player is spoken to."""

    system: str = ""
    """The system message; none where it is empty."""
    memory: bool = True
    """Whether a player sees earlier turns. Without, every turn is a new conversation: for games whose news show all there is to know."""
    history: Literal["family", "keep"] = "family"
    """What becomes of earlier answers' thinking, see `Dialogue`."""
    max_tokens: int | None = None
    """Longest answer, in tokens; None: the rollout's own limit."""


class Seat:
    """One member's part of a match.

    Rewards: at the end the score, and on the way `illegal_penalty` less for each illegal move. Metrics: `illegal` (share of the answers that were no move); of
    the last turn `score`, `win`, `draw`, `forfeit` (1 or 0) and `seat_<n>/score`. Logs: `seat`, `question`, `answer`, and at the end `outcome`.
    """

    def __init__(self, match: Match, seat: int, renderer: Renderer, options: SeatOptions | None = None) -> None:
        self.match = match
        self.seat = seat
        self._renderer = renderer
        self._options = options or SeatOptions()
        self._shown = ""
        self._refused = 0
        self._dialogue: Dialogue | None = None

    async def reset(self) -> Observation | None:
        """The rules and the first position; None when the match was over before it was this seat's turn."""
        news = await self.match.turn(self.seat)
        if news is None:
            return None
        self._refused = self.match.game.refused(self.seat)
        return self._ask_anew(news)

    async def step(self, completion: Completion) -> Step:
        """Makes the move, and waits until it is this seat's turn again."""
        if self._dialogue is None:
            raise RuntimeError("a seat is asked by reset() before it can answer")
        parsed = self._dialogue.answer(completion.tokens)
        before = self.match.illegal[self.seat]
        logs: dict[str, Any] = {"seat": self.seat, "question": self._shown, "answer": parsed.message.text}
        unreadable = "" if parsed.ok else UNFINISHED
        refusal = await self.match.move(self.seat, parsed.message.text, unreadable=unreadable)
        news = refusal or await self.match.turn(self.seat)
        refused = self.match.game.refused(self.seat)
        illegal = self.match.illegal[self.seat] - before + refused - self._refused
        self._refused = refused
        reward = 0.0 - self.match.rules.illegal_penalty * illegal
        metrics = {"illegal": float(illegal)}
        if news is not None:
            return Step(reward, self._ask_again(self._dialogue, news, refused=bool(refusal)), metrics, logs)
        reward += self._tell_outcome(metrics, logs)
        return Step(reward, None, metrics, logs)

    def leave(self, end: EndReason | None) -> float:  # noqa: ARG002  (the contract's)
        """The episode ended at a limit, or failed: the match is over, and the seat gets what its rules say."""
        return self.match.leave(self.seat)

    def _tell_outcome(self, metrics: dict[str, float], logs: dict[str, Any]) -> float:
        score, outcome = self.match.score(self.seat), self.match.outcome
        metrics |= {"score": score, "win": float(score > 0), "draw": float(score == 0)}
        metrics[f"seat_{self.seat}/score"] = score
        if outcome is not None:  # it is over, or it would have no score
            metrics["forfeit"] = float(self.seat in outcome.culprits)
            logs["outcome"] = f"{outcome.ending}: {', '.join(f'{value:g}' for value in outcome.scores)}"
        return score

    # ---- what the player is shown

    def _ask_anew(self, news: str) -> Observation:
        rules = self.match.game.rules(self.seat)
        self._shown = f"{rules}\n\n{news}" if rules else news
        opening: list[Message] = [system(self._options.system)] if self._options.system else []
        self._dialogue = Dialogue(self._renderer, [*opening, user(self._shown)], history=self._options.history)
        return self._observation(self._dialogue.prompt)

    def _ask_again(self, dialogue: Dialogue, news: str, *, refused: bool) -> Observation:
        if not self._options.memory and not refused:
            return self._ask_anew(news)
        self._shown = news
        return self._observation(dialogue.extend(user(news)))

    def _observation(self, prompt: ModelInput) -> Observation:
        return Observation(prompt, self._renderer.stop_sequences(), self._options.max_tokens)


class MatchGroup(GroupBuilder):
    """Matches of the same game from the same start, played at the same time."""

    def __init__(
        self,
        make_game: Callable[[], Game],
        renderer: Renderer,
        *,
        seats: int = 2,
        matches: int = 1,
        opponents: Mapping[int, Opponent] | None = None,
        rules: MatchRules | None = None,
        options: SeatOptions | None = None,
        tags: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        """`make_game()` gives the same game of `seats` seats each time. Those without one of the `opponents` are members'."""
        if matches < 1:
            raise ValueError(f"a group has at least one match, got {matches}")
        members = seats - len(opponents or {})
        if members < 1:
            raise ValueError("every seat has an opponent in it: one must be left for the policy")
        self.interdependent = members > 1
        """Members of one match wait for each other; a match of one member waits for nobody who could fail it."""
        self._make_game = make_game
        self._renderer = renderer
        self._seats = seats
        self._count = matches
        self._opponents = dict(opponents or {})
        self._rules = rules
        self._options = options
        self._seed = seed
        self.tags = tuple(tags)
        self.matches: list[Match] = []
        """Those of the present attempt at the group."""

    async def make_envs(self) -> Sequence[Env]:
        """The members, match by match, seat by seat."""
        self.matches = [
            Match(self._make_game(), opponents=self._opponents, rules=self._rules, seed=derive_seed(self._seed, number))
            for number in range(self._count)
        ]
        if self.matches[0].game.seats != self._seats:
            raise ValueError(
                f"the game has {self.matches[0].game.seats} seats, but the group was told of {self._seats}"
            )
        return [Seat(match, seat, self._renderer, self._options) for match in self.matches for seat in match.members]

    async def cleanup(self) -> None:
        """Closes the games."""
        for match in self.matches:
            await match.game.close()


@attrs.frozen(kw_only=True)
class MatchGroups:
    """A dataset of groups of matches. Problem `index` follows from (seed, index) alone."""

    name: str
    """The game's name, as a tag."""
    renderer: Renderer
    make_game: Callable[[int], Game]
    """The game of a problem, by the problem's seed."""
    seats: int = 2
    matches: int = attrs.field(default=4, validator=attrs.validators.ge(1))
    """Matches in a group, all from the same start."""
    opponent: Opponent | None = None
    """Who plays the other seats; None: the policy itself plays all of them."""
    opponent_name: str = "self_play"
    """A tag too."""
    seat: int | None = None
    """The member's seat against an opponent; None: each in turn, from problem to problem."""
    rules: MatchRules | None = None
    options: SeatOptions | None = None
    count: int = attrs.field(default=100_000, validator=attrs.validators.ge(1))
    """Problems in all. They are made when asked for, so a large number costs nothing."""
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        if self.seat is not None and not 0 <= self.seat < self.seats:
            raise ValueError(f"seat {self.seat} does not exist: {self.name} has {self.seats}, numbered from 0")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> GroupBuilder:
        if not 0 <= index < self.count:
            raise IndexError(f"problem {index} of {self.count}")
        seed = derive_seed(self.seed, index)
        opponents: dict[int, Opponent] = {}
        tags = [self.name, self.opponent_name]
        if self.opponent is not None:
            mine = index % self.seats if self.seat is None else self.seat
            opponents = {seat: self.opponent for seat in range(self.seats) if seat != mine}
            if self.seats > 1:
                tags.append(f"seat_{mine}")
        return MatchGroup(
            lambda: self.make_game(seed),
            self.renderer,
            seats=self.seats,
            matches=self.matches,
            opponents=opponents,
            rules=self.rules,
            options=self.options,
            tags=tags,
            seed=derive_seed(seed, 1),
        )
