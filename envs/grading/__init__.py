r"""How answers are graded: mathematics, text, rubrics and judges; each gives a `Grade`, and a combination of them does too.

    async with open_math_grader(budget=2.0) as maths:
        grader = Weighted({"answer": (maths, 0.9), "form": (Boxed(), 0.1)}, required=["answer"])
        grade = await grader.grade(r"... \boxed{\frac{2}{4}}", "1/2")

| grader | compares by |
|---|---|
| `open_math_grader`, `MathGrader` | value: fractions, surds, sets, intervals, matrices, equations, units, words; in a budget that kills |
| `ExactMatch`, `Contains` | text, but for case, punctuation and articles |
| `Similarity` | the cosine of two embeddings |
| `Boxed` | form |
| `Weighted` | several of these |
| `envs.grading.judges`, `envs.grading.rubrics` | what a model says of it |
"""

from __future__ import annotations

from envs.grading.extraction import Found, extract
from envs.grading.grade import Failure, Grade, Grader
from envs.grading.math_grader import PRELOAD, MathCounts, MathGrader, bare_reference, open_math_grader, require_math
from envs.grading.texts import Boxed, Contains, ExactMatch, Normalization, Part, Similarity, Weighted

__all__ = [
    "PRELOAD",
    "Boxed",
    "Contains",
    "ExactMatch",
    "Failure",
    "Found",
    "Grade",
    "Grader",
    "MathCounts",
    "MathGrader",
    "Normalization",
    "Part",
    "Similarity",
    "Weighted",
    "bare_reference",
    "extract",
    "open_math_grader",
    "require_math",
]
