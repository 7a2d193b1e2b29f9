"""From a training case to a checked ONNX training graph."""

from __future__ import annotations

import dataclasses
import pathlib
import traceback

import numpy as np
import onnx
import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

import graph_files
from gradient_check import Comparison, compare_outputs, require_match, run_in_onnxruntime
from joint_graph import Signature, export_forward, export_training_step, loss_and_gradients, signature_of
from precision import float32_twin
from random_draws import draws_as_inputs, fixed_draws
from training_case import CannotConvert, TrainingCase

JOINT, ONNX_AD = "torch-joint-graph", "onnx-ad"
ROUTES = (JOINT, ONNX_AD)


@dataclasses.dataclass(frozen=True)
class ExportedGraph:
    """A graph that agreed with PyTorch, and what is needed to run and write it."""

    case: TrainingCase
    route: str
    model: onnx.ModelProto
    signature: Signature
    comparisons: list[Comparison]

    def parameters(self) -> dict[str, np.ndarray]:
        return to_numpy(self.signature.parameters)

    def inputs(self) -> dict[str, np.ndarray]:
        return to_numpy(self.case.inputs(seed=1))


def export_case(case: TrainingCase, symbolic: list[str], route: str = JOINT, opset: int | None = None) -> ExportedGraph:
    """Traces, converts and checks; raises CannotConvert or GradientMismatch."""
    signature = signature_of(case, symbolic)
    try:
        if route == ONNX_AD:
            model = _differentiated_forward(case, signature, opset)
        else:
            model = export_training_step(case, signature, opset)
    except GuardOnDataDependentSymNode as error:
        where = _innermost_model_frame(error)
        raise CannotConvert(f"{case.name}: a Python branch depends on the data ({where}): {_reason(error)}") from error
    except (torch.onnx.errors.OnnxExporterError, NotImplementedError) as error:
        raise CannotConvert(f"{case.name}: {_reason(error)}") from error
    graph_files.strip_export_notes(model)
    onnx.checker.check_model(model, full_check=True)
    graph_files.set_metadata(model, {"autosp.loss": "loss", "autosp.route": route, "autosp.model": case.name})
    return ExportedGraph(case, route, model, signature, check_graph(model, signature, case, symbolic))


def check_graph(
    model: onnx.ModelProto, signature: Signature, case: TrainingCase, symbolic: list[str]
) -> list[Comparison]:
    """Loss and gradients against autograd at the default sizes and, where symbolic, at smaller and larger ones.

    bfloat16 is checked in float32, the graph and the module both converted: no stock runtime executes bfloat16
    training graphs on a CPU. Dropout is checked with the same draws on both sides.
    """
    reduced = any(value.dtype == torch.bfloat16 for value in signature.parameters.values())
    precision = "bfloat16" if reduced else "float32"
    model, draws = draws_as_inputs(float32_twin(model))
    case = dataclasses.replace(case, module=case.module.float())
    parameters = {name: value.float() for name, value in signature.parameters.items()}
    constants = {
        name: value.float() if value.is_floating_point() else value for name, value in signature.constants.items()
    }
    results = []
    for setting, sizes in _sizes_to_check(case, symbolic).items():
        inputs = case.inputs(seed=5, **sizes)
        with fixed_draws(seed=7) as drawn:
            values = loss_and_gradients(case, parameters, constants, list(inputs.values()))
        expected = {name: value.numpy() for name, value in zip(signature.output_names(), values, strict=True)}
        if len(drawn) != len(draws):
            raise CannotConvert(f"{case.name}: PyTorch draws {len(drawn)} random tensors, the graph {len(draws)}")
        feeds = to_numpy({**parameters, **inputs, **dict(zip(draws, drawn, strict=True))})
        got = run_in_onnxruntime(model, feeds)
        results.append(require_match(compare_outputs(f"{case.name} {setting}", got, expected, precision)))
    return results


def symbolic_axis_names(case: TrainingCase, static: bool, symbolic_batch: bool) -> list[str]:
    """The axes to leave open: every length but the batch, unless asked otherwise."""
    return [] if static else [name for name in case.sizes if name != "batch" or symbolic_batch]


def to_numpy(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """As NumPy arrays; bfloat16, which NumPy lacks, as the float32 of the same value."""
    return {
        name: (value.float() if value.dtype == torch.bfloat16 else value).contiguous().numpy()
        for name, value in tensors.items()
    }


def _differentiated_forward(case: TrainingCase, signature: Signature, opset: int | None) -> onnx.ModelProto:
    from onnx_ad_route import differentiate

    return differentiate(export_forward(case, signature, opset), "loss", list(signature.parameters))


def _sizes_to_check(case: TrainingCase, symbolic: list[str]) -> dict[str, dict[str, int]]:
    """Setting -> changed sizes; odd lengths, a long one, and one row where the batch is symbolic."""
    settings: dict[str, dict[str, int]] = {"default sizes": {}}
    for name in symbolic:
        for size in (1, 2, 5) if name == "batch" else (13, 64, 97):
            if size <= case.largest.get(name, size):
                settings[f"{name}={size}"] = {name: size}
    return settings


def _reason(error: BaseException) -> str:
    """The sentence of an exporter's error that names what it stopped at."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for mark in ("No ONNX function found", "when translating node", "Could not guard"):
        for line in lines:
            if mark in line:
                return line
    return lines[-1] if lines else type(error).__name__


def _innermost_model_frame(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/torch/" not in frame.filename]
    return f"{pathlib.Path(own[-1].filename).name} line {own[-1].lineno}"
