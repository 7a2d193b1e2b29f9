"""What recompute costs and saves as the sequence grows: every policy beside keeping everything, in one interleaved run.

    python bench/recompute_overhead.py --tool build/release/bin/autosp-onnx [--lengths 1024 2048 4096] [--ranks 2]

The model is that of bench/long_context.py. Policies take turns at each length, and the median of their step times
counts. Losses must agree, or nothing is reported. Attention is never run again by `sac` and costs the square of the
length, so the overhead falls as the sequence grows. Needs the packages of models/requirements.txt.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from pathlib import Path

from long_context import Measurement, Tool

POLICIES = ("none", "mincut", "sac", "full")


def measure(tool: Tool, seq: int, rounds: int) -> dict[str, Measurement]:
    """Policy -> its measurement with the median time over the rounds."""
    rows: dict[str, list[Measurement]] = {policy: [] for policy in POLICIES}
    for _ in range(rounds):
        for policy in POLICIES:
            rows[policy].append(tool.contestant("--recompute", policy, "--tile", "off")(seq, 3))
    reference = rows["none"][0].loss
    for policy, measured in rows.items():
        if abs(measured[0].loss - reference) > 1e-5 * abs(reference):
            raise SystemExit(f"{policy} at {seq} tokens: loss {measured[0].loss}, but 'none' has {reference}")
    return {
        policy: dataclasses.replace(measured[0], seconds=statistics.median(m.seconds for m in measured))
        for policy, measured in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", type=Path, default=Path("build/release/bin/autosp-onnx"))
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tool = Tool(options.tool, options.ranks, Path(folder))
        print(f"{'tokens':>8}" + "".join(f"{policy:>24}" for policy in POLICIES))
        for seq in options.lengths:
            results = measure(tool, seq, options.rounds)
            none = results["none"]
            cells = [
                f"{m.seconds:8.2f} s {100 * (m.seconds / none.seconds - 1):+4.0f} % {m.peak_mib:5.0f} MiB"
                for m in results.values()
            ]
            print(f"{seq:8}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
