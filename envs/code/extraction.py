"""The code in an answer."""

from __future__ import annotations

import re
from typing import Literal

Which = Literal["last", "first", "longest"]

# A fence opens at the start of a line and is closed by a fence of at least its length, alone on a line; the last one may be open, cut off by the token limit.
_FENCE = re.compile(
    r"^[ ]{0,3}(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+#.-]*)[^\n`]*\n(?P<code>.*?)(?:^[ ]{0,3}(?P=fence)[`~]*[ \t]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)
LANGUAGES = frozenset({"", "python", "python3", "py", "py3"})


def code_blocks(answer: str) -> list[tuple[str, str]]:
    """(language, code) of each fenced block, the last perhaps unfinished."""
    return [(match["language"].lower(), match["code"]) for match in _FENCE.finditer(answer)]


def extract_code(answer: str, which: Which = "last") -> str | None:
    """The code of an answer: its last (first, longest) fenced block of Python, or of no named language. None where there is no block."""
    found = [code for language, code in code_blocks(answer) if language in LANGUAGES and code.strip()]
    if not found:
        return None
    if which == "longest":
        return max(found, key=len)
    return found[-1 if which == "last" else 0]
