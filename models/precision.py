"""Two ways to run a bfloat16 graph, for which onnxruntime has almost no CPU kernels.

As it is, slowly, in ONNX's reference evaluator; or as its float32 twin.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun


class GatherElements(OpRun):
    """Replaces the evaluator's own, which fails where indices are shorter than the data and longer than 64."""

    op_domain = ""

    def _run(self, data: np.ndarray, indices: np.ndarray, axis: int = 0) -> tuple[np.ndarray]:
        return (np.take_along_axis(data, indices, axis=axis or 0),)


class ReferenceGraph:
    """A graph loaded into ONNX's reference evaluator; call it with feeds of any float type to get its outputs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.evaluator = ReferenceEvaluator(model, new_ops=[GatherElements])
        self.input_types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
        self.output_names = [value.name for value in model.graph.output]

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Feeds are rounded to the types that the graph declares."""
        declared = {
            name: value.astype(helper.tensor_dtype_to_np_dtype(self.input_types[name])) for name, value in feeds.items()
        }
        return dict(zip(self.output_names, self.evaluator.run(None, declared), strict=True))


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
