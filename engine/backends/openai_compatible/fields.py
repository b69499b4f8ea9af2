"""Fields that the chat and the completions API share."""

from __future__ import annotations

from typing import Any

from engine.backends.values import SamplingParams, StopReason


def stops(params: SamplingParams) -> dict[str, Any]:
    """Stop strings, and stop tokens as vLLM and SGLang take them."""
    strings = [stop for stop in params.stop if isinstance(stop, str)]
    tokens = [stop for stop in params.stop if isinstance(stop, int)]
    return ({"stop": strings} if strings else {}) | ({"stop_token_ids": tokens} if tokens else {})


def stop_reason(finish: object) -> StopReason:
    """Why an answer ended: `length` where it was cut off, else `stop` (a stop sequence, a tool call, a filter)."""
    return "length" if finish == "length" else "stop"
