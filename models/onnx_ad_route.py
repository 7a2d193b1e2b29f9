"""Any forward ONNX graph with a loss -> its training graph, by onnx-ad's reverse mode.

onnx-ad emits a graph for several seeds at once: an input `adj_loss`, outputs `adj_<parameter>`, and every backward
tensor with a trailing seed axis. A training graph has one seed, the number one, so it is baked in and folded, and
the outputs lose that axis and take the names the other route gives them (`<parameter>.grad`).
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ad
import onnxscript.optimizer
from onnx import TensorProto, helper, numpy_helper
from onnx_ad.expand import expand_functions
from onnx_ad.rules import REVERSE

from gradient_check import Comparison, OnnxRuntimeGraph, OutputError
from open_lengths import split_open_slices
from training_case import CannotConvert

FLOATING = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
SEED_AXIS = "seed"
ADJOINT = "adj_"


def choose_parameters(forward: onnx.ModelProto, patterns: list[str]) -> list[str]:
    """Makes graph inputs of the initializers that are trained, and returns the names of all parameters.

    `patterns` are file-name patterns over inputs and initializers. Without any, parameters are the floating-point
    inputs; in a graph that has none, the floating-point initializers of one axis or more.
    """
    inputs = [value.name for value in forward.graph.input if value.type.tensor_type.elem_type in FLOATING]
    initializers = {tensor.name: tensor for tensor in forward.graph.initializer if tensor.data_type in FLOATING}
    inputs = [name for name in inputs if name not in initializers]
    if patterns:
        chosen = [
            name for name in [*inputs, *initializers] if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        ]
    else:
        chosen = inputs or [name for name, tensor in initializers.items() if len(tensor.dims) > 0]
    if not chosen:
        raise CannotConvert(f"no parameter matches {patterns or 'a floating-point input or initializer'}")
    declared = {value.name for value in forward.graph.input}
    for name in chosen:
        if name in initializers and name not in declared:
            tensor = initializers[name]
            forward.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    return chosen


def take_initializers(model: onnx.ModelProto, names: list[str]) -> dict[str, np.ndarray]:
    """Removes the initializers of these names and returns their values."""
    taken = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name in names}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in taken]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return taken


def differentiate(forward: onnx.ModelProto, loss: str, parameters: list[str]) -> onnx.ModelProto:
    """The training graph: the forward graph's inputs -> `loss`, `<parameter>.grad`."""
    if loss not in {value.name for value in forward.graph.output}:
        known = ", ".join(value.name for value in forward.graph.output)
        raise CannotConvert(f"the graph has no output '{loss}'; its outputs: {known}")
    try:
        forward = onnx.shape_inference.infer_shapes(expand_functions(forward), data_prop=True)
        split_open_slices(forward)
        adjoint = onnx_ad.reverse(
            forward, inputs=parameters, outputs=[loss], prefix=ADJOINT, dim=SEED_AXIS, layout="onnx"
        )
    except onnx_ad.UnsupportedOperator as error:
        others = sorted(_operators_without_rule(forward))
        suffix = f"; operators of this graph without a reverse rule: {', '.join(others)}" if others else ""
        raise CannotConvert(f"onnx-ad: {error}{suffix}") from error
    _bake_seed(adjoint, loss)
    _name_outputs(adjoint, loss, parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folded = onnxscript.optimizer.optimize(adjoint, num_iterations=4, onnx_shape_inference=True)
    folded = onnx.shape_inference.infer_shapes(folded, data_prop=True, strict_mode=True)
    onnx.checker.check_model(folded, full_check=True)
    return folded


def check_directional_derivative(
    model: onnx.ModelProto, loss: str, parameters: list[str], feeds: Mapping[str, np.ndarray], seed: int = 0
) -> Comparison:
    """Each gradient against the loss's central difference along a random direction of that parameter.

    For graphs that come without a PyTorch module to compare with. The loss is a float32 number, so a difference
    quotient is good to a few digits only; the best of several steps is taken.
    """
    random = np.random.default_rng(seed)
    run = OnnxRuntimeGraph(model)
    outputs = run(feeds)
    errors = []
    for name in parameters:
        direction = random.standard_normal(feeds[name].shape).astype(np.float32)
        slope = float(np.vdot(outputs[f"{name}.grad"].astype(np.float64), direction))
        best = np.inf
        for step in (1e-1, 3e-2, 1e-2, 3e-3, 1e-3):
            up = run({**feeds, name: feeds[name] + np.float32(step) * direction})[loss]
            down = run({**feeds, name: feeds[name] - np.float32(step) * direction})[loss]
            difference = (float(np.ravel(up)[0]) - float(np.ravel(down)[0])) / (2 * step)
            best = min(best, abs(difference - slope))
        scale = max(abs(slope), 1e-3 * float(np.linalg.norm(direction)))
        errors.append(OutputError(f"{name}.grad", best, best / scale, best / scale <= 3e-2))
    return Comparison("directional derivatives", errors)


def random_feeds(model: onnx.ModelProto, given: Mapping[str, np.ndarray], symbolic: int = 8) -> dict[str, np.ndarray]:
    """`given`, and for the inputs it lacks small random numbers (integers: zeros and ones)."""
    random = np.random.default_rng(0)
    feeds = dict(given)
    for value in model.graph.input:
        if value.name in feeds:
            continue
        tensor_type = value.type.tensor_type
        shape = [axis.dim_value if axis.HasField("dim_value") else symbolic for axis in tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)
        if tensor_type.elem_type in FLOATING:
            feeds[value.name] = (0.1 * random.standard_normal(shape)).astype(dtype)
        else:
            feeds[value.name] = random.integers(0, 2, shape).astype(dtype)
    return feeds


def _operators_without_rule(forward: onnx.ModelProto) -> set[str]:
    """Operators that onnx-ad neither differentiates nor expands by the definition ONNX gives."""
    missing = set()
    for node in forward.graph.node:
        if node.op_type in REVERSE or node.op_type == "Constant":
            continue
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
            missing.add(f"{node.domain}::{node.op_type}")
            continue
        schema = onnx.defs.get_schema(node.op_type)
        if not (schema.has_function or schema.has_context_dependent_function):
            missing.add(node.op_type)
    return missing


def _bake_seed(adjoint: onnx.ModelProto, loss: str) -> None:
    for value in [*adjoint.graph.input, *adjoint.graph.output, *adjoint.graph.value_info]:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param == SEED_AXIS:
                axis.dim_value = 1
    seed = next(value for value in adjoint.graph.input if value.name == ADJOINT + loss)
    shape = [axis.dim_value for axis in seed.type.tensor_type.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(seed.type.tensor_type.elem_type)
    adjoint.graph.input.remove(seed)
    adjoint.graph.initializer.append(numpy_helper.from_array(np.ones(shape, dtype), ADJOINT + loss))


def _name_outputs(adjoint: onnx.ModelProto, loss: str, parameters: list[str]) -> None:
    """`adj_<parameter>` of shape [..., 1] becomes `<parameter>.grad` of shape [...]; other outputs are dropped."""
    old_outputs = {value.name: value for value in adjoint.graph.output}
    new_outputs = [old_outputs[loss]]
    for name in parameters:
        value = old_outputs[ADJOINT + name]
        rank = len(value.type.tensor_type.shape.dim) - 1
        axes = f"{name}.grad.seed_axis"
        adjoint.graph.initializer.append(numpy_helper.from_array(np.array([rank], np.int64), axes))
        adjoint.graph.node.append(
            helper.make_node("Squeeze", [value.name, axes], [f"{name}.grad"], name=f"squeeze_{name}.grad")
        )
        shape = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim][:rank]
        new_outputs.append(helper.make_tensor_value_info(f"{name}.grad", value.type.tensor_type.elem_type, shape))
    del adjoint.graph.output[:]
    adjoint.graph.output.extend(new_outputs)
