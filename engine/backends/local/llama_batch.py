"""Decoding with the Llama forward pass: one preallocated cache for all rows, and no copy of what lies in it.

Dimension suffixes: `B` rows, `T` positions, `V` vocabulary; the cache is (L layers, 2 for keys and values, B, K key-value heads, T, D).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from engine.backends.local.kernels import rms_norm, turn_heads
from engine.backends.local.llama_weights import LlamaWeights
from engine.backends.local.network import Prefix

_SPARE_POSITIONS = 32
_LEAST_REACH = 16
"""Torch's batched product goes element by element for fewer keys."""


class LlamaBatch:
    """Rows decoded together. Rows and positions of the cache beyond what is in use are spare room.

    Each row has its own length: a mask of zeros and minus infinity hides what lies behind it.
    """

    def __init__(self, weights: LlamaWeights) -> None:
        self._weights = weights
        self._lengths: list[int] = []
        shape = weights.shape
        self._cache = weights.head.new_empty(shape.layers, 2, 0, shape.kv_heads, 0, shape.head_dim)
        self._mask_B_T = weights.head.new_empty(0, 0)

    def add(self, prefix: Prefix, count: int) -> None:
        """Appends `count` rows that go on from `prefix`."""
        first, last, length = len(self._lengths), len(self._lengths) + count, prefix.length
        kv = prefix.state
        if not isinstance(kv, Tensor):
            raise TypeError("this prefix was made by another network")
        self.reserve(last, length + 1)
        self._lengths += [length] * count
        self._cache[:, :, first:last, :, :length] = kv[:, :, None]
        self._mask_B_T[first:last, :length] = 0
        self._mask_B_T[first:last, length:] = -torch.inf

    def drop(self, row: int) -> None:
        """Removes a row; the last row takes its place."""
        last = len(self._lengths) - 1
        if row != last:
            length = self._lengths[last]
            self._cache[:, :, row, :, :length] = self._cache[:, :, last, :, :length]
            self._mask_B_T[row] = self._mask_B_T[last]
            self._lengths[row] = length
        self._lengths.pop()

    def step(self, tokens_B: Tensor) -> Tensor:
        """Appends one token to each row and gives what follows, logits_B_V in float32."""
        weights, shape, rows = self._weights, self._weights.shape, len(self._lengths)
        reach = max(_LEAST_REACH, max(self._lengths) + 1)
        self.reserve(rows, reach)
        rows_B = torch.arange(rows, device=tokens_B.device)
        position_B = torch.tensor(self._lengths, device=tokens_B.device)
        self._mask_B_T[rows_B, position_B] = 0
        # One line of the mask for each key-value head, made once for all layers.
        mask = self._mask_B_T[:rows, :reach].repeat_interleave(shape.kv_heads, 0)[:, None]
        cos_B_D, sin_B_D = (table[position_B, None] for table in weights.rope.tables(reach))
        scale = 1 / math.sqrt(shape.head_dim)
        x = functional.embedding(tokens_B, weights.embedding)
        for layer, cache in zip(weights.layers, self._cache, strict=True):
            qkv = layer.qkv(rms_norm(x, layer.norm_in, shape.eps)).view(rows, -1, shape.head_dim)
            queries, keys, values = turn_heads(qkv, shape.heads, shape.kv_heads, cos_B_D, sin_B_D)
            cache[:, rows_B, :, position_B] = torch.stack((keys, values), 1)
            keys, values = cache[:, :rows, :, :reach].flatten(1, 2)
            # Query heads that share a key-value head are rows of one product: nothing is repeated, and flattening copies nothing.
            queries = queries.reshape(len(keys), -1, shape.head_dim)
            attention = torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=scale).softmax(-1)
            x = x + layer.out(torch.bmm(attention, values).view(rows, -1))
            x = weights.mlp(layer, x)
        self._lengths = [length + 1 for length in self._lengths]
        return weights.logits(rms_norm(x, weights.norm, shape.eps))

    def reserve(self, rows: int, length: int) -> None:
        """Makes room; grows by half at least, so that copying stays a small share."""
        had_rows, had_length = self._mask_B_T.shape
        if rows <= had_rows and length <= had_length:
            return
        new_rows = had_rows if rows <= had_rows else max(rows, had_rows + had_rows // 2)
        new_length = (
            had_length if length <= had_length else max(length, had_length + max(had_length // 2, _SPARE_POSITIONS))
        )
        layers, two, _, heads, _, width = self._cache.shape
        # Zeros and not what memory happens to hold: a masked value still takes part, times zero.
        cache = self._cache.new_zeros(layers, two, new_rows, heads, new_length, width)
        cache[:, :, :had_rows, :, :had_length] = self._cache
        mask_B_T = self._mask_B_T.new_full((new_rows, new_length), -torch.inf)
        mask_B_T[:had_rows, :had_length] = self._mask_B_T
        self._cache, self._mask_B_T = cache, mask_B_T
