"""Small random training data for the tests of losses, corrections and KL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.backends.values import Datum, ModelInput


def policy_data(
    seed: int, lengths: Sequence[int] = (5, 1, 8, 3), drift: float = 0.5, *, per_token: bool = False
) -> tuple[list[Datum], list[Any]]:
    """Datums as assembly makes them (a prompt position or more, then actions), all optional fields too, and new logprobs that have drifted.

    `per_token`: each token has an advantage of its own, rather than each sequence.
    """
    random = np.random.default_rng(seed)
    data, logprobs = [], []
    for length in lengths:
        prompt = int(random.integers(1, 4))
        mask = np.concatenate([np.zeros(prompt), np.ones(length)])
        if length > 4:
            mask[prompt + 2] = 0  # a second observation
        sampler = -random.exponential(1.5, prompt + length)
        new = np.minimum(sampler + drift * random.normal(size=prompt + length), -1e-3)
        advantage = random.normal(size=prompt + length) if per_token else float(random.normal())
        fields = {
            "logprobs": sampler * mask,
            "advantages": advantage * mask,
            "mask": mask,
            "weights": mask,
            "proximal_logprobs": np.minimum(sampler + drift / 2 * random.normal(size=prompt + length), -1e-3) * mask,
            "reference_logprobs": (sampler + drift * random.normal(size=prompt + length)) * mask,
            "target_tokens": random.integers(0, 50, prompt + length),
        }
        data.append(Datum(ModelInput.from_tokens(random.integers(0, 50, prompt + length)), fields))
        logprobs.append(new)
    return data, logprobs


def replaced(data: Sequence[Datum], **fields: Any) -> list[Datum]:
    """The datums with other arrays; each a function of the datum's arrays."""
    return [
        Datum(
            datum.model_input, {**datum.loss_inputs, **{name: make(datum.loss_inputs) for name, make in fields.items()}}
        )
        for datum in data
    ]
