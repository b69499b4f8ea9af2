"""The limits that an endpoint serves within."""

from __future__ import annotations

import attrs

_at_least_one = attrs.validators.ge(1)


@attrs.frozen
class Limits:
    """What one client may ask for. More is refused, with the limit in the message."""

    max_tokens: int = attrs.field(default=4096, validator=_at_least_one)
    """Most tokens of an answer."""
    default_tokens: int = attrs.field(default=512, validator=_at_least_one)
    """Of a request that names no limit."""
    max_choices: int = attrs.field(default=16, validator=_at_least_one)
    """Most answers to one request (`n`), and most prompts in one."""
    max_body: int = attrs.field(default=4 * 2**20, validator=_at_least_one)
    """Bytes of a request."""
    concurrency: int = attrs.field(default=64, validator=_at_least_one)
    """Requests worked on at once; others wait."""
    waiting: int = attrs.field(default=256, validator=attrs.validators.ge(0))
    """Requests that may wait; further ones get 429 and are told to come again."""
    seconds: float = attrs.field(default=600.0, validator=attrs.validators.gt(0))
    """Of one request, waiting included; then it gets 504."""
