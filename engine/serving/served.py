"""What an endpoint serves: a policy under a name, and who is told of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from engine.backends.ports import StreamingPolicy
from engine.backends.streaming import tell_all
from engine.backends.values import Completion, SampleRequest
from engine.completion import Samples
from engine.rendering.renderer import Renderer
from engine.serving.limits import Limits

OnToken = Callable[[int, int, float], None]


class Observer(Protocol):
    """Told of every answered request, with its tokens and logprobs: how a policy in training learns from what a client of the endpoint made it do."""

    def __call__(self, name: str, request: SampleRequest, completions: Sequence[Completion]) -> None: ...


@attrs.frozen
class ServedPolicy:
    """A policy behind a name."""

    policy: Samples
    renderer: Renderer
    max_context: int | None = None
    """Longest sequence the model takes; None: unknown."""

    async def sample(self, request: SampleRequest, on_token: OnToken | None) -> Sequence[Completion]:
        """The completions; `on_token(index, token, logprob)` hears of each token as it comes, or of all at the end where the policy cannot stream."""
        if on_token is not None and isinstance(self.policy, StreamingPolicy):
            return await self.policy.sample_streaming(request, on_token)
        completions = await self.policy.sample(request)
        if on_token is not None:
            tell_all(completions, on_token)
        return completions


@attrs.frozen
class Work:
    """One request in hand: the policy that it asks for, and what it may ask."""

    name: str
    served: ServedPolicy
    limits: Limits
    observer: Observer | None

    async def sample(self, request: SampleRequest, on_token: OnToken | None = None) -> Sequence[Completion]:
        """Asks the policy, and tells the observer."""
        completions = await self.served.sample(request, on_token)
        if self.observer is not None:
            self.observer(self.name, request, completions)
        return completions
