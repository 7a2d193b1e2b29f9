"""How operators are broken down while a training step is traced."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch

aten = torch.ops.aten


def decomposition_table() -> dict[object, Callable[..., object]]:
    """PyTorch's core table, plus what the ONNX exporter has no translation for."""
    table = dict(torch._decomp.core_aten_decompositions())
    table[aten.empty_permuted.default] = _empty_permuted
    table[aten.new_empty_strided.default] = _new_empty_strided
    table[aten.native_layer_norm.default] = _layer_norm_in_float32
    table[aten.convolution_backward.default] = _convolution_backward
    table[aten.native_batch_norm.default] = _batch_norm
    table[aten._native_batch_norm_legit.default] = _batch_norm
    table[aten._native_batch_norm_legit_no_training.default] = _batch_norm_by_buffers
    table[aten.native_batch_norm_backward.default] = _batch_norm_backward
    table[aten.clamp.default] = _clamp
    for operator in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor):
        table[operator] = _with_tensors(operator)
    for operator in (aten.add, aten.sub, aten.mul, aten.div, aten.remainder):
        table[operator.Scalar] = _with_a_length(operator.Tensor)
    for operator in (aten.copy.default, aten.copy_.default):
        table[operator] = _of_one_shape(operator)
    table[aten.native_dropout.default] = _dropout
    table[aten.lgamma.default] = _log_gamma
    table[aten.digamma.default] = _digamma
    table[aten.erfinv.default] = _inverse_error_function
    for drawn, in_place, decomposed in (
        (aten.exponential.default, aten.exponential_.default, _exponential),
        (aten.uniform.default, aten.uniform_.default, _uniform),
    ):
        table[drawn], table[in_place] = decomposed, _copied_to(decomposed)
    table[aten.unsqueeze.default] = _unsqueeze_complex
    table[aten.linalg_solve_triangular.default] = _solve_triangular
    table[aten.squeeze.dims] = _squeeze
    return table


def _layer_norm_in_float32(
    x: torch.Tensor, shape: list[int], weight: torch.Tensor | None, bias: torch.Tensor | None, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gives reduced-precision layer norms float32 statistics, as ONNX defines them.

    PyTorch's CPU kernel rounds mean and deviation to the type of the input. Exported so, the backward pass mixes
    the types that ONNX gives with those that PyTorch would have given, and no checker takes the graph.
    """
    if x.dtype not in (torch.bfloat16, torch.float16):
        return NotImplemented
    weight = None if weight is None else weight.float()
    bias = None if bias is None else bias.float()
    output, mean, deviation = aten.native_layer_norm.default(x.float(), shape, weight, bias, epsilon)
    return output.to(x.dtype), mean, deviation


def _empty_permuted(size: list[int], physical_layout: list[int], **options: object) -> torch.Tensor:
    """Memory layout has no meaning in ONNX."""
    kept = {key: value for key, value in options.items() if key in ("dtype", "device")}
    return torch.empty(size, **kept)


def _new_empty_strided(x: torch.Tensor, size: list[int], stride: list[int], **options: object) -> torch.Tensor:
    """For a gradient through a view that was written to: as `_empty_permuted`."""
    return x.new_empty(size)


def _clamp(x: torch.Tensor, low: float | None = None, high: float | None = None) -> torch.Tensor:
    """Gives both bounds one type: of an integer and a float, the exporter promotes only one, and then fails."""
    if not x.is_floating_point() or low is None or high is None or type(low) is type(high):
        return NotImplemented
    return aten.clamp.default(x, float(low), float(high))


STEPS = 7
"""How far arguments of gamma functions are moved up, to where three terms of Stirling's series do in float32."""


def _log_gamma(x: torch.Tensor) -> torch.Tensor:
    """Of positive numbers (degrees of freedom), by Stirling's series at z = x + 7 (Abramowitz and Stegun 6.1.41):

    log G(x) = (z - 1/2) log z - z + log(2 pi) / 2 + 1 / 12z - 1 / 360z^3 + 1 / 1260z^5 - sum_k log(x + k),  k < 7
    """
    z = x + STEPS
    inverse = 1 / z
    square = inverse * inverse
    series = inverse * (1 / 12 - square * (1 / 360 - square / 1260))
    above = (z - 0.5) * torch.log(z) - z + 0.5 * math.log(2 * math.pi) + series
    product = math.prod((x + k for k in range(1, STEPS)), start=x)
    return above - torch.log(product)


def _digamma(x: torch.Tensor) -> torch.Tensor:
    """Its derivative (6.3.18): log z - 1 / 2z - 1 / 12z^2 + 1 / 120z^4 - 1 / 252z^6 - sum_k 1 / (x + k)."""
    z = x + STEPS
    inverse = 1 / z
    square = inverse * inverse
    above = torch.log(z) - inverse / 2 - square * (1 / 12 - square * (1 / 120 - square / 252))
    return above - sum(1 / (x + k) for k in range(STEPS))


NEAR_ZERO = (2.81022636e-8, 3.43273939e-7, -3.5233877e-6, -4.39150654e-6, 2.1858087e-4)
NEAR_ZERO += (-1.25372503e-3, -4.17768164e-3, 0.246640727, 1.50140941)
NEAR_ONE = (-2.00214257e-4, 1.00950558e-4, 1.34934322e-3, -3.67342844e-3, 5.73950773e-3)
NEAR_ONE += (-7.6224613e-3, 9.43887047e-3, 1.00167406, 2.83297682)


def _inverse_error_function(y: torch.Tensor) -> torch.Tensor:
    """By polynomials of w = -log(1 - y^2), and of its root where y is near 1, right to float32 (Giles, 2010).

    Quantiles of normal distributions (sparse activations of Gemma 3n) are made of it.
    """
    w = -torch.log1p(-y) - torch.log1p(y)
    root = torch.sqrt(torch.clamp(w, min=5.0))
    x = y * torch.where(w < 5, _polynomial(w - 2.5, NEAR_ZERO), _polynomial(root - 3, NEAR_ONE))
    return torch.where(y.abs() == 1, y * math.inf, x)


def _polynomial(x: torch.Tensor, coefficients: tuple[float, ...]) -> torch.Tensor:
    """The highest power's coefficient comes first."""
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def _exponential(x: torch.Tensor, rate: float = 1.0, generator: torch.Generator | None = None) -> torch.Tensor:
    """From numbers drawn from [0, 1), which is what the exporter draws."""
    return -torch.log1p(-torch.rand_like(x)) / rate


def _uniform(
    x: torch.Tensor, low: float = 0.0, high: float = 1.0, generator: torch.Generator | None = None
) -> torch.Tensor:
    return low + (high - low) * torch.rand_like(x)


def _dropout(x: torch.Tensor, p: float, train: bool | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Keeps what a number drawn from [0, 1) is below 1 - p for; left whole, the exporter's `Dropout` draws unseen."""
    if not train or not 0 < p < 1:
        return torch._decomp.decomposition_table[aten.native_dropout.default](x, p, train)
    kept = torch.rand_like(x) < 1 - p
    return x * (kept.to(x.dtype) * (1 / (1 - p))), kept


def _copied_to(decomposed: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The same operator, in place."""
    return lambda x, *arguments, **options: x.copy_(decomposed(x, *arguments, **options))


def _with_tensors(operator: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Makes a tensor of a number in front (`1.0 - mask` of integers), whose type the exporter does not promote."""

    def decomposed(x: torch.Tensor | float, y: torch.Tensor, **options: float) -> torch.Tensor:
        if isinstance(x, torch.Tensor):
            return NotImplemented
        dtype = torch.result_type(x, y)
        if dtype == y.dtype and operator is not aten.mul.Tensor:
            return NotImplemented
        return operator(torch.full((), x, dtype=dtype, device=y.device), y.to(dtype), **options)

    return decomposed


def _with_a_length(operator: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Makes a tensor of a number that an open length decides (2 / length, in the gradient of a variance along it)."""

    def decomposed(x: torch.Tensor, number: float, *alpha: float) -> torch.Tensor:
        if alpha or not isinstance(number, (torch.SymInt, torch.SymFloat)):
            return NotImplemented
        dtype = torch.result_type(x, number)
        # Of 16 bits, the number itself would be rounded: 257 is none of bfloat16.
        wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
        return operator(x.to(wide), torch.full((), number, dtype=wide, device=x.device)).to(dtype)

    return decomposed


def _squeeze(x: torch.Tensor, axes: list[int]) -> torch.Tensor:
    """Where no axis is of length 1, a view: what is then left of the operator, the exporter does not translate."""
    if any(x.shape[axis] == 1 for axis in axes):
        return NotImplemented
    return aten.view.default(x, x.shape)


def _of_one_shape(operator: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Copies a value in the shape and type of what it is written to (`x[:, 0] = 1`): the exporter broadcasts none."""

    def decomposed(x: torch.Tensor, value: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if value.shape == x.shape and value.dtype == x.dtype:
            return NotImplemented
        return operator(x, value.to(x.dtype).expand(x.shape))

    return decomposed


def _unsqueeze_complex(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Of complex numbers (a table of rotations): as a view, which the exporter translates."""
    if not x.is_complex():
        return NotImplemented
    shape = list(x.shape)
    shape.insert(axis % (x.dim() + 1), 1)
    return aten.view.default(x, shape)


def _solve_triangular(
    matrix: torch.Tensor, right: torch.Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> torch.Tensor:
    """By the inverse, which grows by blocks: D the diagonal, matrix = D (I + N), and of I + N,

        [[A, 0], [B, C]]^-1 = X - X [[0, 0], [B, 0]] X      with X = [[A^-1, 0], [0, C^-1]]

    for all blocks of 2, 4, 8, ... rows along the diagonal at once. As stable as substitution, where powers of N would
    be sums of large numbers that cancel. Chunks of delta rules (gated delta networks) are such systems, of 64 rows.
    """
    rows = matrix.shape[-1]
    places = torch.arange(rows, device=matrix.device)
    inverse = torch.eye(rows, dtype=matrix.dtype, device=matrix.device)
    strict = matrix.triu(1) if upper else matrix.tril(-1)
    diagonal = None if unitriangular else matrix.diagonal(dim1=-2, dim2=-1)
    if diagonal is not None:
        strict = strict / diagonal.unsqueeze(-1)
    size = 1  # of the blocks whose inverse is there
    while size < rows:
        block, pair = places // size, places // (2 * size)
        joins = (block.unsqueeze(-1) != block) & (pair.unsqueeze(-1) == pair)
        inverse = inverse - inverse @ torch.where(joins, strict, 0.0) @ inverse
        size *= 2
    if diagonal is not None:
        inverse = inverse / diagonal.unsqueeze(-2)
    return inverse @ right if left else right @ inverse


def _batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_variance: torch.Tensor | None,
    training: bool,
    momentum: float,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """By its formula: in training, the exporter's translation takes other statistics than PyTorch.

    Running statistics are buffers, so constants of the graph. Their update is no part of a loss and its gradients.
    """
    wide = x.float()
    if training:
        axes = _all_but_channels(x)
        mean = wide.mean(axes, keepdim=True)
        centered = wide - mean
        scale = torch.rsqrt((centered * centered).mean(axes, keepdim=True) + epsilon)
        saved = mean.reshape(-1), scale.reshape(-1)
    else:
        centered = wide - _along_channels(running_mean.float(), x)
        scale = _along_channels(torch.rsqrt(running_variance.float() + epsilon), x)
        saved = x.new_zeros([0]), x.new_zeros([0])
    output = centered * scale
    if weight is not None:
        output = output * _along_channels(weight.float(), x)
    if bias is not None:
        output = output + _along_channels(bias.float(), x)
    return output.to(x.dtype), *saved


def _batch_norm_by_buffers(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor,
    running_variance: torch.Tensor,
    momentum: float,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _batch_norm(x, weight, bias, running_mean, running_variance, False, momentum, epsilon)


def _batch_norm_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_variance: torch.Tensor | None,
    mean: torch.Tensor | None,
    scale: torch.Tensor | None,
    training: bool,
    epsilon: float,
    output_mask: list[bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The backward of `_batch_norm`; with running statistics, PyTorch's own."""
    if not training:
        return torch._decomp.decomposition_table[aten.native_batch_norm_backward.default](
            gradient, x, weight, running_mean, running_variance, mean, scale, training, epsilon, output_mask
        )
    axes = _all_but_channels(x)
    wide, scale = gradient.float(), _along_channels(scale, x)
    normal = (x.float() - _along_channels(mean, x)) * scale
    grad_input = None
    if output_mask[0]:
        if weight is not None:
            scale = scale * _along_channels(weight.float(), x)
        along = normal * (wide * normal).mean(axes, keepdim=True)
        grad_input = (scale * (wide - wide.mean(axes, keepdim=True) - along)).to(x.dtype)
    parameter_type = x.dtype if weight is None else weight.dtype
    grad_weight = (wide * normal).sum(axes).to(parameter_type) if output_mask[1] else None
    grad_bias = wide.sum(axes).to(parameter_type) if output_mask[2] else None
    return grad_input, grad_weight, grad_bias


def _all_but_channels(x: torch.Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _along_channels(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return values.reshape(1, -1, *[1] * (x.dim() - 2))


def _convolution_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias_sizes: list[int] | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    output_mask: list[bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The backward of a convolution in terms of operators that ONNX has.

        d input  = the transposed convolution of the gradient
        d weight = for each tap of the kernel, the gradient times the inputs that this tap saw
        d bias   = the gradient summed over all but its channels

    `x` is [batch, channels, *spatial]; one or two spatial axes are what transformers use (patches, causal
    convolutions). A transposed convolution is the gradient of one whose input has the place of its output, so that
    its own is that convolution, and each tap saw the gradient.
    """
    spatial = x.dim() - 2
    stride, padding, dilation = (
        list(sizes) * spatial if len(sizes) == 1 else list(sizes) for sizes in (stride, padding, dilation)
    )
    grad_input = grad_weight = grad_bias = None
    if output_mask[0] and transposed:
        grad_input = aten.convolution.default(gradient, weight, None, stride, padding, dilation, False, [0], groups)
        for i, more in enumerate(output_padding * spatial if len(output_padding) == 1 else output_padding):
            if more >= stride[i]:  # there is room for another window behind the output
                grad_input = aten.slice.Tensor(grad_input, 2 + i, 0, x.shape[2 + i])
    elif output_mask[0]:
        reached = [
            (gradient.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (weight.shape[2 + i] - 1) + 1
            for i in range(spatial)
        ]
        # With stride 1 nothing is left: a number, where the difference of open lengths would be an expression.
        unreached = [0 if stride[i] == 1 else x.shape[2 + i] - reached[i] for i in range(spatial)]
        grad_input = _transposed_convolution(gradient, weight, stride, padding, dilation, unreached, groups)
    if output_mask[1]:
        values, seen = (x, gradient) if transposed else (gradient, x)
        grad_weight = _convolution_weight_gradient(values, seen, weight, stride, padding, dilation, groups)
    if output_mask[2]:
        grad_bias = gradient.sum(_all_but_channels(x))
    return grad_input, grad_weight, grad_bias


def _transposed_convolution(
    gradient: torch.Tensor,
    weight: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    extra: list[int],
    groups: int,
) -> torch.Tensor:
    """With `extra` elements at each axis' end, which ONNX takes as numbers alone: where a length is open, so that the
    remainder of a stride is too, without padding, and then cut or filled up.
    """
    if all(isinstance(size, int) for size in extra):
        return aten.convolution.default(gradient, weight, None, stride, padding, dilation, True, extra, groups)
    none = [0] * len(stride)
    whole = aten.convolution.default(gradient, weight, None, stride, none, dilation, True, none, groups)
    ends = [size for i in reversed(range(len(stride))) for size in (-padding[i], extra[i] - padding[i])]
    return aten.constant_pad_nd.default(whole, ends, 0.0)


def _convolution_weight_gradient(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    """By taps; as many at once as a stride has where it has several, as a vision model's patches do."""
    batch, out_channels = gradient.shape[0], weight.shape[0]
    kernel, windows = list(weight.shape[2:]), list(gradient.shape[2:])
    by_group = gradient.reshape(batch, groups, out_channels // groups, -1)
    by_strides = all(size == 1 for size in dilation) and (kernel == stride or max(stride) > 1)
    behind = [-size % step if by_strides else 0 for size, step in zip(kernel, stride, strict=True)]
    ends = [(size, size + more) for size, more in zip(padding, behind, strict=True)]
    if any(any(pair) for pair in ends):
        x = aten.constant_pad_nd.default(x, [size for pair in reversed(ends) for size in pair], 0.0)
    if by_strides:
        return _weight_gradient_by_strides(by_group, x, kernel, windows, stride).reshape(weight.shape)
    taps = []
    for tap in itertools.product(*(range(size) for size in kernel)):
        seen = x
        for i, offset in enumerate(tap):
            start = offset * dilation[i]
            seen = aten.slice.Tensor(seen, 2 + i, start, start + (windows[i] - 1) * stride[i] + 1, stride[i])
        seen = seen.reshape(batch, groups, weight.shape[1], -1)
        taps.append((by_group @ seen.transpose(-1, -2)).sum(0))
    return torch.stack(taps, dim=-1).reshape(weight.shape)


def _weight_gradient_by_strides(
    by_group: torch.Tensor, x: torch.Tensor, kernel: list[int], windows: list[int], stride: list[int]
) -> torch.Tensor:
    """A window is some whole strides long, for which `x` is padded; of their n-th stride, all windows are one slice."""
    batch, groups, channels, axes = x.shape[0], by_group.shape[1], x.shape[1] // by_group.shape[1], len(kernel)
    strides = [-(-size // step) for size, step in zip(kernel, stride, strict=True)]
    x = _patches(x, stride, [count + more - 1 for count, more in zip(windows, strides, strict=True)])
    parts = []
    for nth in itertools.product(*(range(count) for count in strides)):
        seen = x
        for i, start in enumerate(nth):
            seen = aten.slice.Tensor(seen, 2 + axes + i, start, start + windows[i])
        seen = seen.reshape(batch, groups, channels * math.prod(stride), -1)
        parts.append((by_group @ seen.transpose(-1, -2)).sum(0).reshape(-1, channels, *stride))
    whole = torch.stack(parts, dim=-1).reshape(-1, channels, *stride, *strides)
    whole = whole.permute(0, 1, *(axis for i in range(axes) for axis in (2 + axes + i, 2 + i)))
    whole = whole.reshape(-1, channels, *(count * step for count, step in zip(strides, stride, strict=True)))
    for i, size in enumerate(kernel):
        whole = aten.slice.Tensor(whole, 2 + i, 0, size)
    return whole


def _patches(x: torch.Tensor, kernel: list[int], windows: list[int]) -> torch.Tensor:
    """[batch, channels, *(windows * kernel)] -> [batch, channels, *kernel, *windows]."""
    spatial = len(kernel)
    for i in range(spatial):
        x = aten.slice.Tensor(x, 2 + i, 0, windows[i] * kernel[i])
    split = [size for pair in zip(windows, kernel, strict=True) for size in pair]
    x = x.reshape(*x.shape[:2], *split)
    return x.permute(0, 1, *range(3, 3 + 2 * spatial, 2), *range(2, 2 + 2 * spatial, 2))
