"""What a rollout of theirs tells us of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs


@attrs.frozen
class Asked:
    """The harness asks its model something."""

    body: Mapping[str, Any]
    """As OpenAI's chat API has it."""


@attrs.frozen
class Ended:
    """The rollout is over, and scored."""

    reward: float = 0.0
    metrics: Mapping[str, float] = attrs.field(factory=dict)
    stopped: str | None = None
    """Why, in words of verifiers': a limit, a stop of the task's."""
    error: str | None = None
    """What went wrong; then there is no score."""
    refused: bool = False
    """Whether that is something which is not offered here, as it was found before it was tried."""


News = Asked | Ended
