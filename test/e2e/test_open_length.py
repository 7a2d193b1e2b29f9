"""shard --dim seq=dynamic: one set of graphs for every length, each the same step as a set for that length."""

import json

import numpy as np
import onnx
import pytest
import python_package
from onnx.reference import ReferenceEvaluator

from training_graph import GRAPHS, TrainingGraph, assert_same_step, run_in_onnxruntime

LLAMA = TrainingGraph(GRAPHS / "llama.onnx")
GPT2 = TrainingGraph(GRAPHS / "gpt2.onnx")
LENGTHS = (24, 36, 60)


@pytest.fixture(scope="module", autouse=True)
def home(request):
    python_package.use(request)


def bindings(graph, **sizes):
    return [part for name, size in (graph.symbolic_axes | sizes).items() for part in ("--dim", f"{name}={size}")]


def shard(autosp_onnx, graph, folder, seq, *options):
    result = autosp_onnx("shard", graph.path, "-o", folder, *bindings(graph, seq=seq), *options)
    assert result.returncode == 0, result.stderr
    return folder


def feed(graph, length, path):
    np.savez(path, **graph.inputs(graph.symbolic_axes | {"seq": length}))
    return path


def run(autosp_onnx, folder, feed_path, output):
    result = autosp_onnx("run", folder, "--feed", feed_path, "--output", output)
    assert result.returncode == 0, result.stderr
    with np.load(output) as archive:
        return {name: archive[name] for name in archive.files}


def assert_refused(result, message):
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr
    assert [line.split(": ")[0] for line in result.stderr.splitlines()] == ["error", "note", "help"]


CASES = {
    "bert, 2 ranks": ("bert.onnx", "--sp", 2),
    "gpt2, 3 ranks: query positions": ("gpt2.onnx", "--sp", 3),
    "llama, 4 ranks": ("llama.onnx", "--sp", 4),
    "nano, everything again": ("nano.onnx", "--sp", 2, "--recompute", "full"),
    "llama, 3 ranks, attention unfused": ("llama.onnx", "--sp", 3, "--attention", "unfused"),
    "llama, two batches": ("matrix/llama_h8_kv2.onnx", "--sp", 2, "--dp", 2),
    "llama, three axes": ("matrix/llama_h6_kv2.onnx", "--sp-mesh", "u=2,r=2"),
    "gpt2, tiles": ("gpt2.onnx", "--sp", 2, "--recompute", "sac", "--tile", 8),
}


@pytest.mark.parametrize("case", CASES)
def test_every_length_is_that_of_a_set_for_it(autosp_onnx, tmp_path, case):
    file, *options = CASES[case]
    graph = TrainingGraph(GRAPHS / file)
    tiles = "--tile" in options
    planned = 32 if tiles else 48  # 32 tokens: two tiles of 8 on each of two ranks
    shard(autosp_onnx, graph, tmp_path / "open", f"dynamic:{planned}", *options)
    for length in LENGTHS:
        path = feed(graph, length, tmp_path / "feed.npz")
        ours = run(autosp_onnx, tmp_path / "open", path, tmp_path / "open.npz")
        expected = graph.step(graph.inputs(graph.symbolic_axes | {"seq": length}))
        assert_same_step({name: ours[name] for name in expected}, expected)
        if tiles:
            continue  # a set for one length would have as many tiles as that length asks for
        shard(autosp_onnx, graph, tmp_path / str(length), length, *options)
        single = run(autosp_onnx, tmp_path / str(length), path, tmp_path / "single.npz")
        for name, value in single.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=f"{name} at {length}")


@pytest.mark.parametrize("file", ["llama.onnx", "gpt2.onnx", "bert.onnx", "matrix/llama_h6_kv3.onnx"])
def test_emulated_graph_computes_its_cut_points(autosp_onnx, tmp_path, file):
    graph = TrainingGraph(GRAPHS / file)
    shard(autosp_onnx, graph, tmp_path / "out", "dynamic:48", "--sp", 4, "--dialect", "standard")
    for length in LENGTHS:
        inputs = graph.inputs(graph.symbolic_axes | {"seq": length})
        assert_same_step(run_in_onnxruntime(tmp_path / "out" / "emulated.onnx", inputs), graph.step(inputs))


def test_reference_evaluator_runs_the_emulated_graph(autosp_onnx, tmp_path):
    shard(autosp_onnx, LLAMA, tmp_path / "out", "dynamic:48", "--sp", 2, "--dialect", "standard")
    model = onnx.load(tmp_path / "out" / "emulated.onnx")
    onnx.checker.check_model(model, full_check=True)
    evaluator = ReferenceEvaluator(model)
    names = [value.name for value in model.graph.output]
    for length in (16, 28):
        inputs = LLAMA.inputs({"seq": length})
        feeds = {value.name: inputs[value.name] for value in model.graph.input}
        results = dict(zip(names, evaluator.run(None, feeds), strict=True))
        assert_same_step(results, LLAMA.step(inputs))


@pytest.mark.parametrize(
    "options",
    [("--sp", 4), ("--sp", 3), ("--sp", 4, "--recompute", "full")],
    ids=["by heads", "by query positions", "everything again"],
)
def test_rank_graphs_in_onnxruntime(autosp_onnx, tmp_path, options):
    from autosp_onnx.manifest import read_manifest
    from autosp_onnx.onnxruntime_ranks import run_in_threads

    shard(autosp_onnx, LLAMA, tmp_path / "out", "dynamic:48", *options)
    manifest = read_manifest(tmp_path / "out")
    for length in LENGTHS:
        inputs = LLAMA.inputs({"seq": length})
        for outputs in run_in_threads(manifest, inputs):
            assert_same_step(outputs, LLAMA.step(inputs))


@pytest.mark.parametrize("dialect", ["autosp", "standard"])
def test_barriers_are_the_same_at_every_length(autosp_onnx, tmp_path, dialect):
    for graph in (LLAMA, GPT2):
        folder = tmp_path / graph.path.stem
        shard(autosp_onnx, graph, folder, "dynamic:8", "--sp", 2, "--recompute", "full", "--dialect", dialect)
        [file] = folder.glob("*0.onnx") if dialect == "autosp" else folder.glob("*.onnx")
        guards = [name for node in onnx.load(file).graph.node for name in node.input if "~barrier" in name]
        assert guards


def test_collectives_take_token_and_numbers(autosp_onnx, tmp_path):
    shard(autosp_onnx, LLAMA, tmp_path / "out", "dynamic:48", "--sp", 4)
    nodes = onnx.load(tmp_path / "out" / "rank_1.onnx").graph.node
    token, open_sizes = "", 0
    for node in nodes:
        if node.op_type not in ("AllReduce", "AllGather", "ReduceScatter", "AllToAll"):
            continue
        after, numbers = ([*node.input, "", ""])[1:3]
        assert after == token
        token = node.output[1] if len(node.output) > 1 else None
        lists = {"sizes", "shape", "recv_extent"} & {attribute.name for attribute in node.attribute}
        assert bool(numbers) != bool(lists) or node.op_type == "AllReduce"
        open_sizes += bool(numbers)
    assert token is None and open_sizes > 0


def test_ranks_with_files_of_their_own(autosp_onnx, tmp_path):
    out = shard(autosp_onnx, LLAMA, tmp_path / "out", "dynamic:48", "--sp", 4)
    for length in LENGTHS[:2]:
        path = feed(LLAMA, length, tmp_path / "feed.npz")
        result = autosp_onnx("feed", out, "--feed", path, "-o", tmp_path / "fed")
        assert result.returncode == 0, result.stderr
        whole = run(autosp_onnx, out, path, tmp_path / "whole.npz")
        files = tmp_path / "fed" / "rank_{rank}.npz"
        result = autosp_onnx("run", out, "--feed-rank", files, "--output", tmp_path / "own.npz")
        assert result.returncode == 0, result.stderr
        with np.load(tmp_path / "own.npz") as own:
            for name, value in whole.items():
                np.testing.assert_array_equal(own[name], value)


def test_manifest_says_which_lengths_and_where_they_are_cut(autosp_onnx, tmp_path):
    shard(autosp_onnx, LLAMA, tmp_path / "out", "dynamic:48", "--sp", 4)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    length = manifest["open_length"]
    assert (length["dim"], length["planned"], length["multiple"]) == ("seq", 48, 4)
    assert length["minimum"] % 4 == 0 and length["minimum"] <= 24
    [ids] = [entry for entry in length["inputs"] if entry["name"] == "input_ids"]
    assert ids["formulas"] == ["0:3, 0:seq/4", "0:3, seq/4:seq/2", "0:3, seq/2:3*seq/4", "0:3, 3*seq/4:seq"]
    assert ids["shape"] == [0, 4]
    model = onnx.load(tmp_path / "out" / "rank_1.onnx")
    [shape] = [value.type.tensor_type.shape for value in model.graph.input if value.name == "input_ids"]
    assert [dim.dim_param or dim.dim_value for dim in shape.dim] == [3, "seq/4"]


def test_validate_takes_a_length(autosp_onnx, tmp_path):
    shard(autosp_onnx, LLAMA, tmp_path / "out", "dynamic:48", "--sp", 2, "--dp", 3)
    for length in (40, 96):
        result = autosp_onnx("validate", LLAMA.path, tmp_path / "out", "--dim", f"seq={length}")
        assert result.returncode == 0, result.stdout + result.stderr
    assert autosp_onnx("validate", LLAMA.path, tmp_path / "out").returncode == 0


def test_lengths_that_are_not_allowed(autosp_onnx, tmp_path):
    out = shard(autosp_onnx, LLAMA, tmp_path / "out", "dynamic:48", "--sp", 4)
    refused = "is no length that these graphs take: multiples of 4 from "
    assert_refused(autosp_onnx("validate", LLAMA.path, out, "--dim", "seq=42"), "seq=42 " + refused)
    path = feed(LLAMA, 42, tmp_path / "feed.npz")
    assert_refused(autosp_onnx("run", out, "--feed", path), "seq=42 " + refused)
    assert_refused(autosp_onnx("validate", LLAMA.path, out, "--dim", "batch=2"), "--dim batch=2")
    from autosp_onnx import AutospError, feed as cut

    with pytest.raises(AutospError, match="seq=42 " + refused):
        cut(out, LLAMA.inputs({"seq": 42}))


def test_what_may_not_stay_open(autosp_onnx, tmp_path):
    def refused(graph, message, *dims):
        result = autosp_onnx("shard", graph.path, "--sp", 2, "-o", tmp_path / "out", *dims)
        assert_refused(result, message)
        assert not (tmp_path / "out").exists()

    matrix = TrainingGraph(GRAPHS / "matrix" / "llama_h8_kv2.onnx")
    batch = next(name for name in matrix.symbolic_axes if name != "seq")
    refused(LLAMA, "no symbolic dimension 'sequence'", "--dim", "sequence=dynamic")
    refused(matrix, f"'{batch}' is not the sequence", "--dim", f"{batch}=dynamic:2", "--dim", "seq=48")
    refused(matrix, "leaves both", "--dim", f"{batch}=dynamic", "--dim", "seq=dynamic")
    refused(LLAMA, "takes a whole number", "--dim", "seq=dynamic:many")
    for options in (("--dialect", "ort"), ("--dialect", "tensorrt,autosp"), ("--annotate",)):
        refused(LLAMA, " takes no open length", "--dim", "seq=dynamic", *options)
    dropout = TrainingGraph(GRAPHS / "dropout" / "gpt2.onnx")
    refused(dropout, "RandomUniform", *bindings(dropout, seq="dynamic:48"))
    assert_refused(autosp_onnx("inspect", LLAMA.path, "--dim", "seq=dynamic"), "this command takes a number")
