"""What a trace takes for granted of open lengths: a graph holds one side of `if length > 128` alone."""

from __future__ import annotations

import pathlib
import traceback
from collections.abc import Mapping, Sequence

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv, ShapeGuard

from training_case import CannotConvert, Sizes, TrainingCase

EACH = 512
"""Up to here every length is tried; above, powers of two and what is near a number that the trace asks about."""

LONGEST = 1 << 30
TORCH = pathlib.Path(torch.__file__).parent
OF_LAYOUT = ("conv", "_reshape_view_helper_core_alg")
"""PyTorch's functions that ask for a kernel's layout, and for one that can be viewed."""


def require_true_at_other_lengths(
    case: TrainingCase, environment: ShapeEnv, axes: Mapping[sympy.Symbol, str], compared: Sequence[Sizes]
) -> None:
    """Refuses a trace with a branch that other lengths than those `compared` with PyTorch do not take.

    What is false at a compared length, that comparison judges: chunks that are padded, by nothing where they fit.
    """
    sizes_compared = [{**case.sizes, **sizes} for sizes in compared]
    for guard in environment.guards:
        if _is_about_layout(guard) or not guard.expr.free_symbols <= axes.keys():
            continue
        if any(_is_false(guard, axes, sizes) for sizes in sizes_compared):
            continue
        for name in sorted(axes[symbol] for symbol in guard.expr.free_symbols):
            # PyTorch's own operators fail at lengths that are shorter than their windows.
            shortest = 2 if _is_the_models(guard) else min(sizes[name] for sizes in sizes_compared)
            for length in _lengths(guard, shortest, case.largest.get(name, LONGEST)):
                if _is_false(guard, axes, {**case.sizes, name: length}):
                    raise CannotConvert(_refusal(case, guard, axes, name, length))


def _is_false(guard: ShapeGuard, axes: Mapping[sympy.Symbol, str], sizes: Sizes) -> bool:
    values = {symbol: sympy.Integer(sizes[name]) for symbol, name in axes.items()}
    return guard.expr.xreplace(values) == sympy.false


def _lengths(guard: ShapeGuard, shortest: int, longest: int) -> list[int]:
    asked = [int(number) for number in guard.expr.atoms(sympy.Number) if number.is_finite]
    above = [1 << power for power in range(LONGEST.bit_length())]
    near = {length + more for length in (*above, *map(abs, asked)) for more in (-1, 0, 1)}
    return [length for length in sorted({*range(EACH), *near, longest}) if max(shortest, 2) <= length <= longest]


def _is_about_layout(guard: ShapeGuard) -> bool:
    """Whether PyTorch asks how a tensor lies in memory, which has no meaning in ONNX.

    Lengths that could be equal and are not, it asks for strides: a slice that is the whole is contiguous.
    """
    if _is_the_models(guard):
        return False
    named = getattr(guard.sloc.framework_loc, "name", None) in OF_LAYOUT
    return named or isinstance(guard.expr, sympy.Ne) or TORCH / "_prims_common" in _folders(guard)


def _is_the_models(guard: ShapeGuard) -> bool:
    folders = _folders(guard)
    return TORCH not in folders or TORCH / "nn" in folders


def _folders(guard: ShapeGuard) -> list[pathlib.Path]:
    place = guard.sloc.framework_loc
    return list(pathlib.Path(place.filename).parents) if isinstance(place, traceback.FrameSummary) else []


def _refusal(case: TrainingCase, guard: ShapeGuard, axes: Mapping[sympy.Symbol, str], name: str, length: int) -> str:
    question = guard.expr.xreplace({symbol: sympy.Symbol(axis) for symbol, axis in axes.items()})
    place = guard.sloc.framework_loc
    where = str(place)
    if isinstance(place, traceback.FrameSummary):
        path = pathlib.Path(place.filename)
        path = path.relative_to(TORCH.parent) if TORCH in path.parents else pathlib.Path(path.name)
        where = f"{path} line {place.lineno}"
    return (
        f"{case.name}: {where} asks whether {question}, which is false at {name}={length}: a graph has one branch of "
        f"these; export with --static, or for lengths up to some N with --longest N (the case's `largest`)"
    )
