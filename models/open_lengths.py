"""Rewrites slices of tensors with open lengths as splits, which onnx-ad differentiates without knowing a length.

onnx-ad undoes a Slice by a Pad of constant widths, and so refuses one whose input has a symbolic axis, even where
another axis is cut. A Split is undone by a Concat:

    x [batch, seq, v]   Slice(x, 0 : -1 on axis 1)   ->   head, _ = Split(x, [seq - 1, 1], axis 1)
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPEN_END = np.iinfo(np.int32).max
Length = int | None
"""A segment's length; None for the one that takes what is left."""


def split_open_slices(model: onnx.ModelProto) -> None:
    """Replaces every floating-point Slice of one axis, with constant bounds and step one, of an open tensor."""
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    types = {value.name: value.type.tensor_type for value in [*graph.value_info, *graph.input]}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        plan = _plan(node, constants, types) if node.op_type == "Slice" else None
        if plan is None:
            graph.node.append(node)
            continue
        axis, segments, kept = plan
        sizes = _sizes(graph, node, axis, segments)
        outputs = [node.output[0] if i == kept else f"{node.output[0]}.rest_{i}" for i in range(len(segments))]
        graph.node.append(
            helper.make_node("Split", [node.input[0], sizes], outputs, f"{node.output[0]}.split", axis=axis)
        )


def _plan(
    node: onnx.NodeProto, constants: dict[str, np.ndarray], types: dict[str, TensorProto]
) -> tuple[int, list[Length], int] | None:
    """Axis, the lengths of the segments, and which of them is the slice; None for a Slice to be left alone."""
    tensor_type = types.get(node.input[0])
    if tensor_type is None or tensor_type.elem_type not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return None
    shape = [axis.dim_value if axis.HasField("dim_value") else None for axis in tensor_type.shape.dim]
    bounds = [constants.get(name) for name in node.input[1:]]
    if None not in shape or any(bound is None or bound.size != 1 for bound in bounds) or len(bounds) < 3:
        return None
    start, end, axis = (int(bound.item()) for bound in bounds[:3])
    if len(bounds) > 3 and bounds[3].item() != 1:
        return None
    axis %= len(shape)
    before, middle, after = _segments(start, end, shape[axis])
    segments = [length for length in (before, middle, after) if length != 0]
    if segments.count(None) > 1 or not segments:
        return None
    return axis, segments, 0 if before == 0 else 1


def _segments(start: int, end: int, length: Length) -> tuple[Length, Length, Length]:
    if length is not None:
        start, end, _ = slice(start, end).indices(length)
        return start, end - start, length - end
    if end >= OPEN_END:
        return (start, None, 0) if start >= 0 else (None, -start, 0)
    if start >= 0:
        return (start, None, -end) if end < 0 else (start, end - start, None)
    return (None, end - start, -end) if end < 0 else (None, None, None)


def _sizes(graph: onnx.GraphProto, node: onnx.NodeProto, axis: int, segments: list[Length]) -> str:
    """The name of a tensor with the segments' lengths."""

    def constant(suffix: str, values: list[int]) -> str:
        name = f"{node.output[0]}.{suffix}"
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    if None not in segments:
        return constant("sizes", [length for length in segments if length is not None])
    length, rest, sizes = (f"{node.output[0]}.{suffix}" for suffix in ("length", "rest", "sizes"))
    known = constant("known", [sum(length for length in segments if length is not None)])
    graph.node.append(helper.make_node("Shape", [node.input[0]], [length], length, start=axis, end=axis + 1))
    graph.node.append(helper.make_node("Sub", [length, known], [rest], rest))
    parts = [rest if size is None else constant(f"size_{i}", [size]) for i, size in enumerate(segments)]
    graph.node.append(helper.make_node("Concat", parts, [sizes], sizes, axis=0))
    return sizes
