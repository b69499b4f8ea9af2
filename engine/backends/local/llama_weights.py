"""A Llama's weights, laid out for computing: fused projections by layer, and what reading a sequence and decoding have in common.

Dimension suffixes: `T` positions, `V` vocabulary, `D` head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from engine.backends.local.kernels import rms_norm, swiglu
from engine.backends.local.parameters import Unit


@attrs.frozen
class LlamaShape:
    """The architecture's numbers."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    lora_scale: float | None
    """Alpha over rank; None: no adapters."""
    tied: bool
    """Whether the output head is the embedding."""
    biased: frozenset[str]
    """Modules of a layer that have a bias."""

    @property
    def qkv_widths(self) -> tuple[int, int, int]:
        """Rows of the query, key and value matrices."""
        return self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim


_GROUPS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


def _unit(layer: int, group: str, kind: str) -> Unit:
    return tuple(f"model.layers.{layer}.{module}.{kind}" for module in _GROUPS[group])


def base_units(shape: LlamaShape) -> list[Unit]:
    """The fused matrices of the model's own weights."""
    units = []
    for layer in range(shape.layers):
        for group, modules in _GROUPS.items():
            units.append(_unit(layer, group, "weight"))
            if shape.biased.issuperset(modules):
                units.append(_unit(layer, group, "bias"))
    return units


def adapter_units(shape: LlamaShape) -> list[Unit]:
    """The joined matrices of the LoRA adapters."""
    kinds = ("lora_A.weight", "lora_B.weight")
    return [_unit(layer, group, kind) for layer in range(shape.layers) for group in _GROUPS for kind in kinds]


@attrs.frozen(eq=False)
class Projection:
    """One or several linear layers with the same input, as one."""

    weight: Tensor
    bias: Tensor | None
    adapter: tuple[Tensor, Tensor] | None
    """LoRA's A of all the layers, and B as one block-diagonal matrix, scaled."""

    def __call__(self, x: Tensor) -> Tensor:
        y = functional.linear(x, self.weight, self.bias)
        if self.adapter is None:
            return y
        down, up = self.adapter
        return y + functional.linear(functional.linear(x, down), up)


@attrs.frozen(eq=False)
class Layer:
    """One block."""

    norm_in: Tensor
    qkv: Projection
    out: Projection
    norm_mlp: Tensor
    gate_up: Projection
    down: Projection


def _block_diagonal(up: Tensor, widths: Sequence[int]) -> Tensor:
    """LoRA's B matrices, given one below the other, as one matrix that keeps their inputs apart."""
    rank, row = up.shape[1], 0
    parts = []
    for place, width in enumerate(widths):
        parts.append(functional.pad(up[row : row + width], (place * rank, (len(widths) - 1 - place) * rank)))
        row += width
    return torch.cat(parts)


class Rope:
    """Rotary position tables, grown as longer sequences come. `compute` gives (cos_T_D, sin_T_D) for the first T positions."""

    def __init__(self, compute: Callable[[int], tuple[Tensor, Tensor]]) -> None:
        self._compute = compute
        self._tables = self._signed(256)

    def _signed(self, length: int) -> tuple[Tensor, Tensor]:
        cos_T_D, sin_T_D = self._compute(length)
        half = sin_T_D.shape[-1] // 2
        # The sign that swapping a head's halves takes is paid once, here.
        return cos_T_D.contiguous(), torch.cat((-sin_T_D[:, :half], sin_T_D[:, half:]), -1)

    def tables(self, length: int) -> tuple[Tensor, Tensor]:
        """cos_T_D and signed sin_T_D for at least `length` positions."""
        if length > len(self._tables[0]):
            self._tables = self._signed(max(length, 2 * len(self._tables[0])))
        return self._tables


class LlamaWeights:
    """A model's tensors by layer. `tensors`: all of them by unit, trained or not."""

    def __init__(self, shape: LlamaShape, rope: Rope, tensors: Mapping[Unit, Tensor]) -> None:
        self.shape = shape
        self.rope = rope
        self.embedding = tensors["model.embed_tokens.weight",]
        self.head = self.embedding if shape.tied else tensors["lm_head.weight",]
        self.norm = tensors["model.norm.weight",]
        self.layers = [self._layer(tensors, index) for index in range(shape.layers)]

    def _layer(self, tensors: Mapping[Unit, Tensor], index: int) -> Layer:
        prefix = f"model.layers.{index}."
        projections = {group: self._projection(tensors, index, group) for group in _GROUPS}
        return Layer(
            norm_in=tensors[prefix + "input_layernorm.weight",],
            norm_mlp=tensors[prefix + "post_attention_layernorm.weight",],
            **projections,
        )

    def _projection(self, tensors: Mapping[Unit, Tensor], index: int, group: str) -> Projection:
        weight = tensors[_unit(index, group, "weight")]
        bias = tensors.get(_unit(index, group, "bias"))
        if self.shape.lora_scale is None:
            return Projection(weight, bias, None)
        down = tensors[_unit(index, group, "lora_A.weight")]
        up = tensors[_unit(index, group, "lora_B.weight")] * self.shape.lora_scale
        widths = {"qkv": self.shape.qkv_widths, "gate_up": (len(weight) // 2,) * 2}.get(group)
        return Projection(weight, bias, (down, up if widths is None else _block_diagonal(up, widths)))

    def mlp(self, layer: Layer, x: Tensor) -> Tensor:
        """The block's second half, residual included."""
        return x + layer.down(swiglu(layer.gate_up(rms_norm(x, layer.norm_mlp, self.shape.eps))))

    def logits(self, hidden: Tensor) -> Tensor:
        """What follows, (..., V), float32, where `hidden` is behind the final norm."""
        return functional.linear(hidden, self.head).float()
