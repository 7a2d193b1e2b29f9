"""What a slow network costs, and how much of that collectives beside computation hide.

    python bench/overlap.py --tool build/release/bin/autosp-onnx [--seq 2048] [--latency-ms 5] [--rate 0.25]

Processes under MPI on this machine, with the model of bench/long_context.py. `run --link-latency` and `--link-rate`
make every collective take longer while its rank's cores are free. For each way to shard, steps with and without
`--overlap` take turns; losses must be the same number. Exposed is the time of a step in which a rank computed nothing because of
collectives: the slowest rank's, the median over the rounds. Needs the packages of models/requirements.txt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from long_context import Tool, call

WAYS = {
    "sp": (),
    "sp, buckets of 4 MiB": ("--optimizer", "sgd", "--bucket", "4MiB"),
    "sp, zero 3": ("--optimizer", "sgd", "--zero", "3"),
    "keys gathered": ("--sp-mesh", "r={ranks}"),
    "ring": ("--sp-mesh", "r={ranks}", "--ring", "on"),
    "ring in zigzag order": ("--sp-mesh", "r={ranks}", "--ring", "zigzag"),
}
"""What is measured, by the options of `shard`."""


def step(tool: Tool, out: Path, feed: Path, link: list[str], *, overlap: bool) -> dict[str, float]:
    """The figures of one run of three steps: of the slowest rank, and the loss."""
    command = [tool.binary, "run", out, "--transport", "mpi", "--feed", feed, "--repeat", 3, "--json", *link]
    report = json.loads(call([*map(str, command), *(["--overlap"] if overlap else [])]))
    ranks = report["ranks"]
    return {
        "seconds": max(rank["seconds"] for rank in ranks),
        "exposed": max(rank["exposed_seconds"] for rank in ranks),
        "planned": max(rank["planned_peak_bytes"] for rank in ranks),
        "loss": ranks[0]["loss"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", type=Path, default=Path("build/release/bin/autosp-onnx"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency-ms", type=float, default=5)
    parser.add_argument("--rate", type=float, default=0.25, help="GiB/s that a rank sends")
    options = parser.parse_args()
    links = {
        "this machine": [],
        "slow link": ["--link-latency", str(options.latency_ms), "--link-rate", str(options.rate)],
    }
    with tempfile.TemporaryDirectory() as folder:
        tool = Tool(options.tool, options.ranks, Path(folder))
        feed = tool.feed(options.seq)
        print(f"{'':26}{'':14}{'step':>17}{'exposed':>19}{'hidden':>8}{'arena':>9}")
        for way, shard_options in WAYS.items():
            out = tool.folder / "overlap"
            shard = [tool.binary, "shard", tool.model, "--dim", f"seq={options.seq}", "--sp", tool.ranks, "-o", out]
            call([*map(str, shard), *(option.format(ranks=tool.ranks) for option in shard_options)])
            for name, link in links.items():
                rows: dict[bool, list[dict[str, float]]] = {False: [], True: []}
                for _ in range(options.rounds):
                    for overlap in rows:
                        rows[overlap].append(step(tool, out, feed, link, overlap=overlap))
                if len({row["loss"] for row in rows[False] + rows[True]}) != 1:
                    raise SystemExit(f"{way}: losses differ: {rows}")
                off, on = (
                    {key: statistics.median(row[key] for row in rows[overlap]) for key in rows[overlap][0]}
                    for overlap in (False, True)
                )
                print(
                    f"{way:26}{name:14}{off['seconds']:7.2f} -> {on['seconds']:5.2f} s"
                    f"{off['exposed']:8.2f} -> {on['exposed']:5.2f} s"
                    f"{100 * (1 - on['exposed'] / off['exposed']):6.0f} %"
                    f"{100 * (on['planned'] / off['planned'] - 1):+7.1f} %",
                    flush=True,
                )


if __name__ == "__main__":
    main()
