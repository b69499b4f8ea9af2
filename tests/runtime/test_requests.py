"""Requests: every asker gets its answer, an error or NoReply, and nobody waits forever."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import anyio
import pytest

from engine.runtime import Ask, ConsumerFinished, Inbox, NoReply, Program, simulate
from engine.runtime.testing import every_cancellation, schedules


async def _double(inbox: Inbox[int, int]) -> None:
    async for ask in inbox:
        with ask as number:
            ask.reply(2 * number)
    inbox.close()


@pytest.mark.anyio
async def test_an_answer_comes_back() -> None:
    inbox: Inbox[int, int] = Inbox("doubler", 1)
    async with anyio.create_task_group() as group:
        group.start_soon(_double, inbox)
        assert [await inbox.ask(number) for number in range(5)] == [0, 2, 4, 6, 8]
        inbox.finish()


@pytest.mark.anyio
async def test_a_request_can_be_sent_without_waiting_for_its_answer() -> None:
    inbox: Inbox[str, None] = Inbox("notices", 2)
    await inbox.tell("a")
    await inbox.tell("b")
    inbox.finish()
    seen = []
    async for ask in inbox:
        with ask as notice:
            seen.append(notice)
            ask.reply(None)
    inbox.close()
    assert seen == ["a", "b"]


@pytest.mark.anyio
async def test_a_failed_request_fails_its_asker_alone() -> None:
    inbox: Inbox[int, int] = Inbox("divider", 4)

    async def divide() -> None:
        async for ask in inbox:
            with ask as number:
                ask.reply(12 // number)
        inbox.close()

    async with anyio.create_task_group() as group:
        group.start_soon(divide)
        with pytest.raises(ZeroDivisionError):
            await inbox.ask(0)
        assert await inbox.ask(4) == 3, "the answering loop goes on"
        inbox.finish()


@pytest.mark.anyio
async def test_a_request_failed_by_hand() -> None:
    inbox: Inbox[int, int] = Inbox("refuser", 1)

    async def refuse() -> None:
        async for ask in inbox:
            ask.fail(LookupError("no such number"))
            with pytest.raises(RuntimeError, match="a request to 'refuser' was answered twice"):
                ask.reply(1)
            with pytest.raises(RuntimeError, match="answered twice"):
                ask.fail(ValueError())
        inbox.close()

    async with anyio.create_task_group() as group:
        group.start_soon(refuse)
        with pytest.raises(LookupError, match="no such number"):
            await inbox.ask(1)
        inbox.finish()


@pytest.mark.anyio
async def test_a_dropped_request_gets_no_reply() -> None:
    inbox: Inbox[int, int] = Inbox("forgetful", 1)

    async def forget() -> None:
        async for ask in inbox:
            with ask:
                pass
        inbox.close()

    async with anyio.create_task_group() as group:
        group.start_soon(forget)
        with pytest.raises(NoReply, match="'forgetful' gave no reply"):
            await inbox.ask(1)
        inbox.finish()


@pytest.mark.anyio
async def test_an_error_after_the_reply_is_the_answering_actors_own() -> None:
    inbox: Inbox[int, int] = Inbox("clumsy", 1)
    await inbox.tell(1)
    ask = await anext(inbox)
    with pytest.raises(ZeroDivisionError), ask:
        ask.reply(2)
        raise ZeroDivisionError
    inbox.close()


@pytest.mark.anyio
async def test_a_quiet_stop_while_answering_is_not_the_askers() -> None:
    """ConsumerFinished raised at the asker would stop the asker, quietly and wrongly."""
    inbox: Inbox[int, int] = Inbox("relay", 1)
    outcome: list[BaseException] = []

    async def ask() -> None:
        try:
            await inbox.ask(1)
        except NoReply as error:
            outcome.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        request = await anext(inbox)
        with pytest.raises(ConsumerFinished), request:
            raise ConsumerFinished("downstream")
    inbox.close()
    assert [str(error) for error in outcome] == ["'relay' gave no reply"]


@pytest.mark.anyio
async def test_closing_fails_whoever_waits_wherever_the_request_is() -> None:
    """Received and not answered, waiting in the inbox, waiting for room: all get NoReply, and so do later ones."""
    inbox: Inbox[int, int] = Inbox("leaver", 1)
    outcomes: list[str] = []

    async def ask(number: int) -> None:
        try:
            await inbox.ask(number)
        except NoReply as error:
            outcomes.append(str(error))

    async with anyio.create_task_group() as group:
        group.start_soon(ask, 0)
        await anext(inbox)
        for number in range(1, 4):
            group.start_soon(ask, number)
        await anyio.wait_all_tasks_blocked()
        assert inbox.channel.statistics().depth == 1
        inbox.close()
    assert len(outcomes) == 4
    assert all("'leaver'" in outcome for outcome in outcomes)
    with pytest.raises(NoReply, match="'leaver' has finished"):
        await inbox.ask(4)
    with pytest.raises(NoReply, match="'leaver' has finished"):
        await inbox.tell(4)
    inbox.close()
    assert not inbox._unanswered


@pytest.mark.anyio
async def test_finishing_lets_requests_through_that_were_made_before() -> None:
    inbox: Inbox[int, int] = Inbox("doubler", 1)
    answers: list[int] = []

    async def ask(number: int) -> None:
        answers.append(await inbox.ask(number))

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(ask, number)
        await anyio.wait_all_tasks_blocked()  # one waits in the inbox, four for room in it
        inbox.finish()
        with pytest.raises(NoReply, match="'doubler' has finished"):
            await inbox.ask(5)
        await _double(inbox)
    assert sorted(answers) == [0, 2, 4, 6, 8]


@pytest.mark.anyio
async def test_the_last_asker_to_close_ends_the_answering_loop() -> None:
    inbox: Inbox[int, int] = Inbox("doubler", 4)
    first, second = inbox.asker(), inbox.asker()
    answers: list[int] = []
    ended = anyio.Event()

    async def answer() -> None:
        await _double(inbox)
        ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(answer)
        answers.append(await first.ask(1))
        first.close()
        first.close()
        await anyio.wait_all_tasks_blocked()
        assert not ended.is_set(), "closing one asker twice is closing one asker"
        answers.append(await second.ask(2))
        second.close()
        with anyio.fail_after(5):
            await ended.wait()
    assert answers == [2, 4]
    with pytest.raises(RuntimeError, match="'doubler' takes no more requests"):
        inbox.asker()


@pytest.mark.anyio
async def test_an_asker_that_gives_up_is_known_to_the_answering_actor() -> None:
    inbox: Inbox[int, int] = Inbox("slow", 4)
    async with anyio.create_task_group() as group:
        group.start_soon(inbox.ask, 1)
        ask = await anext(inbox)
        assert not ask.abandoned
        group.cancel_scope.cancel()
    assert ask.abandoned
    ask.reply(2)  # ignored, and no error
    inbox.close()


@pytest.mark.anyio
async def test_a_request_abandoned_before_it_was_received_is_not_received() -> None:
    inbox: Inbox[int, int] = Inbox("slow", 4)
    async with anyio.create_task_group() as group:
        group.start_soon(inbox.ask, 1)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    await inbox.tell(2)
    inbox.finish()
    assert [ask.question async for ask in inbox] == [2]
    inbox.close()


@pytest.mark.parametrize("capacity", [0, 1, 8])
def test_many_askers_under_many_schedules(capacity: int) -> None:
    async def program() -> dict[int, int]:
        inbox: Inbox[int, int] = Inbox("doubler", capacity)
        answers: dict[int, int] = {}

        async def ask(asker: Any, first: int) -> None:
            for number in range(first, first + 5):
                answers[number] = await asker.ask(number)

        async def answer(inbox: Inbox[int, int]) -> None:
            async for request in inbox:
                with request as number:
                    await anyio.sleep(number % 3)
                    request.reply(2 * number)

        program = Program("doubling")
        program.actor("doubler", answer, inbox)
        for index in range(6):
            program.actor(f"asker {index}", ask, inbox.asker(), 10 * index)
        await program.run()
        assert not inbox._unanswered
        return answers

    expected = {number: 2 * number for index in range(6) for number in range(10 * index, 10 * index + 5)}
    for report in schedules(program, count=50):
        assert report.unwrap() == expected


@pytest.mark.parametrize("capacity", [0, 2])
def test_cancelled_anywhere_no_asker_waits_forever(capacity: int) -> None:
    """The answering side is cancelled at every step of the run; the askers, shielded, all hear of it."""
    outcomes: dict[int, str] = {}

    async def program() -> None:
        outcomes.clear()
        inbox: Inbox[int, int] = Inbox("doubler", capacity)

        async def ask(number: int) -> None:
            try:
                outcomes[number] = str(await inbox.ask(number))
            except NoReply:
                outcomes[number] = "no reply"

        async def askers() -> None:
            with anyio.CancelScope(shield=True):
                async with anyio.create_task_group() as group:
                    for number in range(4):
                        group.start_soon(ask, number)
                inbox.finish()

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(askers)
                try:
                    async for request in inbox:
                        with request as number:
                            await anyio.sleep(1)
                            request.reply(2 * number)
                finally:
                    inbox.close()
        finally:
            inbox.close()

    seen = set()
    for seed in range(3):
        for report in every_cancellation(program, seed=seed, horizon=1000):
            report.unwrap()  # a deadlock would be an error
            assert all(outcome in (str(2 * number), "no reply") for number, outcome in outcomes.items())
            assert len(outcomes) in (0, 4)
            seen.update(outcomes.values())
    assert {"no reply", "0", "6"} <= seen


@pytest.mark.anyio
async def test_no_request_is_kept_when_it_is_settled() -> None:
    inbox: Inbox[int, int] = Inbox("doubler", 1)
    kept: list[weakref.ref[Ask[int, int]]] = []

    async def answer() -> None:
        async for ask in inbox:
            kept.append(weakref.ref(ask))
            with ask as number:
                ask.reply(2 * number)
            del ask
        inbox.close()

    async with anyio.create_task_group() as group:
        group.start_soon(answer)
        for number in range(20):
            await inbox.ask(number)
        assert not inbox._unanswered
        inbox.finish()
    gc.collect()
    assert len(kept) == 20
    assert [reference() for reference in kept] == [None] * 20


def test_an_inbox_in_a_program_belongs_to_the_actor_that_answers() -> None:
    """An asking actor that finishes first does not close the inbox for the others; an answering actor that fails fails the run, not silently."""

    async def program(fails: bool) -> list[int]:
        inbox: Inbox[int, int] = Inbox("doubler", 0)
        answers: list[int] = []

        async def ask(asker: Any, pause: float) -> None:
            await anyio.sleep(pause)
            answers.append(await asker.ask(int(pause)))

        async def answer(inbox: Inbox[int, int]) -> None:
            async for request in inbox:
                if fails and request.question == 2:
                    raise LookupError("two")
                with request as number:
                    request.reply(2 * number)

        program = Program("doubling")
        for pause in (1.0, 2.0, 3.0):
            program.actor(f"asker {pause}", ask, inbox.asker(), pause)
        program.actor("doubler", answer, inbox)
        await program.run()
        return answers

    for report in schedules(program, False, count=20):
        assert report.unwrap() == [2, 4, 6]
    for report in schedules(program, True, count=20):
        assert [type(error) for error in report.error.exceptions] == [LookupError]
        assert "actor 'doubler'" in str(report.error)


def test_waiting_for_an_answer_costs_no_wakeups() -> None:
    async def program() -> None:
        inbox: Inbox[int, int] = Inbox("slow", 1)

        async def answer() -> None:
            async for request in inbox:
                with request as number:
                    await anyio.sleep(36_000)
                    request.reply(number)
            inbox.close()

        async with anyio.create_task_group() as group:
            group.start_soon(answer)
            await inbox.ask(1)
            inbox.finish()

    report = simulate(program)
    report.unwrap()
    assert report.seconds == 36_000
    assert report.steps < 20
