"""Makes random steps (dropout, stochastic depth, sampled experts) comparable: the same uniform draws on both sides.

PyTorch keeps an element where a draw is below the keep probability; an exported graph draws with RandomUniform or
RandomUniformLike, or drops with Dropout. Both happen in the order of the forward pass, so PyTorch's draws are recorded
and fed to a copy of the graph whose random nodes have become inputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import torch
from onnx import helper
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

RANDOM_OPERATORS = ("RandomUniformLike", "RandomUniform")


def draws_as_inputs(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """A copy whose random nodes are inputs, and the names of those inputs in the order of drawing."""
    names = [node.output[0] for node in model.graph.node if node.op_type in RANDOM_OPERATORS]
    if not names:
        return model, []
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [node for node in copy.graph.node if node.op_type not in RANDOM_OPERATORS]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    copy.graph.input.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return copy, names


def dropouts_as_inputs(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """A copy whose Dropout nodes compare draws that are inputs, and the names of those inputs in order."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    names: list[str] = []
    for node in model.graph.node:
        if node.op_type != "Dropout":
            nodes.append(node)
            continue
        output = node.output[0]
        mask = node.output[1] if len(node.output) > 1 and node.output[1] else f"{output}/mask"
        names.append(f"{output}/draw")
        kept, kept_share, one = f"{output}/kept", f"{output}/kept_share", f"{output}/one"
        nodes += [
            helper.make_node("Constant", [], [one], value_float=1.0),
            helper.make_node("Sub", [one, node.input[1]], [kept_share]),
            helper.make_node("Less", [names[-1], kept_share], [mask]),
            helper.make_node("Cast", [mask], [kept], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [node.input[0], kept], [f"{output}/unscaled"]),
            helper.make_node("Div", [f"{output}/unscaled", kept_share], [output]),
        ]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    copy.graph.input.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return copy, names


@contextlib.contextmanager
def fixed_draws(seed: int) -> Iterator[list[torch.Tensor]]:
    """Within, PyTorch draws from a generator of its own; yields the list of draws."""
    mode = _FixedDraws(seed)
    with mode:
        yield mode.draws


class _FixedDraws(TorchDispatchMode):
    """Takes over the operators that draw: each becomes a function of one uniform draw from [0, 1)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.draws: list[torch.Tensor] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is aten.bernoulli_.float:
            target, keep_probability = args[0], args[1] if len(args) > 1 else 0.5
            return target.copy_(self._draw(target.shape) < keep_probability)
        if function is aten.exponential_.default:
            target, rate = args[0], args[1] if len(args) > 1 else 1.0
            return target.copy_(-torch.log1p(-self._draw(target.shape)) / rate)
        if function is aten.uniform_.default:
            target, low, high = args[0], *args[1:], *(0.0, 1.0)[len(args) - 1 :]
            return target.copy_(low + (high - low) * self._draw(target.shape))
        if function is aten.rand.default and args[0]:  # without dimensions: a coin of layer drop, which no graph has
            return self._draw(args[0]).to(kwargs.get("dtype") or torch.get_default_dtype())
        if function is aten.rand_like.default:
            return self._draw(args[0].shape).to(kwargs.get("dtype") or args[0].dtype)
        return function(*args, **kwargs)

    def _draw(self, shape: Sequence[int]) -> torch.Tensor:
        draw = torch.rand(shape, generator=self.generator)
        self.draws.append(draw)
        return draw
