"""Three pieces of the Llama forward pass with hand-written derivatives.

Written as plain operations, autograd would keep and re-read several times as many arrays; on a CPU that memory traffic costs as much as
the matrix products. A test compares each with autograd's own derivative.

Dimension suffixes: `H` hidden (last dimension), `D` head dimension; leading dimensions are free.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_Context = Any  # torch's own type for it does not know what was saved


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        unit: Tensor = (x * scale).to(x.dtype)
        ctx.save_for_backward(unit, scale, weight_H)
        result: Tensor = unit * weight_H
        return result

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        unit, scale, weight_H = ctx.saved_tensors
        product = gradient * unit
        to_weight = product.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        # x's own direction is what normalising takes out: subtract the projection on it.
        along = (product @ weight_H).div_(unit.shape[-1])[..., None]
        to_x = (gradient * weight_H).addcmul_(unit, along, value=-1).mul_(scale.to(unit.dtype))
        return to_x, to_weight, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        activated = functional.silu(gate)
        ctx.save_for_backward(gate_up, activated)
        return activated * up

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> Tensor:
        gate_up, activated = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        result = torch.empty_like(gate_up)
        to_gate, to_up = result.chunk(2, -1)
        torch.mul(gradient, activated, out=to_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=to_gate)
        return result


def _turned(qkv: Tensor, heads: int, kv_heads: int, cos: Tensor, signed_sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = qkv[..., : heads + kv_heads, :]
    # Swapping a head's halves is rolling it by half its width.
    turned = (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), signed_sin)
    return turned[..., :heads, :], turned[..., heads:, :], qkv[..., heads + kv_heads :, :]


class _TurnHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context, qkv: Tensor, heads: int, kv_heads: int, cos: Tensor, signed_sin: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, signed_sin)
        return _turned(qkv, heads, kv_heads, cos, signed_sin)

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        cos, signed_sin = ctx.saved_tensors
        counts = [gradient.shape[-2] for gradient in gradients]
        shape = gradients[0].shape
        result = gradients[0].new_empty(*shape[:-2], sum(counts), shape[-1])
        to_queries, to_keys, to_values = torch.split(result, counts, -2)
        for part, gradient in ((to_queries, gradients[0]), (to_keys, gradients[1])):
            torch.mul(gradient, cos, out=part)
            # The inverse of a rotation turns back.
            part.addcmul_(gradient.roll(shape[-1] // 2, -1), signed_sin, value=-1)
        to_values.copy_(gradients[2])
        return result, None, None, None, None


def rms_norm(x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight (1910.07467), the mean over the last dimension, in float32."""
    if not torch.is_grad_enabled():  # decoding is thousands of small calls: there torch's own is the faster one
        return functional.rms_norm(x, x.shape[-1:], weight_H, eps)
    result: Tensor = _RMSNorm.apply(x, weight_H, eps)  # type: ignore[no-untyped-call]
    return result


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) · up (2002.05202) of the two halves of the last dimension."""
    if not torch.is_grad_enabled():
        gate, up = gate_up.chunk(2, -1)
        return functional.silu(gate).mul_(up)
    result: Tensor = _SwiGLU.apply(gate_up)  # type: ignore[no-untyped-call]
    return result


def turn_heads(
    qkv: Tensor, heads: int, kv_heads: int, cos: Tensor, signed_sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values out of (..., heads + 2 · kv_heads, D); the first two with rotary position embedding (2104.09864).

    `signed_sin` is the table of sines with its first half negated: then rotating is x·cos + (x with its halves swapped)·signed_sin.
    """
    if not torch.is_grad_enabled():
        return _turned(qkv, heads, kv_heads, cos, signed_sin)
    queries, keys, values = _TurnHeads.apply(qkv, heads, kv_heads, cos, signed_sin)  # type: ignore[no-untyped-call]
    return queries, keys, values
