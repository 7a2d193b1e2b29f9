"""PyTorch on a GPU, for scripts/gpu-check to hold this project's figures against.

    python bench/device_peers.py rates                                    a bf16 product and a copy
    python bench/device_peers.py attention B H HK S D SEEN TYPE           scaled_dot_product_attention, and backward
    python bench/device_peers.py feed MODEL SEQ FILE                      what a step of the model is fed
    python bench/device_peers.py step MODEL SEQ FILE eager|compiled [checkpointed]

SEEN: 0, a query sees all keys; 1, those up to itself; more, so many up to itself, by a mask. MODEL is default or 8b
(bench/peers/llama.py), in bfloat16. Prints one JSON object. --device cpu shows that this program is right and nothing
else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

import llama
import numpy as np
import torch
from torch.nn import functional

CONFIGS = {"default": llama.Config(), "8b": llama.EIGHT_BILLION}
REPETITIONS = 5


class Bench:
    """Times on one device."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], object]) -> float:
        """Median, after two first runs that are not counted."""
        times = []
        for _ in range(REPETITIONS + 2):
            self.synchronize()
            begin = time.perf_counter()
            function()
            self.synchronize()
            times.append(time.perf_counter() - begin)
        return statistics.median(times[2:])

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0

    def rates(self, size: int, mebibytes: int) -> dict[str, float]:
        a, b = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        product = self.seconds(lambda: a @ b)
        x = torch.empty(mebibytes << 20, device=self.device, dtype=torch.uint8)
        y = torch.empty_like(x)
        copy = self.seconds(lambda: y.copy_(x))
        return {"bf16_tflops": 2 * size**3 / product * 1e-12, "copy_bytes_per_second": 2 * x.numel() / copy}

    def attention(
        self, batch: int, heads: int, kv_heads: int, length: int, width: int, seen: int, dtype: str
    ) -> dict[str, float]:
        def make(count: int) -> torch.Tensor:
            return torch.randn(batch, count, length, width, device=self.device, dtype=getattr(torch, dtype))

        query, key, value = (make(n).requires_grad_() for n in (heads, kv_heads, kv_heads))
        gradient = make(heads)

        mask = None
        if seen > 1:
            at = torch.arange(length, device=self.device)
            mask = (at[None] <= at[:, None]) & (at[None] > at[:, None] - seen)

        def forward() -> torch.Tensor:
            return functional.scaled_dot_product_attention(
                query, key, value, mask, is_causal=seen == 1, enable_gqa=heads != kv_heads
            )

        output = forward()
        ahead = self.seconds(forward)
        back = self.seconds(lambda: torch.autograd.grad(output, (query, key, value), gradient, retain_graph=True))
        window = min(seen, length) if seen > 1 else length
        pairs = window * (window + 1) / 2 + (length - window) * window if seen else length**2
        work = 4 * batch * heads * width * pairs
        return {
            "forward_seconds": ahead,
            "backward_seconds": back,
            "forward_tflops": work / ahead * 1e-12,
            "backward_tflops": 2.5 * work / back * 1e-12,
        }

    def step(self, config: llama.Config, feed: Path, how: str, *, checkpointed: bool) -> dict[str, float]:
        with torch.device("meta"):
            module = llama.Llama(config, checkpointed=checkpointed)
        with np.load(feed) as arrays:
            ids, labels = (torch.from_numpy(arrays[name]).to(self.device) for name in ("ids", "labels"))
            state = {
                name: torch.from_numpy(arrays[name]).to(self.device, torch.bfloat16) for name in module.state_dict()
            }
        module.load_state_dict(state, assign=True)
        for parameter in module.parameters():
            parameter.requires_grad_()
        run = torch.compile(module) if how == "compiled" else module
        losses = []

        def once() -> None:
            module.zero_grad(set_to_none=True)
            loss = run(ids, labels)
            loss.backward()
            losses.append(loss.detach())

        seconds = self.seconds(once)
        return {"seconds": seconds, "loss": losses[-1].item(), "peak_bytes": self.peak_bytes()}


def write_feed(config: llama.Config, seq: int, path: Path) -> dict[str, object]:
    """Parameters as numbers of float32 that bfloat16 holds, so that all contestants start from the same."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in llama.Llama(config).named_parameters()}
    generator = torch.Generator().manual_seed(0)
    arrays = {}
    for name, shape in shapes.items():
        value = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.02
        arrays[name] = value.to(torch.bfloat16).float().numpy()
    ids, labels = llama.make_batch(config, seq)
    np.savez(path, ids=ids.numpy(), labels=labels.numpy(), **arrays)
    return {"bytes": path.stat().st_size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rates", "attention", "feed", "step"])
    parser.add_argument("words", nargs="*")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    bench, words = Bench(options.device), options.words
    if options.what == "rates":
        result = bench.rates(8192, 4096) if options.device == "cuda" else bench.rates(64, 1)
    elif options.what == "attention":
        result = bench.attention(*map(int, words[:6]), words[6])
    elif options.what == "feed":
        result = write_feed(CONFIGS[words[0]], int(words[1]), Path(words[2]))
    else:
        checkpointed = words[4:] == ["checkpointed"]
        result = bench.step(CONFIGS[words[0]], Path(words[2]), words[3], checkpointed=checkpointed)
    print(json.dumps({"torch": torch.__version__, **result}))


if __name__ == "__main__":
    main()
