"""Tests of how operators are broken down, beside those in `test_exporter.py`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.distributions import Normal

import decompositions
from export_case import export_case
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
