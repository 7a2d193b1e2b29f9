"""The report: Markdown of the outcomes and measurements that report.json has."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from gpu_check.readings import of


STEPS = ("ours", "fused", "eager", "compiled")  # ways to run a step


def number(value: float | None, form: str = ".4g") -> str:
    return "" if value is None else format(value, form)


def table(head: Sequence[str], rows: Sequence[str]) -> list[str]:
    return ["", f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}", *rows, ""]


def attention_lines(results: Mapping[str, Any]) -> list[str]:
    rate = of(results, "rates", "PyTorch", "bf16_tflops") or of(results, "rates", "product", "tflops")
    rows = []
    for name, row in results.get("attention", {}).items():
        cells = [name]
        for way in ("forward", "backward"):
            ours, theirs = of(row, "ours", f"{way}_tflops"), of(row, "PyTorch", f"{way}_tflops")
            own = of(row, "ours", f"own_{way}_tflops")
            cells += [number(ours), number(ours and rate and ours / rate, ".2f"), number(own), number(theirs)]
        differences = of(row, "ours", "differences_from_own_kernel")
        cells.append(number(max(differences.values()), ".1e") if differences else "")
        rows.append(f"| {' | '.join(cells)} |")
    ways = [head for way in ("forward TFLOP/s", "backward") for head in (way, "of dense bf16", "own kernel", "PyTorch")]
    head = ["attention", *ways, "off by"]
    return table(head, rows) if rows else []


def step_lines(results: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, row in results.get("step", {}).items():
        cells = [number(of(row, kind, key)) for key in ("seconds", "loss") for kind in STEPS]
        cells.append(number(of(row, "trained", "seconds")))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    head = ["step", *(f"{kind} {what}" for what in ("s", "loss") for kind in STEPS), "with adamw s"]
    return table(head, lines) if lines else []


def chain_lines(results: Mapping[str, Any]) -> list[str]:
    lines = []
    for shape, row in results.get("chains", {}).items():
        for chain in ("norm", "gate"):
            cells = [of(row, chain, key) for key in ("seconds", "fused_seconds", "fused_bytes_per_second")]
            lines.append(f"| {chain}, {shape} | {' | '.join(map(number, cells))} |")
    head = ["elementwise operators", "one by one s", "fused s", "fused bytes/s"]
    return table(head, lines) if lines else []


def length_lines(results: Mapping[str, Any]) -> list[str]:
    lines = []
    for policy, row in results.get("length", {}).items():
        at = row.get("at 131072")
        peak = of(at, "device_peak_bytes") or of(at, "peak_bytes")
        cells = [of(at, "seconds"), of(at, "planned_peak_bytes"), peak]
        cells += [row.get("planned longest"), of(row, "longest", "sequence"), of(row, "longest", "seconds")]
        texts = [number(cell) if isinstance(cell, float) else str(cell or "") for cell in cells]
        lines.append(f"| {policy} | {' | '.join(texts)} |")
    head = ["recompute", "s at 131072", "planned bytes", "bytes in use", "longest planned", "longest run", "its s"]
    return table(head, lines) if lines else []


def exchange_lines(results: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {name} | {number(of(row, 'seconds'))} | {number(of(row, 'bytes_per_second_per_rank'))} |"
        for name, row in results.get("exchange", {}).items()
    ]
    return table(["all-to-all on one GPU", "s", "bytes/s that a rank sends"], rows) if rows else []


def small_lines(results: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {name} | {' | '.join(number(row.get(kind)) for kind in ('cpu', 'cuda', 'fused', 'trained'))} |"
        for name, row in results.get("small steps", {}).items()
    ]
    head = ["committed graph, 40 tokens", "cpu s", "cuda s", "fused s", "cuda with adamw s"]
    return table(head, rows) if rows else []


def report_lines(data: Mapping[str, Any]) -> list[str]:
    results, cuda = data["results"], of(data, "devices", "cuda") or {}
    name = cuda["devices"][0]["name"] if cuda.get("devices") else "No device"
    lines = [f"# {name}", "", f"{datetime.date.today()}, {cuda.get('toolkit')}, driver {cuda.get('driver')}"]
    lines += ["", f"Libraries: {json.dumps(cuda.get('libraries'))}", ""]
    for what in ("conformance", "rates"):
        if what in results:
            lines += [f"{what}: {json.dumps(results[what])}", ""]
    for part in (attention_lines, exchange_lines, chain_lines, step_lines, length_lines, small_lines):
        lines += part(results)
    notes = sorted({note for row in data["checks"].values() for note in row["notes"]})
    lines += [f"- {note}" for note in notes]
    rows = [f"| {k} | {row['outcome']} | {row['seconds']:.1f} |" for k, row in data["checks"].items()]
    order = sorted(rows, key=lambda row: "| passed |" in row)  # what did not pass comes first
    return lines + table(["check", "outcome", "s"], order)
