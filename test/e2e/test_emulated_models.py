"""GPT-2, Llama, BERT and nanoGPT from every exporter route, on every mesh, in stock ONNX Runtime."""

import pytest

from emulation import assert_emulated_equals_original
from training_graph import committed_graphs


def cases():
    for graph in committed_graphs():
        sequences = (61, 64) if "seq" in graph.symbolic_axes else (None,)  # None: as exported
        for sequence in sequences:
            for sp in (1, 2, 3, 4, 8):
                for dp in (1, 2):
                    length = "" if sequence is None else f"-s{sequence}"
                    yield pytest.param(graph, sequence, sp, dp, id=f"{graph.path.stem}{length}-sp{sp}-dp{dp}")


@pytest.mark.parametrize("graph, sequence, sp, dp", list(cases()))
def test_emulated_equals_original(autosp_onnx, tmp_path, graph, sequence, sp, dp):
    sizes = () if sequence is None else (("seq", sequence),)
    assert_emulated_equals_original(autosp_onnx, tmp_path / "out", graph, sizes, sp, dp)
