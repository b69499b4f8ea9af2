"""Where a model's numbers lie: one flat buffer, with named views into it.

A `Layout` puts tensors one after the other. Copying weights, their gradients' norm and an AdamW step are then each one
operation on one array, however many tensors the model has. Matrices that are always multiplied with the same input (a
layer's query, key and value) lie side by side in one *unit*, so that the fused matrix is a view and never a copy.

Dimension suffix: `P` all numbers of a layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import torch
from torch import Tensor

Unit = tuple[str, ...]
"""Names of tensors that lie side by side and are used as one, joined along the first dimension."""

_ALIGNMENT = 16


@attrs.frozen
class Layout:
    """Which tensor lies where in a flat buffer."""

    shapes: Mapping[str, tuple[int, ...]]
    units: tuple[Unit, ...]
    offsets: Mapping[str, int]
    size: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], units: Sequence[Unit]) -> Layout:
        """A layout of `tensors`; those that no unit names become units of their own."""
        grouped = {name for unit in units for name in unit}
        every = (*units, *((name,) for name in tensors if name not in grouped))
        shapes = {name: tuple(tensors[name].shape) for unit in every for name in unit}
        offsets: dict[str, int] = {}
        position = 0
        for unit in every:
            position = -(-position // _ALIGNMENT) * _ALIGNMENT
            for name in unit:
                offsets[name] = position
                position += tensors[name].numel()
        return cls(shapes, every, offsets, position)

    def named(self, buffer_P: Tensor) -> dict[str, Tensor]:
        """Views of every tensor by name."""
        return {name: self._view(buffer_P, self.offsets[name], shape) for name, shape in self.shapes.items()}

    def joined(self, buffer_P: Tensor) -> dict[Unit, Tensor]:
        """Views of every unit."""
        views = {}
        for unit in self.units:
            first, *rest = (self.shapes[name] for name in unit)
            rows = first[0] + sum(shape[0] for shape in rest) if rest else None
            shape = first if rows is None else (rows, *first[1:])
            views[unit] = self._view(buffer_P, self.offsets[unit[0]], shape)
        return views

    @staticmethod
    def _view(buffer_P: Tensor, offset: int, shape: tuple[int, ...]) -> Tensor:
        count = 1
        for length in shape:
            count *= length
        return buffer_P[offset : offset + count].view(shape)

    def pack(self, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A new buffer holding `tensors`."""
        buffer_P = torch.zeros(self.size, dtype=dtype, device=device)
        for name, view in self.named(buffer_P).items():
            view.copy_(tensors[name])
        return buffer_P


class Trainable:
    """The numbers that training changes: weights, gradients and AdamW's two moments, each one flat buffer.

    The weights are kept in float32 whatever the model computes in: a bfloat16 weight cannot take a small step. Where the model
    computes in bfloat16, it reads a copy that every step renews, and each pass's gradients are added up in float32.
    """

    def __init__(self, layout: Layout, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> None:
        self.layout = layout
        self.weights_P = layout.pack(tensors, torch.float32, device)
        self.gradient_P = torch.zeros_like(self.weights_P)
        self.mean_P = torch.zeros_like(self.weights_P)
        self.square_P = torch.zeros_like(self.weights_P)
        self.steps = 0
        """AdamW steps behind the moments, which is what their bias correction counts."""
        same = dtype == torch.float32
        self._computed_P = self.weights_P if same else self.weights_P.to(dtype)
        self._pass_gradient_P = self.gradient_P if same else torch.zeros_like(self._computed_P)
        self._leaves = {unit: view.detach().requires_grad_() for unit, view in layout.joined(self._computed_P).items()}
        for unit, view in layout.joined(self._pass_gradient_P).items():
            self._leaves[unit].grad = view

    def leaves(self) -> dict[Unit, Tensor]:
        """The tensors to compute with; their gradients land in the gradient buffer."""
        return self._leaves

    def named_views(self) -> dict[str, Tensor]:
        """Views of what the model computes with, by name."""
        return self.layout.named(self._computed_P)

    def collect(self) -> None:
        """After a backward pass: adds its gradients to the sum."""
        if self._pass_gradient_P is not self.gradient_P:
            self.gradient_P += self._pass_gradient_P
            self._pass_gradient_P.zero_()

    def clear_gradient(self) -> None:
        """Forgets the gradients of all passes."""
        self.gradient_P.zero_()
        if self._pass_gradient_P is not self.gradient_P:
            self._pass_gradient_P.zero_()

    def copy(self) -> Tensor:
        """The weights as the model computes with them, frozen."""
        return self._computed_P.clone()

    def changed(self) -> None:
        """Call after writing to `weights_P`."""
        if self._computed_P is not self.weights_P:
            self._computed_P.copy_(self.weights_P)
