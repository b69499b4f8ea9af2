"""How the members of one group are played: an episode's turns, and the one request of members that share a prompt."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence

import anyio
import attrs

from engine.backends.values import Completion, SampleRequest, SamplingParams
from engine.runtime.seeds import derive_seed
from engine.training.trajectories import EndReason, Trajectory, Turn
from envs.budgets import BudgetOverrun, Tally, within
from envs.contracts import Env, Observation, Policy, Step
from envs.rollout_settings import RolloutLimits, RolloutSettings
from envs.together import Runner, or_error


class Ties:
    """Holds members together that wait for one another: a limit that ends one ends all, or somebody would wait for it for ever.

    An env that has `leave` (`envs.contracts.Leaving`) is not held: it tells those who wait for it itself.
    """

    def __init__(self) -> None:
        self._scopes: list[anyio.CancelScope] = []
        self.cut = False

    def scope(self) -> anyio.CancelScope:
        """For one member's episode."""
        scope = anyio.CancelScope()
        if self.cut:
            scope.cancel()
        self._scopes.append(scope)
        return scope

    def end_all(self) -> None:
        """Ends the episodes that are still played."""
        self.cut = True
        for scope in self._scopes:
            scope.cancel()


@attrs.frozen
class Players:
    """How the members of one group are played, in one attempt."""

    policy: Policy
    settings: RolloutSettings
    priority: float
    seed: int
    tally: Tally = attrs.field(factory=Tally)
    ties: Ties | None = None
    """What ties members that wait for one another, in `reset` and `step` too; None: they do not."""

    def player(
        self, env: Env, member: int, observation: Observation | None = None, began: float | None = None
    ) -> Callable[[], Awaitable[Trajectory]]:
        """Plays one member, from its reset or from an observation it has given already, in an episode that `began` then."""
        return lambda: self.play(env, derive_seed(self.seed, member), observation, began)

    async def for_shared_prompt(
        self, envs: Sequence[Env], run: Runner, may_lose: bool
    ) -> list[Callable[[], Awaitable[Trajectory]]]:
        """One sampling request for all members of a single-turn group that see the same prompt; their own ones where they do not.

        `may_lose`: a member whose reset fails is one that fails when it is played; otherwise its error is the group's.
        """
        wall_clock = self.settings.limits.wall_clock
        if wall_clock is None:
            return await self._for_shared_prompt(envs, run, may_lose, 0.0)
        began = anyio.current_time()
        with within(wall_clock, "episode", f"{type(envs[0]).__name__}: the first answer"):
            return await self._for_shared_prompt(envs, run, may_lose, began)

    async def _for_shared_prompt(
        self, envs: Sequence[Env], run: Runner, may_lose: bool, began: float
    ) -> list[Callable[[], Awaitable[Trajectory]]]:
        resets = [self._reset_of(env) for env in envs]
        observations: list[Observation | Exception | None] = await run(
            [or_error(reset) for reset in resets] if may_lose else resets
        )
        live = [observation for observation in observations if isinstance(observation, Observation)]
        if not live:
            return [
                _without_turns(env, outcome)
                for env, outcome in zip(envs, observations, strict=True)
                if not isinstance(outcome, Observation)
            ]
        first = live[0]
        if any(observation is not first and observation != first for observation in live):
            return [
                self.player(env, member, observation, began)
                if isinstance(observation, Observation)
                else _without_turns(env, observation)
                for member, (env, observation) in enumerate(zip(envs, observations, strict=True))
            ]
        params = self.params(first, self.settings.limits.max_tokens)
        if params is None:
            raise ValueError(_too_long(first, self.settings.limits))
        request = SampleRequest(first.prompt, params, self.seed, len(live), self.priority)
        completions = iter(await self.policy.sample(request))
        return [
            functools.partial(self._answer_once, env, first, next(completions), began)
            if isinstance(observation, Observation)
            else _without_turns(env, observation)
            for env, observation in zip(envs, observations, strict=True)
        ]

    def _reset_of(self, env: Env) -> Callable[[], Awaitable[Observation | None]]:
        seconds = self.settings.limits.provision
        if seconds is None or self.ties is not None:
            return env.reset

        async def reset() -> Observation | None:
            with within(seconds, "provision", f"{type(env).__name__}.reset"):
                return await env.reset()

        return reset

    async def _answer_once(
        self, env: Env, observation: Observation, completion: Completion, began: float
    ) -> Trajectory:
        wall_clock = self.settings.limits.wall_clock
        try:
            if wall_clock is None:
                turn, step = await self._turn(env, observation, completion)
            else:
                with within(wall_clock, "episode", f"{type(env).__name__}: the only turn", began):
                    turn, step = await self._turn(env, observation, completion)
        except BaseException:
            _leave(env, None)
            raise
        if step is not None and step.observation is not None:
            raise ValueError(
                f"{type(env).__name__} is in a group declared single_turn, but went on after its first step"
            )
        end: EndReason = "turn_limit" if step is None else "done"
        given = _leave(env, end) if step is None else 0.0
        return Trajectory((turn,), end, given + self.settings.termination_rewards.get(end, 0.0))

    async def _turn(self, env: Env, observation: Observation, completion: Completion) -> tuple[Turn, Step | None]:
        """What an answer led to; no step when the env took longer over it than a turn may."""
        limits = self.settings.limits
        if limits.turn is None:
            step = await env.step(completion)
        else:
            with anyio.move_on_after(limits.turn) as scope:
                step = await env.step(completion)
            if scope.cancelled_caught:
                overrun = BudgetOverrun("turn", f"{type(env).__name__}.step", limits.turn)
                if self.ties is not None or limits.turn_overrun == "fail":
                    raise overrun
                self.tally.overrun("turn")
                logs = {"error": str(overrun)}
                return Turn(observation.prompt, completion, 0.0, {}, logs, observation.teacher_prompt), None
        reward = float(step.reward)
        return Turn(observation.prompt, completion, reward, step.metrics, step.logs, observation.teacher_prompt), step

    async def play(
        self, env: Env, seed: int, observation: Observation | None = None, began: float | None = None
    ) -> Trajectory:
        """One episode, which `began` now unless its reset is behind it."""
        turns: list[Turn] = []
        end: EndReason | None = None
        given = 0.0
        try:
            if self.ties is None or hasattr(env, "leave"):
                end = await self._play_within(env, seed, observation, began, turns)
            else:
                end = await self._play_tied(self.ties, env, seed, observation, began, turns)
        finally:
            if end != "done" or not turns:
                given = _leave(env, end)
        return Trajectory(tuple(turns), end, given + self.settings.termination_rewards.get(end, 0.0))

    async def _play_tied(
        self,
        ties: Ties,
        env: Env,
        seed: int,
        observation: Observation | None,
        began: float | None,
        turns: list[Turn],
    ) -> EndReason:
        end: EndReason = "group_limit"
        with ties.scope():
            end = await self._play_within(env, seed, observation, began, turns)
            if end != "done":
                ties.end_all()
        if not turns and end != "done":
            raise TimeoutError(f"{type(env).__name__}: a limit ended another member before this one's first turn")
        return end

    async def _play_within(
        self, env: Env, seed: int, observation: Observation | None, began: float | None, turns: list[Turn]
    ) -> EndReason:
        wall_clock = self.settings.limits.wall_clock
        if wall_clock is None:
            return await self._play_turns(env, seed, observation, turns)
        end: EndReason = "time_limit"
        with anyio.CancelScope(deadline=(anyio.current_time() if began is None else began) + wall_clock) as scope:
            end = await self._play_turns(env, seed, observation, turns)
        if not turns and end != "done":
            raise BudgetOverrun("episode", f"{type(env).__name__}: the first turn", wall_clock)
        if scope.cancelled_caught:
            self.tally.overrun("episode")
        return end

    async def _play_turns(self, env: Env, seed: int, observation: Observation | None, turns: list[Turn]) -> EndReason:
        if observation is None:
            observation = await self._reset_of(env)()
        return "done" if observation is None else await self._play_from(observation, env, seed, turns)

    async def _play_from(self, observation: Observation, env: Env, seed: int, turns: list[Turn]) -> EndReason:
        limits = self.settings.limits
        tokens_left = limits.max_tokens
        while True:
            params = self.params(observation, tokens_left)
            if params is None:
                if not turns:
                    raise ValueError(_too_long(observation, limits))
                return "context"
            request = SampleRequest(observation.prompt, params, derive_seed(seed, len(turns)), 1, self.priority)
            (completion,) = await self.policy.sample(request)
            step = await self._take_turn(env, observation, completion, turns)
            if step is None:
                return "turn_limit"
            if step.observation is None:
                return "done"
            observation = step.observation
            if limits.max_turns is not None and len(turns) >= limits.max_turns:
                return "max_turns"
            if tokens_left is not None:
                tokens_left -= len(completion.tokens)
                if tokens_left <= 0:
                    return "max_tokens"

    async def _take_turn(
        self, env: Env, observation: Observation, completion: Completion, turns: list[Turn]
    ) -> Step | None:
        try:
            turn, step = await self._turn(env, observation, completion)
        except anyio.get_cancelled_exc_class():
            if self.ties is not None:  # it has moved, and waits for one who may not
                turns.append(Turn(observation.prompt, completion))
            raise
        turns.append(turn)
        return step

    def params(self, observation: Observation, tokens_left: int | None) -> SamplingParams | None:
        """The sampling parameters of one answer; None when the context has no room for a single token."""
        params = self.settings.sampling
        max_tokens = params.max_tokens
        if observation.max_tokens is not None:
            max_tokens = min(max_tokens, observation.max_tokens)
        if tokens_left is not None:
            max_tokens = min(max_tokens, tokens_left)
        if self.settings.limits.max_context is not None:
            max_tokens = min(max_tokens, self.settings.limits.max_context - observation.prompt.length)
        if max_tokens < 1:
            return None
        stop = observation.stop or params.stop
        if max_tokens == params.max_tokens and stop is params.stop:
            return params
        return SamplingParams(max_tokens, params.temperature, params.top_p, params.top_k, stop)


def _too_long(observation: Observation, limits: RolloutLimits) -> str:
    return f"the first prompt has {observation.prompt.length} tokens: limits.max_context {limits.max_context} leaves no room for an answer"


def _leave(env: Env, end: EndReason | None) -> float:
    """Tells an env that wants to know it that nothing more will be asked of it; gives the reward that it has for this."""
    leave: Callable[[EndReason | None], float] | None = getattr(env, "leave", None)
    return 0.0 if leave is None else leave(end)


def _without_turns(env: Env, outcome: Exception | None) -> Callable[[], Awaitable[Trajectory]]:
    """A member that failed before it was asked anything, or whose episode was over by then."""

    async def end() -> Trajectory:
        reward = _leave(env, None if outcome is not None else "done")
        if outcome is not None:
            raise outcome
        return Trajectory((), "done", reward)

    return end
