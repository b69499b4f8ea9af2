"""A place in a row of tokens, and what moves it."""

from __future__ import annotations

from envs.grading.mathematics.lexing import Token, Unreadable

DEEPEST = 40
"""Brackets within brackets that are followed."""


class Cursor:
    """Where a reader stands."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self.doubtful = False

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _key(self, offset: int = 0) -> str:
        """Of the next token, or one behind it."""
        if not offset:
            return self._tokens[self._at].key
        return self._tokens[min(self._at + offset, len(self._tokens) - 1)].key

    def _take(self) -> Token:
        token = self._tokens[self._at]
        if token.kind != "end":
            self._at += 1
        return token

    def _accept(self, *keys: str) -> bool:
        if self._key() in keys:
            self._at += 1
            return True
        return False

    def _expect(self, key: str) -> None:
        if not self._accept(key):
            raise Unreadable(f"{self._next.text or 'the end'!r} where {key} was expected")

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise Unreadable(f"more than {DEEPEST} brackets within one another")
