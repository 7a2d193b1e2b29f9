"""The model families that the exporter knows by name: one row each.

A row gives the family's task and how its configuration is built from `Dimensions`; `--hf NAME` and
`--check-families` read this table. Any other Hugging Face configuration goes through `case_from_config`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig

import tasks
from nano_gpt import NanoGpt
from training_case import CannotConvert, TrainingCase, jitter_parameters


@dataclasses.dataclass(frozen=True)
class Dimensions:
    """Sizes of a small model; every one differs from the others, so that none can be mistaken for another."""

    batch: int = 3
    seq: int = 40
    target: int = 28
    hidden: int = 96
    heads: int = 8
    kv_heads: int = 4
    inner: int = 176
    layers: int = 2
    vocab: int = 112
    positions: int = 128
    window: int = 16
    image: int = 24
    patch: int = 4
    dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class Family:
    """A row: the task decides loss and inputs, `config` builds the Hugging Face configuration."""

    name: str
    task: str
    config: Callable[[Dimensions], PretrainedConfig]
    note: str = ""
    static_only: str = ""
    """Why the sequence cannot be symbolic; empty when it can."""


CAUSAL, MASKED, SEQ2SEQ, IMAGE = "causal-lm", "masked-lm", "seq2seq", "image-classification"


def _llama_like(config_class: str, **extra: object) -> Callable[[Dimensions], PretrainedConfig]:
    """Decoders whose configuration spells its sizes as Llama's does."""

    def build(d: Dimensions) -> PretrainedConfig:
        evaluated = {key: value(d) if callable(value) else value for key, value in extra.items()}
        return getattr(transformers, config_class)(
            vocab_size=d.vocab,
            hidden_size=d.hidden,
            intermediate_size=d.inner,
            num_hidden_layers=d.layers,
            num_attention_heads=d.heads,
            num_key_value_heads=d.kv_heads,
            max_position_embeddings=d.positions,
            attention_dropout=d.dropout,
            **{"tie_word_embeddings": False, "pad_token_id": 0, **evaluated},
        )

    return build


def _bert_like(config_class: str, **extra: object) -> Callable[[Dimensions], PretrainedConfig]:
    """Encoders whose configuration spells its sizes as BERT's does."""

    def build(d: Dimensions) -> PretrainedConfig:
        evaluated = {key: value(d) if callable(value) else value for key, value in extra.items()}
        return getattr(transformers, config_class)(
            vocab_size=d.vocab,
            hidden_size=d.hidden,
            num_hidden_layers=d.layers,
            num_attention_heads=d.heads,
            intermediate_size=d.inner,
            hidden_dropout_prob=d.dropout,
            attention_probs_dropout_prob=d.dropout,
            **{"max_position_embeddings": d.positions, **evaluated},
        )

    return build


def _gpt2(d: Dimensions) -> PretrainedConfig:
    return transformers.GPT2Config(
        vocab_size=d.vocab,
        n_positions=d.positions,
        n_embd=d.hidden,
        n_layer=d.layers,
        n_head=d.heads,
        n_inner=d.inner,
        resid_pdrop=d.dropout,
        embd_pdrop=d.dropout,
        attn_pdrop=d.dropout,
        bos_token_id=1,
        eos_token_id=2,
    )


FAMILIES: tuple[Family, ...] = (
    Family("gpt2", CAUSAL, _gpt2, "learned positions, fused QKV, tied head"),
    Family("llama", CAUSAL, _llama_like("LlamaConfig"), "RoPE, RMSNorm, SwiGLU, grouped-query attention"),
    Family("bert", MASKED, _bert_like("BertConfig"), "padding mask, token types, GELU"),
)

NANO = "nano"
MODEL_CLASSES = {
    CAUSAL: transformers.AutoModelForCausalLM,
    MASKED: transformers.AutoModelForMaskedLM,
    SEQ2SEQ: transformers.AutoModelForSeq2SeqLM,
    IMAGE: transformers.AutoModelForImageClassification,
}


def family(name: str) -> Family:
    """The row of that name."""
    for row in FAMILIES:
        if row.name == name:
            return row
    known = ", ".join([NANO, *(row.name for row in FAMILIES)])
    raise CannotConvert(f"unknown family '{name}'; known: {known}; for any other use --hf-config")


def case_from_family(name: str, dimensions: Dimensions, dtype: torch.dtype) -> TrainingCase:
    """A small model of a known family with jittered random weights."""
    if name == NANO:
        return _nano_case(dimensions, dtype)
    row = family(name)
    return case_from_config(row.config(dimensions), row.task, dimensions, dtype)


def case_from_config(
    config: PretrainedConfig, task: str | None, dimensions: Dimensions, dtype: torch.dtype
) -> TrainingCase:
    """A model of any Hugging Face configuration, its batch and lengths from `dimensions`."""
    task = task or _task_of(config)
    config.use_cache = False
    torch.manual_seed(0)
    try:
        model = MODEL_CLASSES[task].from_config(config, attn_implementation="eager")
    except ValueError as error:
        raise CannotConvert(f"{config.model_type}: no {task} model: {error}") from error
    return _case(config.model_type, model, task, config, dimensions, dtype)


def _task_of(config: PretrainedConfig) -> str:
    """The task that the configuration's `architectures` names, else the first that Hugging Face has a class for."""
    named = " ".join(getattr(config, "architectures", None) or [])
    for task, suffix in (
        (CAUSAL, "ForCausalLM"),
        (CAUSAL, "LMHeadModel"),
        (MASKED, "ForMaskedLM"),
        (SEQ2SEQ, "ForConditionalGeneration"),
        (IMAGE, "ForImageClassification"),
    ):
        if suffix in named:
            return task
    if getattr(config, "is_encoder_decoder", False):
        return SEQ2SEQ
    for task, model_class in MODEL_CLASSES.items():
        if type(config) in model_class._model_mapping:
            return task
    raise CannotConvert(f"{config.model_type}: none of the tasks {', '.join(MODEL_CLASSES)} has a model for it")


def _case(
    name: str, model: nn.Module, task: str, config: PretrainedConfig, d: Dimensions, dtype: torch.dtype
) -> TrainingCase:
    jitter_parameters(model)
    model = model.to(dtype).train()
    lengths = {"batch": d.batch, "seq": d.seq}
    padding = getattr(config, "pad_token_id", None) or 0
    if task == CAUSAL:
        loss = tasks.CausalLanguageModelLoss(model)
        make_inputs = tasks.causal_language_model_inputs(config.vocab_size)
    elif task == MASKED:
        loss = tasks.MaskedLanguageModelLoss(model)
        make_inputs = tasks.masked_language_model_inputs(config.vocab_size, padding)
    elif task == SEQ2SEQ:
        loss = tasks.SequenceToSequenceLoss(model)
        start = getattr(config, "decoder_start_token_id", None) or 0
        make_inputs = tasks.sequence_to_sequence_inputs(config.vocab_size, padding, start)
        lengths["target"] = d.target
    else:
        loss = tasks.ImageClassificationLoss(model)
        make_inputs = tasks.image_classification_inputs(config.num_channels, config.image_size, config.num_labels)
        del lengths["seq"]
    return TrainingCase(
        name, loss.train(), make_inputs, lengths, _largest_lengths(config), parameter_prefix=tasks.MODEL_PREFIX
    )


def _largest_lengths(config: PretrainedConfig) -> dict[str, int]:
    """A learned position table bounds the lengths; rotary positions do not, whatever the configuration says."""
    if getattr(config, "rope_parameters", None) or hasattr(config, "rope_theta"):
        return {}
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return {"seq": positions, "target": positions} if positions else {}


def _nano_case(d: Dimensions, dtype: torch.dtype) -> TrainingCase:
    torch.manual_seed(0)
    model = NanoGpt(
        vocab=d.vocab,
        positions=d.positions,
        hidden=d.hidden,
        heads=d.heads,
        inner=d.inner,
        layers=d.layers,
        dropout=d.dropout,
    )
    jitter_parameters(model)
    return TrainingCase(
        NANO,
        tasks.CausalLanguageModelLoss(model.to(dtype).train()).train(),
        tasks.causal_language_model_inputs(d.vocab),
        {"batch": d.batch, "seq": d.seq},
        {"seq": d.positions},
        parameter_prefix=tasks.MODEL_PREFIX,
    )
