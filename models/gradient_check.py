"""Compares loss and gradients of an exported graph with PyTorch's, output by output."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime

RELATIVE_TOLERANCE = {"float32": 2e-5, "rounded constants": 2e-2, "bfloat16": 3e-2}
"""Largest difference allowed, relative to the largest entry of the same tensor.

A bfloat16 graph is run twice: in float32, where only its constants were rounded, and in bfloat16 (unit roundoff 1/256),
where PyTorch's own rounding is allowed for on top."""

NOISE = {"float32": 2e-7, "rounded constants": 1e-5, "bfloat16": 1e-2}
"""Differences below this fraction of the largest gradient anywhere are measured against that one: some gradients are
truly zero (an attention key's bias shifts all scores of a row alike), and an error relative to zero means nothing."""

ROUNDING = {"float32": 1e-3, "rounded constants": 1e-3, "bfloat16": np.inf}
"""How far PyTorch may be from the values of a wider type, relatively, for that to be taken for rounding."""


@dataclasses.dataclass(frozen=True)
class OutputError:
    """How far one output is from its reference."""

    name: str
    absolute: float
    relative: float
    within: bool


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All outputs of one run."""

    setting: str
    errors: list[OutputError]

    @property
    def failures(self) -> list[OutputError]:
        return [error for error in self.errors if not error.within]

    def worst(self) -> OutputError:
        """The largest relative error among the outputs that are not rounding noise around zero."""
        return max(self.errors, key=lambda error: error.relative)

    def __str__(self) -> str:
        worst = self.worst()
        return (
            f"{self.setting}: {len(self.errors)} outputs, largest relative error {worst.relative:.1e} "
            f"({worst.name}, absolute {worst.absolute:.1e})"
        )


class GradientMismatch(Exception):
    """An exported graph that does not compute what PyTorch computes."""

    def __init__(self, comparison: Comparison, note: str = "") -> None:
        lines = [f"{comparison.setting}: {len(comparison.failures)} of {len(comparison.errors)} outputs differ"]
        lines += [f"  {e.name}: absolute {e.absolute:.2e}, relative {e.relative:.2e}" for e in comparison.failures[:12]]
        super().__init__("\n".join([*lines, f"note: {note}"] if note else lines))


def compare_outputs(
    setting: str,
    got: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    precision: str = "float32",
    exact: Mapping[str, np.ndarray] | None = None,
    zeros: frozenset[str] = frozenset(),
) -> Comparison:
    """Every output of `expected` against the one of that name in `got`; shapes must agree exactly.

    `exact`, where given, holds the same values from a wider type. How far `expected` itself is from them is rounding,
    and the graph, which rounds elsewhere, may be two and a half times as far from `expected`.
    `zeros` are outputs known to be zero but for rounding, which is measured against the largest gradient.
    """
    gradients = [value for name, value in expected.items() if name != "loss"] or list(expected.values())
    largest = max(float(np.abs(value).max(initial=0.0)) for value in gradients)
    noise = NOISE[precision] * largest
    errors = []
    for name, reference in expected.items():
        value = np.asarray(got[name])
        if value.shape != reference.shape or not np.isfinite(value).all():
            label = f"{name} {list(value.shape)}, finite and {list(reference.shape)} expected"
            errors.append(OutputError(label, np.inf, np.inf, within=False))
            continue
        absolute = float(np.abs(value.astype(np.float64) - reference.astype(np.float64)).max(initial=0.0))
        own_scale = float(np.abs(reference).max(initial=0.0))
        is_noise = absolute <= noise or (name in zeros and absolute <= 10 * noise)
        relative = absolute / max(own_scale, largest if is_noise else 1e-30)
        tolerance = RELATIVE_TOLERANCE[precision]
        if exact is not None:
            rounding = float(np.abs(exact[name] - reference).max(initial=0.0)) / max(own_scale, 1e-30)
            tolerance += 2.5 * rounding if rounding <= ROUNDING[precision] else 0.0
        errors.append(OutputError(name, absolute, relative, relative <= tolerance))
    return Comparison(setting, errors)


def require_match(comparison: Comparison, note: str = "") -> Comparison:
    """The comparison itself, or an error that lists what differs, with a note on what else may be the cause."""
    if comparison.failures:
        raise GradientMismatch(comparison, note)
    return comparison


class OnnxRuntimeGraph:
    """A graph loaded into onnxruntime, single-threaded on the CPU; call it with feeds to get its outputs by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
        self.input_names = {value.name for value in self.session.get_inputs()}
        self.output_names = [value.name for value in self.session.get_outputs()]

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Feeds that are no inputs are ignored."""
        values = self.session.run(None, {name: value for name, value in feeds.items() if name in self.input_names})
        return dict(zip(self.output_names, values, strict=True))
