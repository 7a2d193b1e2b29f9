"""Inputs whose valid tokens are spread unevenly over the ranks: a mean of shard means would be wrong."""

import numpy as np
import pytest

from training_graph import GRAPHS, TrainingGraph, assert_same_step, run_in_onnxruntime

SP = 4
LENGTH = 64
IGNORED = -100


def with_ignored(labels, valid):
    """Labels where only positions with valid[b, s] count."""
    return np.where(valid, labels, IGNORED)


def every_position(labels):
    return labels


def last_rank_ignored(labels):
    return with_ignored(labels, np.arange(LENGTH)[None, :] < LENGTH - LENGTH // SP)


def first_rank_ignored(labels):
    return with_ignored(labels, np.arange(LENGTH)[None, :] > LENGTH // SP)


def one_label_on_the_second_rank(labels):
    return with_ignored(labels, (np.arange(LENGTH) == LENGTH // SP + 3)[None, :])


def rows_of_three_lengths(labels):
    """Row b counts its first (b + 1)-th part: the ranks' counts differ, and so do the rows'."""
    lengths = LENGTH // np.arange(labels.shape[0] + 1, 1, -1)
    return with_ignored(labels, np.arange(LENGTH)[None, :] < lengths[:, None])


def one_row_ignored(labels):
    return with_ignored(labels, np.arange(labels.shape[0])[:, None] != 1)


LABELS = [
    every_position,
    last_rank_ignored,
    first_rank_ignored,
    one_label_on_the_second_rank,
    rows_of_three_lengths,
    one_row_ignored,
]


def left_and_right_padding(mask):
    """Row 0 padded on the left, row 1 on the right, each past a rank's boundary; the others whole."""
    mask = np.ones_like(mask)
    mask[0, : LENGTH // SP + 5] = 0
    mask[1, -(LENGTH // SP + 5) :] = 0
    return mask


@pytest.fixture(scope="module", params=["gpt2", "llama", "bert", "nano"])
def sharded(request, autosp_onnx, tmp_path_factory):
    """(graph, emulated.onnx) over 4 ranks, sharded once for all inputs."""
    graph = TrainingGraph(GRAPHS / f"{request.param}.onnx")
    folder = tmp_path_factory.mktemp("sharded") / request.param
    shard = autosp_onnx(
        "shard", graph.path, "--sp", SP, "--dim", f"seq={LENGTH}", "--dialect", "standard", "-o", folder
    )
    assert shard.returncode == 0, shard.stderr
    return graph, folder / "emulated.onnx"


@pytest.mark.parametrize("change", LABELS, ids=lambda change: change.__name__)
def test_valid_labels_spread_unevenly(sharded, change):
    graph, emulated = sharded
    inputs = graph.inputs({"seq": LENGTH})
    inputs["labels"] = change(inputs["labels"])
    assert_same_step(run_in_onnxruntime(emulated, inputs), graph.step(inputs))


def test_padding_on_both_sides(sharded):
    graph, emulated = sharded
    inputs = graph.inputs({"seq": LENGTH})
    if "attention_mask" in inputs:
        inputs["attention_mask"] = left_and_right_padding(inputs["attention_mask"])
    else:  # causal models carry no mask: the labels alone say what is padding
        inputs["labels"] = with_ignored(inputs["labels"], left_and_right_padding(inputs["labels"]) == 1)
    assert_same_step(run_in_onnxruntime(emulated, inputs), graph.step(inputs))
