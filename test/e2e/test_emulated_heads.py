"""6 and 8 query heads with 1, 2, 3 and as many KV heads, odd and even lengths, one row and two."""

import pytest

from emulation import assert_emulated_equals_original
from training_graph import committed_graphs


def cases():
    for graph in committed_graphs("matrix"):
        query_heads = int(graph.path.stem.split("_h")[1].split("_")[0])
        for sequence in (61, 64):
            for batch, dp in ((1, 1), (2, 1), (2, 2)):
                for sp in (1, 2, 3, 4, 8):
                    if sp <= query_heads:
                        label = f"{graph.path.stem}-s{sequence}-b{batch}-sp{sp}-dp{dp}"
                        yield pytest.param(graph, sequence, batch, sp, dp, id=label)


@pytest.mark.parametrize("graph, sequence, batch, sp, dp", list(cases()))
def test_emulated_equals_original(autosp_onnx, tmp_path, graph, sequence, batch, sp, dp):
    sizes = (("batch", batch), ("seq", sequence))
    assert_emulated_equals_original(autosp_onnx, tmp_path / "out", graph, sizes, sp, dp)
