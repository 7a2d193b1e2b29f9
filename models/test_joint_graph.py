"""Tests of the way from a trace to ONNX."""

from __future__ import annotations

import contextlib

import pytest
import torch
from onnxscript import ir, rewriter

import joint_graph
from export_case import export_case
from families import Dimensions, case_from_family


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
