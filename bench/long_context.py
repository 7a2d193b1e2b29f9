"""How long a context fits: autosp-onnx beside the schemes that a user would otherwise write by hand.

    python bench/long_context.py --tool build/release/bin/autosp-onnx [--memory-mib 1024] [--ranks 2]

Every contestant trains the same Llama (bench/peers/llama.py, 14 million parameters, float32, batch 1) on this machine's
CPU, a process per rank. For each it finds the longest sequence whose peak of resident memory per rank stays within the
limit (autosp-onnx counts pages that ranks share with the rank whose they are, docs/executor.md), and the time of a step
at a length that all can do. Hand-written schemes are given the memory that PyTorch itself takes; autosp-onnx is not
given its own. Losses at the common length must agree, or nothing is reported.

Needs the packages of models/requirements.txt.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))

import llama
import numpy as np

LENGTH_STEP = 256
"""Sequence lengths are multiples of this."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One training step: the largest rank's peak in MiB, the slowest rank's seconds."""

    seq: int
    peak_mib: float
    seconds: float
    communication: float
    loss: float


Run = Callable[[int, int], Measurement]
"""(sequence length, steps) -> measurement; raises subprocess.CalledProcessError when the run fails."""


@dataclasses.dataclass
class Contestant:
    """A way to train the model on several ranks."""

    name: str
    run: Run
    handwritten: bool
    longest: Measurement | None = None
    common: Measurement | None = None


def call(command: list[str], **environment: str) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    if done.returncode != 0:
        print(done.stderr[-2000:], file=sys.stderr)
        done.check_returncode()
    return done.stdout


def handwritten(scheme: str, ranks: int, *, checkpointed: bool) -> Run:
    """A scheme of bench/peers/sequence_parallel.py."""

    def run(seq: int, steps: int) -> Measurement:
        command = [sys.executable, str(HERE / "peers" / "sequence_parallel.py"), "--scheme", scheme]
        command += ["--ranks", str(ranks), "--seq", str(seq), "--steps", str(steps)]
        result = json.loads(call(command + ["--checkpointed"] * checkpointed).splitlines()[-1])
        return Measurement(
            seq, max(result["peak_mib"]), result["seconds"], result["collective_seconds"], result["loss"]
        )

    return run


class Tool:
    """autosp-onnx on the exported model, in a folder of its own."""

    def __init__(self, binary: Path, ranks: int, folder: Path) -> None:
        self.binary = binary.resolve()
        self.ranks = ranks
        self.folder = folder
        self.model = folder / "llama.onnx"
        exporter = HERE.parent / "models" / "export_training_graph.py"
        call(
            [sys.executable, str(exporter), "--module", "llama_case:llama", "-o", str(self.model)],
            PYTHONPATH=f"{HERE / 'peers'}:{HERE.parent / 'models'}",
        )
        with np.load(self.model.with_suffix(".npz")) as arrays:
            self.parameters = {name: arrays[name] for name in arrays.files if name not in ("ids", "labels")}

    def feed(self, seq: int) -> Path:
        path = self.folder / "feed.npz"
        ids, labels = llama.make_batch(llama.Config(), seq)
        np.savez(path, ids=ids.numpy(), labels=labels.numpy(), **self.parameters)
        return path

    def contestant(self, *options: str) -> Run:
        """`shard` with these options, `run` under MPI."""

        def run(seq: int, steps: int) -> Measurement:
            out = self.folder / "out"
            shard = [self.binary, "shard", self.model, "--dim", f"seq={seq}", "--sp", self.ranks, *options]
            call([*map(str, shard), "-o", str(out)])
            step = [self.binary, "run", out, "--transport", "mpi", "--feed", self.feed(seq), "--repeat", steps]
            report = json.loads(call([*map(str, step), "--timeout", "600", "--json"]))
            ranks = report["ranks"]
            return Measurement(
                seq,
                max(rank["resident_peak_bytes"] for rank in ranks) / 2**20,
                max(rank["seconds"] for rank in ranks),
                min(rank["collective_seconds"] for rank in ranks),
                ranks[0]["loss"],
            )

        return run


def longest_within(run: Run, limit_mib: float, start: int) -> Measurement | None:
    """The longest sequence found within the limit: follows the line through the last two measurements."""
    measured: dict[int, Measurement] = {}

    def measure(seq: int) -> Measurement:
        if seq not in measured:
            measured[seq] = run(seq, 1)
            print(f"    {seq}: {measured[seq].peak_mib:.0f} MiB", file=sys.stderr, flush=True)
        return measured[seq]

    low, high = measure(start), measure(2 * start)
    for _ in range(6):
        slope = (high.peak_mib - low.peak_mib) / (high.seq - low.seq)
        if slope <= 0:
            break
        guess = high.seq + (0.985 * limit_mib - high.peak_mib) / slope
        guess = min(guess, 4 * max(measured))
        seq = max(LENGTH_STEP, int(guess) // LENGTH_STEP * LENGTH_STEP)
        if seq in measured:
            break
        low, high = sorted((high, measure(seq)), key=lambda m: m.seq)
        fitting = [m for m in measured.values() if m.peak_mib <= limit_mib]
        if fitting and max(fitting, key=lambda m: m.seq).peak_mib > 0.96 * limit_mib:
            break
    fitting = [m for m in measured.values() if m.peak_mib <= limit_mib]
    return max(fitting, key=lambda m: m.seq) if fitting else None


def check_losses(contestants: list[Contestant]) -> float:
    """The largest relative difference to hand-written Ulysses; data parallelism trains other samples."""
    reference = next(c for c in contestants if c.name.startswith("Ulysses")).common.loss
    worst = 0.0
    for contestant in contestants:
        if contestant.name.startswith("data parallel"):
            continue
        difference = abs(contestant.common.loss - reference) / abs(reference)
        if difference > 1e-5:
            raise SystemExit(
                f"{contestant.name}: loss {contestant.common.loss}, but hand-written Ulysses has {reference}"
            )
        worst = max(worst, difference)
    return worst


def print_table(contestants: list[Contestant], baseline: Contestant, common: int) -> None:
    """One line per contestant, times and lengths relative to `baseline`."""
    print(f"{'':55}  at {common} tokens")
    print(f"{'':38} {'longest':>8} {'ratio':>6} {'s/step':>8} {'ratio':>6} {'MiB':>6} {'comm s':>7}")
    for contestant in contestants:
        longest = contestant.longest.seq if contestant.longest else 0
        at = contestant.common
        print(
            f"{contestant.name:38} {longest:8} {longest / baseline.longest.seq:6.2f} "
            f"{at.seconds:8.2f} {at.seconds / baseline.common.seconds:6.2f} {at.peak_mib:6.0f} {at.communication:7.2f}"
        )


def print_sentence(contestants: list[Contestant], baseline: Contestant, difference: float) -> None:
    """What people quote, of the contestant of ours with the longest sequence."""
    best = max((c for c in contestants if not c.handwritten), key=lambda c: c.longest.seq if c.longest else 0)
    time = 100 * (best.common.seconds / baseline.common.seconds - 1)
    saved = (baseline.common.peak_mib - best.common.peak_mib) / 1024
    exposed = 100 * best.common.communication / best.common.seconds
    print(
        f"\nLongest context from {baseline.longest.seq} ({baseline.name}) to {best.longest.seq} tokens ({best.name}), "
        f"{time:+.0f} % step time, {saved:.2f} GiB lower peak, {exposed:.0f} % exposed communication, "
        f"loss within {difference:.1e}."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", type=Path, default=Path("build/release/bin/autosp-onnx"))
    parser.add_argument("--memory-mib", type=float, default=1024)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--common", type=int, default=2048, help="sequence length at which steps are timed")
    parser.add_argument("--steps", type=int, default=3, help="steps whose median is taken at that length")
    parser.add_argument("--only", nargs="*", help="contestants whose names contain one of these")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tool = Tool(options.tool, options.ranks, Path(folder))
        contestants = [
            Contestant("data parallelism", handwritten("data", options.ranks, checkpointed=False), True),
            Contestant("Ulysses by hand", handwritten("ulysses", options.ranks, checkpointed=False), True),
            Contestant("Ulysses by hand, checkpointed", handwritten("ulysses", options.ranks, checkpointed=True), True),
            Contestant("ring by hand", handwritten("ring", options.ranks, checkpointed=False), True),
            Contestant("K/V gather by hand", handwritten("gather", options.ranks, checkpointed=False), True),
        ]
        for policy in ("none", "mincut", "sac", "full"):
            for tile in ("off", "auto"):
                name = f"autosp-onnx {policy}" + (", tiled" if tile == "auto" else "")
                contestants.append(Contestant(name, tool.contestant("--recompute", policy, "--tile", tile), False))
        if options.only:
            contestants = [c for c in contestants if any(word in c.name for word in (*options.only, "Ulysses by hand"))]
        for contestant in contestants:
            print(f"  {contestant.name}", file=sys.stderr, flush=True)
            contestant.common = contestant.run(options.common, options.steps)
            contestant.longest = longest_within(contestant.run, options.memory_mib, options.common)
        baseline = next(c for c in contestants if c.name == "Ulysses by hand")
        difference = check_losses(contestants)
        print(f"{options.ranks} ranks, {options.memory_mib:.0f} MiB per rank\n")
        print_table(contestants, baseline, options.common)
        print_sentence(contestants, baseline, difference)
    return 0


if __name__ == "__main__":
    sys.exit(main())
