"""The rollout loop: limits, failure policies, rewards, cleanup, shared prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import attrs
import numpy as np
import pytest

from engine.backends import Completion, ModelInput, SampleRequest, SamplingParams
from engine.runtime.testing import every_cancellation, schedules, simulate
from engine.training.trajectories import Trajectory, TrajectoryGroup
from envs.contracts import Env, GroupBuilder, GroupGrade, Observation, Step
from envs.rollout import (
    FailFast,
    GroupFailed,
    MinViable,
    Retry,
    RolloutLimits,
    RolloutSettings,
    is_constant,
    play,
    play_group,
)


@attrs.define
class Answers:
    """A policy: each completion has `length` tokens and takes `seconds`."""

    length: int = 4
    seconds: float = 0.0
    requests: list[SampleRequest] = attrs.field(factory=list)

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        self.requests.append(request)
        await anyio.sleep(self.seconds)
        length = min(self.length, request.params.max_tokens)
        return [
            Completion(np.full(length, place), np.zeros(length, np.float32), "stop", 0)
            for place in range(request.num_samples)
        ]


Act = Callable[["Scripted"], Any]


@attrs.define(eq=False)
class Scripted:
    """An env of `turns` turns that does what it is told on the way."""

    member: int = 0
    turns: int = 1
    on_reset: Act | None = None
    on_step: Act | None = None
    prompt: Sequence[int] = (1, 2, 3)
    reward: float = 1.0
    seen: list[str] = attrs.field(factory=list)

    async def reset(self) -> Observation:
        self.seen.append("reset")
        if self.on_reset is not None:
            await self.on_reset(self)
        return Observation(ModelInput.from_tokens(self.prompt))

    async def step(self, completion: Completion) -> Step:
        self.seen.append("step")
        if self.on_step is not None:
            await self.on_step(self)
        self.turns -= 1
        if not self.turns:
            return Step(self.reward)
        self.prompt = [*self.prompt, *completion.tokens.tolist(), 9]
        return Step(self.reward, Observation(ModelInput.from_tokens(self.prompt)))


@attrs.define(eq=False)
class Group(GroupBuilder):
    """Members made anew by `make(member, attempt)`; keeps what happened, in order."""

    make: Callable[[int, int], Env] = lambda member, attempt: Scripted(member)
    size: int = 3
    single_turn: bool = False
    interdependent: bool = False
    tags: tuple[str, ...] = ("kind",)
    extra: Any = None
    on_make: Act | None = None
    on_rewards: Act | None = None
    on_cleanup: Act | None = None
    attempts: int = 0
    cleanups: int = 0
    envs: list[Any] = attrs.field(factory=list)

    async def make_envs(self) -> Sequence[Env]:
        self.attempts += 1
        assert self.cleanups == self.attempts - 1
        if self.on_make is not None:
            await self.on_make(self)
        self.envs = [self.make(member, self.attempts) for member in range(self.size)]
        return self.envs

    async def group_rewards(self, trajectories: Sequence[Trajectory]) -> Sequence[float] | None:
        if self.on_rewards is not None:
            await self.on_rewards(self)
        return self.extra

    async def cleanup(self) -> None:
        self.cleanups += 1
        if self.on_cleanup is not None:
            await self.on_cleanup(self)


async def hang(_: Any) -> None:
    await anyio.sleep_forever()


async def breaks(who: Any) -> None:
    raise RuntimeError(f"member {getattr(who, 'member', '-')} broke")


def after(seconds: float, then: Act | None = None) -> Act:
    async def act(who: Any) -> None:
        await anyio.sleep(seconds)
        if then is not None:
            await then(who)

    return act


def settings(**options: Any) -> RolloutSettings:
    sampling = SamplingParams(max_tokens=options.pop("max_tokens", 10))
    limits = {name: options.pop(name) for name in list(options) if hasattr(RolloutLimits(), name)}
    return RolloutSettings(sampling, RolloutLimits(**limits), **options)


def played(group: Group, policy: Answers | None = None, *, seed: int = 0, **options: Any) -> TrajectoryGroup:
    """Under a virtual clock; checks what must hold however it ends."""

    async def program() -> TrajectoryGroup:
        return await play_group(group, policy or Answers(), settings(**options), seed=5)

    report = simulate(program, seed=seed, horizon=1e4)
    assert group.cleanups == group.attempts
    return report.unwrap()


def played_alone(env: Scripted, policy: Answers | None = None, **options: Any) -> Trajectory:
    return simulate(lambda: play(env, policy or Answers(), settings(**options), 5), horizon=1e4).unwrap()


# --- limits


def test_an_episode_ends_by_itself() -> None:
    trajectory = played_alone(Scripted(turns=3))
    assert (trajectory.end, len(trajectory.turns), trajectory.reward) == ("done", 3, 3.0)
    assert trajectory.sampled_tokens == 12
    assert trajectory.turns[1].prompt.tokens.tolist() == [1, 2, 3, 0, 0, 0, 0, 9]


@pytest.mark.parametrize(
    ("options", "end", "turns", "asked"),
    [
        ({"max_turns": 2}, "max_turns", 2, [10, 10]),
        ({"max_tokens_episode": 9}, "max_tokens", 3, [9, 5, 1]),
        ({"max_tokens_episode": 8}, "max_tokens", 2, [8, 4]),
        ({"max_context": 14}, "context", 3, [10, 6, 1]),
        ({"max_context": 13}, "context", 2, [10, 5]),
        ({"max_turns": 9}, "done", 5, [10] * 5),
    ],
)
def test_limits_of_turns_tokens_and_context(options: dict[str, int], end: str, turns: int, asked: list[int]) -> None:
    limits = RolloutLimits(
        max_turns=options.get("max_turns"),
        max_tokens=options.get("max_tokens_episode"),
        max_context=options.get("max_context"),
    )
    policy = Answers()
    config = RolloutSettings(SamplingParams(max_tokens=10), limits, termination_rewards={end: -0.25})
    trajectory = simulate(lambda: play(Scripted(turns=5), policy, config, 5)).unwrap()
    assert (trajectory.end, len(trajectory.turns)) == (end, turns)
    assert [request.params.max_tokens for request in policy.requests] == asked
    assert trajectory.final_reward == -0.25
    assert trajectory.reward == turns - 0.25


def test_an_observation_can_ask_for_less_and_for_stops_of_its_own() -> None:
    class Short(Scripted):
        async def reset(self) -> Observation:
            return attrs.evolve(await super().reset(), max_tokens=2, stop=("\n", 7))

    policy = Answers()
    played_alone(Short(), policy)
    assert policy.requests[0].params == SamplingParams(max_tokens=2, stop=("\n", 7))


def test_wall_clock_ends_an_episode_with_the_turns_it_has() -> None:
    env = Scripted(turns=10, on_step=after(1.0))
    trajectory = played_alone(env, Answers(seconds=1.0), wall_clock=5.0, termination_rewards={"time_limit": -1.0})
    assert (trajectory.end, len(trajectory.turns), trajectory.final_reward) == ("time_limit", 2, -1.0)
    with pytest.raises(TimeoutError, match=r"Scripted: the first turn did not finish within 1\.5 s"):
        played_alone(Scripted(on_step=hang), Answers(seconds=1.0), wall_clock=1.5)


@pytest.mark.parametrize("where", ["on_reset", "on_step", "sample"])
@pytest.mark.parametrize("shared", [True, False])
def test_wall_clock_covers_reset_sampling_and_step_of_single_turn_groups(where: str, shared: bool) -> None:
    def make(member: int, attempt: int) -> Env:
        act = {where: after(3.0)} if where != "sample" and member == 1 else {}
        return Scripted(member, prompt=[1, 2] if shared else [1, member], **act)

    policy = Answers(seconds=3.0 if where == "sample" else 0.0)
    group = Group(make, single_turn=True)
    with pytest.raises(GroupFailed, match=r"BudgetOverrun: .*2 s"):
        played(group, policy, wall_clock=2.0, failure=MinViable(3))
    policy = Answers(seconds=3.0 if where == "sample" else 0.0)
    assert len(played(Group(make, single_turn=True), policy, wall_clock=4.0).trajectories) == 3


def test_slow_member_of_a_single_turn_group_takes_no_time_from_the_others() -> None:
    def make(member: int, attempt: int) -> Env:
        return Scripted(member, on_step=hang if member == 0 else after(1.0))

    result = played(Group(make, single_turn=True), wall_clock=1.5, failure=MinViable(2))
    assert len(result.trajectories) == 2


@pytest.mark.parametrize(
    "name", ["max_turns", "max_tokens", "max_context", "wall_clock", "provision", "turn", "grading", "teardown"]
)
def test_limits_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        RolloutLimits(**{name: 0})


@pytest.mark.parametrize("single_turn", [True, False])
def test_first_prompt_without_room_is_an_error_that_says_so(single_turn: bool) -> None:
    with pytest.raises(GroupFailed, match=r"the first prompt has 3 tokens: limits\.max_context 3 leaves no room"):
        played(Group(single_turn=single_turn), max_context=3)


# --- failure policies


def breaking(*members: int, until: int = 99, act: Act = breaks, on: str = "on_step") -> Callable[[int, int], Env]:
    """Those members break, in the attempts before `until`."""

    def make(member: int, attempt: int) -> Env:
        return Scripted(member, **({on: act} if member in members and attempt < until else {}))

    return make


def test_fail_fast_raises_the_members_own_error() -> None:
    with pytest.raises(RuntimeError, match="member 1 broke") as caught:
        played(Group(breaking(1)), failure=FailFast())
    assert caught.value.__notes__ == ["in group Group['kind']"]


@pytest.mark.parametrize("on", ["on_reset", "on_step"])
@pytest.mark.parametrize("single_turn", [True, False])
def test_retry_plays_the_whole_group_again_with_other_seeds(on: str, single_turn: bool) -> None:
    policy = Answers()
    group = Group(breaking(1, until=3, on=on), single_turn=single_turn)
    assert len(played(group, policy, failure=Retry(2)).trajectories) == 3
    assert group.attempts == 3
    seeds = [request.seed for request in policy.requests]
    assert len(set(seeds)) == len(seeds)


def test_retry_gives_up_and_names_group_and_cause() -> None:
    group = Group(breaking(2))
    with pytest.raises(GroupFailed) as caught:
        played(group, failure=Retry(1))
    assert str(caught.value) == "group Group['kind'] given up after 2 attempt(s): RuntimeError: member 2 broke"
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert group.attempts == 2


@pytest.mark.parametrize("on", ["on_reset", "on_step"])
@pytest.mark.parametrize("single_turn", [True, False])
def test_min_viable_goes_on_with_the_survivors(on: str, single_turn: bool) -> None:
    for same in (True, False):

        def make(member: int, attempt: int, same: bool = same) -> Env:
            broken = {on: after(0.5, breaks)} if member in (0, 2) else {}
            return Scripted(member, prompt=[5] if same else [5, member], reward=float(member), **broken)

        group = Group(make, size=5, single_turn=single_turn)
        result = played(group, failure=MinViable(3))
        assert [trajectory.reward for trajectory in result.trajectories] == [1.0, 3.0, 4.0]
        with pytest.raises(GroupFailed) as caught:
            played(Group(make, size=5, single_turn=single_turn), failure=MinViable(4))
        assert "3 of 5 members survived, 4 are needed; one failed with RuntimeError: member 0 broke" in str(
            caught.value
        )


def test_min_viable_with_nobody_left() -> None:
    for single_turn in (True, False):
        with pytest.raises(GroupFailed, match="0 of 2 members survived, 1 are needed"):
            played(Group(breaking(0, 1, on="on_reset"), size=2, single_turn=single_turn), failure=MinViable(1))


def test_min_viable_cannot_lose_one_of_those_who_need_each_other() -> None:
    group = Group(breaking(0), size=2, interdependent=True)
    with pytest.raises(GroupFailed, match="member 0 broke"):
        played(group, failure=MinViable(1))


@pytest.mark.parametrize("single_turn", [True, False])
@pytest.mark.parametrize("failure", [FailFast(), Retry(1), MinViable(1)])
@pytest.mark.parametrize("who", [None, 0, 1])
def test_members_that_wait_for_each_other(single_turn: bool, failure: Any, who: int | None) -> None:
    """Each one's step waits for the other's. Whichever fails first, nobody waits for ever."""

    def make_table() -> Callable[[int, int], Env]:
        tables: dict[int, list[anyio.Event]] = {}

        def make(member: int, attempt: int) -> Env:
            events = tables.setdefault(attempt, [anyio.Event(), anyio.Event()])

            async def meet(env: Scripted) -> None:
                if env.member == who and attempt == 1:
                    raise RuntimeError("left the table")
                events[env.member].set()
                await events[1 - env.member].wait()

            return Scripted(member, on_step=meet, on_reset=None)

        return make

    for seed in range(10):
        group = Group(make_table(), size=2, single_turn=single_turn, interdependent=True)
        if who is None or isinstance(failure, Retry):
            assert len(played(group, seed=seed, failure=failure).trajectories) == 2
        else:
            with pytest.raises((GroupFailed, RuntimeError), match="left the table"):
                played(group, seed=seed, failure=failure)


@pytest.mark.parametrize(
    ("limits", "ends"),
    [
        ({"max_turns": 2}, ["max_turns", "group_limit"]),
        ({"max_tokens": 4}, ["max_tokens", "group_limit"]),
        ({"max_turns": 4}, ["done", "done"]),
        ({"wall_clock": 2.5}, ["time_limit", "time_limit"]),
    ],
)
def test_a_limit_that_ends_one_ends_all_who_wait_for_each_other(limits: dict[str, float], ends: list[str]) -> None:
    """Two move in turn, three times each; a step waits for the other's move. What was done so far is kept, the move that waits too."""

    def make_table() -> Callable[[int, int], Env]:
        moves = [0]
        news = [anyio.Event()]

        async def turn_of(member: int) -> None:
            while moves[0] < 6 and moves[0] % 2 != member:
                await news[0].wait()

        async def move(env: Scripted) -> None:
            moves[0] += 1
            news[0].set()
            news[0] = anyio.Event()
            await turn_of(env.member)

        async def sit_down(env: Scripted) -> None:
            await turn_of(env.member)

        return lambda member, attempt: Scripted(member, turns=3, on_reset=sit_down, on_step=move)

    for seed in range(20):
        group = Group(make_table(), size=2, interdependent=True)
        policy = Answers(length=4, seconds=1.0)
        config = RolloutSettings(SamplingParams(max_tokens=10), RolloutLimits(**limits), FailFast())  # type: ignore[arg-type]
        report = simulate(lambda: play_group(group, policy, config, 1), seed=seed, horizon=1e3)  # noqa: B023
        trajectories = report.unwrap().trajectories
        found = sorted(trajectory.end for trajectory in trajectories)
        assert found == sorted(ends) or ("wall_clock" in limits and found == ["group_limit", "time_limit"])
        assert group.cleanups == 1
        if ends[0] == "done":
            assert [len(trajectory.turns) for trajectory in trajectories] == [3, 3]
        elif ends[0] == "max_turns":
            assert [len(trajectory.turns) for trajectory in trajectories] == [2, 2]
            assert [trajectory.reward for trajectory in trajectories] == [2.0, 1.0]


def test_several_failures_at_once_are_all_told_under_fail_fast() -> None:
    events: list[anyio.Event] = []

    async def all_at_once(env: Scripted) -> None:
        events.append(anyio.Event())
        if len(events) == 3:
            for event in events:
                event.set()
        await events[-1].wait()
        await breaks(env)

    with pytest.raises(ExceptionGroup) as caught:
        played(Group(breaking(0, 1, 2, act=all_at_once)), failure=FailFast())
    told = {str(error) for error in caught.value.exceptions}
    assert len(told) >= 2  # those that were awake already when the first one failed
    assert told <= {f"member {member} broke" for member in range(3)}


# --- cleanup and cancellation


def test_siblings_have_ended_before_cleanup() -> None:
    ended: list[str] = []

    async def slow(env: Scripted) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2.0)
            ended.append("sibling")

    async def cleaned(_: Any) -> None:
        ended.append("cleanup")

    def make(member: int, attempt: int) -> Env:
        return Scripted(member, on_step=after(1.0, breaks) if member == 0 else slow)

    with pytest.raises(RuntimeError):
        played(Group(make, on_cleanup=cleaned), failure=FailFast())
    assert ended == ["sibling", "sibling", "cleanup"]


@pytest.mark.parametrize("single_turn", [True, False])
@pytest.mark.parametrize("failure", [FailFast(), Retry(2), MinViable(1)])
def test_cleanup_once_for_each_make_envs_wherever_it_is_cancelled(single_turn: bool, failure: Any) -> None:
    groups: list[Group] = []

    async def program() -> None:
        def make(member: int, attempt: int) -> Env:
            broken = after(0.1, breaks) if member == 1 and attempt == 1 else after(0.1)
            return Scripted(member, on_reset=after(0.05), on_step=broken)

        group = Group(make, single_turn=single_turn, on_make=after(0.1), on_rewards=after(0.1), on_cleanup=after(0.1))
        groups.append(group)
        try:
            await play_group(group, Answers(seconds=0.2), settings(failure=failure), seed=1)
        except RuntimeError:
            assert isinstance(failure, FailFast)
        finally:
            assert group.cleanups == group.attempts

    reports = list(every_cancellation(program, horizon=1e3))
    for report in reports:  # under FailFast a member's error is told even when the cancellation came at the same moment
        assert report.error is None or (isinstance(failure, FailFast) and "broke" in repr(report.error))
    assert len(reports) > 15
    assert all(group.cleanups == group.attempts for group in groups)


def test_what_fails_because_it_is_cancelled_is_not_tried_again() -> None:
    group = Group(on_cleanup=breaks, make=lambda member, attempt: Scripted(member, on_step=hang))

    async def program() -> bool:
        with anyio.move_on_after(1.0) as scope:
            await play_group(group, Answers(), settings(failure=Retry(3)), seed=1)
        return scope.cancelled_caught

    assert simulate(program).unwrap()
    assert group.attempts == 1


# --- rewards


def test_group_rewards_are_added_to_the_members_own() -> None:
    result = played(Group(extra=[1, 2.5, np.float32(0.5)]))
    assert [trajectory.reward for trajectory in result.trajectories] == [2.0, 3.5, 1.5]
    assert [trajectory.final_reward for trajectory in result.trajectories] == [1.0, 2.5, 0.5]
    assert all(type(trajectory.final_reward) is float for trajectory in result.trajectories)
    assert result.tags == ("kind",)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (Group(extra=[1.0, 2.0]), r"group_rewards of group Group\['kind'\] gave 2 rewards for 3 members"),
        (
            Group(extra=GroupGrade([1.0, 2.0, 3.0], [{}])),
            r"group_rewards of group Group\['kind'\] gave 1 metrics for 3 members",
        ),
        (Group(extra=[1.0, math.nan, 0.0]), r"member 1 of group Group\['kind'\] has the reward nan: rewards must be"),
        (
            Group(lambda member, attempt: Scripted(member, reward=math.inf if member == 2 else 1.0), tags=()),
            "member 2 of group Group has the reward inf",
        ),
        (Group(size=0), r"make_envs of group Group\['kind'\] gave no envs; a group has at least one member"),
        (
            Group(lambda member, attempt: Scripted(turns=2), single_turn=True),
            "Scripted is in a group declared single_turn, but went on after its first step",
        ),
    ],
)
def test_wrong_groups_are_told_so_that_a_person_can_mend_them(group: Group, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        played(group, failure=FailFast())


def test_a_group_grade_adds_rewards_and_metrics() -> None:
    group = played(Group(extra=GroupGrade((0.5, 0.0, -0.5), ({"wins": 2.0}, {}, {"wins": 0.0}))))
    assert group.rewards_G.tolist() == [1.5, 1.0, 0.5]
    assert [trajectory.metrics for trajectory in group.trajectories] == [{"wins": 2.0}, {}, {"wins": 0.0}]


def test_constant_groups() -> None:
    def group(*rewards: float) -> TrajectoryGroup:
        return TrajectoryGroup(tuple(Trajectory((), "done", reward) for reward in rewards))

    assert is_constant(group(1.0, 1.0, 1.0))
    assert not is_constant(group(1.0, 1.0, 1.5))
    assert not is_constant(group(1.0))


# --- requests


@pytest.mark.parametrize("turns", ["single", "many"])
@pytest.mark.parametrize("same", [True, False])
def test_a_shared_prompt_is_one_request(turns: str, same: bool) -> None:
    policy = Answers()
    group = Group(
        lambda member, attempt: Scripted(member, prompt=[4, 5] if same else [4, member]),
        size=4,
        single_turn=turns == "single",
    )
    result = played(group, policy)
    counts = [request.num_samples for request in policy.requests]
    assert counts == ([4] if turns == "single" and same else [1, 1, 1, 1])
    assert len({request.seed for request in policy.requests}) == len(policy.requests)
    if counts == [4]:  # each member has a sample of its own
        assert [trajectory.turns[0].completion.tokens[0] for trajectory in result.trajectories] == [0, 1, 2, 3]


def test_seeds_do_not_depend_on_timing_or_on_siblings() -> None:
    def seeds(seed: int, size: int) -> dict[tuple[int, ...], int]:
        policy = Answers(seconds=0.5)
        group = Group(
            lambda member, attempt: Scripted(member, turns=2, prompt=[member], on_step=after(member * 0.7 % 1)),
            size=size,
        )
        played(group, policy, seed=seed)
        return {tuple(request.prompt.tokens.tolist()): request.seed for request in policy.requests}

    first = seeds(0, 4)
    assert all(seeds(seed, 4) == first for seed in range(1, 6))
    assert seeds(9, 3).items() <= first.items()


def test_priority_goes_with_every_request() -> None:
    policy = Answers()
    group = Group(lambda member, attempt: Scripted(member, turns=2, prompt=[member]))
    simulate(lambda: play_group(group, policy, settings(), 1, priority=2.5)).unwrap()
    assert {request.priority for request in policy.requests} == {2.5}


def test_members_are_played_concurrently() -> None:
    async def program(single_turn: bool) -> float:
        began = anyio.current_time()
        group = Group(lambda member, attempt: Scripted(member, on_step=after(1.0)), size=8, single_turn=single_turn)
        await play_group(group, Answers(seconds=2.0), settings(), 1)
        return anyio.current_time() - began

    for single_turn in (True, False):
        for report in schedules(lambda single_turn=single_turn: program(single_turn), count=5):
            assert report.unwrap() == pytest.approx(3.0)


@pytest.mark.anyio
@pytest.mark.parametrize("single_turn", [True, False])
async def test_on_both_event_loops(single_turn: bool) -> None:
    group = Group(breaking(1, until=2), size=6, single_turn=single_turn)
    result = await play_group(group, Answers(), settings(), 1)
    assert len(result.trajectories) == 6
    assert (group.attempts, group.cleanups) == (2, 2)
