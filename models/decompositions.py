"""How operators are broken down while a training step is traced."""

from __future__ import annotations

from collections.abc import Callable

import torch

aten = torch.ops.aten


def decomposition_table() -> dict[object, Callable[..., object]]:
    """PyTorch's core table, plus what the ONNX exporter has no translation for."""
    table = dict(torch._decomp.core_aten_decompositions())
    table[aten.empty_permuted.default] = _empty_permuted
    table[aten.native_layer_norm.default] = _layer_norm_in_float32
    return table


def _layer_norm_in_float32(
    x: torch.Tensor, shape: list[int], weight: torch.Tensor | None, bias: torch.Tensor | None, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gives reduced-precision layer norms float32 statistics, as ONNX defines them.

    PyTorch's CPU kernel rounds mean and deviation to the type of the input. Exported so, the backward pass mixes
    the types that ONNX gives with those that PyTorch would have given, and no checker takes the graph.
    """
    if x.dtype not in (torch.bfloat16, torch.float16):
        return NotImplemented
    weight = None if weight is None else weight.float()
    bias = None if bias is None else bias.float()
    output, mean, deviation = aten.native_layer_norm.default(x.float(), shape, weight, bias, epsilon)
    return output.to(x.dtype), mean, deviation


def _empty_permuted(size: list[int], physical_layout: list[int], **options: object) -> torch.Tensor:
    """Memory layout has no meaning in ONNX."""
    kept = {key: value for key, value in options.items() if key in ("dtype", "device")}
    return torch.empty(size, **kept)
