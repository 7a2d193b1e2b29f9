"""What goes wrong in sequence parallelism, put into rank graphs on purpose: `validate` fails, and says why."""

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from training_graph import GRAPHS, TrainingGraph

RANKS = 3
SIZES = {"seq": 24}
TOKENS = 8  # of a rank


class RankGraph:
    """The graph of one rank, to be changed in place."""

    def __init__(self, folder, rank):
        self.rank, self.path = rank, folder / f"rank_{rank}.onnx"
        self.model = onnx.load(self.path)
        self.nodes = self.model.graph.node
        for node in self.nodes:  # tokens of collectives, which what takes a collective's place lacks
            if any(attribute.name == "group" for attribute in node.attribute):
                del node.input[1:], node.output[1:]

    def save(self):
        onnx.save(self.model, self.path)

    def find(self, name):
        [node] = [node for node in self.nodes if node.name == name]
        return node

    def constant(self, name, array):
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def put_before(self, node, *new):
        at = list(self.nodes).index(node)
        for offset, one in enumerate(new):
            self.nodes.insert(at + offset, one)

    def put_in_place_of(self, node, *new):
        self.put_before(node, *new)
        self.nodes.remove(node)

    def replace_input(self, name, changed, *new):
        """All readers of an input read `changed` instead, which `new` nodes make of it."""
        for node in self.nodes:
            for k, operand in enumerate(node.input):
                if operand == name:
                    node.input[k] = changed
        for one in reversed(new):
            self.nodes.insert(0, one)


def loss_reductions(manifest):
    return [entry["node"] for entry in manifest["collectives"] if entry["purpose"] == "loss"]


def local_mean(graph, manifest):
    """Every rank divides its own sum by its own count."""
    for name in loss_reductions(manifest):
        node = graph.find(name)
        graph.put_in_place_of(node, helper.make_node("Identity", list(node.input), list(node.output)))


def mean_of_means(graph, manifest):
    """And the ranks' losses are averaged, whatever their counts."""
    local_mean(graph, manifest)
    [maker] = [node for node in graph.nodes if "loss" in node.output]
    maker.output[list(maker.output).index("loss")] = "own_loss"
    share = graph.constant("share", np.float32(1 / RANKS))
    group = list(range(RANKS))
    graph.nodes.append(helper.make_node("Mul", ["own_loss", share], ["own_share"]))
    graph.nodes.append(helper.make_node("AllReduce", ["own_share"], ["loss"], "mean", domain="autosp", group=group))


def late_shift(graph, manifest):
    """The last token of a rank has no target: labels were cut before they were shifted."""
    if graph.rank == RANKS - 1:
        return
    [labels] = [entry for entry in manifest["inputs"] if entry["name"] == "labels"]
    rows, columns = labels["slices"][graph.rank]["extent"]
    bounds = [
        graph.constant(name, np.array([value])) for name, value in (("from", 0), ("to", columns - 1), ("axis", 1))
    ]
    ignored = graph.constant("ignored", np.full((rows, 1), -100))
    graph.replace_input(
        "labels",
        "cut_labels",
        helper.make_node("Slice", ["labels", *bounds], ["kept_labels"]),
        helper.make_node("Concat", ["kept_labels", ignored], ["cut_labels"], axis=1),
    )


def missing_mask(graph, manifest):
    [mask] = [entry for entry in manifest["inputs"] if entry["name"] == "attention_mask"]
    shape = mask["slices"][graph.rank]["extent"] if mask["slices"] else mask["shape"]
    graph.replace_input("attention_mask", graph.constant("ones", np.ones(shape, np.int64)))


def local_positions(graph, manifest):
    """Positions begin at 0 on every rank, for the table and for its gradient."""
    [node] = [node for node in graph.nodes if node.op_type == "Slice" and node.input[0] == "position_embedding.weight"]
    node.input[1] = graph.constant("first", np.array([0]))
    node.input[2] = graph.constant("last", np.array([TOKENS]))
    [gather] = [node for node in graph.nodes if "position_embedding.weight.grad" in node.output]
    assert gather.op_type == "AllGather"
    [sizes] = [attribute.ints for attribute in gather.attribute if attribute.name == "sizes"]
    pads = graph.constant("rows", np.array([0, 0, sum(sizes) - sizes[graph.rank], 0]))
    group = list(range(RANKS))
    graph.put_in_place_of(
        gather,
        helper.make_node("Pad", [gather.input[0], pads], ["first_rows"]),
        helper.make_node("AllReduce", ["first_rows"], list(gather.output), gather.name, domain="autosp", group=group),
    )


def tied_twice(graph, manifest):
    """The rank's gradient of the embedding is added to what the lookup contributes once more."""
    [reduction] = [node for node in graph.nodes if "embedding.weight.grad" in node.output]
    [total] = [node for node in graph.nodes if reduction.input[0] in node.output]
    assert (reduction.op_type, total.op_type) == ("AllReduce", "Add")
    graph.put_before(reduction, helper.make_node("Add", [reduction.input[0], total.input[1]], ["twice"]))
    reduction.input[0] = "twice"


def averaged_gradients(graph, manifest):
    """Sums over ranks are divided by their number once more."""
    share = graph.constant("share", np.float32(1 / RANKS))
    for k, output in enumerate(graph.model.graph.output):
        if not output.name.endswith(".grad"):
            continue
        [maker] = [node for node in graph.nodes if output.name in node.output]
        maker.output[list(maker.output).index(output.name)] = f"summed_once_{k}"
        graph.nodes.append(helper.make_node("Mul", [f"summed_once_{k}", share], [output.name]))


def one_gradient_scaled(graph, manifest):
    """A little, and the first one only: nothing that all gradients share."""
    name = next(output.name for output in graph.model.graph.output if output.name.endswith(".grad"))
    [maker] = [node for node in graph.nodes if name in node.output]
    maker.output[list(maker.output).index(name)] = "exact"
    factor = graph.constant("factor", np.float32(1.005))
    graph.nodes.append(helper.make_node("Mul", ["exact", factor], [name]))


FAULTS = {
    local_mean: ("llama.onnx", "local mean: every rank's loss"),
    mean_of_means: ("llama.onnx", "local mean: the loss is the mean of the ranks' means"),
    late_shift: ("llama.onnx", "labels shifted after sharding"),
    missing_mask: ("bert.onnx", "missing mask: the loss is that of 'attention_mask'"),
    local_positions: ("nano.onnx", "local positions: rows 8 to 22 of 'position_embedding.weight'"),
    tied_twice: ("adversarial/tied_embeddings.onnx", "counted twice: of all gradients only that of 'embedding.weight'"),
    averaged_gradients: ("llama.onnx", "common factor: every gradient is 0.3333 times"),
    one_gradient_scaled: ("llama.onnx", None),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_faults_are_found_and_named(autosp_onnx, tmp_path, fault):
    file, cause = FAULTS[fault]
    graph = TrainingGraph(GRAPHS / file)
    inputs = graph.inputs(SIZES)
    if "labels" in inputs:  # ranks have different numbers of valid tokens
        inputs["labels"] = inputs["labels"].copy()
        inputs["labels"][0, : inputs["labels"].shape[1] // 2] = -100
    if "attention_mask" in inputs:
        inputs["attention_mask"][:, -5:] = 0
    feed, out = tmp_path / "feed.npz", tmp_path / "out"
    np.savez(feed, **inputs)
    dims = [word for name in graph.symbolic_axes for word in ("--dim", f"{name}={SIZES[name]}")]
    shard = autosp_onnx("shard", graph.path, *dims, "--sp", RANKS, "--tile", "off", "-o", out)
    assert shard.returncode == 0, shard.stderr
    before = autosp_onnx("validate", graph.path, out, "--feed", feed, "--json")
    assert before.returncode == 0, before.stdout + before.stderr
    assert json.loads(before.stdout)["causes"] == []

    manifest = json.loads((out / "manifest.json").read_text())
    for rank in range(RANKS):
        rank_graph = RankGraph(out, rank)
        fault(rank_graph, manifest)
        rank_graph.save()
    after = autosp_onnx("validate", graph.path, out, "--feed", feed, "--json")
    assert after.returncode == 1, after.stderr
    causes = json.loads(after.stdout)["causes"]
    if cause is None:
        assert causes == []
        return
    assert len(causes) == 1, causes
    assert causes[0].startswith(cause), causes
    text = autosp_onnx("validate", graph.path, out, "--feed", feed)
    assert f"likely cause: {causes[0]}" in text.stdout


def test_labels_that_hold_no_mark_for_ignored_ones_are_left_alone(autosp_onnx, tmp_path):
    """Of 8 bits, -100 is not among them."""
    shape, tensor = ["batch", "seq"], onnx.TensorProto
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["product"]),
        helper.make_node("Cast", ["labels"], ["targets"], to=tensor.FLOAT),
        helper.make_node("Sub", ["product", "targets"], ["error"]),
        helper.make_node("Mul", ["error", "error"], ["square"]),
        helper.make_node("ReduceSum", ["square"], ["loss"], keepdims=0),
        helper.make_node("Mul", ["error", "x"], ["half"]),
        helper.make_node("ReduceSum", ["half"], ["half_sum"], keepdims=0),
        helper.make_node("Add", ["half_sum", "half_sum"], ["w.grad"]),
    ]
    inputs = [("x", tensor.FLOAT, shape), ("labels", tensor.UINT8, shape), ("w", tensor.FLOAT, [])]
    outputs = [("loss", tensor.FLOAT, []), ("w.grad", tensor.FLOAT, [])]
    values = [[helper.make_tensor_value_info(*value) for value in group] for group in (inputs, outputs)]
    model = helper.make_model(helper.make_graph(nodes, "g", *values), opset_imports=[helper.make_opsetid("", 18)])
    path, out = tmp_path / "model.onnx", tmp_path / "out"
    onnx.save(model, path)
    dims = ["--dim", "batch=2", "--dim", "seq=8", "--seq", "x:1", "--seq", "labels:1"]
    shard = autosp_onnx("shard", path, *dims, "--sp", 2, "-o", out)
    assert shard.returncode == 0, shard.stderr
    for rank in range(2):
        graph = RankGraph(out, rank)
        [cast] = [node for node in graph.nodes if node.op_type == "Cast"]
        cast.op_type, cast.input[0] = "Mul", "x"
        del cast.attribute[:]
        cast.input.append("x")
        graph.save()
    result = autosp_onnx("validate", path, out)
    assert result.returncode == 1, result.stderr
    assert "DIFFERENT" in result.stdout
