"""What an environment's conformance check is given: a way to open the problems, and what may be asked of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

import attrs
import numpy as np

from engine.backends.values import Tokens
from engine.conformance import NotConforming, require
from engine.rendering import Message, Renderer, TrainOnWhat, assistant, user
from envs.contracts import GroupDataset

__all__ = ["Check", "NotConforming", "Subject", "require"]


@attrs.frozen
class Subject:
    """An environment under test. Small problems and short limits are enough."""

    open: Callable[[], AbstractAsyncContextManager[GroupDataset]]
    """Opens the problems afresh, with all they need (pools, servers, directories); leaving it closes all of that."""
    renderer: Renderer
    """The one the problems are rendered with."""
    answers: Sequence[str | Message | Sequence[int]] = ()
    """Answers that get somewhere: texts, messages (with tool calls, say), or token ids. Played besides garbage, in every turn any of them."""
    problems: Sequence[int] = (0, 1)
    """Indices of the problems that are looked at."""
    max_turns: int = 1
    """An episode ends by itself within so many turns, whatever is answered."""
    max_tokens: int = 96
    """Longest answer given, in tokens."""
    max_context: int = 8192
    """Longest prompt of an observation, in tokens."""
    seconds: float = 60.0
    """Most seconds that playing one group takes. They are the event loop's clock's: an env that waits for processes needs a real one."""
    patience: float = 5.0
    """Real seconds that what is being closed may take to be gone: a killed process is reaped in the background, a task ends at its next step."""
    cancellations: int = 16
    """How many of the moments at which a group can be cancelled are tried."""
    optional_metrics: frozenset[str] = frozenset()
    """Metrics that not every episode gives, by design."""
    timed_metrics: frozenset[str] = frozenset()
    """Metrics that measure time, and so differ between equal episodes."""
    pickles: bool = False
    """Group builders can be sent to another process."""
    gaps: Mapping[str, str] = attrs.field(factory=dict)
    """Checks this environment does not pass by design: name of the check → why. They are reported, not run."""

    def useful(self) -> list[Tokens]:
        """`answers` as sampled tokens, their stop included."""
        return [self.sampled(answer) for answer in self.answers]

    def sampled(self, answer: str | Message | Sequence[int]) -> Tokens:
        """What a model would have sampled to give this answer."""
        if not isinstance(answer, str | Message):
            return np.asarray(answer, np.int32)
        message = assistant(answer) if isinstance(answer, str) else answer
        # What is trained of an answer is what is sampled of it: the content, and the stop.
        examples = self.renderer.supervised_examples([user("?"), message], TrainOnWhat.LAST_ASSISTANT_MESSAGE)
        (example,) = examples
        return example.model_input.tokens[np.asarray(example.weights_T) > 0]


Check = Callable[[Subject], Awaitable[None]]
"""Raises NotConforming when the environment breaks the promise that the check's docstring states."""
