"""Forward, loss and backward of a module as one graph of core ATen operators, and from there to ONNX.

Autograd runs *inside* the traced function, so the trace holds both passes:

    parameters, inputs  ->  loss, d loss / d parameter ...

Three choices matter (each was a wrong or empty graph first):

- Operators are broken down to core ATen *while tracing*. Left whole, `nll_loss_forward` is exported with a constant
  1 in place of its token count, so every gradient is wrong by that factor, and no exporter knows `silu_backward`.
- Parameters are inputs. As constants, W and its transpose are folded into two unrelated tensors.
- For a symbolic sequence the trace runs on fake tensors with only the named axes symbolic; a static trace bakes
  its masks as [seq, seq] constants.
"""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch import fx, nn
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from decompositions import decomposition_table
from training_case import CannotConvert, TrainingCase


UNBOUNDED = 1 << 30


@dataclasses.dataclass(frozen=True)
class JointGraph:
    """A traced training step. `step(parameters, buffers, inputs) -> (loss, *gradients)`, in the orders given here."""

    step: fx.GraphModule
    parameters: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    inputs: dict[str, torch.Tensor]
    symbolic_axes: dict[str, dict[int, str]]
    largest: dict[str, int]
    unused_parameters: list[str]


def loss_and_gradients(
    case: TrainingCase,
    parameters: dict[str, torch.Tensor],
    constants: dict[str, torch.Tensor],
    inputs: list[torch.Tensor],
) -> tuple[torch.Tensor, ...]:
    """The loss and its gradient for each parameter: what is traced, and what the result is checked against."""
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    with torch.enable_grad():
        loss = case.loss({**constants, **leaves}, inputs)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
    return (loss.detach(), *gradients)


def trace_joint_graph(case: TrainingCase, symbolic: list[str]) -> JointGraph:
    """Traces `case`, with the axes named in `symbolic` left open."""
    parameters = case.parameters()
    buffers = {
        name.removeprefix(case.parameter_prefix): value.detach() for name, value in case.module.named_buffers()
    }
    unused = _parameters_without_gradient(case)
    for name in unused:
        buffers[name] = parameters.pop(name)
    axes = case.symbolic_axes(symbolic)
    inputs = case.inputs(seed=1, **_tracing_sizes(case, symbolic))

    def step(
        parameter_values: list[torch.Tensor], buffer_values: list[torch.Tensor], input_values: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        return loss_and_gradients(
            case,
            dict(zip(parameters, parameter_values, strict=True)),
            dict(zip(buffers, buffer_values, strict=True)),
            input_values,
        )

    fake_mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    arguments = (
        [_fake(fake_mode, name, value, {}) for name, value in parameters.items()],
        [_fake(fake_mode, name, value, {}) for name, value in buffers.items()],
        [_fake(fake_mode, name, value, axes.get(name, {})) for name, value in inputs.items()],
    )
    with fake_mode:
        graph = make_fx(step, decomposition_table=decomposition_table(), tracing_mode="real")(*arguments)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return JointGraph(graph, parameters, buffers, inputs, axes, dict(case.largest), unused)


def export_joint_graph(joint: JointGraph, opset: int | None) -> torch.onnx.ONNXProgram:
    """The traced step as ONNX: inputs are parameters then data, outputs `loss` and `<parameter>.grad`."""
    arguments = (*joint.parameters.values(), *joint.inputs.values())
    dimensions = {
        axis_name: torch.export.Dim(axis_name, min=2, max=joint.largest.get(axis_name, UNBOUNDED))
        for axes in joint.symbolic_axes.values()
        for axis_name in axes.values()
    }
    shapes = [
        {axis: dimensions[axis_name] for axis, axis_name in joint.symbolic_axes.get(name, {}).items()} or None
        for name in (*joint.parameters, *joint.inputs)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _FlatArguments(joint).eval(),
            arguments,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=[*joint.parameters, *joint.inputs],
            output_names=["loss", *(f"{name}.grad" for name in joint.parameters)],
            dynamic_shapes=(tuple(shapes),) if dimensions else None,
        )
    assert program is not None
    return program


class _FlatArguments(nn.Module):
    """The joint graph behind a flat argument list; buffers become constants."""

    def __init__(self, joint: JointGraph) -> None:
        super().__init__()
        self.step = joint.step
        self.parameter_count = len(joint.parameters)
        self.buffer_names = [f"buffer_{index}" for index in range(len(joint.buffers))]
        for name, value in zip(self.buffer_names, joint.buffers.values(), strict=True):
            self.register_buffer(name, value)

    def forward(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parameters = list(arguments[: self.parameter_count])
        buffers = [getattr(self, name) for name in self.buffer_names]
        return tuple(self.step(parameters, buffers, list(arguments[self.parameter_count :])))


def _parameters_without_gradient(case: TrainingCase) -> list[str]:
    """Parameters that the loss does not reach (a pooler nobody reads): constants of the graph, without a gradient."""
    parameters = {name: value.requires_grad_() for name, value in case.parameters().items()}
    with torch.enable_grad():
        loss = case.loss(parameters, list(case.inputs(seed=1).values()))
        if loss.dim() != 0:
            raise CannotConvert(f"{case.name}: forward must return a scalar loss, it returned shape {list(loss.shape)}")
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]


def _tracing_sizes(case: TrainingCase, symbolic: list[str]) -> dict[str, int]:
    """Sizes to trace at: symbolic axes of equal length would be taken for one axis, and length 1 for a constant."""
    taken: set[int] = set()
    sizes = {}
    for name in symbolic:
        size = max(case.sizes[name], 3)
        while size in taken:
            size += 1
        taken.add(size)
        sizes[name] = size
    return sizes


def _fake(mode: FakeTensorMode, name: str, value: torch.Tensor, axes: dict[int, str]) -> torch.Tensor:
    dynamic = [DimDynamic.DUCK if axis in axes else DimDynamic.STATIC for axis in range(value.dim())]
    context = StatelessSymbolicContext(dynamic_sizes=dynamic)
    return mode.from_tensor(value, symbolic_context=context, source=ConstantSource(name))


