"""emulated.onnx in ONNX's own reference evaluator, which shares no code with any runtime."""

import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from training_graph import assert_same_step, committed_graphs

SIZES = {"seq": 24}


def cases():
    for graph in [*committed_graphs(), *committed_graphs("adversarial")]:
        yield pytest.param(graph, id=graph.path.stem)


@pytest.mark.parametrize("graph", list(cases()))
def test_emulated_equals_original(autosp_onnx, tmp_path, graph):
    sizes = {name: SIZES.get(name, size) for name, size in graph.symbolic_axes.items()}
    bindings = [part for name, size in sizes.items() for part in ("--dim", f"{name}={size}")]
    shard = autosp_onnx("shard", graph.path, "--sp", 2, *bindings, "--dialect", "standard", "-o", tmp_path / "out")
    assert shard.returncode == 0, shard.stderr
    model = onnx.load(tmp_path / "out" / "emulated.onnx")
    inputs = graph.inputs(sizes)
    feeds = {value.name: inputs[value.name] for value in model.graph.input if value.name in inputs}
    names = [value.name for value in model.graph.output]
    results = dict(zip(names, ReferenceEvaluator(model).run(None, feeds), strict=True))
    assert_same_step(results, graph.step(inputs))
