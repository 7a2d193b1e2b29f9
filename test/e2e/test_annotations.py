"""ONNX's sharding annotations: what they say is what the plan does. No checker looks at them, so this does."""

import itertools
import json
import math

import numpy as np
import onnx
import pytest

from training_graph import GRAPHS, TrainingGraph, assert_same_step, run_in_onnxruntime

CASES = {
    "llama over 4": ("llama", {}, ("--sp", 4)),
    "uneven": ("gpt2", {"seq": 41}, ("--sp", 3)),
    "recomputed, in tiles": ("llama", {}, ("--sp", 4, "--recompute", "full", "--tile", "3")),
    "two batches": ("llama", {"seq": 40, "batch": 4}, ("--sp", 2, "--dp", 2)),
    "heads and query groups": ("matrix/llama_h8_kv2", {"batch": 2, "seq": 61}, ("--sp-mesh", "g=2,u=2")),
    "heads and positions of queries": ("matrix/llama_h8_kv2", {"batch": 2, "seq": 61}, ("--sp-mesh", "u=2,r=2")),
    "decomposed attention": ("bert", {}, ("--sp", 4, "--attention", "unfused")),
    "training artifact": ("llama_ort_training", {}, ("--sp", 2)),
}


@pytest.fixture(scope="module", params=CASES)
def sharded(request, autosp_onnx, tmp_path_factory):
    file, sizes, options = CASES[request.param]
    graph = TrainingGraph(GRAPHS / f"{file}.onnx")
    sizes = {name: sizes.get(name, size) for name, size in graph.symbolic_axes.items()}
    folder = tmp_path_factory.mktemp("annotated") / "out"
    bindings = [part for name, size in sizes.items() for part in ("--dim", f"{name}={size}")]
    result = autosp_onnx("shard", graph.path, *bindings, *options, "--annotate", "-o", folder)
    assert result.returncode == 0, result.stderr
    return graph, graph.inputs(sizes), folder, json.loads((folder / "manifest.json").read_text())


def shapes(graph):
    """{name: shape} of everything in the graph."""
    known = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.input, *graph.output, *graph.value_info]:
        known[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return known


def specs(model):
    """(node, tensor, spec) of every annotation."""
    for node in model.graph.node:
        for configuration in node.device_configurations:
            assert configuration.configuration_id == model.configuration[0].name
            for spec in configuration.sharding_spec:
                yield node, spec


def groups_of(spec):
    """The devices that hold each shard, row-major over the cuts."""
    groups = {entry.key: list(entry.value) for entry in spec.index_to_device_group_map}
    assert all(key < 0 for key in groups)
    assert set(groups) == {device for device in spec.device if device < 0}
    return [groups.get(device, [device]) for device in spec.device]


def cuts_of(spec):
    """{(axis, factor): (extent of the factor, shards)} of what is cut, in order."""
    return {
        (dim.axis, k): (simple.dim_value, simple.num_shards)
        for dim in spec.sharded_dim
        for k, simple in enumerate(dim.simple_sharding)
        if simple.num_shards > 1
    }


def assert_well_formed(spec, shape, ranks):
    """Axes, extents, numbers of shards and devices of one annotation, for a whole tensor of this shape."""
    groups = groups_of(spec)
    axes = [dim.axis for dim in spec.sharded_dim]
    assert axes == sorted(set(axes)) and all(0 <= axis < len(shape) for axis in axes)
    for dim in spec.sharded_dim:
        assert math.prod(simple.dim_value for simple in dim.simple_sharding) == shape[dim.axis]
        assert any(simple.num_shards > 1 for simple in dim.simple_sharding)
        assert all(1 <= simple.num_shards <= simple.dim_value for simple in dim.simple_sharding)
    assert math.prod(shards for _, shards in cuts_of(spec).values()) == len(groups)
    assert sorted(itertools.chain(*groups)) == list(range(ranks))  # every rank holds one shard


def test_the_whole_graph_is_annotated(sharded):
    _, _, folder, manifest = sharded
    model = onnx.load(folder / "annotated.onnx")
    assert model.ir_version >= 11
    onnx.checker.check_model(model)
    ranks = len(manifest["ranks"])
    [configuration] = model.configuration
    assert configuration.num_devices == ranks == len(configuration.device)
    for axis in manifest["mesh"]:
        assert axis["size"] == 1 or f"{axis['name']} {axis['size']}" in configuration.name
    known = shapes(model.graph)
    described = 0
    for node, spec in specs(model):
        assert spec.tensor_name in [*node.input, *node.output]
        assert_well_formed(spec, known[spec.tensor_name], ranks)
        described += 1
    assert described > len(model.graph.node)


def shard_extents(whole, shards):
    """The even cut that the manifest's slices follow: the first ones get one more."""
    return [whole // shards + (k < whole % shards) for k in range(shards)]


def test_inputs_are_cut_as_the_manifest_says(sharded):
    _, _, folder, manifest = sharded
    model = onnx.load(folder / "annotated.onnx")
    by_name = {}
    for _, spec in specs(model):
        by_name.setdefault(spec.tensor_name, []).append(spec)
    checked = 0
    for entry in manifest["inputs"]:
        if not entry.get("slices") or entry["name"] not in by_name:
            continue
        begins = [slice.get("begin", []) for slice in entry["slices"]]
        for spec in by_name[entry["name"]]:
            groups = groups_of(spec)
            for shard, devices in enumerate(groups):
                # Ranks that share a shard are fed the same, those of different shards different slices.
                assert len({tuple(begins[device]) for device in devices}) == 1
                others = [begins[device] for other in groups[shard + 1 :] for device in other]
                assert begins[devices[0]] not in others
            firsts = [begins[devices[0]] for devices in groups]
            assert firsts == sorted(firsts)  # row-major
            cut = {axis for axis, _ in cuts_of(spec)}
            assert cut == {axis for axis in range(len(entry["shape"])) if len({begin[axis] for begin in begins}) > 1}
        checked += 1
    assert checked > 0


def test_it_computes_what_the_model_does(sharded):
    graph, inputs, folder, _ = sharded
    assert_same_step(run_in_onnxruntime(folder / "annotated.onnx", inputs), graph.step(inputs))


def test_rank_graphs_hold_the_shards(sharded):
    """A rank's tensor is its shard of what the annotation says; cut points may follow windows (shifted labels)."""
    _, _, folder, manifest = sharded
    ranks = len(manifest["ranks"])
    sizes = [{} for _ in range(ranks)]  # by rank: {(node, tensor): (cuts, shape)}
    for rank in range(ranks):
        model = onnx.load(folder / f"rank_{rank}.onnx")
        assert model.ir_version >= 11
        assert model.configuration[0].num_devices == ranks
        known = shapes(model.graph)
        for node, spec in specs(model):
            shape = known[spec.tensor_name]
            whole = list(shape)
            for dim in spec.sharded_dim:
                whole[dim.axis] = math.prod(simple.dim_value for simple in dim.simple_sharding)
            assert_well_formed(spec, whole, ranks)
            sizes[rank][node.name, spec.tensor_name] = (groups_of(spec), spec, shape)
    shared = set.intersection(*(set(each) for each in sizes))
    assert len(shared) > 50
    for key in shared:
        groups, spec, _ = sizes[0][key]
        cuts = cuts_of(spec)
        # Along a cut that is the only one of its axis, the shards' extents add up to the whole.
        counts = [shards for _, shards in cuts.values()]
        for (axis, factor), (extent, shards) in cuts.items():
            if len([1 for other, _ in cuts if other == axis]) > 1:
                continue
            [dim] = [dim for dim in spec.sharded_dim if dim.axis == axis]
            rest = math.prod(simple.dim_value for simple in dim.simple_sharding) // extent
            held = {}
            for shard, devices in enumerate(groups):
                place = np.unravel_index(shard, counts)[list(cuts).index((axis, factor))]
                for device in devices:
                    held.setdefault(int(place), set()).add(sizes[device][key][2][axis])
            assert all(len(extents) == 1 for extents in held.values())
            assert sum(extents.pop() for extents in held.values()) == extent * rest


def test_only_when_asked_for(autosp_onnx, tmp_path):
    graph = TrainingGraph(GRAPHS / "gpt2.onnx")
    for options, annotated in [(("--annotate",), True), ((), False)]:
        result = autosp_onnx("shard", graph.path, "--dim", "seq=40", "--sp", 2, *options, "-o", tmp_path / "out")
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "out" / "annotated.onnx").exists() == annotated
        model = onnx.load(tmp_path / "out" / "rank_0.onnx")
        assert bool(model.configuration) == annotated == (model.ir_version > 10)


def test_every_rank_dialect_is_annotated(autosp_onnx, tmp_path):
    graph = TrainingGraph(GRAPHS / "llama.onnx")
    every = ("--dialect", "autosp,ort,tensorrt,standard", "--annotate")
    result = autosp_onnx("shard", graph.path, "--dim", "seq=40", "--sp", 2, *every, "-o", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    found = []
    for path in ("rank_1.onnx", "rank_1.ort.onnx", "rank_1.tensorrt.onnx"):
        model = onnx.load(tmp_path / "out" / path)
        found.append({(node.name, spec.SerializeToString()) for node, spec in specs(model)})
    # Barriers give an operand another name.
    assert len(found[0]) > 500 and len(found[0] & found[1]) > 0.9 * len(found[0]) and found[1] == found[2]
    # All ranks' tensors lie on one device there.
    assert not onnx.load(tmp_path / "out" / "emulated.onnx").configuration
    # The emulated graph and the manifest know nothing of it: the folder is replaced and run as ever.
    assert autosp_onnx("run", tmp_path / "out", "--feed", graph.feed).returncode == 0
    again = autosp_onnx("shard", graph.path, "--dim", "seq=40", "--sp", 2, "-o", tmp_path / "out")
    assert again.returncode == 0, again.stderr
