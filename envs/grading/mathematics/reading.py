r"""From text to a tree: a recursive-descent reader of mathematical notation, LaTeX or typed. Nothing is evaluated, and nothing of Python's or sympy's own
parsers is used: text is only ever compared with words of our own grammar.

    row       item (, | ; | and | or) item ...                 x = 1 or x = 2        1, 2, 3
    item      set ∪ set ...
    relation  ratio (= | < | ...) ratio ...                    1 < x <= 3
    ratio     sum : sum ...
    sum       product (+ | - | ±) product ...
    product   power (· | / | nothing) power ...                2x        1/2        3\frac{1}{2} (a mixed number)        5 \text{ cm}
    power     primary ^ exponent, and what follows it: ! % ' _

Depth and length are bounded, and every token is looked at a bounded number of times.
"""

from __future__ import annotations

import functools

import attrs

from envs.grading.mathematics.lexing import LONGEST, Unreadable, lex
from envs.grading.mathematics.quantities import AND, Quantities
from envs.grading.mathematics.things import ACCENTS, BINOMIALS, CONSTANTS, FRACTIONS, negated, over, times
from envs.grading.mathematics.trees import (
    Call,
    Group,
    Num,
    Percent,
    PlusMinus,
    Pow,
    Prod,
    Quantity,
    Ratio,
    Relation,
    Sum,
    Sym,
    Tree,
    Union,
    Words,
)
from envs.grading.mathematics.words import FUNCTIONS, plain_words

_RELATIONS = {
    "=": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "~": "~", "\\le": "<=", "\\leq": "<=", "\\leqslant": "<=", "\\ge": ">=", "\\geq": ">=",
    "\\geqslant": ">=", "\\lt": "<", "\\gt": ">", "\\ne": "!=", "\\neq": "!=", "\\approx": "~", "\\in": "in", "\\colon=": "=",
}  # fmt: skip
_TIMES = frozenset(("*", "\\cdot", "\\times", "\\ast", "\\cdotp"))
_OVER = frozenset(("/", "\\div"))
_CURRENCY = frozenset("$€£¥")
_DEGREES = frozenset(("\\circ", "\\degree"))


@attrs.frozen
class Reading:
    """What a text says."""

    tree: Tree
    doubtful: bool = False
    """Others may read it otherwise: 1/2x, a logarithm without a base, (1,234)."""


@functools.lru_cache(maxsize=4096)
def read(text: str) -> Reading:
    """What an answer says: mathematics where it can be read as that, words otherwise.

    Raises Unreadable for what is empty, too long or too deep, and for mathematics that is beyond this grammar (integrals, sums, limits).
    """
    if len(text) > LONGEST:
        raise Unreadable(f"{len(text)} characters are more than {LONGEST}")
    text = _undressed(text)
    if not text:
        raise Unreadable("there is nothing in it")
    if (
        text.isalpha()
        and text.isascii()
        and len(text) > 1
        and text.lower() not in ("pi", "oo", "inf", "infinity", "infty")
    ):
        return Reading(Words(plain_words(text)))
    try:
        reader = Reader(lex(text))
        tree = reader.everything()
    except Unreadable:
        if not _is_words(text):
            raise
        return Reading(Words(plain_words(text)))
    return Reading(tree, reader.doubtful)


def read_without_commas(text: str) -> Reading | None:
    """As `read`, with every comma between numbers taken for a separator; None where that is no other reading."""
    if "," not in text or len(text) > LONGEST:
        return None
    try:
        text = _undressed(text)
        tokens = lex(text, commas=False)
        if tokens == lex(text):
            return None
        reader = Reader(tokens)
        tree = reader.everything()
        return Reading(tree, reader.doubtful)
    except Unreadable:
        return None


def _undressed(text: str) -> str:
    text = text.strip()
    while text[-1:] in (".", ",", ";") and text[-2:] != "\\.":
        text = text[:-1].rstrip()
    while text[:1] == "=":
        text = text[1:].lstrip()
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`")):
        if (
            text.startswith(left)
            and text.endswith(right)
            and len(text) > len(left) + len(right)
            and left not in text[len(left) : -len(right)]
        ):
            return _undressed(text[len(left) : -len(right)])
    return text


def _is_words(text: str) -> bool:
    """Whether it may be an answer in words: letters, mostly, and no notation that only mathematics has."""
    words = plain_words(text)
    letters = sum(letter.isalpha() or letter in " -'" for letter in words)
    return 0 < len(words) <= 200 and letters >= 0.6 * len(words) and not any(sign in words for sign in "\\^_{}=<>")


class Reader(Quantities):
    """One pass over the tokens."""

    def everything(self) -> Tree:
        """All of the text."""
        tree = self._row("<end>")
        if self._next.kind != "end":
            raise Unreadable(f"{self._next.text!r} is left over")
        return tree

    def _row(self, closing: str) -> Tree:
        items = [self._item()]
        while self._separator():
            if self._key() == closing:  # a comma at the end
                break
            items.append(self._item())
        return items[0] if len(items) == 1 else Group("", "", tuple(items))

    def _separator(self) -> bool:
        found = False
        while True:
            if self._accept(",", ";", "\\land", "\\lor", "\\wedge", "\\vee", "\\\\"):
                found = True
            elif self._next.kind in ("word", "text") and self._next.text.casefold().strip(" ,") in AND:
                self._at += 1
                found = True
            else:
                return found

    def _item(self) -> Tree:
        parts = [self._relation()]
        while self._accept("\\cup"):
            parts.append(self._relation())
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        if isinstance(first, Relation) and first.ops[-1] == "in":  # x in A ∪ B
            return Relation(first.ops, (*first.sides[:-1], Union((first.sides[-1], *parts[1:]))))
        return Union(tuple(parts))

    def _relation(self) -> Tree:
        sides, ops = [self._ratio()], []
        while (op := _RELATIONS.get(self._key())) is not None:
            self._at += 1
            ops.append(op)
            if op == "=" and self._next.kind == "end":  # "x =" says nothing
                raise Unreadable("nothing stands behind =")
            sides.append(self._ratio())
        return Relation(tuple(ops), tuple(sides)) if ops else sides[0]

    def _ratio(self) -> Tree:
        parts = [self._sum()]
        while self._key() == ":" and not isinstance(parts[0], Sym):
            self._at += 1
            parts.append(self._sum())
        return parts[0] if len(parts) == 1 else Ratio(tuple(parts))

    # ---- arithmetic

    def _sum(self) -> Tree:
        terms: list[Tree] = []
        while True:
            sign = self._key()
            if sign in ("+", "-"):
                self._at += 1
                term = self._signed(sign)
            elif sign in ("\\pm", "\\mp"):
                self._at += 1
                if any(isinstance(term, PlusMinus) for term in terms):
                    raise Unreadable("more than one ±")
                left = None if not terms else terms[0] if len(terms) == 1 else Sum(tuple(terms))
                terms = [PlusMinus(left, self._product())]
                continue
            elif not terms:
                term = self._product()
            else:
                break
            terms.append(term)
        return terms[0] if len(terms) == 1 else Sum(tuple(terms))

    def _signed(self, sign: str) -> Tree:
        self._enter()
        try:
            if self._key() in ("+", "-"):
                return negated(self._signed(self._take().text), sign)
            return negated(self._product(), sign)
        finally:
            self._depth -= 1

    def _product(self) -> Tree:
        result = self._juxtaposed()
        began_depth = self._depth
        while True:
            key = self._key()
            if key in _TIMES:
                self._at += 1
                result = times(result, self._signed_factor())
            elif key in _OVER:
                self._at += 1
                began = self._at
                bottom = self._signed_factor()
                # Is 1/2x a half of x? Nobody agrees; 1/2 is one half for everybody.
                self.doubtful |= isinstance(bottom, Prod) and self._at - began > 1
                result = over(result, bottom)
                self._enter()  # a/b/c/d
            else:
                self._depth = began_depth
                return result

    def _signed_factor(self) -> Tree:
        if self._key() in ("-", "+"):
            self._enter()
            try:
                sign = self._take().text
                return negated(self._signed_factor(), sign)
            finally:
                self._depth -= 1
        return self._juxtaposed()

    def _juxtaposed(self) -> Tree:
        """Factors written side by side, and a unit behind them."""
        if self._key() in _CURRENCY or self._key() == "\\$":
            unit = self._take().text
            return Quantity(self._juxtaposed(), unit)
        result = self._power()
        while True:
            if self._ends_with_and():
                return result
            if self._unit_follows(result):
                return self._with_unit(result)
            if not self._begins_factor():
                return result
            mixed = self._mixed_number(result)
            if mixed is not None:
                result = mixed
                continue
            if self._next.kind == "number" and self._at and self._tokens[self._at - 1].kind == "number":
                raise Unreadable("two numbers side by side")
            result = times(result, self._power())

    def _ends_with_and(self) -> bool:
        token = self._next
        if token.kind not in ("word", "text"):
            return False
        if token.text.casefold().strip(" ,") in AND:
            return True
        if self._tokens[self._at - 1].kind == "word":
            raise Unreadable("words one after another are words")
        return False

    def _begins_factor(self) -> bool:
        token = self._next
        if token.kind in ("number", "name", "word"):
            return True
        key = self._key()
        if key in ("(", "{", "\\{", "[", "\\lfloor", "\\lceil", "\\lvert", "\\langle"):
            return True
        return token.kind == "command" and (
            token.text in FUNCTIONS
            or token.text in FRACTIONS
            or token.text in BINOMIALS
            or token.text in ACCENTS
            or key in CONSTANTS
        )

    def _power(self) -> Tree:
        self._enter()
        try:
            return self._after(self._primary())
        finally:
            self._depth -= 1

    def _after(self, tree: Tree) -> Tree:
        """Powers, factorials, percent signs, primes and subscripts behind a thing."""
        began = self._depth
        while True:
            key = self._key()
            if key == "^":
                self._at += 1
                if self._degrees():
                    tree = Quantity(tree, "°")
                elif self._accept("\\prime"):
                    tree = self._primed(tree)
                else:
                    tree = Pow(tree, self._exponent())
            elif key == "!":
                self._at += 1
                tree = Call("!", (tree,))
            elif key in ("%", "\\%"):
                self._at += 1
                tree = Percent(tree)
            elif key in _DEGREES:
                self._at += 1
                tree = Quantity(tree, "°")
            elif key == "'":
                self._at += 1
                tree = self._primed(tree)
            elif key == "_":
                self._at += 1
                tree = self._subscripted(tree)
            else:
                self._depth = began
                return tree
            self._enter()  # each makes the tree deeper

    def _degrees(self) -> bool:
        if self._key() in _DEGREES:
            self._at += 1
            return True
        if self._key() == "{" and self._key(1) in _DEGREES and self._key(2) == "}":
            self._at += 3
            return True
        return False

    @staticmethod
    def _primed(tree: Tree) -> Tree:
        if not isinstance(tree, Sym):
            raise Unreadable("only a letter can have a prime")
        return Sym(tree.name + "'")

    def _subscripted(self, tree: Tree) -> Tree:
        began = self._at
        index = self._exponent()
        if isinstance(tree, Num):
            return Call("base", (tree, index))
        if not isinstance(tree, Sym):
            raise Unreadable("only a letter or a number can have a subscript")
        written = "".join(token.text for token in self._tokens[began : self._at]).strip("{}")
        return Sym(f"{tree.name}_{written}")

    def _exponent(self) -> Tree:
        sign = self._take().text if self._key() in ("-", "+") else "+"
        token = self._next
        if token.kind == "command" and self._key() not in CONSTANTS and token.text not in FRACTIONS | {"sqrt"}:
            raise Unreadable(f"\\{token.text} cannot be an exponent")
        tree = self._primary()
        if self._key() == "^":  # 2^3^2 is 2^(3^2)
            self._enter()
            self._at += 1
            tree = Pow(tree, self._exponent())
            self._depth -= 1
        elif self._key() == "!" and not self._next.spaced:
            self._at += 1
            tree = Call("!", (tree,))
        return negated(tree, sign)
