"""What servers of OpenAI's API do in their own way, as far as samples depend on it.

llama.cpp narrows its distribution unless told not to (top-k 40, min-p 0.05), so that what it draws is not what it reports the logprobs of; it knows no stop token ids; and the tokens of a stop string are missing from its answer.
So it is asked for all of the distribution, and its answers are cut here: it may write on behind a stop until `max_tokens`, which costs time and changes nothing. The end of a turn is a token that ends its answer by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from engine.backends.values import SamplingParams, Tokens


@attrs.frozen
class Server:
    """A kind of server."""

    name: str = "any"
    fields: Mapping[str, Any] = attrs.field(factory=dict)
    """What is sent with every sampling request, unless the request says otherwise."""
    stops: bool = True
    """Whether it ends an answer at stop sequences, their tokens included; where not, the answer is cut here."""


ANY = Server()
LLAMA_CPP = Server("llama.cpp", {"top_k": 0, "min_p": 0.0}, stops=False)


def recognised(entry: Mapping[str, Any]) -> Server:
    """The kind of server, by what it says of a model in its list of models."""
    return LLAMA_CPP if entry.get("owned_by") == "llamacpp" else ANY


def context_of(entry: Mapping[str, Any]) -> int | None:
    """The longest sequence that a model takes, where the server says it: vLLM's and our own `max_model_len`, llama.cpp's context of one slot."""
    meta = entry.get("meta")
    said = entry.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, Mapping) else None)
    return int(said) if said else None


def stop_at(params: SamplingParams, tokens_T: Tokens, choice: Mapping[str, Any]) -> int | None:
    """How many tokens an answer has up to its first stop, that included; None: there is none in it. A stop string is looked for in the bytes of the tokens."""
    ids = {stop for stop in params.stop if isinstance(stop, int)}
    ends = [at + 1 for at, token in enumerate(tokens_T.tolist()) if token in ids][:1]
    strings = [stop.encode() for stop in params.stop if isinstance(stop, str)]
    if strings:
        written = bytearray()
        for at, piece in enumerate(_pieces(choice)):
            written += piece
            if any(stop in written for stop in strings):
                ends.append(at + 1)
                break
    return min(ends, default=None)


def _pieces(choice: Mapping[str, Any]) -> Sequence[bytes]:
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    return [bytes(item.get("bytes") or ()) for item in content or () if isinstance(item, Mapping)]
