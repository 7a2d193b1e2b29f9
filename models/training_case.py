"""What the exporter exports: a module that returns a loss, and a recipe for its inputs.

Everything the exporter can convert (a row of `families.py`, a user's own module, one of the adversarial
graphs) is first turned into a `TrainingCase`, so tracing, checking and writing know nothing about Hugging Face.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import torch

Sizes = Mapping[str, int]
"""Axis name -> length, e.g. {"batch": 3, "seq": 40}. Encoder-decoder cases also have "target"."""

MakeInputs = Callable[[Sizes, torch.Generator], dict[str, torch.Tensor]]


FAILURES = (RuntimeError, ValueError, TypeError, LookupError)
"""What a user's module or inputs raise at sizes that they do not take."""


def is_pytorchs(filename: str) -> bool:
    return pathlib.Path(filename).is_relative_to(pathlib.Path(torch.__file__).parent)


class CannotConvert(Exception):
    """A model or an operator that this exporter does not convert; the message says which, and why."""


class FailsAtOtherLengths(CannotConvert):
    """A graph that runs at the lengths of its trace and not at others: the module branches on a length."""


@dataclasses.dataclass(frozen=True)
class TrainingCase:
    """A module `forward(*inputs) -> scalar loss` with its inputs.

    `make_inputs(sizes, generator)` returns the named inputs in the order of `forward`.
    `sizes` are the default lengths of the axes that may be symbolic.
    `largest` bounds an axis (a learned position table ends somewhere); absent means unbounded.
    `parameter_prefix` is what a loss wrapper put before its model's own parameter names; graphs go without it.
    """

    name: str
    module: torch.nn.Module
    make_inputs: MakeInputs
    sizes: Sizes
    largest: Sizes = dataclasses.field(default_factory=dict)
    parameter_prefix: str = ""

    def parameters(self) -> dict[str, torch.Tensor]:
        """Name in the graph -> value; a tied weight appears once."""
        return {
            name.removeprefix(self.parameter_prefix): value.detach() for name, value in self.module.named_parameters()
        }

    def loss(self, parameters: Mapping[str, torch.Tensor], inputs: list[torch.Tensor]) -> torch.Tensor:
        """The loss with `parameters` (by their names in the graph) in place of the module's own."""
        by_module_name = {self.parameter_prefix + name: value for name, value in parameters.items()}
        return torch.func.functional_call(self.module, by_module_name, tuple(inputs), tie_weights=True)

    def inputs(self, seed: int, **changed_sizes: int) -> dict[str, torch.Tensor]:
        """The inputs at the default sizes, or at `changed_sizes`, which an error names where none can be made there."""
        generator = torch.Generator().manual_seed(seed)
        sizes = {**self.sizes, **changed_sizes}
        try:
            return self.make_inputs(sizes, generator)
        except FAILURES as error:
            if sizes == self.sizes:
                raise
            raise self.fails_at(changed_sizes, "make_inputs", error) from error

    def fails_at(self, sizes: Sizes, what: str, error: Exception) -> CannotConvert:
        """That `what` of the user's raises `error` at lengths which the exporter chose."""
        at = ", ".join(f"{name}={size}" for name, size in sizes.items())
        return CannotConvert(
            f"{self.name}: {what} fails at {at}: {type(error).__name__}: {error}; export with --static"
        )

    def symbolic_axes(self, names: list[str]) -> dict[str, dict[int, str]]:
        """Input name -> {axis: axis name}, found by growing one named axis at a time.

        An axis that grows by another amount than the named size (seq + 1, 2 * seq, ...) cannot be a plain
        symbolic dimension of the graph, so it is refused rather than silently made static.
        """
        found: dict[str, dict[int, str]] = {}
        before = self.inputs(seed=0)
        for name in names:
            after = self.inputs(seed=0, **{name: self.sizes[name] + 4})
            for key, tensor in before.items():
                for axis, (old, new) in enumerate(zip(tensor.shape, after[key].shape, strict=True)):
                    if old == new:
                        continue
                    if old != self.sizes[name] or new != old + 4:
                        raise CannotConvert(
                            f"input '{key}' axis {axis} has length {old} where '{name}' is {self.sizes[name]}: "
                            "only an axis of exactly that length can be symbolic; export with --static"
                        )
                    found.setdefault(key, {})[axis] = name
        return found


def jitter_parameters(module: torch.nn.Module, scale: float = 0.08, seed: int = 3) -> None:
    """Moves every parameter away from its initial value.

    Fresh models hold many equal tensors (norm weights of one, biases of zero). Exporters merge equal constants,
    and a gradient that is wrong only where a bias is non-zero would pass the check.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.add_(scale * noise.to(parameter.dtype))
