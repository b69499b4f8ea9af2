"""Loading a model and starting the backend on it. Importing this module loads torch."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.backends.errors import BackendError
from engine.backends.local.assembly import assemble
from engine.backends.local.backend import LocalBackend, LocalOptions
from engine.backends.local.models import load

_MOST_MICROBATCH_TOKENS = 4096
_LOGITS_PER_MICROBATCH = 2**26
"""Numbers in one microbatch's array of logits: 256 MB in float32."""


def start(
    model: str | Path,
    *,
    lora_rank: int | None,
    lora_alpha: float,
    dtype: str,
    device: str | None,
    seed: int,
    max_batch: int,
    microbatch_tokens: int | None,
    threads: int | None,
) -> LocalBackend:
    """See `engine.backends.local.open`. Blocks while the model is loaded."""
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise BackendError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    module, tokenizer = load(model, dtype)
    assembly = assemble(module, lora_rank=lora_rank, lora_alpha=lora_alpha, device=place, seed=seed)
    budget = microbatch_tokens or max(64, min(_MOST_MICROBATCH_TOKENS, _LOGITS_PER_MICROBATCH // assembly.vocab_size))
    return LocalBackend(assembly, tokenizer, LocalOptions("local", max_batch, budget, threads))
