"""The benchmark's model as the exporter takes it: `export_training_graph.py --module llama_case:llama`."""

from __future__ import annotations

import llama as model
import torch
from training_case import TrainingCase


def case(name: str, config: model.Config, dtype: torch.dtype) -> TrainingCase:
    """`ids` and shifted `labels`, [1, seq] each, with the sequence open."""
    module = model.Llama(config)
    module.initialize(seed=0)

    def inputs(sizes: dict[str, int], _: torch.Generator) -> dict[str, torch.Tensor]:
        ids, labels = model.make_batch(config, sizes["seq"])
        return {"ids": ids, "labels": labels}

    return TrainingCase(name, module.to(dtype), inputs, {"seq": 40})


def llama() -> TrainingCase:
    """The benchmark's."""
    return case("llama", model.Config(), torch.float32)


def llama_bfloat16() -> TrainingCase:
    """The benchmark's, as a GPU would train it."""
    return case("llama_bfloat16", model.Config(), torch.bfloat16)


def llama_8b_layers() -> TrainingCase:
    """What scripts/gpu-check runs at 128k tokens."""
    return case("llama_8b_layers", model.EIGHT_BILLION, torch.bfloat16)
