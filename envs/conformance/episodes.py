"""Promises about problems and episodes."""

from __future__ import annotations

import gc
import json
import math
import pickle
import re
from collections.abc import Mapping
from typing import Any

import anyio
import numpy as np

from engine.backends.values import ImageChunk, Tokens
from engine.training.trajectories import TrajectoryGroup
from envs.conformance.playing import Stage, mixed, opened, pools
from envs.conformance.subject import Check, Subject, require
from envs.conformance.watching import Member, Watch
from envs.contracts import GroupBuilder, GroupDataset, Observation, Step

LONGEST_STRETCH = 0.05
"""CPU seconds for which an env may hold the event loop at once."""


async def the_dataset_keeps_its_length(subject: Subject) -> None:
    """It has at least one problem, as many at any time, in this opening and the next one; those the subject names are among them."""
    lengths = []
    for _ in range(2):
        async with opened(subject) as stage:
            before = len(stage.problems)
            await stage.play(subject.problems[0], mixed(subject))
            lengths += [before, len(stage.problems)]
    require(len(set(lengths)) == 1, f"its length was {lengths}")
    require(lengths[0] > max(subject.problems), f"{lengths[0]} problems, but problem {max(subject.problems)} is named")


async def an_index_is_a_problem(subject: Subject) -> None:
    """The same index gives the same group: members, tags and first observations, in this opening and the next one."""
    seen: list[list[Any]] = []
    for _ in range(2):
        async with opened(subject) as stage:
            seen += [[await _first_look(stage, problem) for problem in subject.problems] for _ in range(2)]
    for other in seen[1:]:
        for problem, one, another in zip(subject.problems, seen[0], other, strict=True):
            require(one == another, f"problem {problem} was not the same again: {_difference(one, another)}")


async def _first_look(stage: Stage, problem: int) -> tuple[Any, ...]:
    builder = stage.problems[problem]
    found, watch = await stage.play(problem, mixed(stage.subject))
    first = [_observed(stage.subject, member.observations[0]) for member in watch.members if member.observations]
    return tuple(builder.tags), builder.single_turn, builder.interdependent, len(found.trajectories), first


async def groups_are_well_formed(subject: Subject) -> None:
    """Tags are words; members are at least one, and every call of `make_envs` gives envs of its own."""
    async with opened(subject) as stage:
        for problem in subject.problems:
            builder = stage.problems[problem]
            tags = builder.tags
            require(all(isinstance(tag, str) and re.fullmatch(r"\S+", tag) for tag in tags), f"tags {tags!r}")
            require(len(set(tags)) == len(tags), f"a tag comes twice in {tags!r}")
            envs = []
            for again in (builder, stage.problems[problem]):
                try:
                    envs += list(await again.make_envs())
                finally:
                    await again.cleanup()
            require(len(envs) >= 2, f"problem {problem} has no members")
            require(len({id(env) for env in envs}) == len(envs), f"problem {problem}: two members are the same object")


async def observations_are_well_formed(subject: Subject) -> None:
    """Every prompt has a token at least and at most `max_context`; stops are ids of the vocabulary or texts; `max_tokens` is at least 1."""
    size = subject.renderer.vocabulary.vocab_size
    async with opened(subject) as stage:
        for problem in subject.problems:
            for seed in range(3):
                _, watch = await stage.play(problem, mixed(subject), seed=seed)
                for member in watch.members:
                    for observation in member.observations:
                        _check_observation(observation, size, subject.max_context)


def _check_observation(observation: Observation, size: int, longest: int) -> None:
    require(isinstance(observation, Observation), f"reset or step gave {type(observation).__name__} for an Observation")
    length = observation.prompt.length
    require(1 <= length <= longest, f"a prompt of {length} tokens; from 1 to max_context {longest} are allowed")
    for chunk in observation.prompt.chunks:
        if not isinstance(chunk, ImageChunk):
            tokens = chunk.tokens
            inside = len(tokens) == 0 or (int(tokens.min()) >= 0 and int(tokens.max()) < size)
            require(inside, f"a prompt has token ids outside the vocabulary of {size}")
    for stop in observation.stop:
        require(bool(stop) if isinstance(stop, str) else 0 <= stop < size, f"{stop!r} is no stop")
    most = observation.max_tokens
    require(most is None or most >= 1, f"an observation's max_tokens is {most}")


async def any_answer_is_graded(subject: Subject) -> None:
    """Whatever is answered (nothing, garbage, too much, what cannot be parsed), a step gives a finite reward and raises nothing."""
    async with opened(subject) as stage:
        for name, pool in pools(subject).items():
            for problem in subject.problems[: 1 if len(pool) == 1 else None]:
                found, watch = await _played(stage, problem, pool, name)
                for member in watch.members:
                    for step in member.steps:
                        require(isinstance(step, Step), f"answer '{name}': step gave a {type(step).__name__}")
                        require(_finite(step.reward), f"answer '{name}': the reward is {step.reward!r}")
                require(bool(np.isfinite(found.rewards_G).all()), f"answer '{name}': returns {found.rewards_G}")


async def _played(stage: Stage, problem: int, pool: list[Any], name: str) -> tuple[TrajectoryGroup, Watch]:
    try:
        return await stage.play(problem, pool)
    except Exception as error:
        error.add_note(f"problem {problem}, answer '{name}'")
        raise


async def episodes_end(subject: Subject) -> None:
    """Every episode ends by itself within `max_turns`; in a group declared single_turn, at its first step."""
    async with opened(subject) as stage:
        for name, pool in pools(subject).items():
            for problem in subject.problems[: 1 if len(pool) == 1 else None]:
                _, watch = await _played(stage, problem, pool, name)
                single = stage.problems[problem].single_turn
                for member in watch.members:
                    turns = len(member.steps)
                    limit = 1 if single else subject.max_turns
                    require(member.ended and turns <= limit, f"answer '{name}': {turns} turns, {limit} are allowed")


async def equal_episodes_are_equal(subject: Subject) -> None:
    """The same answers to the same problem give the same observations, rewards and metrics, in this opening and the next one."""
    for problem in subject.problems:
        for seed in range(2):
            seen = []
            for _ in range(2):
                async with opened(subject) as stage:
                    for _ in range(2):
                        found, watch = await stage.play(problem, mixed(subject), seed=seed)
                        seen.append(_story(subject, found, watch))
            for other in seen[1:]:
                require(seen[0] == other, f"problem {problem}: {_difference(seen[0], other)}")


async def groups_do_not_disturb_each_other(subject: Subject) -> None:
    """Groups played at the same time, of the same problem too, go as they go alone."""
    async with opened(subject) as stage:
        asked = [(problem, seed) for problem in subject.problems for seed in (3, 4)]
        alone = [_story(subject, *await stage.play(problem, mixed(subject), seed=seed)) for problem, seed in asked]
        beside: dict[int, Any] = {}

        async def play(number: int) -> None:
            problem, seed = asked[number]
            beside[number] = _story(subject, *await stage.play(problem, mixed(subject), seed=seed))

        async with anyio.create_task_group() as tasks:
            for number in range(len(asked)):
                tasks.start_soon(play, number)
    for number, story in enumerate(alone):
        require(
            beside[number] == story, f"problem {asked[number][0]} beside others: {_difference(story, beside[number])}"
        )


def _story(subject: Subject, found: TrajectoryGroup, watch: Watch) -> list[Any]:
    """What may be compared between equal episodes."""

    def told(member: Member) -> Any:
        steps = [
            (float(step.reward), {k: v for k, v in step.metrics.items() if k not in subject.timed_metrics})
            for step in member.steps
        ]
        return [_observed(subject, each) for each in member.observations], steps

    # Members of one group finish in any order, but keep their places.
    return [found.rewards_G.tolist(), *(told(member) for member in watch.members)]


def _observed(subject: Subject, observation: Observation) -> tuple[Any, ...]:
    prompt = [
        chunk if isinstance(chunk, ImageChunk) else (_text(subject, chunk.tokens), chunk.tokens.tobytes())
        for chunk in observation.prompt.chunks
    ]
    return *prompt, observation.stop, observation.max_tokens


def _text(subject: Subject, tokens: Tokens) -> str:
    """For messages."""
    return subject.renderer.vocabulary.decode(tokens.tolist())


def _difference(one: Any, another: Any) -> str:
    """Where two nested values differ first, in words."""
    if isinstance(one, list | tuple) and isinstance(another, list | tuple):
        if len(one) != len(another):
            return f"first {len(one)} things, then {len(another)}: {_shortened(one)}, {_shortened(another)}"
        for left, right in zip(one, another, strict=True):
            if left != right:
                return _difference(left, right)
    return f"first {_shortened(one)}, then {_shortened(another)}"


def _shortened(value: object, most: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 :]}"


async def metrics_are_consistent(subject: Subject) -> None:
    """Metrics are finite numbers under names without spaces, and every episode gives the same ones, however it goes: a metric that only good episodes
    give would be a mean over those alone."""
    names: dict[frozenset[str], str] = {}
    async with opened(subject) as stage:
        for name, pool in pools(subject).items():
            found, watch = await _played(stage, subject.problems[0], pool, name)
            for trajectory in found.trajectories:
                _check_metrics(trajectory.metrics, name)
            for member in watch.members:
                if member.over_before:
                    continue
                for step in member.steps:
                    _check_metrics(step.metrics, name)
                given = {metric for step in member.steps for metric in step.metrics} - subject.optional_metrics
                names.setdefault(frozenset(given), name)
    if len(names) > 1:
        (one, first), (another, second) = list(names.items())[:2]
        odd = ", ".join(sorted(one ^ another))
        require(False, f"answers '{first}' and '{second}' differ in which metrics they give: {odd}")


def _check_metrics(metrics: Mapping[str, float], answer: str) -> None:
    for name, value in metrics.items():
        require(re.fullmatch(r"[^\s]+", name), f"a metric is called {name!r}")
        require(_finite(value), f"answer '{answer}': metric {name} is {value!r}")


def _finite(value: object) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(value)


async def logs_are_json(subject: Subject) -> None:
    """Logs can be written as JSON, which knows no NaN and no objects."""
    async with opened(subject) as stage:
        for name, pool in pools(subject).items():
            _, watch = await _played(stage, subject.problems[0], pool, name)
            for member in watch.members:
                for step in member.steps:
                    try:
                        json.dumps(step.logs, allow_nan=False).encode()
                    except (TypeError, ValueError) as error:
                        require(False, f"answer '{name}': the logs are not JSON: {error}")


async def the_event_loop_stays_free(subject: Subject) -> None:
    """No call of an env computes for more than 50 ms between two waits, whatever is answered. (CPU time of the thread; what only the first call loads is left out.)"""
    async with opened(subject) as stage:
        for problem in subject.problems:
            await stage.play(problem, mixed(subject))
        gc.collect()
        gc.disable()
        try:
            for name, pool in pools(subject).items():
                _, watch = await _played(stage, subject.problems[0], pool, name)
                seconds, where = watch.longest
                told = f"answer '{name}': {where} held the event loop for {1000 * seconds:.0f} ms"
                require(seconds <= LONGEST_STRETCH, told)
        finally:
            gc.enable()


async def builders_can_be_pickled(subject: Subject) -> None:
    """A group builder that was pickled makes the same group. Asked of subjects with `pickles`."""
    async with opened(subject) as stage:
        for problem in subject.problems:
            try:
                again = pickle.loads(pickle.dumps(stage.problems[problem]))  # noqa: S301  (our own)
            except Exception as error:  # noqa: BLE001  (whatever pickling raises)
                require(False, f"problem {problem} cannot be pickled: {type(error).__name__}: {error}")
            copied = Stage(subject, _Only(again))
            one, another = await _first_look(stage, problem), await _first_look(copied, problem)
            require(one == another, f"problem {problem} is another one after pickling: {_difference(one, another)}")


class _Only(GroupDataset):
    """One group at every index."""

    def __init__(self, builder: GroupBuilder) -> None:
        self._builder = builder

    def __getitem__(self, index: int, /) -> GroupBuilder:
        return self._builder

    def __len__(self) -> int:
        return 1


CHECKS: tuple[Check, ...] = (
    the_dataset_keeps_its_length,
    an_index_is_a_problem,
    groups_are_well_formed,
    observations_are_well_formed,
    any_answer_is_graded,
    episodes_end,
    equal_episodes_are_equal,
    groups_do_not_disturb_each_other,
    metrics_are_consistent,
    logs_are_json,
    the_event_loop_stays_free,
    builders_can_be_pickled,
)
