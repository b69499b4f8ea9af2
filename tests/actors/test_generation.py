"""Answers written as training data: what is kept, in which order, and that nothing is asked twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from actors import SamplerSettings, StopRequest
from actors.generation import ANSWERS, DROPPED, PARTIAL, Generated, GenerationSettings, generate_answers
from engine.backends import SamplingParams
from engine.backends.errors import BackendError, RequestRejected, TransientError
from engine.completion import Reply
from engine.data import load_rows, read_conversations
from engine.rendering import Message, ThinkingPart, assistant, system, user
from engine.rendering.messages import TextPart
from engine.runtime.testing import every_cancellation, simulate
from engine.storage.run_directory import RunDirectoryError

PROMPTS = [(user(f"What is {number} and 1?"),) for number in range(6)]


class Teacher:
    """Answers after a while that depends on the question; remembers what it was asked."""

    def __init__(self, breaks: Any = None) -> None:
        self.asked: list[tuple[str, int]] = []
        self.messages: list[Sequence[Message]] = []
        self.under_way = self.most = 0
        self._breaks = breaks

    async def complete(
        self, messages: Sequence[Message], *, params: SamplingParams, seed: int, tools: Sequence[Any] = ()
    ) -> Reply:
        text = messages[-1].text
        number = int(text.split()[2])
        self.asked.append((text, seed))
        self.messages.append(messages)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await anyio.sleep(1 + (seed % 7) / 10 - number / 100)
            if self._breaks is not None and (reply := self._breaks(number, len(self.asked))) is not None:
                return reply
        finally:
            self.under_way -= 1
        return Reply(assistant([ThinkingPart(f"{number}+1"), TextPart(f"{number + 1} by {seed % 1000}")]))


def generate(teacher: Teacher, path: Path, seed: int = 0, **options: Any) -> Generated:
    settings = options.pop("settings", GenerationSettings(samples=2, concurrency=3))

    async def program() -> Generated:
        return await generate_answers(PROMPTS, teacher, path, settings, **options)

    return simulate(program, seed=seed, horizon=1e4).unwrap()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_written_in_order_as_data_to_train_on(tmp_path: Path) -> None:
    texts = set()
    for seed in range(3):
        directory, teacher = tmp_path / str(seed), Teacher()
        told: list[tuple[int, int]] = []
        generated = generate(teacher, directory, seed, progress=lambda *counts, told=told: told.append(counts))
        assert (generated.kept, generated.asked, generated.complete, generated.dropped) == (12, 12, True, {})
        assert teacher.most == 3
        assert sorted(told) == [(done, 12) for done in range(1, 13)]
        assert [(row["index"], row["sample"]) for row in rows(generated.path)] == [
            (i, k) for i in range(6) for k in (0, 1)
        ]
        texts.add(generated.path.read_text())
        assert not (directory / PARTIAL).exists()
    assert len(texts) == 1  # whatever came first
    conversation = read_conversations(load_rows(generated.path))[3]
    assert conversation.messages[0].text == "What is 1 and 1?"
    assert conversation.messages[1].thinking == "1+1"
    assert conversation.messages[1].text.startswith("2 by ")
    assert len({row["messages"][1]["content"] for row in rows(generated.path)}) == 12  # two samples are two answers


def test_what_is_asked_may_differ_from_what_is_learnt(tmp_path: Path) -> None:
    teacher = Teacher()
    generated = generate(teacher, tmp_path, asked=lambda prompt: (system("Long rules."), *prompt))
    assert {messages[0].text for messages in teacher.messages} == {"Long rules."}
    assert {row["messages"][0]["role"] for row in rows(generated.path)} == {"user"}


def test_what_is_not_kept_is_counted_with_its_reason(tmp_path: Path) -> None:
    replies = {
        0: Reply(assistant("cut"), stop_reason="length"),
        1: Reply(assistant("odd"), well_formed=False),
        2: Reply(assistant("  ")),
    }
    generated = generate(Teacher(lambda number, _: replies.get(number)), tmp_path)
    assert generated.dropped == {"cut off": 2, "not well formed": 2, "empty": 2}
    assert generated.kept == 6
    assert str(generated) == "6 answers kept, 2 dropped: cut off, 2 dropped: empty, 2 dropped: not well formed"
    assert {row["dropped"] for row in rows(tmp_path / DROPPED)} == set(generated.dropped)
    wrong = generate(
        Teacher(),
        tmp_path / "wrong",
        keep=lambda index, prompt, reply: None if index < 5 else f"no {prompt[0].text[:4]}",
    )
    assert (wrong.kept, wrong.dropped) == (10, {"no What": 2})


def test_nothing_is_asked_twice_wherever_it_is_cut_off(tmp_path: Path) -> None:
    whole = generate(Teacher(), tmp_path / "whole").path.read_text()
    number = 0
    teachers: list[Teacher] = []

    async def program() -> Generated:
        nonlocal number
        number += 1
        teachers.append(Teacher())
        return await generate_answers(
            PROMPTS, teachers[-1], tmp_path / str(number), GenerationSettings(samples=2, concurrency=3)
        )

    resumed = set()
    for report in every_cancellation(program, stride=11, horizon=1e4):
        assert report.error is None
        assert teachers[-1].under_way == 0
        directory = tmp_path / str(number)
        written = rows(directory / PARTIAL) if (directory / PARTIAL).exists() else []
        if (directory / ANSWERS).exists():
            written = rows(directory / ANSWERS)
        again = Teacher()
        generated = generate(again, directory)
        assert generated.path.read_text() == whole
        assert generated.asked == len(again.asked) == 12 - len(written)
        assert not {row["messages"][0]["content"] for row in written if "messages" in row} & {
            text for text, _ in again.asked if sum(row["messages"][0]["content"] == text for row in written) == 2
        }
        resumed.add(len(written))
    assert len(resumed) > 4


def test_a_stop_leaves_what_is_there_for_the_next_call(tmp_path: Path) -> None:
    stop = StopRequest()

    def after_four(number: int, asked: int) -> None:
        if asked >= 4:
            stop()

    generated = generate(Teacher(after_four), tmp_path, stop=stop)
    assert not generated.complete
    assert 0 < generated.kept < 12
    assert not (tmp_path / ANSWERS).exists()
    teacher = Teacher()
    assert generate(teacher, tmp_path).kept == 12
    assert len(teacher.asked) == 12 - generated.kept


def test_answers_to_other_prompts_are_not_taken_for_these(tmp_path: Path) -> None:
    generate(Teacher(), tmp_path)

    async def others(prompts: Any) -> Generated:
        return await generate_answers(prompts, Teacher(), tmp_path, GenerationSettings(samples=2))

    with pytest.raises(RunDirectoryError, match="holds 12 answers where 10 are wanted"):
        simulate(others, PROMPTS[:5]).unwrap()
    with pytest.raises(RunDirectoryError, match="to another prompt than prompt 0; choose another directory"):
        simulate(others, PROMPTS[::-1]).unwrap()
    assert generate(Teacher(), tmp_path).asked == 0


def test_failures_that_may_pass_are_tried_again_and_others_counted(tmp_path: Path) -> None:
    failed: set[int] = set()

    def breaks(number: int, _: int) -> None:
        if number == 2 and number not in failed:
            failed.add(number)
            raise TransientError("busy")
        if number == 3:
            raise RequestRejected("not this")

    generated = generate(Teacher(breaks), tmp_path)
    assert generated.dropped == {"failed: RequestRejected": 2}
    assert generated.kept == 10
    assert generated.asked == 12


def test_a_teacher_that_never_answers_ends_the_work_and_what_is_there_stays(tmp_path: Path) -> None:
    def breaks(number: int, asked: int) -> None:
        if asked > 4:
            raise TransientError("gone")

    settings = GenerationSettings(
        samples=2, concurrency=3, failure_limit=3, retries=SamplerSettings(attempts=2, backoff=0.1)
    )
    with pytest.raises(ExceptionGroup) as raised:
        generate(Teacher(breaks), tmp_path, settings=settings)
    (error,) = raised.value.exceptions
    assert isinstance(error, BackendError)
    assert "asking for an answer failed 2 times, the last time with: gone" in str(error)
    kept = rows(tmp_path / PARTIAL)
    assert kept
    assert not any("dropped" in row for row in kept)
    assert generate(Teacher(), tmp_path).asked == 12 - len(kept)
