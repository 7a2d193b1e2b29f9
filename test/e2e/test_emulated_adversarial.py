"""Small graphs that each hold one trap, with sequence = hidden = vocabulary, on even and uneven meshes."""

import pytest

from emulation import assert_emulated_equals_original
from training_graph import committed_graphs

MESHES = [(2, 1), (3, 1), (4, 1), (2, 2)]  # (sp, dp)


@pytest.mark.parametrize("sp, dp", MESHES)
@pytest.mark.parametrize("graph", committed_graphs("adversarial"), ids=lambda graph: graph.path.stem)
def test_emulated_equals_original(autosp_onnx, tmp_path, graph, sp, dp):
    assert_emulated_equals_original(autosp_onnx, tmp_path / "out", graph, (), sp, dp)
