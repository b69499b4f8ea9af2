"""Grading short answers in words, as question answering does since SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250) and Search-R1 with it (arXiv:2503.09516).

exact_match("The Seine.", ["Seine"])             1.0
f1("the river Seine", ["Seine"])                 0.667: of two words, one is right, and none is missing
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

Metric = Literal["exact_match", "f1", "contains"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MARKED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
LONGEST = 2000
"""Characters of an answer that are graded: nobody is right at greater length."""


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, one space between words. Beside SQuAD's rules: one way to write each letter (NFKC)."""
    lowered = unicodedata.normalize("NFKC", text).lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", lowered).split())


def final_answer(text: str) -> str:
    """What stands in the last `<answer>...</answer>`, where there is one; otherwise all of it."""
    found = _MARKED.findall(text[-LONGEST:])
    return (found[-1] if found else text[:LONGEST]).strip()


def exact_match(answer: str, references: Iterable[str]) -> float:
    """1 where the normalised answer is one of the references, 0 elsewhere."""
    said = normalised(answer)
    return float(any(said == normalised(reference) for reference in references))


def contains(answer: str, references: Iterable[str]) -> float:
    """1 where one of the references stands in the normalised answer, as whole words. An answer that lists everything is right by it: no reward to train on."""
    said = f" {normalised(answer)} "
    return float(any(f" {normalised(reference)} " in said for reference in references if normalised(reference)))


def f1(answer: str, references: Iterable[str]) -> float:
    """The best harmonic mean of precision and recall over the words of the normalised answer. "yes", "no" and "noanswer" match whole or not at all (HotpotQA)."""
    return max((_f1(normalised(answer), normalised(reference)) for reference in references), default=0.0)


def _f1(said: str, reference: str) -> float:
    if said == reference:
        return 1.0
    if {said, reference} & {"yes", "no", "noanswer"}:
        return 0.0
    words, wanted = said.split(), reference.split()
    common = sum((Counter(words) & Counter(wanted)).values())
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


METRICS: Mapping[str, Callable[[str, Iterable[str]], float]] = {
    "exact_match": exact_match,
    "f1": f1,
    "contains": contains,
}
