"""What `validate` counts as equal beyond its tolerance: rounding, and nothing else."""

import json

import pytest
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
