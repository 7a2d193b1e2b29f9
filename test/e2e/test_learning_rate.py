"""`train --warmup --decay`: the rates that it says, and that it trains with."""

import json
import math

import numpy as np
import pytest
import training_reference as reference
from training_graph import GRAPHS, TrainingGraph

STEPS = 6


@pytest.fixture(scope="module")
def folder(autosp_onnx, tmp_path_factory):
    graph = TrainingGraph(GRAPHS / "llama.onnx")
    data, parameters = reference.batches_of(graph, {"seq": 22}, count=STEPS)
    base = tmp_path_factory.mktemp("rates")
    np.savez(base / "data.npz", **data)
    np.savez(base / "parameters.npz", **parameters)
    options = ["--optimizer", "sgd", "--momentum", 0.5, "--sp", 2]
    assert autosp_onnx("shard", graph.path, "--dim", "seq=22", "-o", base / "out", *options).returncode == 0
    return base


@pytest.fixture
def train(autosp_onnx, folder, tmp_path):
    def call(*options, steps=STEPS):
        data = ["--data", folder / "data.npz", "--init", folder / "parameters.npz"]
        output = ["--output", tmp_path / "trained.npz", "--json"]
        result = autosp_onnx("train", folder / "out", *data, "--steps", steps, *output, *options)
        assert result.returncode == 0, result.stderr
        with np.load(tmp_path / "trained.npz") as trained:
            return [step["learning_rate"] for step in json.loads(result.stdout)["steps"]], dict(trained)

    return call


def cosine(step):
    return 0.1 * step / 2 if step <= 2 else 0.01 + 0.09 * (1 + math.cos(math.pi * (step - 2) / 4)) / 2


def linear(step):
    return 0.1 * (1 - min(1, step / 4))


@pytest.mark.parametrize(
    ("options", "formula"),
    [
        (["--warmup", 2, "--decay", "cosine", "--lr-end", 0.01], cosine),
        (["--decay", "linear", "--decay-steps", 4], linear),
        (["--warmup", 4], lambda step: 0.1 * min(1, step / 4)),
    ],
    ids=["cosine", "linear", "warmup"],
)
@pytest.mark.parametrize("transport", ["threads", "mpi"])
def test_each_step_has_its_rate(train, tmp_path, options, formula, transport):
    rates, trained = train("--lr", 0.1, *options, "--transport", transport)
    assert rates == pytest.approx([formula(step) for step in range(1, STEPS + 1)], rel=1e-12, abs=1e-18)
    # The same steps, one by one, each with a constant rate.
    saved = tmp_path / "saved"
    for step, rate in enumerate(rates, 1):
        _, one_by_one = train("--lr", repr(rate), "--checkpoint", saved, "--resume", steps=step)
    for name, array in trained.items():
        assert np.array_equal(array, one_by_one[name]), name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lr-end", 0.1], "--lr-end is given"),
        (["--decay-steps", 3], "--decay-steps is given"),
        (["--decay", "cosine", "--warmup", STEPS], f"--warmup {STEPS} ends after"),
        (["--decay", "linear", "--warmup", 3, "--decay-steps", 3], "--warmup 3 ends after"),
        (["--decay", "steep"], "--decay"),
    ],
)
def test_what_does_not_fit_together_is_refused(autosp_onnx, folder, tmp_path, options, said):
    command = ["train", folder / "out", "--data", folder / "data.npz", "--init", folder / "parameters.npz"]
    result = autosp_onnx(*command, "--steps", STEPS, "--output", tmp_path / "trained.npz", *options)
    assert result.returncode == 2
    assert said in result.stderr
    assert not (tmp_path / "trained.npz").exists()
