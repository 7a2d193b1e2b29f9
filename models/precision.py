"""The float32 twin of a bfloat16 graph, which can be run: onnxruntime's CPU kernels have almost no bfloat16."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper


def float32_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` with float32 wherever it has bfloat16.

    Widening is exact, so the twin differs from a float32 export only by casts that do nothing and by the constants
    that the trace had already rounded (a static graph's cosines).
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    graph = twin.graph
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in graph.initializer:
        _widen(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen(attribute.t)
            if attribute.name in ("to", "dtype", "stash_type") and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    return twin


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.BFLOAT16:
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), name))
