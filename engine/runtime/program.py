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

A failure cancels the workers; drains get `grace` seconds to write what they have; the program raises one `ActorsFailed` that names each
failed actor.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import attrs

from engine.runtime.channels import Channel, ConsumerFinished, Receiver, Sender
from engine.runtime.instrumentation import NullTracer, Tracer
from engine.runtime.requests import Asker, Inbox


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
    """Which failures are worth a restart."""


_End = Sender[Any] | Receiver[Any] | Inbox[Any, Any] | Asker[Any, Any]


@attrs.define
class _Actor:
    name: str
    function: Callable[..., Awaitable[None]]
    args: tuple[Any, ...]
    restarts: Restarts | None
    feeds: Sender[Any] | None
    owns: tuple[_End, ...] = ()

    @property
    def ends(self) -> list[_End]:
        return [end for end in (*self.args, *self.owns) if isinstance(end, Sender | Receiver | Inbox | Asker)]


class Program:
    """Actors and the channels between them. Nothing runs before `run`."""

    def __init__(self, name: str, *, grace: float = 5.0, tracer: Tracer | None = None) -> None:
        self.name = name
        self.grace = grace
        self.tracer: Tracer = tracer or NullTracer()
        self._workers: list[_Actor] = []
        self._drains: list[_Actor] = []
        self._failures: list[Exception] = []

    def actor(
        self,
        name: str,
        function: Callable[..., Awaitable[None]],
        *args: Any,
        restarts: Restarts | None = None,
        feeds: Sender[Any] | None = None,
        owns: Sequence[_End] = (),
    ) -> None:
        """Declares a worker.

        `restarts`: by default a failure fails the program. `feeds`: the one channel end this actor works for; when its consumer has
        finished, the actor is stopped at once, quietly. `owns`: further ends that are its own, beside those among its arguments.
        """
        self._declare(self._workers, _Actor(name, function, args, restarts, feeds, tuple(owns)))

    def drain(self, name: str, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Declares an actor that outlives the workers and reads its input to the end, within `grace` seconds after a failure or cancellation."""
        self._declare(self._drains, _Actor(name, function, args, None, None))

    def _declare(self, actors: list[_Actor], actor: _Actor) -> None:
        if any(other.name == actor.name for other in (*self._workers, *self._drains)):
            raise ValueError(f"program '{self.name}': there is already an actor '{actor.name}'")
        actors.append(actor)

    @property
    def channels(self) -> list[Channel[Any]]:
        """Every channel that an actor holds an end of, in the order of declaration."""
        found: dict[int, Channel[Any]] = {}
        for actor in (*self._workers, *self._drains):
            for end in actor.ends:
                found.setdefault(id(end.channel), end.channel)
        return list(found.values())

    async def run(self) -> None:
        """Runs until every actor has finished. Raises ActorsFailed."""
        try:
            self._check_edges()
            async with anyio.create_task_group() as outer:
                scopes = [anyio.CancelScope(shield=True) for _ in self._drains]
                for actor, scope in zip(self._drains, scopes, strict=True):
                    outer.start_soon(self._run_drain, actor, scope, outer.cancel_scope)
                try:
                    await self._run_workers()
                except BaseException:
                    self._start_grace(scopes)
                    raise
                if self._failures:
                    self._start_grace(scopes)
        finally:
            for actor in (*self._workers, *self._drains):  # those that never ran, too
                self._close_ends(actor)
        if self._failures:
            names = ", ".join(dict.fromkeys(_actor_of(failure) for failure in self._failures))
            raise ActorsFailed(f"program '{self.name}' failed in {names}", self._failures)

    def _check_edges(self) -> None:
        for channel in self.channels:
            senders, receivers = channel.ends
            if not senders or not receivers:
                missing = "a sender" if not senders else "a receiver"
                raise ValueError(
                    f"program '{self.name}': channel '{channel.name}' has no actor with {missing}, so its other side would wait forever"
                )

    def _start_grace(self, scopes: Sequence[anyio.CancelScope]) -> None:
        for scope in scopes:
            scope.deadline = anyio.current_time() + self.grace

    async def _run_workers(self) -> None:
        async with anyio.create_task_group() as workers:
            for actor in self._workers:
                workers.start_soon(self._run_worker, actor, workers.cancel_scope)

    async def _run_worker(self, actor: _Actor, siblings: anyio.CancelScope) -> None:
        began = anyio.current_time()
        try:
            if actor.feeds is None:
                await self._run_restarting(actor)
            else:
                await self._run_while_wanted(actor, actor.feeds)
        except ConsumerFinished:
            pass
        except Exception as error:  # noqa: BLE001  (an actor may fail with anything)
            self._record(actor, error)
            siblings.cancel()
        finally:
            self._close_ends(actor)
            self.tracer.span("actors", actor.name, began, anyio.current_time())

    async def _run_while_wanted(self, actor: _Actor, feeds: Sender[Any]) -> None:
        async with anyio.create_task_group() as group:

            async def stop_when_unwanted() -> None:
                await feeds.channel.finished.wait()
                group.cancel_scope.cancel()

            group.start_soon(stop_when_unwanted)
            try:
                await self._run_restarting(actor)
            except ConsumerFinished:
                pass
            except Exception as error:  # noqa: BLE001
                self._failures.append(_named(actor.name, error))
                raise _AlreadyRecorded from None
            group.cancel_scope.cancel()

    async def _run_restarting(self, actor: _Actor) -> None:
        restarted_at: list[float] = []
        while True:
            try:
                return await _quiet(actor.function, actor.args)
            except ConsumerFinished:
                return None
            except Exception as error:
                restarts = actor.restarts
                if restarts is None or not isinstance(error, restarts.on):
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
                await _quiet(actor.function, actor.args)
            if scope.cancelled_caught:
                raise TimeoutError(f"did not finish within its grace of {self.grace:g} s")
        except ConsumerFinished:
            pass
        except Exception as error:  # noqa: BLE001  (an actor may fail with anything)
            self._record(actor, error)
            everything.cancel()
        finally:
            self._close_ends(actor)
            self.tracer.span("actors", actor.name, began, anyio.current_time())

    def _record(self, actor: _Actor, error: Exception) -> None:
        if isinstance(error, ExceptionGroup) and error.subgroup(_AlreadyRecorded) is not None:
            return
        self._failures.append(_named(actor.name, error))

    @staticmethod
    def _close_ends(actor: _Actor) -> None:
        for end in actor.ends:
            end.close()


class _AlreadyRecorded(Exception):
    """Ends a task group whose failure is in the program's list."""


async def _quiet(function: Callable[..., Awaitable[None]], args: tuple[Any, ...]) -> None:
    """Runs an actor; ConsumerFinished among what its own task groups raise is a quiet stop too."""
    try:
        await function(*args)
    except ExceptionGroup as group:
        _, rest = group.split(ConsumerFinished)
        if rest is None:
            raise ConsumerFinished("inside the actor's task group") from None
        if len(rest.exceptions) == 1:  # a group of one says less than the error itself
            error = rest.exceptions[0]
            raise error from error.__cause__
        raise rest from None


def _named(name: str, error: Exception) -> Exception:
    error.add_note(f"in actor '{name}'")
    return error


def _actor_of(error: Exception) -> str:
    return next(
        (note.removeprefix("in ") for note in getattr(error, "__notes__", ()) if note.startswith("in actor ")),
        "an actor",
    )
