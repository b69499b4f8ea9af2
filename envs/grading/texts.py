"""Graders of text, and several graders' scores as one."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import anyio
import attrs

from engine.retrieval import Embedder
from envs.grading.extraction import Found, extract
from envs.grading.grade import Failure, Grade, Grader

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


@attrs.frozen
class Normalization:
    """What makes no difference between two texts. White space never does."""

    case: bool = False
    """Capitals matter."""
    punctuation: bool = False
    """Punctuation matters."""
    articles: bool = False
    """a, an and the matter."""
    accents: bool = True
    """Accents matter."""

    def __call__(self, text: str) -> str:
        text = unicodedata.normalize("NFKC", text)
        if not self.accents:
            text = "".join(each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))
        if not self.case:
            text = text.casefold()
        if not self.punctuation:
            text = "".join(" " if unicodedata.category(each)[0] == "P" else each for each in text)
        if not self.articles:
            text = _ARTICLES.sub(" ", text)
        return " ".join(text.split())


@attrs.frozen
class ExactMatch:
    """1 where the answer is the reference, but for what `normalization` takes away. Of several references any will do."""

    normalization: Normalization = attrs.field(factory=Normalization)
    extract_answer: bool = False
    """Look for the answer in the text (`envs.grading.extraction`), instead of taking all of it."""

    async def grade(self, answer: str, reference: str | Sequence[str]) -> Grade:
        """See `Grader.grade`."""
        if self.extract_answer:
            answer = (extract(answer) or Found("", "whole")).text
        said = self.normalization(answer)
        wanted = _listed(reference)
        found = bool(said) and any(said == self.normalization(each) for each in wanted)
        return Grade(float(found), f"{said[:80]!r} is {'' if found else 'not '}{_or(wanted)}")


@attrs.frozen
class Contains:
    """1 where the reference stands in the answer, as whole words. Of several references any will do, or all must be there."""

    need: Literal["any", "all"] = "any"
    normalization: Normalization = attrs.field(factory=Normalization)
    within: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """Only the last so many characters are looked at: an answer that lists everything contains everything."""

    async def grade(self, answer: str, reference: str | Sequence[str]) -> Grade:
        """See `Grader.grade`."""
        said = f" {self.normalization(answer if self.within is None else answer[-self.within :])} "
        wanted = _listed(reference)
        there = [bool(name := self.normalization(each)) and f" {name} " in said for each in wanted]
        found = bool(there) and (any(there) if self.need == "any" else all(there))
        missing = [each for each, is_there in zip(wanted, there, strict=True) if not is_there]
        return Grade(float(found), "it is in it" if found else f"{_or(missing)} is not in it")


@attrs.frozen
class Similarity:
    """The cosine similarity of answer and reference, as an embedder sees them: how alike they are in meaning, or with `HashingEmbedder` in spelling.

    From `low` (scored 0) to `high` (scored 1), linear in between; with `low == high` a threshold.
    """

    embedder: Embedder
    low: float = 0.0
    high: float = 1.0
    longest: int = attrs.field(default=8000, validator=attrs.validators.ge(1))
    """Characters that are embedded, from the end."""

    def __attrs_post_init__(self) -> None:
        if not -1.0 <= self.low <= self.high <= 1.0:
            raise ValueError(f"Similarity: low and high are cosines with low <= high, not {self.low} and {self.high}")

    async def grade(self, answer: str, reference: str | Sequence[str]) -> Grade:
        """See `Grader.grade`. Of several references the most similar one counts."""
        wanted = _listed(reference)
        if not answer.strip() or not wanted:
            return Grade(0.0, "there is no answer")
        embedded_N_D = await self.embedder.embed([answer[-self.longest :], *wanted])
        said_D, wanted_N_D = embedded_N_D[0], embedded_N_D[1:]
        cosines = [_cosine(said_D, each_D) for each_D in wanted_N_D]
        best = max(cosines)
        if self.high > self.low:
            score = min(1.0, max(0.0, (best - self.low) / (self.high - self.low)))
        else:
            score = float(best >= self.high)
        return Grade(score, f"similarity {best:.3f}", {"similarity": best})


def _cosine(one_D: Any, other_D: Any) -> float:
    norm = math.sqrt(float(one_D @ one_D) * float(other_D @ other_D))
    return float(one_D @ other_D) / norm if norm else 0.0


@attrs.frozen
class Part:
    """A grader in a combination."""

    grader: Grader
    weight: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))


class Weighted:
    """Several graders' scores as one: their mean, by weight. They grade at the same time.

    `required` names those without which the others count for nothing: where one of them gives 0, so does the whole (a well-formed wrong answer is wrong).
    """

    def __init__(
        self, parts: Mapping[str, Grader | tuple[Grader, float] | Part], *, required: Sequence[str] = ()
    ) -> None:
        """`parts`: by name a grader, or a grader with its weight. Raises ValueError for none, and for a required one that is not among them."""
        if not parts:
            raise ValueError("Weighted: there is no grader to weigh")
        unknown = [name for name in required if name not in parts]
        if unknown:
            raise ValueError(f"Weighted: {unknown[0]!r} is required, but is none of {', '.join(parts)}")
        self._parts = {name: _as_part(part) for name, part in parts.items()}
        self._required = tuple(required)

    async def grade(self, answer: str, reference: str) -> Grade:
        """See `Grader.grade`. `details` has each part's score and reason; a part whose grading failed counts as its own grade says."""
        grades: dict[str, Grade] = {}

        async def one(name: str, part: Part) -> None:
            grades[name] = await part.grader.grade(answer, reference)

        async with anyio.create_task_group() as tasks:
            for name, part in self._parts.items():
                tasks.start_soon(one, name, part)
        total = sum(part.weight for part in self._parts.values())
        score = sum(part.weight * grades[name].score for name, part in self._parts.items()) / total
        lacking = [name for name in self._required if not grades[name].score]
        told = "; ".join(f"{name} {grades[name].score:g} ({grades[name].reason})" for name in self._parts)
        failure: Failure | None = next((grades[name].failure for name in self._parts if grades[name].failure), None)
        details = {name: {"score": grades[name].score, "reason": grades[name].reason} for name in self._parts}
        if lacking:
            return Grade(0.0, f"nothing without {lacking[0]}: {told}", details, failure)
        return Grade(score, told, details, failure)


def _as_part(part: Grader | tuple[Grader, float] | Part) -> Part:
    if isinstance(part, Part):
        return part
    return Part(*part) if isinstance(part, tuple) else Part(part)


@attrs.frozen
class Boxed:
    r"""1 where the answer stands in `\boxed{}`: a reward for form."""

    async def grade(self, answer: str, reference: str = "") -> Grade:  # noqa: ARG002  (the port's)
        """See `Grader.grade`."""
        found = extract(answer)
        boxed = found is not None and found.how == "boxed"
        return Grade(float(boxed), "boxed" if boxed else "not boxed")


def _listed(reference: str | Sequence[str]) -> list[str]:
    return [reference] if isinstance(reference, str) else list(reference)


def _or(texts: Sequence[str]) -> str:
    return " or ".join(repr(text[:80]) for text in texts)
