"""Attention that ONNX Runtime's optimizer fused: read, recognised, split, and equal to what that runtime computes."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

B, S, H, D = 2, 24, 4, 8
RUNTIME = "com.microsoft"


class Layer:
    """tokens -> projections -> attention -> output projection -> loss = sum of squares, and one exact gradient."""

    def __init__(self, op, *, kv_heads=H, **attributes):
        self.inputs = [helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, [B, S, H * D])]
        self.feeds = {"inputs_embeds": self.random(B, S, H * D)}
        self.nodes = []
        self.op = op
        self.attributes = {"num_heads": H, **attributes}
        self.kv_heads = kv_heads
        self.constants = []

    @staticmethod
    def random(*shape):
        generator = np.random.default_rng(sum(shape))
        return generator.standard_normal(shape).astype(np.float32) / np.sqrt(shape[-1]).astype(np.float32)

    def parameter(self, name, *shape):
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        self.feeds[name] = self.random(*shape)
        return name

    def projected(self):
        for name, heads in (("q", H), ("k", self.kv_heads), ("v", self.kv_heads)):
            self.node("MatMul", ["inputs_embeds", self.parameter("w" + name, H * D, heads * D)], name)
        return ["q", "k", "v"]

    def data(self, name, array):
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        self.inputs.append(helper.make_tensor_value_info(name, kind, array.shape))
        self.feeds[name] = array
        return name

    def constant(self, name, array):
        self.constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def node(self, op, inputs, output, domain="", **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], domain=domain, **attributes))
        return output

    def save(self, path, operands):
        self.node(self.op, operands, "attended", RUNTIME, **self.attributes)
        self.parameter("wo", H * D, H * D)
        self.node("MatMul", ["attended", "wo"], "y")
        self.node("Mul", ["y", "y"], "squares")
        self.node("ReduceSum", ["squares"], "loss", keepdims=0)
        # d loss / d wo = 2 attended^T y, over all tokens
        self.node("Reshape", ["attended", self.constant("rows", np.array([B * S, H * D]))], "x_rows")
        self.node("Reshape", ["y", "rows"], "y_rows")
        self.node("Transpose", ["x_rows"], "x_columns", perm=[1, 0])
        self.node("MatMul", ["x_columns", "y_rows"], "half")
        self.node("Mul", ["half", self.constant("two", np.float32(2))], "wo.grad")
        outputs = [
            helper.make_tensor_value_info("loss", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("wo.grad", TensorProto.FLOAT, [H * D, H * D]),
        ]
        graph = helper.make_graph(self.nodes, "layer", self.inputs, outputs, self.constants)
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid(RUNTIME, 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def padding():
    mask = np.ones((B, S), np.int32)
    mask[0, :3] = 0  # on the left: the first queries see no key but these
    mask[1, 17:] = -1
    return mask


def multi_head_plain(layer):
    return layer.projected()


def multi_head_with_mask_and_biases(layer):
    operands = layer.projected()
    operands.append(layer.parameter("projection_bias", 3 * H * D))
    operands.append(layer.data("attention_mask", padding()))
    operands.append(layer.constant("scores_bias", Layer.random(1, H, S, S)))
    return operands


def self_attention(layer):
    operands = ["inputs_embeds", layer.parameter("wqkv", H * D, 3 * H * D), layer.parameter("bqkv", 3 * H * D)]
    operands.append(layer.data("attention_mask", padding()))
    return operands


def grouped(layer):
    operands = [*layer.projected(), "", ""]
    operands.append(layer.constant("last_keys", np.full([B], S - 1, np.int32)))
    operands.append(layer.constant("length", np.int32(S)))
    return operands


CASES = {
    "plain": (multi_head_plain, "MultiHeadAttention", {}, "none"),
    "causal": (multi_head_plain, "MultiHeadAttention", {"unidirectional": 1, "scale": 0.2}, "causal"),
    "mask and biases": (multi_head_with_mask_and_biases, "MultiHeadAttention", {}, "bias vector"),
    "self": (self_attention, "Attention", {}, "bias vector"),
    "causal self": (self_attention, "Attention", {"unidirectional": 1}, "causal"),
    "swallowing": (self_attention, "Attention", {"unidirectional": 1, "mask_filter_value": -3.4e38}, None),
    "grouped": (grouped, "GroupQueryAttention", {"kv_heads": 2, "kv_num_heads": 2}, "causal"),
    "window": (grouped, "GroupQueryAttention", {"kv_heads": 2, "kv_num_heads": 2, "local_window_size": 5}, "window 5"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_step_is_the_runtimes(autosp_onnx, tmp_path, case):
    operands, op, attributes, mask = CASES[case]
    attributes = dict(attributes)
    layer = Layer(op, kv_heads=attributes.pop("kv_heads", H), **attributes)
    model = tmp_path / "model.onnx"
    layer.save(model, operands(layer))
    expected = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, layer.feeds)

    report = json.loads(autosp_onnx("inspect", model, "--json").stdout)
    assert [region["fused"] for region in report["attention"]] == [mask is not None]
    assert mask is None or mask in report["attention"][0]["mask"]
    np.savez(tmp_path / "inputs.npz", **layer.feeds)
    for sp in (1, 2, 3):
        out = tmp_path / f"out{sp}"
        shard = autosp_onnx("shard", model, "--sp", sp, "-o", out)
        assert shard.returncode == 0, shard.stderr
        run = autosp_onnx("run", out, "--feed", tmp_path / "inputs.npz", "--output", tmp_path / "results.npz")
        assert run.returncode == 0, run.stderr
        results = np.load(tmp_path / "results.npz")
        np.testing.assert_allclose(results["loss"], expected[0], rtol=1e-5)
        np.testing.assert_allclose(results["wo.grad"], expected[1], atol=1e-4 * np.abs(expected[1]).max())


@pytest.mark.parametrize(
    ("op", "operand", "message"),
    [("MultiHeadAttention", 6, "a cache"), ("GroupQueryAttention", 3, "a cache"), ("Attention", 4, "a cache")],
)
def test_caches_are_refused(autosp_onnx, tmp_path, op, operand, message):
    layer = Layer(op, kv_num_heads=H) if op == "GroupQueryAttention" else Layer(op)
    operands = self_attention(layer)[:3] if op == "Attention" else layer.projected()
    operands += [""] * (operand - len(operands))
    operands.append(layer.data("past", np.zeros((B, H, 4, D), np.float32)))
    layer.save(tmp_path / "model.onnx", operands)
    result = autosp_onnx("shard", tmp_path / "model.onnx", "--sp", 2, "-o", tmp_path / "out")
    assert result.returncode == 2
    assert message in result.stderr
