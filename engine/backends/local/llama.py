"""The Llama family's forward pass, written out: fused projections, a preallocated cache, no repeated key-value heads.

It computes what Hugging Face's modules compute (a check at loading compares the two) with fewer and larger operations, and, unlike a
module, it takes its weights as an argument: that is how a sampler serves several versions at once.

Dimension suffixes: `B` rows, `T` positions, `H` hidden, `V` vocabulary, `D` head dimension, `K` key-value heads, `L` layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from engine.backends.local.network import Prefix, pad, target_logprobs
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
        # rotate_half(x)·sin = swap_halves(x)·(-sin, sin): the sign is paid once, here.
        return cos_T_D.contiguous(), torch.cat((-sin_T_D[:, :half], sin_T_D[:, half:]), -1)

    def tables(self, length: int) -> tuple[Tensor, Tensor]:
        """cos_T_D and signed sin_T_D for at least `length` positions."""
        if length > len(self._tables[0]):
            self._tables = self._signed(max(length, 2 * len(self._tables[0])))
        return self._tables


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotary position embedding of heads (..., heads, D)."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((second, first), -1) * signed_sin


class LlamaNetwork:
    """The architecture, with the weights that training does not change (all of them, where adapters are trained)."""

    def __init__(self, shape: LlamaShape, frozen: Mapping[Unit, Tensor], rope: Rope) -> None:
        self.shape = shape
        self._frozen = frozen
        self.rope = rope
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
        """Reads prompts together; each prefix keeps its keys and values, (L, 2K, T, D)."""
        tokens_B_T, lengths_B = pad(prompts, self.embedding.device)
        caches: list[Tensor] = []
        hidden_B_T_H = self.hidden(tokens_B_T, caches)
        rows_B = torch.arange(len(prompts), device=lengths_B.device)
        logits_B_V = self.logits(hidden_B_T_H[rows_B, lengths_B - 1])
        cache_L_B_T_K_D = torch.stack(caches)
        return [
            Prefix(len(prompt), cache_L_B_T_K_D[:, row, : len(prompt)].transpose(1, 2).contiguous(), logits_B_V[row])
            for row, prompt in enumerate(prompts)
        ]

    def decode_batch(self) -> LlamaBatch:
        """An empty batch."""
        return LlamaBatch(self)

    def target_logprobs(self, inputs: Sequence[Tokens], targets_N: Tensor, active_N: Tensor) -> Tensor:
        """Log-probabilities (N,) of the token that follows each position; gradients only where `active_N`."""
        tokens_B_T, lengths_B = pad(inputs, self.embedding.device)
        hidden_B_T_H = self.hidden(tokens_B_T)
        present_B_T = torch.arange(tokens_B_T.shape[1], device=lengths_B.device) < lengths_B[:, None]
        hidden_N_H = hidden_B_T_H[present_B_T]
        if not torch.is_grad_enabled():
            return target_logprobs(hidden_N_H, self.head, targets_N)
        logprobs_N = torch.empty(len(targets_N), device=targets_N.device)
        with torch.no_grad():
            logprobs_N[~active_N] = target_logprobs(hidden_N_H[~active_N], self.head, targets_N[~active_N])
        return logprobs_N.masked_scatter(
            active_N, target_logprobs(hidden_N_H[active_N], self.head, targets_N[active_N])
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """What follows, (..., V), float32."""
        return functional.linear(hidden, self.head).float()

    def rope(self, length: int) -> tuple[Tensor, Tensor]:
        """Rotary tables for at least `length` positions."""
        return self._rope.tables(length)

    def mlp(self, layer: Layer, x: Tensor) -> Tensor:
        """The block's second half, residual included."""
        gate, up = layer.gate_up(functional.rms_norm(x, x.shape[-1:], layer.norm_mlp, self.shape.eps)).chunk(2, -1)
        return x + layer.down(functional.silu(gate) * up)

    def hidden(self, tokens_B_T: Tensor, caches: list[Tensor] | None = None) -> Tensor:
        """The last layer's output behind the final norm, (B, T, H). `caches` collects each layer's (B, T, 2K, D)."""
        shape = self.shape
        length = tokens_B_T.shape[1]
        cos_T_D, sin_T_D = (table[:length, None] for table in self.rope(length))
        x = functional.embedding(tokens_B_T, self.embedding)
        for layer in self.layers:
            qkv = layer.qkv(functional.rms_norm(x, x.shape[-1:], layer.norm_in, shape.eps))
            qkv = qkv.view(*x.shape[:-1], -1, shape.head_dim)
            turned, values = qkv.tensor_split((shape.heads + shape.kv_heads,), -2)
            turned = rotate(turned, cos_T_D, sin_T_D)
            queries, keys = turned.tensor_split((shape.heads,), -2)
            if caches is not None:
                caches.append(torch.cat((keys, values), -2))
            if shape.heads != shape.kv_heads:
                keys, values = (part.repeat_interleave(shape.heads // shape.kv_heads, -2) for part in (keys, values))
            mixed = functional.scaled_dot_product_attention(
                queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), is_causal=True
            )
            x = x + layer.out(mixed.transpose(1, 2).flatten(-2))
            x = self.mlp(layer, x)
        return functional.rms_norm(x, x.shape[-1:], self.norm, shape.eps)


class LlamaBatch:
    """Rows decoded together. One cache (L, B, 2K, T, D) holds keys and values; rows and positions beyond what is in use are spare room.

    Each row has its own length: a mask of zeros and minus infinity hides what lies behind it.
    """

    def __init__(self, bound: BoundLlama) -> None:
        self._bound = bound
        self._lengths: list[int] = []
        head = bound.head
        self._cache = head.new_empty(bound.shape.layers, 0, 2 * bound.shape.kv_heads, 0, bound.shape.head_dim)
        self._mask_B_T = head.new_empty(0, 0)

    def add(self, prefix: Prefix, count: int) -> None:
        """Appends `count` rows that go on from `prefix`."""
        first, last = len(self._lengths), len(self._lengths) + count
        self._lengths += [prefix.length] * count
        self._reserve(last, prefix.length + 1)
        kv = prefix.state
        if not isinstance(kv, Tensor):
            raise TypeError("this prefix was made by another network")
        self._cache[:, first:last, :, : prefix.length] = kv[:, None]
        self._mask_B_T[first:last] = -torch.inf
        self._mask_B_T[first:last, : prefix.length] = 0

    def drop(self, row: int) -> None:
        """Removes a row; the last row takes its place."""
        last = len(self._lengths) - 1
        if row != last:
            length = self._lengths[last]
            self._cache[:, row, :, :length] = self._cache[:, last, :, :length]
            self._mask_B_T[row] = self._mask_B_T[last]
            self._lengths[row] = length
        self._lengths.pop()

    def step(self, tokens_B: Tensor) -> Tensor:
        """Appends one token to each row and gives what follows, logits_B_V in float32."""
        bound, shape, rows = self._bound, self._bound.shape, len(self._lengths)
        reach = max(self._lengths) + 1
        self._reserve(rows, reach)
        rows_B = torch.arange(rows, device=tokens_B.device)
        position_B = torch.tensor(self._lengths, device=tokens_B.device)
        self._mask_B_T[rows_B, position_B] = 0
        mask = self._mask_B_T[:rows, None, None, :reach]
        cos_B_D, sin_B_D = (table[position_B, None] for table in bound.rope(reach))
        groups = (shape.kv_heads, shape.heads // shape.kv_heads)
        x = functional.embedding(tokens_B, bound.embedding)
        for layer, cache in zip(bound.layers, self._cache, strict=True):
            qkv = layer.qkv(functional.rms_norm(x, x.shape[-1:], layer.norm_in, shape.eps))
            qkv = qkv.view(*x.shape[:-1], -1, shape.head_dim)
            turned, values = qkv.tensor_split((shape.heads + shape.kv_heads,), -2)
            turned = rotate(turned, cos_B_D, sin_B_D)
            cache[rows_B, :, position_B] = torch.cat((turned[:, shape.heads :], values), 1)
            keys, values = cache[:rows, :, :reach].chunk(2, 1)
            # The queries that share a key-value head stand where positions usually do: nothing is repeated.
            queries = turned[:, : shape.heads].view(rows, *groups, shape.head_dim)
            mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
            x = x + layer.out(mixed.flatten(1))
            x = bound.mlp(layer, x)
        self._lengths = [length + 1 for length in self._lengths]
        return bound.logits(functional.rms_norm(x, x.shape[-1:], bound.norm, shape.eps))

    def _reserve(self, rows: int, length: int) -> None:
        """Makes room; grows by half at least, so that copying stays a small share."""
        layers, had_rows, heads, had_length, width = self._cache.shape
        if rows <= had_rows and length <= had_length:
            return
        new_rows = had_rows if rows <= had_rows else max(rows, had_rows + had_rows // 2)
        new_length = had_length if length <= had_length else max(length + 31, had_length + had_length // 2)
        cache = self._cache.new_zeros(layers, new_rows, heads, new_length, width)
        cache[:, :had_rows, :, :had_length] = self._cache
        mask_B_T = self._mask_B_T.new_full((new_rows, new_length), -torch.inf)
        mask_B_T[:had_rows, :had_length] = self._mask_B_T
        self._cache, self._mask_B_T = cache, mask_B_T
