"""One case of the numeric law in someone else's runtime: emulated.onnx equals the original."""

import functools

from training_graph import assert_same_step, run_in_onnxruntime


@functools.lru_cache(maxsize=4)
def original_step(graph, sizes):
    """The inputs at those sizes and the original's results: shared by all meshes of one graph."""
    inputs = graph.inputs(dict(sizes))
    return inputs, graph.step(inputs)


def assert_emulated_equals_original(autosp_onnx, folder, graph, sizes, sp, dp, *options):
    """`sizes` binds symbolic axes: (("seq", 61), ...); `folder` takes the sharded model."""
    inputs, expected = original_step(graph, sizes)
    bindings = [part for name, size in sizes for part in ("--dim", f"{name}={size}")]
    shard = autosp_onnx(
        "shard", graph.path, "--sp", sp, "--dp", dp, *bindings, *options, "--dialect", "standard", "-o", folder
    )
    assert shard.returncode == 0, shard.stderr
    assert_same_step(run_in_onnxruntime(folder / "emulated.onnx", inputs), expected)
