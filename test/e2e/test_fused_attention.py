"""A layer of fused attention, as files: its function bodies run in stock ONNX Runtime, sharded or not.

The expected numbers come from a plain forward pass in float64 and its finite differences.
"""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from training_graph import run_in_onnxruntime

BATCH, SEQUENCE, HIDDEN, HEADS, KV_HEADS, WIDTH, WINDOW = 2, 12, 10, 4, 2, 3, 5
SCALE, SOFTCAP = 0.5, 3.0
MASK = np.arange(SEQUENCE)


def forward(arrays):
    """The loss, in float64."""
    a = {name: array.astype(np.float64) for name, array in arrays.items()}

    def heads(weight):
        return (a["x"] @ weight).reshape(BATCH, SEQUENCE, -1, WIDTH).transpose(0, 2, 1, 3)

    q, k, v = heads(a["wq"]), heads(a["wk"]), heads(a["wv"])
    k, v = (np.repeat(array, HEADS // KV_HEADS, axis=1) for array in (k, v))
    scores = SOFTCAP * np.tanh(SCALE * q @ k.transpose(0, 1, 3, 2) / SOFTCAP) + a["bias"]
    seen = (MASK[None, :] <= MASK[:, None]) & (MASK[None, :] > MASK[:, None] - WINDOW)
    seen = seen[None, None] & (arrays["valid"] != 0)[:, None, None, :]
    weights = np.where(seen, np.exp(scores), 0)
    total = weights.sum(-1, keepdims=True) + np.exp(a["sink"])[None, :, None, None]
    output = (weights / total) @ v
    return (output.transpose(0, 2, 1, 3).reshape(BATCH, SEQUENCE, -1) * a["t"]).sum()


SHAPES = {
    "x": [BATCH, SEQUENCE, HIDDEN],
    "t": [BATCH, SEQUENCE, HEADS * WIDTH],
    "wq": [HIDDEN, HEADS * WIDTH],
    "wk": [HIDDEN, KV_HEADS * WIDTH],
    "wv": [HIDDEN, KV_HEADS * WIDTH],
    "bias": [1, HEADS, 1, SEQUENCE],
    "sink": [HEADS],
}
PARAMETERS = ["wq", "wk", "wv", "bias", "sink"]


def layer():
    nodes, initializers = [], []

    def constant(name, values):
        initializers.append(helper.make_tensor(name, TensorProto.INT64, np.shape(values), np.ravel(values)))
        return name

    def node(op, inputs, outputs, **attributes):
        nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], **attributes))
        return outputs[0]

    def split(x, name, heads):
        shape = constant(f"{name}_shape", [BATCH, SEQUENCE, heads, WIDTH])
        return node("Transpose", [node("Reshape", [x, shape], [f"{name}_r"])], [name], perm=[0, 2, 1, 3])

    def join(x, name, heads):
        shape = constant(f"{name}_shape", [BATCH * SEQUENCE, heads * WIDTH])
        return node("Reshape", [node("Transpose", [x], [f"{name}_t"], perm=[0, 2, 1, 3]), shape], [name])

    qkv = [
        split(node("MatMul", ["x", w], [f"{w}_x"]), f"{w}_heads", heads)
        for w, heads in (("wq", HEADS), ("wk", KV_HEADS), ("wv", KV_HEADS))
    ]
    begin = constant("begin", np.maximum(0, MASK - WINDOW + 1)[None])
    end = constant("end", MASK[None] + 1)
    masks = ["bias", begin, end, node("Cast", ["valid"], ["key_mask"], to=TensorProto.BOOL), "", "", "sink"]
    attributes = {"domain": "autosp", "scale": SCALE, "softcap": SOFTCAP}
    node("Attention", qkv + masks, ["o", "m", "l"], **attributes)
    flat = constant("flat", [BATCH, SEQUENCE, HEADS * WIDTH])
    product = node("Mul", [node("Reshape", [join("o", "o_rows", HEADS), flat], ["o_flat"]), "t"], ["product"])
    node("ReduceSum", [product], ["loss"], keepdims=0)

    results = ["dq", "dk", "dv", "bias_grad", "sink_grad"]
    operands = [split("t", "do", HEADS), *qkv, "o", "m", "l", *masks]
    node("AttentionGrad", operands, results, **attributes)
    rows = node("Reshape", ["x", constant("rows", [BATCH * SEQUENCE, HIDDEN])], ["x_rows"])
    columns = node("Transpose", [rows], ["x_columns"], perm=[1, 0])
    for weight, gradient, heads in (("wq", "dq", HEADS), ("wk", "dk", KV_HEADS), ("wv", "dv", KV_HEADS)):
        node("MatMul", [columns, join(gradient, f"{gradient}_rows", heads)], [f"{weight}_grad"])
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in SHAPES.items()]
    inputs.append(helper.make_tensor_value_info("valid", TensorProto.INT64, [BATCH, SEQUENCE]))
    outputs = [helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])]
    for name in PARAMETERS:
        outputs.append(helper.make_tensor_value_info(f"{name}_grad", TensorProto.FLOAT, SHAPES[name]))
    graph = helper.make_graph(nodes, "layer", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("autosp", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """The model's path, its inputs, and a check of a step's results."""
    path = tmp_path_factory.mktemp("fused") / "layer.onnx"
    onnx.save(layer(), path)
    draw = np.random.default_rng(5)
    arrays = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    arrays["valid"] = (draw.random((BATCH, SEQUENCE)) < 0.8).astype(np.int64)

    def check(results):
        np.testing.assert_allclose(results["loss"], forward(arrays), rtol=1e-5)
        for name in PARAMETERS:
            direction = draw.standard_normal(SHAPES[name])
            wide = {key: array.astype(np.float64) for key, array in arrays.items()}
            up = forward(wide | {name: wide[name] + 1e-5 * direction})
            down = forward(wide | {name: wide[name] - 1e-5 * direction})
            found = (results[f"{name}_grad"].astype(np.float64) * direction).sum()
            np.testing.assert_allclose(found, (up - down) / 2e-5, rtol=1e-4, atol=1e-4, err_msg=name)

    return path, arrays, check


TAGS = [part for name in ("x", "t", "valid") for part in ("--seq", f"{name}:1", "--batch", f"{name}:0")]


def test_function_bodies_run_where_there_are_no_kernels(autosp_onnx, case, tmp_path):
    path, arrays, check = case
    shard = autosp_onnx("shard", path, "--sp", 1, *TAGS, "-o", tmp_path / "out")
    assert shard.returncode == 0, shard.stderr
    model = onnx.load(tmp_path / "out" / "rank_0.onnx")
    assert {function.name for function in model.functions} == {"Attention", "AttentionGrad", "RecomputeBarrier"}
    for node in model.graph.node:  # a group of one has nobody to talk to, and no order to keep
        if any(attribute.name == "group" for attribute in node.attribute):
            node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output[:1], name=node.name))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "alone.onnx")
    check(run_in_onnxruntime(tmp_path / "alone.onnx", arrays))


@pytest.mark.parametrize("sp, dp", [(2, 1), (4, 1), (2, 2), (4, 2)])
def test_the_emulated_graph_is_standard_operators_alone(autosp_onnx, case, tmp_path, sp, dp):
    path, arrays, check = case
    shard = autosp_onnx("shard", path, "--sp", sp, "--dp", dp, *TAGS, "--dialect", "standard", "-o", tmp_path / "out")
    assert shard.returncode == 0, shard.stderr
    check(run_in_onnxruntime(tmp_path / "out" / "emulated.onnx", arrays))


def test_ranks_read_back_as_fused_operators(autosp_onnx, case, tmp_path):
    path, arrays, check = case
    np.savez(tmp_path / "feeds.npz", **arrays)
    shard = autosp_onnx("shard", path, "--sp", 4, *TAGS, "-o", tmp_path / "out")
    assert shard.returncode == 0, shard.stderr
    run = autosp_onnx("run", tmp_path / "out", "--feed", tmp_path / "feeds.npz", "--output", tmp_path / "results.npz")
    assert run.returncode == 0, run.stderr
    with np.load(tmp_path / "results.npz") as results:
        check(results)
