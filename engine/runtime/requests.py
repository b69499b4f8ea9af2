"""Request and reply between actors: `await inbox.ask(question)` on one side, `async for ask in inbox` on the other.

Whatever happens to the answering side, nobody who asked waits forever: an inbox that closes fails what it has not answered.

In a program, the answering actor has the `Inbox` among its arguments and each asking actor an `Asker` of its own (`inbox.asker()`): both are
closed when their actor finishes. When the last asker is closed, the answering loop ends; when the inbox is closed, askers get `NoReply`.
"""

from __future__ import annotations

from types import TracebackType
from typing import Generic, TypeVar

import anyio

from engine.runtime.channels import Channel, ConsumerFinished, Receiver, Sender

Q = TypeVar("Q")
R = TypeVar("R")


class NoReply(Exception):
    """The actor that was asked finished, or dropped the request, without a reply."""


class Ask(Generic[Q, R]):
    """One request, as the answering actor sees it. Use as a context manager: leaving without a reply fails the asker with NoReply,
    leaving with an exception fails the asker with that exception (and does not propagate it)."""

    def __init__(self, inbox: str, question: Q, unanswered: set[Ask[Q, R]]) -> None:
        self.question = question
        self.abandoned = False
        """The asker was cancelled: the reply is no longer wanted, and is ignored."""
        self._inbox = inbox
        self._unanswered = unanswered
        self._answered = anyio.Event()
        self._reply: R | None = None
        self._error: BaseException | None = None

    def reply(self, answer: R) -> None:
        """Gives the answer. A second one raises RuntimeError."""
        self._settle()
        self._reply = answer

    def fail(self, error: BaseException) -> None:
        """Raises `error` at the asker. After an answer it raises RuntimeError here."""
        self._settle()
        self._error = error

    def _settle(self) -> None:
        if self._answered.is_set():
            raise RuntimeError(f"a request to '{self._inbox}' was answered twice")
        self._answered.set()
        self._unanswered.discard(self)

    async def _answer(self) -> R:
        try:
            await self._answered.wait()
        except BaseException:
            self.abandoned = True
            self._unanswered.discard(self)
            raise
        if self._error is not None:
            raise self._error
        return self._reply  # type: ignore[return-value]  # set together with the event

    def __enter__(self) -> Q:
        return self.question

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._answered.is_set():
            return False
        # ConsumerFinished stops the answering actor quietly; raised at the asker it would stop the wrong one.
        if isinstance(error, Exception) and not isinstance(error, ConsumerFinished):
            self.fail(error)
            return True
        self.fail(NoReply(f"'{self._inbox}' gave no reply"))
        return False


class Inbox(Generic[Q, R]):
    """Where an actor is asked. It belongs to the answering actor, which closes it when it finishes."""

    def __init__(self, name: str, capacity: int) -> None:
        """`capacity`: most requests that wait to be received."""
        self.channel: Channel[Ask[Q, R]] = Channel(name, capacity)
        self._sender: Sender[Ask[Q, R]] = self.channel.sender()
        self._receiver: Receiver[Ask[Q, R]] = self.channel.receiver()
        self._unanswered: set[Ask[Q, R]] = set()
        self._askers = 0
        self._sending = 0
        self._finishing = False

    def asker(self) -> Asker[Q, R]:
        """An asking end of its own; when all that were handed out are closed, the inbox takes no more requests (`finish`)."""
        if self._finishing:
            raise RuntimeError(f"'{self.channel.name}' takes no more requests, so it has no use for another asker")
        self._askers += 1
        return Asker(self)

    async def ask(self, question: Q) -> R:
        """Waits for the answer. Raises NoReply when the answering actor has finished or finishes first, and whatever it failed the request with."""
        ask = await self.tell(question)
        return await ask._answer()  # noqa: SLF001

    async def tell(self, question: Q) -> Ask[Q, R]:
        """Sends a request without waiting for its answer. Raises NoReply when the answering actor has finished."""
        if self._finishing:
            raise NoReply(f"'{self.channel.name}' has finished")
        ask: Ask[Q, R] = Ask(self.channel.name, question, self._unanswered)
        self._unanswered.add(ask)
        self._sending += 1
        try:
            await self._sender.send(ask)
        except (ConsumerFinished, anyio.ClosedResourceError):
            self._unanswered.discard(ask)
            raise NoReply(f"'{self.channel.name}' has finished") from None
        except BaseException:
            self._unanswered.discard(ask)
            raise
        finally:
            self._sending -= 1
            self._close_sender_when_done()
        return ask

    def finish(self) -> None:
        """No more requests: the answering loop ends after those already made. Later ones get NoReply."""
        self._finishing = True
        self._close_sender_when_done()

    def close(self) -> None:
        """Ends the answering side; whoever still waits gets NoReply."""
        self._finishing = True
        self._receiver.close()
        self._sender.close()
        for ask in tuple(self._unanswered):
            ask.fail(NoReply(f"'{self.channel.name}' finished without a reply"))

    def _close_sender_when_done(self) -> None:
        if self._finishing and not self._sending:  # closing it earlier would break the requests that wait for room
            self._sender.close()

    def _asker_closed(self) -> None:
        self._askers -= 1
        if not self._askers:
            self.finish()

    def __aiter__(self) -> Inbox[Q, R]:
        return self

    async def __anext__(self) -> Ask[Q, R]:
        while True:
            ask = await self._receiver.__anext__()
            if not ask.abandoned:  # nobody wants the answer to the others
                return ask


class Asker(Generic[Q, R]):
    """An asking end of an inbox, closed by whoever has it."""

    def __init__(self, inbox: Inbox[Q, R]) -> None:
        self.inbox = inbox
        self._closed = False

    @property
    def channel(self) -> Channel[Ask[Q, R]]:
        """The channel behind the inbox."""
        return self.inbox.channel

    async def ask(self, question: Q) -> R:
        """See `Inbox.ask`."""
        return await self.inbox.ask(question)

    async def tell(self, question: Q) -> Ask[Q, R]:
        """See `Inbox.tell`."""
        return await self.inbox.tell(question)

    def close(self) -> None:
        """Gives the end up. When it was the last, the answering loop ends after the requests already made."""
        if not self._closed:
            self._closed = True
            self.inbox._asker_closed()  # noqa: SLF001
