"""From a training case to a checked ONNX training graph."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import traceback

import numpy as np
import onnx
import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

import graph_files
from check_graph import check_graph, compared_sizes, to_numpy
from gradient_check import Comparison
from joint_graph import Signature, export_forward, export_training_step, signature_of
from training_case import FAILURES, CannotConvert, FailsAtOtherLengths, TrainingCase, is_pytorchs

JOINT, ONNX_AD = "torch-joint-graph", "onnx-ad"
ROUTES = (JOINT, ONNX_AD)
SUMMARY = "## Exception summary"
TRACING_FILES = ("before_autograd.py", "export_case.py", "joint_graph.py", "training_case.py")


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

    def branches_left_out(self) -> list[str]:
        """The model's lines that branch on data, and not so for compilers."""
        return [_innermost_model_frame(error) for error in self.signature.left_out]


def export_case(
    case: TrainingCase, symbolic: list[str], route: str = JOINT, opset: int | None = None, *, checks: bool = True
) -> ExportedGraph:
    """Traces, converts and checks; raises CannotConvert or GradientMismatch.

    A graph that runs at the length of its trace alone is traced again at a prime: chunks that are padded are the
    general case, and those that need no padding a branch of their own (Mamba 2, local attention).
    """
    signature = _signature(case, symbolic)
    try:
        return _export_traced(case, signature, symbolic, route, opset, checks)
    except FailsAtOtherLengths as error:
        at_primes = signature_of(case, symbolic, prime=True)
        try:
            return _export_traced(case, at_primes, symbolic, route, opset, checks)
        except (CannotConvert, RuntimeError):
            raise error from None


def _signature(case: TrainingCase, symbolic: list[str]) -> Signature:
    """The signature, or that the module does not take its own inputs: before it is traced, it runs as it is.

    Inputs are made at other lengths too, to see which axes grow.
    """
    try:
        return signature_of(case, symbolic)
    except FAILURES as error:
        where = _innermost_model_frame(error)
        raise CannotConvert(
            f"{case.name}: the module or its inputs fail in PyTorch, before any export ({where}): {error}"
        ) from error


def _export_traced(
    case: TrainingCase, signature: Signature, symbolic: list[str], route: str, opset: int | None, checks: bool
) -> ExportedGraph:
    try:
        compared = compared_sizes(case, symbolic) if checks else []
        if route == ONNX_AD:
            model = _differentiated_forward(case, signature, opset, compared)
        else:
            model = export_training_step(case, signature, opset, compared)
    except GuardOnDataDependentSymNode as error:
        where = _innermost_model_frame(error)
        raise CannotConvert(f"{case.name}: a Python branch depends on the data ({where}): {_reason(error)}") from error
    except (torch.onnx.errors.OnnxExporterError, NotImplementedError, AssertionError, *FAILURES) as error:
        raise CannotConvert(f"{case.name}: {_reason(error)}{_way_out(error, symbolic)}") from error
    _require_open(model, signature, case)
    graph_files.strip_export_notes(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())[:240]
        raise CannotConvert(f"{case.name}: the exporter wrote a graph that ONNX's checker refuses: {reason}") from error
    graph_files.set_metadata(model, {"autosp.loss": "loss", "autosp.route": route, "autosp.model": case.name})
    comparisons = check_graph(model, signature, case, symbolic) if checks else []
    return ExportedGraph(case, route, model, signature, comparisons)


def symbolic_axis_names(case: TrainingCase, static: bool, symbolic_batch: bool) -> list[str]:
    """The axes to leave open: every length but the batch, unless asked otherwise."""
    return [] if static else [name for name in case.sizes if name != "batch" or symbolic_batch]


def _differentiated_forward(
    case: TrainingCase, signature: Signature, opset: int | None, compared: list[dict[str, int]]
) -> onnx.ModelProto:
    from onnx_ad_route import differentiate

    return differentiate(export_forward(case, signature, opset, compared), "loss", list(signature.parameters))


def _reason(error: BaseException) -> str:
    """The sentence of an exporter's error that names what it stopped at."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for mark in ("No ONNX function found", "when translating node", "Could not guard"):
        for line in lines:
            if mark in line:
                return _without_class(line)
    if SUMMARY in lines:  # of torch.onnx, behind its advice on how to report the error
        lines = lines[lines.index(SUMMARY) + 1 :]
    sentences = [line for line in lines if not line.startswith(("frame #", "(", "<omitting", "Exception raised from"))]
    return _without_class(sentences[0]) if sentences else type(error).__name__


def _without_class(sentence: str) -> str:
    return re.sub(r"^<class '[\w.]*'>: ", "", sentence)


def _way_out(error: BaseException, symbolic: list[str]) -> str:
    """What to do where an operator does not take an open length."""
    at_length = re.search(r"symbolic (sizes|int|shape)|SymInt|Constraints violated|specialized", str(error))
    return f" (with {' and '.join(symbolic)} open; export with --static)" if symbolic and at_length else ""


def _require_open(model: onnx.ModelProto, signature: Signature, case: TrainingCase) -> None:
    """Refuses a graph for which the exporter took a length that is to be open for a number."""
    for value in model.graph.input:
        for axis, name in signature.symbolic_axes.get(value.name, {}).items():
            length = value.type.tensor_type.shape.dim[axis]
            if length.HasField("dim_value"):
                raise CannotConvert(
                    f"{case.name}: an operator of the model fixes the length '{name}' at {length.dim_value} "
                    f"(axis {axis} of '{value.name}'); export with --static"
                )


def _innermost_model_frame(error: BaseException) -> str:
    """PyTorch's, where the module is one of its own or the loss depends on no parameter."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame
        for frame in frames
        if not is_pytorchs(frame.filename) and pathlib.Path(frame.filename).name not in TRACING_FILES
    ]
    last = (own or frames)[-1]
    return f"{pathlib.Path(last.filename).name} line {last.lineno}"
