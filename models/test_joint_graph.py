"""Tests of the way from a trace to ONNX."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable

import pytest
import torch
from onnxscript import ir, rewriter

import export_training_graph
import joint_graph
from export_case import ROUTES, export_case
from families import Dimensions, case_from_family
from test_exporter import over_positions_case
from training_case import CannotConvert, TrainingCase


class _Unlisted:
    """A function whose nodes must not be listed."""

    graph = None

    def __iter__(self) -> None:
        raise AssertionError("all nodes are listed")


def test_rules_about_several_nodes_pass_over_nodes_of_other_operators() -> None:
    rules = [r for r in rewriter._DEFAULT_REWRITE_RULES if not r._target_pattern.has_single_output_node]
    assert rules
    node = ir.Node("", "Erf", inputs=[])
    for rule in rules:
        with joint_graph._pairs_looked_up_by_operator():
            assert not rule.match(None, _Unlisted(), node)
        with pytest.raises(AssertionError):
            rule.match(None, _Unlisted(), node)


def test_graphs_are_what_they_are_without_the_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_from_family("llama", Dimensions(layers=1), torch.float32)
    quick = export_case(case, ["seq"], checks=False).model
    assert sum(node.op_type == "Slice" for node in quick.graph.node) > 1, "no pairs to look up"
    monkeypatch.setattr(joint_graph, "_pairs_looked_up_by_operator", contextlib.nullcontext)
    assert quick.SerializeToString() == export_case(case, ["seq"], checks=False).model.SerializeToString()


@pytest.mark.parametrize(
    "over",
    [
        lambda x: x * (2.0 if x.shape[2] > 128 else 1.0),
        lambda x: x * max(1.0, x.shape[2] / 100),
        lambda x: x[..., :100].mean(2),
        lambda x: x[..., -100:].mean(2),
        lambda x: x.tensor_split(3, 2)[0],
    ],
    ids=["a threshold", "a scale", "a cut", "the end", "a remainder"],
)
@pytest.mark.parametrize("route", ROUTES)
def test_branches_that_no_compared_length_takes_are_refused(
    over: Callable[[torch.Tensor], torch.Tensor], route: str
) -> None:
    with pytest.raises(
        CannotConvert,
        match=r"(test_joint_graph|torch/\S+)\.py line \d+ asks whether .*seq.*, which is false at seq=\d+: .*--static",
    ):
        export_case(over_positions_case(over), ["seq"], route)


def long_branch_case() -> TrainingCase:
    return over_positions_case(lambda x: x * (2.0 if x.shape[2] > 128 else 1.0))


def test_a_branch_on_a_length_beyond_the_largest_is_none() -> None:
    case = long_branch_case()
    export_case(dataclasses.replace(case, largest={"seq": 128}), ["seq"])
    with pytest.raises(CannotConvert, match=r"test_joint_graph.py line \d+ asks whether seq <= 128"):
        export_case(dataclasses.replace(case, largest={"seq": 129}), ["seq"])


@pytest.mark.parametrize(
    ("longest", "told"), [("128", None), ("129", "asks whether seq <= 128, .* --longest N"), ("7", "less than .* seq=")]
)
def test_lengths_are_bounded_by_an_option(
    longest: str, told: str | None, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--module", f"{__name__}:long_branch_case", "--longest", longest, "-o", str(tmp_path / "g.onnx")]
    assert export_training_graph.main(options) == (2 if told else 0)
    assert (tmp_path / "g.onnx").exists() == (told is None)
    assert re.search(told or "^$", capsys.readouterr().err)


def test_branches_whose_sides_are_compared_are_exported() -> None:
    export_case(over_positions_case(lambda x: x.sin() if x.shape[2] < 50 else torch.sin(x)), ["seq"])
