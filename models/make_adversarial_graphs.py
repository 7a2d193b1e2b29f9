#!/usr/bin/env python3
"""Exports the cases of adversarial.py, each checked against PyTorch.

python models/make_adversarial_graphs.py models/graphs/adversarial [token_shift ...]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import logging
import pathlib
import sys

import torch

import adversarial
import graph_files
from export_case import export_case
from gradient_check import GradientMismatch
from training_case import CannotConvert


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="where the graphs go")
    parser.add_argument("only", nargs="*", help="just these (default: all)")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    classes = {adversarial.file_name(case_class): case_class for case_class in adversarial.CASES}
    unknown = [name for name in options.only if name not in classes]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(classes)}")
    failed = 0
    for name in options.only or classes:
        try:
            exported = export_case(adversarial.training_case(classes[name]), symbolic=[])
        except (CannotConvert, GradientMismatch) as error:
            failed += 1
            print(f"error: {name}: {error}", file=sys.stderr)
            continue
        feeds = {**exported.parameters(), **exported.inputs()}
        graph_files.write_graph(exported.model, options.folder / f"{name}.onnx", feeds, frozenset())
        print(f"{exported.comparisons[0]}, {len(exported.model.graph.node)} nodes", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
