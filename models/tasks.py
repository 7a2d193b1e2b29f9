"""Losses and inputs for the four kinds of training that the families need.

The loss is written here rather than taken from Hugging Face (`labels=`): theirs turns the sequence length into a
Python number while it is being traced, which pins a symbolic sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from training_case import MakeInputs, Sizes

IGNORED_LABEL = -100
MODEL_PREFIX = "model."
"""What the loss wrappers below put before the parameter names of the model they hold."""

FIRST_ORDINARY_TOKEN = 3
"""Ids below this are padding and friends in every family used here; inputs draw from above it."""

Logits = Callable[..., torch.Tensor]


def token_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over the labels that are not ignored; logits [..., vocab], labels [...]."""
    flat_logits = logits.reshape(-1, logits.shape[-1]).float()
    return functional.cross_entropy(flat_logits, labels.reshape(-1), ignore_index=IGNORED_LABEL)


class CausalLanguageModelLoss(nn.Module):
    """Position t predicts the label at t + 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = _logits(self.model(input_ids))
        return token_cross_entropy(logits[:, :-1, :], labels[:, 1:])


class MaskedLanguageModelLoss(nn.Module):
    """Position t predicts its own label; `attention_mask` is 0 on padding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return token_cross_entropy(_logits(self.model(input_ids, attention_mask=attention_mask)), labels)


class SequenceToSequenceLoss(nn.Module):
    """Encoder over `input_ids`, decoder over `decoder_input_ids`, one label for each decoder position."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            use_cache=False,
        )
        return token_cross_entropy(_logits(output), labels)


class ImageClassificationLoss(nn.Module):
    """One class for each image [batch, channels, height, width]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return token_cross_entropy(_logits(self.model(pixel_values)), labels)


def causal_language_model_inputs(vocab: int) -> MakeInputs:
    """Random tokens; the first row's first eighth has no label, as a prompt would."""

    def make(sizes: Sizes, generator: torch.Generator) -> dict[str, torch.Tensor]:
        input_ids = _tokens(vocab, sizes["batch"], sizes["seq"], generator)
        labels = input_ids.clone()
        labels[0, : sizes["seq"] // 8] = IGNORED_LABEL
        return {"input_ids": input_ids, "labels": labels}

    return make


def masked_language_model_inputs(vocab: int, padding_token: int) -> MakeInputs:
    """Random tokens, about a quarter of them labelled; the last row is padded at its end, the first at its start."""

    def make(sizes: Sizes, generator: torch.Generator) -> dict[str, torch.Tensor]:
        batch, seq = sizes["batch"], sizes["seq"]
        input_ids = _tokens(vocab, batch, seq, generator)
        attention_mask = _padding_mask(batch, seq)
        input_ids[attention_mask == 0] = padding_token
        labels = input_ids.clone()
        labels[torch.rand(batch, seq, generator=generator) > 0.25] = IGNORED_LABEL
        labels[attention_mask == 0] = IGNORED_LABEL
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    return make


def sequence_to_sequence_inputs(vocab: int, padding_token: int, start_token: int) -> MakeInputs:
    """Padded source tokens; target tokens shifted right behind a start token."""

    def make(sizes: Sizes, generator: torch.Generator) -> dict[str, torch.Tensor]:
        input_ids = _tokens(vocab, sizes["batch"], sizes["seq"], generator)
        attention_mask = _padding_mask(sizes["batch"], sizes["seq"])
        input_ids[attention_mask == 0] = padding_token
        labels = _tokens(vocab, sizes["batch"], sizes["target"], generator)
        decoder_input_ids = torch.cat([torch.full_like(labels[:, :1], start_token), labels[:, :-1]], dim=1)
        labels[-1, -(sizes["target"] // 5) :] = IGNORED_LABEL
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "decoder_input_ids": decoder_input_ids,
            "labels": labels,
        }

    return make


def image_classification_inputs(channels: int, image: int | Sequence[int], classes: int) -> MakeInputs:
    """Gaussian images, square or [height, width]; the sequence follows from the image, so it is not among the sizes."""
    height, width = (image, image) if isinstance(image, int) else image

    def make(sizes: Sizes, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pixel_values = torch.randn(sizes["batch"], channels, height, width, generator=generator)
        labels = torch.randint(0, classes, (sizes["batch"],), generator=generator)
        return {"pixel_values": pixel_values, "labels": labels}

    return make


def _logits(output: object) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.logits


def _tokens(vocab: int, batch: int, length: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(FIRST_ORDINARY_TOKEN, vocab, (batch, length), generator=generator)


def _padding_mask(batch: int, seq: int) -> torch.Tensor:
    mask = torch.ones(batch, seq, dtype=torch.int64)
    mask[-1, seq - seq // 4 :] = 0
    if batch > 1:
        mask[0, : seq // 8] = 0
    return mask
