"""The Llama family's forward pass, written out: fused projections, a preallocated cache, no repeated key-value heads.

It computes what Hugging Face's modules compute (a check at loading compares the two) with fewer and larger operations, and, unlike a
module, it takes its weights as an argument: that is how a sampler serves several versions at once.

Dimension suffixes: `B` rows, `T` positions, `H` hidden, `V` vocabulary, `D` head dimension, `K` key-value heads, `L` layers,
`U` positions that are computed (see `packing`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from engine.backends.local.kernels import rms_norm, swiglu, turn_heads
from engine.backends.local.llama_batch import LlamaBatch
from engine.backends.local.network import DecodeBatch, Prefix, target_logprobs
from engine.backends.local.packing import Pack, Packed, apart
from engine.backends.local.parameters import Unit
from engine.backends.values import Tokens


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


class LlamaNetwork:
    """The architecture, with the weights that training does not change (all of them, where adapters are trained)."""

    def __init__(self, shape: LlamaShape, frozen: Mapping[Unit, Tensor], rope: Rope) -> None:
        self.shape = shape
        self._frozen = frozen
        self.rope = rope
        self.shares_prefixes = True
        self.units: Sequence[Unit] = base_units(shape) if shape.lora_scale is None else adapter_units(shape)

    def bind(self, weights: Mapping[Unit, Tensor]) -> BoundLlama:
        """The network computing with `weights`, the trainable tensors by unit."""
        return BoundLlama(self, {**self._frozen, **weights})


class BoundLlama:
    """The Llama family's forward pass with weights."""

    def __init__(self, network: LlamaNetwork, tensors: Mapping[Unit, Tensor]) -> None:
        self.shape = network.shape
        self._rope = network.rope
        self.embedding = tensors["model.embed_tokens.weight",]
        self.head = self.embedding if self.shape.tied else tensors["lm_head.weight",]
        self.norm = tensors["model.norm.weight",]
        self.layers = [self._layer(tensors, index) for index in range(self.shape.layers)]

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

    def prefill(self, prompts: Sequence[Tokens]) -> list[Prefix]:
        """Reads prompts together; each prefix keeps its keys and values, (L, 2, K, T, D)."""
        packed = Packed.of(apart(prompts), prompts, self.embedding.device)
        rows, length = packed.own_shape
        caches: list[Tensor] = []
        hidden_U_H = self.hidden(packed, caches)
        ends_B = torch.tensor([row * length + len(prompt) - 1 for row, prompt in enumerate(prompts)])
        logits_B_V = self.logits(hidden_U_H[ends_B.to(hidden_U_H.device)])
        cache = torch.stack(caches).view(len(caches), 2, rows, length, -1, self.shape.head_dim).transpose(3, 4)
        return [
            Prefix(len(prompt), cache[:, :, row, :, : len(prompt)].contiguous(), logits_B_V[row])
            for row, prompt in enumerate(prompts)
        ]

    def decode_batch(self) -> DecodeBatch:
        """An empty batch."""
        return LlamaBatch(self)

    def target_logprobs(self, sequences: Sequence[Tokens], pack: Pack, targets_N: Tensor, active_N: Tensor) -> Tensor:
        """Log-probabilities (N,) of a target at each position of the pack's sequences; gradients only where `active_N`."""
        packed = Packed.of(pack, sequences, self.embedding.device)
        return target_logprobs(self.hidden(packed), self.head, packed.rows_N, targets_N, active_N)

    def logits(self, hidden: Tensor) -> Tensor:
        """What follows, (..., V), float32."""
        return functional.linear(hidden, self.head).float()

    def rope(self, length: int) -> tuple[Tensor, Tensor]:
        """Rotary tables for at least `length` positions."""
        return self._rope.tables(length)

    def mlp(self, layer: Layer, x: Tensor) -> Tensor:
        """The block's second half, residual included."""
        return x + layer.down(swiglu(layer.gate_up(rms_norm(x, layer.norm_mlp, self.shape.eps))))

    def hidden(self, packed: Packed, caches: list[Tensor] | None = None) -> Tensor:
        """The last layer's output behind the final norm, (U, H). `caches` collects each layer's keys and values, (2, U, K, D)."""
        shape = self.shape
        reach = sum(length for _, length in (packed.prefix_shape, packed.own_shape))
        cos_U_D, sin_U_D = (table[packed.positions_U, None] for table in self.rope(reach))
        unseen = packed.hidden_B_T_S
        mask = None if unseen is None else torch.where(unseen, -torch.inf, 0.0).to(self.embedding.dtype)[:, None]
        x = functional.embedding(packed.tokens_U, self.embedding)
        for layer in self.layers:
            qkv = layer.qkv(rms_norm(x, layer.norm_in, shape.eps)).view(len(x), -1, shape.head_dim)
            queries, keys, values = turn_heads(qkv, shape.heads, shape.kv_heads, cos_U_D, sin_U_D)
            if caches is not None:
                caches.append(torch.stack((keys, values)))
            x = x + layer.out(attend(queries, keys, values, packed, mask).flatten(1))
            x = self.mlp(layer, x)
        return rms_norm(x, self.norm, shape.eps)


def attend(queries: Tensor, keys: Tensor, values: Tensor, packed: Packed, mask: Tensor | None) -> Tensor:
    """Causal attention in a pack, each (U, heads, D): prefixes among themselves, own tokens to their prefix and themselves."""
    if keys.shape[1] != queries.shape[1]:
        keys, values = (part.repeat_interleave(queries.shape[1] // part.shape[1], 1) for part in (keys, values))
    if mask is None:
        return _attention(*(part.view(*packed.own_shape, *part.shape[1:]) for part in (queries, keys, values)))
    sizes = [math.prod(packed.prefix_shape), math.prod(packed.own_shape)]
    shapes = [packed.prefix_shape, packed.own_shape]
    (queries_first, queries_own), (keys_first, keys_own), (values_first, values_own) = (
        [rows.view(*shape, *part.shape[1:]) for rows, shape in zip(torch.split(part, sizes), shapes, strict=True)]
        for part in (queries, keys, values)
    )
    keys_seen, values_seen = (
        torch.cat((first.index_select(0, packed.family_B), own), 1)
        for first, own in ((keys_first, keys_own), (values_first, values_own))
    )
    first_U = _attention(queries_first, keys_first, values_first)
    return torch.cat((first_U, _attention(queries_own, keys_seen, values_seen, mask)))


def _attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of (B, T, heads, D), causal where no mask is given; (B · T, heads, D)."""
    mixed = functional.scaled_dot_product_attention(
        queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask, is_causal=mask is None
    )
    return mixed.transpose(1, 2).flatten(0, 1)
