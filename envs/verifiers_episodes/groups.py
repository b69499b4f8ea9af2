"""Our side: an episode whose questions come from a rollout of `verifiers`, and the groups of them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import anyio
import attrs

from engine.backends.values import Completion, ModelInput, SampleRequest
from engine.rendering import Dialogue, Message, Renderer, from_openai
from engine.runtime.guest_loop import GRACE, GuestLoop, guest_loop
from engine.runtime.offload import offload
from engine.serving import answers, requests
from engine.serving.errors import ApiError
from engine.serving.limits import Limits
from engine.serving.served import ServedPolicy
from envs.contracts import Env, GroupBuilder, Observation, Step
from envs.together import or_error, together
from envs.verifiers_episodes.news import Asked, Ended
from envs.verifiers_tasks import EXTRA, UnsupportedTask

if TYPE_CHECKING:
    from envs.verifiers_episodes.guest import Episode, Host

_ANY = Limits(max_tokens=2**31 - 1, max_choices=1)
"""What a harness may ask for: the run's own limits are what holds."""


class EpisodeFailed(Exception):
    """A rollout of verifiers that ended in an error, in its words."""


class _Nobody:
    """Of the requests' checks, which want a policy and ask it nothing."""

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:  # noqa: ARG002  (the port's)
        raise AssertionError("the rollout asks the policy, not the checks")


class VerifiersEpisode:
    """One rollout of an environment of theirs.

    Reward and metrics are those of its task, at its last step: `correct` (the reward) and `verifiers/<name>` of each of its own rewards and metrics. A limit of ours that ends it earlier leaves it unscored; limits
    in turns are better given to verifiers (`playing(max_turns=…)`), which then scores what there is.
    """

    def __init__(self, guest: GuestLoop, episode: Episode, renderer: Renderer, max_tokens: int | None) -> None:
        self._guest = guest
        self._episode = episode
        self._served = ServedPolicy(_Nobody(), renderer)
        self._max_tokens = max_tokens
        self._dialogue: Dialogue | None = None
        self._said: list[Message] = []
        """The conversation as the harness would repeat it, our last answer included."""
        self._chat: requests.Chat | None = None

    async def reset(self) -> Observation:
        """The first question. Raises EpisodeFailed where there is none, UnsupportedTask for one that cannot be asked here."""
        news = await self._guest.run(self._episode.begin)
        if isinstance(news, Ended):
            raise _failed(news) or EpisodeFailed("the rollout ended before it asked the policy anything")
        return self._observed(news)

    async def step(self, completion: Completion) -> Step:
        """Gives the answer to the harness, and waits for what it makes of it. Raises EpisodeFailed for a rollout that ends in an error."""
        raw, logs = self._answered(completion)
        news = await self._guest.run(self._episode.answer, raw)
        if isinstance(news, Asked):
            return Step(observation=self._observed(news), logs=logs)
        if failed := _failed(news):
            raise failed
        stopped = {} if news.stopped is None else {"stopped": news.stopped}
        return Step(news.reward, metrics={"correct": news.reward, **news.metrics}, logs={**logs, **stopped})

    async def close(self) -> None:
        """Ends the rollout where it stands."""
        await self._guest.run(self._episode.close)

    def _observed(self, asked: Asked) -> Observation:
        try:
            chat = requests.chat(asked.body, self._served, _ANY)
            self._check(asked.body)
            prompt = self._prompt(chat)
        except ApiError as error:
            raise UnsupportedTask(f"the harness asks for what is not offered here: {error}") from error
        self._chat = chat
        limits = [limit for limit in (self._max_tokens, _limit_in(asked.body)) if limit is not None]
        return Observation(prompt, chat.asked.params.stop, min(limits, default=None))

    def _check(self, body: Mapping[str, Any]) -> None:
        if body.get("logprobs") or body.get("return_token_ids"):
            raise UnsupportedTask("the harness asks for logprobs or token ids, which stay on this side")

    def _prompt(self, chat: requests.Chat) -> ModelInput:
        """Behind the tokens of the last answer where the conversation goes on from it; written anew where the harness changed what was said, or its tools."""
        known = len(self._said)
        goes_on = (
            self._dialogue is not None
            and self._chat is not None
            and len(chat.messages) > known
            and list(chat.messages[:known]) == self._said
            and list(chat.tools) == list(self._chat.tools)
        )
        if self._dialogue is None or not goes_on:
            prompt = requests.rendered(chat, self._served)
            self._dialogue = Dialogue(self._served.renderer, chat.messages, tools=chat.tools, prompt=prompt)
        else:
            self._dialogue.extend(*chat.messages[known:])
        self._said = list(chat.messages)
        return self._dialogue.prompt

    def _answered(self, completion: Completion) -> tuple[dict[str, Any], dict[str, Any]]:
        """The answer as a chat completion, and what people are shown of it."""
        if self._dialogue is None or self._chat is None:
            raise RuntimeError("step() before reset()")
        self._dialogue.answer(completion.tokens)
        request = SampleRequest(self._dialogue.prompt, self._chat.asked.params, 0)
        whole = answers.chat_answer(self._chat, request, [completion], self._served)
        message = whole["choices"][0]["message"]
        self._said += from_openai([message])
        head = answers.head("chat.completion", answers.new_id("chatcmpl"), "policy")
        asked = next((each.text for each in reversed(self._chat.messages) if each.role != "assistant"), "")
        logs = {"question": asked, "answer": message.get("content") or ""}
        if message.get("tool_calls"):
            logs["calls"] = [call["function"] for call in message["tool_calls"]]
        return {**head, **whole}, logs


def _failed(ended: Ended) -> Exception | None:
    if ended.error is None:
        return None
    return UnsupportedTask(ended.error) if ended.refused else EpisodeFailed(ended.error)


def _limit_in(body: Mapping[str, Any]) -> int | None:
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    return None if limit is None else int(limit)


class EpisodeGroup(GroupBuilder):
    """Several rollouts of one task."""

    def __init__(self, groups: EpisodeGroups, task: Any) -> None:
        self._groups = groups
        self._task = task
        self._episodes: list[VerifiersEpisode] = []
        self.tags = ("verifiers", type(task).__name__)

    async def make_envs(self) -> Sequence[Env]:
        """The rollouts; each begins with its reset."""
        groups = self._groups
        made = [
            VerifiersEpisode(groups.guest, groups.host.episode(self._task), groups.renderer, groups.max_tokens)
            for _ in range(groups.group_size)
        ]
        self._episodes += made
        return made

    async def cleanup(self) -> None:
        """Ends the rollouts that a limit left under way, and frees what they hold."""
        episodes, self._episodes = self._episodes, []
        failed = [each for each in await together([or_error(each.close) for each in episodes]) if each is not None]
        if failed:
            raise ExceptionGroup("rollouts of verifiers that could not be ended", failed)


@attrs.frozen
class EpisodeGroups:
    """A dataset of groups: task `index`, played by `group_size` members. Made by `playing`; `attrs.evolve` gives parts of it."""

    tasks: Sequence[Any]
    renderer: Renderer
    guest: GuestLoop = attrs.field(repr=False)
    host: Host = attrs.field(repr=False)
    group_size: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    max_tokens: int | None = None
    """Most tokens of an answer; None: the rollout's own limit."""

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> GroupBuilder:
        return EpisodeGroup(self, self.tasks[index])


@asynccontextmanager
async def playing(
    source: str,
    renderer: Renderer,
    *,
    group_size: int = 8,
    limit: int | None = None,
    max_turns: int | None = None,
    max_tokens: int | None = None,
    concurrency: int | None = None,
    harness: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> AsyncIterator[EpisodeGroups]:
    """Keeps an environment of verifiers in service while the block runs.

    - `source`: the id of an installed environment (`my-env`, `owner/my-env`), or a module (`my_package.my_env`), which exports its taskset, and its `Env` and harness where it has its own, through `__all__`.
    - `limit`: tasks to take at most, the first ones; needed where they never end.
    - `max_turns`: answers of an episode; verifiers ends it there and scores it.
    - `concurrency`: rollouts under way at once, which is for harnesses that are programs; None: no limit of its own.
    - `harness`: what plays; None: the environment's own, or else a chat loop with tools in this process.
    - `config`: fields of the environment's configuration, by seat too: `{"user": {"model": ..., "client": {...}}}`.

    Works on asyncio and trio. Raises ImportError naming the extra where verifiers is missing, ValueError or UnsupportedTask for what cannot be played here.
    """
    if find_spec("verifiers") is None:
        raise ImportError(EXTRA)
    from envs.verifiers_episodes import guest as theirs

    env = await offload(lambda: theirs.load_env(source, config or {}, max_turns=max_turns, harness=harness))
    tasks = await offload(_tasks, env.taskset, source, limit)
    async with guest_loop("verifiers") as guest:
        service = theirs.Service(env, concurrency)
        try:
            host = await guest.run(service.begin)
            yield EpisodeGroups(tasks, renderer, guest, host, group_size, max_tokens)
        finally:
            with anyio.move_on_after(GRACE, shield=True):
                await guest.run(service.end)


def _tasks(taskset: Any, source: str, limit: int | None) -> list[Any]:
    if limit is None and not taskset.bounded:
        raise UnsupportedTask(f"{source} has tasks without end: a limit says how many to take")
    tasks = [*itertools.islice(iter(taskset), limit)]
    if not tasks:
        raise ValueError(f"{source} has no tasks")
    return tasks
