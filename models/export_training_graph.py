#!/usr/bin/env python3
"""Exports a training step (forward, loss, backward) as one ONNX graph.

    python models/export_training_graph.py --hf llama -o llama.onnx
    python models/export_training_graph.py --hf-config config.json --static -o model.onnx
    python models/export_training_graph.py --module package.module:factory -o mine.onnx
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import dataclasses
import importlib
import logging
import pathlib
import sys

import numpy as np
import onnx
import torch
import transformers

import families
import graph_files
from gradient_check import Comparison, GradientMismatch, compare_outputs, require_match, run_in_onnxruntime
from joint_graph import JointGraph, export_joint_graph, loss_and_gradients, trace_joint_graph
from training_case import CannotConvert, TrainingCase

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    try:
        export(options)
    except (CannotConvert, GradientMismatch) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def export(options: argparse.Namespace) -> None:
    """Traces, converts, checks, and only then writes."""
    case = _case(options)
    symbolic = _symbolic_axis_names(options, case)
    joint = trace_joint_graph(case, symbolic)
    for name in joint.unused_parameters:
        print(f"note: parameter '{name}' does not reach the loss: a constant of the graph, without a gradient")
    model = export_joint_graph(joint, options.opset).model_proto
    graph_files.strip_export_notes(model)
    onnx.checker.check_model(model, full_check=True)
    for comparison in check_graph(model, joint, case, symbolic):
        print(comparison)
    write(model, joint, case, options)


def check_graph(
    model: onnx.ModelProto, joint: JointGraph, case: TrainingCase, symbolic: list[str]
) -> list[Comparison]:
    """Loss and gradients against autograd at the default sizes and, where symbolic, at smaller and larger ones."""
    results = []
    for setting, sizes in _sizes_to_check(case, symbolic).items():
        inputs = case.inputs(seed=5, **sizes)
        values = loss_and_gradients(case, joint.parameters, joint.buffers, list(inputs.values()))
        names = ["loss", *(f"{name}.grad" for name in joint.parameters)]
        expected = {name: value.float().numpy() for name, value in zip(names, values, strict=True)}
        got = run_in_onnxruntime(model, to_numpy({**joint.parameters, **inputs}))
        results.append(require_match(compare_outputs(f"{case.name} {setting}", got, expected)))
    return results


def write(model: onnx.ModelProto, joint: JointGraph, case: TrainingCase, options: argparse.Namespace) -> None:
    """The graph, its inputs, and its metadata."""
    graph_files.set_metadata(
        model, {"autosp.loss": "loss", "autosp.route": "torch-joint-graph", "autosp.model": case.name}
    )
    parameters = to_numpy(joint.parameters)
    inputs = to_numpy(case.inputs(seed=1))
    external: frozenset[str] = frozenset()
    if options.params == "external":
        graph_files.parameters_to_initializers(model, parameters)
        external = frozenset(parameters)
    else:
        inputs = {**parameters, **inputs}
    written = graph_files.write_graph(model, options.output, None if options.no_inputs else inputs, external)
    print(f"wrote {', '.join(map(str, written))}: {len(model.graph.node)} nodes")


def to_numpy(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """As NumPy arrays; bfloat16, which NumPy lacks, as the float32 of the same value."""
    return {
        name: (value.float() if value.dtype == torch.bfloat16 else value).contiguous().numpy()
        for name, value in tensors.items()
    }


def _case(options: argparse.Namespace) -> TrainingCase:
    if options.module:
        return _case_from_factory(options.module)
    changed = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(families.Dimensions)
        if getattr(options, field.name) is not None
    }
    dimensions = dataclasses.replace(families.Dimensions(), **changed)
    dtype = DTYPES[options.dtype]
    if options.hf:
        return families.case_from_family(options.hf, dimensions, dtype)
    config = transformers.AutoConfig.from_pretrained(options.hf_config)
    return families.case_from_config(config, options.task, dimensions, dtype)


def _case_from_factory(specification: str) -> TrainingCase:
    """`package.module:factory`, where `factory()` returns a TrainingCase."""
    module_name, _, factory_name = specification.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        case = getattr(importlib.import_module(module_name), factory_name)()
    except (ImportError, AttributeError) as error:
        raise CannotConvert(f"--module {specification}: {error}") from error
    if not isinstance(case, TrainingCase):
        raise CannotConvert(f"--module {specification}: returned {type(case).__name__}, not a TrainingCase")
    return case


def _symbolic_axis_names(options: argparse.Namespace, case: TrainingCase) -> list[str]:
    if options.static:
        return []
    return [name for name in case.sizes if name != "batch" or options.symbolic_batch]


def _sizes_to_check(case: TrainingCase, symbolic: list[str]) -> dict[str, dict[str, int]]:
    """Setting -> changed sizes; odd lengths, a long one, and one row where the batch is symbolic."""
    settings: dict[str, dict[str, int]] = {"default sizes": {}}
    for name in symbolic:
        sizes = (1, 2, 5) if name == "batch" else (13, 64, 97)
        for size in sizes:
            if size <= case.largest.get(name, size):
                settings[f"{name}={size}"] = {name: size}
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    known = ", ".join([families.NANO, *(row.name for row in families.FAMILIES)])
    source.add_argument("--hf", metavar="FAMILY", help=f"a known family: {known}")
    source.add_argument("--hf-config", metavar="PATH", help="any Hugging Face config.json (or its folder)")
    source.add_argument("--module", metavar="MOD:FACTORY", help="a function that returns a training_case.TrainingCase")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, help="the .onnx file to write")
    parser.add_argument("--task", choices=list(families.MODEL_CLASSES), help="for --hf-config, when it is ambiguous")
    sizes = parser.add_argument_group("sizes (of --hf models; batch, seq and target also of --hf-config)")
    for field in dataclasses.fields(families.Dimensions):
        kind = float if field.name == "dropout" else int
        option = "--" + field.name.replace("_", "-")
        sizes.add_argument(option, type=kind, metavar="N", help=f"default {field.default}")
    form = parser.add_argument_group("form of the graph")
    form.add_argument("--static", action="store_true", help="fix every length (the sequence is symbolic otherwise)")
    form.add_argument("--symbolic-batch", action="store_true", help="leave the batch open as well")
    form.add_argument("--dtype", choices=list(DTYPES), default="fp32", help="type of the parameters")
    form.add_argument("--params", choices=["inputs", "external"], default="inputs", help="where parameters live")
    form.add_argument("--opset", type=int, help="ONNX operator set (default: the exporter's)")
    form.add_argument("--no-inputs", action="store_true", help="do not write the .npz of inputs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
