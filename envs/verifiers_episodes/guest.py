"""The side of `verifiers`: its environment, on its own event loop, with a client that asks us. Importing this module imports `verifiers`.

Env.run_episode ─▶ Agent ─▶ harness ─HTTP on loopback─▶ PolicyServer ─▶ PolicyClient ─▶ Episode.ask ─▶ (our rollout)
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

import verifiers.v1 as vf
from verifiers.v1.clients import ModelContext
from verifiers.v1.configs.agent import agent_config_fields
from verifiers.v1.interception import InterceptionServer

from envs.verifiers_episodes.news import Asked, Ended, News
from envs.verifiers_tasks import UnsupportedTask

POLICY = vf.TrainClientConfig(base_url="http://policy.invalid/v1", api_key_var="CALLSHEET_NO_KEY")
"""What stands for the policy in configurations of theirs. Nobody connects to it. It is one for training, so that a streamed answer is asked for whole."""
HARNESS = "envs.verifiers_episodes.harness"
CHAT_PATH = "/chat/completions"


class PolicyClient(vf.Client):  # type: ignore[misc]  # verifiers is no dependency, so its classes are unknown here
    """Hands each question to the episode that it belongs to, and gives the answer back as a model would."""

    def __init__(self) -> None:
        self.episodes: dict[str, Episode] = {}
        """By the id of the trace that its policy plays."""

    async def get_response(
        self,
        dialect: Any,
        body: dict[str, Any],
        sampling: Any,  # noqa: ARG002  (the port's; the run samples as its settings say)
        session_id: str | None = None,
        turn: Any = None,  # noqa: ARG002
        headers: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> Any:
        """See `vf.Client.get_response`."""
        if dialect.upstream_path != CHAT_PATH:
            raise vf.ProviderError(f"the policy speaks {CHAT_PATH}, not {dialect.upstream_path}", status_code=400)
        raw = await self.episodes[session_id or ""].ask(body)
        response = dialect.parse_response(dialect.validate_response(raw))
        response.raw = raw
        return response


class PolicyServer(InterceptionServer):  # type: ignore[misc]
    """The server that harnesses reach their models through, with the policy among them."""

    def __init__(self, client: PolicyClient, state_service_secrets: Sequence[str] = ()) -> None:
        super().__init__(state_service_secrets=tuple(state_service_secrets))
        self._policy = client

    def _client(self, config: Any) -> Any:
        return self._policy if config == POLICY else super()._client(config)


class Episode:
    """One rollout of theirs, and the news of it. All methods run on their loop."""

    def __init__(self, host: Host, task: Any) -> None:
        self._host = host
        self._task = task
        self._news: asyncio.Queue[tuple[News, asyncio.Future[Any] | None]] = asyncio.Queue()
        self._playing: asyncio.Task[None] | None = None
        self._waiting: asyncio.Future[Any] | None = None
        self._trained: Any = None
        self._refusal: str | None = None

    async def begin(self) -> News:
        """Starts the rollout; gives its first question, or its end."""
        self._playing = asyncio.create_task(self._play())
        return await self._next()

    async def answer(self, raw: Mapping[str, Any]) -> News:
        """Answers the last question with a chat completion; gives the next one, or the end."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(raw)
        return await self._next()

    async def close(self) -> None:
        """Ends the rollout where it stands."""
        if self._playing is not None:
            self._playing.cancel()
            await asyncio.wait([self._playing])
        self._host.client.episodes = {
            trace: episode for trace, episode in self._host.client.episodes.items() if episode is not self
        }

    async def _next(self) -> News:
        news, self._waiting = await self._news.get()
        return news

    async def ask(self, body: Mapping[str, Any]) -> Any:
        """What the client is asked: waits for the policy's answer."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._news.put_nowait((Asked(body), answer))
        return await answer

    async def _play(self) -> None:
        try:
            async with self._host.slots:
                ended = await self._host.play(self._task, self._minted)
        except Exception as error:  # noqa: BLE001  (theirs or ours: it is the news)
            ended = Ended(error=f"{type(error).__name__}: {error}")
        if self._refusal is not None:
            ended = Ended(error=self._refusal, refused=True)
        self._news.put_nowait((ended, None))

    def _minted(self, trace: Any) -> None:
        """A run of an agent begins: the policy's, or that of somebody with a model of its own."""
        seat = trace.agent
        if seat.config.client != POLICY:
            return
        if not seat.trainable:
            self._refuse(
                f"the agent '{seat.name}' is not trained, and has no model of its own: give it one, as {{'{seat.name}': {{'model': ..., 'client': {{...}}}}}}"
            )
        if self._trained is not None and self._trained is not trace:
            self._refuse(
                f"the episode runs a second agent of the policy's ('{seat.name}'): one is trained here, in one rollout"
            )
        self._trained = trace
        self._host.client.episodes[trace.id] = self

    def _refuse(self, why: str) -> NoReturn:
        self._refusal = self._refusal or why
        raise UnsupportedTask(why)


class Host:
    """An environment of theirs in service. Made by `Service`."""

    def __init__(self, env: Any, client: PolicyClient, concurrency: int | None) -> None:
        self.client = client
        self.slots: Any = asyncio.Semaphore(concurrency) if concurrency else contextlib.nullcontext()
        self._env = env
        self._context = ModelContext(model="policy", client=POLICY)

    def episode(self, task: Any) -> Episode:
        """A rollout that has not begun."""
        return Episode(self, task)

    async def play(self, task: Any, minted: Any) -> Ended:
        """One episode, to its score."""
        episode = await self._env.run_episode(task, self._context, on_trace=minted)
        traces = [trace for trace in episode.traces if trace.agent.config.client == POLICY]
        failed = [*episode.errors, *(error for trace in episode.traces if not trace.ok for error in trace.errors)]
        if failed or not traces:
            why = f"{failed[0].type}: {failed[0].message}" if failed else "no agent of the policy's was run"
            return Ended(error=why)
        (trace,) = traces
        return Ended(float(trace.reward), _figures(trace), trace.stop_condition)


def _figures(trace: Any) -> dict[str, float]:
    scores = {name: float(reward.score) for name, reward in trace.rewards.items() if reward is not None}
    measured = {name: float(value) for name, value in trace.metrics.items() if value is not None}
    return {f"verifiers/{name}": value for name, value in {**scores, **measured}.items()}


def load_env(source: str, config: Mapping[str, Any], *, max_turns: int | None, harness: str | None) -> Any:
    """The environment, with the policy's seats played in this process unless it says otherwise. Blocks."""
    ident = plugin_id(source)
    given = {**config, "taskset": {"id": ident, **config.get("taskset", {})}}
    roles = agent_config_fields(vf.env_config_type(ident, given.get("id") or "")())
    own_harness = vf.default_harness_id(ident) == ident
    for role, declared in roles.items():
        seat = dict(given.get(role, {}))
        seat.setdefault("runtime", {"type": "subprocess"})
        if harness is not None or (declared.harness is None and not own_harness):
            seat.setdefault("harness", {"id": plugin_id(harness or HARNESS)})
        if max_turns is not None:
            seat.setdefault("max_turns", max_turns)
        given[role] = seat
    return vf.load_environment(vf.resolve_env_config(given))


def plugin_id(source: str) -> str:
    """What verifiers finds an environment or a harness by. It looks among top-level modules alone, so a module of a package gets a name there."""
    if "." not in source or "/" in source:
        return source
    module = import_module(source)
    name = source.replace(".", "_").lower()
    sys.modules.setdefault(name, module)
    return name


class Service:
    """An environment in service, in a task of its own on their loop: what is opened there is closed by the same task."""

    def __init__(self, env: Any, concurrency: int | None) -> None:
        self._env = env
        self._concurrency = concurrency
        self._stop = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None

    async def begin(self) -> Host:
        """Starts the servers of the environment."""
        ready: asyncio.Future[Host] = asyncio.get_running_loop().create_future()
        self._serving = asyncio.create_task(self._serve(ready))
        self._serving.add_done_callback(lambda _: ready.cancel())
        try:
            return await ready
        except asyncio.CancelledError:
            if self._serving.done():
                self._serving.result()  # why it could not begin
            raise

    async def end(self) -> None:
        """Stops them."""
        self._stop.set()
        if self._serving is not None:
            await self._serving

    async def _serve(self, ready: asyncio.Future[Host]) -> None:
        client = PolicyClient()
        async with self._env.serving():
            shared = self._env._shared_tools.values()  # noqa: SLF001
            async with PolicyServer(client, [tool.state_secret for tool in shared if tool.state_secret]) as server:
                self._env._interception = server  # noqa: SLF001  (it has no other way to be given one)
                ready.set_result(Host(self._env, client, self._concurrency))
                await self._stop.wait()
