"""Exports every known family, checks each, and prints one row for each."""

from __future__ import annotations

import pathlib
import time

import torch

import families
import graph_files
from export_case import export_case, symbolic_axis_names
from gradient_check import GradientMismatch
from training_case import CannotConvert


def check_families(only: list[str] | None, keep: pathlib.Path | None) -> int:
    """Checks all families, or `only` these; writes the graphs that pass into the folder `keep`, if there is one.

    Returns a process's exit status.
    """
    names = only or [families.NANO, *(row.name for row in families.FAMILIES)]
    print(f"{'family':12} {'form':9} {'nodes':>5} {'outputs':>7} {'runs':>4} {'relative':>9}  {'worst output'}")
    failed = []
    for name in names:
        started = time.monotonic()
        case = families.case_from_family(name, families.Dimensions(), torch.float32)
        static_only = name != families.NANO and bool(families.family(name).static_only)
        symbolic = symbolic_axis_names(case, static_only, symbolic_batch=False)
        form = "symbolic" if symbolic else "static"
        try:
            exported = export_case(case, symbolic)
        except (CannotConvert, GradientMismatch) as error:
            failed.append(name)
            print(f"{name:12} {form:9} failed: {error}", flush=True)
            continue
        if keep is not None:
            feeds = {**exported.parameters(), **exported.inputs()}
            graph_files.write_graph(exported.model, keep / f"{name}.onnx", feeds, frozenset())
        worst = max((comparison.worst() for comparison in exported.comparisons), key=lambda error: error.relative)
        print(
            f"{name:12} {form:9} {len(exported.model.graph.node):5} {len(exported.signature.output_names()):7} "
            f"{len(exported.comparisons):4} {worst.relative:9.1e}  {worst.name}  ({time.monotonic() - started:.0f} s)",
            flush=True,
        )
    print(f"{len(names) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0
