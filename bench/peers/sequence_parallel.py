"""Sequence parallelism as a user writes it by hand in PyTorch, on gloo: what autosp-onnx is compared with.

    python sequence_parallel.py --scheme ulysses --ranks 2 --seq 4096 [--checkpointed]

    data       every rank holds whole sequences (data parallelism only)
    ulysses    all-to-all from sequence to heads before attention and back after it
    ring       keys and values travel round the ranks; online-softmax merge, forward and backward
    gather     keys and values are gathered on every rank; their gradients are reduce-scattered

Prints one JSON object: loss, norm of all gradients, seconds per step (median), the seconds of it spent in collectives,
and per rank the peak of resident memory over that of a process which has imported PyTorch and joined its group, but has
no model yet.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import llama
import torch
import torch._dynamo  # checkpoint() imports it at first use; not part of any scheme's memory
import torch.distributed as dist
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

SCHEMES = ("data", "ulysses", "ring", "gather")


class Clock:
    """Seconds spent inside collectives."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._entered = 0.0

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._entered


COLLECTIVES = Clock()


def all_to_all(x: torch.Tensor, scatter: int, gather: int) -> torch.Tensor:
    """Splits dimension `scatter` over the ranks and joins dimension `gather` from them."""
    ranks = dist.get_world_size()
    with COLLECTIVES:
        sent = torch.stack([part.contiguous() for part in x.chunk(ranks, scatter)])
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        return torch.cat(list(received.unbind(0)), gather)


class AllToAll(torch.autograd.Function):
    """all_to_all, whose gradient is the all-to-all back."""

    @staticmethod
    def forward(ctx, x, scatter, gather):  # noqa: ANN001, ANN205
        ctx.axes = (scatter, gather)
        return all_to_all(x, scatter, gather)

    @staticmethod
    def backward(ctx, gradient):  # noqa: ANN001, ANN205
        scatter, gather = ctx.axes
        return all_to_all(gradient, gather, scatter), None, None


def ulysses(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Whole sequences of a share of the heads; keys and values are exchanged before they are repeated."""
    query, key, value = (AllToAll.apply(x, 1, 2) for x in (query, key, value))
    return AllToAll.apply(llama.causal_attention(query, key, value), 2, 1)


class GatherSequence(torch.autograd.Function):
    """[.., seq / ranks, ..] -> [.., seq, ..] along dimension 2; the gradient is summed and scattered."""

    @staticmethod
    def forward(ctx, x):  # noqa: ANN001, ANN205
        with COLLECTIVES:
            parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, x.contiguous())
            return torch.cat(parts, 2)

    @staticmethod
    def backward(ctx, gradient):  # noqa: ANN001, ANN205
        # gloo has no reduce-scatter: exchange the parts, then add them.
        with COLLECTIVES:
            sent = torch.stack([part.contiguous() for part in gradient.chunk(dist.get_world_size(), 2)])
            received = torch.empty_like(sent)
            dist.all_to_all_single(received, sent)
            return received.sum(0)


def gather(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """This rank's queries against the keys and values of all ranks up to it."""
    rank, local = dist.get_rank(), query.shape[2]
    key, value = GatherSequence.apply(key), GatherSequence.apply(value)
    return RingAttention.apply(query, key[:, :, : (rank + 1) * local], value[:, :, : (rank + 1) * local], False)


def block_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """PyTorch's CPU kernel on one block: output and log-sum-exp [batch, heads, seq]."""
    groups = query.shape[1] // key.shape[1]
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), 0.0, causal
    )


def block_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    log_sum: torch.Tensor,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of one block, given the output and log-sum-exp of the whole row."""
    groups = query.shape[1] // key.shape[1]
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient,
        query,
        key.repeat_interleave(groups, 1),
        value.repeat_interleave(groups, 1),
        output,
        log_sum,
        0.0,
        causal,
    )
    per_group = (key.shape[0], key.shape[1], groups, key.shape[2], key.shape[3])
    return dq, dk.reshape(per_group).sum(2), dv.reshape(per_group).sum(2)


def pass_on(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Sends to the next rank of the ring what the previous one sends here."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    received = [torch.empty(x.shape) for x in tensors]
    with COLLECTIVES:
        requests = [dist.isend(x.contiguous(), (rank + 1) % ranks, tag=i) for i, x in enumerate(tensors)]
        requests += [dist.irecv(x, (rank - 1) % ranks, tag=i) for i, x in enumerate(received)]
        for request in requests:
            request.wait()
    return received


class RingAttention(torch.autograd.Function):
    """Attention of this rank's queries to keys in blocks of the queries' length.

    With `travelling`, key and value are this rank's and the blocks come round the ring; else key and value hold every
    block up to this rank's own, in order.
    """

    @staticmethod
    def forward(ctx, query, key, value, travelling):  # noqa: ANN001, ANN205
        rank, ranks = dist.get_rank(), dist.get_world_size()
        output = torch.zeros_like(query)
        log_sum = torch.full(query.shape[:3], float("-inf"))
        pair, local = [key, value], query.shape[2]
        for step in range(ranks if travelling else rank + 1):
            source = (rank - step) % ranks
            if source <= rank:
                part = pair if travelling else [x[:, :, source * local : (source + 1) * local] for x in pair]
                block, block_log_sum = block_forward(query, *part, source == rank)
                total = torch.logaddexp(log_sum, block_log_sum)
                output = output * (log_sum - total).exp()[..., None] + block * (block_log_sum - total).exp()[..., None]
                log_sum = total
            if travelling and step + 1 < ranks:
                pair = pass_on(pair)
        ctx.save_for_backward(query, key, value, output, log_sum)
        ctx.travelling = travelling
        return output

    @staticmethod
    def backward(ctx, gradient):  # noqa: ANN001, ANN205
        query, key, value, output, log_sum = ctx.saved_tensors
        rank, ranks, local = dist.get_rank(), dist.get_world_size(), query.shape[2]
        gradient = gradient.contiguous()
        dq, dk, dv = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        pair = [key, value]
        for step in range(ranks if ctx.travelling else rank + 1):
            source = (rank - step) % ranks
            if source <= rank:
                rows = slice(None) if ctx.travelling else slice(source * local, (source + 1) * local)
                part = [x[:, :, rows] for x in pair]
                q, k, v = block_backward(gradient, query, *part, output, log_sum, source == rank)
                dq += q
                dk[:, :, rows] += k
                dv[:, :, rows] += v
            if ctx.travelling:  # the gradients travel with their blocks, and after the last step they are home
                *pair, dk, dv = pass_on([*pair, dk, dv])
        return dq, dk, dv, None


def ring(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Blocks of keys and values travel round the ranks."""
    return RingAttention.apply(query, key, value, True)


ATTEND = {"data": llama.causal_attention, "ulysses": ulysses, "ring": ring, "gather": gather}


def status_mib(key: str) -> float:
    """A line of /proc/self/status, in MiB."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def reduce_gradients(model: torch.nn.Module) -> None:
    """Sums every gradient over the ranks, in one exchange."""
    gradients = [parameter.grad for parameter in model.parameters()]
    with COLLECTIVES:
        flat = _flatten_dense_tensors(gradients)
        dist.all_reduce(flat)
        for gradient, total in zip(gradients, _unflatten_dense_tensors(flat, gradients), strict=True):
            gradient.copy_(total)


def run_rank(options: argparse.Namespace) -> None:
    """One rank's steps; rank 0 prints the result of all."""
    ranks, rank = options.ranks, options.rank
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    before = status_mib("VmRSS")

    config = llama.Config(layers=options.layers)
    model = llama.Llama(config, ATTEND[options.scheme], checkpointed=options.checkpointed)
    model.initialize(seed=0)
    if options.scheme == "data":
        ids, labels = llama.make_batch(config, options.seq, seed=1234 + rank)
        first, valid = 0, (options.seq - 1) * ranks
    else:
        if options.seq % ranks:
            raise SystemExit(f"--seq {options.seq} does not divide over {ranks} ranks")
        local = options.seq // ranks
        first, valid = rank * local, options.seq - 1
        ids, labels = (x[:, first : first + local] for x in llama.make_batch(config, options.seq))

    seconds, collective_seconds = [], []
    for _ in range(options.steps):
        model.zero_grad(set_to_none=True)
        dist.barrier()
        COLLECTIVES.seconds = 0.0
        start = time.perf_counter()
        loss = model(ids, labels, first, valid)
        loss.backward()
        reduce_gradients(model)
        seconds.append(time.perf_counter() - start)
        collective_seconds.append(COLLECTIVES.seconds)

    loss = loss.detach()
    dist.all_reduce(loss)
    gradient_norm = torch.stack([parameter.grad.square().sum() for parameter in model.parameters()]).sum().sqrt()
    peaks: list[float] = [0.0] * ranks
    dist.all_gather_object(peaks, status_mib("VmHWM") - before)
    if rank == 0:
        result = {
            "loss": loss.item(),
            "gradient_norm": gradient_norm.item(),
            "seconds": statistics.median(seconds),
            "collective_seconds": statistics.median(collective_seconds),
            "peak_mib": peaks,
        }
        print(json.dumps(result), flush=True)
    dist.destroy_process_group()


def spawn(options: argparse.Namespace) -> int:
    """Starts the ranks as processes of this machine."""
    environment = dict(os.environ, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(options.port), GLOO_SOCKET_IFNAME="lo")
    command = [sys.executable, __file__, *sys.argv[1:]]
    processes = [subprocess.Popen([*command, "--rank", str(rank)], env=environment) for rank in range(options.ranks)]
    return max(abs(process.wait()) for process in processes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scheme", choices=SCHEMES, required=True)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seq", type=int, required=True, help="length of the whole sequence")
    parser.add_argument("--layers", type=int, default=llama.Config.layers)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--checkpointed", action="store_true", help="full activation checkpointing, block by block")
    parser.add_argument("--port", type=int, default=29611)
    parser.add_argument("--rank", type=int, default=-1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank < 0:
        return spawn(options)
    run_rank(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
