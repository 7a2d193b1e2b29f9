"""The parts, each a method of Parts that puts what it measures into the results of a Check."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from gpu_check.build import MODELS
from gpu_check.check import ROOT, Check
from gpu_check.readings import Watch, outcomes_in, parsed, shapes_in

PARTS = ["conformance", "validate", "trace", "attention", "exchange", "step", "length", "sanitizer"]  # as they run
GRAPHS = ROOT / "models/graphs"
SEQUENCE = 40
RANKS = (1, 2, 4, 8)
BLOCKS = {"block_local_attention": 4, "chunked_cross_entropy": 4}  # graphs of so few blocks, whole ones per rank
TRAINED = ("--optimizer", "adamw")
POLICIES = ("none", "mincut", "sac", "full")


class Parts:
    def __init__(self, check: Check, built: pathlib.Path) -> None:
        self.check, self.built = check, built
        self.binary = built / "bin/autosp-onnx"
        self.feeds: dict[tuple[str, int], pathlib.Path | None] = {}

    # Many processes side by side: the reference kernels take most of the time.
    def conformance(self) -> None:
        test, tests = self.built / "bin/test_conformance", ["--gtest_brief=1", "--gtest_filter=*cuda*:*Cuda*"]
        shards = max(1, min(8, (os.cpu_count() or 1) // 2))
        outcomes: dict[str, str] = {}

        def run(k: int) -> dict[str, str]:
            file = self.check.scratch / f"conformance-{k}.json"
            variables = {"GTEST_TOTAL_SHARDS": str(shards), "GTEST_SHARD_INDEX": str(k)}
            command = [test, *tests, f"--gtest_output=json:{file}"]
            self.check.run(f"conformance {k + 1} of {shards}", command, 300, **variables)
            return outcomes_in(file)

        with concurrent.futures.ThreadPoolExecutor(shards) as pool:
            for outcome in pool.map(run, range(shards)):
                outcomes.update(outcome)
        self.again(test, outcomes)
        counts = {kind: sum(o == kind for o in outcomes.values()) for kind in ("passed", "failed", "skipped")}
        self.check.results["conformance"] = {
            **counts,
            "failures": sorted(name for name, o in outcomes.items() if o == "failed"),
        }

    # After a fault of the device nothing of a process works: what failed is tried once more alone.
    def again(self, test: pathlib.Path, outcomes: dict[str, str]) -> None:
        for name in sorted(name for name, outcome in outcomes.items() if outcome == "failed")[:40]:
            command = [test, "--gtest_brief=1", f"--gtest_filter={name}"]
            if self.check.run(f"alone: {name}", command, 60) is not None:
                outcomes[name] = "passed"

    # The graph's open dimensions, as its inputs have them.
    def dims(self, model: pathlib.Path, feed: pathlib.Path) -> Iterator[str]:
        answer = subprocess.run(
            [self.binary, "inspect", "--dims", model],
            capture_output=True,
            text=True,
            check=False,
            env=self.check.environment,
        )
        shapes = shapes_in(feed)
        for line in answer.stdout.splitlines():
            match = re.match(r"(\S+) +(\S+):(\d+)(,|$)", line)
            if match:
                yield f"{match[1]}={shapes[match[2]][int(match[3])]}"

    def shard(self, model: pathlib.Path, ranks: int, dims: Sequence[str], *options: str) -> pathlib.Path | None:
        name = " ".join([f"{model.parent.name}/{model.stem} over {ranks}", *dims, *options])
        out = self.check.scratch / "shards" / name.replace("/", "-").replace(" ", "-")
        command = [self.binary, "shard", model, "--sp", ranks, *options, "-o", out]
        for dim in dims:
            command += ["--dim", dim]
        done = self.check.run(f"shard {name}", command)
        return None if done is None else out

    def validate(self) -> None:
        cases = [(model, model.with_suffix(".npz")) for model in sorted(GRAPHS.glob("**/*.onnx"))]
        cases = [(model, feed) for model, feed in cases if feed.exists()]
        cases.append((GRAPHS / "bfloat16/llama.onnx", GRAPHS / "llama.npz"))

        def run(case: tuple[tuple[pathlib.Path, pathlib.Path], int]) -> str | None:
            (model, feed), ranks = case
            name = f"validate {model.relative_to(GRAPHS).with_suffix('')} over {ranks}"
            out = self.shard(model, ranks, list(self.dims(model, feed)))
            if out is None:
                return self.check.note(name, "not run", 0)
            return self.check.run(name, [self.binary, "validate", model, out, "--feed", feed, "--device", "cuda"])

        with concurrent.futures.ThreadPoolExecutor(max(1, min(6, (os.cpu_count() or 1) // 2))) as pool:
            most = [BLOCKS.get(model.stem, max(RANKS)) for model, _ in cases]
            wanted = [(case, ranks) for case, limit in zip(cases, most) for ranks in RANKS if ranks <= limit]
            list(pool.map(run, wanted))

    def trace(self) -> None:
        out = self.shard(GRAPHS / "llama.onnx", 2, [f"seq={SEQUENCE}"])
        run = [self.binary, "run", out, "--feed", GRAPHS / "llama.npz", "--repeat", 3]
        self.check.run("trace llama over 2", [*run, "--device", "cuda", "--trace", self.check.folder / "trace.json"])
        rows = self.check.results["small steps"] = {}
        for name in ("llama", "gpt2", "bert"):
            for ranks in (1, 4):
                row = rows[f"{name} over {ranks}"] = {d: self.step_of(name, ranks, d) for d in ("cpu", "cuda")}
                row["fused"] = self.step_of(name, ranks, "cuda", "--fuse")
                out = self.shard(GRAPHS / f"{name}.onnx", ranks, [f"seq={SEQUENCE}"], *TRAINED)
                row["trained"] = self.trained(f"{name} over {ranks}", out, GRAPHS / f"{name}.npz")

    def step_of(self, name: str, ranks: int, device: str, *options: str) -> float | None:
        out = self.shard(GRAPHS / f"{name}.onnx", ranks, [f"seq={SEQUENCE}"])
        command = [self.binary, "run", out, "--feed", GRAPHS / f"{name}.npz", "--device", device, *options]
        what = " ".join([f"time {name} over {ranks} on {device}", *options])
        report = parsed(self.check.run(what, [*command, "--repeat", 20, "--json"]))
        return report and report["ranks"][0]["seconds"]

    # Seconds of a step with its update: the median, as of `run`. Programs are replayed by then, but for the step of
    # ranks that are threads on one GPU, which exchange and are queued anew.
    def trained(self, what: str, out: pathlib.Path | None, feed: pathlib.Path, limit: float = 120) -> float | None:
        if out is None:
            return self.check.note(f"train {what}", "not run", 0)
        command = [self.binary, "train", out, "--data", feed, "--device", "cuda", "--steps", 10, "--json"]
        report = parsed(self.check.run(f"train {what}", command, limit))
        return report and statistics.median(step["seconds"] for step in report["steps"][2:])

    def bench(self, *words: Any, limit: float = 120) -> Any:
        command = [self.built / "bin/bench_device", "cuda", *words]
        return parsed(self.check.run(f"ours: {' '.join(map(str, words))}", command, limit))

    def peer(self, *words: Any, limit: float = 120) -> Any:
        command = ["python3", ROOT / "bench/device_peers.py", *words]
        return parsed(self.check.run(f"PyTorch: {' '.join(map(str, words[:4]))}", command, limit, dict(os.environ)))

    def attention(self) -> None:
        results = self.check.results
        results["rates"] = {
            "PyTorch": self.peer("rates"),
            "product": self.bench("matmul", 8192, 8192, 8192, "bfloat16"),
            "copy": self.bench("copy", 4096),
        }
        rows = results["attention"] = {}
        for words in [
            *((1, 32, 8, length, 128, 1, "bfloat16") for length in (2048, 8192, 32768, 131072)),
            (1, 32, 8, 8192, 128, 0, "bfloat16"),
            (1, 32, 8, 8192, 128, 1024, "bfloat16"),
            (1, 16, 8, 8192, 256, 1, "bfloat16"),
            (4, 16, 16, 2048, 64, 1, "bfloat16"),
            (4, 16, 16, 2048, 64, 0, "bfloat16"),
            (1, 32, 8, 8192, 128, 1, "float32"),
        ]:
            batch, heads, kv_heads, length, width, seen, dtype = words
            sees = {0: "", 1: " causal"}.get(seen, f" window {seen}")
            name = f"{batch} x {heads}/{kv_heads} x {length} x {width}{sees}, {dtype}"
            rows[name] = {"ours": self.bench("attention", *words), "PyTorch": self.peer("attention", *words)}

    def exchange(self) -> None:
        rows = self.check.results["exchange"] = {}
        for ranks in (2, 4, 8):
            for mebibytes in (16, 128):
                rows[f"{ranks} ranks, {mebibytes} MiB"] = self.bench("exchange", ranks, mebibytes)

    def feed(self, model: str, sequence: int) -> pathlib.Path | None:
        key = (model, sequence)
        if key not in self.feeds:
            file = self.check.scratch / f"{model}-{sequence}.npz"
            self.feeds[key] = file if self.peer("feed", model, sequence, file) is not None else None
        return self.feeds[key]

    # Seconds, loss and peaks of a step of a packed graph, as `run` reports them and the driver sees.
    def ours(
        self,
        graph: str,
        feed: pathlib.Path | None,
        sequence: int,
        *options: str,
        fuse: bool = False,
        repeat: int = 8,
        limit: float = 200,
    ) -> dict[str, Any] | None:
        model = self.built / "graphs" / f"{graph}.onnx"
        if feed is None or not model.exists():
            self.check.note(f"run {graph} at {sequence}", "not run", 0, ["note: the graph or its feed is not there"])
            return None
        out = self.shard(model, 1, [f"seq={sequence}"], *options)
        command = [self.binary, "run", out, "--feed", feed, "--device", "cuda", "--repeat", repeat, "--json"]
        fused = ["--fuse"] if fuse else []
        with Watch() as watch:
            text = self.check.run(f"run {graph} at {sequence} {' '.join([*options, *fused])}", command + fused, limit)
        report = parsed(text)
        return report and {**report["ranks"][0], "device_peak_bytes": watch.peak}

    def step(self) -> None:
        chains = self.check.results["chains"] = {}
        for shape in ((8192, 4096, "bfloat16"), (8192, 14336, "bfloat16"), (8192, 4096, "float32")):
            chains[" x ".join(map(str, shape))] = self.bench("chain", *shape)
        rows = self.check.results["step"] = {}
        for model, graph, sequences in (("default", MODELS[0], (4096, 16384)), ("8b", MODELS[1], (8192,))):
            for sequence in sequences:
                feed = self.feed(model, sequence)
                row = rows[f"{graph} at {sequence}"] = {"ours": self.ours(graph, feed, sequence)}
                row["fused"] = self.ours(graph, feed, sequence, fuse=True)
                if graph == MODELS[0] and feed and row["ours"]:
                    out = self.shard(self.built / "graphs" / f"{graph}.onnx", 1, [f"seq={sequence}"], *TRAINED)
                    row["trained"] = {"seconds": self.trained(f"{graph} at {sequence}", out, feed)}
                for how in ("eager", "compiled"):
                    row[how] = feed and self.peer("step", model, sequence, feed, how, limit=200)

    def length(self) -> None:
        rows = self.check.results["length"] = {}
        graph, sequence = MODELS[1], 131072
        feed = self.feed("8b", sequence)
        for policy in POLICIES:
            options = ["--recompute", policy]
            rows[policy] = {"at 131072": self.ours(graph, feed, sequence, *options, repeat=2), "longest": None}
            rows[policy]["planned longest"] = self.planned_longest(graph, policy)
        for policy in POLICIES:
            self.run_longest(graph, policy, rows[policy])
        if feed:
            words = ["step", "8b", sequence, feed, "eager", "checkpointed"]
            rows["PyTorch, checkpointed"] = {"at 131072": self.peer(*words)}

    def planned_longest(self, graph: str, policy: str) -> int | None:
        model = self.built / "graphs" / f"{graph}.onnx"
        if not model.exists():
            return None
        memory = self.check.data["devices"]["cuda"]["devices"][0]["memory_bytes"] - (8 << 30)
        command = [self.binary, "plan", model, "--dim", "seq=131072", "--device", "h200", "--memory", memory]
        plan = parsed(self.check.run(f"plan {policy}", [*command, "--recompute", policy, "--json"]))
        return plan and plan.get("longest_sequence")

    # What is planned leaves out the libraries' own memory: a little shorter where it does not fit.
    def run_longest(self, graph: str, policy: str, row: dict[str, Any]) -> None:
        planned = row["planned longest"]
        for share in (1.0, 0.9) if planned else ():
            sequence = int(planned * share) // 1024 * 1024
            feed = self.feed("8b", sequence)
            done = self.ours(graph, feed, sequence, "--recompute", policy, repeat=1, limit=150)
            if feed:
                feed.unlink()
                del self.feeds[("8b", sequence)]
            if done:
                row["longest"] = {"sequence": sequence, **done}
                return

    # Races between threads of a block, of which the emulated device tries two orders.
    def sanitizer(self) -> None:
        found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
        if not found:
            self.check.note("compute-sanitizer", "not run", 0, ["note: it is not installed"])
            return
        operators = "cuda_Softmax:*cuda_LayerNorm*:*cuda_ReduceSum:*cuda_Gather:*cuda_Transpose:*cuda_autosp*Attention*"
        operators += ":*DeviceChains*/cuda:*DeviceOptimizers*/cuda"
        for tool in ("memcheck", "racecheck"):
            command = [found, "--tool", tool, "--error-exitcode", 9, self.built / "bin/test_conformance"]
            self.check.run(tool, [*command, "--gtest_brief=1", f"--gtest_filter=*{operators}"], 240)
