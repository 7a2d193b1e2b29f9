"""Training curves of sharded models against those of the whole ones: `validate --steps`, and the matrix of bench/correctness.py."""

import json
import pathlib
import subprocess
import sys

import onnx
import pytest
from training_graph import GRAPHS, TrainingGraph

MATRIX = pathlib.Path(__file__).resolve().parents[2] / "bench" / "correctness.py"

CASES = {
    # Tied parameters, and ones that are used twice; biases whose gradients are gathered, not summed.
    "tied": ("adversarial/tied_embeddings.onnx", ["--sp", 3], 1),
    "tied_dp": ("adversarial/tied_embeddings.onnx", ["--sp", 2, "--dp", 2], 3),
    "bert": ("bert.onnx", ["--sp", 4], 2),
    "bert_dp": ("bert.onnx", ["--sp", 3, "--dp", 3], 3),
    "odd_ranks": ("gpt2.onnx", ["--sp", 7], 3),
    "query_positions": ("llama.onnx", ["--sp-mesh", "u=2,r=3"], 2),
    "ring": ("llama.onnx", ["--sp-mesh", "u=2,r=3", "--ring", "on"], 2),
    "recompute": ("nano.onnx", ["--sp", 4, "--recompute", "full", "--tile", 3], 3),
    "tiles": ("llama.onnx", ["--sp", 2, "--recompute", "sac", "--tile", 4], 2),
    "weighted": ("adversarial/weighted_cross_entropy.onnx", ["--sp", 3], 2),
    "sums_of_means": ("adversarial/z_loss.onnx", ["--sp", 2, "--accumulate", 2], 1),
    "micro_batches": ("gpt2.onnx", ["--sp", 3, "--accumulate", 3], 3),
    # A key's bias, whose gradient is rounding.
    "rounding": ("adversarial/convolution_by_taps.onnx", ["--sp", 4], 1),
    "unfused": ("llama.onnx", ["--sp", 4, "--attention", "unfused"], 1),
}


def shard(autosp_onnx, file, out, options):
    graph = TrainingGraph(GRAPHS / file)
    dims = [word for name in graph.symbolic_axes for word in ("--dim", f"{name}=23")]
    result = autosp_onnx("shard", graph.path, *dims, "-o", out, *options)
    assert result.returncode == 0, result.stderr
    return graph


@pytest.mark.parametrize("case", CASES)
def test_curves_are_those_of_the_whole_model(autosp_onnx, tmp_path, case):
    file, options, zero = CASES[case]
    out = tmp_path / "out"
    graph = shard(autosp_onnx, file, out, [*options, "--optimizer", "sgd", "--zero", zero])
    result = autosp_onnx("validate", graph.path, out, "--steps", 4, "--lr", 0.1, "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    losses = [point["whole"] for point in report["losses"]]
    assert len(losses) == 4 and len(set(losses)) == 4
    gradients = [output for output in report["outputs"] if output["role"] == "gradient"]
    assert len(gradients) == len(report["parameters"]) > 5
    assert all(parameter["relative_error"] <= 1e-4 for parameter in report["parameters"])
    # One step's comparison names the gradients too, however they leave the rank graphs.
    assert autosp_onnx("validate", graph.path, out).returncode == 0


def test_curves_are_compared_as_exactly_as_the_model_computes(autosp_onnx, tmp_path):
    graph, out = GRAPHS / "bfloat16" / "llama.onnx", tmp_path / "out"
    words = ["--dim", "seq=24", "--sp", 2, "--dp", 2, "--optimizer", "sgd", "--zero", 1, "-o", out]
    dims = [word for name in symbols(graph) - {"seq"} for word in ("--dim", f"{name}=4")]
    assert autosp_onnx("shard", graph, *dims, *words).returncode == 0
    result = autosp_onnx("validate", graph, out, "--steps", 3, "--lr", 0.05, "--json")
    assert result.returncode == 0, result.stdout
    assert {output["tolerance"] for output in json.loads(result.stdout)["outputs"]} == {5e-3, 5e-2}


def symbols(path):
    inputs = onnx.load(path).graph.input
    return {dim.dim_param for value in inputs for dim in value.type.tensor_type.shape.dim} - {""}


def test_a_wrong_update_is_found(autosp_onnx, tmp_path):
    out = tmp_path / "out"
    graph = shard(autosp_onnx, "llama.onnx", out, ["--sp", 2, "--optimizer", "sgd"])
    path = out / "optimizer_rank_0.onnx"
    model = onnx.load(path)
    for other in (0, 1):  # both alike, so that replicas agree
        path = out / f"optimizer_rank_{other}.onnx"
        model = onnx.load(path)
        [node] = [node for node in model.graph.node if node.input[0] == "model.norm.weight.grad"]
        assert node.op_type == "Mul"
        node.input[1] = node.input[0]
        onnx.save(model, path)
    result = autosp_onnx("validate", graph.path, out, "--steps", 3, "--lr", 0.1)
    assert result.returncode == 1
    assert "DIFFERENT" in result.stdout and "model.norm.weight " in result.stdout


def test_what_rounding_moves_is_not_excused_from_all(autosp_onnx, tmp_path):
    """Under Adam a key's bias goes anywhere, but no further than other parameters."""
    out = tmp_path / "out"
    graph = shard(autosp_onnx, "adversarial/convolution_by_taps.onnx", out, ["--sp", 2, "--optimizer", "adam"])
    assert autosp_onnx("validate", graph.path, out, "--steps", 2).returncode == 0
    for rank in range(2):
        path = out / f"optimizer_rank_{rank}.onnx"
        model = onnx.load(path)
        [maker] = [node for node in model.graph.node if "key.bias.new" in node.output]
        maker.output[list(maker.output).index("key.bias.new")] = "right"
        model.graph.initializer.append(onnx.helper.make_tensor("one", onnx.TensorProto.FLOAT, [], [1.0]))
        model.graph.node.append(onnx.helper.make_node("Add", ["right", "one"], ["key.bias.new"]))
        onnx.save(model, path)
    result = autosp_onnx("validate", graph.path, out, "--steps", 2, "--json")
    assert result.returncode == 1
    assert [entry["name"] for entry in json.loads(result.stdout)["parameters"] if not entry["equal"]] == ["key.bias"]


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_rounding_that_training_amplifies_is_no_difference(autosp_onnx, tmp_path, model):
    """Adam moves entries whose gradients are rounding, and large steps make more of it."""
    out = tmp_path / "out"
    graph = shard(autosp_onnx, f"{model}.onnx", out, ["--sp", 4, "--optimizer", "adam"])
    words = ["validate", graph.path, out, "--steps", 6, "--lr", 0.01, "--json"]
    result = autosp_onnx(*words)
    assert result.returncode == 0, result.stdout
    tensors = [tensor for key in ("outputs", "parameters") for tensor in json.loads(result.stdout)[key]]
    beyond = [tensor for tensor in tensors if tensor["relative_error"] > tensor["tolerance"]]
    assert beyond and all(tensor["rounding"] or tensor["as_exact"] for tensor in beyond)

    for rank in range(4):  # a parameter that stays where it was
        path = out / f"optimizer_rank_{rank}.onnx"
        update = onnx.load(path)
        [name] = [
            value.name for value in update.graph.input if value.name in ("transformer.ln_f.weight", "model.norm.weight")
        ]
        [maker] = [node for node in update.graph.node if f"{name}.new" in node.output]
        maker.output[list(maker.output).index(f"{name}.new")] = "right"
        update.graph.node.append(onnx.helper.make_node("Identity", [name], [f"{name}.new"]))
        onnx.save(update, path)
    result = autosp_onnx(*words)
    assert result.returncode == 1
    assert name in [entry["name"] for entry in json.loads(result.stdout)["parameters"] if not entry["equal"]]


def test_rows_without_a_gradient_are_not_excused(autosp_onnx, tmp_path):
    """Adam moves an embedding's row by what it remembers, also where the last step's gradient is zero."""
    out = tmp_path / "out"
    graph = shard(autosp_onnx, "llama.onnx", out, ["--sp", 2, "--optimizer", "adam"])
    name = "model.embed_tokens.weight"
    for rank in range(2):  # such rows stay where they are
        path = out / f"optimizer_rank_{rank}.onnx"
        update = onnx.load(path)
        [maker] = [node for node in update.graph.node if f"{name}.new" in node.output]
        maker.output[list(maker.output).index(f"{name}.new")] = "right"
        update.graph.initializer.append(onnx.helper.make_tensor("none", onnx.TensorProto.FLOAT, [], [0.0]))
        update.graph.node.append(onnx.helper.make_node("Equal", [f"{name}.grad", "none"], ["still"]))
        update.graph.node.append(onnx.helper.make_node("Where", ["still", name, "right"], [f"{name}.new"]))
        onnx.save(update, path)
    result = autosp_onnx("validate", graph.path, out, "--steps", 3, "--json")
    assert result.returncode == 1, result.stderr
    assert name in [entry["name"] for entry in json.loads(result.stdout)["parameters"] if not entry["equal"]]


def test_curves_that_leave_the_numbers_prove_nothing(autosp_onnx, tmp_path):
    """Both sides alike, but infinite: also when that is so after the first step only."""
    out = tmp_path / "out"
    graph = shard(autosp_onnx, "nano.onnx", out, ["--sp", 2, "--optimizer", "sgd"])
    result = autosp_onnx("validate", graph.path, out, "--steps", 3, "--lr", 1e30)
    assert result.returncode == 1
    assert "NOT FINITE: 3 steps" in result.stdout


def test_plan_tells_what_training_keeps(autosp_onnx):
    graph = GRAPHS / "llama.onnx"
    whole = sum(
        array.nbytes for name, array in TrainingGraph(graph).committed_inputs.items() if array.dtype == "float32"
    )
    peaks = []
    for zero in range(4):
        options = ["--dim", "seq=24", "--sp", 4, "--optimizer", "adamw", "--zero", zero, "--bucket", "32KiB", "--json"]
        result = autosp_onnx("plan", graph, *options)
        assert result.returncode == 0, result.stderr
        memory = json.loads(result.stdout)["memory_bytes"]
        share = 4 if zero >= 1 else 1
        assert abs(memory["optimizer state"] - 2 * whole / share) < 200
        assert abs(memory["parameters"] - whole / (4 if zero == 3 else 1)) < 200
        peaks.append(json.loads(result.stdout)["peak_bytes"])
    assert peaks[0] > peaks[1] > peaks[2] > peaks[3]


def matrix_rows(binary, *options):
    command = [sys.executable, MATRIX, "--autosp-onnx", binary, "--json", *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_one_case_of_the_matrix_is_deterministic(request):
    binary = pathlib.Path(request.config.getoption("--autosp-onnx")).resolve()
    options = ["--sp-size", 2, "--seq-length", 64, "--steps", 1, "--zero", 2, "--deterministic"]
    [row] = matrix_rows(binary, *options)
    assert row["equal"] and row["deterministic"]


def test_the_matrix_holds(request):
    binary = pathlib.Path(request.config.getoption("--autosp-onnx")).resolve()
    rows = matrix_rows(binary)
    assert len(rows) == 20
    for row in rows:
        assert row["equal"]
        assert row["last_loss"] < row["first_loss"]
    for zero, name in ((3, "parameter_bytes"), (2, "gradient_bytes")):
        sizes = {(row["sp"], row["dp"]): row[name] * row["sp"] * row["dp"] for row in rows if row["zero"] == zero}
        assert max(sizes.values()) - min(sizes.values()) <= 21 * 4 * 8
