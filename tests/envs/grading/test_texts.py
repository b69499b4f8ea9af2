"""Graders of text, and combinations."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import attrs
import numpy as np
import pytest

from engine.retrieval import HashingEmbedder
from envs.grading import Boxed, Contains, ExactMatch, Grade, Normalization, Part, Similarity, Weighted

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("answer", "reference", "options", "score"),
    [
        ("Paris", "paris", {}, 1.0),
        ("  The  Eiffel Tower. ", "eiffel tower", {}, 1.0),
        ("Lyon", "Paris", {}, 0.0),
        ("paris", "Paris", {"case": True}, 0.0),
        ("U.S.A.", "U S A", {}, 1.0),
        ("U.S.A.", "USA", {"punctuation": True}, 0.0),
        ("the end", "end", {"articles": True}, 0.0),
        ("café", "cafe", {}, 0.0),
        ("café", "cafe", {"accents": False}, 1.0),
        ("ＡＢＣ", "abc", {}, 1.0),
        ("", "", {}, 0.0),
        ("...", "!", {}, 0.0),
        ("Paris", ["London", "Paris"], {}, 1.0),
        ("Paris", [], {}, 0.0),
    ],
)
async def test_exact_match(answer: str, reference: str | Sequence[str], options: dict[str, bool], score: float) -> None:
    assert (await ExactMatch(Normalization(**options)).grade(answer, reference)).score == score


async def test_exact_match_of_the_answer_in_a_text() -> None:
    grader = ExactMatch(extract_answer=True)
    assert (await grader.grade("After some thought, the answer is Paris.", "paris")).score == 1.0
    assert (await grader.grade("", "paris")).score == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "options", "score"),
    [
        ("It is Paris, of course", "paris", {}, 1.0),
        ("It is comparison", "paris", {}, 0.0),
        ("Paris and London", ["London", "Rome"], {}, 1.0),
        ("Paris and London", ["London", "Rome"], {"need": "all"}, 0.0),
        ("Rome and London", ["London", "Rome"], {"need": "all"}, 1.0),
        ("Paris. " + "x" * 50, "Paris", {"within": 20}, 0.0),
        ("anything", [], {"need": "all"}, 0.0),
        ("anything", "...", {}, 0.0),
    ],
)
async def test_contains(answer: str, reference: str | Sequence[str], options: dict[str, object], score: float) -> None:
    assert (await Contains(**options).grade(answer, reference)).score == score  # type: ignore[arg-type]


async def test_similarity() -> None:
    embedder = HashingEmbedder()
    same = await Similarity(embedder).grade("the cat sat on the mat", "the cat sat on the mat")
    near = await Similarity(embedder).grade("a cat sat on a mat", "the cat sat on the mat")
    far = await Similarity(embedder).grade("quantum chromodynamics", "the cat sat on the mat")
    assert same.score == pytest.approx(1.0)
    assert same.score > near.score > far.score >= 0.0
    assert near.details["similarity"] == pytest.approx(near.score)
    best = await Similarity(embedder).grade("a cat sat on a mat", ["something else", "the cat sat on the mat"])
    assert best.score == pytest.approx(near.score)
    assert (await Similarity(embedder).grade(" ", "the cat")).score == 0.0


async def test_similarity_between_two_marks_and_as_a_threshold() -> None:
    @attrs.frozen
    class Fixed:
        dimensions = 2
        unit_norm = False

        async def embed(self, texts: Sequence[str], *, purpose: str = "document") -> np.ndarray:
            angles = np.array([0.0 if text == "a" else np.pi / 3 for text in texts])
            return np.stack([3 * np.cos(angles), 3 * np.sin(angles)], axis=1).astype(np.float32)

    assert (await Similarity(Fixed(), low=0.25, high=0.75).grade("a", "b")).score == pytest.approx(0.5)
    assert (await Similarity(Fixed(), low=0.5001, high=1.0).grade("a", "b")).score == 0.0
    assert (await Similarity(Fixed(), low=0.49, high=0.49).grade("a", "b")).score == 1.0
    assert (await Similarity(Fixed(), low=0.51, high=0.51).grade("a", "b")).score == 0.0
    with pytest.raises(ValueError, match="low <= high"):
        Similarity(Fixed(), low=0.9, high=0.1)


@attrs.define
class Gives:
    score: float
    seconds: float = 0.0
    grade_given: Grade | None = None

    async def grade(self, answer: str, reference: str) -> Grade:
        await anyio.sleep(self.seconds)
        return self.grade_given or Grade(self.score, f"given {self.score:g}")


async def test_weights() -> None:
    grader = Weighted({"a": (Gives(1.0), 3.0), "b": Gives(0.5), "c": Part(Gives(0.0), 1.0)})
    grade = await grader.grade("x", "y")
    assert grade.score == pytest.approx((3 * 1.0 + 0.5 + 0.0) / 5)
    assert grade.reason == "a 1 (given 1); b 0.5 (given 0.5); c 0 (given 0)"
    assert grade.details["b"] == {"score": 0.5, "reason": "given 0.5"}


async def test_nothing_without_what_is_required() -> None:
    grader = Weighted({"answer": (Gives(0.0), 0.5), "form": (Gives(1.0), 0.5)}, required=["answer"])
    assert (await grader.grade("x", "y")).score == 0.0
    assert (await Weighted({"answer": Gives(0.0), "form": Gives(1.0)}).grade("x", "y")).score == 0.5
    for wrong in ({}, {"a": Gives(1.0)}):
        with pytest.raises(ValueError, match="Weighted"):
            Weighted(wrong, required=["b"])


async def test_a_failure_of_a_part_is_told() -> None:
    grader = Weighted({"a": Gives(1.0), "b": Gives(0.0, 0.0, Grade(0.0, "too slow", failure="budget"))})
    grade = await grader.grade("x", "y")
    assert (grade.score, grade.failure) == (0.5, "budget")


async def test_parts_are_graded_at_the_same_time(anyio_backend: object) -> None:
    if anyio_backend == ("asyncio", {}):
        pytest.skip("on the virtual clock alone")
    began = anyio.current_time()
    await Weighted({str(n): Gives(1.0, seconds=5.0) for n in range(8)}).grade("x", "y")
    assert anyio.current_time() - began == pytest.approx(5.0)


async def test_boxed() -> None:
    assert (await Boxed().grade(r"\boxed{3}")).score == 1.0
    assert (await Boxed().grade("3")).score == 0.0
