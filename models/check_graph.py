"""Checks an exported training graph against PyTorch's autograd on the same module."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import onnx
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from gradient_check import Comparison, OnnxRuntimeGraph, compare_outputs, require_match
from joint_graph import Signature, loss_and_gradients
from precision import ReferenceGraph, float32_twin
from random_draws import draws_as_inputs, fixed_draws
from training_case import FAILURES, CannotConvert, FailsAtOtherLengths, TrainingCase

Arrays = dict[str, np.ndarray]

LONG = 400
"""Defaults above this are compared at lengths near them."""

EQUAL_SCORES = (
    "the model chooses the largest of some scores (TopK): of equal ones (sums of ReLUs, say) ONNX takes the first, "
    "PyTorch any; --no-check exports without the comparison"
)


def check_graph(
    model: onnx.ModelProto, signature: Signature, case: TrainingCase, symbolic: list[str]
) -> list[Comparison]:
    """Loss and gradients at the default sizes and, where symbolic, at smaller and larger ones.

    Dropout is checked with the same draws on both sides. A bfloat16 graph is checked as it is by ONNX's reference
    evaluator, and then at every size in float32, the graph and the module both converted.
    """
    results = []
    precision = "float32"
    if any(value.dtype == torch.bfloat16 for value in signature.parameters.values()):
        graph, draws = draws_as_inputs(model)
        expected, feeds = pytorch_step(case, signature, draws, {})
        wide_case, wide_signature = _in_type(case, signature, torch.float32)
        exact, _ = pytorch_step(wide_case, wide_signature, draws, {})
        got = ReferenceGraph(graph)(feeds)
        results.append(require_match(compare_outputs(f"{case.name} in bfloat16", got, expected, "bfloat16", exact)))
        model, case, signature, precision = float32_twin(model), wide_case, wide_signature, "rounded constants"
    graph, draws = draws_as_inputs(model)
    run = OnnxRuntimeGraph(graph)
    chooses = any(node.op_type == "TopK" for node in model.graph.node)
    for setting, sizes in _sizes_to_check(case, symbolic).items():
        for seed in (5, 6) if chooses else (5,):  # scores of a choice may be a rounding apart, by chance
            expected, feeds = pytorch_step(case, signature, draws, sizes, seed)
            got, where = _graph_step(case, run, feeds, sizes), f"{case.name} {setting}"
            comparison = compare_outputs(where, got, expected, precision)
            if comparison.failures:
                exact = _step_in_float64(case, signature, sizes, seed)
                comparison = compare_outputs(where, got, expected, precision, exact, _zero_gradients(exact))
            if not comparison.failures or any(np.isinf(error.absolute) for error in comparison.failures):
                break
        results.append(require_match(comparison, EQUAL_SCORES if chooses else ""))
    return results


def _step_in_float64(case: TrainingCase, signature: Signature, sizes: dict[str, int], seed: int) -> Arrays | None:
    """What tells a wrong gradient from PyTorch's own rounding in float32, such as of decays summed over a chunk.

    Draws are those of float32, whatever the type of what they drop.
    """
    exact_case, exact_signature = _in_type(case, signature, torch.float64)
    inputs = _to_type(case.inputs(seed=seed, **sizes), torch.float64)
    try:
        with fixed_draws(seed=7):
            values = loss_and_gradients(
                exact_case, exact_signature.parameters, exact_signature.constants, list(inputs.values())
            )
    except RuntimeError:  # a module that computes some of it in float32
        return None
    return to_numpy(dict(zip(signature.output_names(), values, strict=True)))


def _zero_gradients(exact: Arrays | None) -> frozenset[str]:
    """Gradients that are zero in float64, such as of a bias that a batch norm takes off again: rounding in float32."""
    sizes = {name: float(np.abs(value).max(initial=0.0)) for name, value in (exact or {}).items() if name != "loss"}
    return frozenset(name for name, size in sizes.items() if size <= 1e-12 * max(sizes.values()))


def pytorch_step(
    case: TrainingCase, signature: Signature, draws: list[str], sizes: dict[str, int], seed: int = 5
) -> tuple[Arrays, Arrays]:
    """What PyTorch computes at these sizes, and the feeds with which the graph has to compute it too."""
    inputs = case.inputs(seed=seed, **sizes)
    try:
        with fixed_draws(seed=7) as drawn:
            values = loss_and_gradients(case, signature.parameters, signature.constants, list(inputs.values()))
    except FAILURES as error:
        if not sizes:
            raise
        raise case.fails_at(sizes, "the module", error) from error
    if len(drawn) != len(draws):
        raise CannotConvert(f"{case.name}: PyTorch draws {len(drawn)} random tensors, the graph {len(draws)}")
    expected = to_numpy(dict(zip(signature.output_names(), values, strict=True)))
    return expected, to_numpy({**signature.parameters, **inputs, **dict(zip(draws, drawn, strict=True))})


def _graph_step(case: TrainingCase, run: OnnxRuntimeGraph, feeds: Arrays, sizes: dict[str, int]) -> Arrays:
    """What the graph computes at these sizes."""
    try:
        return run(feeds)
    except (Fail, InvalidArgument, RuntimeException) as error:
        at = ", ".join(f"{name}={size}" for name, size in sizes.items()) or "the lengths that it was traced at"
        reason = " ".join(str(error).split())[-240:]
        raise FailsAtOtherLengths(
            f"{case.name}: the graph does not run at {at}: the module takes another branch there, or fixes a length "
            f"(... {reason}); export with --static"
        ) from error


def to_numpy(tensors: dict[str, torch.Tensor]) -> Arrays:
    """As NumPy arrays; bfloat16, which NumPy lacks, as the float32 of the same value."""
    return {
        name: (value.float() if value.dtype == torch.bfloat16 else value).contiguous().numpy()
        for name, value in tensors.items()
    }


def _in_type(case: TrainingCase, signature: Signature, dtype: torch.dtype) -> tuple[TrainingCase, Signature]:
    wide = dataclasses.replace(
        signature,
        parameters=_to_type(signature.parameters, dtype),
        constants=_to_type(signature.constants, dtype),
    )
    return dataclasses.replace(case, module=copy.deepcopy(case.module).to(dtype)), wide


def _to_type(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}


def compared_sizes(case: TrainingCase, symbolic: list[str]) -> list[dict[str, int]]:
    return list(_sizes_to_check(case, symbolic).values())


def _sizes_to_check(case: TrainingCase, symbolic: list[str]) -> dict[str, dict[str, int]]:
    """Setting -> changed sizes; odd lengths, a long one, and one row where the batch is symbolic.

    Where the default is long, as of samples of speech, no module need take lengths that are short beside it.
    """
    settings: dict[str, dict[str, int]] = {"default sizes": {}}
    for name in symbolic:
        default = case.sizes[name]
        lengths = (default // 3, default - 13, default + 97) if default > LONG else (13, 64, 97)
        for size in (1, 2, 5) if name == "batch" else lengths:
            if size <= case.largest.get(name, size):
                settings[f"{name}={size}"] = {name: size}
    return settings
