"""gloo's all-to-all between processes of this machine: a JSON object per operand size, GiB/s that a rank sends.

python exchange_gloo.py --ranks 2 1 4 16 64
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed as dist


def measure(mebibytes: int, ranks: int) -> float:
    """Median over repetitions of the slowest rank's time, as a rate."""
    sent = torch.rand(mebibytes * 2**18 // ranks * ranks)
    received = torch.empty_like(sent)
    seconds = []
    for _ in range(8):
        dist.barrier()
        start = time.perf_counter()
        dist.all_to_all_single(received, sent)
        slowest = torch.tensor(time.perf_counter() - start)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        seconds.append(slowest.item())
    return sent.numel() * 4 * (ranks - 1) / ranks / statistics.median(seconds[1:]) / 2**30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mib", type=int, nargs="+")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rank", type=int, default=-1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank < 0:
        environment = dict(os.environ, MASTER_ADDR="127.0.0.1", MASTER_PORT="29633", GLOO_SOCKET_IFNAME="lo")
        command = [sys.executable, __file__, *sys.argv[1:]]
        ranks = [subprocess.Popen([*command, "--rank", str(k)], env=environment) for k in range(options.ranks)]
        return max(abs(rank.wait()) for rank in ranks)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=options.rank, world_size=options.ranks)
    for mebibytes in options.mib:
        rate = measure(mebibytes, options.ranks)
        if options.rank == 0:
            print(json.dumps({"mib": mebibytes, "gloo": round(rate, 2)}), flush=True)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
