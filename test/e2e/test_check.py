"""`check` names what stands between a model and its sharded run."""

import json

import onnx
import pytest
from onnx import helper

from training_graph import GRAPHS

LLAMA = GRAPHS / "llama.onnx"
CHECKS = ["graph", "backward", "sequence", "batch", "attention", "split", "heads", "operators", "topology", "memory"]


@pytest.fixture
def check(autosp_onnx):
    """The exit code's verdict and those of all checks by name."""

    def call(*arguments):
        result = autosp_onnx("check", *arguments, "--json")
        report = json.loads(result.stdout)
        assert result.returncode == (0 if report["passes"] else 1)
        findings = {finding["check"]: finding for finding in report["checks"]}
        assert sorted(findings) == sorted(CHECKS)
        for finding in findings.values():
            assert finding["found"]
            assert finding["help"] or finding["verdict"] in ("pass", "not-looked-at")
        return findings

    return call


def verdicts(findings, but=()):
    return {name: finding["verdict"] for name, finding in findings.items() if name not in but}


def test_a_model_that_is_ready_passes(check):
    assert set(verdicts(check(LLAMA, "--dim", "seq=4096", "--sp", 4)).values()) == {"pass"}


def test_what_is_unknown_is_said_to_be(check):
    findings = check(LLAMA, "--sp", 4)
    assert findings["graph"]["verdict"] == "fail"
    assert "'seq'" in findings["graph"]["found"]
    assert "--dim seq=" in findings["graph"]["help"]
    assert set(verdicts(findings, ["graph"]).values()) == {"not-looked-at"}


def test_ranks_that_do_not_divide_the_heads(check):
    findings = check(LLAMA, "--dim", "seq=4096", "--sp", 5, "--ranks-per-machine", 4)
    assert set(verdicts(findings, ["heads", "topology"]).values()) == {"pass"}
    assert findings["heads"]["verdict"] == findings["topology"]["verdict"] == "warning"
    assert "1, 2, 3, 4" in findings["heads"]["help"]


def test_too_little_memory(check):
    findings = check(LLAMA, "--dim", "seq=4096", "--sp", 4, "--memory", "1MiB")
    assert findings["memory"]["verdict"] == "fail"
    assert set(verdicts(findings, ["memory"]).values()) == {"pass"}


def test_more_ranks_than_tokens(check):
    findings = check(LLAMA, "--dim", "seq=24", "--sp", 32)
    assert findings["split"]["verdict"] == "fail"
    assert findings["operators"]["verdict"] == "not-looked-at"


def test_operators_without_a_kernel(check, tmp_path):
    model = onnx.load(GRAPHS / "nano_static.onnx")
    first = next(value.name for value in model.graph.input if value.name == "input_ids")
    kept = next(k for k, node in enumerate(model.graph.node) if first in node.input)
    source = model.graph.node[kept].output[0]
    model.graph.node.insert(kept + 1, helper.make_node("Unknown", [source], [source + "_after"], domain="of.nobody"))
    for node in list(model.graph.node)[kept + 2 :]:
        for k, name in enumerate(node.input):
            if name == source:
                node.input[k] = source + "_after"
    onnx.save(model, tmp_path / "model.onnx")
    findings = check(tmp_path / "model.onnx", "--sp", 2)
    assert findings["graph"]["verdict"] == "fail"
    assert "of.nobody" in findings["graph"]["found"]


def test_a_graph_without_gradients(check, tmp_path):
    model = onnx.load(GRAPHS / "nano_static.onnx")
    del model.graph.output[1:]
    onnx.save(model, tmp_path / "model.onnx")
    findings = check(tmp_path / "model.onnx", "--sp", 2)
    assert "no training graph" in findings["graph"]["found"]


def test_scores_that_stay(check):
    findings = check(GRAPHS / "nano_static.onnx", "--sp", 2)
    assert findings["attention"]["verdict"] == "pass"
    assert "none forms its scores" in findings["attention"]["found"]


def test_a_missing_batch_axis(autosp_onnx, check):
    findings = check(LLAMA, "--dim", "seq=64", "--sp", 2, "--dp", 64)
    assert findings["split"]["verdict"] == "fail"
    assert autosp_onnx("check", LLAMA, "--spp", 2).returncode == 2
