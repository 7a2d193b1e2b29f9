"""The benchmark's model as the exporter takes it: `export_training_graph.py --module llama_case:llama`."""

from __future__ import annotations

import llama as model
import torch
from training_case import TrainingCase


def llama() -> TrainingCase:
    """`ids` and shifted `labels`, [1, seq] each, with the sequence open."""
    config = model.Config()
    module = model.Llama(config)
    module.initialize(seed=0)

    def inputs(sizes: dict[str, int], _: torch.Generator) -> dict[str, torch.Tensor]:
        ids, labels = model.make_batch(config, sizes["seq"])
        return {"ids": ids, "labels": labels}

    return TrainingCase("llama", module, inputs, {"seq": 40})
