"""A renderer over bytes and policies that say what they are told to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
import numpy as np

from engine.backends import Completion, SampleRequest
from engine.rendering import assistant, get_renderer, user
from engine.rendering.vocabulary import byte_vocabulary

RENDERER = get_renderer("role_colon", byte_vocabulary(()))
QUESTION = (user("Name an animal."),)


def completion(text: str, *, ended: bool = True) -> Completion:
    """The tokens of an answer, with its stop where it `ended`."""
    (example,) = RENDERER.supervised_examples([*QUESTION, assistant(text)])
    tokens = example.model_input.tokens[example.weights_T > 0]
    tokens = tokens if ended else tokens[:-2]
    return Completion(tokens, np.zeros(len(tokens), np.float32), "stop" if ended else "length", 0)


class Says:
    """A policy: `say(question, sample's place in its request)` is the answer."""

    def __init__(self, say: Callable[[str, int], str], *, seconds: float = 0.0, ended: bool = True) -> None:
        self.say = say
        self.seconds = seconds
        self.ended = ended
        self.requests: list[SampleRequest] = []

    async def sample(self, request: SampleRequest) -> Sequence[Completion]:
        self.requests.append(request)
        await anyio.sleep(self.seconds)
        asked = RENDERER.vocabulary.decode(request.prompt.tokens)
        text = asked.removeprefix("User: ").removesuffix("\n\nAssistant:")
        return [completion(self.say(text, place), ended=self.ended) for place in range(request.num_samples)]
