"""Tests of how operators are broken down and compared, beside those in `test_exporter.py`."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.fx.experimental.proxy_tensor import make_fx

import check_graph
import decompositions
import export_training_graph
from before_autograd import BeforeAutograd, MaskedRead, MaskedReads, _assign, _masked_scatter, _rows_where
from check_graph import _step_in_float64, pytorch_step
from export_case import JOINT, ONNX_AD, export_case
from gradient_check import GradientMismatch, OnnxRuntimeGraph
from joint_graph import signature_of
from test_exporter import over_positions_case
from training_case import CannotConvert, TrainingCase


def test_the_inverse_error_function_is_pytorchs() -> None:
    y = torch.cat([torch.linspace(-0.999999, 0.999999, 2001), torch.tensor([0.0, 1e-20, 1e-4, 1.0, -1.0])])
    got = decompositions._inverse_error_function(y)
    torch.testing.assert_close(got.double(), torch.erfinv(y.double()), rtol=1e-6, atol=0.0)


def _above_a_quantile(x: torch.Tensor) -> torch.Tensor:
    """A sparse activation, as Gemma 3n has it."""
    multiplier = Normal(0, 1).icdf(torch.tensor(0.7))
    return torch.relu(x - x.mean(1, keepdim=True) - multiplier * x.std(1, keepdim=True, unbiased=False))


def _by_deviation(x: torch.Tensor) -> torch.Tensor:
    return x * x.std(-1, keepdim=True)


@pytest.mark.parametrize("operator", [torch.ops.aten.mul.Scalar, torch.ops.aten.div.Scalar])
def test_lengths_are_not_rounded_to_bfloat16(operator: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    def by_length(x: torch.Tensor) -> torch.Tensor:
        return operator(x, x.shape[0])

    x = torch.randn(515, generator=torch.Generator().manual_seed(0)).bfloat16()
    table = decompositions.decomposition_table()
    traced = make_fx(by_length, decomposition_table=table, tracing_mode="symbolic")(x[:40])
    torch.testing.assert_close(traced(x), by_length(x), rtol=0.0, atol=0.0)


@torch.jit.script
def _less_its_distance(x: torch.Tensor) -> torch.Tensor:
    """Positions' distances from the last one, as a function of TorchScript."""
    return x - 0.1 * torch.arange(x.size(-1), 0, -1)


@pytest.mark.parametrize("over", [_above_a_quantile, _by_deviation, _less_its_distance])
def test_a_sequence_stays_open(over: Callable[[torch.Tensor], torch.Tensor]) -> None:
    export_case(over_positions_case(over), ["seq"])


def _clamped_if_not_finite(x: torch.Tensor) -> torch.Tensor:
    """As DETR does in training."""
    if not torch.isfinite(x).all() or x.isnan().any():
        x = torch.clamp(x, min=-1e30, max=1e30)
    return torch.where(torch.isinf(x), 0.0, x)


def _checked_if_eager(x: torch.Tensor) -> torch.Tensor:
    """A check of values that is left out for compilers."""
    if not torch.compiler.is_compiling() and x.abs().max() > 1e30:
        raise ValueError("large values")
    return x


@pytest.mark.parametrize("over", [_clamped_if_not_finite, _checked_if_eager])
def test_branches_that_are_known_are_exported(over: Callable[[torch.Tensor], torch.Tensor]) -> None:
    left_out = export_case(over_positions_case(over), ["seq"]).branches_left_out()
    assert [re.sub(r"\d+", "N", line) for line in left_out] == (
        ["test_decompositions.py line N"] if over is _checked_if_eager else []
    )


def eager_check_case() -> TrainingCase:
    return over_positions_case(_checked_if_eager)


def test_a_branch_that_is_left_out_is_told(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    specification = f"{__name__}:eager_check_case"
    assert export_training_graph.main(["--module", specification, "-o", str(tmp_path / "g.onnx")]) == 0
    assert re.search(r"note: test_decompositions.py line \d+ branches on the data", capsys.readouterr().out)


def _infinite_or_large(x: torch.Tensor) -> torch.Tensor:
    bad = torch.isinf(x)
    bad |= x > 30
    return bad


def _infinite_or_large_at_first(x: torch.Tensor) -> torch.Tensor:
    bad = torch.isinf(x)
    bad[0] = x[0] > 30
    return bad


@pytest.mark.parametrize(
    "asked", [lambda x: x > 0, lambda x: torch.isinf(x.detach()), _infinite_or_large, _infinite_or_large_at_first]
)
def test_a_branch_on_data_is_refused(asked: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(CannotConvert, match=r"a Python branch depends on the data \(test_decompositions.py line \d+\)"):
        export_case(over_positions_case(lambda x: x if asked(x).any() else -x), ["seq"])
    assert not torch.compiler.is_compiling()


def _ends(x: torch.Tensor) -> torch.Tensor:
    """The values of two positions of each row, found by their marks."""
    rows = x.transpose(1, 2)
    marks = (torch.arange(rows.shape[1]) % (rows.shape[1] - 1) == 0).expand(rows.shape[:2])
    ends = rows[marks, :].reshape(x.shape[0], 2, -1)
    return ends * rows[torch.ones_like(marks)].mean(0)


def _features_added_at_ends(x: torch.Tensor) -> torch.Tensor:
    """As Qwen3-VL adds its images' features in several layers."""
    rows = x.transpose(1, 2).clone()
    marks = (torch.arange(rows.shape[1]) % (rows.shape[1] - 1) == 0).expand(rows.shape[:2])
    rows[marks, :] = rows[marks, :] + torch.arange(16.0).reshape(4, 4)
    return rows


def test_rows_that_a_mask_chooses_are_written() -> None:
    exported = export_case(over_positions_case(_features_added_at_ends), ["seq"])
    assert all(node.op_type != "NonZero" for node in exported.model.graph.node)


@pytest.mark.parametrize("value", [torch.arange(1.0, 10).reshape(3, 3), torch.tensor([[7.0, 8.0, 9.0]])])
def test_rows_are_assigned_as_pytorch_does(value: torch.Tensor) -> None:
    mask = torch.tensor([[False, True], [True, True]])
    expected, got = torch.zeros(2, 2, 3), torch.zeros(2, 2, 3)
    expected[mask] = value
    assert _assign([], got, mask, value) is not NotImplemented
    torch.testing.assert_close(got, expected)


def test_rows_that_a_mask_chooses_are_read() -> None:
    exported = export_case(over_positions_case(_ends), ["seq"])
    assert [read.rows for read in exported.signature.masked_reads] == [4, None]
    assert all(node.op_type not in ("NonZero", "TopK") for node in exported.model.graph.node)


def _held(do: Callable[..., object], *args: object) -> bool:
    """Whether the conditions of a replacement hold."""
    conditions = []
    assert do(conditions, *args) is not NotImplemented
    return all(conditions)


def test_rows_are_read_beside_a_table_of_positions() -> None:
    table = nn.Parameter(torch.randn(12, 4))

    def ends(x: torch.Tensor) -> torch.Tensor:
        return _ends(x + table[torch.arange(x.shape[2])].T)

    export_case(dataclasses.replace(over_positions_case(ends), largest={"seq": 12}), ["seq"])


@pytest.mark.parametrize("x", [torch.randn(2, 5, 3), torch.arange(10).reshape(2, 5), torch.eye(5)[:2] * 1j])
def test_rows_are_read_on_condition(x: torch.Tensor) -> None:
    mask = torch.tensor([[False, True, True, False, False], [True, False, False, False, True]])
    torch.testing.assert_close(_rows_where([], x, mask, 4), x[mask])
    torch.testing.assert_close(_rows_where([], x, mask | True, None), x[mask | True])
    assert _held(_rows_where, x, mask, 4)
    assert _held(_rows_where, x, mask | True, None)
    for rows in (0, 3, 5, None):
        assert not _held(_rows_where, x, mask, rows)


@pytest.mark.parametrize(("rows", "held"), [(3, (True, True)), (4, (False, True))])
def test_rows_are_written_on_condition(rows: int, held: tuple[bool, bool]) -> None:
    mask = torch.tensor([[False, True], [True, True]])
    x, values = torch.zeros(2, 2, 3), torch.ones(rows, 3)
    assert (_held(_assign, x, mask, values), _held(_masked_scatter, x, mask.unsqueeze(-1), values)) == held


def test_nothing_is_written_on_condition_that_nothing_is_chosen() -> None:
    x, nothing = torch.zeros(2, 3), torch.ones(0, 3)
    assert _held(_masked_scatter, x, x > 0, nothing)
    assert not _held(_masked_scatter, x, torch.tensor([[True], [False]]), nothing)


def with_mask_case(over: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], positions: list[int]) -> TrainingCase:
    """`over` of x [2, seq, 4] and a mask [2, seq] of these positions."""

    def make_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        x = torch.randn(2, sizes["seq"], 4, generator=generator)
        chosen = torch.tensor([position in positions for position in range(sizes["seq"])])
        return {"x": x, "mask": chosen.expand(2, -1).contiguous()}

    return TrainingCase("with_mask", WithMask(over), make_inputs, {"seq": 12})


class WithMask(nn.Module):
    def __init__(self, over: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.over, self.scale = over, nn.Parameter(torch.tensor([1.1, 0.9, 1.3, 0.7]))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.over(x * self.scale, mask).square().mean()


def _compared_rows(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return x * (1 + (x[mask].detach() > 0).float().mean())


def _rows_replaced(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[mask] = torch.arange(16.0).reshape(4, 4) * x[0, 0]
    return y


def _clamped_where_infinite(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Scores that a mask makes infinite."""
    scores = (x @ x.transpose(1, 2)).masked_fill(mask[:, None, :], -torch.inf)
    if torch.isinf(scores).any():
        scores = scores.clamp(min=-1.0)
    return scores.softmax(-1) @ x


@pytest.mark.parametrize(
    ("over", "positions", "route"),
    [
        (lambda x, mask: x.mean(1, keepdim=True) + x[mask].sum(0), [], JOINT),
        (_compared_rows, [1, 2], JOINT),
        (_compared_rows, [1, 2], ONNX_AD),
        (lambda x, mask: x * (torch.arange(24).reshape(2, 12)[mask] > 3).float().mean(), [1, 2], JOINT),
        (_rows_replaced, [1, 2], JOINT),
        (_clamped_where_infinite, [], JOINT),
    ],
    ids=["no rows", "compared", "by onnx-ad", "integers", "written", "infinite scores"],
)
def test_the_loss_of_data_that_break_a_condition_is_no_number(
    over: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], positions: list[int], route: str
) -> None:
    exported = export_case(with_mask_case(over, positions), [], route)
    feeds = {**exported.parameters(), **exported.inputs()}
    assert np.isfinite(OnnxRuntimeGraph(exported.model)(feeds)["loss"])
    feeds["mask"][0, 1] ^= True
    got = OnnxRuntimeGraph(exported.model)(feeds)
    assert np.isnan(got["loss"])
    assert np.isnan(got["scale.grad"]).all()


def _clamped_by_words(x: torch.Tensor) -> torch.Tensor:
    if not torch.all(input=torch.isfinite(input=x)):
        x = x.clamp(max=30)
    return nn.functional.avg_pool1d(input=x, kernel_size=2) + torch.adaptive_avg_pool1d(output_size=1, input=x)


def _known_numbers_written(x: torch.Tensor) -> torch.Tensor:
    numbers = torch.tensor([1, 2])
    numbers[1] = 3.0
    return x * numbers.sum()


@pytest.mark.parametrize(
    "over",
    [
        _clamped_by_words,
        _known_numbers_written,
        lambda x: nn.functional.avg_pool1d(x, x.shape[2]),
        lambda x: nn.functional.adaptive_avg_pool2d(x.transpose(1, 2)[:, None], (x.shape[2], 2)),
        lambda x: x.masked_scatter(x > 1e9, x[:, :, :0]),
        lambda x: x * sum(torch.tensor([1, 2]).tolist()) + torch.arange(x.shape[2]),
    ],
    ids=["by words", "numbers", "pooled whole", "pooled to the length", "nothing scattered", "long ranges"],
)
def test_a_sequence_stays_open_before_autograd(over: Callable[[torch.Tensor], torch.Tensor]) -> None:
    export_case(over_positions_case(over), ["seq"])


@pytest.mark.parametrize(
    "over",
    [
        lambda x: nn.functional.avg_pool1d(x, x.shape[2], padding=x.shape[2] // 2),
        lambda x: nn.functional.adaptive_avg_pool1d(x, x.shape[2] // 2),
        lambda x: x * (torch.tensor([1, 2]) * (x.shape[2] / 40.0)).sum(),
    ],
    ids=["padded", "halved", "a share"],
)
def test_what_an_open_length_decides_is_refused(over: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(CannotConvert):
        export_case(over_positions_case(over), ["seq"])


WEIGHTS = torch.tensor([2.0, 0.0])


def _written_by_index(x: torch.Tensor) -> torch.Tensor:
    numbers = torch.tensor([2, 0])
    numbers[1] = (x > 3).sum()
    return x * (1 + numbers.sum())


def _written_by_mask(x: torch.Tensor) -> torch.Tensor:
    numbers = torch.tensor([2, 0])
    numbers[x[0, :2, 0] > 9] = 5
    return x * (1 + numbers.sum())


def _added_in_place(x: torch.Tensor) -> torch.Tensor:
    numbers = torch.tensor([2, 0])
    numbers += (x > 3).sum()
    return x * (1 + numbers.sum())


def _written_out(x: torch.Tensor) -> torch.Tensor:
    numbers = torch.tensor([2, 0])
    torch.add((x > 3).sum(), 0, out=numbers[0])
    return x * (1 + numbers.sum())


def _of_the_length(x: torch.Tensor) -> torch.Tensor:
    numbers = torch.tensor([2, 0])
    numbers[1] = x.shape[2]
    return x * (1 + numbers.sum())


def _written_to_weights(x: torch.Tensor) -> torch.Tensor:
    WEIGHTS[1] = x.detach().sum()
    return x * (1 + WEIGHTS.sum())


@pytest.mark.parametrize(
    "over",
    [_written_by_index, _written_by_mask, _added_in_place, _written_out, _of_the_length, _written_to_weights],
)
def test_what_the_inputs_decide_is_not_written_into_known_numbers(over: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(CannotConvert, match=r"test_decompositions.py line \d+ writes what the inputs decide"):
        export_case(over_positions_case(over), ["seq"])


def _read_before(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A check of other rows, which is left out for compilers."""
    if not torch.compiler.is_compiling() and x[~mask].abs().max() > 1e9:
        raise ValueError("large values")
    return x[mask].mean(0) + x


def test_rows_of_another_line_are_not_taken_for_those_of_this_one() -> None:
    with pytest.raises(CannotConvert, match=r"a Python branch depends on the data"):
        export_case(with_mask_case(_read_before, [1, 2]), [])
    reads = [MaskedRead(1, "mine.py line 2")]
    with (
        BeforeAutograd(reads),
        pytest.raises(RuntimeError, match=r"line \d+ reads by a mask, which mine.py line 2 did"),
    ):
        torch.eye(3)[torch.arange(3) > 1]


def test_reads_that_other_inputs_lack_are_refused() -> None:
    case = with_mask_case(lambda x, mask: x[mask].mean(0) + x if x.shape[1] == 12 else x, [1, 2])
    with pytest.raises(CannotConvert, match=r"reads by masks 1 time, and 0 times with other inputs"):
        export_case(case, ["seq"])


def test_a_folder_named_torch_is_the_users(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "torch" / "mine.py"
    path.parent.mkdir()
    path.write_text("def rows(x, mask):\n    return x[mask]\n")
    names: dict[str, Any] = {}
    exec(compile(path.read_text(), path, "exec"), names)
    with MaskedReads() as noted:
        names["rows"](torch.ones(3), torch.ones(3) > 0)
    assert noted.reads[0].where == "mine.py line 2"


def test_masks_that_choose_as_many_as_the_data_say_are_refused() -> None:
    with pytest.raises(CannotConvert, match=r"test_decompositions.py line \d+ reads by a mask, which chooses \d+ rows"):
        export_case(over_positions_case(lambda x: x[x > 0]), ["seq"])


def test_a_choice_does_not_excuse_what_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    case = over_positions_case(lambda x: x.topk(2, dim=1).values)
    model, signature = export_case(case, []).model, signature_of(case, [])
    step, added = check_graph._graph_step, iter([math.nan])

    def wrong_at_first(*arguments: Any) -> dict[str, np.ndarray]:
        extra = next(added, 0.0)
        return {name: value + np.float32(extra) for name, value in step(*arguments).items()}

    monkeypatch.setattr(check_graph, "_graph_step", wrong_at_first)
    with pytest.raises(GradientMismatch):
        check_graph.check_graph(model, signature, case, [])
    added = iter([1.0])
    check_graph.check_graph(model, signature, case, [])


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_float64_drops_what_float32_does(share: float) -> None:
    case = over_positions_case(lambda x: torch.dropout(x, share, train=True))
    signature = signature_of(case, [])
    expected, _ = pytorch_step(case, signature, ["draw"], {})
    exact = _step_in_float64(case, signature, {}, 5)
    np.testing.assert_allclose(expected["scale.grad"], exact["scale.grad"], rtol=1e-5)


class Reversible(torch.autograd.Function):
    """A layer whose backward computes it again, and adds to its parameters' gradients by itself."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        ctx.layer, ctx.x = layer, x.detach()
        return layer(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        with torch.enable_grad():
            x = ctx.x.requires_grad_()
            ctx.layer(x).backward(gradient)
        return x.grad, None


class OfItsWeight(Reversible):
    """Keeps a weight, which may stand for the module's."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        weight, bias = layer.weight, layer.bias
        ctx.layer, ctx.x = (lambda x: nn.functional.conv1d(x, weight, bias)), x.detach()
        return ctx.layer(x)


@pytest.mark.parametrize("function", [Reversible, OfItsWeight])
@pytest.mark.parametrize("trained", [False, True])
def test_gradients_past_autograd_are_refused(function: type[Reversible], trained: bool) -> None:
    layer = nn.Conv1d(4, 4, 1)
    case = over_positions_case(lambda x: function.apply(x, case.module.reversible))
    case.module.reversible = layer
    before = torch.ones_like(layer.weight) if trained else None
    layer.weight.grad = before
    with pytest.raises(CannotConvert, match=r"the gradient of 'reversible\.weight' comes past autograd"):
        export_case(case, ["seq"])
    assert layer.weight.grad is before
