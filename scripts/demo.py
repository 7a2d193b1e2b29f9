"""The part of scripts/demo after the build: shard, run twice, validate, and report on each graph."""

import dataclasses
import json
import pathlib
import platform
import shutil
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "test" / "e2e"))
from training_graph import committed_graphs, relative_errors  # noqa: E402

BINARY = ROOT / "build" / "release" / "bin" / "autosp-onnx"
OUT = ROOT / "build" / "demo"
RANKS = 4
ROUTES = {
    "torch-joint-graph": "PyTorch",
    "onnxruntime-training": "ONNX Runtime training",
    "onnx-ad": "onnx-ad",
}


class Failed(Exception):
    """A step of the demonstration that did not do what it should."""


@dataclasses.dataclass
class Row:
    graph: str
    route: str
    exchanges: int = 0
    kib_per_rank: float = 0.0
    loss: float = float("nan")
    error: float = float("nan")  # largest, of all outputs, against the whole graph run by validate
    outside_error: float = float("nan")  # the same against the whole graph run by stock ONNX Runtime
    seconds: dict = dataclasses.field(default_factory=dict)  # by transport, start-up included
    verdict: str = ""


def call(commands, *arguments):
    """Runs the binary; the command line is kept for the report."""
    line = [str(BINARY.relative_to(ROOT)), *map(str, arguments)]
    commands.append(" ".join(line))
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise Failed(f"{line[1]} ended with exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def load_outputs(path):
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def shard_and_run(graph, row, commands):
    """Fills the row; raises Failed where anything differs."""
    model = graph.path.relative_to(ROOT)
    feed = graph.feed.relative_to(ROOT)
    folder = (OUT / graph.path.stem).relative_to(ROOT)
    bindings = [part for name, size in graph.symbolic_axes.items() for part in ("--dim", f"{name}={size}")]

    manifest = json.loads(call(commands, "shard", model, "--sp", RANKS, *bindings, "-o", folder, "--json"))
    row.exchanges = len(manifest["collectives"])
    row.kib_per_rank = sum(int(entry["bytes_per_rank"]) for entry in manifest["collectives"]) / 1024

    results = {}
    for transport in ("threads", "mpi"):
        path = folder / f"{transport}.npz"
        started = time.monotonic()
        call(commands, "run", folder, "--np", RANKS, "--transport", transport, "--feed", feed, "--output", path)
        row.seconds[transport] = time.monotonic() - started
        results[transport] = load_outputs(ROOT / path)
    row.loss = float(results["threads"]["loss"])
    for name, value in results["threads"].items():
        if not np.array_equal(value, results["mpi"][name]):
            raise Failed(f"'{name}' differs between threads and MPI")

    report = json.loads(call(commands, "validate", model, folder, "--feed", feed, "--json"))
    row.error = max(output["relative_error"] for output in report["outputs"])
    expected = graph.step(graph.inputs({}))
    outside = relative_errors({name: results["mpi"][name] for name in expected}, expected)
    row.outside_error = max(outside.values())
    if not row.outside_error <= 1e-4:
        worst = max(outside, key=outside.get)
        raise Failed(f"'{worst}' differs from ONNX Runtime's: relative error {outside[worst]:.1e}")


def cells(row):
    return [
        row.graph,
        row.route,
        str(row.exchanges),
        f"{row.kib_per_rank:.0f}",
        f"{row.loss:.6f}",
        f"{row.error:.1e}",
        f"{row.outside_error:.1e}",
        f"{row.seconds.get('threads', float('nan')):.2f}",
        f"{row.seconds.get('mpi', float('nan')):.2f}",
        row.verdict,
    ]


HEADINGS = ["graph", "route", "exchanges", "KiB/rank", "loss", "error", "vs ORT", "threads s", "MPI s", "verdict"]
WIDTHS = [24, 21, 9, 8, 9, 8, 8, 9, 6, 7]


def print_line(texts):
    left = [text.ljust(width) for text, width in zip(texts[:2], WIDTHS)]
    right = [text.rjust(width) for text, width in zip(texts[2:], WIDTHS[2:])]
    print("  ".join(left + right), flush=True)


def write_report(rows, commands, failures):
    lines = [
        "# autosp-onnx demonstration",
        "",
        f"{RANKS} ranks on {platform.processor() or platform.machine()}, one step on the inputs committed beside each graph.",
        "",
        "- exchanges, KiB/rank: collectives in a rank's graph, and what a rank sends in them",
        "- error: the largest of the loss and all gradients, on all ranks, against the whole graph (`validate`)",
        "- vs ORT: the same against the whole graph run by stock ONNX Runtime (a training artifact is compared with",
        "  PyTorch's graph of the same model)",
        "- threads and MPI give the same bits; their times include starting up",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + " --- |" * len(HEADINGS),
        *("| " + " | ".join(cells(row)) + " |" for row in rows),
        "",
        "## Commands",
        "",
        *("    " + command for command in commands),
    ]
    for graph, message in failures:
        lines += ["", f"## Failed: {graph}", "", *("    " + line for line in message.splitlines())]
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / "report.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def main(names):
    graphs = [graph for graph in committed_graphs() if not names or graph.path.stem in names]
    unknown = set(names) - {graph.path.stem for graph in graphs}
    if unknown:
        sys.exit(f"error: no committed graph named {', '.join(sorted(unknown))}")
    shutil.rmtree(OUT, ignore_errors=True)
    rows, commands, failures = [], [], []
    print_line(HEADINGS)
    for graph in graphs:
        [route] = [entry.value for entry in graph.model.metadata_props if entry.key == "autosp.route"]
        row = Row(graph.path.stem, ROUTES.get(route, route))
        try:
            shard_and_run(graph, row, commands)
            row.verdict = "equal"
        except Failed as failure:
            row.verdict = "FAILED"
            failures.append((row.graph, str(failure)))
        rows.append(row)
        print_line(cells(row))
    report = write_report(rows, commands, failures)
    for graph, message in failures:
        print(f"\n{graph}: {message}", file=sys.stderr)
    if failures:
        return 1
    print(f"\nLoss and every gradient equal on {RANKS} ranks, in threads and under MPI: {len(rows)} graphs.")
    print(f"Report: {report.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
