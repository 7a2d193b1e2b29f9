"""Collectives beside computation: run --overlap, on this machine's link and on a slower one."""

import json

import numpy as np
import pytest
from training_graph import GRAPHS

LLAMA = GRAPHS / "llama_static.onnx"
FEED = GRAPHS / "llama.npz"


@pytest.fixture(scope="module")
def folders(autosp_onnx, tmp_path_factory):
    """Ways to shard -> folder of four ranks."""
    base = tmp_path_factory.mktemp("overlap")
    ways = {"step": (), "zero3": ("--optimizer", "sgd", "--zero", 3), "recompute": ("--recompute", "sac")}
    for name, options in ways.items():
        result = autosp_onnx("shard", LLAMA, "--sp", 4, "-o", base / name, *options)
        assert result.returncode == 0, result.stderr
    return {name: base / name for name in ways}


@pytest.mark.parametrize("transport", ["threads", "mpi"])
@pytest.mark.parametrize("way", ["step", "zero3", "recompute"])
def test_the_same_bits_as_one_after_the_other(autosp_onnx, folders, tmp_path, transport, way):
    """Also on a link whose delay would show memory that is given away too early."""
    results = []
    for name, options in (("after", []), ("beside", ["--overlap", "--link-latency", 2])):
        path = tmp_path / f"{name}.npz"
        command = ["run", folders[way], "--transport", transport, "--feed", FEED, "--output", path, "--json", *options]
        result = autosp_onnx(*command)
        assert result.returncode == 0, result.stderr
        for rank in json.loads(result.stdout)["ranks"]:
            assert 0 < rank["exposed_seconds"] <= rank["seconds"]
        results.append(np.load(path))
    for name in results[0].files:
        assert np.array_equal(results[0][name], results[1][name]), name


def test_a_slow_link_takes_as_long_as_it_says(autosp_onnx, folders):
    def collective_seconds(*options):
        result = autosp_onnx("run", folders["step"], "--feed", FEED, "--json", *options)
        assert result.returncode == 0, result.stderr
        rank = json.loads(result.stdout)["ranks"][0]
        return rank["collectives"], rank["bytes_sent"], rank["collective_seconds"]

    count, _, seconds = collective_seconds("--link-latency", 5)
    assert seconds >= 0.005 * count
    _, sent, seconds = collective_seconds("--link-rate", 0.01)
    assert seconds >= sent / (0.01 * 2**30)


@pytest.mark.parametrize("option", ["--link-latency", "--link-rate"])
def test_links_faster_than_light_are_refused(autosp_onnx, folders, option):
    result = autosp_onnx("run", folders["step"], "--feed", FEED, option, -1)
    assert result.returncode == 2
    assert option in result.stderr


@pytest.mark.parametrize("options", [(), ("--optimizer", "sgd", "--zero", 3)], ids=["step", "zero3"])
def test_plan_tells_its_memory_and_what_is_hidden(autosp_onnx, folders, options):
    def planned(*more):
        result = autosp_onnx("plan", LLAMA, "--sp", 4, "--device", "cpu", "--json", *options, *more)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    beside, after = planned("--overlap"), planned()
    assert after["exposed_seconds"] == after["collective_seconds"] == beside["collective_seconds"]
    assert 0 < beside["exposed_seconds"] < after["exposed_seconds"]
    assert beside["seconds"] == pytest.approx(beside["compute_seconds"] + beside["exposed_seconds"])
    folder = folders["zero3" if options else "step"]
    result = autosp_onnx("run", folder, "--feed", FEED, "--json", "--overlap")
    assert result.returncode == 0, result.stderr
    run = max(rank["planned_peak_bytes"] for rank in json.loads(result.stdout)["ranks"])
    assert beside["planned_peak_bytes"] == pytest.approx(run, rel=0.02)
