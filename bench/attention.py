"""Fused attention beside PyTorch's CPU kernel, forward and backward, in one interleaved run.

    python bench/attention.py build/release/bin/bench_attention_server [--threads 1 2] [--lengths 1024 4096]

Needs PyTorch (pip install torch). Results are compared before anything is timed. GFLOP/s are of what a causal mask
leaves, 2 S^2 H d forward and 2.5 times that backward; the fraction is of fused multiply-adds in registers, measured
in the same run, of float32 also where --type is of 16 bits. Rates on shared machines drift: judge the ratios. --clock processor counts the processor time of all
threads, divided by their number: on a busy machine it says what the wall clock cannot.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch

BATCH = 1
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}  # of the largest


class Ours:
    """The kernels, in a process of their own."""

    def __init__(self, binary: str) -> None:
        self.process = subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, request: str) -> str:
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.float() - want.float()).abs().max() / want.abs().max()).item()


def median_times(functions: dict, repeats: int) -> dict:
    """Each function's median seconds; they take turns."""
    times = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            time.sleep(0.01)  # for the other one's threads to come to rest
            times[name].append(function())
    return {name: statistics.median(values) for name, values in times.items()}


class Clock:
    """Wall or processor seconds of a step, of PyTorch here and of ours."""

    def __init__(self, kind: str, threads: int) -> None:
        self.by_processor, self.threads = kind == "processor", threads

    def torch(self, function: Callable[[], object]) -> float:
        now = time.process_time if self.by_processor else time.perf_counter
        begin = now()
        function()
        return (now() - begin) / (self.threads if self.by_processor else 1)

    def ours(self, answer: str) -> float:
        wall, processor = map(float, answer.split())
        return processor / self.threads if self.by_processor else wall


def measure(
    ours: Ours,
    folder: pathlib.Path,
    length: int,
    width: int,
    heads: int,
    kv_heads: int,
    threads: int,
    repeats: int,
    kind: str,
    dtype: torch.dtype,
) -> None:
    torch.set_num_threads(threads)
    clock = Clock(kind, threads)
    draw = torch.Generator().manual_seed(length + width)
    shapes = [heads, kv_heads, kv_heads, heads]
    q, k, v, do = (torch.randn(BATCH, h, length, width, generator=draw).to(dtype) for h in shapes)
    for x in (q, k, v):
        x.requires_grad_()
    with open(folder / "in", "wb") as file:
        for x in (q, k, v, do):
            file.write(x.detach().view(torch.uint8).numpy().tobytes())
    name, *workspaces = ours.ask(
        f"setup {BATCH} {heads} {kv_heads} {length} {width} 1 {threads} {folder / 'in'} {NAMES[dtype]}"
    ).rsplit(" ", 2)

    def forward() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads)

    output = forward()

    def backward() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(output, (q, k, v), do, retain_graph=True)

    gradients = backward()
    ours.ask("forward"), ours.ask("backward"), ours.ask(f"save {folder / 'out'}")
    flat = torch.frombuffer(bytearray((folder / "out").read_bytes()), dtype=dtype)
    for part, want in zip(("o", "dq", "dk", "dv"), (output, *gradients)):
        got, flat = flat[: want.numel()].reshape(want.shape), flat[want.numel() :]
        error = relative_error(got, want.detach())
        if not error < TOLERANCES[dtype]:
            sys.exit(f"{part} of S={length} d={width} differs by {error:.2e}")

    peak = float(ours.ask("peak").split()[kind == "processor"])
    with torch.no_grad():
        seconds = median_times(
            {"torch": lambda: clock.torch(forward), "ours": lambda: clock.ours(ours.ask("forward"))}, repeats
        )
    flops = 2.0 * BATCH * length * length * heads * width
    report = []
    for phase, factor in (("fwd", 1.0), ("bwd", 2.5)):
        if phase == "bwd":
            seconds = median_times(
                {
                    "torch": lambda: clock.torch(backward),
                    "ours": lambda: clock.ours(ours.ask("backward")),
                },
                repeats,
            )
        rate = {who: factor * flops / s * 1e-9 for who, s in seconds.items()}
        report.append(
            f"{phase} torch {rate['torch']:6.1f}  ours {rate['ours']:6.1f} GFLOP/s  "
            f"x{rate['ours'] / rate['torch']:4.2f}  {100 * rate['ours'] / peak:3.0f} % of peak"
        )
    scratch = " + ".join(f"{int(b) / 2**20:.1f}" for b in workspaces)
    print(
        f"{name} {threads} thr S={length:<6} d={width:<4} H={heads}/{kv_heads}  {'   '.join(report)}   "
        f"scratch {scratch} MiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="bench_attention_server")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--type", choices=NAMES.values(), default="float32")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall")
    arguments = parser.parse_args()
    ours = Ours(arguments.server)
    with tempfile.TemporaryDirectory() as folder:
        for threads in arguments.threads:
            for width in arguments.widths:
                for length in arguments.lengths:
                    measure(
                        ours,
                        pathlib.Path(folder),
                        length,
                        width,
                        arguments.heads,
                        arguments.kv_heads,
                        threads,
                        arguments.repeats,
                        arguments.clock,
                        next(dtype for dtype, name in NAMES.items() if name == arguments.type),
                    )


if __name__ == "__main__":
    main()
