"""The Python module autosp_onnx: sharding a file or a model in memory, running, comparing, and what stays on disk."""

import json
import os
import signal
import subprocess
import sys
import time

import python_package
import numpy as np
import onnx
import pytest
from google.protobuf.message import EncodeError
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


class TooLarge:
    """A model that protocol buffers refuse to write, as they do above 2 GB."""

    def __init__(self, model):
        self.model = model

    def __getattr__(self, name):
        return getattr(self.model, name)

    def ByteSize(self):
        raise EncodeError("Failed to serialize proto")

    SerializeToString = ByteSize


def test_a_model_in_memory_that_cannot_be_one_message(autosp):
    model, inputs = with_weights_inside(GPT2)
    before = model.SerializeToString()
    for tensor in model.graph.initializer[:2]:  # in fields of their type, not as bytes
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.float_data[:] = numpy_helper.to_array(tensor).ravel().tolist()
            tensor.ClearField("raw_data")
    given = model.SerializeToString()
    with autosp.shard(TooLarge(model), 2, **SIZES) as sharded:
        weights = sharded.model.parent / "weights.bin"
        assert weights.stat().st_size > 1024 and sharded.model.stat().st_size < len(before) - 1024
        assert sharded.validate(inputs)
    assert model.SerializeToString() == given


@pytest.mark.parametrize("location", ["../../victim.bin", "/etc/hostname", "a/../../victim.bin", ""])
def test_weights_outside_of_the_models_folder_are_never_placed(autosp, tmp_path, monkeypatch, location):
    model, _ = with_weights_inside(GPT2)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    placed = []
    monkeypatch.setattr("autosp_onnx.sharded_model._place", lambda *paths: placed.append(paths))
    with pytest.raises(autosp.AutospError, match="leads out of its folder"):
        autosp.shard(model, 2, data_folder=tmp_path / "a" / "b", **SIZES)
    assert placed == []


@pytest.mark.parametrize("name", ["model.onnx", "weights.bin"])
def test_weights_of_the_users_are_not_written_over(autosp, tmp_path, name):
    """They appear beside the model as links, whatever they are called."""
    graph, inputs = with_weights_inside(GPT2)
    onnx.save_model(graph, tmp_path / "saved.onnx", save_as_external_data=True, location=name, size_threshold=1024)
    weights = (tmp_path / name).read_bytes()
    model = onnx.load(tmp_path / "saved.onnx", load_external_data=False)
    extra = numpy_helper.from_array(np.zeros(4096, np.float32), "unused")
    model.graph.initializer.append(extra)
    with autosp.shard(TooLarge(model), 2, data_folder=tmp_path, **SIZES) as sharded:
        assert (tmp_path / name).read_bytes() == weights
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


def test_arguments_of_other_types_are_refused(autosp):
    for model in (None, GPT2.path.read_bytes()):
        with pytest.raises(TypeError, match="not the path of a file or an onnx.ModelProto"):
            autosp.shard(model, 2, **SIZES)
    with autosp.shard(GPT2.path, 2, **SIZES) as sharded:
        inputs = GPT2.committed_inputs
        with pytest.raises(ValueError, match="runtime is 'ort', not one of 'executor', 'onnxruntime'"):
            sharded.run(inputs, runtime="ort")
        with pytest.raises(ValueError, match="transport is 'nccl', not one of 'threads', 'mpi'"):
            sharded.run(inputs, transport="nccl")
        with pytest.raises(TypeError, match="inputs are list, not a mapping"):
            sharded.run(list(inputs))
        with pytest.raises(TypeError, match="input 'input_ids' is list, not a numpy array"):
            sharded.feed({**inputs, "input_ids": inputs["input_ids"].tolist()})


def test_onnxruntime_wants_rank_graphs(autosp):
    with autosp.shard(GPT2.path, 2, dialect="standard", **SIZES) as sharded:
        for transport in ("threads", "mpi"):
            with pytest.raises(autosp.AutospError, match="rank_0.onnx' is missing") as missing:
                sharded.run(GPT2.committed_inputs, runtime="onnxruntime", transport=transport)
            assert "--dialect autosp" in missing.value.help


def test_damaged_manifests_are_refused(autosp, tmp_path):
    with autosp.shard(GPT2.path, 2, **SIZES) as sharded:
        whole = sharded.manifest.fields
    changes = [{"ranks": []}, {"ranks": 3}, {"ranks": [{"rank": 0}]}, {"outputs": [3]}, {"inputs": [{"name": "x"}]}]
    for change in [*changes, *({name: None} for name in ("outputs", "ranks", "model", "plan_hash"))]:
        fields = {name: value for name, value in (whole | change).items() if value is not None}
        (tmp_path / "manifest.json").write_text(json.dumps(fields))
        with pytest.raises(autosp.AutospError, match="holds no sharded model"):
            autosp.ShardedModel(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(autosp.AutospError, match="holds no sharded model"):
        autosp.ShardedModel(tmp_path)


def test_a_rank_that_fails_ends_the_others(autosp, monkeypatch):
    from autosp_onnx import onnxruntime_ranks

    class Failing(onnxruntime_ranks.RankSession):
        def run(self, inputs):
            if self._session.get_modelmeta().custom_metadata_map["autosp.rank"] == "1":
                raise MemoryError("rank 1 has no memory")
            return super().run(inputs)

    monkeypatch.setattr(onnxruntime_ranks, "RankSession", Failing)
    with autosp.shard(GPT2.path, 3, **SIZES) as sharded:
        began = time.monotonic()
        with pytest.raises(MemoryError, match="rank 1"):
            sharded.run(GPT2.committed_inputs, runtime="onnxruntime", timeout=100)
        assert time.monotonic() - began < 50


@pytest.mark.parametrize("where", ["tempfile.mkdtemp", "os.rmdir", "subprocess.Popen"])
def test_interrupted_while_it_makes_or_removes_things_it_leaves_nothing(autosp, monkeypatch, where):
    """The fixture above looks for what is left."""
    module, function = where.split(".")
    real = getattr(sys.modules[module], function)
    interrupted = []

    def interrupting(*arguments, **options):
        result = None if function == "rmdir" else real(*arguments, **options)
        if not interrupted:
            interrupted.append(result)
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **options) if function == "rmdir" else result

    monkeypatch.setattr(where, interrupting)
    with pytest.raises(KeyboardInterrupt):
        autosp.shard(onnx.load(GPT2.path), 2, **SIZES).close()
    assert interrupted
    if function == "Popen":
        assert interrupted[0].poll() is not None  # ended, and waited for


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


def test_float32_is_rounded_where_a_model_takes_bfloat16(autosp):
    from autosp_onnx.arrays import as_fed

    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F800000, 0xFF800000, 0x7F800001, 0x80000000], np.uint32)
    rounded = as_fed(bits.view(np.float32), "bfloat16")
    assert rounded.dtype == np.dtype("V2")
    expected = [0x3F80, 0x3F82, 0x3F81, 0x7F80, 0xFF80, 0x7FC0, 0x8000]  # ties to even; no number stays none
    assert rounded.view(np.uint16).tolist() == expected
    assert as_fed(np.float32(1.5).reshape(()), "bfloat16").shape == ()
    untouched = np.ones(3, np.float32)
    assert as_fed(untouched, "float32") is untouched
    model = TrainingGraph(GRAPHS / "bfloat16" / "llama.onnx").model
    wanted = {value.name: value.type.tensor_type for value in model.graph.input}
    floats = {name for name, type in wanted.items() if type.elem_type == onnx.TensorProto.BFLOAT16}
    with autosp.shard(GRAPHS / "bfloat16" / "llama.onnx", 2, dim={"seq": 16}) as sharded:
        generator = np.random.default_rng(0)
        inputs = {
            part.name: generator.standard_normal(part.shape).astype(np.float32)
            if part.name in floats
            else generator.integers(0, 8, part.shape)
            for part in sharded.manifest.inputs
        }
        assert floats and {part[name].dtype for part in sharded.feed(inputs) for name in floats} == {np.dtype("V2")}
