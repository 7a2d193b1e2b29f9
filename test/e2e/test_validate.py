"""What `validate` counts as equal beyond its tolerance: rounding, and nothing else."""

import json

import onnx
import pytest
from onnx import TensorProto, helper
from training_graph import GRAPHS


def test_gradients_that_are_zero_but_for_rounding_are_equal(autosp_onnx, tmp_path):
    bert = GRAPHS / "bert.onnx"
    out = tmp_path / "out"
    assert autosp_onnx("shard", bert, "--dim", "seq=48", "--sp", 2, "-o", out).returncode == 0
    # So strict that every float32 gradient differs.
    result = autosp_onnx("validate", bert, out, "--tolerance", 1e-7, "--json")
    assert result.returncode == 1
    gradients = [output for output in json.loads(result.stdout)["outputs"] if output["role"] == "gradient"]
    key_biases = [output for output in gradients if output["name"].endswith("self.key.bias.grad")]
    assert len(key_biases) == 2
    for output in key_biases:  # a key's bias moves all scores of a query alike, which changes no weight
        assert output["relative_error"] > output["tolerance"]
        assert output["rounding"]
        assert output["equal"]
    others = [output for output in gradients if output not in key_biases]
    assert not any(output["rounding"] for output in others)
    assert not all(output["equal"] for output in others)


@pytest.fixture(scope="module", params=[2, 3, 4])
def sharded_bfloat16(request, autosp_onnx, tmp_path_factory):
    model, out = GRAPHS / "bfloat16" / "llama.onnx", tmp_path_factory.mktemp("bfloat16") / "out"
    result = autosp_onnx("shard", model, "--dim", "seq=40", "--sp", request.param, "-o", out)
    assert result.returncode == 0, result.stderr
    return model, out


def test_tolerances_follow_what_an_output_is_computed_with(autosp_onnx, sharded_bfloat16):
    """The loss is float32, of bfloat16 activations; the inputs are float32 arrays, which are rounded."""
    result = autosp_onnx("validate", *sharded_bfloat16, "--feed", GRAPHS / "llama.npz", "--json")
    assert result.returncode == 0, result.stderr
    outputs = json.loads(result.stdout)["outputs"]
    assert {output["tolerance"] for output in outputs if output["role"] == "loss"} == {5e-3}
    assert {output["tolerance"] for output in outputs if output["role"] == "gradient"} == {5e-2}


def test_the_whole_models_rounding_excuses_a_few_tolerances_only(autosp_onnx, sharded_bfloat16):
    result = autosp_onnx("validate", *sharded_bfloat16, "--feed", GRAPHS / "llama.npz", "--tolerance", 1e-4, "--json")
    assert result.returncode == 1
    outputs = [output for output in json.loads(result.stdout)["outputs"] if output["role"] == "gradient"]
    assert not any(output["equal"] for output in outputs)


def masked_language_model():
    """Tokens that are labels too, where they are masked, and are compared with -1 in the gradient of their embedding.

    The loss is the number of tokens that are -1, and 1000 for each of the other labels that does not count.
    """
    int64, scalar = TensorProto.INT64, []
    constants = {"masked": 5, "none": -1, "ignored": -100, "zero": 0}
    tensors = [helper.make_tensor(name, int64, scalar, [value]) for name, value in constants.items()]
    tensors.append(helper.make_tensor("thousand", TensorProto.FLOAT, scalar, [1000.0]))

    def node(operator, inputs, output, **attributes):
        return helper.make_node(operator, inputs, [output], **attributes)

    nodes = [
        node("Cast", ["chosen"], "covered", to=TensorProto.BOOL),
        node("Where", ["covered", "masked", "tokens"], "seen"),
        node("Gather", ["w", "seen"], "embedded"),
        node("Where", ["covered", "tokens", "ignored"], "asked"),
        node("Equal", ["asked", "ignored"], "unasked"),
        node("Not", ["unasked"], "is_asked"),
        node("Where", ["is_asked", "asked", "zero"], "asked_index"),
        node("Gather", ["w", "asked_index"], "asked_row"),
        node("Equal", ["seen", "none"], "dropped"),
        node("Cast", ["dropped"], "dropped_number", to=TensorProto.FLOAT),
        node("ReduceSum", ["dropped_number"], "dropped_sum", keepdims=0),
        node("Equal", ["labels", "ignored"], "uncounted"),
        node("Not", ["uncounted"], "counted"),
        node("Where", ["counted", "labels", "zero"], "index"),
        node("Gather", ["w", "index"], "row"),
        node("Cast", ["uncounted"], "uncounted_number", to=TensorProto.FLOAT),
        node("Mul", ["uncounted_number", "thousand"], "uncounted_thousands"),
        node("ReduceSum", ["uncounted_thousands"], "uncounted_sum", keepdims=0),
        node("Add", ["dropped_sum", "uncounted_sum"], "loss"),
        node("Add", ["embedded", "row"], "both"),
        node("Add", ["both", "asked_row"], "all"),
        node("ReduceSum", ["all", "axes"], "sum", keepdims=0),
        node("Mul", ["w", "sum"], "w.grad"),
    ]
    tensors.append(helper.make_tensor("axes", int64, [2], [0, 1]))
    inputs = [helper.make_tensor_value_info(name, int64, [2, 24]) for name in ("tokens", "chosen", "labels")]
    inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [6, 4]))
    outputs = [helper.make_tensor_value_info("loss", TensorProto.FLOAT, scalar)]
    outputs.append(helper.make_tensor_value_info("w.grad", TensorProto.FLOAT, [6, 4]))
    graph = helper.make_graph(nodes, "masked", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_labels_that_do_not_count_are_made_where_nothing_looks_them_up(autosp_onnx, tmp_path):
    model, out = tmp_path / "masked.onnx", tmp_path / "out"
    onnx.save(masked_language_model(), model)
    assert autosp_onnx("shard", model, "--sp", 2, "-o", out).returncode == 0
    result = autosp_onnx("validate", model, out)
    assert result.returncode == 0, result.stdout + result.stderr
    loss = float(result.stdout.split()[1])
    assert loss >= 1000
    assert loss % 1000 == 0
