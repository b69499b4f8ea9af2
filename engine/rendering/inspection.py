"""Looking at what a renderer makes: every token with its id and weight, for the terminal and as a page.

Weight 1 is green, 0 is grey, anything between is amber; control tokens are bold (terminal) or boxed (page).
"""

from __future__ import annotations

import codecs
import html
from collections.abc import Iterator, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from engine.backends.values import ImageChunk, ModelInput
from engine.rendering.supervision import SupervisedExample
from engine.rendering.vocabulary import Vocabulary


@attrs.frozen
class ShownToken:
    """One token as people see it."""

    text: str
    """Characters that are complete with this token; empty while more bytes of one are to come."""
    token: int | None
    """None: an image."""
    weight: float
    control: bool = False


def shown_tokens(
    vocabulary: Vocabulary, model_input: ModelInput, weights_T: NDArray[np.float32] | None = None
) -> Iterator[ShownToken]:
    """The tokens of an input in order, an image as one; weights of shape (T,), absent for a prompt."""
    names = {token: name for name, token in vocabulary.special_tokens.items()}
    weights = np.zeros(model_input.length, np.float32) if weights_T is None else weights_T
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    at = 0
    for chunk in model_input.chunks:
        if isinstance(chunk, ImageChunk):
            yield ShownToken(
                f"[image, {chunk.expected_tokens} positions]",
                None,
                float(weights[at]) if chunk.length else 0.0,
                control=True,
            )
            at += chunk.length
            continue
        for token in chunk.tokens.tolist():
            name = names.get(token)
            text = decoder.decode(vocabulary.token_bytes(token)) if name is None else name
            yield ShownToken(text, token, float(weights[at]), control=name is not None)
            at += 1


def as_terminal(vocabulary: Vocabulary, model_input: ModelInput, weights_T: NDArray[np.float32] | None = None) -> Text:
    """Coloured text: alternating shades keep neighbouring tokens apart, whitespace is made visible where it would hide a token."""
    text = Text()
    for n, shown in enumerate(shown_tokens(vocabulary, model_input, weights_T)):
        colour = (
            "green"
            if shown.weight == 1
            else "yellow"
            if shown.weight
            else "bright_black"
            if weights_T is not None
            else "cyan"
        )
        style = f"bold {colour}" if shown.control else colour
        text.append(_visible(shown.text), style=f"{style} underline" if n % 2 else style)
    return text


def _visible(text: str) -> str:
    return (text or "·").replace("\n", "↵\n").replace("\t", "→\t")


_STYLE = """
body { font: 15px/1.7 ui-monospace, monospace; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; background: #fff; }
h1 { font-size: 1.3rem } h2 { font-size: 1.05rem; margin-top: 2.5rem } .note { color: #555 }
.t { white-space: pre-wrap; border-radius: 3px; padding: 1px 0; border-right: 1px solid #fff; cursor: default }
.w1 { background: #c4ecc8 } .w0 { background: #ececec; color: #555 } .wp { background: #fbe3a8 } .c { outline: 1px solid #777; outline-offset: -1px }
.t:hover { background: #8ac5ff; color: #000 } .ws { color: #999 }
table { border-collapse: collapse; font-size: 13px } td, th { border-bottom: 1px solid #ddd; padding: 1px 12px 1px 0; text-align: left; font-weight: normal }
th { color: #555 } td:first-child, td:nth-child(2), td:nth-child(4) { text-align: right } details { margin: 1rem 0 }
"""


def as_page(
    title: str, vocabulary: Vocabulary, sections: Sequence[tuple[str, ModelInput, NDArray[np.float32] | None]]
) -> str:
    """A page that stands alone: for each section (heading, input, weights) the text with its tokens marked, and a table of all of them."""
    body = [_section(vocabulary, *section) for section in sections]
    legend = (
        '<p class="note"><span class="t w1">trained</span> <span class="t wp">partly</span> <span class="t w0">not trained</span> '
        '<span class="t w0 c">control token</span> · point at a token for its id and weight</p>'
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1>{legend}{''.join(body)}</body></html>\n"
    )


def _section(
    vocabulary: Vocabulary, heading: str, model_input: ModelInput, weights_T: NDArray[np.float32] | None
) -> str:
    spans, rows = [], []
    for n, shown in enumerate(shown_tokens(vocabulary, model_input, weights_T)):
        kind = "w1" if shown.weight == 1 else "wp" if shown.weight else "w0"
        identity = "image" if shown.token is None else str(shown.token)
        text = (
            html.escape(shown.text or "·")
            .replace("\n", '<span class="ws">↵</span>\n')
            .replace("\t", '<span class="ws">→</span>\t')
        )
        spans.append(
            f'<span class="t {kind}{" c" if shown.control else ""}" title="{n}: id {identity}, weight {shown.weight:g}">{text}</span>'
        )
        rows.append(
            f"<tr><td>{n}</td><td>{identity}</td><td>{html.escape(repr(shown.text))}</td><td>{shown.weight:g}</td></tr>"
        )
    trained = "" if weights_T is None else f", {int(np.count_nonzero(weights_T))} trained"
    table = f"<table><tr><th>position</th><th>id</th><th>text</th><th>weight</th></tr>{''.join(rows)}</table>"
    return (
        f'<h2>{html.escape(heading)}</h2><p class="note">{model_input.length} positions{trained}</p><p>{"".join(spans)}</p>'
        f"<details><summary>every token</summary>{table}</details>"
    )


def sections_of(
    examples: Sequence[SupervisedExample], prompt: ModelInput | None = None
) -> list[tuple[str, ModelInput, NDArray[np.float32] | None]]:
    """Examples, and a prompt where there is one, as `as_page` wants them."""
    found: list[tuple[str, ModelInput, NDArray[np.float32] | None]] = []
    if prompt is not None:
        found.append(("Generation prompt", prompt, None))
    for n, example in enumerate(examples):
        heading = "Supervised example" if len(examples) == 1 else f"Supervised example {n + 1} of {len(examples)}"
        found.append((heading, example.model_input, example.weights_T))
    return found
