"""Rank graphs with the collectives of ONNX Runtime and of TensorRT, which are emulated as documented."""

import collections
import json

import numpy as np
import onnx
import pytest

import collectives_emulation
import python_package
from training_graph import GRAPHS, TrainingGraph, assert_same_step

FILES = {"ort": "rank_{}.ort.onnx", "tensorrt": "rank_{}.tensorrt.onnx"}
EXCHANGES = {"ort": ("AllReduce", "AllGather", "AllToAll"), "tensorrt": ("DistCollective",)}


@pytest.fixture(scope="module", autouse=True)
def home(request):
    python_package.use(request)


def shard(autosp_onnx, graph, sizes, folder, dialects, *options):
    bindings = [part for name, size in sizes.items() for part in ("--dim", f"{name}={size}")]
    return autosp_onnx("shard", graph.path, *bindings, *options, "--dialect", dialects, "-o", folder)


# Even lengths: neither dialect moves pieces of different sizes, but for gathers (gpt2, bert: tables of positions).
CASES = {
    "llama over 2": ("llama", {}, ("--sp", 2)),
    "llama over 4": ("llama", {}, ("--sp", 4)),
    "llama over 4, recomputed in tiles": ("llama", {}, ("--sp", 4, "--recompute", "full", "--tile", "3")),
    "gpt2 over 2": ("gpt2", {}, ("--sp", 2)),
    "gpt2 over 4": ("gpt2", {}, ("--sp", 4)),
    "gpt2 over 3": ("gpt2", {"seq": 39}, ("--sp-mesh", "r=3")),
    "bert over 4": ("bert", {}, ("--sp", 4)),
    "training artifact over 4": ("llama_ort_training", {}, ("--sp", 4)),
    "positions of queries over 4": ("matrix/llama_h8_kv2", {"batch": 2, "seq": 64}, ("--sp-mesh", "r=4")),
}
GROUPS = {
    "two batches": ("llama", {}, ("--sp", 2, "--dp", 2)),
    "heads and query groups": ("matrix/llama_h8_kv2", {"batch": 2, "seq": 64}, ("--sp-mesh", "g=2,u=2")),
    "heads and positions of queries": ("matrix/llama_h8_kv2", {"batch": 2, "seq": 64}, ("--sp-mesh", "u=2,r=2")),
}
RUNS = [(dialect, name) for dialect in FILES for name in CASES] + [("tensorrt", name) for name in GROUPS]


def sharded(autosp_onnx, folder, dialect, name):
    file, sizes, options = (CASES | GROUPS)[name]
    graph = TrainingGraph(GRAPHS / f"{file}.onnx")
    sizes = sizes or graph.symbolic_axes
    result = shard(autosp_onnx, graph, sizes, folder, dialect, *options)
    assert result.returncode == 0, result.stderr
    manifest = json.loads((folder / "manifest.json").read_text())
    paths = [folder / FILES[dialect].format(rank) for rank in range(len(manifest["ranks"]))]
    assert sorted(path.name for path in folder.glob("*.onnx")) == sorted(path.name for path in paths)
    return graph, graph.inputs(sizes), manifest, paths


@pytest.mark.parametrize(("dialect", "name"), RUNS)
def test_ranks_equal_the_whole_model(autosp_onnx, tmp_path, dialect, name):
    from autosp_onnx.manifest import read_manifest

    graph, inputs, listed, paths = sharded(autosp_onnx, tmp_path / "out", dialect, name)
    manifest = read_manifest(tmp_path / "out")
    shares = [manifest.of_rank(inputs, rank) for rank in range(len(paths))]
    results, calls = collectives_emulation.run_ranks(paths, shares)
    expected = graph.step(inputs)
    for outputs in results:
        assert_same_step(outputs, expected)
    # The plan's collectives, one for one, in their order; bytes too, but for gathers of uneven pieces.
    collectives = listed["collectives"]
    for made in calls:
        assert [node for node, _ in made] == [entry["node"] for entry in collectives]
    for entry, *sent in zip(collectives, *calls, strict=True):
        bytes_sent = max(size for _, size in sent)
        if entry["kind"] == "all-gather":
            assert bytes_sent >= entry["bytes_per_rank"]
        else:
            assert bytes_sent == entry["bytes_per_rank"]


def test_cases_use_every_collective(autosp_onnx, tmp_path):
    for dialect in FILES:
        used = collections.Counter()
        for number, name in enumerate(CASES):
            folder = tmp_path / f"{dialect}{number}"
            used.update(entry["kind"] for entry in sharded(autosp_onnx, folder, dialect, name)[2]["collectives"])
        assert set(used) == {"all-reduce", "all-gather", "reduce-scatter", "all-to-all"}


@pytest.fixture
def dist_collective():
    """TensorRT's operator made known to ONNX's checker, as far as that goes."""
    schema = onnx.defs.OpSchema(
        "DistCollective",
        "",
        1,
        inputs=[onnx.defs.OpSchema.FormalParameter("x", "T")],
        outputs=[onnx.defs.OpSchema.FormalParameter("y", "T")],
        type_constraints=[("T", ["tensor(float)"], "")],
        attributes=[
            onnx.defs.OpSchema.Attribute(name, type, "", required=True)
            for name, type in {
                "collective_operation": onnx.defs.OpSchema.AttrType.STRING,
                "reduce_op": onnx.defs.OpSchema.AttrType.STRING,
                "root": onnx.defs.OpSchema.AttrType.INT,
                "nb_rank": onnx.defs.OpSchema.AttrType.INT,
                "group_size": onnx.defs.OpSchema.AttrType.INT,
                "groups": onnx.defs.OpSchema.AttrType.INTS,
            }.items()
        ],
    )
    onnx.defs.register_schema(schema)
    yield
    onnx.defs.deregister_schema("DistCollective", 1, "")


@pytest.mark.parametrize("dialect", FILES)
def test_the_checker_accepts_them(autosp_onnx, tmp_path, dialect, dist_collective):
    _, _, _, paths = sharded(autosp_onnx, tmp_path / "out", dialect, "llama over 4")
    for path in paths:
        onnx.checker.check_model(path, full_check=dialect == "ort")
        model = onnx.load(path)
        assert {node.domain for node in model.graph.node} <= {"", "com.microsoft", "autosp"}
        assert any(node.op_type in EXCHANGES[dialect] for node in model.graph.node)
        # What is ours carries its meaning.
        ours = {node.op_type for node in model.graph.node if node.domain == "autosp"}
        assert ours == {function.name for function in model.functions}
        assert len(ours) == len(model.functions)  # no overloads, which runtimes ignore


def refused(result, *parts):
    assert result.returncode == 2, result.stdout + result.stderr
    lines = result.stderr.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["error", "note", "help"]
    for part in parts:
        assert part in lines[0], result.stderr


@pytest.mark.parametrize("dialect", FILES)
def test_uneven_boxes_are_refused(autosp_onnx, tmp_path, dialect):
    graph = TrainingGraph(GRAPHS / "llama.onnx")
    result = shard(autosp_onnx, graph, {"seq": 41}, tmp_path / "out", dialect, "--sp", 4)
    refused(result, f"--dialect {dialect}", "AllToAll", "node '", "not of one size")
    assert "[3, 1, 2, 11, 12], [3, 1, 2, 10, 12]" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dialect", FILES)
def test_uneven_sums_are_refused(autosp_onnx, tmp_path, dialect):
    graph = TrainingGraph(GRAPHS / "matrix" / "llama_h8_kv2.onnx")
    result = shard(autosp_onnx, graph, {"batch": 2, "seq": 61}, tmp_path / "out", dialect, "--sp-mesh", "r=2")
    refused(result, f"--dialect {dialect}", "ReduceScatter", "not of one size")


@pytest.mark.parametrize("name", GROUPS)
def test_groups_are_refused_for_ort(autosp_onnx, tmp_path, name):
    file, sizes, options = GROUPS[name]
    graph = TrainingGraph(GRAPHS / f"{file}.onnx")
    result = shard(autosp_onnx, graph, sizes or graph.symbolic_axes, tmp_path / "out", "ort", *options)
    refused(result, "--dialect ort", "of ranks 0, ", "of 4")


def squares(type):
    """The sum of the squares of x W, and its gradient: a graph whose collectives are all-reduces of that type."""
    value = onnx.helper.make_tensor_value_info
    two = onnx.helper.make_tensor("two", type, [], [2.0])
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "W"], ["y"]),
        onnx.helper.make_node("Mul", ["y", "y"], ["squares"]),
        onnx.helper.make_node("ReduceSum", ["squares"], ["loss"], keepdims=0),
        onnx.helper.make_node("Mul", ["y", "two"], ["dy"]),
        onnx.helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0]),
        onnx.helper.make_node("MatMul", ["xt", "dy"], ["W.grad"]),
    ]
    inputs = [value("x", type, [8, 4]), value("W", type, [4, 4])]
    outputs = [value("loss", type, []), value("W.grad", type, [4, 4])]
    graph = onnx.helper.make_graph(nodes, "squares", inputs, outputs, [two])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("dialect", "type", "name", "taken"),
    [
        ("ort", onnx.TensorProto.BFLOAT16, "bfloat16", False),
        ("ort", onnx.TensorProto.FLOAT16, "float16", True),
        ("ort", onnx.TensorProto.DOUBLE, "float64", True),
        ("tensorrt", onnx.TensorProto.BFLOAT16, "bfloat16", True),
        ("tensorrt", onnx.TensorProto.DOUBLE, "float64", False),
    ],
)
def test_element_types(autosp_onnx, tmp_path, dialect, type, name, taken):
    onnx.save(squares(type), tmp_path / "squares.onnx")
    options = ("--seq", "x:0", "--sp", 2, "--dialect", dialect, "-o", tmp_path / "out")
    result = autosp_onnx("shard", tmp_path / "squares.onnx", *options)
    if taken:
        assert result.returncode == 0, result.stderr
        sums = [
            node
            for node in onnx.load(tmp_path / "out" / FILES[dialect].format(0)).graph.node
            if node.op_type in EXCHANGES[dialect]
        ]
        assert len(sums) == 2
    else:
        refused(result, f"--dialect {dialect}", "AllReduce", f"its operand is {name}")
        assert not (tmp_path / "out").exists()


def test_dialects_lie_side_by_side_and_are_replaced(autosp_onnx, tmp_path):
    graph = TrainingGraph(GRAPHS / "llama.onnx")
    every = "autosp,ort,tensorrt,standard"
    for dialects, graphs in [(every, 2 * 3 + 1), ("ort", 2), (every, 7)]:
        result = shard(autosp_onnx, graph, graph.symbolic_axes, tmp_path / "out", dialects, "--sp", 2)
        assert result.returncode == 0, result.stderr
        assert len(list((tmp_path / "out").glob("*.onnx"))) == graphs
    (tmp_path / "out" / "manifest.json").write_text('{"tool": "autosp-onnx"')  # damaged
    (tmp_path / "out" / "rank_0.other.onnx").write_bytes(b"")
    assert shard(autosp_onnx, graph, graph.symbolic_axes, tmp_path / "out", "ort", "--sp", 2).returncode == 2


def properties(path):
    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}


def test_every_graph_says_what_made_it(autosp_onnx, tmp_path):
    graph = TrainingGraph(GRAPHS / "llama.onnx")
    version = autosp_onnx("--version").stdout.split()[-1]

    def plans(folder, *options):
        every = "autosp,ort,tensorrt,standard"
        result = shard(autosp_onnx, graph, graph.symbolic_axes, tmp_path / folder, every, *options)
        assert result.returncode == 0, result.stderr
        found = [properties(path) for path in sorted((tmp_path / folder).glob("*.onnx"))]
        assert all(each["autosp.tool"] == "autosp-onnx" and each["autosp.version"] == version for each in found)
        [plan] = {each["autosp.plan"] for each in found}
        return plan

    full = ("--sp", 2, "--recompute", "full")
    options = [("--sp", 2), ("--sp", 4), full, (*full, "--tile", "3"), (*full, "--tile", "5")]
    hashes = [plans(str(number), *each) for number, each in enumerate(options)]
    assert len(set(hashes)) == len(options)
    assert plans("again", "--sp", 2) == hashes[0]
