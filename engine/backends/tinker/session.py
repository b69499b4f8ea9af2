"""What training and sampling on one server share: the connection, the queue of submissions, patience, and counts."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Generic, TypeVar

import attrs

from engine.backends.errors import BackendError
from engine.backends.ports import Discarded
from engine.backends.tinker.failures import as_backend_error, is_missing
from engine.backends.tinker.options import TinkerOptions, expiry, whole_seconds
from engine.backends.tinker.patience import Patience
from engine.backends.tinker.sdk import Access, Sdk
from engine.backends.tinker.servers import Traits
from engine.backends.tinker.states import Kind, SavedState
from engine.backends.tinker.statuses import StatusCounter
from engine.backends.tinker.submissions import Operation, Submissions

T = TypeVar("T")


@attrs.define
class Counts:
    """What happened so far."""

    requests: int = 0
    """Sampling and scoring requests, attempts after the first not counted."""
    retries: int = 0
    """Attempts after the first, made here."""
    timeouts: int = 0
    cancelled: int = 0
    not_deleted: int = 0
    """Snapshots that could not be deleted on the server; they end with their time-to-live."""


@attrs.frozen(eq=False)
class Session:
    """An open server with one model on it."""

    sdk: Sdk
    service: Any
    rest: Any
    access: Access
    traits: Traits
    options: TinkerOptions
    model: str
    submissions: Submissions
    patience: Patience
    statuses: StatusCounter
    counts: Counts = attrs.field(factory=Counts)
    lock: threading.Lock = attrs.field(factory=threading.Lock)
    discarding: set[Future[None]] = attrs.field(factory=set)
    """Deletions under way."""

    @property
    def no_images(self) -> str | None:
        """Why inputs may hold no images; None: they may."""
        return None if self.traits.images else f"{self.access.server} reads text only"

    def pending(self, operation: Operation[T], what: str) -> Submission[T]:
        """Submits an operation in turn."""
        return Submission(self._counted(self.submissions.submit(_named(operation, what))), self, what)

    def aside(self, operation: Operation[T], what: str) -> Submission[T]:
        """Starts an operation that has no place in the order."""
        return Submission(self._counted(self.submissions.aside(_named(operation, what))), self, what)

    def _counted(self, future: Future[T]) -> Future[T]:
        future.add_done_callback(self._answered)
        return future

    def _answered(self, _: object) -> None:
        self.patience.answers += 1

    def saved(self, kind: Kind, path: str, version: int, time_to_live: float | None = None) -> SavedState:
        """The record of something saved on the server now."""
        expires = expiry(time_to_live)
        return SavedState(kind, path, version, self.model, self.options.lora_rank, self.access.server, expires)

    def lifetime(self, ttl: float | None) -> dict[str, int | None]:
        """The argument that asks for a time-to-live, for servers that know of one."""
        return {"ttl_seconds": whole_seconds(ttl)} if self.traits.expires else {}

    def delete(self, path: str) -> Future[Any]:
        """Asks the server to delete what lies at a path."""
        return self.sdk.future(self.rest.delete_checkpoint_from_tinker_path(whole_path(path)))


def deletions(ask: Callable[[str], Future[Any]], paths: Sequence[str]) -> Operation[Discarded]:
    """Asks for one after the other, whatever became of those before."""
    deleted: set[str] = set()
    missing: set[str] = set()
    kept: dict[str, str] = {}
    for path in paths:
        try:
            yield ask(path)
        except GeneratorExit:
            raise
        except Exception as error:  # noqa: BLE001  (told to whoever asked)
            if is_missing(error):
                missing.add(path)
            else:
                kept[path] = str(as_backend_error(error, f"deleting {path}"))
        else:
            deleted.add(path)
    return Discarded(frozenset(deleted), frozenset(missing), kept)


def whole_path(path: str) -> str:
    """A sampler's path with its middle part, which SkyRL leaves out."""
    scheme, _, rest = path.partition("://")
    parts = rest.split("/")
    return f"{scheme}://{parts[0]}/sampler_weights/{parts[1]}" if len(parts) == 2 else path


class Submission(Generic[T]):
    """Submitted work: a `Pending`."""

    def __init__(self, future: Future[T], session: Session, what: str) -> None:
        self.future = future
        self._session = session
        self._what = what

    async def result(self) -> T:
        """Waits for the work and returns its result, or raises what it failed with. May be awaited again.

        Raises TransientError when nothing at all that was submitted has been answered for `TinkerOptions.deadline` seconds, or the server is out of reach.
        """
        session = self._session
        await session.patience.wait(self.future, session.options.deadline, self._what, while_others_answer=True)
        return self.future.result()


def _named(operation: Operation[T], what: str) -> Operation[T]:
    """The operation, its errors as those of the ports."""
    try:
        return (yield from operation)
    except GeneratorExit:
        raise
    except BaseException as error:
        raise as_backend_error(error, what) from error


def discard(
    session: Session,
    *,
    model: str | None = None,
    paths: Sequence[str] = (),
    first: Callable[[], Future[Any]] | None = None,
) -> None:
    """Has the server free a model and delete what was saved, without waiting. A failure is counted, and keeps nobody from anything.

    `first`: what is asked of the model before.
    """

    asks: list[Callable[[], Future[Any] | None]] = [first] if first is not None else []
    if model is not None:
        asks.append(functools.partial(session.traits.unload, model))
    asks += [functools.partial(session.delete, path) for path in paths]

    def operation() -> Operation[None]:
        for ask in asks:
            try:
                future = ask()
                if future is not None:
                    yield future
            except GeneratorExit:
                raise
            except Exception:  # noqa: BLE001  (a server frees the models of a session that has ended, and what was not deleted expires)
                session.counts.not_deleted += 1

    with suppress(BackendError):  # closed
        future = session.submissions.aside(operation())
        session.discarding.add(future)
        future.add_done_callback(session.discarding.discard)
