"""Judges: verdicts are read strictly, asked for again, and never invented."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import anyio
import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.backends import BackendError, SamplingParams, TransientError
from engine.completion import Reply, ScriptedCompleter
from engine.rendering import Message, RenderError, assistant, user
from engine.runtime.testing import every_cancellation, simulate
from envs.grading.judges import Judge, JudgeFailed, JudgeSettings, NoVerdict, Scale, choice_of, score_on

ASKED = (user("How good is 5?"),)
SCORE = score_on(Scale(0, 10))


# ---- reading


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<score>7</score>", 7),
        ("It is 3 of 10, no: \n<score> 7.0 </score>\n", 7),
        ("<SCORE>7</SCORE>", 7),
        ("<score>7/10</score>", 7),
        ("first <score>7</score>, so <score>7</score>", 7),
        ("<score>0</score>", 0),
        ("<score>+10</score>", 10),
    ],
)
def test_a_score_that_is_there(text: str, score: float) -> None:
    assert SCORE(text) == score


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "there is no <score>…</score>"),
        ("7", "there is no <score>"),
        ("score: 7", "there is no <score>"),
        ("<score>7", "there is no <score>"),
        ("<score></score>", "'' is no number"),
        ("<score>seven</score>", "'seven' is no number"),
        ("<score>7 of 10</score>", "is no number"),
        ("<score>7/5</score>", "is no number"),
        ("<score>1e1</score>", "is no number"),
        ("<score>nan</score>", "is no number"),
        ("<score>٧</score>", "is no number"),
        ("<score>7.5</score>", "7.5 is no whole number"),
        ("<score>11</score>", "11 is not a whole number from 0 to 10"),
        ("<score>−1</score>", "-1 is not a whole number from 0 to 10"),
        ("<score>7</score> or rather <score>8</score>", "2 different verdicts: '7', '8'"),
        ("<score>" + "9" * 5000 + "</score>", "is no number"),
    ],
)
def test_a_score_that_is_not(text: str, problem: str) -> None:
    with pytest.raises(NoVerdict, match=problem.replace("(", r"\(")):
        SCORE(text)


@given(st.integers(-50, 50), st.integers(1, 50), st.data())
def test_what_a_scale_allows_is_read_and_lies_between_0_and_1(lowest: int, size: int, data: st.DataObject) -> None:
    scale = Scale(lowest, lowest + size)
    score = data.draw(st.integers(lowest - 5, lowest + size + 5))
    text = f"<score>{score}</score>"
    if lowest <= score <= lowest + size:
        assert score_on(scale)(text) == score
        assert 0 <= scale.share(score) <= 1
    else:
        with pytest.raises(NoVerdict):
            score_on(scale)(text)


def test_scales() -> None:
    assert score_on(Scale(0, 1, whole=False))("<score>0.25</score>") == 0.25
    assert Scale(1, 5).share(3) == 0.5
    assert str(Scale(1, 5)) == "a whole number from 1 to 5"
    with pytest.raises(ValueError, match="not from 1 to 1"):
        Scale(1, 1)


def test_choices() -> None:
    verdict = choice_of(("A", "B", "TIE"))
    assert verdict("so <verdict>tie</verdict>") == "TIE"
    with pytest.raises(NoVerdict, match="'C' is none of A, B, TIE"):
        verdict("<verdict>C</verdict>")
    with pytest.raises(NoVerdict, match="different verdicts"):
        verdict("<verdict>A</verdict><verdict>B</verdict>")


# ---- asking


class Completes:
    """Answers by `reply(seed, temperature)` after `seconds`; keeps how it was asked."""

    def __init__(self, reply: Callable[[int, float], str | Reply | Exception], seconds: float = 0.0) -> None:
        self.reply = reply
        self.seconds = seconds
        self.asked: list[tuple[int, SamplingParams]] = []
        self.now = self.most = 0

    async def complete(
        self, messages: Sequence[Message], *, params: SamplingParams, seed: int, tools: Sequence[object] = ()
    ) -> Reply:
        self.asked.append((seed, params))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await anyio.sleep(self.seconds)
        finally:
            self.now -= 1
        given = self.reply(len(self.asked), params.temperature)
        if isinstance(given, Exception):
            raise given
        return given if isinstance(given, Reply) else Reply(assistant(given))


@pytest.mark.anyio
async def test_what_cannot_be_read_is_asked_for_again_with_another_seed_and_some_temperature() -> None:
    replies = ["no idea", "<score>a</score>", "<score>6</score>"]
    completer = Completes(lambda number, _: replies[number - 1])
    judge = Judge(completer, JudgeSettings(max_tokens=99, attempts=3, retry_temperature=0.5))
    assert await judge.ask(ASKED, SCORE) == 6
    seeds = [seed for seed, _ in completer.asked]
    assert len(set(seeds)) == 3
    assert [params.temperature for _, params in completer.asked] == [0, 0.5, 0.5]
    assert {params.max_tokens for _, params in completer.asked} == {99}
    assert attrs.asdict(judge.counts) == {"questions": 1, "remembered": 0, "replies": 3, "retries": 2, "failed": 0}
    # The same question is asked with the same seed, another one with another.
    again, other = Completes(lambda *_: "<score>6</score>"), Completes(lambda *_: "<score>6</score>")
    await Judge(again).ask(ASKED, SCORE)
    await Judge(other).ask([user("How good is 6?")], SCORE)
    assert again.asked[0][0] == seeds[0] != other.asked[0][0]


@pytest.mark.anyio
async def test_a_judge_without_a_verdict_has_failed_and_is_never_taken_to_say_nothing() -> None:
    judge = Judge(ScriptedCompleter(lambda _: "It is fine. " * 40), JudgeSettings(attempts=2), name="the strict one")
    with pytest.raises(
        JudgeFailed,
        match=r"the strict one gave no verdict in 2 attempts: there is no <score>…</score> .* it said 'It is fine",
    ):
        await judge.ask(ASKED, SCORE)
    assert judge.counts.failed == 1
    cut = Judge(Completes(lambda *_: Reply(assistant("Let me"), "length")), JudgeSettings(attempts=1, max_tokens=2))
    with pytest.raises(JudgeFailed, match="cut off at 2 tokens"):
        await cut.ask(ASKED, SCORE)


@pytest.mark.anyio
async def test_reasons_are_not_the_verdict() -> None:
    text = "<think>maybe <score>1</score></think> <score>9</score>"
    assert await Judge(ScriptedCompleter(lambda _: text)).ask(ASKED, SCORE) == 9
    thought = Reply(assistant("<score>9</score>", thinking="<score>1</score>"))
    assert await Judge(ScriptedCompleter(lambda _: thought)).ask(ASKED, SCORE) == 9


@pytest.mark.anyio
async def test_passing_failures_are_attempts_and_lasting_ones_are_not_tried_again() -> None:
    judge = Judge(Completes(lambda number, _: TransientError("busy") if number == 1 else "<score>1</score>"))
    assert await judge.ask(ASKED, SCORE) == 1
    for error in (BackendError("too long"), RenderError("no images")):
        completer = Completes(lambda *_, error=error: error)
        with pytest.raises(JudgeFailed, match=f"judge cannot be asked this: {error}"):
            await Judge(completer).ask(ASKED, SCORE)
        assert len(completer.asked) == 1
    with pytest.raises(JudgeFailed, match="3 attempts: TransientError: busy"):
        await Judge(Completes(lambda *_: TransientError("busy"))).ask(ASKED, SCORE)
    with pytest.raises(TypeError):  # a bug is no verdict and no failed judge
        await Judge(Completes(lambda *_: TypeError("a bug"))).ask(ASKED, SCORE)


def test_a_reply_that_takes_too_long_is_an_attempt() -> None:
    judge = Judge(Completes(lambda *_: "<score>1</score>", seconds=5), JudgeSettings(timeout=2, attempts=2))
    report = simulate(judge.ask, ASKED, SCORE)
    with pytest.raises(JudgeFailed, match=r"a reply of judge did not finish within 2 s"):
        report.unwrap()
    assert report.seconds == 4


def test_questions_are_asked_concurrently_within_the_bound() -> None:
    completer = Completes(lambda *_: "<score>1</score>", seconds=1)

    async def program() -> None:
        judge = Judge(completer, JudgeSettings(concurrency=3))
        async with anyio.create_task_group() as tasks:
            for number in range(7):
                tasks.start_soon(judge.ask, [user(str(number))], SCORE)

    report = simulate(program)
    report.unwrap()
    assert (completer.most, report.seconds) == (3, 3)


# ---- remembering


def test_the_same_question_is_asked_once_where_asked_for_even_at_the_same_time() -> None:
    for seed in range(20):
        completer = Completes(lambda *_: "<score>1</score>", seconds=1)
        judge = Judge(completer, JudgeSettings(cache=8))

        async def program(judge: Judge = judge) -> list[float]:
            found: list[float] = []

            async def one() -> None:
                found.append(await judge.ask(ASKED, SCORE))

            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(one)
            found.append(await judge.ask(ASKED, SCORE))
            return found

        report = simulate(program, seed=seed)
        assert report.unwrap() == [1.0] * 6
        assert (len(completer.asked), report.seconds, judge.counts.remembered) == (1, 1, 5)
        assert not judge._asking


@pytest.mark.anyio
async def test_without_a_cache_every_question_is_asked() -> None:
    completer = Completes(lambda *_: "<score>1</score>")
    judge = Judge(completer)
    for _ in range(3):
        await judge.ask(ASKED, SCORE)
    assert len(completer.asked) == 3


@pytest.mark.anyio
async def test_failures_are_not_remembered_and_the_least_used_is_forgotten() -> None:
    completer = Completes(lambda number, _: "nothing" if number == 1 else "<score>1</score>")
    judge = Judge(completer, JudgeSettings(cache=2, attempts=1))
    with pytest.raises(JudgeFailed):
        await judge.ask(ASKED, SCORE)
    one, two, three = ([user(text)] for text in "123")
    for asked in (one, two, one, three, one, two):  # two was used least when three came
        await judge.ask(asked, SCORE)
    assert len(completer.asked) == 1 + 4


@pytest.mark.anyio
async def test_another_kind_of_verdict_on_the_same_question_is_asked_for() -> None:
    completer = Completes(lambda number, _: "<score>1</score>" if number == 1 else "<verdict>A</verdict>")
    judge = Judge(completer, JudgeSettings(cache=2, attempts=1))
    assert await judge.ask(ASKED, SCORE) == 1
    assert await judge.ask(ASKED, choice_of(("A", "B"))) == "A"
    assert len(completer.asked) == 2


def test_who_waits_for_a_reply_that_is_cancelled_asks_for_it() -> None:
    def program() -> Callable[[], Awaitable[None]]:
        completer = Completes(lambda *_: "<score>1</score>", seconds=1)
        judge = Judge(completer, JudgeSettings(cache=8))

        async def run() -> None:
            async with anyio.create_task_group() as tasks:

                async def first() -> None:
                    with anyio.move_on_after(0.5):
                        await judge.ask(ASKED, SCORE)

                tasks.start_soon(first)
                tasks.start_soon(judge.ask, ASKED, SCORE)
            assert completer.now == 0
            assert not judge._asking
            assert len(judge._known) == 1

        return run

    for seed in range(20):
        simulate(program(), seed=seed).unwrap()

    async def anew() -> None:
        await program()()

    for report in every_cancellation(anew):
        assert report.cancelled or report.error is None
