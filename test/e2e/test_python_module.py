"""The Python module autosp_onnx: sharding a file or a model in memory, running, comparing, and what stays on disk."""

import os
import signal
import subprocess
import sys
import time

import python_package
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from training_graph import GRAPHS, TrainingGraph, assert_same_step, run_in_onnxruntime

GPT2 = TrainingGraph(GRAPHS / "gpt2.onnx")
SIZES = {"dim": GPT2.symbolic_axes}


@pytest.fixture(scope="module", autouse=True)
def autosp(request):
    python_package.use(request)
    import autosp_onnx

    return autosp_onnx


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch, tmp_path):
    """Whatever a test does, no temporary file of the module outlives it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield
    assert list(folder.glob("autosp-onnx-*")) == []


@pytest.mark.parametrize("runtime", ["executor", "onnxruntime"])
@pytest.mark.parametrize("transport", ["threads", "mpi"])
def test_every_way_to_run_equals_the_whole_model(autosp, runtime, transport):
    with autosp.shard(GPT2.path, sp=4, **SIZES) as sharded:
        assert sharded.ranks == 4
        outputs = sharded.run(GPT2.committed_inputs, runtime=runtime, transport=transport)
    assert_same_step(outputs, GPT2.step(GPT2.committed_inputs))


def test_a_model_in_memory(autosp, tmp_path):
    model = onnx.load(GPT2.path)
    before = model.SerializeToString()
    with autosp.shard(model, 2, output=tmp_path / "out", **SIZES) as sharded:
        assert sharded.validate(GPT2.committed_inputs)
        assert_same_step(sharded.run(GPT2.committed_inputs), GPT2.step(GPT2.committed_inputs))
    assert model.SerializeToString() == before
    assert autosp.ShardedModel(tmp_path / "out").manifest.loss == "loss"


def with_weights_inside(graph):
    """The model with one parameter that is an initializer instead of an input; and the inputs that are left."""
    model = onnx.load(graph.path)
    inputs = dict(graph.committed_inputs)
    name = max((value.name for value in model.graph.input), key=lambda name: inputs[name].nbytes)
    model.graph.initializer.append(numpy_helper.from_array(inputs.pop(name), name))
    kept = [value for value in model.graph.input if value.name != name]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model, inputs


def test_a_model_in_memory_whose_weights_are_in_a_file(autosp, tmp_path):
    model, inputs = with_weights_inside(GPT2)
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    expected = run_in_onnxruntime(path, inputs)
    light = onnx.load(path, load_external_data=False)
    with pytest.raises(autosp.AutospError, match=r"keeps weights in 'weights\.bin'") as refusal:
        autosp.shard(light, 2, **SIZES)
    assert "data_folder" in refusal.value.help
    with pytest.raises(autosp.AutospError, match="cannot be read"):
        autosp.shard(light, 2, data_folder=tmp_path, **SIZES)
    with autosp.shard(light, 2, data_folder=tmp_path / "data", **SIZES) as sharded:
        for runtime in ("executor", "onnxruntime"):
            assert_same_step(sharded.run(inputs, runtime=runtime), expected)


def test_a_model_in_memory_too_large_for_one_file(autosp, monkeypatch):
    monkeypatch.setattr("autosp_onnx.sharded_model._LARGEST_MESSAGE", 1 << 10)
    model, inputs = with_weights_inside(GPT2)
    with autosp.shard(model, 2, **SIZES) as sharded:
        assert (sharded.model.parent / "weights.bin").stat().st_size > 1024
        assert sharded.validate(inputs)


def test_feed_cuts_as_the_manifest_says(autosp):
    with autosp.shard(GPT2.path, sp=3, **SIZES) as sharded:
        parts = sharded.feed(GPT2.committed_inputs)
        described = {entry.name: entry for entry in sharded.manifest.inputs}
    assert len(parts) == 3
    for name, whole in GPT2.committed_inputs.items():
        for rank, part in enumerate(parts):
            cut = described[name].slices
            expected = whole[cut[rank]] if cut else whole
            assert np.array_equal(part[name], expected) and part[name].dtype == whole.dtype
    joined = np.concatenate([part["input_ids"] for part in parts], axis=1)
    assert np.array_equal(joined, GPT2.committed_inputs["input_ids"])
    assert all(len(part["input_ids"][0]) < len(joined[0]) for part in parts)


def test_feeds_are_arrays_down_to_the_step(autosp):
    """ONNX Runtime takes no numpy scalars."""
    dropout = TrainingGraph(GRAPHS / "dropout" / "gpt2.onnx")
    inputs = dropout.committed_inputs
    with autosp.shard(dropout.path, sp=2, dim=dropout.symbolic_axes) as sharded:
        for given, step in ((inputs, 0), ({**inputs, "autosp_step": np.int64(7)}, 7)):
            for part in sharded.feed(given):
                assert all(type(array) is np.ndarray for array in part.values())
                assert part["autosp_step"].shape == () and part["autosp_step"] == step


def test_validate_finds_differences(autosp, tmp_path):
    sharded = autosp.shard(GPT2.path, sp=2, output=tmp_path / "out", **SIZES)
    path = sharded.manifest.graph(1)
    model = onnx.load(path)
    name = sharded.manifest.gradients["transformer.ln_f.weight"]
    [node] = [node for node in model.graph.node if name in node.output]
    node.output[list(node.output).index(name)] = "half"
    model.graph.node.append(onnx.helper.make_node("Add", ["half", "half"], [name], name="double"))
    [output] = [output for output in model.graph.output if output.name == name]
    model.graph.value_info.add(name="half", type=output.type)
    onnx.save(model, path)
    found = sharded.validate(GPT2.committed_inputs)
    assert not found and not found.equal
    assert [output["name"] for output in found.report["outputs"] if not output["equal"]] == [name]


def test_errors_say_what_to_do(autosp, tmp_path):
    with pytest.raises(autosp.AutospError, match="there is no file") as missing:
        autosp.shard(tmp_path / "none.onnx", 2)
    assert missing.value.exit_code == 2 and missing.value.help
    with pytest.raises(autosp.AutospError) as misspelt:
        autosp.shard(GPT2.path, 2, dims={"seq": 40})
    assert "did you mean '--dim'" in misspelt.value.help
    with pytest.raises(autosp.AutospError, match="holds no sharded model"):
        autosp.ShardedModel(tmp_path)
    with autosp.shard(GPT2.path, 2, **SIZES) as sharded:
        inputs = dict(GPT2.committed_inputs)
        inputs["input_idz"] = inputs.pop("input_ids")
        with pytest.raises(autosp.AutospError, match=r"'input_ids' int64.* is missing \(it has 'input_idz'\)"):
            sharded.run(inputs)
        inputs = {**GPT2.committed_inputs, "input_ids": GPT2.committed_inputs["input_ids"].astype(np.int32)}
        with pytest.raises(autosp.AutospError, match="'input_ids' is int32"):
            sharded.feed(inputs)


def test_options_become_those_of_the_command(autosp):
    options = {"recompute": "full", "seq": ["input_ids:1", "labels:1"], "strict": True, "tile": None}
    with autosp.shard(GPT2.path, sp_mesh={"u": 2}, dp=2, **SIZES, **options) as sharded:
        assert sharded.ranks == 4
        assert {axis["name"]: axis["size"] for axis in sharded.manifest.fields["mesh"]} == {"dp": 2, "u": 2}
        assert sharded.manifest.fields["recompute"]["policy"] == "full"


@pytest.mark.parametrize("way", ["signal", "keyboard"])
def test_interrupted_it_leaves_nothing(tmp_path, way):
    """A program that would run for a minute stands in for the binary, and says who it is."""
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    program = home / "bin" / "autosp-onnx"
    program.write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/pid.part && mv {tmp_path}/pid.part {tmp_path}/pid\nexec sleep 60\n"
    )
    program.chmod(0o755)
    script = "import autosp_onnx, onnx, sys; autosp_onnx.shard(onnx.load(sys.argv[1]), 2)"
    child = subprocess.Popen(
        [sys.executable, "-c", script, GPT2.path],
        env=os.environ | {"AUTOSP_ONNX_HOME": str(home)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(300):
        if (tmp_path / "pid").exists():
            break
        time.sleep(0.1)
    started = int((tmp_path / "pid").read_text())
    if way == "keyboard":
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    else:
        child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=30)
    assert "KeyboardInterrupt" in error and child.returncode != 0
    with pytest.raises(ProcessLookupError):
        os.kill(started, 0)
