"""What `validate` counts as equal beyond its tolerance: rounding, and nothing else."""

import json

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
