"""Request and reply between actors: `await inbox.ask(question)` on one side, `async for ask in inbox` on the other.

Whatever happens to the answering side, nobody who asked waits forever: an inbox that closes fails what it has not answered.
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
        """The asker was cancelled: the reply is no longer wanted."""
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
        """Raises `error` at the asker."""
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
        if isinstance(error, Exception):
            self.fail(error)
            return True
        self.fail(NoReply(f"'{self._inbox}' gave no reply"))
        return False


class Inbox(Generic[Q, R]):
    """Where an actor is asked. The answering actor owns `receiver` and closes the inbox when it finishes."""

    def __init__(self, name: str, capacity: int) -> None:
        self.channel: Channel[Ask[Q, R]] = Channel(name, capacity)
        self._sender: Sender[Ask[Q, R]] = self.channel.sender()
        self._receiver: Receiver[Ask[Q, R]] = self.channel.receiver()
        self._unanswered: set[Ask[Q, R]] = set()
        self._closed = False

    async def ask(self, question: Q) -> R:
        """Waits for the answer. Raises NoReply when the answering actor has finished or finishes first, and whatever it failed the request with."""
        ask = await self.tell(question)
        return await ask._answer()  # noqa: SLF001

    async def tell(self, question: Q) -> Ask[Q, R]:
        """Sends a request without waiting for its answer."""
        ask: Ask[Q, R] = Ask(self.channel.name, question, self._unanswered)
        self._unanswered.add(ask)
        try:
            await self._sender.send(ask)
        except ConsumerFinished:
            self._unanswered.discard(ask)
            raise NoReply(f"'{self.channel.name}' has finished") from None
        except BaseException:
            self._unanswered.discard(ask)
            raise
        return ask

    def finish(self) -> None:
        """No more requests: the answering loop ends after those already sent."""
        self._sender.close()

    def close(self) -> None:
        """Ends the answering side; whoever still waits gets NoReply."""
        if self._closed:
            return
        self._closed = True
        self._sender.close()
        self._receiver.close()
        for ask in tuple(self._unanswered):
            ask.fail(NoReply(f"'{self.channel.name}' finished without a reply"))

    def __aiter__(self) -> Inbox[Q, R]:
        return self

    async def __anext__(self) -> Ask[Q, R]:
        return await self._receiver.__anext__()
