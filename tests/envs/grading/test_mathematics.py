"""Properties of comparing answers: reflexive, symmetric where claimed, blind to white space and to LaTeX's dressing; exact arithmetic beside Python's own; bounded
work, whatever the text is; and nothing of a text is ever evaluated."""

from __future__ import annotations

import gc
import json
import random
import subprocess
import sys
import time
from fractions import Fraction

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from envs.grading.mathematics import numeric
from envs.grading.mathematics.deciding import QUICK_LENGTH, decide
from envs.grading.mathematics.exact import exact
from envs.grading.mathematics.intervals import intervals_of, same_intervals
from envs.grading.mathematics.lexing import LONGEST, Unreadable
from envs.grading.mathematics.polynomials import Fuel, Monster, TooHard
from envs.grading.mathematics.reading import read
from envs.grading.mathematics.trees import Words

quick = settings(max_examples=150, deadline=None)

# ---- formulas

whole = st.integers(-60, 60)
letters = st.sampled_from(["x", "y", "n", "\\alpha"])
decimals = st.builds(lambda a, b: f"{a}.{b:02d}", st.integers(0, 40), st.integers(0, 99))
fractions = st.builds(lambda a, b: f"\\frac{{{a}}}{{{b}}}", st.integers(1, 30), st.integers(2, 30))
surds = st.builds(lambda a, b: f"{a}\\sqrt{{{b}}}", st.integers(1, 9), st.integers(2, 40))
atoms = st.one_of(st.integers(0, 99).map(str), fractions, surds, letters, st.just("\\pi"))


def _compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds(lambda a, b: f"{a}+{b}", inner, inner),
        st.builds(lambda a, b: f"{a}-{b}", inner, atoms),
        st.builds(lambda a, b: f"({a})\\cdot({b})", inner, inner),
        st.builds(lambda a, b: f"\\frac{{{a}}}{{{b}}}", inner, atoms.filter(lambda each: each != "0")),
        st.builds(lambda a, n: f"({a})^{{{n}}}", inner, st.integers(2, 3)),
        st.builds(lambda a: f"\\sqrt{{{a}}}", atoms),
    )


expressions = st.recursive(atoms, _compound, max_leaves=5)
several = st.lists(expressions, min_size=2, max_size=4)
answers = st.one_of(
    expressions,
    whole.map(str),
    decimals,
    st.integers(1, 300).map(lambda n: f"{n}\\%"),
    several.map(lambda items: "\\{" + ", ".join(items) + "\\}"),
    several.map(lambda items: "(" + ", ".join(items) + ")"),
    st.builds(lambda a, b: f"[{a}, {a + b})", whole, st.integers(1, 20)),
    st.builds(lambda a, b: f"\\begin{{pmatrix}} {a} & {b} \\\\ 1 & {a} \\end{{pmatrix}}", expressions, expressions),
    expressions.map(lambda side: f"y = {side}"),
    st.builds(lambda n: f"{n}\\text{{ cm}}", st.integers(1, 99)),
)


@quick
@given(answers)
def test_reflexive(text: str) -> None:
    assert decide(text, text).verdict
    tree = read(text).tree
    assert decide(f"{text} ", text).verdict
    assert not isinstance(tree, Words)


def dressed(text: str, rng: random.Random) -> str:
    """The same formula, as somebody else would have typed it."""
    text = text.replace("\\frac", rng.choice(["\\frac", "\\dfrac", "\\tfrac"]))
    text = text.replace("\\cdot", rng.choice(["\\cdot ", "\\times ", "*"]))
    text = text.replace("+", rng.choice(["+", " + ", "\\,+\\,", "\n+ "])).replace(
        "=", rng.choice(["=", " = ", "\\ =\\ "])
    )
    if rng.random() < 0.5:
        text = text.replace("\\{", "\\left\\{").replace("\\}", "\\right\\}")
        if not ("[" in text and ")" in text):  # of a half-open interval as well, but one by one
            text = text.replace("(", "\\left(").replace(")", "\\right)")
    before, after = rng.choice(
        [("", ""), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("  ", " ."), ("\\displaystyle ", "")]
    )
    return before + text + after


@quick
@given(answers, st.integers(0, 2**32))
def test_blind_to_dressing(text: str, seed: int) -> None:
    other = dressed(text, random.Random(seed))
    found = decide(other, text)
    assert found.verdict, (text, other, found)


@quick
@given(answers, answers)
def test_symmetric(one: str, other: str) -> None:
    """Of expressions, sets, tuples, intervals, matrices: neither side is the reference's by nature. (Of equations and units the reference's form counts.)"""
    assume("y =" not in one + other and "cm" not in one + other)
    assert decide(one, other).verdict == decide(other, one).verdict


@quick
@given(st.lists(expressions, min_size=2, max_size=4, unique=True), st.randoms(use_true_random=False))
def test_sets_have_no_order_and_tuples_do(items: list[str], rng: random.Random) -> None:
    shuffled = items[:]
    rng.shuffle(shuffled)
    assert decide("\\{" + ", ".join(shuffled) + "\\}", "\\{" + ", ".join(items) + "\\}").verdict
    assert decide(", ".join(shuffled), "\\{" + ", ".join(items) + "\\}").verdict
    if decide(shuffled[0], items[0]).verdict is False:
        assert decide("(" + ", ".join(shuffled) + ")", "(" + ", ".join(items) + ")").verdict is False


# ---- arithmetic beside Python's own


@st.composite
def rational(draw: st.DrawFn, depth: int = 3) -> tuple[str, Fraction]:
    """A formula of rational numbers, and its value."""
    if not depth or draw(st.booleans()):
        top, bottom = draw(st.integers(-40, 40)), draw(st.integers(1, 12))
        return (f"({top})", Fraction(top)) if bottom == 1 else (f"\\frac{{{top}}}{{{bottom}}}", Fraction(top, bottom))
    (one, a), (other, b) = draw(rational(depth - 1)), draw(rational(depth - 1))
    sign = draw(st.sampled_from("+-*/^"))
    if sign == "/":
        assume(b != 0)
        return f"\\frac{{{one}}}{{{other}}}", a / b
    if sign == "^":
        n = draw(st.integers(0, 3))
        return f"({one})^{{{n}}}", a**n
    value = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return f"({one}) {sign} ({other})", value


@quick
@given(rational())
def test_rational_arithmetic(problem: tuple[str, Fraction]) -> None:
    text, value = problem
    written = f"{value.numerator}/{value.denominator}"
    assert exact(read(text).tree, Fuel(10**6)).rational == value
    assert decide(written, text).verdict
    assert decide(text, written).verdict
    assert decide(f"{value.numerator + 1}/{value.denominator}", text).verdict is False


@quick
@given(st.integers(1, 400), st.integers(1, 60))
def test_roots_are_taken_apart(inside: int, factor: int) -> None:
    text = f"\\sqrt{{{inside * factor * factor}}}"
    assert decide(text, f"{factor}\\sqrt{{{inside}}}").verdict
    assert decide(f"\\frac{{{factor * inside}}}{{\\sqrt{{{inside}}}}}", text).verdict
    if inside > 1:
        assert decide(text, f"{factor}\\sqrt{{{inside - 1}}}").verdict is False


@quick
@given(expressions, expressions)
def test_exact_arithmetic_agrees_with_numbers(one: str, other: str) -> None:
    """What exact arithmetic calls equal has equal values; what it calls different has not."""
    left, right = read(one).tree, read(other).tree
    verdict = decide(other, one).verdict
    agreed = numeric.agree(left, right)
    assert not (verdict is True and agreed is False), (one, other)
    assert not (verdict is False and agreed is True), (one, other)


@quick
@given(st.lists(st.tuples(whole, st.integers(1, 9), st.booleans(), st.booleans()), min_size=1, max_size=4))
def test_unions_are_sets_of_numbers(parts: list[tuple[int, int, bool, bool]]) -> None:
    """Beside membership, number by number."""
    text = " \\cup ".join(f"{'(' if a else '['}{low}, {low + size}{')' if b else ']'}" for low, size, a, b in parts)
    found = intervals_of(read(text).tree, Fuel(10**5))
    assert found is not None
    for half in range(-130, 150):
        x = half / 2
        expected = any(
            (low < x if a else low <= x) and (x < low + size if b else x <= low + size) for low, size, a, b in parts
        )
        inside = [
            each
            for each in found
            if (each.low.size < x if each.low_open else each.low.size <= x)
            and (x < each.high.size if each.high_open else x <= each.high.size)
        ]
        assert bool(inside) == expected
        assert len(inside) <= 1  # they are disjoint
    again = intervals_of(read(" \\cup ".join(reversed(text.split(" \\cup ")))).tree, Fuel(10**5))
    assert again is not None
    assert same_intervals(found, again)


# ---- whatever is written

PIECES = ["\\frac", "{", "}", "(", ")", "[", "]", "\\{", "\\}", "^", "_", "!", "%", "9", "12", ".5", ",", "x", "ab", "cm", "\\sqrt", "\\sin", "\\log", "=", "<",
          "\\le", "\\pm", "+", "-", "*", "/", "|", "\\cup", "\\in", "\\infty", "\\text{", "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\\\", "and", "$", "^\\circ",
          "\\overline", ":", "'", " ", "e", "i", "\\pi", "\\binom", "\\int", "__import__", "lambda", "\x00", "½", "²", "∞"]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=24).map("".join),
    st.sampled_from(["5", "x+1", "\\{1,2\\}", "[0,1)", "Yes"]),
)
@example("9" * 300, "5")
@example("(" * 200 + "5" + ")" * 200, "5")
@example("5" + "!" * 200, "5")
@example("1" + "/2" * 120, "5")
@example("x" + "^2" * 120, "5")
@example("-" * 250 + "5", "5")
@example("5" + "\\pm 5" * 40, "5")
@example("\\frac" * 40, "5")
@example("1," * 120, "5")
@example("((((x+y+z)^{30})^{30})^{30})^{30}", "5")
@example("\\{" * 100, "5")
def test_any_text_is_decided_or_left_in_bounded_time(text: str, reference: str) -> None:
    gc.disable()  # the garbage of all tests before is not this one's time
    try:
        began = time.thread_time()
        for answer, other in ((text, reference), (reference, text)):
            assert decide(answer[:QUICK_LENGTH], other[:QUICK_LENGTH]).verdict in (True, False, None)
        assert time.thread_time() - began < 0.05
    finally:
        gc.enable()


@quick
@given(st.text(max_size=120))
def test_any_unicode_text(text: str) -> None:
    assert decide(text, "5").verdict in (True, False, None)
    assert decide("5", text).verdict in (True, False, None)


@pytest.mark.parametrize(
    "text",
    [
        "9" * 100_000,
        "\\frac{1}" * 20_000,
        "(" * 100_000,
        "x" * 100_000,
        "{" * 50_000 + "}" * 50_000,
        "$" * 100_000,
        "1," * 50_000,
        " " * 100_000,
    ],
)
def test_long_texts_are_refused_at_once(text: str) -> None:
    began = time.thread_time()
    with pytest.raises(Unreadable):
        read(text)
    assert decide(text, "5").verdict is None
    assert time.thread_time() - began < 0.05
    assert len(text) > LONGEST


MONSTERS = [
    "9^{9^9}", "9**9**9", "9^{9^{9^9}}", "999999999!", "2**3**20", "(x+y+1)**80", "((x+y)**99)**9", "10^{10^{10^{10}}}", "((2^{99})^{99})^{99}", "5!!!!!",
    "\\binom{999999999}{499999999}", "(1+x)^{99999}", "2^{-9^{9^9}}", "\\frac{1}{0}", "(((x+1)^9+1)^9+1)^9", "x^{99999999999999999999999999}", "\\sqrt{9^{9^9}}",
    "1e400", "99999999999999999999^{99999999999999999999}",
]  # fmt: skip


@pytest.mark.parametrize("text", MONSTERS)
def test_monsters_are_told_before_they_are_computed(text: str) -> None:
    began = time.thread_time()
    found = decide(text, "5")
    assert time.thread_time() - began < 0.05
    assert found.verdict is False or "not read here" in found.reason
    assert decide(text, text).verdict  # as a reference it can still be met


def test_fuel_bounds_exact_arithmetic() -> None:
    tree = read("(a+b+c+d+e)^{12}").tree
    with pytest.raises(TooHard):
        exact(tree, Fuel(2000))
    with pytest.raises(Monster, match="factorial"):
        exact(read("1000!").tree, Fuel(2000))


HOSTILE = [
    "__import__('os').system('echo pwned')", "\\text{__import__('os')}", "\\operatorname{exec}(1)", "lambda: 0", "x.__class__", "open('/etc/passwd')", "\\input{/etc/passwd}",
    "\\write18{ls}", "1 if True else 2", "[x for x in range(10**9)]", "f'{1}'", "print(5)", "{1: 2}", "\\mathrm{eval}(2+3)", "5;import os", "2+3", "12", "0.5", "\\frac{12}{7}",
    "\\int_0^1 x dx", "\\sum_{k=1}^{9} k", "x^2=4", "a \\cdot b",
]  # fmt: skip

AUDIT = """
import json, sys
from envs.grading.mathematics import symbolic
from envs.grading.mathematics.symbolic import settle, warm_up
warm_up()
hostile = json.loads(sys.stdin.read())
for text in hostile:  # what sympy loads late, it loads now
    settle(text, "5"); settle("5", text)
seen = []
def hook(event, args):
    if watching and event in ("compile", "exec", "os.system", "subprocess.Popen", "open"):
        source = args[0] if event != "exec" else args[0].co_filename
        if event == "open" and str(source).endswith((".py", ".pyc")): return
        if event == "compile" and isinstance(source, bytes): source = source.decode(errors="replace")
        if event == "compile" and source is None: return      # from a syntax tree
        if event == "exec" and source != "<string>": return
        seen.append((event, str(source)[:200]))
watching = False
sys.addaudithook(hook)
watching = True
for text in hostile:
    settle(text, "5"); settle("5", text); settle(text + "+x", "x")
watching = False
print(json.dumps(seen))
"""


def test_nothing_is_evaluated() -> None:
    """The interpreter itself is asked: no source is compiled or executed while hostile answers go all the way to computer algebra, not even a number's digits."""
    done = subprocess.run(
        [sys.executable, "-c", AUDIT], input=json.dumps(HOSTILE), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.strip().splitlines()[-1]) == []
    assert "pwned" not in done.stdout + done.stderr
