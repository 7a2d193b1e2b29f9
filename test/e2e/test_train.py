"""`train` against training in numpy over stock ONNX Runtime, and against itself: resumed, over other ranks, by stages."""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import time

import numpy as np
import onnx
import onnx.reference
import pytest
import training_reference as reference
from training_graph import GRAPHS, TrainingGraph

STEPS = 5
SIZES = {"seq": 22}
ACCUMULATE = {"accumulate": 3}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    graph = TrainingGraph(GRAPHS / "llama.onnx")
    data, parameters = reference.batches_of(graph, SIZES, count=4)
    folder = tmp_path_factory.mktemp("llama")
    np.savez(folder / "data.npz", **data)
    np.savez(folder / "parameters.npz", **parameters)
    return graph, data, parameters, folder


def shard(autosp_onnx, graph, out, *options, sizes=SIZES):
    dims = [f"{name}={size}" for name, size in sizes.items()]
    dims = [word for dim in dims for word in ("--dim", dim)]
    result = autosp_onnx("shard", graph.path, *dims, "-o", out, *options)
    assert result.returncode == 0, result.stderr


def train(autosp_onnx, out, data, *options, steps=STEPS):
    """The report as JSON, and the parameters after the last step."""
    trained = out.with_suffix(".npz")
    result = autosp_onnx("train", out, "--data", data, "--steps", steps, "--output", trained, "--json", *options)
    assert result.returncode == 0, result.stderr
    with np.load(trained) as archive:
        return json.loads(result.stdout), {name: archive[name] for name in archive.files}


def assert_close(actual, expected, start, tolerance=1e-4):
    """Parameters, relative to the largest entry of each, and what they have moved, relative to the largest move."""
    assert set(actual) == set(expected)
    largest = max(np.abs(expected[name] - start[name]).max() for name in start)
    for name, array in expected.items():
        error = np.abs(actual[name].astype(np.float64) - array).max()
        assert error <= tolerance * max(np.abs(array).max(), largest), name
        moved = np.abs(array.astype(np.float64) - start[name]).max()
        assert error <= 2e-2 * max(moved, 1e-3 * largest), name


OPTIMIZERS = {
    "sgd": (["--optimizer", "sgd"], 0.1, reference.sgd(0.1)),
    "momentum": (
        ["--optimizer", "sgd", "--momentum", 0.9, "--weight-decay", 0.01],
        0.05,
        reference.sgd(0.05, 0.9, 0.01),
    ),
    "adam": (["--optimizer", "adam", "--epsilon", 1e-6], 1e-3, reference.adam(1e-3, epsilon=1e-6)),
    "adamw": (
        ["--optimizer", "adamw", "--weight-decay", 0.1, "--epsilon", 1e-6, "--beta1", 0.8],
        1e-3,
        reference.adam(1e-3, beta1=0.8, decay=0.1, epsilon=1e-6, decoupled=True),
    ),
    "adamw_after": (
        ["--optimizer", "adamw_after", "--weight-decay", 0.1, "--epsilon", 1e-6],
        1e-3,
        reference.adam(1e-3, decay=0.1, epsilon=1e-6, decay_after=True),
    ),
    "adagrad": (["--optimizer", "adagrad", "--epsilon", 1e-2], 1e-2, reference.adagrad(1e-2, epsilon=1e-2)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("zero", [0, 2])
def test_optimizers_do_what_they_do_in_numpy(autosp_onnx, llama, tmp_path, name, zero):
    graph, data, parameters, folder = llama
    options, rate, update = OPTIMIZERS[name]
    out = tmp_path / "out"
    shard(autosp_onnx, graph, out, "--sp", 3, "--zero", zero, *options)
    report, trained = train(autosp_onnx, out, folder / "data.npz", "--init", folder / "parameters.npz", "--lr", rate)
    expected = reference.Reference(graph, parameters, update).run(data, STEPS)
    losses = [step["loss"] for step in report["steps"]]
    np.testing.assert_allclose(losses, expected.losses, rtol=1e-4)
    assert losses[0] != losses[-1]
    assert all(len(set(step["rank_losses"])) == 1 for step in report["steps"])
    assert_close(trained, expected.parameters, parameters)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_gradients_are_clipped_once_by_their_norm_over_all_ranks(autosp_onnx, llama, tmp_path, zero):
    graph, data, parameters, folder = llama
    out = tmp_path / "out"
    shard(autosp_onnx, graph, out, "--sp", 2, "--dp", 3, "--optimizer", "sgd", "--clip-norm", 0.5, "--zero", zero)
    report, trained = train(autosp_onnx, out, folder / "data.npz", "--init", folder / "parameters.npz", "--lr", 0.5)
    expected = reference.Reference(graph, parameters, reference.sgd(0.5), clip_norm=0.5).run(data, STEPS)
    assert min(expected.norms) > 0.5
    np.testing.assert_allclose([step["gradient_norm"] for step in report["steps"]], expected.norms, rtol=1e-4)
    np.testing.assert_allclose([step["loss"] for step in report["steps"]], expected.losses, rtol=1e-4)
    assert_close(trained, expected.parameters, parameters)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_micro_batches_weigh_as_many_tokens_as_they_have(autosp_onnx, llama, tmp_path, zero):
    graph, data, parameters, folder = llama
    out = tmp_path / "out"
    shard(autosp_onnx, graph, out, "--sp", 2, "--optimizer", "sgd", "--accumulate", 4, "--zero", zero)
    report, trained = train(
        autosp_onnx, out, folder / "data.npz", "--init", folder / "parameters.npz", "--lr", 0.5, steps=2
    )
    expected = reference.Reference(graph, parameters, reference.sgd(0.5), accumulate=4).run(data, 2)
    np.testing.assert_allclose([step["loss"] for step in report["steps"]], expected.losses, rtol=1e-5)
    assert_close(trained, expected.parameters, parameters)


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_a_micro_batch_without_labels_adds_nothing(autosp_onnx, llama, tmp_path, zero):
    graph, data, parameters, folder = llama
    labels = data["labels"].copy()
    labels[1] = -100
    data = {**data, "labels": labels}
    np.savez(tmp_path / "data.npz", **data)
    out = tmp_path / "out"
    shard(autosp_onnx, graph, out, "--sp", 2, "--optimizer", "sgd", "--accumulate", 4, "--zero", zero)
    report, trained = train(
        autosp_onnx, out, tmp_path / "data.npz", "--init", folder / "parameters.npz", "--lr", 0.5, steps=2
    )
    expected = reference.Reference(graph, parameters, reference.sgd(0.5), accumulate=4).run(data, 2)
    np.testing.assert_allclose([step["loss"] for step in report["steps"]], expected.losses, rtol=1e-5)
    assert_close(trained, expected.parameters, parameters)


@pytest.mark.parametrize("sp, dp", [(2, 1), (5, 1), (8, 1), (2, 3)])
def test_stages_agree_to_the_bit_and_hold_what_was_planned(autosp_onnx, llama, tmp_path, sp, dp):
    graph, data, parameters, folder = llama
    whole = sum(array.nbytes for array in parameters.values())
    results = []
    for zero in range(4):
        out = tmp_path / f"zero{zero}"
        shard(
            autosp_onnx,
            graph,
            out,
            "--sp",
            sp,
            "--dp",
            dp,
            "--optimizer",
            "adamw",
            "--zero",
            zero,
            "--bucket",
            "100KiB",
        )
        report, trained = train(autosp_onnx, out, folder / "data.npz", "--init", folder / "parameters.npz", steps=3)
        results.append(([step["loss"] for step in report["steps"]], trained))
        ranks = sp * dp
        for rank in report["ranks"]:
            assert rank["measured_bytes"] == rank["planned_bytes"]
            # A shard is even to one element of each of the buckets, of which there are no more than parameters.
            slack = 8 * len(parameters)
            state = 2 * whole / (ranks if zero >= 1 else 1)
            gradients = whole / (ranks if zero >= 2 else 1)
            held = whole / (ranks if zero == 3 else 1)
            assert abs(rank["measured_bytes"]["optimizer_state"] - state) <= slack
            assert abs(rank["measured_bytes"]["gradients"] - gradients) <= slack
            assert abs(rank["measured_bytes"]["parameters"] - held) <= slack
    for losses, trained in results[1:]:
        assert losses == results[0][0]
        for name, array in results[0][1].items():
            assert array.tobytes() == trained[name].tobytes(), name


@pytest.mark.parametrize("bits, seq", [(32, 60), (16, 4)])
@pytest.mark.parametrize("zero", range(4))
@pytest.mark.parametrize("more", [(), ("--clip-norm", 1), ("--accumulate", 2)])
def test_an_arena_is_as_large_as_planned(autosp_onnx, llama, tmp_path, bits, seq, zero, more):
    """A step of few tokens in 16 bits takes less than the update, which is in 32."""
    graph, _, parameters, folder = llama
    data, _ = reference.batches_of(graph, {"seq": seq}, count=2)
    np.savez(tmp_path / "data.npz", **data)
    if bits == 16:
        graph = TrainingGraph(GRAPHS / "bfloat16" / "llama.onnx")
    options = ["--sp", 2, "--optimizer", "adamw", "--weight-decay", 0.1, "--zero", zero, *more]
    shard(autosp_onnx, graph, tmp_path / "out", *options, sizes={"seq": seq})
    start = ["--init", folder / "parameters.npz"]
    report, _ = train(autosp_onnx, tmp_path / "out", tmp_path / "data.npz", *start, steps=1)
    result = autosp_onnx("plan", graph.path, "--dim", f"seq={seq}", *options, "--device", "cpu", "--json")
    planned = json.loads(result.stdout)
    outside = planned["memory_bytes"]["inputs"]  # with constants
    kept = 5 * len(parameters)  # values at most: parameters, three states, sums of gradients
    arena = max(rank["arena_bytes"] for rank in report["ranks"])
    assert planned["peak_bytes"] - outside <= arena <= planned["peak_bytes"] + 256 * kept
    held = report["ranks"][0]["measured_bytes"]
    working = arena - held["parameters"] - held["optimizer_state"]
    if bits == 16 and zero == 3 and "--accumulate" not in more:
        assert working > planned["planned_peak_bytes"] + 256 * kept


@pytest.fixture
def emulated_device(request, monkeypatch):
    """Commands that are given --device cuda run on a device that is none."""
    library = pathlib.Path(request.config.getoption("--autosp-onnx")).resolve().parents[1] / "lib/libautosp_emulated.so"
    monkeypatch.setenv("AUTOSP_CUDA_MODULE", str(library))


@pytest.mark.parametrize(
    "zero, accumulate, name", [(0, 1, "adamw"), (0, 3, "momentum"), (2, 3, "adamw"), (3, 1, "adagrad"), (3, 3, "sgd")]
)
def test_devices_train_as_numpy_does(autosp_onnx, llama, tmp_path, emulated_device, zero, accumulate, name):
    graph, data, parameters, folder = llama
    options, rate, update = OPTIMIZERS[name]
    out, saved = tmp_path / "out", tmp_path / "saved"
    shard(autosp_onnx, graph, out, "--sp", 3, "--zero", zero, "--accumulate", accumulate, *options)
    on_device = ["--lr", rate, "--device", "cuda"]
    start = ["--init", folder / "parameters.npz", *on_device]
    report, trained = train(autosp_onnx, out, folder / "data.npz", *start, steps=3)
    expected = reference.Reference(graph, parameters, update, accumulate=accumulate).run(data, 3)
    np.testing.assert_allclose([step["loss"] for step in report["steps"]], expected.losses, rtol=1e-4)
    assert_close(trained, expected.parameters, parameters)
    assert all(rank["measured_bytes"] == rank["planned_bytes"] for rank in report["ranks"])

    checkpoints = ["--checkpoint", saved, "--every", 2]
    train(autosp_onnx, out, folder / "data.npz", *start, *checkpoints, steps=2)
    _, resumed = train(autosp_onnx, out, folder / "data.npz", *on_device, *checkpoints, "--resume", steps=3)
    for parameter, array in trained.items():
        assert array.tobytes() == resumed[parameter].tobytes(), parameter


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_parameters_may_be_called_what_a_micro_batch_weighs(autosp_onnx, llama, tmp_path, emulated_device, device):
    graph, data, parameters, folder = llama
    names = {"model.norm.weight": "weight", "model.norm.weight.grad": "weight.grad"}
    model = onnx.load(graph.path)
    for value in [*model.graph.input, *model.graph.output]:
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    renamed = TrainingGraph(tmp_path / "renamed.onnx")
    onnx.save(model, renamed.path)
    parameters = {names.get(name, name): array for name, array in parameters.items()}
    np.savez(tmp_path / "parameters.npz", **parameters)
    out = tmp_path / "out"
    shard(autosp_onnx, renamed, out, "--sp", 2, "--optimizer", "sgd", "--accumulate", 2)
    start = ["--init", tmp_path / "parameters.npz", "--lr", 0.5, "--device", device]
    report, trained = train(autosp_onnx, out, folder / "data.npz", *start, steps=2)
    expected = reference.Reference(renamed, parameters, reference.sgd(0.5), accumulate=2).run(data, 2)
    np.testing.assert_allclose([step["loss"] for step in report["steps"]], expected.losses, rtol=1e-5)
    assert_close(trained, expected.parameters, parameters)


@pytest.mark.parametrize("zero, sp, dp", [(0, 3, 1), (1, 2, 2), (3, 4, 1)])
def test_resumed_runs_are_uninterrupted_ones_to_the_bit(autosp_onnx, llama, tmp_path, zero, sp, dp):
    graph, data, parameters, folder = llama
    out, saved = tmp_path / "out", tmp_path / "saved"
    shard(autosp_onnx, graph, out, "--sp", sp, "--dp", dp if dp != 2 else 3, "--optimizer", "adamw", "--zero", zero)
    start = ["--init", folder / "parameters.npz"]
    _, uninterrupted = train(autosp_onnx, out, folder / "data.npz", *start, steps=6)
    checkpoints = ["--checkpoint", saved, "--every", 2]
    train(autosp_onnx, out, folder / "data.npz", *start, *checkpoints, steps=4)
    assert sorted(path.name for path in saved.iterdir()) == ["step_00000002.npz", "step_00000004.npz"]
    # What a run that was killed while it wrote leaves behind, and one that it had not got to.
    (saved / "step_00000004.npz").unlink()
    (saved / "step_00000004.npz.Xy12ab").write_bytes(b"half")
    report, resumed = train(autosp_onnx, out, folder / "data.npz", *checkpoints, "--resume", steps=6)
    assert [step["step"] for step in report["steps"]] == [3, 4, 5, 6]
    for name, array in uninterrupted.items():
        assert array.tobytes() == resumed[name].tobytes(), name

    other = tmp_path / "other"
    shard(autosp_onnx, graph, other, "--sp", 6, "--optimizer", "adamw", "--zero", 3 - zero)
    (saved / "step_00000006.npz").unlink()
    (saved / "step_00000004.npz").unlink()
    report, elsewhere = train(autosp_onnx, other, folder / "data.npz", *checkpoints, "--resume", steps=6)
    assert [step["step"] for step in report["steps"]] == [3, 4, 5, 6]
    assert_close(elsewhere, uninterrupted, parameters)


@pytest.mark.parametrize("zero", [0, 2])
def test_killed_runs_resume(autosp_onnx, llama, tmp_path, request, zero):
    graph, data, parameters, folder = llama
    out, saved = tmp_path / "out", tmp_path / "saved"
    shard(autosp_onnx, graph, out, "--sp", 2, "--optimizer", "adamw", "--zero", zero)
    start = ["--init", folder / "parameters.npz"]
    _, uninterrupted = train(autosp_onnx, out, folder / "data.npz", *start, steps=30)
    binary = pathlib.Path(request.config.getoption("--autosp-onnx")).resolve()
    words = ["train", out, "--data", folder / "data.npz", *start, "--steps", 30, "--checkpoint", saved, "--every", 1]
    running = subprocess.Popen([binary, *map(str, words)], stdout=subprocess.DEVNULL)
    while running.poll() is None and len(list(saved.glob("step_*.npz"))) < 4:
        time.sleep(0.001)
    running.kill()
    running.wait()
    done = max(int(path.stem.removeprefix("step_")) for path in saved.glob("step_*.npz"))
    report, resumed = train(autosp_onnx, out, folder / "data.npz", "--checkpoint", saved, "--resume", steps=30)
    assert [step["step"] for step in report["steps"]] == list(range(done + 1, 31))
    for name, array in uninterrupted.items():
        assert array.tobytes() == resumed[name].tobytes(), name


@pytest.mark.parametrize("zero", [0, 3])
def test_processes_train_as_threads_do(autosp_onnx, llama, tmp_path, zero):
    graph, data, parameters, folder = llama
    out = tmp_path / "out"
    shard(autosp_onnx, graph, out, "--sp", 3, "--optimizer", "adam", "--zero", zero)
    options = ["--init", folder / "parameters.npz"]
    saved, other = ["--checkpoint", tmp_path / "saved"], ["--checkpoint", tmp_path / "other", "--transport", "mpi"]
    report, threads = train(autosp_onnx, out, folder / "data.npz", *options, *saved, steps=3)
    mpi, processes = train(autosp_onnx, out, folder / "data.npz", *options, *other, steps=3)
    assert [step["rank_losses"] for step in report["steps"]] == [step["rank_losses"] for step in mpi["steps"]]
    assert report["ranks"] == mpi["ranks"]
    for name, array in threads.items():
        assert array.tobytes() == processes[name].tobytes(), name


@pytest.mark.parametrize("transport", ["threads", "mpi"])
def test_collectives_beside_computation_change_no_bit(autosp_onnx, llama, tmp_path, transport):
    graph, data, parameters, folder = llama
    out = tmp_path / "out"
    shard(autosp_onnx, graph, out, "--sp", 3, "--optimizer", "adam", "--zero", 3)
    trained = []
    for name, overlap in (("after", []), ("beside", ["--overlap"])):
        options = ["--init", folder / "parameters.npz", "--checkpoint", tmp_path / name, "--transport", transport]
        trained.append(train(autosp_onnx, out, folder / "data.npz", *options, *overlap, steps=3)[1])
    for name, array in trained[0].items():
        assert array.tobytes() == trained[1][name].tobytes(), name


def most_threads(command):
    """That the command's process had at once."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            most = max(most, len(os.listdir(f"/proc/{process.pid}/task")))
    assert process.returncode == 0
    return most


def test_collectives_have_a_thread_of_their_own(request, autosp_onnx, llama, tmp_path):
    graph, data, parameters, folder = llama
    shard(autosp_onnx, graph, tmp_path / "out", "--sp", 3, "--optimizer", "sgd")
    command = [request.config.getoption("--autosp-onnx"), "train", tmp_path / "out", "--data", folder / "data.npz"]
    command += ["--init", folder / "parameters.npz", "--steps", "40", "--lr", "0.1"]
    assert most_threads([*command, "--overlap"]) == most_threads(command) + 3


def test_overlap_is_of_the_cpu(autosp_onnx, llama, tmp_path):
    graph, data, parameters, folder = llama
    shard(autosp_onnx, graph, tmp_path / "out", "--sp", 2, "--optimizer", "sgd")
    words = ["--data", folder / "data.npz", "--steps", 1, "--lr", 0.1, "--overlap", "--device", "cuda"]
    result = autosp_onnx("train", tmp_path / "out", *words)
    assert result.returncode == 2
    assert "--overlap is given, which is of --device cpu" in result.stderr


@pytest.mark.parametrize("name", ["gpt2_onnx_ad", "nano_ort_training", "llama_ort_training_model"])
def test_graphs_of_every_route_are_trained(autosp_onnx, tmp_path, name):
    graph = TrainingGraph(GRAPHS / f"{name}.onnx")
    out = tmp_path / "out"
    shard(autosp_onnx, graph, out, "--sp", 4, "--optimizer", "sgd", "--zero", 2, sizes={})
    for options in ([], ["--steps", 3, "--lr", 0.1]):
        result = autosp_onnx("validate", graph.path, out, "--feed", graph.feed, *options)
        assert result.returncode == 0, result.stdout + result.stderr


def with_initializers(graph, parameters, path):
    """The graph with its parameters in it: every other one in a file beside it."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    kept = [value for value in model.graph.input if value.name not in parameters]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    for k, (name, array) in enumerate(parameters.items()):
        tensor = onnx.numpy_helper.from_array(array, name)
        if k % 2 == 0:
            onnx.external_data_helper.set_external_data(tensor, "weights.bin")
        model.graph.initializer.append(tensor)
    onnx.save(model, path)
    return TrainingGraph(path)


@pytest.mark.parametrize("zero", [0, 3])
def test_initializers_are_trained_too(autosp_onnx, llama, tmp_path, zero):
    graph, data, parameters, folder = llama
    own = with_initializers(graph, parameters, tmp_path / "own.onnx")
    out = tmp_path / "out"
    options = ["--sp", 4, "--optimizer", "sgd", "--zero", zero]
    shard(autosp_onnx, own, out, *options)
    report, trained = train(autosp_onnx, out, folder / "data.npz", "--lr", 0.5, steps=3)
    shard(autosp_onnx, graph, tmp_path / "fed", *options)
    start = ["--init", folder / "parameters.npz", "--lr", 0.5]
    expected_report, expected = train(autosp_onnx, tmp_path / "fed", folder / "data.npz", *start, steps=3)
    assert [step["loss"] for step in report["steps"]] == [step["loss"] for step in expected_report["steps"]]
    for name, array in expected.items():
        assert array.tobytes() == trained[name].tobytes(), name
    for options in ([], ["--steps", 2]):
        result = autosp_onnx("validate", own.path, out, *options)
        assert result.returncode == 0, result.stdout + result.stderr
    # What was written may be replaced, and run.
    shard(autosp_onnx, own, out, "--sp", 2, "--optimizer", "adam", "--accumulate", 2)
    np.savez(tmp_path / "one.npz", **{name: array[0] for name, array in data.items()})
    assert autosp_onnx("run", out, "--feed", tmp_path / "one.npz").returncode == 0


def test_update_graphs_pass_the_checker_and_the_reference_evaluator(autosp_onnx, llama, tmp_path):
    graph, data, parameters, folder = llama
    out = tmp_path / "out"
    shard(autosp_onnx, graph, out, "--sp", 1, "--optimizer", "adamw", "--weight-decay", 0.1, "--clip-norm", 1)
    model = onnx.load(out / "optimizer_rank_0.onnx")
    onnx.checker.check_model(model, full_check=True)
    random = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = np.abs(random.standard_normal(shape)).astype(dtype)
    feeds["step"] = np.array(3)
    outputs = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    got = {value.name: array for value, array in zip(model.graph.output, outputs)}
    names = [name for name in feeds if f"{name}.grad" in feeds]
    norm = np.sqrt(sum((feeds[f"{name}.grad"].astype(np.float64) ** 2).sum() for name in names))
    np.testing.assert_allclose(got["gradient_norm"], norm, rtol=1e-5)
    update = reference.adam(float(feeds["learning_rate"]), decay=0.1, decoupled=True)
    for name in names:
        state = {key: feeds[f"{name}.{key}"].astype(np.float64) for key in ("mean", "square")}
        want = update(feeds[name].astype(np.float64), feeds[f"{name}.grad"] / (norm + 1e-6), state, 3)
        np.testing.assert_allclose(got[f"{name}.new"], want, rtol=1e-4, atol=1e-5)


def optimizer_model(path, op, **attributes):
    """What ONNX Runtime's artifacts have: one operator on sequences of tensors."""
    sequence = onnx.helper.make_sequence_type_proto(onnx.helper.make_tensor_type_proto(1, None))
    names = ["params", "gradients"] + ["first_order_moments", "second_order_moments"] * (op == "AdamWOptimizer")
    scalars = [
        onnx.helper.make_tensor_value_info(name, kind, [1]) for name, kind in (("learning_rate", 1), ("step", 7))
    ]
    inputs = scalars + [onnx.helper.make_value_info(name, sequence) for name in names]
    node = onnx.helper.make_node(op, [value.name for value in inputs], ["flag"], domain="com.microsoft", **attributes)
    graph = onnx.helper.make_graph([node], "optimizer", inputs, [onnx.helper.make_tensor_value_info("flag", 9, [1])])
    opsets = [onnx.helper.make_opsetid("com.microsoft", 1), onnx.helper.make_opsetid("", 15)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), path)
    return path


def test_optimizer_models_of_onnxruntime_say_the_same_as_options(autosp_onnx, llama, tmp_path):
    graph, data, parameters, folder = llama
    settings = dict(alpha=0.8, beta=0.99, epsilon=1e-6, weight_decay=0.05, correct_bias=1)
    options = ["--beta1", 0.8, "--beta2", 0.99, "--epsilon", 1e-6, "--weight-decay", 0.05]
    for mode, name in enumerate(["adamw", "adamw_after"]):
        model = optimizer_model(tmp_path / "optimizer_model.onnx", "AdamWOptimizer", adam_mode=mode, **settings)
        shard(autosp_onnx, graph, tmp_path / "model", "--sp", 2, "--optimizer-model", model)
        shard(autosp_onnx, graph, tmp_path / "options", "--sp", 2, "--optimizer", name, *options)
        for file in ("optimizer_rank_0.onnx", "optimizer_rank_1.onnx", "manifest.json"):
            assert (tmp_path / "model" / file).read_bytes() == (tmp_path / "options" / file).read_bytes(), file
    model = optimizer_model(tmp_path / "other.onnx", "AdamWOptimizer", correct_bias=0)
    result = autosp_onnx("shard", graph.path, "--dim", "seq=22", "-o", tmp_path / "x", "--optimizer-model", model)
    assert result.returncode == 2 and "correct_bias is 0" in result.stderr
    result = autosp_onnx("shard", graph.path, "--dim", "seq=22", "-o", tmp_path / "x", "--optimizer-model", graph.path)
    assert result.returncode == 2 and "has no optimizer" in result.stderr


def in_sixteen_bits(graph, path):
    """The graph with parameters and gradients of 16 bits; what is computed between them stays float32."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    names = {value.name for value in model.graph.output if value.name.endswith(".grad")}
    parameters = {name.removesuffix(".grad") for name in names}
    for node in model.graph.node:
        for k, name in enumerate(node.input):
            if name in parameters:
                node.input[k] = f"{name}.wide"
        for k, name in enumerate(node.output):
            if name in names:
                node.output[k] = f"{name}.wide"
    for value in [*model.graph.input, *model.graph.output]:
        if value.name in parameters | names:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for name in sorted(parameters):
        widen = onnx.helper.make_node("Cast", [name], [f"{name}.wide"], to=onnx.TensorProto.FLOAT)
        model.graph.node.insert(0, widen)
        narrow = onnx.helper.make_node("Cast", [f"{name}.grad.wide"], [f"{name}.grad"], to=onnx.TensorProto.FLOAT16)
        model.graph.node.append(narrow)
    onnx.save(model, path)
    return TrainingGraph(path)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_sixteen_bits_are_updated_in_float32(autosp_onnx, llama, tmp_path, zero):
    graph, data, parameters, folder = llama
    narrow = in_sixteen_bits(graph, tmp_path / "narrow.onnx")
    halves = {name: array.astype(np.float16) for name, array in parameters.items()}
    np.savez(tmp_path / "halves.npz", **halves)
    out = tmp_path / "out"
    shard(autosp_onnx, narrow, out, "--sp", 3, "--optimizer", "sgd", "--zero", zero)
    # So small a rate that most weights would not move in 16 bits.
    options = ["--init", tmp_path / "halves.npz", "--lr", 1e-3, "--checkpoint", tmp_path / "saved"]
    report, trained = train(autosp_onnx, out, folder / "data.npz", *options, steps=4)
    wide = {name: array.astype(np.float32) for name, array in halves.items()}
    expected = reference.Reference(graph, wide, reference.sgd(1e-3)).run(data, 4)
    np.testing.assert_allclose([step["loss"] for step in report["steps"]], expected.losses, rtol=2e-3)
    with np.load(tmp_path / "saved" / "step_00000004.npz") as saved:
        for name, array in expected.parameters.items():
            master = saved[f"master/{name}"]
            assert master.dtype == np.float32 and trained[name].dtype == np.float16
            assert (master.astype(np.float16) == trained[name]).all()
            moved = np.abs(array - wide[name]).max()
            assert np.abs(master - array).max() <= 0.05 * moved, name


def test_float32_arrays_are_rounded_to_bfloat16(autosp_onnx, tmp_path):
    """As `run` and `validate` take them: NumPy has no bfloat16."""
    out = tmp_path / "out"
    model = GRAPHS / "bfloat16" / "llama.onnx"
    words = ["shard", model, "--dim", "seq=40", "-o", out, "--sp", 2, "--optimizer", "sgd"]
    assert autosp_onnx(*words).returncode == 0
    options = ["--lr", 0.1, "--checkpoint", tmp_path / "saved"]
    report, trained = train(autosp_onnx, out, GRAPHS / "llama.npz", *options, steps=2)
    result = autosp_onnx("run", out, "--feed", GRAPHS / "llama.npz", "--json")
    assert report["steps"][0]["loss"] == json.loads(result.stdout)["ranks"][0]["loss"]
    # What was written goes on, and is taken as it is.
    assert trained["model.norm.weight"].dtype.itemsize == 2
    np.savez(tmp_path / "two_bytes.npz", **trained)
    start = ["--init", tmp_path / "two_bytes.npz"]
    with np.load(GRAPHS / "llama.npz") as archive:
        np.savez(tmp_path / "data.npz", **{name: archive[name] for name in ("input_ids", "labels")})
    again, _ = train(autosp_onnx, out, tmp_path / "data.npz", *start, steps=1)
    assert again["steps"][0]["loss"] < report["steps"][0]["loss"]
    train(autosp_onnx, out, GRAPHS / "llama.npz", *options, "--resume", steps=3)


def test_checkpoints_that_lack_something_are_refused(autosp_onnx, llama, tmp_path):
    graph, data, parameters, folder = llama
    out, saved = tmp_path / "out", tmp_path / "saved"
    shard(autosp_onnx, graph, out, "--sp", 2, "--optimizer", "sgd")
    words = ["train", out, "--data", folder / "data.npz", "--init", folder / "parameters.npz", "--checkpoint", saved]
    assert autosp_onnx(*words, "--steps", 2).returncode == 0
    file = saved / "step_00000002.npz"
    with np.load(file) as archive:
        whole = {name: archive[name] for name in archive.files}
    name = "model.norm.weight"
    for message, arrays in [
        (f"has no parameter '{name}'", {key: array for key, array in whole.items() if key != name}),
        ("is not a checkpoint of step 2", {**whole, "step": np.float32(2)}),
    ]:
        np.savez(file, **arrays)
        result = autosp_onnx(*words, "--steps", 3, "--resume")
        assert result.returncode == 2 and message in result.stderr, result.stderr


def test_a_loss_that_is_not_finite_is_noted_once(autosp_onnx, llama, tmp_path):
    graph, _, _, folder = llama
    shard(autosp_onnx, graph, tmp_path / "out", "--optimizer", "sgd", "--sp", 2)
    words = ["train", tmp_path / "out", "--data", folder / "data.npz", "--init", folder / "parameters.npz"]
    result = autosp_onnx(*words, "--steps", 4, "--lr", 1e30)
    assert result.returncode == 0
    assert re.findall(r"not finite from step (\d)", result.stderr) == ["2"]
    assert "finite" not in autosp_onnx(*words, "--steps", 2, "--lr", 0.1).stderr


def test_fewer_steps_than_a_checkpoint_has_are_refused(autosp_onnx, llama, tmp_path):
    graph, _, _, folder = llama
    shard(autosp_onnx, graph, tmp_path / "out", "--optimizer", "sgd")
    words = ["train", tmp_path / "out", "--data", folder / "data.npz", "--init", folder / "parameters.npz"]
    words += ["--checkpoint", tmp_path / "saved"]
    assert autosp_onnx(*words, "--steps", 3).returncode == 0
    assert autosp_onnx(*words, "--steps", 3, "--resume").returncode == 0  # nothing is left to do
    result = autosp_onnx(*words, "--steps", 2, "--resume", "--output", tmp_path / "trained.npz")
    assert result.returncode == 2
    assert "is of step 3" in result.stderr
    assert not (tmp_path / "trained.npz").exists()


def test_frozen_parameters_stay(autosp_onnx, llama, tmp_path):
    """Without a gradient a parameter is whole on every rank, at every stage, and not updated."""
    graph, data, parameters, folder = llama
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    frozen = "model.embed_tokens.weight"
    kept = [value for value in model.graph.output if value.name != f"{frozen}.grad"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, tmp_path / "frozen.onnx")
    partly = TrainingGraph(tmp_path / "frozen.onnx")
    out = tmp_path / "out"
    shard(autosp_onnx, partly, out, "--sp", 2, "--dp", 2, "--optimizer", "sgd", "--zero", 3)
    report, trained = train(autosp_onnx, out, folder / "data.npz", "--init", folder / "parameters.npz", "--lr", 0.5)
    assert frozen not in trained and len(trained) == len(parameters) - 1
    rest = {name: array for name, array in parameters.items() if name != frozen}
    run = FrozenReference(graph, parameters, frozen).run(data, STEPS)
    np.testing.assert_allclose([step["loss"] for step in report["steps"]], run.losses, rtol=1e-4)
    assert_close(trained, {name: run.parameters[name] for name in rest}, rest)


class FrozenReference(reference.Reference):
    """Descent at a rate of 0.5 that puts one parameter back after every step."""

    def __init__(self, graph, parameters, frozen):
        super().__init__(graph, parameters, reference.sgd(0.5))
        self.frozen, self.value = frozen, parameters[frozen]

    def step(self, micro_batches):
        super().step(micro_batches)
        self.parameters[self.frozen] = self.value


def test_messages(autosp_onnx, llama, tmp_path):
    graph, data, parameters, folder = llama
    out, plain = tmp_path / "out", tmp_path / "plain"
    shard(autosp_onnx, graph, out, "--sp", 2, "--optimizer", "sgd")
    shard(autosp_onnx, graph, plain, "--sp", 2)
    np.savez(tmp_path / "bad.npz", **{**data, "labels": data["labels"][:, :, 1:]})

    def fails(*arguments):
        result = autosp_onnx(*arguments)
        assert result.returncode == 2, result.stderr
        kinds = [line.split(":")[0] for line in result.stderr.splitlines()]
        assert kinds == ["error", "note", "help"], result.stderr
        return result.stderr

    good = ["--data", folder / "data.npz", "--steps", 2]
    assert "has no optimizer" in fails("train", plain, *good)
    assert "no value to begin with" in fails("train", out, *good)
    assert "no batches of 'labels'" in fails("train", out, "--data", tmp_path / "bad.npz", "--steps", 2)
    assert "--resume is given without --checkpoint" in fails("train", out, *good, "--resume")
    assert "2 ranks, but 3" in fails("train", out, *good, "--np", 3)
    message = fails("shard", graph.path, "--dim", "seq=22", "--sp", 2, "-o", tmp_path / "x", "--optimizer", "adan")
    assert "did you mean 'adam'" in message
    assert not (tmp_path / "x").exists()
    assert "without an optimizer" in fails("shard", graph.path, "--dim", "seq=22", "-o", tmp_path / "x", "--zero", 1)
    # The shards of another optimizer.
    saved = tmp_path / "saved"
    start = ["--init", folder / "parameters.npz"]
    assert autosp_onnx("train", out, *good, *start, "--checkpoint", saved).returncode == 0
    adam = tmp_path / "adam"
    shard(autosp_onnx, graph, adam, "--sp", 2, "--optimizer", "adam")
    assert "keeps it for every parameter" in fails("train", adam, *good, "--checkpoint", saved, "--resume")
    # Those of another run, which --resume would take for this one's.
    assert "step_00000002.npz', and --resume" in fails("train", out, *good, *start, "--checkpoint", saved)
    (saved / "step_00000003.npz").write_bytes(b"junk")
    message = fails("train", out, *good, "--checkpoint", saved, "--resume")
    assert "step_00000003.npz': --resume then goes on from the one before" in message
    (saved / "step_00000003.npz").unlink()
    # Options that would do nothing.
    words = ["shard", graph.path, "--dim", "seq=24", "-o", tmp_path / "x"]
    assert "--weight-decay is given without an optimizer" in fails(*words, "--weight-decay", 0.1)
    assert "--optimizer adam has no --momentum" in fails(*words, "--optimizer", "adam", "--momentum", 0.9)
    assert "--optimizer sgd has no --beta2" in fails(*words, "--optimizer", "sgd", "--beta2", 0.9)
    assert "'nan' is not a number from 0" in fails("train", out, *good, "--lr", "nan")
    # Updates know our collectives only.
    words = ["shard", graph.path, "--dim", "seq=24", "--sp", 2, "-o", tmp_path / "y", "--optimizer", "adam"]
    message = fails(*words, "--zero", 1, "--dialect", "autosp,ort")
    assert "--dialect ort has no update at --zero 1: 'bucket_0@ReduceScatter'" in message
    assert "'gradient_norm@AllReduce'" in fails(*words, "--zero", 3, "--clip-norm", 1, "--dialect", "tensorrt")
    assert autosp_onnx(*words, "--zero", 3, "--dialect", "ort").returncode == 0
    # Before the first step.
    assert "cannot hold checkpoints" in fails("train", out, *good, *start, "--checkpoint", folder / "data.npz")
    result = autosp_onnx("train", out, *good, *start, "--checkpoint", folder / "data.npz")
    assert result.stdout == ""
    # An axis for one batch counts as well.
    np.savez(tmp_path / "bad.npz", **{**data, "input_ids": data["input_ids"][:1]})
    assert "but 1 of another input" in fails("train", out, "--data", tmp_path / "bad.npz", "--steps", 2, *start)
    # Attributes of operators are float32: this is 1.
    words = ["shard", graph.path, "--dim", "seq=22", "-o", tmp_path / "x", "--optimizer", "adam"]
    assert "is not a number from 0 to below 1" in fails(*words, "--beta1", 0.99999999)


def test_parameters_are_not_named_as_what_the_update_has_of_its_own(autosp_onnx, llama, tmp_path):
    model = onnx.ModelProto()
    model.CopyFrom(llama[0].model)
    names = {"model.norm.weight": "step", "model.norm.weight.grad": "step.grad"}
    for value in [*model.graph.input, *model.graph.output]:
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    onnx.save(model, tmp_path / "model.onnx")
    words = ["shard", tmp_path / "model.onnx", "--dim", "seq=22", "--sp", 2, "-o", tmp_path / "out"]
    result = autosp_onnx(*words, "--optimizer", "sgd", "--zero", 3)
    assert result.returncode == 2
    assert "no update for a parameter that is named 'step'" in result.stderr
    assert autosp_onnx(*words).returncode == 0


def test_processes_that_read_other_checkpoints_are_refused(autosp_onnx, llama, tmp_path, request):
    """As on two machines: the path is the same, the folder is not."""
    graph, _, _, folder = llama
    out = tmp_path / "out"
    shard(autosp_onnx, graph, out, "--sp", 2, "--optimizer", "adam", "--zero", 3)
    binary = pathlib.Path(request.config.getoption("--autosp-onnx")).resolve()
    words = ["train", out, "--data", folder / "data.npz", "--init", folder / "parameters.npz"]
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    saved = subprocess.run([binary, *words, "--steps", "2", "--checkpoint", "saved"], cwd=tmp_path / "one")
    assert saved.returncode == 0
    words += ["--steps", "4", "--checkpoint", "saved", "--resume", "--timeout", "20"]
    ranks = [["-np", "1", "--wdir", tmp_path / name, binary, *words] for name in ("one", "other")]
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = ["mpirun", "--oversubscribe", *ranks[0], ":", *ranks[1]]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode != 0
    assert "are to train differently: first step" in result.stderr
    assert [path.name for path in (tmp_path / "one" / "saved").iterdir()] == ["step_00000002.npz"]


def test_states_of_another_shape_are_refused(autosp_onnx, llama, tmp_path):
    graph, _, _, folder = llama
    out, saved = tmp_path / "out", tmp_path / "saved"
    shard(autosp_onnx, graph, out, "--sp", 2, "--optimizer", "adam", "--zero", 1)
    words = ["train", out, "--data", folder / "data.npz", "--checkpoint", saved]
    assert autosp_onnx(*words, "--init", folder / "parameters.npz", "--steps", 1).returncode == 0
    checkpoint = saved / "step_00000001.npz"
    with np.load(checkpoint) as archive:
        arrays = dict(archive)
    arrays["mean/model.norm.weight"] = arrays["mean/model.norm.weight"][:1]
    np.savez(checkpoint, **arrays)
    result = autosp_onnx(*words, "--steps", 2, "--resume")
    assert result.returncode == 2
    assert "holds 'mean/model.norm.weight' as float32[1]" in result.stderr


def test_initial_parameters_of_another_model_are_refused(autosp_onnx, llama, tmp_path):
    graph, _, parameters, folder = llama
    shard(autosp_onnx, graph, tmp_path / "out", "--sp", 2, "--optimizer", "sgd")
    prefixed = tmp_path / "prefixed.npz"
    np.savez(prefixed, **{f"module.{name}": array for name, array in parameters.items()})
    np.savez(tmp_path / "whole.npz", **parameters, **np.load(folder / "data.npz"))
    arguments = ("train", tmp_path / "out", "--data", tmp_path / "whole.npz", "--steps", 1, "--lr", 0.1, "--init")
    result = autosp_onnx(*arguments, prefixed)
    assert result.returncode == 2
    assert f"error: --init '{prefixed}' holds no parameter of this model" in result.stderr
    assert "note: it holds 'module." in result.stderr and "help: " in result.stderr
    result = autosp_onnx(*arguments, tmp_path / "whole.npz")  # what else a file holds is no matter
    assert result.returncode == 0 and "--init" not in result.stderr


def test_initial_parameters_that_are_missing_or_unknown_are_told(autosp_onnx, llama, tmp_path):
    graph, _, parameters, folder = llama
    shard(autosp_onnx, graph, tmp_path / "out", "--sp", 2, "--optimizer", "sgd")
    names = list(parameters)
    some = {name: parameters[name] for name in names[2:]}
    np.savez(tmp_path / "some.npz", **some, extra=np.zeros(3))
    np.savez(tmp_path / "whole.npz", **parameters, **np.load(folder / "data.npz"))
    arguments = ("train", tmp_path / "out", "--data", tmp_path / "whole.npz", "--steps", 1, "--lr", 0.1)
    for transport in ("threads", "mpi"):
        result = autosp_onnx(*arguments, "--init", tmp_path / "some.npz", "--transport", transport)
        assert result.returncode == 0, result.stderr
        [unknown, missing] = [line for line in result.stderr.splitlines() if "--init" in line]
        assert unknown.startswith("note: ") and unknown.endswith("not used: 'extra'")
        assert f"holds {len(some)} of {len(parameters)} parameters" in missing
        assert all(f"'{name}'" in missing for name in names[:2])
