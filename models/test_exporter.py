"""Tests of the exporter's parts; whole exports check themselves (`export_training_graph.py --check-families`)."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import types
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import TensorProto, helper
from torch import nn

import decompositions
import export_training_graph
import graph_files
from before_autograd import BeforeAutograd
from check_graph import check_graph
from export_case import _reason, export_case
from export_training_graph import _case_from_factory
from families import FAMILIES, Dimensions, _case, _NeverReached, _task_of, case_from_config, never_skip_layers
from gradient_check import Comparison, GradientMismatch, OnnxRuntimeGraph, compare_outputs, require_match
from onnx_ad_route import choose_parameters, differentiate
from training_case import CannotConvert, TrainingCase, jitter_parameters


class SquaredError(nn.Module):
    """A linear layer's mean squared output: the smallest training step there is."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).square().mean()


def squared_error_case() -> TrainingCase:
    module = SquaredError()
    jitter_parameters(module)

    def make_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"x": torch.randn(sizes["batch"], sizes["seq"], 5, generator=generator)}

    return TrainingCase("squared_error", module, make_inputs, {"batch": 2, "seq": 6})


def forward_graph() -> onnx.ModelProto:
    """loss = sum(x @ w), with w an initializer."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("ReduceSum", ["y"], ["loss"], keepdims=0)],
        "forward",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4])],
        [helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])],
        [onnx.numpy_helper.from_array(np.ones((4, 2), np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups", "more"),
    [
        ([1], [0], [1], 1, [0]),
        ([2], [3], [1], 1, [1]),
        ([1], [2], [2], 4, [1]),
        ([2], [0], [3], 1, [2]),
        ([4], [0], [1], 2, [3]),
        ([3], [1], [1], 4, [2]),
        ([5], [1], [1], 2, [4]),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_convolution_backward_is_pytorchs(
    stride: list[int], padding: list[int], dilation: list[int], groups: int, more: list[int], transposed: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    more = more if transposed else [0]
    x = torch.randn(2, 8 if transposed else 4, 17, generator=generator)
    weight = torch.randn(8, 4 // groups, 4, generator=generator)
    y = torch.ops.aten.convolution(x, weight, None, stride, padding, dilation, transposed, more, groups)
    gradient = torch.randn(y.shape, generator=generator)
    bias = [y.shape[1]]
    arguments = (gradient, x, weight, bias, stride, padding, dilation, transposed, more, groups, [True, True, True])
    expected = torch.ops.aten.convolution_backward(*arguments)
    for got, reference in zip(decompositions._convolution_backward(*arguments), expected, strict=True):
        torch.testing.assert_close(got, reference)


@pytest.mark.parametrize("function", ["lgamma", "digamma"])
def test_gamma_functions_are_pytorchs(function: str) -> None:
    x = torch.logspace(-3, 4, 500)
    got = {"lgamma": decompositions._log_gamma, "digamma": decompositions._digamma}[function](x)
    exact = getattr(torch, function)(x.double())
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("unitriangular", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 5, 16])
def test_triangular_systems_are_solved_as_pytorch_does(upper: bool, left: bool, unitriangular: bool, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(3, rows, rows, generator=generator, dtype=torch.float64)
    matrix = matrix + 3 * torch.eye(rows, dtype=torch.float64)
    right = torch.randn(3, *((rows, 4) if left else (4, rows)), generator=generator, dtype=torch.float64)
    options = {"upper": upper, "left": left, "unitriangular": unitriangular}
    got = decompositions._solve_triangular(matrix, right, **options)
    torch.testing.assert_close(got, torch.linalg.solve_triangular(matrix, right, **options))


@pytest.mark.parametrize("upper", [False, True])
def test_triangular_systems_of_one_token_repeated_are_solved_as_well(upper: bool) -> None:
    """Powers of such matrices are large numbers that cancel: in float32 nothing would be left of the solution."""
    repeated = torch.full((64, 64), 0.9)
    matrix = (repeated.triu(1) if upper else repeated.tril(-1)) + torch.eye(64)
    right = torch.randn(64, 4, generator=torch.Generator().manual_seed(3))
    got = decompositions._solve_triangular(matrix, right, upper=upper, unitriangular=True)
    torch.testing.assert_close(got, torch.linalg.solve_triangular(matrix, right, upper=upper, unitriangular=True))


class ComplexRotation(nn.Module):
    """Rotary positions as complex numbers, with an axis for the heads (Llama 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(x.shape[1], dtype=torch.float32)[:, None] * torch.tensor([1.0, 0.1, 0.01])
        table = torch.polar(torch.ones_like(angles), angles)
        pairs = torch.view_as_complex(self.linear(x).reshape(*x.shape[:2], 1, 3, 2))
        return (torch.view_as_real(pairs * table.unsqueeze(-2)) * x.reshape(*x.shape[:2], 1, 3, 2)).mean()


def test_complex_rotations_with_an_axis_for_heads_are_exported() -> None:
    def make_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"x": torch.randn(sizes["batch"], sizes["seq"], 6, generator=generator)}

    module = ComplexRotation()
    jitter_parameters(module)
    case = TrainingCase("complex_rotation", module, make_inputs, {"batch": 2, "seq": 6})
    assert export_case(case, ["seq"]).comparisons


class PaddedChunks(nn.Module):
    """Sums of chunks of four tokens, padded where the length asks for it (Mamba 2's chunks)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        missing = (4 - x.shape[1] % 4) % 4
        if missing > 0:
            y = torch.nn.functional.pad(y, (0, 0, 0, missing))
        return y.reshape(x.shape[0], (x.shape[1] + missing) // 4, 4, 7).sum(2).square().mean()


def padded_chunks_case() -> TrainingCase:
    return dataclasses.replace(squared_error_case(), name="chunks", module=PaddedChunks(), sizes={"batch": 2, "seq": 8})


def test_chunks_that_are_padded_at_some_lengths_are_traced_where_they_are() -> None:
    exported = export_case(padded_chunks_case(), ["seq"])
    assert {comparison.setting for comparison in exported.comparisons} >= {"chunks default sizes", "chunks seq=13"}


@pytest.mark.parametrize(("kernel", "padding"), [([4, 2], [0, 0]), ([7, 3], [3, 1]), ([3, 2], [0, 0])])
def test_patches_backward_is_pytorchs_in_two_dimensions(kernel: list[int], padding: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 13, 8, generator=generator)
    weight = torch.randn(6, 3, *kernel, generator=generator)
    y = torch.nn.functional.conv2d(x, weight, stride=(4, 2), padding=padding)
    gradient = torch.randn(y.shape, generator=generator)
    arguments = (gradient, x, weight, [6], [4, 2], padding, [1, 1], False, [0, 0], 1, [True, True, True])
    expected = torch.ops.aten.convolution_backward(*arguments)
    for got, reference in zip(decompositions._convolution_backward(*arguments), expected, strict=True):
        torch.testing.assert_close(got, reference)


def test_symbolic_axes_are_found_by_growing_them() -> None:
    assert squared_error_case().symbolic_axes(["batch", "seq"]) == {"x": {0: "batch", 1: "seq"}}


def test_an_axis_of_another_length_cannot_be_symbolic() -> None:
    case = TrainingCase("odd", SquaredError(), lambda sizes, _: {"x": torch.zeros(sizes["seq"] + 1, 5)}, {"seq": 6})
    with pytest.raises(CannotConvert, match="has length 7 where 'seq' is 6"):
        case.symbolic_axes(["seq"])


def test_a_symbolic_graph_is_checked_at_other_lengths() -> None:
    exported = export_case(squared_error_case(), ["seq"])
    assert [value.name for value in exported.model.graph.output] == ["loss", "linear.weight.grad", "linear.bias.grad"]
    assert exported.model.graph.input[-1].type.tensor_type.shape.dim[1].dim_param == "seq"
    assert len(exported.comparisons) == 4


def test_long_inputs_are_checked_near_their_length() -> None:
    exported = export_case(over_samples_case(nn.Conv1d(4, 4, 127, stride=64), nn.Conv1d(4, 4, 7, stride=3)), ["seq"])
    assert {comparison.setting.split("=")[-1] for comparison in exported.comparisons[1:]} == {"667", "1988", "2098"}


def test_taps_of_a_stride_are_one_product() -> None:
    exported = export_case(over_samples_case(nn.Conv1d(4, 4, 127, stride=64)), ["seq"])
    assert sum(node.op_type == "MatMul" for node in exported.model.graph.node) < 4


class OverPositions(nn.Module):
    """The mean square of what a function makes of [batch, channels, positions], behind a trained scale."""

    def __init__(self, over: Callable[[torch.Tensor], torch.Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.over, self.layers = over, nn.ModuleList(layers)
        self.scale = nn.Parameter(torch.ones(4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.scale
        for layer in self.layers:
            x = layer(x)
        return torch.cos(self.over(x)).square().mean()


def over_positions_case(over: Callable[[torch.Tensor], torch.Tensor], *layers: nn.Module) -> TrainingCase:
    module = OverPositions(over, *layers)
    jitter_parameters(module)
    return TrainingCase(
        "over_positions",
        module,
        lambda sizes, generator: {"x": torch.randn(2, 4, sizes["seq"], generator=generator)},
        {"seq": 12},
    )


def over_samples_case(*layers: nn.Module) -> TrainingCase:
    """Layers over more positions than text has, of which they do not take a few."""
    return dataclasses.replace(over_positions_case(lambda x: x, *layers), sizes={"seq": 2001})


def _length_where_positive(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[x > 0] = x.shape[2]
    return x


def _shifted_right(x: torch.Tensor) -> torch.Tensor:
    """As Hugging Face makes a decoder's inputs of its labels, with values that are broadcast."""
    shifted = x.new_zeros(x.shape)
    shifted[..., 1:] = x[..., :-1].clone()
    shifted[..., 0] = 3
    shifted[:, 1, 1:] = x[:, :1, 0]
    return shifted * x


def _features_at_tokens(x: torch.Tensor) -> torch.Tensor:
    """[2, 4, seq]: four features [2, 2, 4] in order where the first channel is among a row's two largest."""
    tokens = x.transpose(1, 2)
    mask = torch.zeros_like(x[:, 0]).scatter(1, x[:, 0].topk(2).indices, 1.0) > 0
    features = x[:, :, :2].transpose(1, 2).sin()
    return tokens.masked_scatter(mask.unsqueeze(-1).expand_as(tokens), features)


def _values_at_elements(x: torch.Tensor) -> torch.Tensor:
    return x.masked_scatter(x > 0, x.sin().flip(2))


@pytest.mark.parametrize(
    ("over", "layers"),
    [
        (lambda x: x[..., :-3], [nn.Conv1d(4, 4, 4, groups=4, padding=3)]),
        (lambda x: x, [nn.Conv1d(4, 6, 5, padding=4, dilation=2)]),
        (lambda x: x, [nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(4, 4, 3, groups=2)]),
        (lambda x: x, [nn.Conv1d(4, 4, 3, stride=2, padding=1), nn.Conv1d(4, 6, 5, stride=3)]),
        (lambda x: x, [nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1), nn.ConvTranspose1d(6, 3, 3, stride=3)]),
        (lambda x: nn.functional.pad(x, (1, -1)), []),
        (lambda x: x.clamp(min=-1, max=0.5), []),
        (lambda x: x * torch.add(0.3, x > 0, alpha=0.6), []),
        (lambda x: x * (1.0 - (x > 0).long()), []),
        (lambda x: torch.mul(0.3, x), []),
        (_length_where_positive, []),
        (_shifted_right, []),
        (_features_at_tokens, []),
        (_values_at_elements, []),
        (lambda x: x.mean((1, 2)).squeeze(), []),
    ],
    ids=[
        "cut back",
        "dilated",
        "padded before",
        "strided",
        "transposed",
        "shifted",
        "bounds of two types",
        "a number plus a bool",
        "a number less an integer",
        "a number times a tensor",
        "a length under a mask",
        "shifted right",
        "rows under a mask",
        "elements under a mask",
        "nothing squeezed",
    ],
)
def test_a_sequence_stays_open(over: Callable[[torch.Tensor], torch.Tensor], layers: list[nn.Module]) -> None:
    exported = export_case(over_positions_case(over, *layers), ["seq"])
    assert exported.model.graph.input[-1].type.tensor_type.shape.dim[2].dim_param == "seq"
    assert len(exported.comparisons) == 4


@pytest.mark.parametrize(
    ("layer", "pads"),
    [(nn.Conv1d(4, 4, 3, padding=1), [1, 1]), (nn.Conv1d(4, 6, 5, padding=4, dilation=2), [4, 4])],
    ids=["beside", "dilated"],
)
def test_transposed_convolutions_of_stride_one_cut_by_themselves(layer: nn.Module, pads: list[int]) -> None:
    graph = export_case(over_positions_case(lambda x: x, layer), ["seq"]).model.graph
    (transposed,) = [node for node in graph.node if node.op_type == "ConvTranspose"]
    assert {a.name: list(a.ints) for a in transposed.attribute}["pads"] == pads
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    amounts = [constants[node.input[1]] for node in graph.node if node.op_type == "Pad"]
    assert all((amount >= 0).all() for amount in amounts)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("symbolic", [["seq"], []])
def test_batch_norm_has_the_statistics_that_pytorch_takes(training: bool, affine: bool, symbolic: list[str]) -> None:
    norm = nn.BatchNorm1d(4, affine=affine)
    norm.running_mean.copy_(torch.tensor([0.5, -1.0, 2.0, 0.1]))
    norm.running_var.copy_(torch.tensor([0.5, 3.0, 2.0, 1.1]))
    case = over_positions_case(lambda x: x, nn.Conv1d(4, 4, 1), norm)  # a bias whose gradient is zero
    case.module.train(training)
    exported = export_case(case, symbolic)
    assert not any(node.op_type == "BatchNormalization" for node in exported.model.graph.node)


class MaskedPositions(nn.Module):
    """A trained vector where a mask says so, zero where another does (masked spans of speech)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.masked = nn.Linear(5, 7), nn.Parameter(torch.ones(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = 2 * self.linear(x)
        y[x[..., 0] > 0.5] = self.masked
        y.view(-1, 7)[(x[..., 1] > 0.5).reshape(-1)] = 0
        return torch.cos(y).square().mean()


def test_values_assigned_under_a_mask_are_selected() -> None:
    case = dataclasses.replace(squared_error_case(), name="masked", module=MaskedPositions())
    operators = {node.op_type for node in export_case(case, ["seq"]).model.graph.node}
    assert "Where" in operators
    assert not operators & {"NonZero", "Compress", "ScatterND"}


@pytest.mark.parametrize(
    ("over", "layers"),
    [
        (lambda x: nn.functional.avg_pool1d(x, 3, 2), []),
        (lambda x: nn.functional.avg_pool1d(x, 4, ceil_mode=True), []),
        (lambda x: nn.functional.avg_pool2d(x[:, None], 3, 1, 1, count_include_pad=False), []),
        (lambda x: nn.functional.avg_pool2d(x[:, None], (2, 1), ceil_mode=True), []),
        (lambda x: nn.functional.adaptive_avg_pool1d(x.transpose(1, 2).contiguous().transpose(1, 2), 1), []),
        (lambda x: nn.functional.adaptive_avg_pool2d(x[:, None], (1, 1)), []),
        (lambda x: nn.functional.adaptive_avg_pool2d(x[:, None], (3, None)), []),
        (lambda x: x, [nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 3), dim=2)]),
    ],
    ids=["1d", "ceiling", "padded", "2d ceiling", "to one", "to one in 2d", "to some", "weight norm"],
)
def test_what_is_replaced_before_autograd(
    over: Callable[[torch.Tensor], torch.Tensor], layers: list[nn.Module]
) -> None:
    export_case(over_positions_case(over, *layers), ["seq"])


@pytest.mark.parametrize(
    "pool",
    [lambda x: nn.functional.avg_pool1d(x, 3), lambda x: nn.functional.avg_pool2d(x[:, None], 3, 1, 1)],
    ids=["1d", "2d padded"],
)
def test_averages_in_bfloat16_have_no_bias(pool: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = 1 + torch.rand(16, 90, 90, generator=torch.Generator().manual_seed(0)).bfloat16()
    with BeforeAutograd():
        got = pool(x)
    assert abs((got.double() / pool(x.double())).mean() - 1) < 2e-4  # 1 / 3 and 1 / 9 are off by 2e-3


@pytest.mark.parametrize("mask", [torch.tensor([[True], [False], [True]]).expand(3, 4), torch.eye(3, 4) > 0])
@pytest.mark.parametrize("rows", [2, 5])
def test_masked_scatter_is_pytorchs(mask: torch.Tensor, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, source = torch.randn(3, 4, generator=generator), torch.randn(rows, 4, generator=generator)
    expected = x.masked_scatter(mask, source)
    with BeforeAutograd():
        torch.testing.assert_close(x.masked_scatter(mask, source), expected, rtol=0, atol=0)


def test_image_features_are_counted_by_rows() -> None:
    graph = export_case(over_positions_case(_features_at_tokens), []).model.graph
    (counted,) = [node.output[0] for node in graph.node if node.op_type == "CumSum"]
    (shape,) = [value.type.tensor_type.shape.dim for value in graph.value_info if value.name == counted]
    assert [axis.dim_value for axis in shape] == [2 * 12]


@pytest.mark.parametrize("sizes", [(3, 4), (1, 5), (7, 2), (9, None), 2])
def test_adaptive_averages_are_pytorchs(sizes: int | tuple[int | None, ...]) -> None:
    x = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.adaptive_avg_pool2d(x, sizes)
    with BeforeAutograd():
        torch.testing.assert_close(nn.functional.adaptive_avg_pool2d(x, sizes), expected)


class OfImages(nn.Module):
    """Tokens of images [rows, columns] that the module knows, as Qwen's vision towers split them: by Python numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.sizes = nn.Linear(5, 7), torch.tensor([[1, 1], [1, 2]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ends = nn.functional.pad(self.sizes.prod(1).cumsum(0), (1, 0))
        pieces = torch.split(self.linear(x)[:, :3], (ends[1:] - ends[:-1]).tolist(), dim=1)
        order = torch.tensor([[2, 0], [1, 3]])
        kept = torch.arange(4)[order.reshape(-1) != 3]
        pieces = [*pieces, x[:, kept.flip(0)] if kept.tolist() == [0, 1, 2] else None]
        return sum(torch.cos(piece.mean(1)).square().mean() for piece in pieces)


def test_integers_that_a_module_holds_are_numbers_for_python() -> None:
    export_case(dataclasses.replace(squared_error_case(), name="images", module=OfImages()), ["seq"])


def test_a_window_that_begins_behind_the_input_is_dropped() -> None:
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.avg_pool1d(x, 1, 3, ceil_mode=True)
    with BeforeAutograd():
        torch.testing.assert_close(nn.functional.avg_pool1d(x, 1, 3, ceil_mode=True), expected)


@pytest.mark.parametrize("value", [1.0, torch.tensor(1.0)])
def test_values_are_assigned_in_the_type_of_the_tensor(value: float | torch.Tensor) -> None:
    x = torch.tensor([16777217, 5])  # 2^24 + 1, no float32
    with BeforeAutograd():
        x[x == 5] = value
    assert x.tolist() == [16777217, 1]


def test_a_mask_of_another_shape_is_refused() -> None:
    x = torch.zeros(3, 4)
    with BeforeAutograd(), pytest.raises(IndexError, match="does not match"):
        x[torch.ones(3, 1, dtype=torch.bool)] = 1.0


def test_distributions_are_traced_without_their_checks() -> None:
    def likelihood(x: torch.Tensor) -> torch.Tensor:
        return torch.distributions.StudentT(x.square() + 2, x, x.square() + 1).log_prob(x.flip(1))

    export_case(over_positions_case(likelihood), ["seq"])
    assert torch.distributions.Distribution._validate_args


def _exponential(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x).exponential_(0.7)


def _uniform(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x).uniform_(0.9, 1.1)


def _dropped_weights(x: torch.Tensor) -> torch.Tensor:
    tokens = x.transpose(1, 2)
    return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=0.3).transpose(1, 2)


@pytest.mark.parametrize(
    "factor",
    [
        torch.rand_like,
        lambda x: torch.floor(torch.rand((*x.shape[:1], 1, 1)) + 0.6),
        _exponential,
        _uniform,
        lambda x: nn.functional.dropout(x, 0.3),
        _dropped_weights,
    ],
    ids=["like a tensor", "stochastic depth", "exponential", "uniform", "dropout", "dropped weights"],
)
def test_random_draws_are_the_same_on_both_sides(factor: Callable[[torch.Tensor], torch.Tensor]) -> None:
    exported = export_case(over_positions_case(lambda x: x * factor(x)), ["seq"])
    assert any(node.op_type.startswith("RandomUniform") for node in exported.model.graph.node)


def test_a_length_that_an_operator_fixes_is_refused() -> None:
    fixed = over_positions_case(lambda x: x * float(x.shape[-1]))
    with pytest.raises(CannotConvert, match=r"fixes the length 'seq' at 12 .*; export with --static"):
        export_case(fixed, ["seq"])


def test_a_module_that_takes_some_lengths_only_is_refused() -> None:
    in_fours = over_positions_case(lambda x: x.reshape(2, 4, -1, 4))
    with pytest.raises(
        CannotConvert, match=r"the module fails at seq=13: RuntimeError: shape .*; export with --static"
    ):
        export_case(in_fours, ["seq"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Cannot slice\nException raised from x at y.cpp:340\nframe #0: f + 0x9d\nframe #1: g\n", "Cannot slice"),
        ("Failed.\n- Create an issue\n\n## Exception summary\n\n<class 'RuntimeError'>: no clamp\nmore\n", "no clamp"),
        ("- Create\n<class 'a.DispatchError'>: No ONNX function found for x\n", "No ONNX function found for x"),
        ("(Refer to the full stack trace above for more information.)", "RuntimeError"),
    ],
)
def test_the_reason_is_the_first_sentence(text: str, reason: str) -> None:
    assert _reason(RuntimeError(text)) == reason


def test_a_graph_that_the_checker_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise onnx.shape_inference.InferenceError("differ in rank: (0) vs (2)")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(CannotConvert, match=r"checker refuses: differ in rank"):
        export_case(squared_error_case(), [])


def test_a_loss_that_is_no_number_is_refused() -> None:
    case = TrainingCase("vector", nn.Linear(5, 7), lambda sizes, _: {"x": torch.ones(sizes["batch"], 5)}, {"batch": 2})
    with pytest.raises(CannotConvert, match="must return a scalar loss"):
        export_case(case, [])


def test_a_module_that_fails_by_itself_is_refused_with_the_place() -> None:
    fails = over_positions_case(lambda x: x.clamp(min=None, max=None))
    with pytest.raises(
        CannotConvert, match=r"fail in PyTorch, before any export \(test_exporter.py line \d+\): .*clamp"
    ):
        export_case(fails, ["seq"])


class Detached(SquaredError):
    """Its loss depends on no parameter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).detach()


@pytest.mark.parametrize(
    ("module", "reason"), [(nn.Linear(6, 7), "cannot be multiplied"), (Detached(), "does not require grad")]
)
def test_a_failure_without_a_frame_of_the_model_has_pytorchs(module: nn.Module, reason: str) -> None:
    case = dataclasses.replace(squared_error_case(), name="fails", module=module)
    with pytest.raises(CannotConvert, match=rf"fail in PyTorch, before any export \(\w+\.py line \d+\): .*{reason}"):
        export_case(case, ["seq"])


def test_inputs_that_fail_at_another_length_are_told() -> None:
    def make_inputs(sizes: dict[str, int], _: torch.Generator) -> dict[str, torch.Tensor]:
        return {"x": torch.ones(60).reshape(sizes["seq"], 2, 5)}

    case = dataclasses.replace(squared_error_case(), make_inputs=make_inputs, sizes={"seq": 6})
    with pytest.raises(
        CannotConvert, match=r"make_inputs fails at seq=10: RuntimeError: shape .*; export with --static"
    ):
        export_case(case, ["seq"])


@pytest.mark.parametrize("failure", [ValueError, TypeError, KeyError])
def test_inputs_that_fail_only_where_they_are_checked_are_told(failure: type[Exception]) -> None:
    case = squared_error_case()

    def make_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        if sizes["seq"] % 2:
            raise failure("an odd length")
        return case.make_inputs(sizes, generator)

    with pytest.raises(CannotConvert, match=rf"make_inputs fails at seq=13: {failure.__name__}: .*an odd length"):
        export_case(dataclasses.replace(case, make_inputs=make_inputs), ["seq"])


@pytest.mark.parametrize("failure", [ValueError, TypeError, KeyError])
def test_inputs_that_fail_at_prime_lengths_are_told(failure: type[Exception]) -> None:
    case = padded_chunks_case()

    def make_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        if sizes["seq"] == 11:
            raise failure("eleven")
        return case.make_inputs(sizes, generator)

    with pytest.raises(CannotConvert, match=r"make_inputs fails at seq=11: .*eleven"):
        export_case(dataclasses.replace(case, make_inputs=make_inputs), ["seq"])


@pytest.mark.parametrize("failure", [ValueError, TypeError, KeyError])
def test_a_module_that_fails_at_other_lengths_in_any_way_is_refused(failure: type[Exception]) -> None:
    def in_twelves(x: torch.Tensor) -> torch.Tensor:
        if x.shape[2] == 13:
            raise failure("thirteen")
        return x

    with pytest.raises(CannotConvert, match=rf"the module fails at seq=13: {failure.__name__}: .*thirteen"):
        export_case(over_positions_case(in_twelves), ["seq"])


@pytest.mark.parametrize("failure", [ValueError, TypeError, KeyError])
def test_a_module_that_cannot_be_traced_is_refused(failure: type[Exception]) -> None:
    def only_with_values(x: torch.Tensor) -> torch.Tensor:
        if type(x) is not torch.Tensor and isinstance(x.shape[2], torch.SymInt):
            raise failure("no number")
        return x

    with pytest.raises(CannotConvert, match="no number"):
        export_case(over_positions_case(only_with_values), ["seq"])


@pytest.mark.parametrize(("error", "code"), [(CannotConvert("no"), 2), (GradientMismatch(Comparison("no", [])), 1)])
def test_the_exit_code_tells_what_differs_from_what_is_refused(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(export_training_graph, "export_from_torch", fail)
    assert export_training_graph.main(["--hf", "nano", "-o", "nano.onnx"]) == code


def test_a_wrong_gradient_is_named() -> None:
    expected = {"loss": np.float32(5.0), "w.grad": np.ones(3, np.float32), "b.grad": np.ones(2, np.float32)}
    got = expected | {"w.grad": np.array([1, 1, 1.001], np.float32)}
    with pytest.raises(GradientMismatch, match=r"w\.grad: absolute 1\.00e-03"):
        require_match(compare_outputs("test", got, expected))


def chooses_largest(indices: Callable[[torch.Tensor], torch.Tensor]) -> TrainingCase:
    return over_positions_case(lambda x: x.gather(-1, indices(x.detach())))


def test_a_choice_among_equal_scores_is_named() -> None:
    case = chooses_largest(lambda x: (0 * x).topk(2).indices)
    exported = export_case(case, [], checks=False)
    last_of_equal = chooses_largest(lambda x: torch.full_like(x[..., :2], 11, dtype=torch.int64))
    with pytest.raises(GradientMismatch, match=r"of equal ones .* ONNX takes the first"):
        check_graph(exported.model, exported.signature, last_of_equal, [])


def test_a_choice_that_differs_by_chance_is_checked_again() -> None:
    exported = export_case(chooses_largest(lambda x: x.topk(2).indices), [], checks=False)
    by_chance = itertools.chain([0], itertools.repeat(1))
    once_wrong = chooses_largest(lambda x: x.topk(2).indices * next(by_chance))
    assert len(check_graph(exported.model, exported.signature, once_wrong, [])) == 1


def test_noise_in_a_zero_gradient_is_no_error() -> None:
    expected = {"loss": np.float32(5.0), "w.grad": np.ones(3, np.float32), "key.bias.grad": np.zeros(2, np.float32)}
    got = expected | {"key.bias.grad": np.full(2, 1e-8, np.float32)}
    assert not compare_outputs("test", got, expected).failures


def test_a_shape_that_differs_is_an_error() -> None:
    expected = {"w.grad": np.ones((3, 1), np.float32)}
    assert compare_outputs("test", {"w.grad": np.ones(3, np.float32)}, expected).failures


def test_nothing_is_left_of_a_write_that_fails(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(graph_files.np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        graph_files.write_graph(forward_graph(), tmp_path / "g.onnx", {"x": np.zeros(1)}, frozenset())
    assert list(tmp_path.iterdir()) == []


def test_external_parameters_load_and_run(tmp_path: pathlib.Path) -> None:
    model = forward_graph()
    graph_files.write_graph(model, tmp_path / "g.onnx", None, frozenset({"w"}))
    assert (tmp_path / "g.onnx.data").stat().st_size >= 32
    loaded = onnx.load(str(tmp_path / "g.onnx"))
    assert OnnxRuntimeGraph(loaded)({"x": np.ones((3, 4), np.float32)})["loss"] == 24


def test_onnx_ad_differentiates_an_initializer_by_its_pattern() -> None:
    forward = forward_graph()
    assert choose_parameters(forward, ["w*"]) == ["w"]
    model = differentiate(forward, "loss", ["w"])
    assert [value.name for value in model.graph.output] == ["loss", "w.grad"]
    feeds = {"x": np.arange(12, dtype=np.float32).reshape(3, 4), "w": np.ones((4, 2), np.float32)}
    np.testing.assert_array_equal(
        OnnxRuntimeGraph(model)(feeds)["w.grad"], np.repeat(feeds["x"].sum(0), 2).reshape(4, 2)
    )


def test_onnx_ad_names_the_outputs_there_are() -> None:
    with pytest.raises(CannotConvert, match="no output 'lost'; its outputs: loss"):
        differentiate(forward_graph(), "lost", ["w"])


def test_no_random_number_is_below_the_layer_drop_threshold() -> None:
    assert not torch.rand([]) < _NeverReached()


class SkippedAtRandom(nn.Module):
    """Layer drop by a field of the configuration, as in speech encoders; Bart has an attribute of its own."""

    def __init__(self, layerdrop: float) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(layerdrop=layerdrop, speech_encoder_layerdrop=layerdrop)
        self.linear = nn.Linear(5, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        y = y.square() if torch.rand([]) < self.config.layerdrop else y.cos()
        return y.mean() if torch.rand([]) < self.config.speech_encoder_layerdrop else y.sin().mean()


def skipped_at_random_case() -> TrainingCase:
    return dataclasses.replace(squared_error_case(), name="never_skipped", module=SkippedAtRandom(0.0))


def test_layer_drop_of_a_module_is_never_reached() -> None:
    export_case(_case_from_factory(f"{__name__}:skipped_at_random_case"), ["seq"])


def test_layer_drop_is_refused_where_it_drops() -> None:
    with pytest.raises(CannotConvert, match=r"layer drop of 0\.1"):
        never_skip_layers(SkippedAtRandom(0.1))
    never_skip_layers(SkippedAtRandom(0.1).eval())
    inner = SkippedAtRandom(0.1)
    outer = nn.Sequential(inner).eval()
    inner.train()
    with pytest.raises(CannotConvert, match=r"layer drop of 0\.1"):
        never_skip_layers(outer)
    frozen = nn.Sequential(SkippedAtRandom(0.1)).train()
    frozen[0].eval()
    never_skip_layers(frozen)


@pytest.mark.parametrize("row", FAMILIES, ids=lambda row: row.name)
def test_every_family_has_a_configuration(row: object) -> None:
    assert row.config(Dimensions()).model_type


@pytest.mark.parametrize(
    ("config", "architectures", "task"),
    [
        ("BertConfig", None, "masked-lm"),
        ("BertConfig", ["BertLMHeadModel"], "causal-lm"),
        ("BertConfig", ["BertForPreTraining"], "masked-lm"),
        ("LlamaConfig", ["LlamaModel"], "causal-lm"),
        ("T5Config", ["T5WithLMHeadModel"], "seq2seq"),
        ("BartConfig", ["BartForConditionalGeneration"], "seq2seq"),
        ("Gemma3Config", ["Gemma3ForConditionalGeneration"], "causal-lm"),
        ("SegformerConfig", None, "image-classification"),
    ],
)
def test_the_task_is_that_of_the_architecture(config: str, architectures: list[str] | None, task: str) -> None:
    assert _task_of(getattr(transformers, config)(architectures=architectures)) == task


@pytest.mark.parametrize(
    ("config", "architectures", "reason"),
    [
        ("BertConfig", ["BertForTokenClassification"], "BertForTokenClassification is of no --task"),
        ("SegformerConfig", ["SegformerForSemanticSegmentation"], "is of no --task"),
        ("LlavaConfig", ["LlavaForConditionalGeneration"], "none of the tasks .* come in with --module"),
        ("WhisperConfig", ["WhisperForConditionalGeneration"], "none of the tasks .* come in with --module"),
        ("VoxtralConfig", ["VoxtralForConditionalGeneration"], "none of the tasks .* come in with --module"),
    ],
)
def test_a_head_of_another_task_is_refused(config: str, architectures: list[str] | None, reason: str) -> None:
    with pytest.raises(CannotConvert, match=reason):
        _task_of(getattr(transformers, config)(architectures=architectures))


def test_a_task_without_a_model_is_refused_in_one_line() -> None:
    config = transformers.LlamaConfig()
    with pytest.raises(CannotConvert, match=r"^llama: Hugging Face has no seq2seq model for it; .*--module$"):
        case_from_config(config, "seq2seq", Dimensions(), torch.float32)


@pytest.mark.parametrize(("size", "shape"), [({}, (24, 24)), ({"image_size": [16, 32]}, (16, 32))])
def test_images_are_of_the_configurations_size(size: dict[str, list[int]], shape: tuple[int, int]) -> None:
    sizes = {"depths": [1], "hidden_sizes": [8], "sr_ratios": [1], "num_attention_heads": [1], "mlp_ratios": [1]}
    config = transformers.SegformerConfig(
        num_encoder_blocks=1, patch_sizes=[3], strides=[2], decoder_hidden_size=8, **sizes, **size
    )
    case = case_from_config(config, None, Dimensions(), torch.float32)
    assert case.inputs(seed=0)["pixel_values"].shape == (3, 3, *shape)


def test_the_vocabulary_may_be_that_of_the_text_alone() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 50, "num_key_value_heads": 1, "head_dim": 8, "layer_types": ["full_attention"]}
    config = transformers.Gemma3Config(
        text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8}, mm_tokens_per_image=4
    )
    case = case_from_config(config, None, Dimensions(), torch.float32)
    assert case.inputs(seed=0)["input_ids"].max() < 50


def test_a_configuration_without_a_vocabulary_is_refused() -> None:
    with pytest.raises(CannotConvert, match=r"^assistant: its configuration says no size of a vocabulary .*--module$"):
        _case("assistant", SquaredError(), "causal-lm", transformers.PretrainedConfig(), Dimensions(), torch.float32)


def test_float32_gradients_may_differ_by_what_pytorch_itself_rounds_and_no_more() -> None:
    expected = {"loss": np.float32([1.0]), "w.grad": np.float32([1e-3, 2e-3])}
    got = {"loss": np.float32([1.0]), "w.grad": np.float32([1e-3, 2.0003e-3])}  # 1.5e-4 apart
    rounded = {"loss": np.float64([1.0]), "w.grad": np.float64([1e-3, 2.0002e-3])}
    other = {"loss": np.float64([1.0]), "w.grad": np.float64([1e-3, 2.1e-3])}  # no rounding of float32
    assert compare_outputs("alone", got, expected).failures
    assert not compare_outputs("rounded", got, expected, exact=rounded).failures
    assert compare_outputs("another computation", got, expected, exact=other).failures
