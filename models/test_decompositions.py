"""Tests of how operators are broken down and compared, beside those in `test_exporter.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal

import decompositions
from before_autograd import BeforeAutograd, _rows_where
from check_graph import _step_in_float64, pytorch_step
from export_case import export_case
from joint_graph import signature_of
from test_exporter import over_positions_case
from training_case import CannotConvert


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
    export_case(over_positions_case(over), ["seq"])


@pytest.mark.parametrize("asked", [lambda x: x > 0, lambda x: torch.isinf(x.detach())])
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
    with BeforeAutograd():
        got[mask] = value
    torch.testing.assert_close(got, expected)


def test_rows_that_a_mask_chooses_are_read() -> None:
    exported = export_case(over_positions_case(_ends), ["seq"])
    assert [read.rows for read in exported.signature.masked_reads] == [4, None]
    assert all(node.op_type != "NonZero" for node in exported.model.graph.node)


@pytest.mark.parametrize("x", [torch.randn(2, 5, 3), torch.arange(10).reshape(2, 5)])
def test_rows_of_a_mask_that_chooses_others_are_no_numbers(x: torch.Tensor) -> None:
    mask = torch.tensor([[False, True, True, False, False], [True, False, False, False, True]])
    torch.testing.assert_close(_rows_where(x, mask, 4), x[mask])
    torch.testing.assert_close(_rows_where(x, mask | True, None), x[mask | True])
    for rows in (3, 5, None):
        nothing = _rows_where(x, mask, rows)
        assert (nothing.isnan() if x.is_floating_point() else nothing == torch.iinfo(x.dtype).min).all()


def test_masks_that_choose_as_many_as_the_data_say_are_refused() -> None:
    with pytest.raises(CannotConvert, match=r"test_decompositions.py line \d+ reads by a mask, which chooses \d+ rows"):
        export_case(over_positions_case(lambda x: x[x > 0]), ["seq"])


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


def test_gradients_past_autograd_are_refused() -> None:
    layer = nn.Conv1d(4, 4, 1)
    case = over_positions_case(lambda x: Reversible.apply(x, layer))
    case.module.reversible = layer
    with pytest.raises(CannotConvert, match=r"the gradient of 'reversible\.weight' comes past autograd"):
        export_case(case, ["seq"])
