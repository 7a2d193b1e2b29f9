"""Functions that are replaced while a module is traced, before autograd sees them.

`decompositions.py` breaks operators down below autograd. These have to go earlier: the gradient that PyTorch derives
for them is of an operator, or of a length, that no graph has.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._dispatch.python import no_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from training_case import is_pytorchs

SHORT = 1024
"""A mask of two ranges of positions as long as this is a constant of 1 MiB."""


OF_FINITE = {
    function: function.__name__ == "isfinite"
    for of in (torch, torch.Tensor)
    for function in (of.isfinite, of.isinf, of.isnan)
}
"""What such functions say of finite values."""

SUMMARIES = (torch.all, torch.any, torch.Tensor.all, torch.Tensor.any)
IF_FINITE = "_if_finite"
"""The attribute of a tensor that has what its elements are if all values are finite."""

OPERATORS = ("add", "and", "floordiv", "lshift", "mod", "mul", "or", "pow", "rshift", "sub", "truediv", "xor")
WRITING = {"__setitem__", "__set__", *(f"__i{name}__" for name in OPERATORS)}


class BeforeAutograd(TorchFunctionMode):
    """Within, calls of the table's functions are those of its replacements.

    What is computed of integers that a module holds, and not of its inputs, is computed at once: Python may then ask
    for it, as Qwen's vision towers do for the sizes of their images. What lists have been asked for is often made of
    short ranges (the order of windows); those of other modules stay in the graph.

    Where Python asks whether all activations are finite (DETR, before it clamps them), they are. Masks, which no
    gradient flows to, may be infinite. What is so assumed of the data, as is how many rows a mask chooses, is kept as
    conditions.
    """

    def __init__(self, reads: Sequence[MaskedRead] = ()) -> None:
        super().__init__()
        self.asked_for_lists = False
        self.reads = iter(reads)
        self.conditions: list[torch.Tensor] = []

    def checked(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss, which is no number where a condition does not hold, and its gradients with it."""
        if not self.conditions:
            return loss
        held = functools.reduce(torch.logical_and, self.conditions)
        return loss * torch.where(held, loss.new_ones(()), math.nan)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        mask = _mask_that_reads(function, args)
        read = None if mask is None else next(self.reads, None)
        if read is not None and read.where != (where := _line_of_the_model()):
            raise RuntimeError(f"{where} reads by a mask, which {read.where} did before the module was traced")
        ranges = (
            self.asked_for_lists
            and function is torch.arange
            and all(isinstance(end, int) and end <= SHORT for end in args)
        )
        of = args[0] if args else (kwargs or {}).get("input")
        writes = _writes(function, kwargs)
        into = (kwargs or {}).get("out", of) if writes else None
        if writes and _of_the_inputs(args, kwargs, into=into):
            raise RuntimeError(
                f"{_line_of_the_model()} writes what the inputs decide into numbers that the module holds"
            )
        if _of_known_integers(args, kwargs, made=ranges or function is torch.tensor, written=writes):
            self.asked_for_lists |= function is torch.Tensor.tolist
            with _disable_current_modes(), no_python_dispatcher():
                return function(*args, **(kwargs or {}))
        if function is torch.Tensor.__bool__ and hasattr(args[0], IF_FINITE):
            answer = getattr(args[0], IF_FINITE)
            self.conditions.append(args[0].reshape(()) == answer)
            return answer
        if mask is not None and read is not None:
            return _rows_where(self.conditions, args[0], mask, read.rows)
        replacement = REPLACEMENTS.get(function)
        if function in CONDITIONAL:
            replacement = functools.partial(CONDITIONAL[function], self.conditions)
        result = NotImplemented if replacement is None else replacement(*args, **(kwargs or {}))
        result = function(*args, **(kwargs or {})) if result is NotImplemented else result
        if hasattr(into, IF_FINITE):
            delattr(into, IF_FINITE)
        if function in OF_FINITE and of.requires_grad:
            setattr(result, IF_FINITE, OF_FINITE[function])
        elif function in SUMMARIES and hasattr(of, IF_FINITE):
            setattr(result, IF_FINITE, getattr(of, IF_FINITE))
        return result


@dataclasses.dataclass(frozen=True)
class MaskedRead:
    """An `x[mask]`: the number of its rows, or `None` where it leaves none out, and the model's line."""

    rows: int | None
    where: str

    def __str__(self) -> str:
        return f"{'all' if self.rows is None else self.rows} rows"


class MaskedReads(TorchFunctionMode):
    """Within, every `x[mask]` is noted, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[MaskedRead] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        mask = _mask_that_reads(function, args)
        if mask is not None:
            self.reads.append(MaskedRead(None if mask.all() else int(mask.sum()), _line_of_the_model()))
        return function(*args, **(kwargs or {}))


def _line_of_the_model() -> str:
    """The line of Python that called what is replaced."""
    frames = [f for f in traceback.extract_stack() if not is_pytorchs(f.filename) and f.filename != __file__]
    return f"{pathlib.Path(frames[-1].filename).name} line {frames[-1].lineno}"


def _mask_that_reads(function: Any, args: Any) -> torch.Tensor | None:
    """The mask of `x[mask]` or `x[mask, :]`, which has as many rows as the data choose."""
    if function is not torch.Tensor.__getitem__ or args[0].dtype == torch.bool:
        return None
    return _mask_of(args[1])


def _mask_of(index: Any) -> torch.Tensor | None:
    """The mask of an index that is one, alone or before `:`."""
    index = index if isinstance(index, tuple) else (index,)
    alone = bool(index) and all(isinstance(more, slice) and more == slice(None) for more in index[1:])
    return index[0] if alone and isinstance(index[0], torch.Tensor) and index[0].dtype == torch.bool else None


def _writes(function: Any, kwargs: Any) -> bool:
    """Whether a function writes to a tensor: `add_`, `+=`, `x[...] =`, `out=`."""
    name = getattr(function, "__name__", "")
    in_place = name in WRITING if name.startswith("__") else name.endswith("_")
    return in_place or (kwargs or {}).get("out") is not None


def _rows_where(conditions: list[torch.Tensor], x: torch.Tensor, mask: torch.Tensor, rows: int | None) -> torch.Tensor:
    """`x[mask]` on the condition that the mask chooses as many `rows`, or all."""
    length, chosen, of_rows = mask.numel(), mask.reshape(-1), x.reshape(-1, *x.shape[mask.dim() :])
    if rows is None:
        conditions.append(chosen.all())
        return of_rows
    count = chosen.long().cumsum(0)
    conditions.append(count[-1] == rows)
    if rows == 0:
        return torch.zeros_like(of_rows[:0])  # without a gradient, which ONNX scatters no rows of
    # What is not chosen, and more than as many, is written behind the last row.
    row = torch.where(chosen, count - 1, rows).clamp(max=rows)
    place = row.new_zeros(rows + 1).scatter(0, row, torch.arange(length, device=x.device))
    return of_rows[place[:rows]]


OPEN_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool)


def _of_known_integers(args: Any, kwargs: Any, *, made: bool, written: bool) -> bool:
    """Whether there are tensors and all are such; `made`: of numbers, there may be none.

    With a number that is no integer they make another type, unless it is `written` to them.
    """
    leaves = pytree.tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    known = all(type(tensor) is torch.Tensor and not tensor.is_floating_point() for tensor in tensors)
    others = OPEN_NUMBERS if written else (float, *OPEN_NUMBERS)
    return known and (made or bool(tensors)) and not any(isinstance(leaf, others) for leaf in leaves)


def _of_the_inputs(args: Any, kwargs: Any, *, into: Any) -> bool:
    """Whether a function writes what is traced `into` a tensor that is not, where it would be lost."""
    traced = (FakeTensor, *OPEN_NUMBERS)
    return type(into) is torch.Tensor and any(isinstance(leaf, traced) for leaf in pytree.tree_leaves((args, kwargs)))


def _assign(conditions: list[torch.Tensor], x: torch.Tensor, index: object, value: object) -> object:
    """`x[mask] = value` as a selection, where all positions get one value or each row one of its own: as many as are
    chosen.

    An index of bools has a length that only the data tell, and so has the gradient of `value`.
    """
    mask = _mask_of(index)
    if mask is None or mask.shape != x.shape[: mask.dim()]:
        return NotImplemented
    if isinstance(value, (bool, int, float, torch.SymInt, torch.SymFloat)):
        # Not by `as_tensor`, which takes an open length for a number.
        value = torch.full((), value, dtype=x.dtype, device=x.device)
    axes_of_row = x.dim() - mask.dim()
    if not isinstance(value, torch.Tensor) or value.dim() > axes_of_row + 1:
        return NotImplemented
    of_rows = value.dim() > axes_of_row
    if of_rows and value.shape[1:] != x.shape[mask.dim() :]:
        return NotImplemented
    chosen, mask = mask, mask.reshape(*mask.shape, *[1] * axes_of_row)
    if of_rows and value.shape[0] != 1:
        conditions.append(chosen.sum() == _as_tensor(value.shape[0], mask))
        return x.copy_(_masked_scatter([], x, mask, value.to(x)))
    return x.copy_(torch.where(mask, value.to(x), x))


def _masked_scatter(
    conditions: list[torch.Tensor], x: torch.Tensor, mask: torch.Tensor, source: torch.Tensor
) -> object:
    """`source` in its order where `mask` says so, each position reading by its count: `source[cumsum(mask) - 1]`.

    PyTorch's backward has no translation. Where whole rows are chosen, as image features replace image tokens of
    [batch, seq, hidden], rows are counted and not elements.
    """
    if x.dim() == 0:
        return NotImplemented
    x, mask = torch.broadcast_tensors(x, mask)
    rows = mask.stride(-1) == 0 and source.dim() > 0 and source.shape[-1] == x.shape[-1]
    chosen = mask[..., 0] if rows else mask
    values = source.reshape(-1, x.shape[-1]) if rows else source.reshape(-1)
    count = chosen.reshape(-1).long().cumsum(0)
    conditions.append(count[-1] <= _as_tensor(values.shape[0], mask))
    if type(source.numel()) is int and source.numel() == 0:  # something to read, where nothing is chosen
        values = x.new_zeros(1, *values.shape[1:])
    place = (count - 1).clamp(min=0).reshape(chosen.shape)
    return torch.where(mask, values[place], x)


def _as_tensor(length: int | torch.SymInt, like: torch.Tensor) -> torch.Tensor:
    """Not by `torch.as_tensor`, nor by a comparison, which take an open length for a number."""
    return torch.full((), length, dtype=torch.long, device=like.device)


def _weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """By its formula: the fused operator's backward has no translation."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _adaptive_average(axes: int) -> Callable[..., object]:
    """As a mean, or as products with windows of ones: PyTorch's backward has no translation, and to one element its
    result has strides that the gradient follows.
    """

    def average(input: torch.Tensor, output_size: int | tuple[int | None, ...]) -> object:
        x, sizes = input, _per_axis(output_size, axes)
        if all(isinstance(size, int) and size == 1 for size in sizes):
            return x.mean(list(range(-axes, 0)), keepdim=True)
        for axis, size in zip(range(-axes, 0), sizes, strict=True):
            if size is None or (isinstance(size, torch.SymInt) and size == x.shape[axis]):
                continue
            if isinstance(size, torch.SymInt) or isinstance(x.shape[axis], torch.SymInt):
                return NotImplemented
            if size != x.shape[axis]:
                window = _windows(x.shape[axis], size, x)
                x = (x.transpose(axis, -1) @ window.T / window.sum(1)).transpose(axis, -1)
        return x

    return average


def _windows(length: int, count: int, like: torch.Tensor) -> torch.Tensor:
    """[count, length]: 1 from floor(i length / count) to before ceil((i + 1) length / count), 0 elsewhere."""
    i, position = torch.arange(count, device=like.device)[:, None], torch.arange(length, device=like.device)
    inside = (position >= i * length // count) & (position < -(-(i + 1) * length // count))
    return inside.to(like.dtype)


def _average_pool(axes: int) -> Callable[..., object]:
    """As a convolution of each channel alone, whose backward `decompositions.py` has."""

    def pool(
        input: torch.Tensor,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> object:
        x, kernel, padding = input, _per_axis(kernel_size, axes), _per_axis(padding, axes)
        if divisor_override is not None or (ceil_mode and any(padding)) or x.dim() != axes + 2:
            return NotImplemented
        if any(isinstance(size, torch.SymInt) for size in kernel):
            of_all = kernel == tuple(x.shape[2:]) and not any(padding)
            return x.mean(list(range(-axes, 0)), keepdim=True) if of_all else NotImplemented
        stride = _per_axis(stride or kernel_size, axes)
        if ceil_mode and any(step > size for step, size in zip(stride, kernel, strict=True)):
            return NotImplemented  # a window that begins behind the input is dropped
        convolve = functional.conv1d if axes == 1 else functional.conv2d
        ends = [size for step in reversed(stride) for size in (0, step - 1)]  # behind the input, for `ceil_mode`
        # Ones, and a division behind the sum: 1 / 3 of bfloat16 is 0.2 % too large.
        window = torch.ones((1, 1, *kernel), dtype=x.dtype, device=x.device)

        def sums(of: torch.Tensor) -> torch.Tensor:
            padded = functional.pad(of, ends) if ceil_mode else of
            return convolve(padded, window, stride=stride, padding=padding)

        partial = ceil_mode or (any(padding) and not count_include_pad)  # counted is what is inside the input
        count = sums(torch.ones_like(x[:1, :1])) if partial else math.prod(kernel)
        pooled = sums(x.reshape(-1, 1, *x.shape[2:])) / count
        return pooled.reshape(*x.shape[:2], *pooled.shape[2:])

    return pool


def _per_axis(size: int | tuple[Any, ...], axes: int) -> tuple[Any, ...]:
    sizes = (size,) if isinstance(size, (int, torch.SymInt)) else tuple(size)
    return sizes * axes if len(sizes) == 1 else sizes


# Arguments are named as PyTorch names them: they may be given by name.
REPLACEMENTS: dict[object, Callable[..., object]] = {
    torch._weight_norm: _weight_norm,
    torch.adaptive_avg_pool1d: _adaptive_average(1),
    functional.adaptive_avg_pool2d: _adaptive_average(2),
    torch.avg_pool1d: _average_pool(1),
    torch._C._nn.avg_pool2d: _average_pool(2),
}

CONDITIONAL: dict[object, Callable[..., object]] = {
    torch.Tensor.__setitem__: _assign,
    torch.Tensor.masked_scatter: _masked_scatter,
}
"""Replacements that add to a list of conditions, their first argument."""
