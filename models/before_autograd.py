"""Functions that are replaced while a module is traced, before autograd sees them.

`decompositions.py` breaks operators down below autograd. These have to go earlier: the gradient that PyTorch derives
for them is of an operator, or of a length, that no graph has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class BeforeAutograd(TorchFunctionMode):
    """Within, calls of the table's functions are those of its replacements."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replacement = REPLACEMENTS.get(function)
        result = NotImplemented if replacement is None else replacement(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {})) if result is NotImplemented else result


def _assign(x: torch.Tensor, index: object, value: object) -> object:
    """`x[mask] = value` as a selection where all positions get one value.

    An index of bools has a length that only the data tell, and so has the gradient of `value`.
    """
    if not isinstance(index, torch.Tensor) or index.dtype != torch.bool:
        return NotImplemented
    if isinstance(value, torch.Tensor) and value.dim() > x.dim() - index.dim():
        return NotImplemented
    mask = index.reshape(*index.shape, *[1] * (x.dim() - index.dim()))
    return x.copy_(torch.where(mask, value, x))


def _weight_norm(direction: torch.Tensor, length: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """By its formula: the fused operator's backward has no translation."""
    return direction * (length / torch.norm_except_dim(direction, 2, dim))


def _adaptive_average(axes: int) -> Callable[..., object]:
    """To one element, as a mean: PyTorch's writes the strides of its result, which the gradient follows."""

    def average(x: torch.Tensor, output_size: int | tuple[int, ...]) -> object:
        sizes = (output_size,) if isinstance(output_size, int) else output_size
        return x.mean(list(range(-axes, 0)), keepdim=True) if set(sizes) == {1} else NotImplemented

    return average


def _average_pool(axes: int) -> Callable[..., object]:
    """As a convolution of each channel alone, whose backward `decompositions.py` has."""

    def pool(
        x: torch.Tensor,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> object:
        kernel, padding = _per_axis(kernel_size, axes), _per_axis(padding, axes)
        stride = _per_axis(stride or kernel_size, axes)
        if divisor_override is not None or (ceil_mode and any(padding)) or x.dim() != axes + 2:
            return NotImplemented
        window = torch.full((1, 1, *kernel), 1.0 / math.prod(kernel), dtype=x.dtype, device=x.device)
        single = x.reshape(-1, 1, *x.shape[2:])
        if ceil_mode:  # the last windows end behind the input, and count what they have of it
            ends = [size for step in reversed(stride) for size in (0, step - 1)]
            single, count_include_pad = functional.pad(single, ends), False
        convolve = functional.conv1d if axes == 1 else functional.conv2d
        pooled = convolve(single, window, stride=stride, padding=padding)
        if ceil_mode or (any(padding) and not count_include_pad):
            inside = torch.ones_like(x[:1, :1])
            inside = functional.pad(inside, ends) if ceil_mode else inside
            pooled = pooled / convolve(inside, window, stride=stride, padding=padding)
        return pooled.reshape(*x.shape[:2], *pooled.shape[2:])

    return pool


def _per_axis(size: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    return sizes * axes if len(sizes) == 1 else sizes


REPLACEMENTS: dict[object, Callable[..., object]] = {
    torch.Tensor.__setitem__: _assign,
    torch._weight_norm: _weight_norm,
    torch.adaptive_avg_pool1d: _adaptive_average(1),
    functional.adaptive_avg_pool2d: _adaptive_average(2),
    torch.avg_pool1d: _average_pool(1),
    torch._C._nn.avg_pool2d: _average_pool(2),
}
