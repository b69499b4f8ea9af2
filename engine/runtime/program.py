"""A program: actors declared, connected and run as one structured-concurrency scope.

                declare                     run
    program.actor("source", ...)    ┌─ drains (the logger): shielded, end when their input ends ──────────┐
    program.actor("trainer", ...)   │   ┌─ workers: run together; the first failure cancels the others ─┐ │
    program.drain("logger", ...)    │   └───────────────────────────────────────────────────────────────┘ │
                                    └─────────────────────────────────────────────────────────────────────┘

An actor is an async function. The channel ends and inboxes among its arguments are its own: they are closed when it finishes, however it
finishes. So a program stops from the source downward: a source that returns closes its channel, whoever reads it drains and returns, and the
logger, which everybody writes to, ends last. A consumer that finishes first stops its producers quietly: their next `send` raises
`ConsumerFinished`, and an actor declared with `feeds=` is stopped without waiting for that send.

A failure cancels the workers; drains then get `grace` seconds to write what they have; the program raises one `ActorsFailed` that names each
failed actor. A cancellation from outside does the same; what fails while everything is being cancelled is raised too, not swallowed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import attrs

from engine.runtime.channels import Channel, ConsumerFinished, Receiver, Sender
from engine.runtime.instrumentation import NullTracer, Tracer
from engine.runtime.requests import Asker, Inbox

End = Sender[Any] | Receiver[Any] | Inbox[Any, Any] | Asker[Any, Any]


class ActorsFailed(ExceptionGroup[Exception]):
    """One exception for each actor that failed, in the order of failing; each carries a note that names its actor."""

    def derive(self, excs: Sequence[Exception], /) -> ActorsFailed:  # type: ignore[override]
        return ActorsFailed(self.message, list(excs))


@attrs.frozen
class Restarts:
    """How often an actor that failed is started again, with the same arguments and its channels still open."""

    limit: int = attrs.field(validator=attrs.validators.ge(1))
    """Most restarts within `within` seconds; one more failure fails the program."""
    within: float = attrs.field(default=60.0, validator=attrs.validators.gt(0))
    on: tuple[type[Exception], ...] = (Exception,)
    """Which failures are worth a restart; of several at once, all must be."""

    def cover(self, error: Exception) -> bool:
        """Whether `error`, or everything in it if it is a group, is worth a restart."""
        if isinstance(error, ExceptionGroup):
            return error.split(self.on)[1] is None
        return isinstance(error, self.on)


@attrs.frozen
class _Actor:
    name: str
    function: Callable[..., Awaitable[None]]
    args: tuple[Any, ...]
    restarts: Restarts | None
    feeds: Sender[Any] | None = None
    owns: tuple[End, ...] = ()

    @property
    def ends(self) -> list[End]:
        return list(_ends_in((*self.args, *self.owns, self.feeds)))


class Program:
    """Actors and the channels between them. Nothing runs before `run`, and a program runs once."""

    def __init__(self, name: str, *, grace: float = 5.0, tracer: Tracer | None = None) -> None:
        """`grace`: seconds that drains have, once the workers were stopped by a failure or a cancellation."""
        if not grace >= 0:
            raise ValueError(f"program '{name}': grace must be 0 seconds or more, got {grace}")
        self.name = name
        self.grace = grace
        self.tracer: Tracer = tracer or NullTracer()
        self._workers: list[_Actor] = []
        self._drains: list[_Actor] = []
        self._failures: list[tuple[str, Exception]] = []
        self._has_run = False

    def actor(
        self,
        name: str,
        function: Callable[..., Awaitable[None]],
        *args: Any,
        restarts: Restarts | None = None,
        feeds: Sender[Any] | None = None,
        owns: Sequence[End] = (),
    ) -> None:
        """Declares a worker, which will run `function(*args)`. Ends within a list or tuple among `args` are the actor's own as well.

        `restarts`: by default a failure fails the program. `feeds`: the one channel end this actor works for; when its consumer has
        finished, the actor is stopped at once, quietly. `owns`: further ends that are its own, beside those among its arguments.
        """
        self._declare(self._workers, _Actor(name, function, args, restarts, feeds, tuple(owns)))

    def drain(self, name: str, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Declares an actor that outlives the workers and reads its input to the end, within `grace` seconds after a failure or cancellation."""
        self._declare(self._drains, _Actor(name, function, args, None))

    def _declare(self, actors: list[_Actor], actor: _Actor) -> None:
        if self._has_run:
            raise RuntimeError(f"program '{self.name}' has been started: actor '{actor.name}' comes too late")
        if any(other.name == actor.name for other in self._actors):
            raise ValueError(f"program '{self.name}': there is already an actor '{actor.name}'")
        actors.append(actor)

    @property
    def _actors(self) -> tuple[_Actor, ...]:
        return (*self._workers, *self._drains)

    @property
    def channels(self) -> list[Channel[Any]]:
        """Every channel that an actor holds an end of, in the order of declaration."""
        found: dict[int, Channel[Any]] = {}
        for actor in self._actors:
            for end in actor.ends:
                found.setdefault(id(end.channel), end.channel)
        return list(found.values())

    async def run(self) -> None:
        """Runs until every actor has finished. Raises ActorsFailed; KeyboardInterrupt and its like come through as they are."""
        if self._has_run:
            raise RuntimeError(
                f"program '{self.name}' has been run already and its channels are closed: build a new one"
            )
        self._has_run = True
        cancelled = anyio.get_cancelled_exc_class()
        interrupt: BaseException | None = None
        try:
            self._check_edges()
            await self._run_all()
        except cancelled:
            if not self._failures:  # else they tell more than that somebody gave up waiting
                raise
        except BaseExceptionGroup as group:
            interrupt = _innermost(group)
        finally:
            for actor in self._actors:  # those that never ran, too
                _close_ends(actor)
            for channel in self.channels:
                channel.close_unclaimed()
        if interrupt is not None:
            raise interrupt
        if self._failures:
            names = ", ".join(dict.fromkeys(f"actor '{name}'" for name, _ in self._failures))
            raise ActorsFailed(f"program '{self.name}' failed in {names}", [error for _, error in self._failures])

    def _check_edges(self) -> None:
        for channel in self.channels:
            senders, receivers = channel.ends
            if not senders or not receivers:
                missing = "a sender" if not senders else "a receiver"
                raise ValueError(
                    f"program '{self.name}': channel '{channel.name}' has no actor with {missing}, so its other side would wait forever"
                )

    async def _run_all(self) -> None:
        drained = anyio.Event()
        scopes: dict[str, anyio.CancelScope] = {}
        async with anyio.create_task_group() as everything:

            async def run_drain(actor: _Actor) -> None:
                try:
                    await self._run_drain(actor, scopes[actor.name], everything.cancel_scope)
                finally:
                    del scopes[actor.name]
                    if not scopes:
                        drained.set()

            for actor in self._drains:
                scopes[actor.name] = anyio.CancelScope(shield=True)
            for actor in self._drains:
                everything.start_soon(run_drain, actor, name=f"{self.name}: {actor.name}")
            try:
                await self._run_workers()
                if self._failures:
                    self._start_grace(scopes.values())
                if self._drains:
                    # Waited for here, so that a failure or cancellation at this late hour starts the grace as well.
                    await drained.wait()
            except BaseException:
                self._start_grace(scopes.values())
                raise

    def _start_grace(self, scopes: Iterable[anyio.CancelScope]) -> None:
        deadline = anyio.current_time() + self.grace
        for scope in scopes:
            scope.deadline = min(scope.deadline, deadline)

    async def _run_workers(self) -> None:
        async with anyio.create_task_group() as workers:
            for actor in self._workers:
                workers.start_soon(self._run_worker, actor, workers.cancel_scope, name=f"{self.name}: {actor.name}")

    async def _run_worker(self, actor: _Actor, siblings: anyio.CancelScope) -> None:
        began = anyio.current_time()
        try:
            if actor.feeds is None:
                await self._run_recorded(actor, siblings)
            else:
                await self._run_while_wanted(actor, actor.feeds, siblings)
        finally:
            _close_ends(actor)
            self.tracer.span("actors", actor.name, began, anyio.current_time())

    async def _run_while_wanted(self, actor: _Actor, feeds: Sender[Any], siblings: anyio.CancelScope) -> None:
        async with anyio.create_task_group() as group:

            async def stop_when_unwanted() -> None:
                await feeds.channel.finished.wait()
                group.cancel_scope.cancel()

            group.start_soon(stop_when_unwanted, name=f"{self.name}: is {actor.name} wanted")
            await self._run_recorded(actor, siblings)
            group.cancel_scope.cancel()

    async def _run_recorded(self, actor: _Actor, siblings: anyio.CancelScope) -> None:
        try:
            await self._run_restarting(actor)
        except ConsumerFinished:
            pass
        except Exception as error:  # noqa: BLE001  (an actor may fail with anything)
            self._record(actor, error)
            siblings.cancel()

    async def _run_restarting(self, actor: _Actor) -> None:
        restarted_at: list[float] = []
        while True:
            try:
                return await _run_actor(actor)
            except ConsumerFinished:
                return None
            except Exception as error:
                restarts = actor.restarts
                if restarts is None or not restarts.cover(error) or anyio.get_current_task().has_pending_cancellation():
                    raise
                now = anyio.current_time()
                restarted_at = [at for at in restarted_at if now - at < restarts.within]
                if len(restarted_at) >= restarts.limit:
                    error.add_note(f"after {restarts.limit} restarts within {restarts.within:g} s")
                    raise
                restarted_at.append(now)
                self.tracer.instant("actors", f"restart {actor.name}", now, error=repr(error))
            await anyio.lowlevel.checkpoint()

    async def _run_drain(self, actor: _Actor, scope: anyio.CancelScope, everything: anyio.CancelScope) -> None:
        began = anyio.current_time()
        try:
            with scope:
                await _run_actor(actor)
            if scope.cancelled_caught:
                raise TimeoutError(f"did not finish within its grace of {self.grace:g} s")
        except ConsumerFinished:
            pass
        except Exception as error:  # noqa: BLE001  (an actor may fail with anything)
            self._record(actor, error)
            everything.cancel()
        finally:
            _close_ends(actor)
            self.tracer.span("actors", actor.name, began, anyio.current_time())

    def _record(self, actor: _Actor, error: Exception) -> None:
        error.add_note(f"in actor '{actor.name}'")
        self._failures.append((actor.name, error))


async def _run_actor(actor: _Actor) -> None:
    """Runs it once. Of what its own task groups raise, cancellation and ConsumerFinished are no failures and hide none."""
    failure: BaseException | None
    try:
        await actor.function(*actor.args)
        return
    except BaseExceptionGroup as group:
        cancelled, failure = group.split(anyio.get_cancelled_exc_class())
        if failure is not None:
            failure = failure.split(ConsumerFinished)[1]
        if failure is None and cancelled is not None:
            raise cancelled from None  # without the ConsumerFinished beside it, which would outlive the cancellation
    if failure is None:
        raise ConsumerFinished("inside the actor's task group")
    raise _innermost(failure)  # outside the handler, so that its context stays its own


def _innermost(error: BaseException) -> BaseException:
    """The error itself where groups hold nothing else: a group of one says less. What was noted on the group goes along."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        notes = getattr(error, "__notes__", ())
        error = error.exceptions[0]
        for note in notes:
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
    return error


def _ends_in(values: Sequence[Any]) -> Iterator[End]:
    for value in values:
        if isinstance(value, Sender | Receiver | Inbox | Asker):
            yield value
        elif isinstance(value, list | tuple):
            yield from _ends_in(value)


def _close_ends(actor: _Actor) -> None:
    for end in actor.ends:
        end.close()
