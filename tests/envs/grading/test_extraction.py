r"""Where the answer stands: \boxed{}, ####, "the answer is", formulas, the last number."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.grading.extraction import extract


@pytest.mark.parametrize(
    ("text", "answer", "how"),
    [
        (r"so it is \boxed{5}.", "5", "boxed"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", "boxed"),
        (r"first \boxed{1}, and after a long while of thinking about it \boxed{2}", "2", "boxed"),
        (r"\boxed{1} and \boxed{2}", "1, 2", "boxed"),
        (r"$\boxed{1}$, $\boxed{2}$", "1, 2", "boxed"),
        (r"\boxed{3} ... so again: \boxed{3}", "3", "boxed"),
        (r"\boxed{\boxed{7}}", "7", "boxed"),
        (r"\boxed{\text{a}\}b}", r"\text{a}\}b", "boxed"),
        (r"\boxed {8}", "8", "boxed"),
        (r"\fbox{9}", "9", "boxed"),
        (r"\boxed{4} but then \boxed{5", "4", "boxed"),
        ("<think>it may be \\boxed{3}</think>It is \\boxed{4}.", "4", "boxed"),
        ("Natalia sold 48/2 = 24 clips in May.\n#### 72", "72", "####"),
        ("#### 1\n#### 2 \n", "2", "####"),
        ("The answer is 42.", "42", "answer is"),
        ("The answer is 3.5. So we are done.", "3.5", "answer is"),
        ("The answer is $\\frac{1}{2}$.", r"\frac{1}{2}", "answer is"),
        ("The final answer is: $50$%", r"50\%", "answer is"),
        ("The answer is $1$ and $2$.", "1, 2", "answer is"),
        ("the answer is 5 because 2 + 3 = 5", "5", "answer is"),
        ("**Answer:** 12", "12", "answer is"),
        ("The answer is **12**", "12", "answer is"),
        ("Answer: x = 5", "x = 5", "answer is"),
        ("The solution is (1, 2)", "(1, 2)", "answer is"),
        ("Final answer: (B)", "(B)", "answer is"),
        ("The answer is 1,234 dollars.", "1,234 dollars", "answer is"),
        ("The answer is 1. No, the answer is 2.", "2", "answer is"),
        ("答案是 7", "7", "answer is"),
        ("2/4", "2/4", "whole"),
        (r"\frac{1}{2}", r"\frac{1}{2}", "whole"),
        ("$x = 1$ or $x = 2$", "$x = 1$ or $x = 2$", "whole"),
        ("Yes", "Yes", "whole"),
        ("no real solutions", "no real solutions", "whole"),
        ("I get $x^2$ and then $x=4$", "x=4", "formula"),
        ("Then \\[ y = 3 \\] which is what we wanted to show here.", "y = 3", "formula"),
        ("It took us 3 hours and then 5 more, so 8 in total", "8", "number"),
        ("We have 1/2 of the cake left after all of this", "1/2", "number"),
        ("we think that it must be -3 in the end", "-3", "number"),
        (r"it is \boxed{5 as far as I can see", "5", "number"),
        ("about 12.5% of them were left over then", "12.5%", "number"),
        ("all of it, 1,234,567 of them, was gone by then", "1,234,567", "number"),
    ],
)  # fmt: skip
def test_what_is_found(text: str, answer: str, how: str) -> None:
    found = extract(text)
    assert found is not None
    assert (found.text, found.how) == (answer, how)


@pytest.mark.parametrize("text", ["", "   ", "\\boxed{}", "####", "nothing to be found in this long sentence"])
def test_where_nothing_is_found(text: str) -> None:
    assert extract(text) is None


def test_prices_are_no_formulas() -> None:
    found = extract("He paid $5 for the first one and the other one, he says, cost him $6")
    assert found is not None
    assert (found.text, found.how) == ("6", "number")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=400))
def test_any_text(text: str) -> None:
    found = extract(text)
    assert found is None or found.text.strip()


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "{", "$", "$$", "\\(", "\\[", "answer is ", "1,", "1", "\\frac{", "#### ", " ", "\\boxed{1} and ", "</think>", "\\boxed{1}", "\n", "1.", "-"]
)  # fmt: skip
def test_long_texts_take_milliseconds(piece: str) -> None:
    text = (piece * 100_000)[:100_000]
    began = time.thread_time()
    extract(text)
    assert time.thread_time() - began < 0.05


def test_long_random_texts_take_milliseconds() -> None:
    rng = random.Random(0)
    pieces = ["\\boxed{", "}", "$", "\\[", "\\]", "answer is ", "12", ",", " ", "\n", "####", "x"]
    for _ in range(10):
        text = "".join(rng.choice(pieces) for _ in range(50_000))
        began = time.thread_time()
        extract(text)
        assert time.thread_time() - began < 0.05
