"""Feeding: a batch cut into files for the ranks, and what a run refuses to be fed."""

import json
import pathlib
import shutil

import numpy as np
import python_package
import pytest
from training_graph import GRAPHS

LLAMA = GRAPHS / "llama.onnx"
GPT2 = GRAPHS / "dropout" / "gpt2.onnx"


@pytest.fixture(scope="module", autouse=True)
def autosp(request):
    python_package.use(request)
    import autosp_onnx

    return autosp_onnx


@pytest.fixture(scope="module")
def llama(autosp_onnx, tmp_path_factory):
    """Llama over 2 x 2 ranks; batch 4, so that both replicas of a sequence differ."""
    folder = tmp_path_factory.mktemp("llama")
    result = autosp_onnx("shard", LLAMA, "--dim", "seq=40", "--sp", 4, "-o", folder / "out")
    assert result.returncode == 0, result.stderr
    return folder / "out"


@pytest.fixture
def matrix(autosp_onnx, tmp_path):
    model = GRAPHS / "matrix" / "llama_h8_kv2.onnx"
    sizes = ["--dim", "seq=61", "--dim", "batch=2"]
    result = autosp_onnx("shard", model, *sizes, "--sp", 3, "--dp", 2, "-o", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    return tmp_path / "out", dict(np.load(model.with_suffix(".npz")))


def save(path, arrays):
    np.savez(path, **arrays)
    return path


def cut(autosp_onnx, out, batch, folder):
    result = autosp_onnx("feed", out, "--feed", batch, "-o", folder)
    assert result.returncode == 0, result.stderr
    return str(folder / "rank_{rank}.npz")


def lines(result):
    assert result.returncode == 2, result.stdout + result.stderr
    return [line.split(":")[0] for line in result.stderr.splitlines()]


def test_files_hold_what_the_manifest_and_python_say(autosp, autosp_onnx, llama, tmp_path):
    inputs = dict(np.load(GRAPHS / "llama.npz"))
    cut(autosp_onnx, llama, GRAPHS / "llama.npz", tmp_path / "fed")
    autosp.write_feeds(llama, inputs, tmp_path / "python")
    slices = {entry["name"]: entry["slices"] for entry in json.loads((llama / "manifest.json").read_text())["inputs"]}
    for rank, expected in enumerate(autosp.feed(llama, inputs)):
        got = dict(np.load(tmp_path / "fed" / f"rank_{rank}.npz"))
        python = dict(np.load(tmp_path / "python" / f"rank_{rank}.npz"))
        stamps = [json.loads(of.pop("autosp.feed").tobytes()) for of in (got, python)]
        assert stamps[0] == stamps[1]
        assert stamps[0]["rank"] == rank
        assert got.keys() == expected.keys() == python.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array)
            np.testing.assert_array_equal(python[name], array)
            if slices[name]:
                box = slices[name][rank]
                part = tuple(slice(b, b + e) for b, e in zip(box["begin"], box["extent"], strict=True))
                np.testing.assert_array_equal(array, inputs[name][part])


@pytest.mark.parametrize("transport", ["threads", "mpi"])
def test_ranks_fed_apart_compute_what_they_compute_together(autosp_onnx, llama, tmp_path, transport):
    inputs = dict(np.load(GRAPHS / "llama.npz"))
    data = save(tmp_path / "data.npz", {name: inputs[name] for name in ("input_ids", "labels")})
    weights = save(tmp_path / "weights.npz", {name: inputs[name] for name in inputs.keys() - {"input_ids", "labels"}})
    pattern = cut(autosp_onnx, llama, data, tmp_path / "fed")
    apart = ["--feed-rank", pattern, "--feed", weights, "--output", tmp_path / "apart.npz"]
    together = ["--feed", GRAPHS / "llama.npz", "--output", tmp_path / "together.npz"]
    for options in (apart, together):
        result = autosp_onnx("run", llama, "--transport", transport, *options)
        assert result.returncode == 0, result.stderr
    expected = dict(np.load(tmp_path / "together.npz"))
    got = dict(np.load(tmp_path / "apart.npz"))
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize("transport", ["threads", "mpi"])
def test_slices_of_two_batches_are_refused(autosp_onnx, llama, tmp_path, transport):
    inputs = dict(np.load(GRAPHS / "llama.npz"))
    pattern = cut(autosp_onnx, llama, GRAPHS / "llama.npz", tmp_path / "fed")
    inputs["labels"] = np.roll(inputs["labels"], 1, axis=0)
    cut(autosp_onnx, llama, save(tmp_path / "other.npz", inputs), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "rank_2.npz", tmp_path / "fed" / "rank_2.npz")
    out = tmp_path / "results.npz"
    result = autosp_onnx("run", llama, "--transport", transport, "--feed-rank", pattern, "--output", out)
    assert result.returncode == 2
    text = result.stderr[result.stderr.index("error:") :]
    assert "ranks 0 and 2 share a sequence" in text
    assert "'labels'" in text
    assert "note:" in text and "help:" in text
    assert not out.exists()


def test_a_weight_that_differs_is_refused(autosp_onnx, llama, tmp_path):
    pattern = cut(autosp_onnx, llama, GRAPHS / "llama.npz", tmp_path / "fed")
    own = dict(np.load(tmp_path / "fed" / "rank_3.npz"))
    own["model.norm.weight"] = np.nextafter(own["model.norm.weight"], np.float32(2))
    save(tmp_path / "fed" / "rank_3.npz", own)
    result = autosp_onnx("run", llama, "--feed-rank", pattern)
    assert lines(result) == ["error", "note", "help"]
    assert "ranks 0 and 3 are fed different 'model.norm.weight'" in result.stderr


def test_replicas_may_be_fed_from_batches_of_their_own_but_not_ranks_of_one(autosp_onnx, matrix, tmp_path):
    out, inputs = matrix
    first = cut(autosp_onnx, out, save(tmp_path / "a.npz", inputs), tmp_path / "a")
    for name in ("input_ids", "labels"):
        inputs[name] = np.roll(inputs[name], 3, axis=1)
    cut(autosp_onnx, out, save(tmp_path / "b.npz", inputs), tmp_path / "b")
    for rank in (3, 4, 5):  # of the second replica
        shutil.copy(tmp_path / "b" / f"rank_{rank}.npz", tmp_path / "a" / f"rank_{rank}.npz")
    result = autosp_onnx("run", out, "--feed-rank", first)
    assert result.returncode == 0, result.stderr
    shutil.copy(tmp_path / "b" / "rank_1.npz", tmp_path / "a" / "rank_1.npz")
    result = autosp_onnx("run", out, "--feed-rank", first)
    assert lines(result) == ["error", "note", "help"]
    assert "ranks 0 and 1" in result.stderr


def test_files_in_the_wrong_place_are_refused(autosp_onnx, llama, matrix, tmp_path):
    pattern = cut(autosp_onnx, llama, GRAPHS / "llama.npz", tmp_path / "fed")
    shutil.copy(tmp_path / "fed" / "rank_1.npz", tmp_path / "fed" / "rank_0.npz")
    result = autosp_onnx("run", llama, "--feed-rank", pattern)
    assert lines(result) == ["error", "note", "help"]
    assert "was cut for rank 1" in result.stderr
    other, inputs = matrix
    pattern = cut(autosp_onnx, other, save(tmp_path / "other.npz", inputs), tmp_path / "other")
    result = autosp_onnx("run", llama, "--feed-rank", pattern)
    assert lines(result) == ["error", "note", "help"]
    assert "another model" in result.stderr


@pytest.mark.parametrize(
    "options, said",
    [
        ([], "neither --feed nor --feed-rank"),
        (["--feed-rank", "fed/rank_0.npz"], "names one file for all ranks"),
        (["--feed-rank", "nowhere/rank_{rank}.npz"], "nowhere/rank_0.npz"),
    ],
)
def test_feeds_that_cannot_be(autosp_onnx, llama, options, said):
    result = autosp_onnx("run", llama, *options)
    assert lines(result)[0] == "error"
    assert said in result.stderr


def test_a_batch_without_its_data_writes_nothing(autosp_onnx, llama, tmp_path):
    inputs = dict(np.load(GRAPHS / "llama.npz"))
    del inputs["labels"]
    result = autosp_onnx("feed", llama, "--feed", save(tmp_path / "batch.npz", inputs), "-o", tmp_path / "fed")
    assert lines(result)[0] == "error"
    assert "'labels'" in result.stderr
    assert not (tmp_path / "fed").exists()
    result = autosp_onnx("feed", llama, "--feed", GRAPHS / "llama.npz", "-o", llama)
    assert lines(result) == ["error", "note", "help"]
    assert sorted(path.suffix for path in pathlib.Path(llama).iterdir() if path.suffix == ".npz") == []


def test_the_step_comes_from_files_or_the_command_line(autosp, autosp_onnx, tmp_path):
    out = tmp_path / "out"
    assert autosp_onnx("shard", GPT2, "--dim", "seq=61", "--dim", "batch=2", "--sp", 2, "-o", out).returncode == 0
    inputs = dict(np.load(GPT2.with_suffix(".npz")))
    autosp.write_feeds(out, {**inputs, "autosp_step": np.array(4)}, tmp_path / "four")
    autosp.write_feeds(out, inputs, tmp_path / "none")

    def loss(folder, *options):
        result = autosp_onnx("run", out, "--feed-rank", str(folder / "rank_{rank}.npz"), "--json", *options)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)["ranks"][0]["loss"]

    assert loss(tmp_path / "four") == loss(tmp_path / "none", "--step", 4) != loss(tmp_path / "none")
