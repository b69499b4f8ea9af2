"""What `open` is told beside the model and the server."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

_SHORTEST, _LONGEST = 3600.0, 10 * 365 * 86400.0
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


def _lifetime(_: object, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if (wrong := wrong_lifetime(value)) is not None:
        raise ValueError(f"'{attribute.name}' {wrong}")


def wrong_lifetime(seconds: float | None) -> str | None:
    """What is wrong with a time-to-live; None: nothing."""
    if seconds is None or _SHORTEST <= seconds <= _LONGEST:
        return None
    return (
        f"must be None (for ever) or from {_SHORTEST:g} (an hour) to {_LONGEST:g} (ten years) seconds, not {seconds:g}"
    )


def _fits(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
    if not _NAME.fullmatch(value):
        raise ValueError(f"'{attribute.name}' must be letters, digits, '-' and '_', at most 100 of them: {value!r}")


_positive: Any = attrs.validators.gt(0)


@attrs.frozen(kw_only=True)
class TinkerOptions:
    """How the backend behaves."""

    lora_rank: int = attrs.field(default=32, validator=attrs.validators.ge(1))
    """Of the adapters that are trained."""
    train_mlp: bool | None = None
    train_attn: bool | None = None
    train_unembed: bool | None = None
    """Which layers get adapters; None: the server's choice. The hosted one trains them all; SkyRL's trains all but the output, and cannot be told."""
    seed: int | None = None
    """Of the adapters' initial weights; None: the server's choice. Sampling has a seed for each request."""
    own_snapshots: bool | None = None
    """Give every snapshot a model of its own on the server; None: where sampling would otherwise disturb training (`engine.backends.tinker.servers`)."""
    images: bool | None = None
    """Whether inputs may hold images; None: as the server is known."""
    max_context: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(2)))
    """Longest sequence, prompt and answer together; None: what the server or the model's config.json says, if they do."""
    vocab_size: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """Token ids are below this; None: what the model's config.json says, where the model is a directory, else unknown."""
    snapshot_ttl: float | None = attrs.field(default=7 * 86400.0, validator=_lifetime)
    """Seconds after which the server deletes what was only sampled from, where it has a time to live. Released snapshots are deleted at once."""
    deadline: float = attrs.field(default=1800.0, validator=_positive)
    """Most seconds without an answer to any training work that was submitted."""
    request_deadline: float = attrs.field(default=1800.0, validator=_positive)
    """Most seconds for an answer to one sampling request."""
    unreachable_after: float = attrs.field(default=45.0, validator=_positive)
    """Seconds for which the server's port may take no connections before waiting for it ends."""
    attempts: int = attrs.field(default=3, validator=attrs.validators.ge(1))
    """How often a sampling request is tried where the failure may pass."""
    backoff: float = attrs.field(default=0.5, validator=attrs.validators.ge(0))
    """Seconds before the second attempt; doubled for each further one, with up to half as much again at random."""
    name: str = attrs.field(default="callsheet", validator=_fits)
    """How the names of what is saved on the server begin."""

    @property
    def layers(self) -> dict[str, bool]:
        """What was said of the layers."""
        said = {name: getattr(self, name) for name in ("train_mlp", "train_attn", "train_unembed")}
        return {name: value for name, value in said.items() if value is not None}

    def unique_name(self, what: str, version: int) -> str:
        """A name that nothing on the server has: taking one that exists is refused, and the SDK would try it again for five minutes."""
        return f"{self.name}-{what}-{version:06d}-{uuid.uuid4().hex[:12]}"


def whole_seconds(ttl: float | None) -> int | None:
    """A time-to-live as the API takes it."""
    return None if ttl is None else round(ttl)


def expiry(ttl: float | None) -> str | None:
    """When something saved now ends."""
    return None if ttl is None else (datetime.now(UTC) + timedelta(seconds=ttl)).isoformat(timespec="seconds")
