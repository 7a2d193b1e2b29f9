"""The commands as a user calls them: results, reports, exit codes and what is left on disk."""

import json
import os
import pathlib
import signal
import subprocess
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from training_graph import GRAPHS, TrainingGraph, assert_same_step, run_in_onnxruntime

LLAMA = GRAPHS / "llama_static.onnx"
FEED = GRAPHS / "llama.npz"


def read(path):
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def assert_file_holds_step(path, expected):
    """A file lists its arrays by name, a step in the model's order."""
    outputs = read(path)
    assert outputs.keys() == expected.keys()
    assert_same_step({name: outputs[name] for name in expected}, expected)


def shard(autosp_onnx, folder, *options, model=LLAMA):
    result = autosp_onnx("shard", model, "-o", folder, *options)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def four_ranks(autosp_onnx, tmp_path_factory):
    return shard(autosp_onnx, tmp_path_factory.mktemp("llama") / "out", "--sp", 4)


def test_run_equals_stock_onnxruntime(autosp_onnx, four_ranks, tmp_path):
    run = autosp_onnx("run", four_ranks, "--np", 4, "--feed", FEED, "--output", tmp_path / "o.npz")
    assert run.returncode == 0, run.stderr
    assert_file_holds_step(tmp_path / "o.npz", TrainingGraph(LLAMA).step(read(FEED)))


def test_transports_give_the_same_bits(autosp_onnx, four_ranks, tmp_path):
    outputs, measured = {}, {}
    for transport in ("threads", "mpi"):
        path = tmp_path / f"{transport}.npz"
        run = autosp_onnx("run", four_ranks, "--transport", transport, "--feed", FEED, "--output", path, "--json")
        assert run.returncode == 0, run.stderr
        report = json.loads(run.stdout)
        assert report["transport"] == transport
        assert [rank["rank"] for rank in report["ranks"]] == [0, 1, 2, 3]
        assert len({rank["loss"] for rank in report["ranks"]}) == 1
        for rank in report["ranks"]:
            assert 0 < rank["measured_peak_bytes"] < rank["resident_peak_bytes"]
        measured[transport] = report["ranks"][0]["measured_peak_bytes"]
        outputs[transport] = path.read_bytes()
    # Pages are used as a whole; processes of one machine read operands in place.
    assert measured["threads"] <= report["ranks"][0]["planned_peak_bytes"] + 4096
    assert measured["mpi"] == measured["threads"]
    assert outputs["threads"] == outputs["mpi"]


def test_ranks_may_be_started_by_mpirun(request, four_ranks):
    binary = pathlib.Path(request.config.getoption("--autosp-onnx")).resolve()
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

    def mpirun(ranks, *options):
        command = ["mpirun", "--oversubscribe", "-np", str(ranks), binary, "run", four_ranks, "--feed", FEED]
        command += options
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
        )

    run = mpirun(4)
    assert run.returncode == 0, run.stderr
    assert "4 ranks (mpi)" in run.stdout
    wrong = mpirun(3)
    assert wrong.returncode == 2
    assert wrong.stderr.count("is sharded over 4 ranks, but 3 are to run") == 1
    threads = mpirun(4, "--transport", "threads")
    assert threads.returncode == 2 and threads.stdout == ""
    assert threads.stderr.count("mpirun has started 4 processes") == 1


def test_a_rank_that_cannot_start_ends_all(autosp_onnx, tmp_path):
    out = shard(autosp_onnx, tmp_path / "out", "--sp", 2)
    (out / "rank_1.onnx").unlink()
    (out / "rank_1.onnx").symlink_to("rank_1.onnx")  # a failure that is the file system's, of one rank
    result = autosp_onnx("run", out, "--transport", "mpi", "--feed", FEED, timeout=60)
    assert result.returncode == 2
    assert result.stderr.count("symbolic links") == 1 and "\nhelp: " in result.stderr


@pytest.mark.parametrize("option", ["--output", "--trace"])
@pytest.mark.parametrize("transport", ["threads", "mpi"])
def test_results_that_cannot_be_written(autosp_onnx, four_ranks, tmp_path, transport, option):
    target = tmp_path / "none" / "there"
    result = autosp_onnx("run", four_ranks, "--transport", transport, "--feed", FEED, option, target, timeout=60)
    assert result.returncode == 2
    assert f"'{target}' cannot be written" in result.stderr and "\nhelp: " in result.stderr


def test_outputs_replace_nothing_that_is_read(autosp_onnx, tmp_path):
    out = shard(autosp_onnx, tmp_path / "out", "--sp", 2)
    feed = tmp_path / "feed.npz"
    feed.write_bytes(FEED.read_bytes())
    (tmp_path / "link.npz").symlink_to("feed.npz")
    before = contents(tmp_path)
    refused = {
        ("--output", feed): "that --feed reads",
        ("--trace", tmp_path / "link.npz"): "that --feed reads",
        ("--output", out / "manifest.json"): "the sharded model",
        ("--trace", out / "rank_1.onnx"): "the sharded model",
        ("--output", tmp_path / "same", "--trace", out / ".." / "same"): "both name",
        ("--output", out): "it is a folder",
    }
    for options, message in refused.items():
        result = autosp_onnx("run", out, "--feed", feed, *options)
        assert result.returncode == 2 and message in result.stderr, result.stderr
        assert "\nnote: " in result.stderr and "\nhelp: " in result.stderr
        assert contents(tmp_path) == before
    run = autosp_onnx("run", out, "--feed", feed, "--output", out / "results.npz")
    assert run.returncode == 0 and (out / "results.npz").exists(), run.stderr


@pytest.mark.parametrize("transport", ["threads", "mpi"])
def test_outputs_go_through_devices_and_links(autosp_onnx, four_ranks, tmp_path, transport):
    (tmp_path / "o.npz").write_text("earlier")
    (tmp_path / "link.npz").symlink_to("o.npz")
    device = tmp_path / "null"
    device.symlink_to("/dev/null")
    options = ("--transport", transport, "--output", tmp_path / "link.npz", "--trace", device)
    run = autosp_onnx("run", four_ranks, "--feed", FEED, *options)
    assert run.returncode == 0, run.stderr
    assert pathlib.Path("/dev/null").is_char_device() and device.is_symlink()
    assert (tmp_path / "link.npz").is_symlink() and len(read(tmp_path / "o.npz")) == 22


def test_sharded_graphs_are_not_sharded_again(autosp_onnx, tmp_path):
    out = shard(autosp_onnx, tmp_path / "out", "--sp", 2, "--dialect", "autosp,standard")
    for graph, message in {"rank_1.onnx": "already rank 1 of 2", "emulated.onnx": "all 2 ranks"}.items():
        result = autosp_onnx("shard", out / graph, "--sp", 2, "-o", tmp_path / "again")
        assert result.returncode == 2 and message in result.stderr


def test_graphs_of_other_ranks_and_plans_are_noticed(autosp_onnx, tmp_path):
    out = shard(autosp_onnx, tmp_path / "out", "--sp", 4)
    other = shard(autosp_onnx, tmp_path / "other", "--sp", 4, "--recompute", "full")
    for source, message in {out / "rank_1.onnx": "of rank 1", other / "rank_2.onnx": "by another plan"}.items():
        (out / "rank_2.onnx").write_bytes(source.read_bytes())
        result = autosp_onnx("run", out, "--feed", FEED)
        assert result.returncode == 2 and message in result.stderr
        assert "shard the model again" in result.stderr


@pytest.mark.parametrize("damage", ["other format", "truncated"])
def test_shard_replaces_its_own_damaged_result(autosp_onnx, tmp_path, damage):
    out = shard(autosp_onnx, tmp_path / "out", "--sp", 3)
    manifest = (out / "manifest.json").read_text()
    manifest = manifest.replace('"format": 1,', '"format": 99,') if damage == "other format" else manifest[:700]
    (out / "manifest.json").write_text(manifest)
    run = autosp_onnx("run", out, "--feed", FEED)
    assert run.returncode == 2 and len(run.stderr.splitlines()) == 3
    assert "shard the model again" in run.stderr
    (out / "thesis.txt").write_text("years of work")
    assert_left_alone(autosp_onnx, out, LLAMA, "'thesis.txt' is no file of a sharded model")
    (out / "thesis.txt").unlink()
    shard(autosp_onnx, out, "--sp", 2)
    assert not (out / "rank_2.onnx").exists()


def test_options_of_lists_leave_the_model_alone(autosp_onnx, tmp_path):
    result = autosp_onnx("shard", "--dim", "seq=64", "--sp-mesh", "u=4,g=2,r=2", GRAPHS / "llama.onnx", "-o", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "over 16 ranks" in result.stdout


def test_no_report_is_no_success(autosp_onnx, request, tmp_path):
    binary = pathlib.Path(request.config.getoption("--autosp-onnx")).resolve()
    # The last are longer than a buffer.
    shard = ["shard", "--sp", "2", "--json", "-o", tmp_path / "out"]
    for command in (["inspect"], ["inspect", "--print-after", "import"], shard):
        with open("/dev/full", "w") as full:
            words = [binary, command[0], LLAMA, *command[1:]]
            run = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
        assert run.returncode == 2 and "could not be printed" in run.stderr


def test_explain_says_how_inputs_are_fed(autosp_onnx):
    options = ("--dim", "seq=40", "--sp", 4, "--json")
    report = json.loads(autosp_onnx("explain", GRAPHS / "llama.onnx", "input_ids", *options).stdout)
    assert report["layout"] == "u: split(dim 1, cuts 0 10 20 30 40)"
    assert "replicated" not in report["explanation"]


def test_slow_kernels_are_noted_once(autosp_onnx, four_ranks, monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    expected = int("avx512f" in pathlib.Path("/proc/cpuinfo").read_text())
    for arguments in (["run", four_ranks, "--feed", FEED], ["validate", LLAMA, four_ranks]):
        result = autosp_onnx(*arguments)
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("note: ") == expected == result.stderr.count("OPENBLAS_CORETYPE")


def test_trace_has_every_rank_and_collective(autosp_onnx, four_ranks, tmp_path):
    collectives = [entry["node"] for entry in json.loads((four_ranks / "manifest.json").read_text())["collectives"]]
    for transport in ("threads", "mpi"):
        path = tmp_path / f"{transport}.json"
        assert autosp_onnx("run", four_ranks, "--transport", transport, "--feed", FEED, "--trace", path).returncode == 0
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]
        assert {event["tid"] for event in events} == {0, 1, 2, 3}
        names = [event["name"] for event in events if event["tid"] == 2]
        assert [name for name in names if name in set(collectives)] == collectives


@pytest.mark.parametrize("feed", [(), ("--feed", FEED)], ids=["generated", "given"])
def test_validate_finds_equality(autosp_onnx, four_ranks, feed):
    result = autosp_onnx("validate", LLAMA, four_ranks, "--json", *feed)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["equal"] and len(report["outputs"]) == 22
    assert len(report["rank_losses"]) == 4
    assert all(tensor["relative_error"] < 1e-5 for tensor in report["outputs"])


def break_gradient(folder, rank, name):
    """Doubles what one rank says is a gradient."""
    path = folder / f"rank_{rank}.onnx"
    model = onnx.load(path)
    producer = next(node for node in model.graph.node if name in node.output)
    half = f"half of {name}"
    producer.output[list(producer.output).index(name)] = half
    output = next(output for output in model.graph.output if output.name == name)
    model.graph.value_info.add(name=half, type=output.type)
    model.graph.node.append(helper.make_node("Add", [half, half], [name], name=f"doubling of {name}"))
    onnx.save(model, path)


def test_validate_names_the_first_wrong_tensor(autosp_onnx, tmp_path):
    out = shard(autosp_onnx, tmp_path / "out", "--sp", 2)
    break_gradient(out, 1, "model.norm.weight.grad")
    break_gradient(out, 1, "model.layers.1.mlp.up_proj.weight.grad")
    result = autosp_onnx("validate", LLAMA, out)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "DIFFERENT: 2 of 22 outputs; the first is 'model.layers.1.mlp.up_proj.weight.grad'" in result.stdout
    assert "on rank 1" in result.stdout


def test_validate_does_not_call_nan_equal(autosp_onnx, four_ranks, tmp_path):
    """Both sides are NaN everywhere: no evidence of anything."""
    feed = read(FEED)
    feed["model.norm.weight"][0] = np.nan
    np.savez(tmp_path / "nan.npz", **feed)
    result = autosp_onnx("validate", LLAMA, four_ranks, "--feed", tmp_path / "nan.npz")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "the first is 'loss': 1 of its 1 elements are NaN or infinite, and the ranks have the same" in result.stdout
    assert "\nNOT FINITE: " in result.stdout and "\nequal" not in result.stdout
    result = autosp_onnx("validate", LLAMA, four_ranks, "--feed", tmp_path / "nan.npz", "--json")
    assert result.returncode == 1
    report = json.loads(result.stdout)
    assert not report["equal"] and not report["finite"]
    loss = report["outputs"][0]
    assert loss["name"] == "loss" and loss["not_finite"] == 1 and not loss["equal"]


def test_validate_tells_other_values_from_values_that_are_not_finite(autosp_onnx, tmp_path):
    """One rank has numbers where the whole model has none; what differs is listed besides."""
    out = shard(autosp_onnx, tmp_path / "out", "--sp", 2)
    name = "model.norm.weight.grad"
    model = onnx.load(out / "rank_1.onnx")
    producer = next(node for node in model.graph.node if name in node.output)
    producer.output[list(producer.output).index(name)] = "unused"
    output = next(output for output in model.graph.output if output.name == name)
    model.graph.value_info.add(name="unused", type=output.type)
    zeros = np.zeros([dim.dim_value for dim in output.type.tensor_type.shape.dim], np.float32)
    constant = helper.make_node("Constant", [], [name], name="zeros", value=onnx.numpy_helper.from_array(zeros))
    model.graph.node.append(constant)
    onnx.save(model, out / "rank_1.onnx")
    feed = read(FEED)
    feed["model.norm.weight"][0] = np.nan
    np.savez(tmp_path / "nan.npz", **feed)
    result = autosp_onnx("validate", LLAMA, out, "--feed", tmp_path / "nan.npz")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "\nNOT FINITE: " in result.stdout
    assert f"\nDIFFERENT: 1 of 22 outputs; the first is '{name}'" in result.stdout


def test_validate_refuses_another_model(autosp_onnx, four_ranks):
    result = autosp_onnx("validate", GRAPHS / "gpt2_static.onnx", four_ranks)
    assert result.returncode == 2
    assert "is not the model that" in result.stderr


def test_same_input_same_bytes(autosp_onnx, tmp_path):
    folders = [shard(autosp_onnx, tmp_path / name, "--sp", 3, "--dialect", "autosp,standard") for name in "ab"]
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == ["emulated.onnx", "manifest.json", "rank_0.onnx", "rank_1.onnx", "rank_2.onnx"]
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_manifest_lists_slices_and_totals(autosp_onnx, tmp_path):
    out = shard(autosp_onnx, tmp_path / "out", "--sp", 4)
    manifest = json.loads((out / "manifest.json").read_text())
    ids = next(entry for entry in manifest["inputs"] if entry["name"] == "input_ids")
    assert [piece["begin"][1] for piece in ids["slices"]] == [0, 10, 20, 30]
    assert sum(entry["bytes_per_rank"] for entry in manifest["collectives"]) == manifest["totals"]["bytes_per_rank"]
    assert {entry["phase"] for entry in manifest["collectives"]} == {"forward", "backward"}
    assert [entry["role"] for entry in manifest["outputs"]].count("gradient") == 21
    again = autosp_onnx("shard", LLAMA, "--sp", 4, "-o", out, "--json")
    assert json.loads(again.stdout) == manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def with_weights(folder, **save_options):
    """The Llama graph with its parameters as initializers."""
    model = onnx.load(LLAMA)
    arrays = read(FEED)
    inputs = list(model.graph.input)
    del model.graph.input[:]
    for value in inputs:
        if value.name in ("input_ids", "labels"):
            model.graph.input.append(value)
        else:
            model.graph.initializer.append(onnx.numpy_helper.from_array(arrays[value.name], value.name))
    folder.mkdir()
    onnx.save(model, folder / "model.onnx", **save_options)
    return folder / "model.onnx"


def test_external_weights_stay_outside_the_graphs(autosp_onnx, tmp_path):
    model = with_weights(
        tmp_path / "model", save_as_external_data=True, location="weights.bin", size_threshold=300
    )
    out = shard(autosp_onnx, tmp_path / "out", "--sp", 2, model=model)
    assert (out / "weights.bin").read_bytes() == (model.parent / "weights.bin").read_bytes()
    assert (out / "rank_0.onnx").stat().st_size < (out / "weights.bin").stat().st_size
    validated = autosp_onnx("validate", model, out, "--feed", FEED)
    assert validated.returncode == 0, validated.stdout + validated.stderr
    run = autosp_onnx("run", out, "--feed", FEED, "--output", tmp_path / "o.npz")
    assert run.returncode == 0, run.stderr
    assert_file_holds_step(tmp_path / "o.npz", TrainingGraph(LLAMA).step(read(FEED)))
    (model.parent / "weights.bin").unlink()
    missing = autosp_onnx("shard", model, "--sp", 2, "-o", tmp_path / "again")
    assert missing.returncode == 2 and "is missing" in missing.stderr


def test_ranks_share_one_file_of_the_models_own_weights(autosp_onnx, tmp_path):
    model = with_weights(tmp_path / "model")
    out = shard(autosp_onnx, tmp_path / "out", "--sp", 4, "--dialect", "autosp,standard", model=model)
    weights = (out / "parameters.bin").stat().st_size
    assert weights > 600_000
    for graph in ("rank_0.onnx", "emulated.onnx"):
        names = {tensor.name for tensor in onnx.load(out / graph, load_external_data=False).graph.initializer
                 if tensor.data_location == TensorProto.EXTERNAL}  # fmt: skip
        assert {name for name, array in read(FEED).items() if array.nbytes >= 4096 and "weight" in name} <= names
    onnx.checker.check_model(out / "emulated.onnx", full_check=True)
    inputs = {name: read(FEED)[name] for name in ("input_ids", "labels")}
    expected = TrainingGraph(LLAMA).step(read(FEED))
    assert_same_step(run_in_onnxruntime(out / "emulated.onnx", inputs), expected)
    run = autosp_onnx("run", out, "--feed", FEED, "--output", tmp_path / "o.npz")
    assert run.returncode == 0, run.stderr
    assert_file_holds_step(tmp_path / "o.npz", expected)
    assert autosp_onnx("validate", model, out, "--feed", FEED).returncode == 0


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_left_alone(autosp_onnx, folder, model, message):
    before = contents(folder)
    result = autosp_onnx("shard", model, "--sp", 2, "-o", folder)
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr and "\nhelp: " in result.stderr
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("manifest", ["{}", '{"name": "a web page"}', None], ids=["empty", "foreign", "ours"])
def test_shard_removes_nothing_but_its_own_files(autosp_onnx, tmp_path, manifest):
    folder = tmp_path / "out"
    if manifest is None:
        shard(autosp_onnx, folder, "--sp", 2)
    else:
        folder.mkdir()
        (folder / "manifest.json").write_text(manifest)
    (folder / "notes").mkdir()
    (folder / "notes" / "thesis.txt").write_text("years of work")
    assert_left_alone(autosp_onnx, folder, LLAMA, "is not a sharded model")


def test_shard_does_not_write_over_its_model(autosp_onnx, tmp_path):
    out = tmp_path / "out"
    model = with_weights(out, save_as_external_data=True, location="weights.bin", size_threshold=300)
    assert_left_alone(autosp_onnx, out, model, "is read from")
    (out / "deep").mkdir()
    (out / "deep" / "model.onnx").write_bytes(LLAMA.read_bytes())
    assert_left_alone(autosp_onnx, out, out / "deep" / "model.onnx", "is read from")


@pytest.mark.parametrize("options", [{}, {"save_as_external_data": True, "location": "w.bin"}], ids=["own", "apart"])
def test_shard_replaces_an_earlier_result_with_data(autosp_onnx, tmp_path, options):
    model = with_weights(tmp_path / "model", **options)
    out = shard(autosp_onnx, tmp_path / "out", "--sp", 3, "--dialect", "autosp,standard", model=model)
    shard(autosp_onnx, str(out) + "/", "--sp", 2, model=model)
    assert not (out / "rank_2.onnx").exists() and (out / "rank_1.onnx").exists()


def start_shard(request, arguments):
    """The command under way, with signals as a shell leaves them to a command in the foreground."""
    binary = pathlib.Path(request.config.getoption("--autosp-onnx")).resolve()

    def default_signals():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)

    command = [binary, "shard", *map(str, arguments)]
    return subprocess.Popen(command, preexec_fn=default_signals, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("earlier", [False, True], ids=["new", "replacing"])
def test_an_interrupted_shard_leaves_nothing(autosp_onnx, request, tmp_path, number, earlier):
    out = tmp_path / "out"
    if earlier:
        shard(autosp_onnx, out, "--sp", 2)
    before = contents(out)
    started = start_shard(request, [GRAPHS / "llama.onnx", "--dim", "seq=512", "--sp", 128, "-o", out])
    wait_for(lambda: any(path.name.startswith("out.") for path in tmp_path.iterdir()) or started.poll() is not None)
    started.send_signal(number)
    _, message = started.communicate(timeout=60)
    assert started.returncode == 128 + number, message
    assert message == "interrupted: nothing was written\n"
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if earlier else [])


def test_a_folder_that_is_replaced_is_never_missing(autosp_onnx, request, tmp_path):
    out = shard(autosp_onnx, tmp_path / "out", "--sp", 2)
    for ranks in (3, 2, 4):
        started = start_shard(request, [LLAMA, "--sp", ranks, "-o", out])
        while started.poll() is None:
            for _ in range(1000):
                os.stat(out / "manifest.json")
        assert started.communicate()[1] == "" and started.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_names_need_not_be_utf8(autosp_onnx, tmp_path):
    """A node's name in Latin-1, in a trace under MPI; the results come in any case."""
    out = shard(autosp_onnx, tmp_path / "out", "--sp", 2)
    for rank in range(2):
        path = out / f"rank_{rank}.onnx"
        model = onnx.load(path)
        model.graph.node[0].name = "Z" * 40 + "name"
        path.write_bytes(model.SerializeToString().replace(b"Z" * 40 + b"name", b"\xe9" * 40 + b"name"))
    for transport in ("threads", "mpi"):
        output, trace = tmp_path / f"{transport}.npz", tmp_path / f"{transport}.json"
        run = autosp_onnx("run", out, "--transport", transport, "--feed", FEED, "--output", output, "--trace", trace)
        assert run.returncode == 0, run.stderr
        assert output.exists()
        names = {event["name"] for event in json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]}
        assert "\ufffd" * 40 + "name" in names


def test_a_trace_holds_one_step(autosp_onnx, four_ranks, tmp_path):
    counts = []
    for repeat in (1, 3):
        path = tmp_path / f"{repeat}.json"
        run = autosp_onnx("run", four_ranks, "--feed", FEED, "--trace", path, "--repeat", repeat)
        assert run.returncode == 0, run.stderr
        counts.append(len(json.loads(path.read_text())["traceEvents"]))
    assert counts[0] == counts[1]


def tiny_model(nodes, outputs=("loss", "w.grad")):
    def floats(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 6])

    graph = helper.make_graph(nodes, "g", [floats("x"), floats("w")], [floats(name) for name in outputs])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def node(operator, inputs, output):
    return helper.make_node(operator, inputs, [output], name=f"make_{output}")


BAD_MODELS = {
    "unknown operator": (
        tiny_model([node("Sofmax", ["x"], "loss"), node("Mul", ["x", "w"], "w.grad")]),
        ["make_loss", "'Sofmax', which is not known", "'Softmax'"],
    ),
    "cycle": (
        tiny_model([node("Add", ["x", "w.grad"], "loss"), node("Mul", ["loss", "w"], "w.grad")]),
        ["cycle", "make_loss: Add", "make_w.grad: Mul"],
    ),
    "no gradient": (tiny_model([node("Mul", ["x", "w"], "loss")], ["loss"]), ["gradient"]),
    "undefined value": (
        tiny_model([node("Mul", ["x", "nothing"], "loss"), node("Mul", ["x", "w"], "w.grad")]),
        ["'nothing', which nothing defines"],
    ),
    "shapes that do not fit": (
        tiny_model([node("MatMul", ["x", "w"], "loss"), node("Mul", ["x", "w"], "w.grad")]),
        ["make_loss: MatMul", "[4, 6]"],
    ),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_models_are_refused_by_name(autosp_onnx, tmp_path, name):
    model, expected = BAD_MODELS[name]
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    result = autosp_onnx("shard", tmp_path / "m.onnx", "--sp", 2, "-o", tmp_path / "out")
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.startswith("error: ")
    for part in expected:
        assert part in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]


BAD_CALLS = {
    "no such file": (["shard", "none.onnx", "-o", "out"], "there is no file 'none.onnx'"),
    "not a model": (["shard", __file__, "-o", "out"], "is not an ONNX file"),
    "unbound dimension": (["shard", GRAPHS / "llama.onnx", "--sp", 2, "-o", "out"], "--dim seq=N"),
    "unknown dimension": (["shard", GRAPHS / "llama.onnx", "--dim", "sek=8", "-o", "out"], "did you mean --dim seq=8?"),
    "more ranks than tokens": (["shard", LLAMA, "--sp", 41, "-o", "out"], "more ranks than"),
    "no ranks": (["shard", LLAMA, "--sp", 0, "-o", "out"], "--sp: takes a whole number of 1 or more, not '0'"),
    "no output folder": (["shard", LLAMA], "'autosp-onnx shard --help'"),
    "unknown pass": (["inspect", LLAMA, "--print-after", "fold_constant"], "did you mean 'fold_constants'?"),
    "unknown command": (["shart", LLAMA], "did you mean 'shard'?"),
    "unknown value": (["explain", LLAMA, "nothing_like_it"], "has no value 'nothing_like_it'"),
    "endless time-out": (["run", GRAPHS, "--feed", FEED, "--timeout", "1e30"], "at most 1000000"),
    "time-out of no number": (["validate", LLAMA, GRAPHS, "--timeout", "nan"], "at most 1000000"),
    "threads without number": (["run", GRAPHS, "--feed", FEED, "--threads-per-rank", "1e9"], "from 0 to 1024"),
    "too many threads": (["run", GRAPHS, "--feed", FEED, "--threads-per-rank", "2000"], "from 0 to 1024, not '2000'"),
    "mesh without size": (["shard", LLAMA, "--sp-mesh", "u", "-o", "out"], "--sp-mesh takes NAME=VALUE"),
    "mesh of another size": (["shard", LLAMA, "--sp", 8, "--sp-mesh", "r=2,u=2", "-o", "out"], "has 4 ranks, --sp asks"),
    "mesh beyond the heads": (["shard", LLAMA, "--sp", 8, "--sp-mesh", "u=8", "-o", "out"], "attention has 4 KV heads"),
    "folder is a file": (["shard", LLAMA, "-o", __file__], "is a file"),
    "folder in a file": (["shard", LLAMA, "-o", f"{__file__}/out"], "Not a directory"),
    "no manifest": (["run", GRAPHS, "--feed", FEED], "there is no manifest.json"),
    "device is a folder": (["plan", LLAMA, "--device", GRAPHS], "neither a known device nor a file"),
    "model is a folder": (["inspect", GRAPHS], "is a folder, not a file"),
    "folder to validate": (["validate", GRAPHS, GRAPHS], "is"),
    "half a dimension": (["shard", LLAMA, "--seq", "input_ids", "-o", "out"], "--seq input_ids:1"),
    "sequence as batch": (["shard", LLAMA, "--batch", "input_ids:1", "-o", "out"], "a sequence and a batch"),
    "the folder around": (["shard", LLAMA, "-o", "."], "the folder that this runs in"),
    "the folder around again": (["shard", LLAMA, "-o", "sub/.."], "the folder that this runs in"),
    "misspelt option": (["shard", LLAMA, "--outptu", "out"], "did you mean '--output'?"),
    "threads below none": (["run", GRAPHS, "--feed", FEED, "--threads-per-rank", -2], "from 0 to 1024, not '-2'"),
    "seed below none": (["validate", LLAMA, GRAPHS, "--seed", -1], "not '-1'"),
    "sweep of a bad mesh": (["plan", LLAMA, "--sweep", "--sp-mesh", "u=8"], "attention has 4 KV heads"),
    "foreign folder": (["shard", LLAMA, "-o", pathlib.Path(__file__).parent], "is not a sharded model"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_say_what_to_do(autosp_onnx, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    arguments, expected = BAD_CALLS[name]
    result = autosp_onnx(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert expected in result.stderr
    assert "\nnote: " in result.stderr and "\nhelp: " in result.stderr
    assert list(tmp_path.iterdir()) == [] and result.stdout == ""


def test_truncated_models_are_noticed(autosp_onnx, tmp_path):
    (tmp_path / "m.onnx").write_bytes(LLAMA.read_bytes()[:-100])
    result = autosp_onnx("inspect", tmp_path / "m.onnx")
    assert result.returncode == 2
    assert "truncated" in result.stderr


def test_feeds_that_do_not_fit_are_listed(autosp_onnx, four_ranks, tmp_path):
    arrays = read(FEED)
    del arrays["lm_head.weight"]
    arrays["labels"] = arrays["labels"][:, 1:]
    arrays["input_ids"] = arrays["input_ids"].astype(np.int32)
    np.savez(tmp_path / "feed.npz", **arrays)
    for transport in ("threads", "mpi"):
        result = autosp_onnx("run", four_ranks, "--transport", transport, "--feed", tmp_path / "feed.npz")
        assert result.returncode == 2
        assert "'lm_head.weight' float32[112, 96] is missing" in result.stderr
        assert "'labels' is int64[3, 39], not int64[3, 40]" in result.stderr
        assert "'input_ids' is int32[3, 40], not int64[3, 40]" in result.stderr
    wrong = autosp_onnx("run", four_ranks, "--np", 2, "--feed", FEED)
    assert wrong.returncode == 2 and "sharded over 4 ranks, but 2" in wrong.stderr


def test_inspect_reports_roles_and_limits(autosp_onnx):
    report = json.loads(autosp_onnx("inspect", GRAPHS / "llama.onnx", "--dim", "seq=64", "--json").stdout)
    assert (report["kv_heads"], report["query_heads"], report["attention_layers"]) == (4, 8, 2)
    assert report["loss"] == "loss" and len(report["gradients"]) == 21
    assert report["sequence_extent"] == 64
    text = autosp_onnx("inspect", GRAPHS / "llama.onnx", "--dim", "seq=64").stdout
    assert "sp 1, 2, 3, 4, 6, 8 by heads alone: 8 query heads (4 KV heads x 2 groups)" in text
    assert "any other sp up to 64 (positions) splits queries too and gathers keys and values (axis r)" in text
    assert "seq              input_ids:1, labels:1" in autosp_onnx("inspect", GRAPHS / "llama.onnx", "--dims").stdout


def test_explain_says_how_a_value_is_split(autosp_onnx):
    options = ("--dim", "seq=64", "--sp", 4)
    text = autosp_onnx("explain", GRAPHS / "llama.onnx", "loss", *options).stdout
    assert text.startswith("loss: float32[]") and "u: replicated" in text
    report = json.loads(autosp_onnx("explain", GRAPHS / "llama.onnx", "lm_head.weight.grad", *options, "--json").stdout)
    assert report["layout"] == "u: partial" and report["mesh"] == "u 4"


def test_passes_can_be_watched(autosp_onnx):
    result = autosp_onnx("inspect", LLAMA, "--print-after", "import", "--timing")
    model = onnx.parser.parse_model(result.stdout[: result.stdout.index("llama_static.onnx:")])
    assert "Softmax" in {entry.op_type for entry in model.graph.node}
    assert result.stderr.splitlines()[0].startswith("import ")


@pytest.mark.parametrize("command", ["shard", "run", "validate", "inspect", "explain"])
def test_every_command_shows_an_example(autosp_onnx, command):
    result = autosp_onnx(command, "--help")
    assert result.returncode == 0
    assert f"autosp-onnx {command} " in result.stdout
    assert "Example" in result.stdout
    assert command in autosp_onnx("--help").stdout


def test_version(autosp_onnx):
    assert autosp_onnx("--version").stdout.startswith("autosp-onnx 0.")


def test_weights_behind_a_link_are_named_as_such(autosp_onnx, tmp_path):
    """As a cache of downloads has them."""
    folder, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    folder.mkdir()
    blobs.mkdir()
    model = onnx.load(LLAMA)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(4096, np.float32), "extra"))
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin")
    (folder / "weights.bin").rename(blobs / "0123abcd")
    (folder / "weights.bin").symlink_to(blobs / "0123abcd")
    result = autosp_onnx("shard", folder / "model.onnx", "--sp", 2, "-o", tmp_path / "out")
    assert result.returncode == 2
    assert f"'weights.bin', a symbolic link to '{blobs / '0123abcd'}'" in result.stderr
    assert "help: " in result.stderr and "cp -rL" in result.stderr


def test_a_manifest_without_outputs_is_refused(autosp_onnx, tmp_path):
    shard(autosp_onnx, tmp_path / "out", "--sp", 2)
    path = tmp_path / "out" / "manifest.json"
    fields = json.loads(path.read_text())
    del fields["outputs"]
    path.write_text(json.dumps(fields))
    result = autosp_onnx("run", tmp_path / "out", "--feed", FEED)
    assert result.returncode == 2 and "lists no outputs" in result.stderr


def test_arrays_in_fortran_order_are_fed_as_others(autosp_onnx, tmp_path):
    shard(autosp_onnx, tmp_path / "out", "--sp", 2)
    np.savez(tmp_path / "feed.npz", **{name: np.asfortranarray(array) for name, array in read(FEED).items()})
    for feed, results in ((FEED, "a.npz"), (tmp_path / "feed.npz", "b.npz")):
        assert autosp_onnx("run", tmp_path / "out", "--feed", feed, "--output", tmp_path / results).returncode == 0
    first, second = read(tmp_path / "a.npz"), read(tmp_path / "b.npz")
    assert all(np.array_equal(first[name], second[name]) for name in first)
