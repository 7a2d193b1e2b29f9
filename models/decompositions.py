"""How operators are broken down while a training step is traced."""

from __future__ import annotations

from collections.abc import Callable

import torch

aten = torch.ops.aten


def decomposition_table() -> dict[object, Callable[..., object]]:
    """PyTorch's core table, plus what the ONNX exporter has no translation for."""
    table = dict(torch._decomp.core_aten_decompositions())
    table[aten.empty_permuted.default] = _empty_permuted
    return table


def _empty_permuted(size: list[int], physical_layout: list[int], **options: object) -> torch.Tensor:
    """Memory layout has no meaning in ONNX."""
    kept = {key: value for key, value in options.items() if key in ("dtype", "device")}
    return torch.empty(size, **kept)
