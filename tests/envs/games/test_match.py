"""Players wait for each other and never for ever: whatever fails, whoever leaves, however the tasks interleave."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import attrs
import pytest

from engine.backends import SampleRequest, SamplingParams
from engine.runtime.testing import every_cancellation, schedules, simulate
from engine.training.trajectories import TrajectoryGroup
from envs.games.game import Game
from envs.games.match import Match, MatchRules, Opponent, Outcome
from envs.games.opponents import RandomPlayer, scripted
from envs.games.seats import MatchGroup, Seat, SeatOptions
from envs.rollout import FailFast, GroupFailed, MinViable, Retry, RolloutLimits, RolloutSettings, play_group
from tests.envs.games.tables import RENDERER, Rounds, Speaker, number, zero_sum

BOTH_WAYS = pytest.mark.parametrize("at_once", [False, True], ids=["in turn", "at once"])


@attrs.define
class Table:
    """A group of matches, and everything it has made."""

    make: Callable[[], Rounds] = Rounds
    matches: int = 1
    opponents: dict[int, Opponent] = attrs.field(factory=dict)
    rules: MatchRules = attrs.field(factory=MatchRules)
    options: SeatOptions = attrs.field(factory=SeatOptions)
    games: list[Rounds] = attrs.field(factory=list)

    def group(self) -> MatchGroup:
        return MatchGroup(
            self._make,
            RENDERER,
            seats=self.make().seats,
            matches=self.matches,
            opponents=self.opponents,
            rules=self.rules,
            options=self.options,
        )

    def _make(self) -> Game:
        self.games.append(self.make())
        return self.games[-1]


def settings(**options: Any) -> RolloutSettings:
    limits = {name: options.pop(name) for name in list(options) if hasattr(RolloutLimits(), name)}
    return RolloutSettings(SamplingParams(max_tokens=20), RolloutLimits(**limits), **options)


def played(table: Table, policy: Any, seed: int = 0, **options: Any) -> tuple[TrajectoryGroup, MatchGroup]:
    group = table.group()
    report = simulate(lambda: play_group(group, policy, settings(**options), 5), seed=seed, horizon=1e5)
    assert all(game.closed == 1 for game in table.games)
    return report.unwrap(), group


def rewards(trajectories: TrajectoryGroup) -> list[float]:
    return [round(trajectory.reward, 6) for trajectory in trajectories.trajectories]


def says(by_seat: dict[int, str]) -> Callable[[str, SampleRequest], str]:
    """What each seat answers, by what it was told first."""

    def answer(prompt: str, request: SampleRequest) -> str:
        return next(text for seat, text in by_seat.items() if f"You are {seat}." in prompt)

    return answer


# ---- a match that goes well


@BOTH_WAYS
@pytest.mark.parametrize("seats", [2, 3, 5])
def test_everybody_moves_when_it_is_its_turn_and_all_learn_the_outcome(at_once: bool, seats: int) -> None:
    for seed in range(20):
        table = Table(lambda: Rounds(seats, 3, at_once), matches=2)
        result, _ = played(table, Speaker(says({seat: str(seat) for seat in range(seats)})), seed)
        assert [len(trajectory.turns) for trajectory in result.trajectories] == [3] * (2 * seats)
        best = [-1 / (seats - 1)] * (seats - 1) + [1.0]
        assert rewards(result) == [round(reward, 6) for reward in best * 2]
        assert [game.said for game in table.games] == [[3 * seat for seat in range(seats)]] * 2
        for trajectory in result.trajectories:
            assert [turn.metrics["illegal"] for turn in trajectory.turns] == [0, 0, 0]
            assert trajectory.turns[-1].metrics["score"] == pytest.approx(trajectory.reward)


def test_alternating_players_see_each_others_moves_and_simultaneous_ones_do_not() -> None:
    in_turn = Speaker(says({0: "1", 1: "2"}))
    played(Table(lambda: Rounds(rounds=2)), in_turn)
    assert [prompt.split("Move ")[-1][0] for prompt in in_turn.asked] == ["0", "1", "2", "3"]
    at_once = Speaker(says({0: "1", 1: "2"}))
    played(Table(lambda: Rounds(rounds=2, at_once=True)), at_once)
    assert [prompt.split("Move ")[-1][0] for prompt in at_once.asked] == ["0", "0", "1", "1"]


def test_a_player_with_memory_is_told_the_rules_once_and_one_without_every_turn() -> None:
    for memory, expected in ((True, 4), (False, 1)):
        policy = Speaker(number)
        result, _ = played(Table(lambda: Rounds(rounds=4), options=SeatOptions(memory=memory)), policy)
        assert {prompt.count("You are") for prompt in policy.asked} == {1}
        longest = result.trajectories[0].turns[-1].prompt
        assert len(result.trajectories[0].turns) == 4
        text = max(policy.asked, key=len)
        assert text.count("Move") == expected, longest


def test_opponents_play_the_seats_they_are_given() -> None:
    table = Table(lambda: Rounds(3, 2), opponents={0: scripted(["9", "9"]), 2: RandomPlayer})
    result, group = played(table, Speaker(says({1: "2"})))
    assert group.matches[0].members == [1]
    assert not group.interdependent
    assert len(result.trajectories) == 1
    assert table.games[0].said[:2] == [18, 4]
    assert 2 <= table.games[0].said[2] <= 6
    assert rewards(result) == [-0.5]


def test_a_random_player_draws_by_its_seed() -> None:
    def game(seed: int) -> list[int]:
        table = Table(lambda: Rounds(2, 8), opponents={1: RandomPlayer})
        group = MatchGroup(table._make, RENDERER, opponents=table.opponents, seed=seed)
        simulate(lambda: play_group(group, Speaker(number), settings(), 5)).unwrap()
        return table.games[0].said

    assert game(1) == game(1)
    assert len({tuple(game(seed)) for seed in range(8)}) > 1


# ---- illegal moves


@BOTH_WAYS
def test_an_illegal_move_loses_at_once(at_once: bool) -> None:
    table = Table(lambda: Rounds(3, 3, at_once), rules=MatchRules(illegal_penalty=0.25))
    result, group = played(table, Speaker(says({0: "1", 1: "seven", 2: "2"})))
    assert group.matches[0].outcome == Outcome((0.5, -1.0, 0.5), "illegal", (1,))
    assert rewards(result) == [0.5, -1.25, 0.5]
    assert result.trajectories[1].turns[-1].metrics["illegal"] == 1
    assert result.trajectories[1].turns[-1].metrics["forfeit"] == 1


def test_a_game_that_ended_before_ones_first_turn_is_an_episode_without_turns() -> None:
    result, _ = played(Table(), Speaker(says({0: "bad", 1: "1"})))
    assert rewards(result) == [-1.0, 1.0]
    assert [len(trajectory.turns) for trajectory in result.trajectories] == [1, 0]


@pytest.mark.parametrize(("retries", "expected"), [(1, -1.0), (2, 1.0)])
def test_a_refused_player_is_told_why_and_may_try_again(retries: int, expected: float) -> None:
    def answer(prompt: str, request: SampleRequest) -> str:
        if "You are 1." in prompt:
            return "1"
        return "5" if prompt.count("A number, please.") >= 2 else "five"

    policy = Speaker(answer)
    table = Table(lambda: Rounds(rounds=2), rules=MatchRules(retries=retries, illegal_penalty=0.1))
    result, group = played(table, policy)
    assert rewards(result)[0] == pytest.approx(expected - 0.2)
    assert group.matches[0].illegal == [2, 0]
    assert any(prompt.endswith("A number, please.\n\nAssistant:") for prompt in policy.asked)


def test_an_illegal_move_can_be_replaced_by_a_random_one() -> None:
    table = Table(lambda: Rounds(rounds=5), rules=MatchRules(illegal="random"))
    result, group = played(table, Speaker(says({0: "what?", 1: "0"})))
    assert rewards(result) == [1.0, -1.0]
    assert 5 <= table.games[0].said[0] <= 15
    assert group.matches[0].illegal == [5, 0]


def test_an_answer_that_was_cut_off_is_no_move() -> None:
    class CutOff(Speaker):
        def complete(self, text: str, request: SampleRequest) -> Any:
            whole = super().complete(text, request)
            return attrs.evolve(whole, tokens=whole.tokens[:2], logprobs=whole.logprobs[:2], stop_reason="length")

    result, group = played(Table(), CutOff(says({0: "1", 1: "1"})))
    assert group.matches[0].illegal == [1, 0]
    assert rewards(result) == [-1.0, 1.0]


def test_an_opponent_without_a_legal_move_has_a_random_one_made_or_loses_where_none_are_listed() -> None:
    table = Table(lambda: Rounds(rounds=1), opponents={1: scripted(["nothing", "none"])}, rules=MatchRules(retries=1))
    _, group = played(table, Speaker(says({0: "1"})))
    assert group.matches[0].illegal == [0, 2]
    assert table.games[0].said[1] in (1, 2, 3)

    class Unlisted(Rounds):
        def legal_moves(self, seat: int) -> Sequence[str]:
            return ()

    table = Table(Unlisted, opponents={1: scripted(["nothing", "none"])}, rules=MatchRules(retries=1))
    result, group = played(table, Speaker(says({0: "1"})))
    assert (group.matches[0].outcome.ending, group.matches[0].outcome.culprits) == ("illegal", (1,))  # type: ignore[union-attr]
    assert rewards(result) == [1.0]


# ---- members that leave


@BOTH_WAYS
@pytest.mark.parametrize("limit", [{"max_turns": 1}, {"max_turns": 2}, {"max_tokens": 3}, {"max_tokens": 4}])
@pytest.mark.parametrize("leaving", ["lose", "draw"])
def test_a_limit_that_ends_one_players_episode_ends_the_match_for_all(
    at_once: bool, limit: dict[str, int], leaving: Any
) -> None:
    for seed in range(10):
        table = Table(lambda: Rounds(3, 4, at_once), matches=2, rules=MatchRules(leaving=leaving))
        result, group = played(table, Speaker(number), seed, **limit)
        for match, members in zip(group.matches, (result.trajectories[:3], result.trajectories[3:]), strict=True):
            assert match.outcome is not None
            # With four tokens, the second answer of three is cut off, which is no move.
            assert match.outcome.ending == ("illegal" if limit.get("max_tokens") == 4 else "left")
            assert zero_sum(match.outcome.scores)
            assert tuple(round(member.reward, 9) for member in members) == tuple(
                round(score, 9) for score in match.outcome.scores
            )
            if leaving == "draw" and match.outcome.ending == "left":
                assert match.outcome.scores == (0, 0, 0)
            else:
                assert len(match.outcome.culprits) == 1


@BOTH_WAYS
def test_whoever_is_waited_for_too_long_loses(at_once: bool) -> None:
    asked = itertools.count()

    class Slow(Speaker):
        async def sample(self, request: SampleRequest) -> Any:
            await anyio.sleep(50 if next(asked) == 3 else 1)
            return await super().sample(request)

    table = Table(lambda: Rounds(rounds=9, at_once=at_once), rules=MatchRules(move_seconds=10))
    result, group = played(table, Slow(number, lambda _: 0.0))
    outcome = group.matches[0].outcome
    assert outcome is not None
    assert (outcome.ending, len(outcome.culprits)) == ("too_slow", 1)
    assert rewards(result)[outcome.culprits[0]] == -1.0
    assert zero_sum(rewards(result))


@BOTH_WAYS
def test_a_wall_clock_that_ends_at_any_moment_leaves_nobody_waiting(at_once: bool) -> None:
    """The clock of every member's episode, at each of many moments: while it samples, waits, drives the game, or an opponent thinks."""

    async def works() -> None:
        await anyio.sleep(0.3)

    ends = set()
    for tenth, seed in itertools.product(range(1, 90), range(2)):
        table = Table(lambda: Rounds(3, 3, at_once, works, works), opponents={2: _thinks(0.7)})
        policy = Speaker(number, lambda request: request.seed % 100 / 100)
        try:
            result, group = played(table, policy, seed, wall_clock=tenth / 10, failure=Retry(1))
        except GroupFailed:  # nobody had a turn by then
            ends.add("failed")
            assert tenth < 50
            continue
        outcome = group.matches[0].outcome
        assert outcome is not None
        assert zero_sum(outcome.scores)
        assert tuple(rewards(result)) == tuple(round(score, 6) for score in outcome.scores[:2])
        ends.add(outcome.ending)
    assert ends >= {"failed", "left", "over"}


def _thinks(seconds: float) -> Opponent:
    class Thinker:
        async def move(self, news: str) -> str:
            await anyio.sleep(seconds)
            return "1"

    return lambda game, seat, seed: Thinker()


def test_an_eliminated_player_may_leave_without_ending_the_game() -> None:
    table = Table(lambda: Rounds(3, 3))
    group = table.group()

    async def program() -> list[float]:
        """Seat 0 is out after its first move, and its episode ends while the others play on."""
        envs = await group.make_envs()
        match = group.matches[0]
        left: list[float] = []

        async def play(seat: int) -> None:
            env = envs[seat]
            assert isinstance(env, Seat)
            if seat == 0:
                with anyio.move_on_after(5) as scope:
                    await env.reset()
                    await match.move(0, "out")
                    await match.turn(0)
                assert scope.cancelled_caught
                left.append(env.leave("time_limit"))
                assert match.outcome is None
                return
            while await match.turn(seat) is not None:
                await anyio.sleep(2)
                await match.move(seat, str(seat))

        async with anyio.create_task_group() as tasks:
            for seat in range(3):
                tasks.start_soon(play, seat)
        assert match.outcome is not None
        return [*left, *match.outcome.scores]

    report = simulate(program, horizon=1000)
    assert report.unwrap() == [-1.0, -0.5, -0.5, 1.0]


# ---- members, games and opponents that fail


class Fault(Exception):
    pass


@attrs.define
class Faults:
    """Fails at the `at`-th place it is asked, in one of several ways; counts the places."""

    at: int
    how: str
    places: int = 0

    async def here(self) -> None:
        self.places += 1
        if self.places != self.at:
            return
        if self.how == "raise":
            raise Fault(f"place {self.at}")
        if self.how == "raise later":
            await anyio.sleep(1)
            raise Fault(f"place {self.at}")
        if self.how == "hang":
            await anyio.sleep_forever()
        if self.how == "take long":
            await anyio.sleep(300)


def faulty(faults: Faults, at_once: bool, seats: int, matches: int, bot: bool) -> tuple[Table, Speaker]:
    """A table where every await can be made to fail: starting, sampling, playing a round, an opponent's move."""

    class Sampler(Speaker):
        async def sample(self, request: SampleRequest) -> Any:
            await faults.here()
            answer = await super().sample(request)
            await faults.here()
            return answer

    class Bot:
        async def move(self, news: str) -> str:
            await faults.here()
            await anyio.sleep(0.1)
            return "1"

    opponents: dict[int, Opponent] = {seats - 1: lambda game, seat, seed: Bot()} if bot else {}
    table = Table(
        lambda: Rounds(seats, 2, at_once, faults.here, faults.here),
        matches,
        opponents,
        MatchRules(move_seconds=60, retries=1),
    )

    def answer(prompt: str, request: SampleRequest) -> str:
        first_try = not prompt.endswith("please.\n\nAssistant:")
        return "oops" if first_try and request.seed % 3 == 0 else number(prompt, request)

    return table, Sampler(answer)


@pytest.mark.parametrize("policy", [FailFast(), Retry(2), MinViable(1)], ids=["fail fast", "retry", "min viable"])
@pytest.mark.parametrize("how", ["raise", "raise later", "hang", "take long"])
@pytest.mark.parametrize(
    ("at_once", "seats", "matches", "bot"),
    [(False, 2, 1, False), (True, 3, 1, False), (False, 3, 2, True), (True, 2, 2, True)],
)
def test_whatever_fails_at_any_await_nobody_waits_for_ever(
    policy: Any, how: str, at_once: bool, seats: int, matches: int, bot: bool
) -> None:
    """The defect that hung another cookbook: a two-player group, one member fails, and the retried one waits for an opponent that is gone."""
    ended = set()
    for at in itertools.count(1):
        faults = Faults(at, how)
        table, speaker = faulty(faults, at_once, seats, matches, bot)
        group = table.group()
        options = settings(failure=policy, wall_clock=200.0, provision=50.0)
        report = simulate(
            lambda group=group, speaker=speaker, options=options: play_group(group, speaker, options, 5),
            seed=at,
            horizon=2000,
        )
        assert report.seconds < 1000  # a Deadlock would be an error below
        if report.error is not None:
            leaf = report.error
            while isinstance(leaf, ExceptionGroup):
                leaf = leaf.exceptions[0]
            assert isinstance(leaf, Fault | GroupFailed | TimeoutError), leaf
            ended.add(type(leaf).__name__)
        else:
            ended.add("played")
            assert all(match.outcome is not None and zero_sum(match.outcome.scores) for match in group.matches)
        assert all(game.closed == 1 for game in table.games)
        if faults.places < at:
            break
    assert at > 8
    assert "played" in ended
    if how.startswith("raise") and not isinstance(policy, Retry) and not bot:
        assert ended > {"played"}


@pytest.mark.parametrize("at_once", [False, True])
def test_retry_plays_a_new_match_in_which_nobody_waits_for_the_old_one(at_once: bool) -> None:
    """Over many interleavings: a member fails in the first attempt, at every place; the second attempt is played to its end."""
    for at in range(1, 9):
        for seed in range(25):
            faults = Faults(at, "raise")
            table, speaker = faulty(faults, at_once, 2, 1, False)
            group = table.group()
            report = simulate(
                lambda group=group, speaker=speaker: play_group(group, speaker, settings(failure=Retry(1)), 5),
                seed=seed,
                horizon=1000,
            )
            result = report.unwrap()
            assert zero_sum(rewards(result))
            assert [game.closed for game in table.games] == [1] * len(table.games)
            assert len(table.games) == (2 if faults.places >= at else 1)


@BOTH_WAYS
def test_cancelled_at_any_step_everything_ends_and_every_game_is_closed(at_once: bool) -> None:
    tables: list[Table] = []

    async def program() -> None:
        async def works() -> None:
            await anyio.sleep(0.5)

        table = Table(lambda: Rounds(3, 2, at_once, works, works), matches=2, opponents={1: RandomPlayer})
        tables.append(table)
        await play_group(table.group(), Speaker(number), settings(), 5)

    runs = 0
    for report in every_cancellation(program, horizon=1000):
        runs += 1
        assert report.cancelled or report.error is None
        assert all(game.closed == 1 for game in tables[-1].games)
    assert runs > 10


def test_many_schedules_give_the_same_result_where_moves_do_not_depend_on_time() -> None:
    table = Table(lambda: Rounds(4, 3, True), matches=2)

    async def program() -> tuple[float, ...]:
        return tuple(rewards(await play_group(table.group(), Speaker(number), settings(), 5)))

    assert len({report.unwrap() for report in schedules(program, count=50)}) == 1


@BOTH_WAYS
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_same_on_a_real_event_loop(backend: str, at_once: bool) -> None:
    """Nothing here depends on the simulator: a whole group, a group with a failing member that is retried, and one that is given up."""

    async def program() -> None:
        with anyio.fail_after(30):
            for failing, retries in ((0, 1), (3, 1), (5, 2)):
                faults = Faults(failing, "raise")
                table, speaker = faulty(faults, at_once, 3, 2, False)
                speaker.seconds = lambda request: 0.0
                group = table.group()
                result = await play_group(group, speaker, settings(failure=Retry(retries)), failing)
                assert zero_sum(rewards(result))
                assert [game.closed for game in table.games] == [1] * len(table.games)
                assert len(table.games) == (2 if failing == 0 else 4)
            table, speaker = faulty(Faults(2, "raise"), at_once, 3, 2, False)
            speaker.seconds = lambda request: 0.0
            with pytest.raises(Fault):
                await play_group(table.group(), speaker, settings(failure=FailFast()), 5)
            assert [game.closed for game in table.games] == [1, 1]

    anyio.run(program, backend=backend)


# ---- misuse


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="at least one match"):
        MatchGroup(Rounds, RENDERER, matches=0)
    with pytest.raises(ValueError, match="one must be left for the policy"):
        MatchGroup(Rounds, RENDERER, opponents={0: RandomPlayer, 1: RandomPlayer})

    async def out_of_turn() -> None:
        match = Match(Rounds())
        await match.turn(0)
        await match.move(1, "1")

    with pytest.raises(RuntimeError, match="seat 1 is not to move"):
        simulate(out_of_turn).unwrap()


class Broken(Rounds):
    def scores(self) -> Sequence[float]:
        return [float("nan"), 0.0]


def test_scores_are_finite_and_one_for_each_seat() -> None:
    with pytest.raises(ValueError, match=r"Broken gave the scores \[nan, 0\.0\]"):
        played(Table(Broken), Speaker(number), failure=FailFast())
