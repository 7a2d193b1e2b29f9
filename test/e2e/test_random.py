"""Dropout: masks depend on seed, step, operator and place, and on nothing about how the graph is split."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from training_graph import GRAPHS

GPT2 = GRAPHS / "dropout" / "gpt2.onnx"
TRAINING = GRAPHS / "dropout" / "gpt2_ort_training.onnx"
INPUTS = GRAPHS / "dropout" / "gpt2.npz"
SIZES = ["--dim", "seq=61", "--dim", "batch=2"]


def philox(counter, key):
    """Philox4x32-10 on columns of words, written down from the paper."""
    c = [np.asarray(word, np.uint64) for word in counter]
    k = [np.uint64(word) for word in key]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(b >> np.uint64(32)) ^ c[1] ^ k[0], b & low, (a >> np.uint64(32)) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return np.stack(c, axis=-1)


def uniform(shape, seed, stream, step):
    """The numbers of docs/random.md."""
    index = np.arange(int(np.prod(shape)), dtype=np.uint64)
    block = index // np.uint64(4)
    low = np.uint64(0xFFFFFFFF)
    same = np.zeros_like(block)
    counter = [block & low, block >> np.uint64(32), same + np.uint64(stream), same + np.uint64(step)]
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    chosen = np.take_along_axis(words, (index % np.uint64(4))[:, None].astype(np.int64), axis=1)[:, 0]
    return ((chosen >> np.uint64(8)).astype(np.float32) * np.float32(2**-24)).reshape(shape)


def test_philox_gives_the_published_answers():
    words = philox(([0x243F6A88], [0x85A308D3], [0x13198A2E], [0x03707344]), (0xA4093822, 0x299F31D0))
    assert [hex(word) for word in words[0]] == ["0xd16cfe09", "0x94fdcceb", "0x5001e420", "0x24126ea1"]


def shard(autosp_onnx, model, folder, *options):
    sizes = SIZES if model == GPT2 else []
    result = autosp_onnx("shard", model, "-o", folder, *sizes, *options)
    assert result.returncode == 0, result.stderr
    return folder


def draws_of(path):
    """By names of functions: RandomUniform, RandomUniform_1, ..."""
    nodes = [node for node in onnx.load(path).graph.node if node.domain == "autosp"]
    return [node for node in nodes if node.op_type.partition("_")[0] == "RandomUniform"]


def attributes(node):
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


SPLITS = [
    ["--sp", 1],
    ["--sp", 2],
    ["--sp", 4],
    ["--sp", 3, "--recompute", "none"],
    ["--sp", 4, "--recompute", "full"],
    ["--sp", 2, "--tile", 7],
    ["--sp", 3, "--recompute", "sac", "--tile", 5],
    ["--sp", 2, "--dp", 2],
    ["--sp-mesh", "u=2,r=2"],
    ["--sp-mesh", "r=5", "--tile", 3],
    ["--sp", 4, "--attention", "unfused"],
]


@pytest.mark.parametrize("model", [GPT2, TRAINING], ids=["torch", "ort_training"])
@pytest.mark.parametrize("split", SPLITS, ids=lambda split: "".join(map(str, split)))
def test_loss_and_gradients_are_those_of_the_whole_graph(autosp_onnx, tmp_path, model, split):
    out = shard(autosp_onnx, model, tmp_path / "out", *split)
    for step in (0, 41):
        result = autosp_onnx("validate", model, out, "--feed", INPUTS, "--step", step, "--json")
        assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert all(output["equal"] and not output["rounding"] for output in report["outputs"] if output["role"] == "loss")


@pytest.mark.parametrize("model", [GPT2, TRAINING], ids=["torch", "ort_training"])
def test_fused_attention_drops_the_weights_that_the_graph_drops(autosp_onnx, tmp_path, model):
    """Each rank draws for its own weights inside the operator; unfused, the graph's own draws are run."""
    results = []
    for attention in ("fused", "unfused"):
        out = shard(autosp_onnx, model, tmp_path / attention, "--sp", 3, "--attention", attention)
        drops = [node for node in onnx.load(out / "rank_1.onnx").graph.node if "dropout_strides" in attributes(node)]
        assert len(drops) == (4 if attention == "fused" else 0), [node.op_type for node in drops]
        result = autosp_onnx("run", out, "--feed", INPUTS, "--step", 3, "--output", tmp_path / f"{attention}.npz")
        assert result.returncode == 0, result.stderr
        results.append(np.load(tmp_path / f"{attention}.npz"))
    fused, unfused = results
    assert set(fused.files) == set(unfused.files)
    largest = max(np.abs(unfused[name]).max() for name in unfused.files)
    for name in fused.files:
        np.testing.assert_allclose(fused[name], unfused[name], rtol=2e-5, atol=2e-6 * largest, err_msg=name)


def loss_of(autosp_onnx, out, *options):
    result = autosp_onnx("run", out, "--feed", INPUTS, "--json", *options)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)["ranks"][0]["loss"]


def test_masks_change_with_step_and_seed_and_repeat_otherwise(autosp_onnx, tmp_path):
    out = shard(autosp_onnx, GPT2, tmp_path / "out", "--sp", 2)
    losses = [loss_of(autosp_onnx, out, "--step", step) for step in (0, 1, 2, 0)]
    assert losses[0] == losses[3] == loss_of(autosp_onnx, out)
    assert len(set(losses)) == 3
    again = shard(autosp_onnx, GPT2, tmp_path / "again", "--sp", 2, "--seed", 7)
    assert json.loads((again / "manifest.json").read_text())["random"] == {"seed": 7, "step_input": "autosp_step"}
    assert loss_of(autosp_onnx, again) != losses[0]
    assert autosp_onnx("validate", GPT2, again, "--feed", INPUTS).returncode == 0


def test_ranks_draw_their_own_part_and_exchange_no_masks(autosp_onnx, tmp_path):
    out = shard(autosp_onnx, GPT2, tmp_path / "out", "--sp", 4, "--recompute", "none")
    drawn = [
        sum(int(np.prod(attributes(node)["shape"])) for node in draws_of(out / f"rank_{k}.onnx")) for k in range(4)
    ]
    whole = sum(int(np.prod(attributes(node)["whole"])) for node in draws_of(out / "rank_0.onnx"))
    assert sum(drawn) == whole
    assert max(drawn) < whole / 3
    names = {entry["value"] for entry in json.loads((out / "manifest.json").read_text())["collectives"]}
    random = {node.output[0] for node in onnx.load(GPT2).graph.node if node.op_type == "RandomUniformLike"}
    for node in onnx.load(GPT2).graph.node:  # and the masks that are made of them
        if node.op_type in ("Less", "Cast") and node.input[0] in random:
            random.add(node.output[0])
    assert len(random) == 3 * 7
    assert not names & random


def test_parts_of_the_ranks_are_the_numbers_of_the_paper(autosp_onnx, tmp_path):
    out = shard(autosp_onnx, GPT2, tmp_path / "out", "--sp", 3, "--seed", 2**40 + 3)
    for rank in range(3):
        path = out / f"rank_{rank}.onnx"
        for node in draws_of(path)[:4]:
            of = attributes(node)
            assert of["seed"] == 2**40 + 3
            got = run_node(onnx.load(path), node, step=5)
            whole = uniform(of["whole"], of["seed"], of["stream"], 5)
            box = tuple(slice(b, b + e) for b, e in zip(of["begin"], of["extent"], strict=True))
            np.testing.assert_array_equal(got, whole[box].reshape(of["shape"]))
            assert abs(got.mean() - 0.5) < 6 * (1 / 12 / got.size) ** 0.5


def run_node(model, node, step):
    """The node alone in ONNX Runtime, by the function that the file carries for it."""
    function = next(f for f in model.functions if f.name == node.op_type)
    value = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
    number = helper.make_tensor_value_info(node.input[0], TensorProto.INT64, [])
    graph = helper.make_graph([node], "one", [number], [value])
    alone = helper.make_model(graph, functions=[function], opset_imports=model.opset_import, ir_version=10)
    session = onnxruntime.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {node.input[0]: np.array(step, np.int64)})[0]


def test_other_runtimes_draw_the_same(autosp_onnx, tmp_path):
    out = shard(autosp_onnx, GPT2, tmp_path / "out", "--sp", 2, "--dialect", "autosp,standard")
    result = autosp_onnx("run", out, "--feed", INPUTS, "--step", 3, "--output", tmp_path / "results.npz")
    assert result.returncode == 0, result.stderr
    expected = dict(np.load(tmp_path / "results.npz"))
    emulated = onnx.load(out / "emulated.onnx")
    assert {node.domain for node in emulated.graph.node} == {""}
    session = onnxruntime.InferenceSession(out / "emulated.onnx", providers=["CPUExecutionProvider"])
    feeds = {**np.load(INPUTS), "autosp_step": np.array(3, np.int64)}
    names = [output.name for output in session.get_outputs()]
    for name, value in zip(names, session.run(None, feeds), strict=True):
        largest = max(np.abs(gradient).max() for gradient in expected.values())
        np.testing.assert_allclose(value, expected[name], atol=2e-5 * largest, rtol=2e-4, err_msg=name)


def dropout_step(path, ratio=0.25, seeds=(None, None)):
    """loss = sum(dropout(dropout(x * w))), and w's gradient by the masks; a mask is an output too."""

    def drop(x, y, mask, seed):
        extra = {} if seed is None else {"seed": seed}
        return helper.make_node("Dropout", [x, "ratio", "training"], [y, mask], name=f"drop_{y}", **extra)

    nodes = [
        helper.make_node("Mul", ["x", "w"], ["product"]),
        drop("product", "once", "mask", seeds[0]),
        drop("once", "twice", "mask2", seeds[1]),
        helper.make_node("ReduceSum", ["twice"], ["loss"], keepdims=0),
        helper.make_node("And", ["mask", "mask2"], ["both"]),
        helper.make_node("Cast", ["both"], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["kept", "x"], ["through"]),
        helper.make_node("ReduceSum", ["through", "axes"], ["summed"], keepdims=0),
        helper.make_node("Div", ["summed", "share"], ["w_grad"]),
        helper.make_node("Cast", ["mask"], ["first"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["mask2"], ["second"], to=TensorProto.FLOAT),
    ]
    tensors = [
        helper.make_tensor("ratio", TensorProto.FLOAT, [], [ratio]),
        helper.make_tensor("training", TensorProto.BOOL, [], [True]),
        helper.make_tensor("axes", TensorProto.INT64, [2], [0, 1]),
        helper.make_tensor("share", TensorProto.FLOAT, [], [(1 - ratio) ** 2]),
    ]

    def value(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    whole = [2, 37, 50]
    graph = helper.make_graph(
        nodes,
        "step",
        [value("x", whole), value("w", [50])],
        [value("loss", []), value("w_grad", [50]), value("first", whole), value("second", whole)],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    inputs = {"x": np.ones(whole, np.float32), "w": np.ones(50, np.float32)}
    np.savez(path.with_suffix(".npz"), **inputs)
    return path


@pytest.mark.parametrize("sp", [1, 3])
def test_as_many_are_dropped_as_asked_for_and_the_backward_pass_has_the_forward_mask(autosp_onnx, tmp_path, sp):
    model = dropout_step(tmp_path / "step.onnx")
    out = tmp_path / "out"
    assert autosp_onnx("shard", model, "--seq", "x:1", "--sp", sp, "-o", out).returncode == 0
    results = tmp_path / "results.npz"
    assert autosp_onnx("run", out, "--feed", model.with_suffix(".npz"), "--output", results).returncode == 0
    got = dict(np.load(results))
    for mask in (got["first"], got["second"]):
        assert abs(mask.mean() - 0.75) < 6 * (0.75 * 0.25 / mask.size) ** 0.5
    both = got["first"] * got["second"]
    assert (
        abs(both.mean() - 0.75**2) < 6 * (0.5625 * 0.4375 / both.size) ** 0.5
    )  # one operator tells nothing of another
    np.testing.assert_allclose(got["loss"], both.sum() / 0.75**2, rtol=1e-5)
    np.testing.assert_allclose(got["w_grad"], both.sum(axis=(0, 1)) / 0.75**2, rtol=1e-5)
    assert autosp_onnx("validate", model, out).returncode == 0


def mlp_step(path):
    """loss = sum(c * (dropout(x w1) w2)) and the gradients of w1 and w2, by hand; the inner width is what is tiled."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Dropout", ["h", "ratio", "training"], ["d", "mask"], name="drop"),
        helper.make_node("MatMul", ["d", "w2"], ["y"]),
        helper.make_node("Mul", ["y", "c"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted"], ["loss"], keepdims=0),
        helper.make_node("Transpose", ["w2"], ["w2t"], perm=[1, 0]),
        helper.make_node("MatMul", ["c", "w2t"], ["dd"]),
        helper.make_node("Div", ["dd", "share"], ["scaled"]),
        helper.make_node("Where", ["mask", "scaled", "zero"], ["dh"]),
        helper.make_node("Reshape", ["x", "rows_in"], ["x_rows"]),
        helper.make_node("Reshape", ["dh", "rows_inner"], ["dh_rows"]),
        helper.make_node("Transpose", ["x_rows"], ["x_columns"], perm=[1, 0]),
        helper.make_node("MatMul", ["x_columns", "dh_rows"], ["w1_grad"]),
        helper.make_node("Reshape", ["d", "rows_inner"], ["d_rows"]),
        helper.make_node("Reshape", ["c", "rows_in"], ["c_rows"]),
        helper.make_node("Transpose", ["d_rows"], ["d_columns"], perm=[1, 0]),
        helper.make_node("MatMul", ["d_columns", "c_rows"], ["w2_grad"]),
    ]
    tensors = [
        helper.make_tensor("ratio", TensorProto.FLOAT, [], [0.1]),
        helper.make_tensor("share", TensorProto.FLOAT, [], [0.9]),
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("training", TensorProto.BOOL, [], [True]),
        helper.make_tensor("rows_in", TensorProto.INT64, [2], [74, 6]),
        helper.make_tensor("rows_inner", TensorProto.INT64, [2], [74, 300]),
    ]

    def value(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    inputs = [value("x", 2, 37, 6), value("c", 2, 37, 6), value("w1", 6, 300), value("w2", 300, 6)]
    outputs = [value("loss"), value("w1_grad", 6, 300), value("w2_grad", 300, 6)]
    graph = helper.make_graph(nodes, "mlp", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize("sp", [1, 2, 3])
def test_tiles_draw_their_rows(autosp_onnx, tmp_path, sp):
    model = mlp_step(tmp_path / "mlp.onnx")
    out = tmp_path / "out"
    options = ["--seq", "x:1", "--seq", "c:1", "--sp", sp, "--tile", 5, "-o", out]
    result = autosp_onnx("shard", model, *options)
    assert result.returncode == 0, result.stderr
    for rank in range(sp):
        boxes = [attributes(node) for node in draws_of(out / f"rank_{rank}.onnx")]
        assert len(boxes) > 1
        assert all(box["extent"][1] <= 5 for box in boxes)
    result = autosp_onnx("validate", model, out, "--step", 9)
    assert result.returncode == 0, result.stdout


def test_a_seed_of_the_operators_own_decides_alone(autosp_onnx, tmp_path):
    model = dropout_step(tmp_path / "step.onnx", seeds=(5, 5))
    masks = []
    for seed in (0, 1):
        out = tmp_path / f"out{seed}"
        assert autosp_onnx("shard", model, "--seq", "x:1", "--sp", 2, "--seed", seed, "-o", out).returncode == 0
        results = tmp_path / "results.npz"
        assert autosp_onnx("run", out, "--feed", model.with_suffix(".npz"), "--output", results).returncode == 0
        masks += [np.load(results)["first"], np.load(results)["second"]]
    for mask in masks[1:]:
        np.testing.assert_array_equal(mask, masks[0])


def test_a_step_for_a_model_that_draws_nothing_is_refused(autosp_onnx, tmp_path):
    out = tmp_path / "out"
    assert autosp_onnx("shard", GRAPHS / "nano_static.onnx", "--sp", 2, "-o", out).returncode == 0
    result = autosp_onnx("run", out, "--feed", GRAPHS / "nano.npz", "--step", 3)
    assert result.returncode == 2
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["error", "note", "help"]
    assert "random" not in json.loads((out / "manifest.json").read_text())


@pytest.mark.parametrize("opset", [15, 22])
def test_bernoulli_draws_one_as_often_as_it_says(autosp_onnx, tmp_path, opset):
    """ONNX's function body of the operator, which runtimes inline, has it the other way round."""
    nodes = [
        helper.make_node("Expand", ["p", "shape"], ["probability"]),
        helper.make_node("Bernoulli", ["probability"], ["kept"], name="bernoulli"),
        helper.make_node("Mul", ["x", "w"], ["scaled"]),
        helper.make_node("Mul", ["scaled", "kept"], ["y"]),
        helper.make_node("ReduceSum", ["y"], ["loss"], keepdims=0),
        helper.make_node("Mul", ["x", "kept"], ["gradient"]),
        helper.make_node("ReduceSum", ["gradient", "axes"], ["w_grad"], keepdims=0),
    ]
    constants = {"p": np.float32(0.9), "shape": np.array([2, 50, 40]), "axes": np.array([0, 1])}
    inputs = [helper.make_tensor_value_info("x", 1, [2, 50, 40]), helper.make_tensor_value_info("w", 1, [40])]
    outputs = [helper.make_tensor_value_info("loss", 1, []), helper.make_tensor_value_info("w_grad", 1, [40])]
    graph = helper.make_graph(
        nodes, "bernoulli", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in constants.items()]
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)
    np.savez(tmp_path / "feed.npz", x=np.ones((2, 50, 40), np.float32), w=np.ones(40, np.float32))
    assert autosp_onnx("shard", path, "--seq", "x:1", "--sp", 2, "-o", tmp_path / "out").returncode == 0
    result = autosp_onnx("run", tmp_path / "out", "--feed", tmp_path / "feed.npz", "--output", tmp_path / "results.npz")
    assert result.returncode == 0, result.stderr
    share = np.load(tmp_path / "results.npz")["loss"] / 4000
    assert abs(share - 0.9) < 6 * (0.9 * 0.1 / 4000) ** 0.5
