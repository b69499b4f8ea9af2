r"""Words of mathematical notation: LaTeX, what people type instead of it, and Unicode's signs, as one stream of tokens.

Dressing is dropped here: `\left`, `\displaystyle`, spacing, `$`, fonts of single letters. One pass, no backtracking: the time is linear in the length.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from envs.grading.mathematics.words import FUNCTIONS, GREEK, UNITS_TOO

LONGEST = 2000
"""Characters of an answer that is read at all."""


class Unreadable(ValueError):
    """Text that is no mathematics that we can read. It may still be an answer in words."""


class Token(NamedTuple):
    r"""`kind`: number, name (one letter, or a Greek one by name), word (letters typed together), text (what stood in \text{}), command, sign, or end."""

    kind: str
    text: str
    spaced: bool
    """White space stands before it."""
    key: str
    """For tables: signs as they are, commands with a backslash, the rest by kind."""


def _token(kind: str, text: str, spaced: bool) -> Token:
    if kind == "sign":
        return Token(kind, text, spaced, text)
    return Token(kind, text, spaced, f"\\{text}" if kind == "command" else f"<{kind}>")


_SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "－": "-", "＋": "+", "×": "*", "⋅": "*", "·": "*", "∙": "*", "∗": "*", "＊": "*",
    "÷": "/", "∕": "/", "⁄": "/", "／": "/", "≤": "<=", "⩽": "<=", "≥": ">=", "⩾": ">=", "≠": "!=", "≈": "~", "±": r"\pm ", "∓": r"\mp ", "√": r"\sqrt ",
    "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "°": r"^{\circ}", "′": "'", "’": "'", "‘": "'", "”": '"',
    "“": '"', "（": "(", "）": ")", "，": ",", "。": ".", "：": ":", "；": ";", "＝": "=", "％": "%", "ℝ": r"\mathbb{R}", "⟨": r"\langle ", "⟩": r"\rangle ",
    "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅛": r"\frac{1}{8}", "⅜": r"\frac{3}{8}",
    "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}", "⅕": r"\frac{1}{5}", "⅖": r"\frac{2}{5}", "⅗": r"\frac{3}{5}", "⅘": r"\frac{4}{5}", "⅙": r"\frac{1}{6}",
    "⅚": r"\frac{5}{6}", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", "\ufeff": "",
}  # fmt: skip
_SUPER, _SUB = "⁰¹²³⁴⁵⁶⁷⁸⁹", "₀₁₂₃₄₅₆₇₈₉"
_GREEK_SIGNS = dict(zip("αβγδεζηθικλμνξρστυφχψωΓΔΘΛΞΠΣΦΨΩ", [
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon",
    "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega",
], strict=True))  # fmt: skip
_TRANSLATION = str.maketrans(
    _SIGNS
    | {sign: f"^{{{digit}}}" for digit, sign in enumerate(_SUPER)}
    | {"⁻": "^{-}"}
    | {sign: f"_{{{digit}}}" for digit, sign in enumerate(_SUB)}
    | {sign: f"\\{name} " for sign, name in _GREEK_SIGNS.items()}
)

_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|\\[,!;:]\s*)(?=\d{3}(?!\d))")
_EXPONENTS = re.compile(r"\}\^\{")  # neighbouring superscripts: x^{1}^{2}
_DOLLARS = re.compile(r"(?<!\\)\$")
_GRAMMAR = r"""(?P<space>(?:\s|~|&nbsp;|\\[,;:!\ ]
          |\\(?:quad|qquad|thinspace|displaystyle|textstyle|limits|nolimits|left\.?|right\.?|middle|[bB]ig[gG]?[lrm]?|mathstrut)(?![a-zA-Z])
          |\\(?:v|h)?phantom\{[^{}]*\}|\\hspace\*?\{[^{}]*\}|\\tag\*?\{[^{}]*\})+)
      | (?P<text>\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|emph|mathrm|mbox|hbox|operatorname\*?|mathsf|mathtt|rm)\s*\{(?P<inside>[^{}]*)\})
      | \\(?:mathbf|boldsymbol|bm|mathit|mathcal|mathscr|mathfrak|pmb)\s*(?:\{(?P<bold>[^{}]*)\}|(?P<bold1>[a-zA-Z]))
      | (?P<number>\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+\.\d+|\d+\.(?![\d.])|(?<![\d.])\.\d+|\d+)(?P<power>[eE][+-]?\d{1,4}(?![\da-zA-Z]))?
      | (?P<set>\\mathbb\s*\{?\s*[A-Z]\s*\}?)
      | (?P<command>\\[a-zA-Z]+\*?)
      | (?P<row>\\\\)
      | (?P<escaped>\\[{}|%$&\#_])
      | (?P<word>[a-zA-Z]+)
      | (?P<sign>\*\*|<=|>=|!=|==|\u2264|[-+*/^_!=<>()\[\]{}|,;:%&'~"€£¥.])
    """
_TOKEN = re.compile(_GRAMMAR, re.VERBOSE)
_TOKEN_WITHOUT_COMMAS = re.compile(_GRAMMAR.replace(r"\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|", ""), re.VERBOSE)


def lex(text: str, *, commas: bool = True) -> list[Token]:
    """The tokens of an answer, the last of kind `end`. `commas`: 1,234 is one number, not two.

    Raises Unreadable for an answer that is too long, or has characters that are no notation.
    """
    if len(text) > LONGEST:
        raise Unreadable(f"{len(text)} characters are more than {LONGEST}")
    if not text.isascii():
        text = text.translate(_TRANSLATION)
        text = _EXPONENTS.sub("", text)
    if "\\" in text or "{" in text:
        text = _THOUSANDS.sub("", text)
    text = _DOLLARS.sub(" ", text)
    token = _TOKEN if commas else _TOKEN_WITHOUT_COMMAS
    found: list[Token] = []
    at, spaced = 0, False
    while at < len(text):
        match = token.match(text, at)
        if match is None:
            raise Unreadable(f"{text[at]!r} is no notation")
        at = match.end()
        kind = match.lastgroup
        if kind == "space":
            spaced = True
            continue
        found += _tokens(match, spaced)
        spaced = False
    found.append(_token("end", "", spaced))
    return found


def _tokens(match: re.Match[str], spaced: bool) -> list[Token]:
    kind = match.lastgroup
    if kind in ("number", "power"):
        digits = match["number"].replace(",", "")
        return [_token("number", digits + (match["power"] or ""), spaced)]
    if kind == "sign":
        sign = match[0]
        return [_token("sign", {"**": "^", "==": "="}.get(sign, sign), spaced)]
    if kind == "word":
        return _word(match[0], spaced, match.string[match.end() : match.end() + 1])
    if kind == "command":
        command = match[0][1:]
        if command in GREEK:
            return [_token("name", command, spaced)]
        return [_token("command", command, spaced)]
    groups = match.groupdict()
    if groups["text"] is not None:
        return _inside_text(groups["inside"], spaced, roman="text" not in match[0][:6] and "box" not in match[0][:6])
    if groups["escaped"] is not None:
        return [_token("command", groups["escaped"][1:], spaced)]
    if groups["row"] is not None:
        return [_token("command", "\\", spaced)]
    if groups["set"] is not None:
        letter = next(each for each in groups["set"][7:] if each.isalpha())
        return [_token("command", f"mathbb{letter}", spaced)]
    bold = groups["bold"] if groups["bold"] is not None else groups["bold1"]
    return [token._replace(spaced=spaced) if not n else token for n, token in enumerate(lex(bold)[:-1])]


def _word(word: str, spaced: bool, following: str) -> list[Token]:
    if len(word) == 1:
        return [_token("name", word, spaced)]
    if word in GREEK or word in ("pi", "Pi"):
        return [_token("name", word, spaced)]
    if word.lower() in FUNCTIONS and (word not in UNITS_TOO or following in tuple("({_^")):
        return [_token("command", word.lower(), spaced)]
    return [_token("word", word, spaced)]


def _inside_text(inside: str, spaced: bool, *, roman: bool) -> list[Token]:
    r"""\mathrm{d}, \operatorname{lcm} and \text{ cm}: a letter or a function of mathematics, or words."""
    words = inside.strip()
    if not words:
        return []
    if words.lower() in FUNCTIONS and roman:
        return [_token("command", words.lower(), spaced)]
    if words in ("i", "e") and roman:
        return [_token("name", words, spaced)]
    if re.fullmatch(r"[\d.,/+\-*^()= ]+", words):
        return lex(words)[:-1]
    return [_token("text", words, spaced)]
