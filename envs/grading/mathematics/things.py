"""Reading the things that arithmetic is done with: numbers, letters, brackets, commands, functions, matrices."""

from __future__ import annotations

from abc import abstractmethod
from fractions import Fraction

from envs.grading.mathematics.cursor import Cursor
from envs.grading.mathematics.lexing import Token, Unreadable
from envs.grading.mathematics.trees import (
    MINUS_ONE,
    Call,
    Const,
    Group,
    Num,
    Percent,
    Pow,
    Prod,
    Quantity,
    Quot,
    Rows,
    Sym,
    Tree,
)
from envs.grading.mathematics.words import COMMON, FUNCTIONS, SAME_FUNCTION

MOST_DIGITS = 400
"""Digits of a number that is written out."""
FRACTIONS = frozenset(("frac", "dfrac", "tfrac", "cfrac", "nicefrac", "sfrac"))
BINOMIALS = frozenset(("binom", "dbinom", "tbinom", "choose"))
ACCENTS = frozenset(("overline", "bar", "vec", "hat", "tilde", "overrightarrow", "widehat", "dot", "underline"))
CONSTANTS = {"\\infty": "oo", "\\infinity": "oo"}
_CLOSING = {
    "(": ")]",
    "[": "])",
    "\\{": "\\}",
    "\\langle": "\\rangle",
    "\\lfloor": "\\rfloor",
    "\\lceil": "\\rceil",
    "\\lvert": "\\rvert",
}


class Things(Cursor):
    """Reads one thing at a time. What stands inside brackets is read by whoever knows rows and sums."""

    @abstractmethod
    def _row(self, closing: str) -> Tree: ...

    @abstractmethod
    def _item(self) -> Tree: ...

    @abstractmethod
    def _sum(self) -> Tree: ...

    @abstractmethod
    def _power(self) -> Tree: ...

    @abstractmethod
    def _after(self, tree: Tree) -> Tree: ...

    @abstractmethod
    def _exponent(self) -> Tree: ...

    @abstractmethod
    def _begins_factor(self) -> bool: ...

    def _primary(self) -> Tree:
        token = self._next
        if token.kind == "number":
            return self._number()
        if token.kind == "name":
            self._at += 1
            return letter(token.text)
        if token.kind == "word":
            return self._letters()
        if token.kind == "command":
            return self._command()
        key = self._key()
        if key == "{":
            return self._braces()
        if key in ("(", "["):
            return self._brackets()
        if key == "|":
            self._at += 1
            inside = self._sum()
            self._expect("|")
            return Call("abs", (inside,))
        raise Unreadable(f"{token.text or 'the end'!r} where something was expected")

    def _number(self) -> Tree:
        text = self._take().text
        if len(text) > MOST_DIGITS:
            raise Unreadable(f"a number of more than {MOST_DIGITS} digits")
        mantissa, _, power = text.lower().partition("e")
        rounded = "." in mantissa.rstrip(".")
        value = Fraction(mantissa.rstrip(".")) if rounded else Fraction(int(mantissa.rstrip(".")))
        if "." in mantissa and self._key() == "\\overline":
            return self._repeating(mantissa)
        if power:
            if abs(int(power)) > MOST_DIGITS:
                raise Unreadable(f"a power of ten beyond {MOST_DIGITS}")
            value *= Fraction(10) ** int(power)
        return Num(value, rounded)

    def _repeating(self, written: str) -> Tree:
        r"""0.1\overline{6}."""
        self._at += 1
        self._expect("{")
        digits = self._take().text
        self._expect("}")
        if not digits.isdigit() or len(digits) > 40:
            raise Unreadable("digits that repeat are digits")
        decimals = len(written.partition(".")[2])
        period = Fraction(int(digits), (10 ** len(digits) - 1) * 10**decimals)
        return Num(Fraction(written) + period)

    def _letters(self) -> Tree:
        """Letters typed together: a product of variables, where nothing says that they are a word."""
        word = self._take().text
        for name in sorted(FUNCTIONS, key=len, reverse=True):  # sinx
            if word.startswith(name) and len(word) == len(name) + 1 and len(name) > 1:
                return Call(SAME_FUNCTION.get(name, name), (letter(word[-1]),))
        if word in ("oo", "inf", "infinity", "Infinity", "infty"):
            return Const("oo")
        if len(word) > 4 or word.casefold() in COMMON or self._next.kind == "number":
            raise Unreadable(f"{word!r} is a word")
        return Prod((*(letter(each) for each in word[:-1]), self._after(letter(word[-1]))))  # ab^2 is a·b²

    def _braces(self) -> Tree:
        """A LaTeX group; with commas in it, a set that was typed."""
        self._enter()
        self._at += 1
        if self._accept("}"):
            raise Unreadable("an empty group")
        inside = self._row("}")
        self._expect("}")
        self._depth -= 1
        if isinstance(inside, Group) and not inside.open:
            return Group("{", "}", inside.items)
        return inside

    def _brackets(self) -> Tree:
        self._enter()
        opening = self._take().text
        if self._accept(_CLOSING[opening][0]):
            raise Unreadable("empty brackets")
        inside = self._row(_CLOSING[opening][0])
        closing = self._key()
        if closing not in _CLOSING[opening]:
            raise Unreadable(f"no bracket closes {opening}")
        self._at += 1
        self._depth -= 1
        if isinstance(inside, Group) and not inside.open:
            if opening == "[" and all(isinstance(row, Group) and row.open == "[" for row in inside.items):
                return _matrix([row.items for row in inside.items])  # type: ignore[union-attr]  # all are groups
            return Group(opening, closing, inside.items)
        if closing != _CLOSING[opening][0]:
            raise Unreadable("an interval has two ends")
        return inside

    def _command(self) -> Tree:  # noqa: C901, PLR0912  (one line for each kind of command)
        token = self._take()
        name, key = token.text, f"\\{token.text}"
        if key in CONSTANTS:
            return Const("oo")
        if name in FRACTIONS:
            return over(self._argument(), self._argument())
        if name in BINOMIALS:
            return Call("binom", (self._argument(), self._argument()))
        if name == "sqrt":
            return self._root()
        if name == "cbrt":
            return Pow(self._argument(), Quot(Num(Fraction(1)), Num(Fraction(3))))
        if name in FUNCTIONS:
            return self._function(SAME_FUNCTION.get(name, name))
        if name == "{":
            return self._set()
        if name in ("lfloor", "lceil", "lvert", "langle"):
            return self._delimited(name)
        if name == "begin":
            return self._environment()
        if name in ACCENTS:
            inside = self._argument()
            if not isinstance(inside, Sym):
                raise Unreadable(f"\\{name} over more than a letter")
            return Sym(f"{name}:{inside.name}")
        if name in ("emptyset", "varnothing"):
            return Group("{", "}", ())
        if name == "mathbbR":
            return Group("(", ")", (_negative_infinity(), Const("oo")))
        if name.startswith("mathbb"):
            return Sym(name)
        if name == "boxed":
            return self._argument()
        raise Unreadable(f"\\{name} is not known here")

    def _argument(self) -> Tree:
        r"""Of a command: a group, or the next digit or letter alone."""
        token = self._next
        if token.kind == "number" and len(token.text) > 1 and token.text.isdigit():
            self._tokens[self._at] = token._replace(text=token.text[1:], spaced=False)
            return Num(Fraction(int(token.text[0])))
        self._enter()
        try:
            return self._primary()
        finally:
            self._depth -= 1

    def _root(self) -> Tree:
        degree: Tree = Num(Fraction(2))
        if self._key() == "[":
            self._at += 1
            degree = self._sum()
            self._expect("]")
        token = self._next
        if token.kind == "number" and len(token.text) > 1 and self._tokens[self._at - 1].kind == "command":
            inside: Tree = self._number()  # sqrt 12 is typed for the root of 12
            self.doubtful = True
        else:
            inside = self._argument()
        return Pow(inside, Quot(Num(Fraction(1)), degree))

    def _function(self, name: str) -> Tree:
        exponent: Tree | None = None
        base: Tree | None = None
        while True:
            if self._key() == "^" and exponent is None:
                self._at += 1
                exponent = self._exponent()
            elif self._key() == "_" and base is None and name in ("log", "max", "min"):
                self._at += 1
                base = self._exponent()
            else:
                break
        arguments = self._arguments()
        if exponent == MINUS_ONE and name in ("sin", "cos", "tan", "cot", "sec", "csc"):
            return Call(f"arc{name}", arguments)
        if name == "log":
            self.doubtful |= base is None
            arguments = (*arguments, base) if base is not None else arguments
        elif name == "lg":
            name, arguments = "log", (*arguments, Num(Fraction(10)))
        if name == "exp":
            result: Tree = Pow(Const("e"), arguments[0])
        else:
            result = Call(name, arguments)
        return result if exponent is None else Pow(result, exponent)

    def _arguments(self) -> tuple[Tree, ...]:
        """In brackets, or what is written behind a function without any: sin 2x, ln x^2."""
        if self._key() in ("(", "["):
            inside = self._brackets()
            return inside.items if isinstance(inside, Group) and inside.open == "(" else (inside,)
        if self._key() in ("{", "\\{"):
            inside = self._braces() if self._key() == "{" else self._command()
            return inside.items if isinstance(inside, Group) else (inside,)
        self._enter()
        try:
            factors = [self._power()]
            while (
                self._begins_factor()
                and self._next.kind != "word"
                and not (self._next.kind == "command" and self._next.text in FUNCTIONS)
            ):
                if self._key() in ("(", "["):
                    break
                factors.append(self._power())
            return (factors[0] if len(factors) == 1 else Prod(tuple(factors)),)
        finally:
            self._depth -= 1

    def _set(self) -> Tree:
        self._enter()
        if self._accept("\\}"):
            self._depth -= 1
            return Group("{", "}", ())
        inside = self._row("\\}")
        if self._accept("|", "\\mid", ":"):  # {x | x > 1} is what holds of x
            inside = self._row("\\}")
            self._expect("\\}")
            self._depth -= 1
            return inside
        self._expect("\\}")
        self._depth -= 1
        items = inside.items if isinstance(inside, Group) and not inside.open else (inside,)
        return Group("{", "}", items)

    def _delimited(self, name: str) -> Tree:
        self._enter()
        closing = _CLOSING[f"\\{name}"]
        inside = self._row(closing)
        self._expect(closing)
        self._depth -= 1
        if name == "langle":
            return Group("(", ")", inside.items) if isinstance(inside, Group) else inside
        return Call({"lfloor": "floor", "lceil": "ceil", "lvert": "abs"}[name], (inside,))

    def _environment(self) -> Tree:
        self._enter()
        self._expect("{")
        kind = "".join(token.text for token in self._until("}"))
        if kind not in ("matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "smallmatrix", "array"):
            raise Unreadable(f"the environment {kind[:20]} is not known here")
        if kind == "array" and self._accept("{"):
            self._until("}")
        rows: list[list[Tree]] = [[]]
        while True:
            if self._accept("\\\\"):
                if rows[-1] and self._key() != "\\end":
                    rows.append([])
            elif self._accept("\\end"):
                break
            elif self._accept("&", "\\hline"):
                continue
            else:
                rows[-1].append(self._item())
        self._expect("{")
        self._until("}")
        self._depth -= 1
        matrix = _matrix([tuple(row) for row in rows])
        return Call("det", (matrix,)) if kind == "vmatrix" else matrix

    def _until(self, key: str) -> list[Token]:
        found = []
        while not self._accept(key):
            token = self._take()
            if token.kind == "end":
                raise Unreadable(f"no {key} at the end")
            found.append(token)
        return found


def negated(tree: Tree, sign: str) -> Tree:
    """The tree behind a sign."""
    if sign == "+":
        return tree
    if isinstance(tree, Num):
        return Num(-tree.value, tree.rounded)
    if isinstance(tree, Percent):
        return Percent(negated(tree.of, "-"))
    if isinstance(tree, Quantity):
        return Quantity(negated(tree.of, "-"), tree.unit)
    if isinstance(tree, Prod):
        return Prod((MINUS_ONE, *tree.factors))
    return Prod((MINUS_ONE, tree))


def _matrix(rows: list[tuple[Tree, ...]]) -> Rows:
    if not rows or not rows[0] or len({len(row) for row in rows}) != 1:
        raise Unreadable("the rows of a matrix are equally long")
    return Rows(tuple(rows))


def letter(name: str) -> Tree:
    """A variable, or a constant that is written as a letter."""
    if name in ("e", "i", "pi"):
        return Const(name)
    return Sym(name.removeprefix("var"))


def _negative_infinity() -> Tree:
    return Prod((MINUS_ONE, Const("oo")))


def times(left: Tree, right: Tree) -> Tree:
    """A product, flat."""
    if isinstance(left, Prod):
        return Prod((*left.factors, right))
    return Prod((left, right))


def over(top: Tree, bottom: Tree) -> Tree:
    """A quotient."""
    return Quot(top, bottom)
