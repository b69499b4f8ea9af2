"""The Llama family's forward pass, written out: fused projections, a preallocated cache, no repeated key-value heads.

It computes what Hugging Face's modules compute (a check at loading compares the two) with fewer and larger operations, and, unlike a
module, it takes its weights as an argument: that is how a sampler serves several versions at once.

    llama (reading sequences)  -->  llama_batch (decoding, a token a row)  -->  llama_weights (the tensors, by layer)

Dimension suffixes: `B` rows, `T` positions, `S` positions that are seen, `H` hidden, `V` vocabulary, `D` head dimension, `K` key-value heads,
`L` layers, `U` positions that are computed (see `packing`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from engine.backends.local.kernels import rms_norm, turn_heads
from engine.backends.local.llama_batch import LlamaBatch
from engine.backends.local.llama_weights import LlamaShape, LlamaWeights, Rope, adapter_units, base_units
from engine.backends.local.network import DecodeBatch, Prefix, target_logprobs
from engine.backends.local.packing import Pack, Packed, apart
from engine.backends.local.parameters import Unit
from engine.backends.values import Tokens


class LlamaNetwork:
    """The architecture, with the weights that training does not change (all of them, where adapters are trained)."""

    def __init__(self, shape: LlamaShape, frozen: Mapping[Unit, Tensor], rope: Rope) -> None:
        self._shape = shape
        self._frozen = frozen
        self._rope = rope
        self.shares_prefixes = True
        self.units: Sequence[Unit] = base_units(shape) if shape.lora_scale is None else adapter_units(shape)

    def bind(self, weights: Mapping[Unit, Tensor]) -> BoundLlama:
        """The network computing with `weights`, the trainable tensors by unit."""
        return BoundLlama(LlamaWeights(self._shape, self._rope, {**self._frozen, **weights}))


class BoundLlama:
    """The Llama family's forward pass with weights."""

    def __init__(self, weights: LlamaWeights) -> None:
        self.weights = weights

    def prefill(self, prompts: Sequence[Tokens]) -> list[Prefix]:
        """Reads prompts together; each prefix keeps its keys and values, (L, 2, K, T, D)."""
        packed = Packed.of(apart(prompts), prompts, self.weights.embedding.device)
        rows, length = packed.own_shape
        caches: list[Tensor] = []
        hidden_U_H = self.hidden(packed, caches)
        ends_B = torch.tensor([row * length + len(prompt) - 1 for row, prompt in enumerate(prompts)])
        logits_B_V = self.weights.logits(hidden_U_H[ends_B.to(hidden_U_H.device)])
        cache = torch.stack(caches).view(len(caches), 2, rows, length, -1, self.weights.shape.head_dim).transpose(3, 4)
        return [
            Prefix(len(prompt), cache[:, :, row, :, : len(prompt)].contiguous(), logits_B_V[row])
            for row, prompt in enumerate(prompts)
        ]

    def decode_batch(self) -> DecodeBatch:
        """An empty batch."""
        return LlamaBatch(self.weights)

    def target_logprobs(self, sequences: Sequence[Tokens], pack: Pack, targets_N: Tensor, active_N: Tensor) -> Tensor:
        """Log-probabilities (N,) of a target at each position of the pack's sequences; gradients only where `active_N`."""
        packed = Packed.of(pack, sequences, self.weights.embedding.device)
        return target_logprobs(self.hidden(packed), self.weights.head, packed.rows_N, targets_N, active_N)

    def hidden(self, packed: Packed, caches: list[Tensor] | None = None) -> Tensor:
        """The last layer's output behind the final norm, (U, H). `caches` collects each layer's keys and values, (2, U, K, D)."""
        weights, shape = self.weights, self.weights.shape
        reach = sum(length for _, length in (packed.prefix_shape, packed.own_shape))
        cos_U_D, sin_U_D = (table[packed.positions_U, None] for table in weights.rope.tables(reach))
        unseen = packed.hidden_B_T_S
        mask = None if unseen is None else torch.where(unseen, -torch.inf, 0.0).to(weights.embedding.dtype)[:, None]
        x = functional.embedding(packed.tokens_U, weights.embedding)
        for layer in weights.layers:
            qkv = layer.qkv(rms_norm(x, layer.norm_in, shape.eps)).view(len(x), -1, shape.head_dim)
            queries, keys, values = turn_heads(qkv, shape.heads, shape.kv_heads, cos_U_D, sin_U_D)
            if caches is not None:
                caches.append(torch.stack((keys, values)))
            x = x + layer.out(attend(queries, keys, values, packed, mask).flatten(1))
            x = weights.mlp(layer, x)
        return rms_norm(x, weights.norm, shape.eps)


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
