"""Committed training graphs: their inputs at any sequence length, and their results by ONNX Runtime."""

import dataclasses
import functools
import pathlib
import re

import numpy as np
import onnx
import onnxruntime

GRAPHS = pathlib.Path(__file__).resolve().parents[2] / "models" / "graphs"


@dataclasses.dataclass(frozen=True)
class TrainingGraph:
    path: pathlib.Path

    @functools.cached_property
    def model(self):
        return onnx.load(self.path)

    @functools.cached_property
    def feed(self):
        """The .npz of its inputs: its own, or that of the model it is a variant of (llama_static: llama.npz)."""
        stem = self.path.stem
        while not (path := self.path.with_name(stem + ".npz")).exists():
            stem, separator, _ = stem.rpartition("_")
            assert separator, f"{self.path} has no inputs beside it"
        return path

    @functools.cached_property
    def committed_inputs(self):
        with np.load(self.feed) as archive:
            return {name: archive[name] for name in archive.files}

    @functools.cached_property
    def symbolic_axes(self):
        """{symbol: its size in the committed inputs}, in order of appearance."""
        sizes = {}
        for value in self.model.graph.input:
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if dim.dim_param and value.name in self.committed_inputs:
                    sizes.setdefault(dim.dim_param, self.committed_inputs[value.name].shape[axis])
        return sizes

    def inputs(self, sizes):
        """The committed inputs with symbolic axes resized.

        An axis is extended by repeating itself, so every value stays one the model understands
        (a token below the vocabulary's size, a position, a mask's 0 or 1), and rows of token ids and
        labels are rotated against each other so that no two rows agree.
        """
        resized = {}
        for value in self.model.graph.input:
            array = self.committed_inputs.get(value.name)
            if array is None:
                continue
            changed = False
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                size = sizes.get(dim.dim_param, array.shape[axis]) if dim.dim_param else array.shape[axis]
                if size != array.shape[axis]:
                    array = np.take(array, np.arange(size) % array.shape[axis], axis=axis)
                    changed = True
            if changed and array.ndim == 2 and value.name in ("input_ids", "labels"):
                array = np.stack([np.roll(row, 5 * index) for index, row in enumerate(array)])
            resized[value.name] = array
        return resized


    @functools.cached_property
    def has_training_operators(self):
        """ONNX Runtime's own gradient operators: its inference build cannot run them."""
        return any(node.domain == "com.microsoft" for node in self.model.graph.node)

    def step(self, inputs):
        """{output name as sharding keeps it: value} of one training step by stock ONNX Runtime.

        A training artifact is answered for by the graph that PyTorch exported of the same model; its
        accumulator flags ("W_grad.accumulation.out") become the gradients themselves ("W_grad").
        """
        if not self.has_training_operators:
            return run_in_onnxruntime(self.path, inputs)
        [model] = [entry.value for entry in self.model.metadata_props if entry.key == "autosp.model"]
        twin = run_in_onnxruntime(self.path.with_name(f"{model}.onnx"), inputs)
        names = [value.name.removesuffix(".accumulation.out") for value in self.model.graph.output]
        return {name: twin[re.sub(r"_grad$", ".grad", name)] for name in names}


def run_in_onnxruntime(path, inputs):
    """{output name: value} by stock ONNX Runtime, on one thread, as the file says it (no optimisation)."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    feed = {name: array for name, array in inputs.items() if name in wanted}
    return dict(zip(names, session.run(names, feed)))


def relative_errors(actual, expected, loss_name="loss"):
    """{output name: largest error relative to the output's largest entry} of a step's results.

    A gradient that is mathematically zero (a key bias: softmax is shift-invariant) is rounding noise,
    up to 1e-7 of the model's largest gradient, which 1e-4 of its own size must not forbid: the scale
    is never below the model's largest gradient times 1e-3. A NaN stays a NaN.
    """
    assert list(actual) == list(expected), "outputs differ in name or order"
    largest = max(float(np.abs(array).max()) for name, array in expected.items() if name != loss_name)
    errors = {}
    for name, array in expected.items():
        assert actual[name].shape == array.shape, f"{name}: shape {actual[name].shape} instead of {array.shape}"
        floor = 0.0 if name == loss_name else 1e-3 * largest
        difference = np.abs(actual[name].astype(np.float64) - array.astype(np.float64)).max()
        errors[name] = float(difference) / max(float(np.abs(array).max()), floor)
    return errors


LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4


def assert_same_step(actual, expected, loss_name="loss"):
    """The numeric law, in float32."""
    assert np.isfinite(expected[loss_name]) and expected[loss_name] > 0 and len(expected) > 1
    wrong = [
        f"{name}: relative error {error:.2e}"
        for name, error in relative_errors(actual, expected, loss_name).items()
        if not error <= (LOSS_TOLERANCE if name == loss_name else GRADIENT_TOLERANCE)  # a NaN is wrong too
    ]
    assert not wrong, "\n".join(wrong)


def committed_graphs(folder="."):
    """The committed graphs of one folder below models/graphs."""
    graphs = [TrainingGraph(path) for path in sorted((GRAPHS / folder).glob("*.onnx"))]
    assert graphs, f"no graphs in {GRAPHS / folder}"
    return graphs
