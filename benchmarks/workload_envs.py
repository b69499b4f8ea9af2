"""The workload as environments of this project, and as a script of the simulated backend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.workload import TOKENS, Workload
from engine.backends.simulated import Draw
from engine.backends.values import Completion, ModelInput, SampleRequest
from envs.contracts import Env, GroupBuilder, Observation, Step


class WorkloadEnv(Env):
    """One episode: answers of any content, a seeded reward at the end."""

    __slots__ = ("_member", "_place", "_tokens", "_turn", "_work")

    def __init__(self, work: Workload, place: tuple[int, int], member: int, tokens: NDArray[np.int32]) -> None:
        self._work = work
        self._place = place
        self._member = member
        self._tokens = tokens
        self._turn = 0

    async def reset(self) -> Observation:
        """The workload's prompt."""
        return Observation(ModelInput.from_tokens(self._tokens))

    async def step(self, completion: Completion) -> Step:
        """The next turn's prompt holds all before it, or the episode ends."""
        self._turn += 1
        if self._turn >= self._work.turns:
            return Step(self._work.reward(*self._place, self._member), metrics={"correct": 1.0})
        self._tokens = np.concatenate((self._tokens, completion.tokens, TOKENS[: self._work.env_tokens]))
        return Step(observation=Observation(ModelInput.from_tokens(self._tokens)), metrics={"turn": float(self._turn)})


class WorkloadGroup(GroupBuilder):
    """One group. Members of a single turn share their prompt, so that one request asks for all of them."""

    tags = ("workload",)

    def __init__(self, work: Workload, batch: int, group: int) -> None:
        self._work = work
        self._place = (batch, group)
        self.single_turn = work.turns == 1

    async def make_envs(self) -> Sequence[Env]:
        """The members."""
        work, place = self._work, self._place
        if self.single_turn:
            shared = np.array(work.prompt(*place, 0), np.int32)
            return [WorkloadEnv(work, place, member, shared) for member in range(work.size)]
        return [
            WorkloadEnv(work, place, member, np.array(work.prompt(*place, member), np.int32))
            for member in range(work.size)
        ]


class WorkloadDataset:
    """Group g of batch b at position b · groups + g."""

    def __init__(self, work: Workload, batches: int) -> None:
        self._work = work
        self._length = batches * work.groups

    def __getitem__(self, index: int) -> GroupBuilder:
        return WorkloadGroup(self._work, *divmod(index, self._work.groups))

    def __len__(self) -> int:
        return self._length


def script(work: Workload, request: SampleRequest, index: int) -> Draw:
    """What the workload answers to sample `index` of a request."""
    tokens = request.prompt.tokens
    batch, group, member = tokens[:3].tolist()
    turn = work.turn_of(len(tokens)) if work.turns > 1 else 0
    answer, logprobs, seconds = work.completion(batch, group, member + index, turn)
    return Draw(answer, seconds, logprobs)
