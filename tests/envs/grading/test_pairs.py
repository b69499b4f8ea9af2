"""Labelled pairs of reference and answer, written by hand over all kinds of answers (`pairs.jsonl`); and math-verify beside us on each of them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from envs.grading.mathematics.deciding import decide
from envs.grading.mathematics.symbolic import settle

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
KINDS = sorted({pair["kind"] for pair in PAIRS})

# Where math-verify, called directly on the two formulas, does not say what the label says. Every one of them is here, by reason; `test_oracle` fails for
# one that is not, and for one that is no longer.
DISAGREEMENTS: dict[str, list[tuple[str, str]]] = {
    "it does not know this notation": [
        ("1234", r"1\,234"),
        (r"\[42\]", "42"),
        ("3 1/2", "7/2"),
        ("½", "1/2"),
        (r"\frac{13}{99}", r"0.\overline{13}"),
        (r"\frac{1}{6}", r"0.1\overline{6}"),
        (r"\nicefrac{1}{4}", "0.25"),
        ("1.5e3", "1500"),
        ("2√3", r"2\sqrt{3}"),
        (r"\lg 100", "2"),
        ("sin(x)", r"\sin x"),
        (r"\langle 1, 2 \rangle", "(1, 2)"),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "[[1,2],[3,4]]"),
        (r"\{x \mid x > 1\}", "x > 1"),
        ("1:2:3", "2:4:6"),
        (r"\emptyset", r"\varnothing"),
        ("x", "x^1"),
    ],
    "it takes the first of three parts for the whole ratio": [("1:2:3", "1:3:2")],
    "it compares numbers rounded to six places, however small they are": [("0.000001", "0.0000012")],
    "it computes in double precision": [(r"6.02 \times 10^{23}", "602000000000000000000000")],
    "it drops units that it knows, whatever they are": [
        (r"5 \text{ cm}", r"5 \text{ m}"),
        (r"12 \text{ cm}^2", r"12 \text{ cm}^3"),
        (r"3 \text{ kg}", "3 s"),
    ],
    "it converts no units, and does not know all of them": [
        (r"5\,\mathrm{cm}", "5 centimeters"),
        (r"100 \text{ cm}", r"1 \text{ m}"),
        (r"1 \text{ km}", "1000 m"),
        (r"2 \text{ hours}", r"120 \text{ minutes}"),
        (r"90 \text{ min}", r"1.5 \text{ hours}"),
        (r"12 \text{ cm}^2", "12 cm^2"),
        (r"12 \text{ cm}^2", "12 square centimeters"),
        (r"60 \text{ mph}", "60 miles per hour"),
        (r"10 \text{ m/s}", "36 km/h"),
        ("7 days", "1 week"),
        (r"3 \text{ kg}", "3000 g"),
        ("25 mL", "0.025 L"),
        ("€20", "20 euros"),
        (r"\$5", "500 cents"),
    ],
    "the dollar of a price ends its formula": [(r"\$5", "5"), (r"\$5", "$5"), (r"\$5.00", "5 dollars")],
    "variables are real to it on one side and complex on the other": [
        (r"\sqrt{-4}", "2i"),
        ("(1+i)^2", "2i"),
        (r"\frac{1}{i}", "-i"),
        (r"e^{i\pi}", "-1"),
    ],
    "its cube root of a negative number is a complex one": [(r"\sqrt[3]{-8}", "-2")],
    "it drops the base of a numeral": [("101_2", "101_3")],
    "it reads an inequality in the answer as one, where the reference is an interval": [
        (r"[0, \infty)", r"x \ge 0"),
        (r"(-\infty, 3)", "x < 3"),
        ("(1, 3]", r"1 < x \le 3"),
        ("1 < x < 3", "3 > x > 1"),
        (r"(-\infty, -1) \cup (1, \infty)", "x < -1 or x > 1"),
        ("[-1, 1]", r"-1 \le x \le 1"),
        ("2x < 6", "x < 3"),
    ],
    "it compares values of variables without their names": [("x = 1, y = 2", "(2, 1)")],
    "it reads words as products of letters, or not at all": [
        (r"\emptyset", "no solution"),
        (r"(-\infty, \infty)", "all real numbers"),
        ("Evelyn", "evelyn."),
        ("five", "5"),
        ("5", "five"),
        ("true", "True"),
        ("the square", "square"),
        ("Option A", "A"),
    ],
    "it reads what it can of a formula that is not complete": [("5", "5+")],
}
# These would take math-verify minutes, or for ever.
TOO_MUCH_FOR_IT = ("9^", "999999", "2**3", "**80", "**99", "10^{10")


def judged(pair: dict[str, Any]) -> tuple[bool, str]:
    found = decide(pair["answer"], pair["reference"])
    if found.verdict is not None:
        return found.verdict, "at once"
    return settle(pair["answer"], pair["reference"])


def test_there_are_enough_of_every_kind() -> None:
    counts = Counter(pair["kind"] for pair in PAIRS)
    assert len(PAIRS) >= 400
    assert len({(pair["reference"], pair["answer"]) for pair in PAIRS}) == len(PAIRS)
    assert min(counts.values()) >= 6
    assert 0.3 < sum(pair["equal"] for pair in PAIRS) / len(PAIRS) < 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_labels(kind: str) -> None:
    wrong = {
        (pair["reference"], pair["answer"]): judged(pair)
        for pair in PAIRS
        if pair["kind"] == kind and judged(pair)[0] != pair["equal"]
    }
    assert wrong == {}


def test_most_are_decided_at_once() -> None:
    left = [pair for pair in PAIRS if decide(pair["answer"], pair["reference"]).verdict is None]
    assert len(left) < 0.08 * len(PAIRS)


@pytest.mark.slow
def test_oracle() -> None:
    """Whatever math-verify gets right is right here; whatever it gets wrong is listed above, with the reason."""
    math_verify = pytest.importorskip("math_verify")
    logging.getLogger("math_verify").setLevel(logging.ERROR)

    def says(pair: dict[str, Any]) -> bool:
        gold, said = (math_verify.parse("$" + pair[side].replace("$", "") + "$") for side in ("reference", "answer"))
        return bool(math_verify.verify(gold, said))

    asked = [pair for pair in PAIRS if not any(much in pair["answer"] + pair["reference"] for much in TOO_MUCH_FOR_IT)]
    assert len(asked) > 480
    explained = {pair for pairs in DISAGREEMENTS.values() for pair in pairs}
    found = {(pair["reference"], pair["answer"]) for pair in asked if says(pair) != pair["equal"]}
    assert found - explained == set(), "not explained"
    assert explained - found == set(), "no longer so"
