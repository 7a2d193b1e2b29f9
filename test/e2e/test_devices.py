"""--device and `devices`: what is said where there is no GPU, and that the CPU pays nothing for them."""

import json
import os
import pathlib
import re
import subprocess

import numpy as np
import pytest
from training_graph import GRAPHS


@pytest.fixture(scope="module")
def binary(request):
    return pathlib.Path(request.config.getoption("--autosp-onnx")).resolve()


@pytest.fixture(scope="module")
def module(binary):
    """The library for CUDA devices, or None where it was not built."""
    path = binary.parents[1] / "lib" / "libautosp_cuda.so"
    return path if path.exists() else None


@pytest.fixture(scope="module")
def report(autosp_onnx):
    result = autosp_onnx("devices", "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def sharded(autosp_onnx, tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices") / "out"
    result = autosp_onnx(
        "shard", GRAPHS / "nano.onnx", "--dim", "seq=40", "--sp", 2, "--optimizer", "sgd", "-o", folder
    )
    assert result.returncode == 0, result.stderr
    return folder


def test_devices_lists_the_cpu_and_says_why_there_is_no_gpu(autosp_onnx, report, module):
    assert report["cpu"]["cores"] >= 1
    cuda = report["cuda"]
    assert cuda["built"] == (module is not None)
    assert bool(cuda["devices"]) == (cuda["reason"] is None)
    text = autosp_onnx("devices").stdout
    assert re.search(rf"^cpu +{report['cpu']['cores']} core", text, re.MULTILINE)
    assert (cuda["reason"] or cuda["devices"][0]["name"]) in text
    if module is not None:
        assert cuda["toolkit"] in text
        assert all(name in text for name in cuda["libraries"])


@pytest.mark.parametrize("option", [["--overlap"], ["--link-latency", 1], ["--link-rate", 1]])
def test_options_of_the_cpu_are_refused_on_devices(autosp_onnx, sharded, option):
    result = autosp_onnx("run", sharded, "--feed", GRAPHS / "nano.npz", "--device", "cuda", *option)
    assert result.returncode == 2
    assert f"{option[0]} is given, which is of --device cpu" in result.stderr


def commands(sharded, tmp_path):
    data = GRAPHS / "nano.npz"
    return [
        ("run", sharded, "--feed", data),
        ("run", sharded, "--feed", data, "--transport", "mpi"),
        ("validate", GRAPHS / "nano.onnx", sharded, "--feed", data),
        ("train", sharded, "--data", data, "--steps", 1, "--output", tmp_path / "trained.npz"),
    ]


def test_without_a_gpu_every_command_says_so_and_writes_nothing(autosp_onnx, report, sharded, tmp_path):
    if report["cuda"]["devices"]:
        pytest.skip(f"there is a GPU: {report['cuda']['devices'][0]['name']}")
    for words in commands(sharded, tmp_path):
        result = autosp_onnx(*words, "--device", "cuda")
        assert result.returncode == 2, (words, result.stderr)
        lines = result.stderr.splitlines()
        assert [line.split(":")[0] for line in lines] == ["error", "note", "help"], result.stderr
        assert report["cuda"]["reason"] in lines[0]
        assert result.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def emulated(binary):
    """Calls the program with the emulated device in CUDA's place; `lacks`: what that is without."""

    def call(*words, lacks=""):
        environment = {
            **os.environ,
            "AUTOSP_CUDA_MODULE": str(binary.parents[1] / "lib/libautosp_emulated.so"),
            "AUTOSP_EMULATED_LACKS": lacks,
        }
        command = [binary, *map(str, words), "--device", "cuda"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        return result

    return call


CHAINS_APART = "elementwise operators that could be one kernel are one each"


def test_fused_steps_on_a_device_give_what_they_give_one_by_one(emulated, sharded, tmp_path):
    """On the emulated device, which compiles chains with the host's compiler."""
    losses = []
    for options in ([], ["--fuse"]):
        trace = tmp_path / f"trace{len(options)}.json"
        command = ["run", sharded, "--feed", GRAPHS / "nano.npz", "--trace", trace, "--json"]
        result = emulated(*command, *options)
        assert CHAINS_APART not in result.stderr
        losses.append(json.loads(result.stdout)["ranks"][0]["loss"])
        chains = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("cat") == "Chain"]
        assert bool(chains) == bool(options)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_every_command_fuses_where_it_is_asked_to(emulated, sharded, tmp_path):
    *others, train = commands(sharded, tmp_path)
    curves = ("validate", GRAPHS / "nano.onnx", sharded, "--steps", 2)
    for words in (*others, curves, train, (*train, "--transport", "mpi")):
        for option in ([], ["--fuse"]):
            result = emulated(*words, *option, lacks="compiler")
            assert (CHAINS_APART in result.stderr) == bool(option), (words, option)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_training_fused_gives_what_it_gives_one_by_one(autosp_onnx, emulated, sharded, tmp_path, device):
    parameters = []
    for options in ([], ["--fuse"]):
        output = tmp_path / f"trained{len(options)}.npz"
        words = ["train", sharded, "--data", GRAPHS / "nano.npz", "--steps", 3, "--lr", 0.1, "--output", output, *options]
        result = emulated(*words) if device == "cuda" else autosp_onnx(*words)
        assert result.returncode == 0 and CHAINS_APART not in result.stderr
        parameters.append(np.load(output))
    assert len(parameters[0].files) > 5
    for name in parameters[0].files:
        scale = np.abs(parameters[0][name]).max()
        np.testing.assert_allclose(parameters[1][name], parameters[0][name], rtol=0, atol=1e-5 * max(scale, 1e-2))


@pytest.mark.parametrize("ranks", [1, 2])
def test_captured_training_steps_give_the_bits_of_queued_ones(autosp_onnx, emulated, tmp_path, ranks):
    """A new batch, draw, learning rate and count in every step; two micro-batches are three programs."""
    model = GRAPHS / "dropout" / "gpt2.onnx"
    data, out = tmp_path / "batches.npz", tmp_path / "out"
    rng = np.random.default_rng(5)
    with np.load(model.with_suffix(".npz")) as feed:
        batches = dict(feed)
    for name in ("input_ids", "labels"):
        batches[name] = np.stack([rng.permuted(batches[name], axis=1) for _ in range(8)])
    np.savez(data, **batches)
    _, batch, sequence = batches["input_ids"].shape
    words = ["shard", model, "--dim", f"seq={sequence}", "--dim", f"batch={batch}", "--sp", ranks]
    result = autosp_onnx(*words, "--optimizer", "adamw", "--accumulate", 2, "-o", out)
    assert result.returncode == 0, result.stderr
    train = ["train", out, "--data", data, "--steps", 4, "--lr", 0.01, "--warmup", 2, "--decay", "linear"]
    trained = []
    for lacks in ("", "capture"):
        output = tmp_path / f"trained{lacks}.npz"
        result = emulated(*train, "--output", output, lacks=lacks)
        assert ("a step cannot be kept" in result.stderr) == bool(lacks)  # only a device that is asked to says so
        assert "on the host" not in result.stderr
        trained.append(np.load(output))
    for name in trained[0].files:
        assert np.array_equal(trained[0][name], trained[1][name]), name


def test_devices_that_there_are_not_are_refused(autosp_onnx, sharded):
    result = autosp_onnx("run", sharded, "--feed", GRAPHS / "nano.npz", "--device", "tpu")
    assert result.returncode == 2
    assert "cuda" in result.stderr


def test_tf32_is_refused_on_the_cpu(autosp_onnx, sharded):
    result = autosp_onnx("run", sharded, "--feed", GRAPHS / "nano.npz", "--tf32")
    assert result.returncode == 2
    assert result.stderr.startswith("error: --tf32 needs --device cuda\nnote:")


def needed(path):
    """What the dynamic linker loads for a file."""
    text = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    return re.findall(r"NEEDED.*\[(.*)\]", text)


def test_the_program_needs_no_library_of_cuda(binary, module):
    of_cuda = re.compile("cuda|cublas|cudnn|nccl|nvrtc")
    assert not [name for name in needed(binary) if of_cuda.search(name)]
    if module is not None:
        # It is opened where a device is asked for, and looks for these itself.
        assert not [name for name in needed(module) if of_cuda.search(name)]


def test_a_run_on_the_cpu_opens_nothing_for_devices(binary, sharded, module):
    if module is None:
        pytest.skip("the library for CUDA devices was not built")
    environment = {**os.environ, "LD_DEBUG": "files"}
    for words, opened in ((["run", sharded, "--feed", GRAPHS / "nano.npz"], False), (["devices"], True)):
        result = subprocess.run(
            [binary, *words], env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        assert ("libautosp_cuda" in result.stderr) == opened


def test_a_library_of_another_build_is_refused(binary, tmp_path):
    for content, complaint in ((b"not a library", "cannot be used"), (None, "cannot be used")):
        library = tmp_path / "libautosp_cuda.so"
        if content is not None:
            library.write_bytes(content)
        else:
            source = tmp_path / "other.c"
            source.write_text(
                "struct { unsigned version; const char* build; void* f[2]; } autosp_device_module = "
                '{99, "0.0.1", {0, 0}};\n'
            )
            subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
        result = subprocess.run(
            [binary, "devices"],
            env={**os.environ, "AUTOSP_CUDA_MODULE": str(library)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0
        assert complaint in result.stdout
        if content is None:
            assert "0.0.1, interface 99" in result.stdout
