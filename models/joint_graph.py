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

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Sequence

import onnx
import sympy
import torch
from onnxscript.rewriter.pattern import MatchResult, SimplePatternMatcher
from torch import fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from before_autograd import BeforeAutograd, MaskedRead, MaskedReads
from decompositions import decomposition_table
from length_guards import LONGEST, require_true_at_other_lengths
from training_case import FAILURES, CannotConvert, Sizes, TrainingCase


@dataclasses.dataclass(frozen=True)
class Signature:
    """What goes into the graph. Its inputs are `parameters`, then `inputs`; `constants` are baked into it.

    `left_out` is filled by a trace: the branches on data that the module leaves out for compilers.
    """

    parameters: dict[str, torch.Tensor]
    constants: dict[str, torch.Tensor]
    inputs: dict[str, torch.Tensor]
    symbolic_axes: dict[str, dict[int, str]]
    unused_parameters: list[str]
    masked_reads: list[MaskedRead]
    left_out: list[GuardOnDataDependentSymNode] = dataclasses.field(default_factory=list)

    def input_names(self) -> list[str]:
        return [*self.parameters, *self.inputs]

    def output_names(self) -> list[str]:
        return ["loss", *(f"{name}.grad" for name in self.parameters)]


def signature_of(case: TrainingCase, symbolic: list[str], *, prime: bool = False) -> Signature:
    """The graph signature of `case` with the axes named in `symbolic` left open; `prime`: traced at prime lengths."""
    parameters = case.parameters()
    constants = {
        name.removeprefix(case.parameter_prefix): value.detach() for name, value in case.module.named_buffers()
    }
    unused = _parameters_without_gradient(case)
    for name in unused:
        constants[name] = parameters.pop(name)
    sizes = _tracing_sizes(case, symbolic, prime)
    inputs = case.inputs(seed=1, **sizes)
    reads = _masked_reads(case, inputs, {name: _another_size(case, name, size) for name, size in sizes.items()})
    return Signature(parameters, constants, inputs, case.symbolic_axes(symbolic), unused, reads)


def loss_and_gradients(
    case: TrainingCase,
    parameters: dict[str, torch.Tensor],
    constants: dict[str, torch.Tensor],
    inputs: list[torch.Tensor],
    before: BeforeAutograd | None = None,
) -> tuple[torch.Tensor, ...]:
    """The loss and its gradient for each parameter: what is traced, `before` autograd too, and what the result is
    checked against.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels' backward has no ONNX translation
        loss = case.loss({**constants, **leaves}, inputs)
        loss = loss if before is None else before.checked(loss)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
    return (loss.detach(), *gradients)


def export_training_step(
    case: TrainingCase, signature: Signature, opset: int | None, compared: Sequence[Sizes] = ()
) -> onnx.ModelProto:
    """The whole training step as ONNX: outputs `loss` and `<parameter>.grad`; see `trace_training_step`."""
    step = _FlatArguments(trace_training_step(case, signature, compared), signature)
    return _to_onnx(case, step.eval(), signature, signature.output_names(), opset)


def export_forward(
    case: TrainingCase, signature: Signature, opset: int | None, compared: Sequence[Sizes] = ()
) -> onnx.ModelProto:
    """Only the forward pass and the loss, with the same inputs: what the onnx-ad route differentiates."""
    if signature.symbolic_axes:  # `torch.onnx.export` forgets the branches that it takes
        trace_training_step(case, signature, compared)
    return _to_onnx(case, _ForwardOnly(case, signature), signature, ["loss"], opset)


def trace_training_step(case: TrainingCase, signature: Signature, compared: Sequence[Sizes] = ()) -> fx.GraphModule:
    """A function (parameters, constants, inputs), each a list, to [loss, *gradients].

    Lengths at which the module takes another branch are refused, but for those at which it is `compared` with PyTorch.
    """
    parameters, constants, inputs = signature.parameters, signature.constants, signature.inputs

    def step(
        parameter_values: list[torch.Tensor], constant_values: list[torch.Tensor], input_values: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        with BeforeAutograd(signature.masked_reads) as before:
            return loss_and_gradients(
                case,
                dict(zip(parameters, parameter_values, strict=True)),
                dict(zip(constants, constant_values, strict=True)),
                input_values,
                before,
            )

    def traced() -> tuple[fx.GraphModule, ShapeEnv, dict[sympy.Symbol, str]]:
        fake_mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        arguments = (
            [_fake(fake_mode, name, value, {}) for name, value in parameters.items()],
            [_fake(fake_mode, name, value, {}) for name, value in constants.items()],
            [_fake(fake_mode, name, value, signature.symbolic_axes.get(name, {})) for name, value in inputs.items()],
        )
        axes = _symbols(dict(zip(inputs, arguments[2], strict=True)), signature)
        # Without the dispatcher, PyTorch's kernels in C++ ask for lengths as numbers: a pad would fix the sequence.
        with fake_mode, enable_python_dispatcher(), _distributions_unchecked(), _scripts_as_python():
            graph = make_fx(step, decomposition_table=decomposition_table(), tracing_mode="real")(*arguments)
        return graph, fake_mode.shape_env, axes

    try:
        graph, environment, axes = traced()
    except GuardOnDataDependentSymNode as error:
        try:
            with _as_for_compilers():
                graph, environment, axes = traced()
        except Exception:
            raise error from None
        signature.left_out.append(error)
    require_true_at_other_lengths(case, environment, axes, [{}, *compared])
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


@contextlib.contextmanager
def _as_for_compilers() -> Iterator[None]:
    """Within, modules that leave their branches on data out for compilers do so (checks of inputs; Qwen2-Audio)."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


@contextlib.contextmanager
def _distributions_unchecked() -> Iterator[None]:
    """Within, distributions do not look whether their parameters are valid: a trace has no values."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


@contextlib.contextmanager
def _pairs_looked_up_by_operator() -> Iterator[None]:
    """Within, rules of ONNX's optimizer for several results are tried only at nodes of their first operator.

    Each try of such a rule lists all nodes of the graph. At every node, that is three quarters of the time in which
    eight layers are exported, and a larger share of more layers.
    """
    match = SimplePatternMatcher.match

    def match_at(self: SimplePatternMatcher, model: object, graph: object, node: object, **options: object) -> object:
        operator = self.pattern.output_nodes[0].op_identifier()
        if not self.pattern.has_single_output_node and operator not in (None, node.op_identifier()):
            return MatchResult().fail(f"{node.op_type} is no {operator}")
        return match(self, model, graph, node, **options)

    SimplePatternMatcher.match = match_at
    try:
        yield
    finally:
        SimplePatternMatcher.match = match


@contextlib.contextmanager
def _scripts_as_python() -> Iterator[None]:
    """Within, functions of TorchScript (DeBERTa's positions) are Python again: its interpreter fixes lengths."""
    scripted = torch.jit.ScriptFunction.__call__

    def call(function: torch.jit.ScriptFunction, *arguments: object, **options: object) -> object:
        python = getattr(function, "_torchdynamo_inline", None)
        return scripted(function, *arguments, **options) if python is None else python(*arguments, **options)

    torch.jit.ScriptFunction.__call__ = call
    try:
        yield
    finally:
        torch.jit.ScriptFunction.__call__ = scripted


def _to_onnx(
    case: TrainingCase, module: nn.Module, signature: Signature, outputs: list[str], opset: int | None
) -> onnx.ModelProto:
    dimensions = {
        axis_name: torch.export.Dim(axis_name, min=2, max=case.largest.get(axis_name, LONGEST))
        for axes in signature.symbolic_axes.values()
        for axis_name in axes.values()
    }
    shapes = [
        {axis: dimensions[axis_name] for axis, axis_name in signature.symbolic_axes.get(name, {}).items()} or None
        for name in signature.input_names()
    ]
    with warnings.catch_warnings(), _pairs_looked_up_by_operator():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (*signature.parameters.values(), *signature.inputs.values()),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=signature.input_names(),
            output_names=outputs,
            dynamic_shapes=(tuple(shapes),) if dimensions else None,
        )
    assert program is not None
    return program.model_proto


class _FlatArguments(nn.Module):
    """A traced step behind a flat argument list, its constants held as buffers."""

    def __init__(self, step: fx.GraphModule, signature: Signature) -> None:
        super().__init__()
        self.step = step
        self.parameter_count = len(signature.parameters)
        self.constant_names = [f"constant_{name.replace('.', '_')}" for name in signature.constants]
        for name, value in zip(self.constant_names, signature.constants.values(), strict=True):
            self.register_buffer(name, value)

    def forward(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parameters = list(arguments[: self.parameter_count])
        constants = [getattr(self, name) for name in self.constant_names]
        return tuple(self.step(parameters, constants, list(arguments[self.parameter_count :])))


class _ForwardOnly(nn.Module):
    """The loss as a function of parameters and data."""

    def __init__(self, case: TrainingCase, signature: Signature) -> None:
        super().__init__()
        self.module = case.module
        self.names = [case.parameter_prefix + name for name in signature.parameters]
        self.masked_reads = signature.masked_reads

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        parameters = dict(zip(self.names, arguments, strict=False))
        inputs = arguments[len(self.names) :]
        with BeforeAutograd(self.masked_reads) as before:
            return before.checked(torch.func.functional_call(self.module, parameters, inputs, tie_weights=True))


def _parameters_without_gradient(case: TrainingCase) -> list[str]:
    """Parameters that the loss does not reach (a pooler nobody reads): constants of the graph, without a gradient."""
    parameters = {name: value.requires_grad_() for name, value in case.parameters().items()}
    with torch.enable_grad(), _no_gradient_past_autograd(case, parameters):
        loss = case.loss(parameters, list(case.inputs(seed=1).values()))
        if loss.dim() != 0:
            raise CannotConvert(f"{case.name}: forward must return a scalar loss, it returned shape {list(loss.shape)}")
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]


@contextlib.contextmanager
def _no_gradient_past_autograd(case: TrainingCase, leaves: dict[str, torch.Tensor]) -> Iterator[None]:
    """Refuses functions whose backward calls autograd itself (Reformer's reversible layers): no trace sees that.

    They add to what they find, which is the module's parameter or the leaf that stands for it.
    """
    before = [(value, value.grad) for value in case.module.parameters()]
    for value, _ in before:
        value.grad = None
    try:
        yield
        own = case.module.named_parameters()
        for name, value in (
            *leaves.items(),
            *((name.removeprefix(case.parameter_prefix), value) for name, value in own),
        ):
            if value.grad is not None:
                raise CannotConvert(
                    f"{case.name}: the gradient of '{name}' comes past autograd: a function with a backward of its own "
                    "adds to it (reversible layers)"
                )
    finally:
        for value, gradient in before:
            value.grad = gradient


def _masked_reads(case: TrainingCase, inputs: dict[str, torch.Tensor], other_sizes: dict[str, int]) -> list[MaskedRead]:
    """What is read by masks (`x[mask]`): of rows whose number is the same for other inputs and lengths.

    So are the images of a batch and the ends of its sentences; the positions that count in a loss are not.
    """
    with torch.no_grad(), MaskedReads() as noted:
        case.loss(case.parameters(), list(inputs.values()))
    if not noted.reads:
        return []
    other_inputs = list(case.inputs(seed=5, **other_sizes).values())
    try:
        with torch.no_grad(), MaskedReads() as others:
            case.loss(case.parameters(), other_inputs)
    except FAILURES as error:
        raise case.fails_at(other_sizes, "the module", error) from error
    if len(others.reads) != len(noted.reads):
        times, other_times = _times(noted.reads), _times(others.reads)
        raise CannotConvert(f"{case.name}: the module reads by masks {times}, and {other_times} with other inputs")
    for read, other in zip(noted.reads, others.reads, strict=True):
        if read != other:
            raise CannotConvert(
                f"{case.name}: {read.where} reads by a mask, which chooses {read} for some inputs and {other} for "
                "others: a graph needs lists of one length (multiply by the mask instead)"
            )
    return noted.reads


def _times(reads: list[MaskedRead]) -> str:
    return f"{len(reads)} time{'' if len(reads) == 1 else 's'}"


def _another_size(case: TrainingCase, name: str, size: int) -> int:
    """Longer, or shorter where the axis ends before."""
    return size + 4 if size + 4 <= case.largest.get(name, LONGEST) else max(size - 4, 1)


def _tracing_sizes(case: TrainingCase, symbolic: list[str], prime: bool) -> dict[str, int]:
    """Sizes to trace at: symbolic axes of equal length would be taken for one axis, and length 1 for a constant.

    `prime`: the next primes. A module that pads its chunks does so then, by an amount that may be 0 elsewhere.
    """
    taken: set[int] = set()
    sizes = {}
    for name in symbolic:
        size = max(case.sizes[name], 3)
        while size in taken or (prime and any(size % divisor == 0 for divisor in range(2, size))):
            size += 1
        taken.add(size)
        sizes[name] = size
    return sizes


def _symbols(fakes: dict[str, torch.Tensor], signature: Signature) -> dict[sympy.Symbol, str]:
    """What the trace calls the open lengths -> their names."""
    return {
        fakes[name].shape[axis].node.expr: axis_name
        for name, axes in signature.symbolic_axes.items()
        for axis, axis_name in axes.items()
    }


def _fake(mode: FakeTensorMode, name: str, value: torch.Tensor, axes: dict[int, str]) -> torch.Tensor:
    dynamic = [DimDynamic.DUCK if axis in axes else DimDynamic.STATIC for axis in range(value.dim())]
    context = StatelessSymbolicContext(dynamic_sizes=dynamic)
    return mode.from_tensor(value, symbolic_context=context, source=ConstantSource(name))
