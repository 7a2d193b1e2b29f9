"""Ranks that heads alone cannot take split query positions: odd numbers of ranks, and more ranks than heads."""

import json

import pytest

from emulation import assert_emulated_equals_original
from training_graph import committed_graphs

# In these nothing attends across the sequence: blocks attend within, or a state is carried along.
WITHOUT_QUERIES = {"block_local_attention", "linear_attention"}


def matrix():
    for graph in committed_graphs("matrix"):
        for sequence in (61, 64):
            for batch, dp in ((1, 1), (2, 2)):
                for sp in (5, 7, 16):
                    label = f"{graph.path.stem}-s{sequence}-b{batch}-sp{sp}-dp{dp}"
                    yield pytest.param(graph, sequence, batch, sp, dp, id=label)


def bytes_of_keys(graph, sequence, rows):
    [width] = [
        value.type.tensor_type.shape.dim[0].dim_value
        for value in graph.model.graph.input
        if value.name == "model.layers.0.self_attn.k_proj.weight"
    ]
    return rows * sequence * width * 4


@pytest.mark.parametrize("graph, sequence, batch, sp, dp", list(matrix()))
def test_any_number_of_ranks(autosp_onnx, tmp_path, graph, sequence, batch, sp, dp):
    sizes = (("batch", batch), ("seq", sequence))
    assert_emulated_equals_original(autosp_onnx, tmp_path / "out", graph, sizes, sp, dp, "--strict")
    # Keys and values alone are gathered, before they are repeated, and their gradients scattered: of one layer.
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["warnings"] == []
    axes = {axis["name"] for axis in manifest["mesh"]}
    for kind, phase in (("all-gather", "forward"), ("reduce-scatter", "backward")):
        bytes_sent = [
            entry["bytes_per_rank"]
            for entry in manifest["collectives"]
            if entry["kind"] == kind and entry["purpose"] == "reshard" and entry["phase"] == phase
        ]
        assert len(bytes_sent) == (2 if "r" in axes else len(bytes_sent))
        for sent in bytes_sent:
            assert sent <= bytes_of_keys(graph, sequence, batch // dp) * 1.1  # shards are uneven
    reduced = [entry for entry in manifest["collectives"] if entry["kind"] == "all-reduce"]
    assert {entry["purpose"] for entry in reduced} <= {"gradient", "loss"}


@pytest.mark.parametrize("mesh", ["r=2,u=2", "r=3"])
@pytest.mark.parametrize(
    "graph",
    [graph for graph in committed_graphs("adversarial") if graph.path.stem not in WITHOUT_QUERIES],
    ids=lambda graph: graph.path.stem,
)
def test_adversarial_graphs_on_a_given_mesh(autosp_onnx, tmp_path, graph, mesh):
    sp = {"r=2,u=2": 4, "r=3": 3}[mesh]
    assert_emulated_equals_original(autosp_onnx, tmp_path / "out", graph, (), sp, 1, "--sp-mesh", mesh)


@pytest.mark.parametrize("sp, dp, mesh", [(5, 1, "r=5"), (6, 3, "r=3,u=2"), (16, 1, "r=2,u=8"), (7, 1, "")])
@pytest.mark.parametrize("graph", committed_graphs(), ids=lambda graph: graph.path.stem)
def test_models_of_all_exporters(autosp_onnx, tmp_path, graph, sp, dp, mesh):
    sizes = tuple((name, 61) for name in graph.symbolic_axes if name != "batch")
    if graph.path.stem.startswith("llama"):
        mesh = mesh.replace("r=2,u=8", "r=2,g=2,u=4")
    options = ("--sp-mesh", mesh) if mesh else ()
    assert_emulated_equals_original(autosp_onnx, tmp_path / "out", graph, sizes, sp, dp, "--strict", *options)


@pytest.mark.parametrize("name", sorted(WITHOUT_QUERIES))
def test_without_attention_there_are_no_queries_to_split(autosp_onnx, tmp_path, name):
    [graph] = [graph for graph in committed_graphs("adversarial") if graph.path.stem == name]
    result = autosp_onnx("shard", graph.path, "--sp", 3, "--sp-mesh", "r=3", "-o", tmp_path / "out")
    assert result.returncode == 2
    assert "no attention was found whose query positions could be split" in result.stderr
    assert "\nnote: " in result.stderr and "\nhelp: " in result.stderr
