"""A person as the policy: shows what an environment asks, reads the answers, and tells what came of them.

group = await play_by_hand(builder, terminal)            # terminal.show(text), await terminal.read() -> text or None at the end
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import anyio
import numpy as np

from engine.backends.values import Completion, ImageChunk, ModelInput, SampleRequest, SamplingParams, TokenChunk
from engine.rendering import Renderer
from engine.training.trajectories import EndReason, TrajectoryGroup
from envs.by_hand.format import END
from envs.contracts import Env, GroupBuilder, Observation, Step
from envs.rollout import FailFast, RolloutLimits, RolloutSettings, play_group

LONGEST = 1 << 20
"""Tokens, here bytes, of an answer."""


class Terminal(Protocol):
    """Where a person sits."""

    def show(self, text: str, kind: str = "") -> None:
        """Writes text as it is. `kind`: asked, told, or empty."""
        ...

    async def read(self) -> str | None:
        """An answer; None: there will be none any more."""
        ...


class LeftTheGame(Exception):
    """The person has gone: there are no more answers."""


async def play_by_hand(
    builder: GroupBuilder, renderer: Renderer, terminal: Terminal, *, images: Path | None = None, seed: int = 0
) -> TrajectoryGroup:
    """Plays all members of a group by hand: at one table, whoever is to move is asked.

    `renderer`: that which the group was made with (`make_format`). `images`: directory into which images are written that are no files. Raises LeftTheGame, when everything is
    cleaned up, and whatever the environment raises.
    """
    table = _Table(renderer, terminal, images)
    settings = RolloutSettings(SamplingParams(LONGEST), RolloutLimits(), FailFast())
    try:
        return await play_group(_ShownGroup(builder, table), table, settings, seed)
    except BaseExceptionGroup as errors:  # several members were asked at once
        if errors.split(LeftTheGame)[1] is None:
            raise LeftTheGame from None
        raise


class _Table:
    """The policy: one person, for whichever member is asked."""

    def __init__(self, renderer: Renderer, terminal: Terminal, images: Path | None) -> None:
        self.terminal = terminal
        self.members = 0
        self._renderer = renderer
        self._images = images
        self._asked: dict[int, int] = {}
        """Member by the identity of the prompt it is asked with."""
        self._shown: dict[int, ModelInput] = {}
        """What each member has seen so far."""
        self._pictures = 0
        self._free = anyio.Lock()

    def expect(self, member: int, observation: Observation) -> None:
        """The member's next question."""
        self._asked = {prompt: who for prompt, who in self._asked.items() if who != member}
        self._asked[id(observation.prompt)] = member

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        """Shows what is new, and reads an answer for each sample."""
        async with self._free:
            return [await self._answer(request) for _ in range(request.num_samples)]

    async def _answer(self, request: SampleRequest) -> Completion:
        member = self._asked.get(id(request.prompt), 0)
        self.terminal.show(self.title(member) + self._news(member, request.prompt), "asked")
        text = await self.terminal.read()
        if text is None:
            raise LeftTheGame
        end = self._renderer.vocabulary.special_tokens[END]
        tokens = np.array([*self._renderer.vocabulary.encode(text), end], np.int32)
        self._shown[member] = request.prompt.append(tokens)
        return Completion(tokens, np.zeros(len(tokens), np.float32), "stop", version=0)

    def title(self, member: int) -> str:
        """Who is meant, where several are."""
        return f"[player {member}] " if self.members > 1 else ""

    def _news(self, member: int, prompt: ModelInput) -> str:
        """What the member has not seen yet."""
        chunks = _without_beginning(prompt, self._shown.get(member))
        return "".join(self._written(chunk) for chunk in chunks).lstrip("\n")

    def _written(self, chunk: TokenChunk | ImageChunk) -> str:
        if isinstance(chunk, TokenChunk):
            return self._renderer.vocabulary.decode(chunk.tokens.tolist()).replace(END, "")
        if isinstance(chunk.source, str):
            return f"[image: {chunk.source}]\n"
        self._pictures += 1
        if self._images is None:
            return f"[image {self._pictures}: {len(chunk.source)} bytes]\n"
        path = self._images / f"image-{self._pictures}{_suffix(chunk.source)}"
        path.write_bytes(chunk.source)
        return f"[image: {path}]\n"


def _without_beginning(prompt: ModelInput, seen: ModelInput | None) -> Sequence[TokenChunk | ImageChunk]:
    """The prompt's chunks, less what was seen already; all of it where it is another conversation."""
    if seen is None or len(seen.chunks) > len(prompt.chunks):
        return prompt.chunks
    *before, last = seen.chunks
    if tuple(before) != prompt.chunks[: len(before)]:
        return prompt.chunks
    at = prompt.chunks[len(before)]
    if isinstance(last, ImageChunk) or isinstance(at, ImageChunk):
        return prompt.chunks if last != at else prompt.chunks[len(before) + 1 :]
    if len(at.tokens) < len(last.tokens) or not np.array_equal(at.tokens[: len(last.tokens)], last.tokens):
        return prompt.chunks
    return (TokenChunk(at.tokens[len(last.tokens) :]), *prompt.chunks[len(before) + 1 :])


def _suffix(image: bytes) -> str:
    if image.startswith(b"\x89PNG"):
        return ".png"
    return ".jpg" if image.startswith(b"\xff\xd8") else ".image"


class _ShownGroup(GroupBuilder):
    """A group whose members tell what comes of their answers."""

    def __init__(self, builder: GroupBuilder, table: _Table) -> None:
        self._builder = builder
        self._table = table
        self.tags = tuple(builder.tags)
        self.single_turn = False  # everybody is asked, although all may see the same
        self.interdependent = builder.interdependent

    async def make_envs(self) -> Sequence[Env]:
        envs = await self._builder.make_envs()
        self._table.members = len(envs)
        return [_ShownEnv(env, member, self._table) for member, env in enumerate(envs)]

    async def group_rewards(self, trajectories: Sequence[Any]) -> Any:
        return await self._builder.group_rewards(trajectories)

    async def cleanup(self) -> None:
        await self._builder.cleanup()


class _ShownEnv:
    """An env that tells what came of each answer."""

    def __init__(self, env: Env, member: int, table: _Table) -> None:
        self._env = env
        self._member = member
        self._table = table

    async def reset(self) -> Observation | None:
        observation = await self._env.reset()
        if observation is None:
            self._table.terminal.show(f"{self._table.title(self._member)}the game is over before your turn\n", "told")
        else:
            self._table.expect(self._member, observation)
        return observation

    async def step(self, completion: Completion) -> Step:
        step = await self._env.step(completion)
        self._table.terminal.show(self._table.title(self._member) + told(step) + "\n", "told")
        if step.observation is not None:
            self._table.expect(self._member, step.observation)
        return step

    def leave(self, end: EndReason | None) -> float:
        leave = getattr(self._env, "leave", None)
        return 0.0 if leave is None else float(leave(end))


def told(step: Step) -> str:
    """`reward 1   correct 1   (reference: 52)`: reward, metrics, and those logs that were not on the screen already."""
    words = [f"reward {step.reward:g}", *(f"{name} {value:g}" for name, value in step.metrics.items())]
    logs = _new_logs(step.logs)
    return "   ".join(words) + (f"   ({logs})" if logs else "")


def _new_logs(logs: Mapping[str, Any]) -> str:
    seen = ("question", "answer", "seat")
    return "; ".join(f"{name}: {value}" for name, value in logs.items() if name not in seen and value not in ("", None))
