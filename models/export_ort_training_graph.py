#!/usr/bin/env python3
"""Exports a training step through ONNX Runtime's training artifacts, and checks it against PyTorch.

    python models/export_ort_training_graph.py --hf gpt2 --weights models/graphs/gpt2.npz -o gpt2_ort_training.onnx

Needs the packages of requirements-ort-training.txt. Writes two graphs:

    gpt2_ort_training_model.onnx   as ONNX Runtime makes it: gradients are added in place into
                                   `<parameter>_grad.accumulation.buffer` inputs
    gpt2_ort_training.onnx         the same nodes without the accumulators: outputs `<parameter>_grad`

The forward graph is made by the TorchScript exporter at operator set 15. From 17 on LayerNormalization has to be given
its statistics as outputs before ONNX Runtime differentiates it, which `--opset 17` does.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import contextlib
import dataclasses
import io
import logging
import pathlib
import sys
import tempfile
import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import torch
from onnxruntime.training import artifacts, onnxblock

import families
import graph_files
from gradient_check import GradientMismatch, OnnxRuntimeGraph, compare_outputs, require_match
from random_draws import dropouts_as_inputs, fixed_draws
from training_case import CannotConvert, TrainingCase

ROUTE = "onnxruntime-training"
ACCUMULATOR = "InPlaceAccumulatorV2"
ACCUMULATION_BUFFER = ".accumulation.buffer"
RESET_INPUT = "lazy_reset_grad"


class _LossInGraph(onnxblock.Block):
    """The exported graph ends in its loss: nothing to add."""

    def build(self, loss: str, *others: str) -> str:
        return loss


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        export(options)
    except (CannotConvert, GradientMismatch) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def export(options: argparse.Namespace) -> None:
    """Exports, differentiates, checks, and only then writes."""
    case = families.case_from_family(options.hf, _dimensions(options), torch.float32)
    weights = dict(np.load(options.weights)) if options.weights else {}
    load_weights(case, weights)
    inputs = {
        name: torch.from_numpy(weights[name]) if name in weights else value
        for name, value in case.inputs(seed=1).items()
    }
    forward = export_forward(case, inputs, options.opset)
    untouched = generate_training_model(forward, list(case.parameters()))
    plain = without_accumulators(untouched)
    for model in (untouched, plain):
        graph_files.strip_export_notes(model)
        graph_files.set_metadata(model, {"autosp.loss": "loss", "autosp.route": ROUTE, "autosp.model": case.name})
    print(check(plain, case, inputs))
    graph_files.write_graph(untouched, _beside(options.output, "_model"), None, frozenset())
    written = graph_files.write_graph(plain, options.output, None, frozenset())
    print(f"wrote {written[0]} ({len(plain.graph.node)} nodes) and {_beside(options.output, '_model')}")


def load_weights(case: TrainingCase, weights: dict[str, np.ndarray]) -> None:
    """Replaces the module's parameters by those of another route's inputs; all of them or none."""
    if not weights:
        return
    parameters = case.parameters()
    missing = [name for name in parameters if name not in weights]
    if missing:
        raise CannotConvert(f"the weights lack {', '.join(missing)}")
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(torch.from_numpy(weights[name]))


def export_forward(case: TrainingCase, inputs: dict[str, torch.Tensor], opset: int) -> onnx.ModelProto:
    """Forward and loss by the TorchScript exporter; initializers are the parameters, under their own names."""
    buffer = io.BytesIO()
    torch.onnx.export(
        case.module,
        tuple(inputs.values()),
        buffer,
        input_names=list(inputs),
        output_names=["loss"],
        opset_version=opset,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.TRAINING,
        export_params=True,
    )
    model = onnx.load_from_string(buffer.getvalue())
    _strip_prefix(model, case.parameter_prefix)
    if opset >= 17:
        _add_statistics_outputs(model)
    return model


def generate_training_model(forward: onnx.ModelProto, parameters: list[str]) -> onnx.ModelProto:
    """`training_model.onnx` as ONNX Runtime writes it."""
    initializers = {tensor.name for tensor in forward.graph.initializer}
    missing = [name for name in parameters if name not in initializers]
    if missing:
        raise CannotConvert(f"the exporter renamed or merged parameters: {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as folder, _quiet_standard_error():
        artifacts.generate_artifacts(
            forward,
            requires_grad=parameters,
            loss=_LossInGraph(),
            optimizer=artifacts.OptimType.AdamW,
            artifact_directory=folder,
        )
        return onnx.load(str(pathlib.Path(folder) / "training_model.onnx"))


def without_accumulators(training_model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with `<parameter>_grad` outputs in place of accumulation into buffers."""
    plain = onnx.ModelProto()
    plain.CopyFrom(training_model)
    graph = plain.graph
    accumulated = {node.output[0]: (node.input[0], node.input[1]) for node in graph.node if node.op_type == ACCUMULATOR}
    inputs = {value.name: value for value in graph.input}
    outputs = []
    for output in graph.output:
        if output.name in accumulated:
            buffer, gradient = accumulated[output.name]
            value = onnx.ValueInfoProto()
            value.CopyFrom(inputs[buffer])
            value.name = gradient
            outputs.append(value)
        else:
            outputs.append(output)
    kept_nodes = [node for node in graph.node if node.op_type != ACCUMULATOR]
    kept_inputs = [
        value for value in graph.input if value.name != RESET_INPUT and not value.name.endswith(ACCUMULATION_BUFFER)
    ]
    kept_values = [value for value in graph.value_info if value.name not in {output.name for output in outputs}]
    for field, kept in (("node", kept_nodes), ("input", kept_inputs), ("output", outputs), ("value_info", kept_values)):
        copies = [type(item).FromString(item.SerializeToString()) for item in kept]
        plain.graph.ClearField(field)
        getattr(plain.graph, field).extend(copies)
    return plain


def check(plain: onnx.ModelProto, case: TrainingCase, inputs: dict[str, torch.Tensor]) -> object:
    """Loss and gradients against autograd, with the same draws where there is dropout; raises GradientMismatch."""
    parameters = {name: value.requires_grad_() for name, value in case.parameters().items()}
    graph, draws = dropouts_as_inputs(plain)
    with fixed_draws(seed=7) as drawn:
        loss = case.loss(parameters, list(inputs.values()))
    if len(drawn) != len(draws):
        raise CannotConvert(f"{case.name}: PyTorch draws {len(drawn)} random tensors, the graph {len(draws)}")
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    expected = {"loss": loss.detach().numpy()}
    expected |= {f"{name}_grad": value.numpy() for name, value in zip(parameters, gradients)}
    fed = {**parameters, **inputs, **dict(zip(draws, drawn))}
    feeds = {name: value.detach().numpy() for name, value in fed.items()}
    got = OnnxRuntimeGraph(graph)(feeds)
    return require_match(compare_outputs(f"{case.name} default sizes", got, expected))


def _strip_prefix(model: onnx.ModelProto, prefix: str) -> None:
    renamed = {
        tensor.name: tensor.name.removeprefix(prefix)
        for tensor in model.graph.initializer
        if tensor.name.startswith(prefix)
    }
    for tensor in model.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for value in model.graph.input:
        value.name = renamed.get(value.name, value.name)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)


def _add_statistics_outputs(model: onnx.ModelProto) -> None:
    """Gives one-output LayerNormalization and SoftmaxCrossEntropyLoss the outputs that their gradients read."""
    extra = {"LayerNormalization": ("mean", "inverse_deviation"), "SoftmaxCrossEntropyLoss": ("log_probability",)}
    for index, node in enumerate(model.graph.node):
        if node.op_type in extra and len(node.output) == 1:
            node.output.extend(f"{node.op_type}_{index}_{name}" for name in extra[node.op_type])


@contextlib.contextmanager
def _quiet_standard_error() -> Iterator[None]:
    """ONNX Runtime's graph builder logs every fusion to the process's standard error, whatever its log level."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _beside(path: pathlib.Path, suffix: str) -> pathlib.Path:
    return path.with_name(path.stem + suffix + path.suffix)


def _dimensions(options: argparse.Namespace) -> families.Dimensions:
    names = [field.name for field in dataclasses.fields(families.Dimensions)]
    changed = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return dataclasses.replace(families.Dimensions(), **changed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf", metavar="FAMILY", required=True, help="a family of models/families.py, or nano")
    parser.add_argument("--weights", metavar="NPZ", help="parameters and data of another route's graph, to be reused")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, help="the .onnx file to write")
    parser.add_argument("--opset", type=int, default=15, help="operator set of the forward graph (default 15)")
    for field in dataclasses.fields(families.Dimensions):
        kind = float if field.name == "dropout" else int
        parser.add_argument("--" + field.name.replace("_", "-"), type=kind, metavar="N", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
