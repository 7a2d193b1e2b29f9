"""Keys and values that travel around a ring: the same results, less memory, and a plan that knows how much."""

import json

import numpy as np
import onnx
import pytest
from emulation import assert_emulated_equals_original
from test_fused_attention import TAGS, layer
from training_graph import GRAPHS, TrainingGraph, committed_graphs

LLAMA = GRAPHS / "matrix" / "llama_h8_kv2.onnx"
BERT = GRAPHS / "bert_static.onnx"
MESHES = {"r=2": 2, "r=4": 4, "u=2,r=2": 4}


def report(autosp_onnx, command, *options):
    result = autosp_onnx(command, *options, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def dims(sizes):
    return [part for name, size in sizes.items() for part in ("--dim", f"{name}={size}")]


@pytest.mark.parametrize(
    "sp, mesh, ring",
    [(4, "r=4", "on"), (5, "r=5", "on"), (4, "u=2,r=2", "on"), (3, "r=3", "zigzag"), (4, "u=2,r=2", "zigzag")],
)
@pytest.mark.parametrize("graph", committed_graphs(), ids=lambda graph: graph.path.stem)
def test_models_of_all_exporters(autosp_onnx, tmp_path, graph, sp, mesh, ring):
    """61 tokens: blocks differ. In stock ONNX Runtime."""
    sizes = tuple((name, 61) for name in graph.symbolic_axes if name != "batch")
    options = ("--sp-mesh", mesh, "--ring", ring, "--strict")
    assert_emulated_equals_original(autosp_onnx, tmp_path / "out", graph, sizes, sp, 1, *options)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    reshards = [entry for entry in manifest["collectives"] if entry["purpose"] == "reshard"]
    assert any("@ring-" in entry["node"] for entry in reshards)
    # Without a causal mask all ranks have as much to do as they are, and are told so.
    in_zigzag = any("@ring-deal" in entry["node"] for entry in reshards)
    assert ring == "zigzag" or not in_zigzag
    expected = [] if ring == "on" or in_zigzag else ["no attention is in zigzag order"]
    assert [warning.split(":")[0] for warning in manifest["warnings"]] == expected
    if mesh.startswith("r"):
        # BERT's rows may see no key: what they make of all keys is summed.
        of_blocks = [entry for entry in reshards if "@ring-unseen" not in entry["node"]]
        assert {entry["kind"] for entry in of_blocks if entry["phase"] == "forward"} == {"all-to-all"}
        assert "reduce-scatter" not in {entry["kind"] for entry in reshards}


@pytest.mark.parametrize("mesh", ["r=2,u=2", "r=3"])
@pytest.mark.parametrize(
    "graph",
    [
        graph
        for graph in committed_graphs("adversarial")
        if graph.path.stem not in {"block_local_attention", "linear_attention"}
    ],
    ids=lambda graph: graph.path.stem,
)
def test_adversarial_graphs(autosp_onnx, tmp_path, graph, mesh):
    sp = {"r=2,u=2": 4, "r=3": 3}[mesh]
    options = ("--sp-mesh", mesh, "--ring", "on")
    assert_emulated_equals_original(autosp_onnx, tmp_path / "out", graph, (), sp, 1, *options)


@pytest.fixture(scope="module")
def feed(tmp_path_factory):
    path = tmp_path_factory.mktemp("ring") / "feed.npz"
    np.savez(path, **TrainingGraph(LLAMA).inputs({"batch": 2, "seq": 61}))
    return path


@pytest.mark.parametrize("ring", ["on", "zigzag"])
@pytest.mark.parametrize("recompute", ["none", "mincut", "full"])
@pytest.mark.parametrize("mesh", MESHES)
def test_results_stay_and_the_peak_is_the_predicted_one(autosp_onnx, tmp_path, feed, mesh, recompute, ring):
    options = [*dims({"batch": 2, "seq": 61}), "--sp-mesh", mesh, "--ring", ring, "--recompute", recompute]
    manifest = report(autosp_onnx, "shard", LLAMA, *options, "-o", tmp_path / "out")
    assert manifest["warnings"] == []
    assert not any(
        entry["kind"] in ("all-gather", "reduce-scatter") and "r" in entry["mesh_axes"]
        for entry in manifest["collectives"]
        if entry["purpose"] == "reshard"
    )
    result = autosp_onnx("validate", LLAMA, tmp_path / "out", "--feed", feed)
    assert result.returncode == 0, result.stdout
    predicted = report(autosp_onnx, "plan", LLAMA, *options, "--memory", "2MiB")["planned_peak_bytes"]
    outputs = {}
    for way in ([], ["--overlap"], ["--transport", "mpi"], ["--transport", "mpi", "--overlap"]):
        path = tmp_path / "out.npz"
        command = [tmp_path / "out", "--feed", feed, "--output", path, "--threads-per-rank", 1, *way]
        ranks = report(autosp_onnx, "run", *command)["ranks"]
        if "--overlap" not in way:
            assert max(rank["planned_peak_bytes"] for rank in ranks) == predicted
        outputs[tuple(way)] = dict(np.load(path))
    first = outputs.pop(())
    for way, other in outputs.items():
        for name, array in first.items():
            assert np.array_equal(array, other[name]), (way, name)


@pytest.mark.parametrize("ring", ["on", "zigzag"])
@pytest.mark.parametrize("overlap", [(), ("--overlap",)], ids=["one after the other", "overlap"])
def test_the_arena_is_used_as_planned(autosp_onnx, tmp_path, overlap, ring):
    """At a length at which pages are small."""
    sizes = {"batch": 2, "seq": 1201}
    np.savez(tmp_path / "feed.npz", **TrainingGraph(LLAMA).inputs(sizes))
    options = [*dims(sizes), "--sp-mesh", "r=4", "--ring", ring]
    report(autosp_onnx, "shard", LLAMA, *options, "-o", tmp_path / "out")
    predicted = report(autosp_onnx, "plan", LLAMA, *options, "--memory", "2MiB", *overlap)["planned_peak_bytes"]
    run = [tmp_path / "out", "--feed", tmp_path / "feed.npz", "--threads-per-rank", 1, *overlap]
    ranks = report(autosp_onnx, "run", *run)["ranks"]
    assert predicted == pytest.approx(max(rank["planned_peak_bytes"] for rank in ranks), rel=0.02)
    for rank in ranks:
        assert rank["measured_peak_bytes"] == pytest.approx(rank["planned_peak_bytes"], rel=0.02)


def test_no_rank_holds_whole_keys_and_values(autosp_onnx):
    """Two KV heads of eight, so that keys and values are small beside what else there is."""
    options = [*dims({"batch": 1, "seq": 8192}), "--sp-mesh", "r=8", "--recompute", "full", "--memory", "1GiB"]
    gathered = report(autosp_onnx, "plan", LLAMA, *options)
    ring = report(autosp_onnx, "plan", LLAMA, *options, "--ring", "on")
    assert ring["planned_peak_bytes"] < 0.65 * gathered["planned_peak_bytes"]


def test_zigzag_order_halves_the_busiest_ranks_attention(autosp_onnx):
    """And auto takes it where that is faster: where attention is most of the work, not on few tokens."""

    def planned(sequence, ring, *more):
        options = [*dims({"batch": 1, "seq": sequence}), "--sp-mesh", "r=8", "--recompute", "full", "--ring", ring]
        return report(autosp_onnx, "plan", LLAMA, *options, "--memory", "2MiB", *more)

    long = {ring: planned(65536, ring) for ring in ("on", "zigzag", "auto")}
    assert long["zigzag"]["zigzag"] and not long["on"]["zigzag"]
    # The last of eight blocks sees 15/64 of all pairs, a rank in zigzag order 8/64.
    busiest = {ring: long[ring]["forward_flops"] for ring in ("on", "zigzag")}
    assert busiest["zigzag"] < 0.65 * busiest["on"]
    assert long["zigzag"]["seconds"] < long["on"]["seconds"]
    assert long["auto"]["zigzag"]
    # Beside computation a ring's exchanges cost little, and dealing out costs more than it brings.
    overlapped = {ring: planned(8192, ring, "--overlap") for ring in ("on", "zigzag", "auto")}
    assert overlapped["on"]["seconds"] < overlapped["zigzag"]["seconds"]
    assert overlapped["auto"]["ring"] and not overlapped["auto"]["zigzag"]


def test_a_sweep_says_how_keys_are_seen(autosp_onnx):
    options = [
        *dims({"batch": 1, "seq": 8192}),
        "--sp-mesh",
        "r=8",
        "--recompute",
        "full",
        "--sweep",
        "--memory",
        "2MiB",
    ]
    for ring, expected in (("off", (False, False)), ("on", (True, False)), ("zigzag", (True, True))):
        rows = report(autosp_onnx, "plan", LLAMA, *options, "--ring", ring)
        assert {(row["ring"], row["zigzag"]) for row in rows} == {expected}


def test_shard_says_what_is_in_zigzag_order(autosp_onnx, tmp_path):
    for ring, told in (
        ("on", "over axis r\n"),
        ("zigzag", "over axis r, 2 of 2 attention operators in zigzag order\n"),
    ):
        options = [*dims({"batch": 1, "seq": 128}), "--sp-mesh", "r=4", "--ring", ring]
        assert told in autosp_onnx("shard", LLAMA, *options, "-o", tmp_path / "out").stdout


def test_explain_and_check_say_how_keys_are_seen(autosp_onnx, tmp_path):
    options = [*dims({"batch": 1, "seq": 65}), "--sp-mesh", "r=5", "--ring", "on"]
    report(autosp_onnx, "shard", LLAMA, *options, "-o", tmp_path / "out")
    nodes = onnx.load(tmp_path / "out" / "rank_0.onnx").graph.node
    value = next(node.output[0].removesuffix("@part") for node in nodes if node.op_type.startswith("Attention"))
    assert "travel around a ring" in report(autosp_onnx, "explain", LLAMA, value, *options)["explanation"]
    [heads] = [line for line in report(autosp_onnx, "check", LLAMA, *options)["checks"] if line["check"] == "heads"]
    assert "travel around a ring" in heads["found"]


def test_what_gathers_nevertheless_is_named(autosp_onnx, tmp_path):
    """A bias that is trained, attention that stays decomposed, a mesh without an axis for it."""

    def warnings(model, *options):
        ring = [] if "--ring" in options else ["--ring", "on"]
        return report(autosp_onnx, "shard", model, *options, *ring, "-o", tmp_path / "out")["warnings"]

    onnx.save(layer(), tmp_path / "layer.onnx")
    [warning] = warnings(tmp_path / "layer.onnx", "--sp-mesh", "r=2", *TAGS)
    assert "AttentionGrad" in warning and "has no ring" in warning and "its bias is trained" in warning
    [warning] = warnings(BERT, "--sp-mesh", "r=2", "--attention", "unfused")
    assert "no attention is one operator" in warning
    [warning] = warnings(BERT, "--sp-mesh", "r=2", "--ring", "zigzag")
    assert "no attention is in zigzag order: no causal mask or window is known" in warning
    [warning] = warnings(BERT, "--sp-mesh", "u=2")
    assert "the mesh has no axis r" in warning


@pytest.mark.parametrize("option", ["sideways", ""])
def test_other_words_are_refused(autosp_onnx, tmp_path, option):
    result = autosp_onnx("shard", LLAMA, "--sp-mesh", "r=2", "--ring", option, "-o", tmp_path / "out")
    assert result.returncode == 2
    assert "--ring" in result.stderr


@pytest.mark.parametrize("ring", ["on", "zigzag"])
def test_open_lengths_have_no_ring(autosp_onnx, tmp_path, ring):
    options = ["--dim", "batch=1", "--dim", "seq=dynamic:64", "--sp-mesh", "r=2", "--ring", ring]
    result = autosp_onnx("shard", LLAMA, *options, "-o", tmp_path / "out")
    assert result.returncode == 2
    assert f"--ring {ring} takes no open length" in result.stderr
    assert "\nnote: " in result.stderr and "\nhelp: " in result.stderr


def test_auto_takes_the_ring_where_it_saves_a_fifth(autosp_onnx, tmp_path):
    def planned(sequence, ring):
        options = [*dims({"batch": 1, "seq": sequence}), "--sp-mesh", "r=8", "--recompute", "full", "--ring", ring]
        return report(autosp_onnx, "plan", LLAMA, *options, "--memory", "2MiB")

    for sequence, chosen in ((64, False), (8192, True)):
        peaks = {ring: planned(sequence, ring)["planned_peak_bytes"] for ring in ("off", "on", "auto")}
        assert (peaks["on"] <= 0.8 * peaks["off"]) == chosen
        peaks["zigzag"] = planned(sequence, "zigzag")["planned_peak_bytes"]
        order = "zigzag" if planned(sequence, "auto")["zigzag"] else "on"
        assert peaks["auto"] == peaks[order if chosen else "off"]
        assert planned(sequence, "auto")["ring"] == chosen
    options = [*dims({"batch": 1, "seq": 8192}), "--sp-mesh", "r=8", "--recompute", "full", "--ring", "auto"]
    manifest = report(autosp_onnx, "shard", LLAMA, *options, "-o", tmp_path / "out")
    assert any("@ring-" in entry["node"] for entry in manifest["collectives"])
    # Without an axis r there is nothing to choose, and nothing to say.
    options = [*dims({"batch": 1, "seq": 64}), "--sp-mesh", "u=2", "--ring", "auto"]
    assert report(autosp_onnx, "shard", LLAMA, *options, "-o", tmp_path / "heads")["warnings"] == []


@pytest.mark.parametrize("dialect", ["ort", "tensorrt"])
def test_other_runtimes_have_no_ring(autosp_onnx, tmp_path, dialect):
    words = ["shard", LLAMA, "--dim", "batch=1", "--dim", "seq=64", "--sp-mesh", "r=2", "--dialect", dialect]
    result = autosp_onnx(*words, "--ring", "on", "-o", tmp_path / "out")
    assert result.returncode == 2
    assert f"--dialect {dialect} has no ring" in result.stderr
    assert not (tmp_path / "out").exists()
    result = autosp_onnx(*words, "--ring", "auto", "-o", tmp_path / "out")
    assert result.returncode == 0, result.stderr
