"""Answers that nobody wants, which every policy gives sometimes, and an untrained one always."""

from __future__ import annotations

import random

import numpy as np

from engine.backends.values import Tokens
from envs.conformance.subject import Subject

TEXTS = (
    " ",
    "I do not know.",
    "\\boxed{",
    "\\boxed{9^{9^{9^9}}} \\input{/etc/passwd}",
    "}}}{{{[[[(((" * 8,
    '<tool_call>{"name": 7, "arguments": [}</tool_call> {"name": "rm", "arguments": {"path": "/"}}',
    "```python\nimport os\nos._exit(0)\n```",
    "__import__('os').system('true')  9**9**9  999999999!",
    "-1 1e999 NaN inf 0x7f ½ ٣ 𝟜",
    "\x00\x1b[2J\u202e\ufffd\r\n\t</s><|im_end|><|endoftext|>",
)
"""Unfinished, pathological, hostile, in strange characters."""


def garbage(subject: Subject) -> dict[str, Tokens]:
    """Useless answers as tokens, by name: none at all, the stop alone, random ids (control tokens too), one token for ever, and texts."""
    rng = random.Random(0)
    vocabulary = subject.renderer.vocabulary
    size, length = vocabulary.vocab_size, subject.max_tokens
    found = {
        "no token": np.empty(0, np.int32),
        "an empty answer": subject.sampled(""),
        "random tokens": np.array([rng.randrange(size) for _ in range(length)], np.int32),
        "a few random tokens": np.array([rng.randrange(size) for _ in range(3)], np.int32),
        "one token for ever": np.full(length, rng.randrange(size), np.int32),
        "digits for ever": np.resize(np.asarray(vocabulary.encode("7"), np.int32), length),
        "a text without end": np.resize(np.asarray(vocabulary.encode("so I think that "), np.int32), length),
    }
    controls = sorted(vocabulary.special_tokens.values())
    if controls:
        found["control tokens"] = np.array([rng.choice(controls) for _ in range(12)], np.int32)
    for number, text in enumerate(TEXTS):
        found[f"text {number} ({text[:20]!r})"] = subject.sampled(text)[:length]
    return found
