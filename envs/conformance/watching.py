"""Envs and builders seen from outside: what they were asked and gave, where they wait, and for how long they hold the event loop."""

from __future__ import annotations

import random
import time
import types
from collections.abc import Awaitable, Generator, Sequence
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import attrs
import numpy as np

from engine.backends.values import Completion, SampleRequest, Tokens
from engine.training.trajectories import Trajectory
from envs.contracts import Env, GroupBuilder, GroupGrade, Observation, Step

T = TypeVar("T")


@attrs.define
class Member:
    """What one env gave."""

    observations: list[Observation] = attrs.field(factory=list)
    steps: list[Step] = attrs.field(factory=list)
    over_before: bool = False
    """Its `reset` found the episode over: other members had ended the game."""

    @property
    def ended(self) -> bool:
        """Whether it said that the episode is over."""
        return self.over_before or (bool(self.steps) and self.steps[-1].observation is None)


@attrs.define
class Watch:
    """What is seen of the groups of one check."""

    strike: int | None = None
    """At which of the moments where somebody waits everything is cancelled, counted from 1."""
    fail_step: int | None = None
    """Which call of a `step` raises instead of returning, counted from 1."""
    scope: anyio.CancelScope | None = None
    moments: int = 0
    steps: int = 0
    made: int = 0
    cleaned: int = 0
    members: list[Member] = attrs.field(factory=list)
    longest: tuple[float, str] = (0.0, "")
    """CPU seconds of the longest stretch without a wait, and where."""

    @types.coroutine
    def over(self, awaitable: Awaitable[T], where: str) -> Generator[Any, Any, T]:
        """Awaits it; each of its waits is a moment."""
        steps: Any = awaitable.__await__()
        resume, value = steps.send, None
        while True:
            began = time.thread_time()
            try:
                trap = resume(value)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            finally:
                self.longest = max(self.longest, (time.thread_time() - began, where))
            self.moments += 1
            if self.moments == self.strike and self.scope is not None:
                self.scope.cancel()
            try:
                value = yield trap
                resume = steps.send
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as error:  # noqa: BLE001  (handed on to whom it was meant for)
                resume, value = steps.throw, error


class BrokenOnPurpose(Exception):
    """What a check makes a member raise."""


def watched(builder: GroupBuilder, watch: Watch) -> GroupBuilder:
    """The builder under watch, called in messages as it is called."""
    named: type[_WatchedGroup] = type(type(builder).__name__, (_WatchedGroup,), {})
    return named(builder, watch)


class _WatchedEnv:
    """An env under watch."""

    def __init__(self, env: Env, watch: Watch) -> None:
        self.env = env
        self._watch = watch
        self.member = Member()
        watch.members.append(self.member)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)  # `leave`, where the env has it

    async def reset(self) -> Observation | None:
        observation = await self._watch.over(self.env.reset(), f"{type(self.env).__name__}.reset")
        if observation is None:
            self.member.over_before = True
        else:
            self.member.observations.append(observation)
        return observation

    async def step(self, completion: Completion) -> Step:
        self._watch.steps += 1
        broken = self._watch.steps == self._watch.fail_step
        step = await self._watch.over(self.env.step(completion), f"{type(self.env).__name__}.step")
        if broken:
            raise BrokenOnPurpose("a member fails on purpose")
        self.member.steps.append(step)
        if step.observation is not None:
            self.member.observations.append(step.observation)
        return step


class _WatchedGroup(GroupBuilder):
    """A group builder under watch."""

    def __init__(self, builder: GroupBuilder, watch: Watch) -> None:
        self.builder = builder
        self._watch = watch
        self.tags = tuple(builder.tags)
        self.single_turn = builder.single_turn
        self.interdependent = builder.interdependent

    async def make_envs(self) -> Sequence[Env]:
        self._watch.made += 1
        envs = await self._watch.over(self.builder.make_envs(), f"{type(self.builder).__name__}.make_envs")
        return [type(type(env).__name__, (_WatchedEnv,), {})(env, self._watch) for env in envs]

    async def group_rewards(self, trajectories: Sequence[Trajectory]) -> Sequence[float] | GroupGrade | None:
        where = f"{type(self.builder).__name__}.group_rewards"
        return await self._watch.over(self.builder.group_rewards(trajectories), where)

    async def cleanup(self) -> None:
        self._watch.cleaned += 1
        await self._watch.over(self.builder.cleanup(), f"{type(self.builder).__name__}.cleanup")


class Answering:
    """A policy that answers from a pool; which answer, follows from the request's seed and the place in the request alone."""

    def __init__(self, pool: Sequence[Tokens], watch: Watch | None = None, fail_at: int | None = None) -> None:
        """`fail_at`: which request fails instead of being answered, counted from 1."""
        self._pool = pool
        self._watch = watch or Watch()
        self._fail_at = fail_at
        self.requests = 0

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        self.requests += 1
        failing = self.requests == self._fail_at
        await self._watch.over(_pause(), "sampling")
        if failing:
            raise BrokenOnPurpose("a request fails on purpose")
        rng = random.Random(request.seed)
        return [_completion(rng.choice(self._pool), request) for _ in range(request.num_samples)]


async def _pause() -> None:
    await anyio.lowlevel.checkpoint()


def _completion(tokens: Tokens, request: SampleRequest) -> Completion:
    kept = tokens[: request.params.max_tokens]
    logprobs = np.full(len(kept), -1.0, np.float32)
    return Completion(kept, logprobs, "stop" if len(kept) == len(tokens) else "length", version=0)
