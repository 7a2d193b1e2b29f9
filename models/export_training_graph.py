#!/usr/bin/env python3
"""Exports a training step (forward, loss, backward) as one ONNX graph, and checks it against PyTorch.

    python models/export_training_graph.py --hf llama -o llama.onnx
    python models/export_training_graph.py --hf-config config.json --static -o model.onnx
    python models/export_training_graph.py --module package.module:factory -o mine.onnx
    python models/export_training_graph.py --onnx forward.onnx --loss loss -o training.onnx
    python models/export_training_graph.py --check-families

The graph's inputs are the parameters under their own names and then the data; its outputs are `loss` and, for each
parameter, `<parameter>.grad`. Beside it goes an .npz with a value for every input. Nothing is written unless loss and
every gradient agree with PyTorch's. The exit code is 1 where they differ, and 2 where a model cannot be converted.
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
from export_case import ONNX_AD, ROUTES, ExportedGraph, export_case, symbolic_axis_names
from gradient_check import GradientMismatch, require_match
from training_case import CannotConvert, TrainingCase

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.check_families and options.output is None:
        parser.error("-o is required")
    if options.onnx and not options.loss:
        parser.error("--onnx needs --loss, the name of the graph's loss output")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    try:
        if options.check_families:
            from check_families import check_families

            return check_families(options.only, options.output)
        if options.onnx:
            differentiate_file(options)
        else:
            export_from_torch(options)
    except (CannotConvert, GradientMismatch) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, GradientMismatch) else 2
    return 0


def export_from_torch(options: argparse.Namespace) -> None:
    """--hf, --hf-config, --module."""
    case = _case(options)
    symbolic = symbolic_axis_names(case, options.static, options.symbolic_batch)
    if options.longest is not None:
        case = _bounded(case, symbolic, options.longest)
    exported = export_case(case, symbolic, options.route, options.opset, checks=not options.no_check)
    for name in exported.signature.unused_parameters:
        print(f"note: parameter '{name}' does not reach the loss: a constant of the graph, without a gradient")
    for read in exported.signature.masked_reads:
        print(f"note: {read.where} reads {read} by a mask: where it chooses more or fewer, the loss is no number")
    for line in exported.branches_left_out():
        print(f"note: {line} branches on the data, and leaves that out for compilers: so does the graph")
    for comparison in exported.comparisons:
        print(comparison)
    _write(exported, options)


def differentiate_file(options: argparse.Namespace) -> None:
    """--onnx: a forward graph made by anything, differentiated by onnx-ad."""
    import onnx_ad_route

    forward = onnx.load(options.onnx)
    parameters = onnx_ad_route.choose_parameters(forward, options.train)
    values = onnx_ad_route.take_initializers(forward, parameters)
    if options.inputs:
        values |= dict(np.load(options.inputs))
    model = onnx_ad_route.differentiate(forward, options.loss, parameters)
    graph_files.strip_export_notes(model)
    graph_files.set_metadata(model, {"autosp.loss": options.loss, "autosp.route": ONNX_AD})
    feeds = onnx_ad_route.random_feeds(model, values)
    print(require_match(onnx_ad_route.check_directional_derivative(model, options.loss, parameters, feeds)))
    written = graph_files.write_graph(model, options.output, None if options.no_inputs else feeds, frozenset())
    print(f"wrote {', '.join(map(str, written))}: {len(model.graph.node)} nodes")


def _write(exported: ExportedGraph, options: argparse.Namespace) -> None:
    parameters, inputs = exported.parameters(), exported.inputs()
    external: frozenset[str] = frozenset()
    if options.params == "external":
        graph_files.parameters_to_initializers(exported.model, parameters)
        external = frozenset(parameters)
    else:
        inputs = {**parameters, **inputs}
    written = graph_files.write_graph(exported.model, options.output, None if options.no_inputs else inputs, external)
    print(f"wrote {', '.join(map(str, written))}: {len(exported.model.graph.node)} nodes")


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


def _bounded(case: TrainingCase, symbolic: list[str], longest: int) -> TrainingCase:
    """The case with its open lengths, but the batch, of at most `longest`."""
    lengths = [name for name in symbolic if name != "batch"]
    for name in lengths:
        if case.sizes[name] > longest:
            raise CannotConvert(f"--longest {longest} is less than the length {name}={case.sizes[name]} to export at")
    largest = {name: min(longest, case.largest.get(name, longest)) for name in lengths}
    return dataclasses.replace(case, largest={**case.largest, **largest})


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
    families.never_skip_layers(case.module)
    return case


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    known = ", ".join([families.NANO, *(row.name for row in families.FAMILIES)])
    source.add_argument("--hf", metavar="FAMILY", help=f"a known family: {known}")
    source.add_argument("--hf-config", metavar="PATH", help="any Hugging Face config.json (or its folder)")
    source.add_argument("--module", metavar="MOD:FACTORY", help="a function that returns a training_case.TrainingCase")
    source.add_argument("--onnx", metavar="PATH", help="a forward ONNX graph with a loss, to be differentiated")
    source.add_argument("--check-families", action="store_true", help="export and check every known family")
    output_help = "the .onnx file to write; with --check-families, a folder for the graphs that pass (optional)"
    parser.add_argument("-o", "--output", type=pathlib.Path, help=output_help)
    parser.add_argument("--only", nargs="*", metavar="FAMILY", help="with --check-families: just these")
    parser.add_argument("--task", choices=list(families.MODEL_CLASSES), help="for --hf-config, when it is ambiguous")
    sizes = parser.add_argument_group("sizes (of --hf models; batch, seq and target also of --hf-config)")
    for field in dataclasses.fields(families.Dimensions):
        kind = float if field.name == "dropout" else int
        option = "--" + field.name.replace("_", "-")
        sizes.add_argument(option, type=kind, metavar="N", help=f"default {field.default}")
    forward = parser.add_argument_group("differentiating a forward graph (--onnx)")
    forward.add_argument("--loss", metavar="NAME", help="the output to differentiate")
    forward.add_argument(
        "--train",
        action="append",
        default=[],
        metavar="PATTERN",
        help="parameters, as names or file-name patterns over inputs and initializers (repeatable; default: the "
        "floating-point inputs, or without any the floating-point initializers)",
    )
    forward.add_argument("--inputs", metavar="NPZ", help="values to check with; random ones where missing")
    form = parser.add_argument_group("form of the graph")
    form.add_argument("--route", choices=ROUTES, default=ROUTES[0], help="what computes the gradients")
    form.add_argument("--static", action="store_true", help="fix every length (the sequence is symbolic otherwise)")
    form.add_argument(
        "--longest",
        type=int,
        metavar="N",
        help="open lengths are of at most N: a model that branches on longer ones is exported as it is up to there",
    )
    form.add_argument("--symbolic-batch", action="store_true", help="leave the batch open as well")
    form.add_argument("--dtype", choices=list(DTYPES), default="fp32", help="type of the parameters")
    form.add_argument("--params", choices=["inputs", "external"], default="inputs", help="where parameters live")
    form.add_argument("--opset", type=int, help="ONNX operator set (default: the exporter's)")
    form.add_argument("--no-check", action="store_true", help="do not run the graph beside PyTorch: it may be large")
    form.add_argument("--no-inputs", action="store_true", help="do not write the .npz of inputs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
