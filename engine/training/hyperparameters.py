"""Learning rates to start from, and how many parameters an adapter has, from a model's shape alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs

Family = Literal["llama", "qwen"]

# Fitted over supervised sweeps: how fast the best rate falls with width.
_EXPONENTS: Mapping[str, float] = {"llama": 0.781, "qwen": 0.0775}

_HIDDEN_SIZES: Mapping[str, int] = {
    "Llama-3.2-1B": 2048,
    "Llama-3.2-3B": 3072,
    "Llama-3.1-8B": 4096,
    "Llama-3.1-70B": 8192,
    "Llama-3.3-70B": 8192,
    "SmolLM2-135M": 576,
    "SmolLM2-360M": 960,
    "SmolLM2-1.7B": 2048,
    "Qwen2.5-0.5B": 896,
    "Qwen2.5-1.5B": 1536,
    "Qwen2.5-3B": 2048,
    "Qwen2.5-7B": 3584,
    "Qwen2.5-14B": 5120,
    "Qwen2.5-32B": 5120,
    "Qwen2.5-72B": 8192,
    "Qwen3-0.6B": 1024,
    "Qwen3-1.7B": 2048,
    "Qwen3-4B": 2560,
    "Qwen3-8B": 4096,
    "Qwen3-14B": 5120,
    "Qwen3-32B": 5120,
    "Qwen3-30B-A3B": 2048,
    "Qwen3-235B-A22B": 4096,
}


def recommended_learning_rate(hidden_size: int, family: Family, *, lora: bool = True) -> float:
    """5e-5·(2000/hidden)^e, and ten times that for LoRA, whatever its rank; e = 0.781 for Llama, 0.0775 for Qwen. For AdamW.

    A place to start a sweep from, not its result. Raises ValueError for a family without a fitted exponent.
    """
    if family not in _EXPONENTS:
        raise ValueError(
            f"no learning-rate exponent is known for the family {family!r}; there are {', '.join(_EXPONENTS)}: set the learning rate yourself"
        )
    if hidden_size < 1:
        raise ValueError(f"a model's hidden size is at least 1, not {hidden_size}")
    return 5e-5 * (10 if lora else 1) * float((2000 / hidden_size) ** _EXPONENTS[family])


def learning_rate_for(model: str | Mapping[str, Any], *, lora: bool = True) -> float:
    """`recommended_learning_rate` of a model by its hub name, or by its Hugging Face configuration (`model_type`, `hidden_size`).

    Raises ValueError for a name that is not in the table and for a family without a fitted exponent.
    """
    if isinstance(model, str):
        base = model.rsplit("/", 1)[-1]
        matches = [name for name in _HIDDEN_SIZES if base == name or base.startswith(name + "-")]
        if not matches:
            raise ValueError(
                f"no learning rate is known for {model!r}; give its configuration, or set the learning rate yourself"
            )
        name = max(matches, key=len)
        return recommended_learning_rate(_HIDDEN_SIZES[name], "qwen" if name.startswith("Qwen") else "llama", lora=lora)
    kind = str(model.get("model_type", ""))
    family = next((each for each in _EXPONENTS if kind.startswith(each)), kind)
    return recommended_learning_rate(int(model["hidden_size"]), family, lora=lora)  # type: ignore[arg-type]  # checked there


@attrs.frozen
class ModelShape:
    """The widths of a decoder-only transformer with a gated MLP, as Llama and Qwen have it."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool = False
    attention_biases: int = 0
    """How many of the q, k, v and o projections, in this order, have a bias."""
    qk_norm: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """From a Hugging Face configuration of a dense Llama or Qwen model. Raises ValueError, naming it, for a missing key or a mixture of experts."""
        if config.get("num_experts") or config.get("num_local_experts"):
            raise ValueError(
                "the configuration is of a mixture of experts, whose adapters are counted differently by each backend"
            )
        try:
            hidden, heads, kind = (
                config["hidden_size"],
                config["num_attention_heads"],
                str(config.get("model_type", "")),
            )
            return cls(
                hidden_size=hidden,
                intermediate_size=config["intermediate_size"],
                layers=config["num_hidden_layers"],
                heads=heads,
                kv_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or hidden // heads,
                vocab_size=config["vocab_size"],
                tied_embeddings=bool(config.get("tie_word_embeddings", False)),
                attention_biases=3 if kind == "qwen2" else 4 if config.get("attention_bias") else 0,
                qk_norm=kind == "qwen3",
            )
        except KeyError as error:
            raise ValueError(
                f"the model's configuration has no {error.args[0]!r}, so its shape is not known"
            ) from error

    @property
    def attention_matrices(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of a layer's q, k, v and o projections."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (
            (self.hidden_size, queries),
            (self.hidden_size, keys),
            (self.hidden_size, keys),
            (queries, self.hidden_size),
        )

    @property
    def mlp_matrices(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of a layer's gate, up and down projections."""
        wide = (self.hidden_size, self.intermediate_size)
        return wide, wide, wide[::-1]


def lora_parameters(
    shape: ModelShape, rank: int, *, attention: bool = True, mlp: bool = True, unembed: bool = False
) -> int:
    """Parameters of a LoRA adapter: rank·(inputs + outputs) for each matrix it is on. arXiv 2106.09685."""
    matrices = (shape.attention_matrices if attention else ()) + (shape.mlp_matrices if mlp else ())
    sides = shape.layers * sum(inputs + outputs for inputs, outputs in matrices)
    if unembed:
        sides += shape.hidden_size + shape.vocab_size
    return rank * sides


def model_parameters(shape: ModelShape) -> int:
    """All parameters of the model: embeddings, projections, norms and biases."""
    matrices = shape.attention_matrices + shape.mlp_matrices
    layer = sum(inputs * outputs for inputs, outputs in matrices) + 2 * shape.hidden_size
    layer += sum(outputs for _, outputs in shape.attention_matrices[: shape.attention_biases])
    if shape.qk_norm:
        layer += 2 * shape.head_dim
    embeddings = shape.vocab_size * shape.hidden_size * (1 if shape.tied_embeddings else 2)
    return shape.layers * layer + embeddings + shape.hidden_size
