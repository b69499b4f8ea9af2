"""Policies for tests of the endpoint: they say what they are told to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
import numpy as np

from engine.backends import Completion, SampleRequest
from engine.rendering import Message, get_renderer, user
from engine.rendering.registry import control_tokens
from engine.rendering.vocabulary import byte_vocabulary

RENDERER = get_renderer("qwen3", byte_vocabulary(control_tokens("qwen3")))


def tokens_of(message: Message, *, ended: bool = True) -> list[int]:
    """What a model samples that says this."""
    (example,) = RENDERER.supervised_examples([user("?"), message])
    tokens: list[int] = example.model_input.tokens[example.weights_T > 0].tolist()
    return tokens if ended else tokens[:-1]


class Says:
    """Every sample is the same; the logprob of token i is −i/8."""

    def __init__(self, tokens: Sequence[int], reason: str = "stop", *, seconds: float = 0.0) -> None:
        self.tokens = tokens
        self.reason = reason
        self.seconds = seconds
        self.requests: list[SampleRequest] = []
        self.present = self.peak = 0
        self.error: Exception | None = None

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        self.requests.append(request)
        self.present += 1
        self.peak = max(self.peak, self.present)
        try:
            await anyio.sleep(self.seconds)
            if self.error is not None:
                raise self.error
        finally:
            self.present -= 1
        tokens = np.array(self.tokens, np.int32)
        logprobs = -np.arange(len(tokens), dtype=np.float32) / 8
        return [Completion(tokens, logprobs, self.reason, 3)] * request.num_samples  # type: ignore[arg-type]


class Streams(Says):
    """Tells of a token every `seconds`, of all samples in turn."""

    async def sample_streaming(
        self, request: SampleRequest, on_token: Callable[[int, int, float], None]
    ) -> Sequence[Completion]:
        self.requests.append(request)
        self.present += 1
        try:
            for n, token in enumerate(self.tokens):
                await anyio.sleep(self.seconds)
                if self.error is not None and n == 3:
                    raise self.error
                for index in range(request.num_samples):
                    on_token(index, token, -n / 8)
        finally:
            self.present -= 1
        tokens = np.array(self.tokens, np.int32)
        logprobs = -np.arange(len(tokens), dtype=np.float32) / 8
        return [Completion(tokens, logprobs, self.reason, 3)] * request.num_samples  # type: ignore[arg-type]
