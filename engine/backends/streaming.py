"""Tokens told of one by one, by backends and policies that can, and for those that cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.backends.values import Completion


def tell_all(
    completions: Sequence[Completion], on_token: Callable[[int, int, float], None], told: Sequence[int] = ()
) -> None:
    """Tells of the tokens of finished completions; of each, from the one behind the first `told[index]`."""
    for index, completion in enumerate(completions):
        first = told[index] if told else 0
        pairs = zip(completion.tokens[first:].tolist(), completion.logprobs[first:].tolist(), strict=True)
        for token, logprob in pairs:
            on_token(index, token, logprob)
