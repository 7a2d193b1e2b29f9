"""What the backward pass computes again stays in ONNX Runtime's optimised graphs, with barriers and not without them."""

import json
import threading
import uuid

import numpy as np
import onnx
import onnxruntime
import pytest

import python_package
from training_graph import GRAPHS, TrainingGraph, assert_same_step

PRODUCTS = {"MatMul", "FusedMatMul", "Gemm", "MatMulNBits"}
LEVELS = onnxruntime.GraphOptimizationLevel
RANKS = 2


@pytest.fixture(scope="module", autouse=True)
def home(request):
    python_package.use(request)


def shard(autosp_onnx, graph, folder, policy):
    bindings = [part for name, size in graph.symbolic_axes.items() for part in ("--dim", f"{name}={size}")]
    options = ("--sp", RANKS, "--recompute", policy, "--dialect", "autosp,standard", "-o", folder)
    result = autosp_onnx("shard", graph.path, *bindings, *options)
    assert result.returncode == 0, result.stderr
    return folder


def is_barrier(node):
    return node.op_type == "RecomputeBarrier" or (node.op_type == "Where" and "~barrier" in node.output[0])


def guarded(node):
    """The operand whose value the barrier has."""
    return node.input[0] if node.op_type == "RecomputeBarrier" else node.input[1]


def without_barriers(path):
    """Writes the graph beside itself, every barrier replaced by its operand."""
    model = onnx.load(path, load_external_data=False)
    operands = {node.output[0]: guarded(node) for node in model.graph.node if is_barrier(node)}
    assert operands
    nodes = [node for node in model.graph.node if not is_barrier(node)]
    for node in nodes:
        node.input[:] = [operands.get(name, name) for name in node.input]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    plain = path.with_name("plain_" + path.name)
    onnx.save(model, plain)
    return plain


def optimised(path, level, dump, settings=None):
    """A session, and the graph that it runs."""
    from autosp_onnx.onnxruntime_ranks import session_options

    options = session_options(timeout=20, settings=settings)
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(dump)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session, onnx.load(dump, load_external_data=False).graph


def products(graph):
    return [node for node in graph.node if node.op_type in PRODUCTS]


def is_recomputed(node):
    return any("~recompute" in name for name in node.output)


def depends_on_barrier(graph):
    """{name of a value: whether a barrier is among what it is computed from}."""
    waits = {}
    for node in graph.node:
        here = is_barrier(node) or any(waits.get(name, False) for name in node.input)
        waits.update(dict.fromkeys(node.output, here))
    return waits


def run_ranks(sessions, shares):
    results = [None] * len(sessions)

    def step(rank):
        results[rank] = run(sessions[rank], shares[rank])

    threads = [threading.Thread(target=step, args=(rank,), daemon=True) for rank in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def run(session, inputs):
    names = [value.name for value in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    return dict(zip(names, session.run(names, {k: v for k, v in inputs.items() if k in wanted}), strict=True))


CASES = ["llama", "gpt2", "bert", "llama_ort_training"]


@pytest.fixture(scope="module", params=CASES)
def case(request, autosp_onnx, tmp_path_factory):
    graph = TrainingGraph(GRAPHS / f"{request.param}.onnx")
    folder = tmp_path_factory.mktemp(request.param)
    return graph, shard(autosp_onnx, graph, folder / "full", "full"), shard(autosp_onnx, graph, folder / "none", "none")


def world():
    name = uuid.uuid4().hex
    return [{"transport": "threads", "world": name, "ranks": RANKS, "rank": rank} for rank in range(RANKS)]


def assert_recomputation_survives(path, none, dump, settings):
    """`none` is the same without recomputation. Returns the session of the optimised graph."""

    def recomputed_products(session_and_graph, level):
        # Exporters repeat forward products, too; those may be merged.
        _, kept = optimised(none, level, dump, settings)
        return len(products(session_and_graph[1])) - len(products(kept))

    written = recomputed_products(optimised(path, LEVELS.ORT_DISABLE_ALL, dump, settings), LEVELS.ORT_DISABLE_ALL)
    session, graph = optimised(path, LEVELS.ORT_ENABLE_ALL, dump, settings)
    assert recomputed_products((session, graph), LEVELS.ORT_ENABLE_ALL) == written > 0
    waits = depends_on_barrier(graph)
    recomputed = [node for node in graph.node if is_recomputed(node) and not is_barrier(node)]
    assert len(recomputed) > written
    early = [node.output[0] for node in recomputed if not waits[node.output[0]]]
    assert not early

    # Copies of what is no operator of the runtime's, such as our collectives, it leaves alone.
    merged = optimised(without_barriers(path), LEVELS.ORT_ENABLE_ALL, dump, settings)
    assert recomputed_products(merged, LEVELS.ORT_ENABLE_ALL) < (1 if settings is None else written)
    return session


def test_rank_graphs_compute_again_at_every_optimisation_level(case, tmp_path):
    from autosp_onnx.manifest import read_manifest

    graph, full, none = case
    sessions = [
        assert_recomputation_survives(
            full / f"rank_{rank}.onnx", none / f"rank_{rank}.onnx", tmp_path / "optimised.onnx", settings
        )
        for rank, settings in enumerate(world())
    ]
    manifest = read_manifest(full)
    shares = [manifest.of_rank(graph.committed_inputs, rank) for rank in range(RANKS)]
    expected = graph.step(graph.committed_inputs)
    for outputs in run_ranks(sessions, shares):
        assert_same_step(outputs, expected)


def test_the_emulated_graph_computes_again_at_every_optimisation_level(case, tmp_path):
    graph, full, none = case
    emulated = [folder / "emulated.onnx" for folder in (full, none)]
    session = assert_recomputation_survives(*emulated, tmp_path / "optimised.onnx", None)
    assert_same_step(run(session, graph.committed_inputs), graph.step(graph.committed_inputs))


def test_barriers_run_without_our_library(case):
    """As functions of standard operators: what a runtime without our kernel computes is the operand."""
    _, full, _ = case
    model = onnx.load(full / "rank_0.onnx", load_external_data=False)
    barrier = next(node for node in model.graph.node if node.op_type == "RecomputeBarrier")
    types = {value.name: value for value in [*model.graph.value_info, *model.graph.input]}
    types |= {
        tensor.name: onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in model.graph.initializer
    }
    inputs = [types[name] for name in barrier.input]
    graph = onnx.helper.make_graph([barrier], "barrier", inputs, [types[barrier.output[0]]])
    alone = onnx.helper.make_model(
        graph, functions=list(model.functions), opset_imports=list(model.opset_import), ir_version=model.ir_version
    )
    onnx.checker.check_model(alone, full_check=True)
    session = onnxruntime.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    x, after = (
        generator.standard_normal([dim.dim_value for dim in value.type.tensor_type.shape.dim]).astype(np.float32)
        for value in inputs
    )
    x.flat[0], x.flat[-1] = np.nan, np.inf
    for first in (1.0, np.nan):
        after.flat[0] = first
        [y] = session.run(None, {barrier.input[0]: x, barrier.input[1]: after})
        np.testing.assert_array_equal(y, x)  # but for the sign of a zero, which ONNX Runtime's Where loses


def test_barriers_cost_the_bundled_executor_nothing(case, autosp_onnx, tmp_path):
    graph, full, _ = case
    for rank in range(RANKS):
        plain = without_barriers(full / f"rank_{rank}.onnx")
        bare = tmp_path / f"rank_{rank}.onnx"
        plain.rename(bare)
    for data in full.glob("*.bin"):
        (tmp_path / data.name).write_bytes(data.read_bytes())
    (tmp_path / "manifest.json").write_bytes((full / "manifest.json").read_bytes())

    def ranks(folder):
        result = autosp_onnx("run", folder, "--feed", graph.feed, "--threads-per-rank", 1, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)["ranks"]

    for with_barriers, without in zip(ranks(full), ranks(tmp_path), strict=True):
        assert with_barriers["planned_peak_bytes"] == without["planned_peak_bytes"]
        assert with_barriers["loss"] == without["loss"]
