"""The collectives of ONNX Runtime and TensorRT, as their documentation has them, for ONNX's reference evaluator.

Every rank is a thread with an evaluator of its own. A member that calls something else than the others is an error, and
so is one that never comes.
"""

import threading

import numpy as np
import onnx
import onnx.inliner
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

PATIENCE = 60  # seconds


class World:
    """Where the threads of the ranks meet: once per collective and group."""

    def __init__(self, ranks):
        self.ranks = ranks
        self.own = threading.local()
        self.lock = threading.Lock()
        self.groups = {}
        self.calls = [[] for _ in range(ranks)]  # by rank: (node, bytes sent)

    def exchange(self, group, call, value):
        """Every member's value, in group order."""
        group = tuple(group) or tuple(range(self.ranks))
        with self.lock:
            barrier, slots = self.groups.setdefault(group, (threading.Barrier(len(group), timeout=PATIENCE), {}))
        slots[self.own.rank] = (call, value)
        barrier.wait()
        everyone = [slots[member] for member in group]
        barrier.wait()
        assert len({(str(other), part.shape, part.dtype) for other, part in everyone}) == 1, everyone
        return [part for _, part in everyone]

    def sent(self, node, size):
        self.calls[self.own.rank].append((node.name, size))


world = None


def all_reduce(op, x, group, members):
    everyone = world.exchange(group, "all_reduce", x)
    world.sent(op.onnx_node, 2 * x.nbytes * (members - 1) // members)
    return sum(everyone[1:], start=everyone[0])


def all_gather(op, x, group, members, axis):
    everyone = world.exchange(group, f"all_gather {axis}", x)
    world.sent(op.onnx_node, x.nbytes * (members - 1))
    return np.concatenate(everyone, axis)


def all_to_all(op, x, group, members):
    assert x.shape[0] % members == 0
    everyone = world.exchange(group, "all_to_all", x)
    world.sent(op.onnx_node, x.nbytes // members * (members - 1))
    mine = (tuple(group) or tuple(range(world.ranks))).index(world.own.rank)
    return np.concatenate([np.split(part, members)[mine] for part in everyone])


class AllReduce(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x):
        return (all_reduce(self, x, (), world.ranks),)


class AllGather(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, axis=None, group_size=None):
        assert group_size == world.ranks
        return (all_gather(self, x, (), group_size, axis),)


class AllToAll(OpRun):
    op_domain = "com.microsoft"

    def _run(self, x, group_size=None):
        assert group_size == world.ranks
        return (all_to_all(self, x, (), group_size),)


class DistCollective(OpRun):
    op_domain = ""

    def _run(self, x, collective_operation=None, reduce_op=None, root=None, nb_rank=None, group_size=None, groups=None):
        assert root == -1 and nb_rank == group_size == len(groups)
        sums = collective_operation in ("all_reduce", "reduce_scatter")
        assert reduce_op == ("sum" if sums else "none")
        if collective_operation == "all_reduce":
            return (all_reduce(self, x, groups, nb_rank),)
        if collective_operation == "all_gather":
            return (all_gather(self, x, groups, nb_rank, 0),)
        if collective_operation == "all_to_all":
            return (all_to_all(self, x, groups, nb_rank),)
        assert collective_operation == "reduce_scatter" and x.shape[0] % nb_rank == 0
        everyone = world.exchange(groups, "reduce_scatter", x)
        world.sent(self.onnx_node, x.nbytes // nb_rank * (nb_rank - 1))
        mine = list(groups).index(world.own.rank)
        return (np.split(sum(everyone[1:], start=everyone[0]), nb_rank)[mine],)


# Where schemas are unknown, the evaluator hands attributes over by their names in the node.
OPERATORS = [AllReduce, AllGather, AllToAll, DistCollective]


def run_ranks(paths, shares):
    """Every rank's outputs by name, and its calls: (node, bytes sent)."""
    global world
    world = World(len(paths))
    evaluators = [
        ReferenceEvaluator(onnx.inliner.inline_local_functions(onnx.load(path)), new_ops=OPERATORS) for path in paths
    ]
    results = [None] * len(paths)
    failures = []

    def step(rank):
        world.own.rank = rank
        evaluator = evaluators[rank]
        try:
            inputs = {name: shares[rank][name] for name in evaluator.input_names if name in shares[rank]}
            results[rank] = dict(zip(evaluator.output_names, evaluator.run(None, inputs), strict=True))
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=step, args=(rank,), daemon=True) for rank in range(len(paths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise min(failures, key=lambda failure: isinstance(failure, threading.BrokenBarrierError))
    return results, world.calls
