"""Reading what stands behind a number: units, things that are counted, the fraction of a mixed number."""

from __future__ import annotations

from fractions import Fraction

from envs.grading.mathematics.lexing import Unreadable
from envs.grading.mathematics.things import FRACTIONS, Things, times
from envs.grading.mathematics.trees import Num, Percent, Quantity, Quot, Sum, Tree
from envs.grading.mathematics.words import LETTERS_ALONE, find_unit

AND = frozenset(("and", "or"))
"""Words between two items."""


class Quantities(Things):
    """Numbers with what belongs to them."""

    def _unit_follows(self, result: Tree) -> bool:
        token = self._next
        if token.kind == "text":
            return True
        if token.kind in ("word", "name") and token.spaced and self._is_unit_ahead():
            return True
        return token.kind == "word" and self._is_number(result) and self._is_unit_ahead()

    @staticmethod
    def _is_number(tree: Tree) -> bool:
        return isinstance(tree, Num | Quot) or (
            isinstance(tree, Sum) and all(isinstance(term, Num | Quot) for term in tree.terms)
        )

    def _mixed_number(self, whole: Tree) -> Tree | None:
        r"""3\frac{1}{2} and 3 1/2, which are no products."""
        if not (isinstance(whole, Num) and whole.value.denominator == 1 and whole.value >= 0 and not whole.rounded):
            return None
        kinds = [self._tokens[min(self._at + n, len(self._tokens) - 1)] for n in range(3)]
        if kinds[0].kind == "number" and kinds[0].spaced and kinds[1].text == "/" and kinds[2].kind == "number":
            top, bottom = kinds[0].text, kinds[2].text
            if top.isdigit() and bottom.isdigit() and 0 < int(top[:9]) < int(bottom[:9]):
                self._at += 3
                return Num(whole.value + Fraction(int(top[:9]), int(bottom[:9])))
            return None
        if kinds[0].kind == "command" and kinds[0].text in FRACTIONS:
            part = self._power()
            proper = isinstance(part, Quot) and isinstance(part.top, Num) and isinstance(part.bottom, Num)
            if proper and 0 < part.top.value < part.bottom.value:  # type: ignore[union-attr]  # both are Num
                return Sum((whole, part))
            return times(whole, part)
        return None

    def _is_unit_ahead(self) -> bool:
        """Whether words, up to the end of the item, follow that may be a unit."""
        at = self._at
        first = self._tokens[at]
        if first.kind == "name" and (
            first.text not in LETTERS_ALONE or self._tokens[at + 1].kind not in ("end", "sign", "command")
        ):
            return False
        if first.kind == "word" and find_unit(first.text) is None:
            # A word that is no unit we know: things that are counted, if nothing but words follows.
            while self._tokens[at].kind in ("word", "name"):
                at += 1
            return self._tokens[at].kind == "end" and len(first.text) > 2
        return True

    def _with_unit(self, of: Tree) -> Tree:
        words = []
        while True:
            token = self._next
            key = self._key()
            if token.kind in ("word", "text", "name"):
                words.append(self._take().text)
            elif key in ("/", "\\cdot") and words and self._tokens[self._at + 1].kind in ("word", "text", "name"):
                self._at += 1
                words.append("/" if key == "/" else "·")
            elif key == "^" and words:
                self._at += 1
                words.append("^" + self._exponent_of_unit())
            else:
                break
            if words[-1].casefold().strip(" ,") in AND:
                self._at -= 1
                words.pop()
                break
        unit = " ".join(words).replace(" ^", "^").replace(" / ", "/")
        if unit.casefold() in ("percent", "percentage", "pct", "per cent"):
            return Percent(of)
        return Quantity(of, unit)

    def _exponent_of_unit(self) -> str:
        braces = self._accept("{")
        sign = "-" if self._accept("-") else ""
        token = self._take()
        if token.kind != "number":
            raise Unreadable("the power of a unit is a number")
        if braces:
            self._expect("}")
        return sign + token.text
