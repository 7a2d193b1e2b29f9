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


def _config(config_class: str, **fields: object) -> Callable[[Dimensions], PretrainedConfig]:
    """Configurations with spellings of their own; a callable field is computed from the dimensions."""

    def build(d: Dimensions) -> PretrainedConfig:
        evaluated = {key: value(d) if callable(value) else value for key, value in fields.items()}
        return getattr(transformers, config_class)(**evaluated)

    return build


def _of(name: str) -> Callable[[Dimensions], object]:
    return lambda d: getattr(d, name)


_GPT2 = _config(
    "GPT2Config",
    vocab_size=_of("vocab"),
    n_positions=_of("positions"),
    n_embd=_of("hidden"),
    n_layer=_of("layers"),
    n_head=_of("heads"),
    n_inner=_of("inner"),
    resid_pdrop=_of("dropout"),
    embd_pdrop=_of("dropout"),
    attn_pdrop=_of("dropout"),
    bos_token_id=1,
    eos_token_id=2,
)
_GPT_NEOX = _config(
    "GPTNeoXConfig",
    vocab_size=_of("vocab"),
    hidden_size=_of("hidden"),
    num_hidden_layers=_of("layers"),
    num_attention_heads=_of("heads"),
    intermediate_size=_of("inner"),
    max_position_embeddings=_of("positions"),
    rotary_pct=0.5,
    hidden_dropout=_of("dropout"),
    attention_dropout=_of("dropout"),
    tie_word_embeddings=False,
)
_OPT = _config(
    "OPTConfig",
    layerdrop=0.0,
    vocab_size=_of("vocab"),
    hidden_size=_of("hidden"),
    word_embed_proj_dim=_of("hidden"),
    num_hidden_layers=_of("layers"),
    num_attention_heads=_of("heads"),
    ffn_dim=_of("inner"),
    max_position_embeddings=_of("positions"),
    dropout=_of("dropout"),
    attention_dropout=_of("dropout"),
)
_BLOOM = _config(
    "BloomConfig",
    vocab_size=_of("vocab"),
    hidden_size=_of("hidden"),
    n_layer=_of("layers"),
    n_head=_of("heads"),
    hidden_dropout=_of("dropout"),
    attention_dropout=_of("dropout"),
)
_FALCON = _config(
    "FalconConfig",
    vocab_size=_of("vocab"),
    hidden_size=_of("hidden"),
    num_hidden_layers=_of("layers"),
    num_attention_heads=_of("heads"),
    ffn_hidden_size=_of("inner"),
    multi_query=True,
    parallel_attn=True,
    new_decoder_architecture=False,
    bias=False,
    hidden_dropout=_of("dropout"),
    attention_dropout=_of("dropout"),
)
_GPT_NEO = _config(
    "GPTNeoConfig",
    vocab_size=_of("vocab"),
    hidden_size=_of("hidden"),
    num_layers=2,
    attention_types=[[["global", "local"], 1]],
    num_heads=_of("heads"),
    intermediate_size=_of("inner"),
    window_size=_of("window"),
    max_position_embeddings=_of("positions"),
    embed_dropout=_of("dropout"),
    resid_dropout=_of("dropout"),
    attention_dropout=_of("dropout"),
)
_DISTILBERT = _config(
    "DistilBertConfig",
    vocab_size=_of("vocab"),
    dim=_of("hidden"),
    n_layers=_of("layers"),
    n_heads=_of("heads"),
    hidden_dim=_of("inner"),
    max_position_embeddings=_of("positions"),
    dropout=_of("dropout"),
    attention_dropout=_of("dropout"),
)
_T5 = _config(
    "T5Config",
    vocab_size=_of("vocab"),
    d_model=_of("hidden"),
    d_kv=lambda d: d.hidden // d.heads,
    num_layers=_of("layers"),
    num_decoder_layers=_of("layers"),
    num_heads=_of("heads"),
    d_ff=_of("inner"),
    relative_attention_num_buckets=14,
    relative_attention_max_distance=32,
    dropout_rate=_of("dropout"),
    decoder_start_token_id=0,
)
_BART = _config(
    "BartConfig",
    vocab_size=_of("vocab"),
    d_model=_of("hidden"),
    encoder_layers=_of("layers"),
    decoder_layers=_of("layers"),
    encoder_attention_heads=_of("heads"),
    decoder_attention_heads=_of("heads"),
    encoder_layerdrop=0.0,
    decoder_layerdrop=0.0,
    encoder_ffn_dim=_of("inner"),
    decoder_ffn_dim=_of("inner"),
    max_position_embeddings=_of("positions"),
    dropout=_of("dropout"),
    attention_dropout=_of("dropout"),
)
_VIT = _config(
    "ViTConfig",
    hidden_size=_of("hidden"),
    num_hidden_layers=_of("layers"),
    num_attention_heads=_of("heads"),
    intermediate_size=_of("inner"),
    image_size=_of("image"),
    patch_size=_of("patch"),
    num_labels=10,
    hidden_dropout_prob=_of("dropout"),
    attention_probs_dropout_prob=_of("dropout"),
)
_MODERNBERT = _config(
    "ModernBertConfig",
    vocab_size=_of("vocab"),
    hidden_size=_of("hidden"),
    num_hidden_layers=_of("layers"),
    num_attention_heads=_of("heads"),
    intermediate_size=_of("inner"),
    max_position_embeddings=_of("positions"),
    global_attn_every_n_layers=2,
    local_attention=_of("window"),
    attention_dropout=_of("dropout"),
    embedding_dropout=_of("dropout"),
    mlp_dropout=_of("dropout"),
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    cls_token_id=1,
    sep_token_id=2,
)
_GEMMA_HEADS = {"head_dim": lambda d: d.hidden // d.heads, "tie_word_embeddings": True}
_GEMMA2 = {
    **_GEMMA_HEADS,
    "sliding_window": _of("window"),
    "query_pre_attn_scalar": 10,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
}

_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_GPT_OSS = {**_EXPERTS, "head_dim": lambda d: d.hidden // d.heads, "sliding_window": _of("window")}

FAMILIES: tuple[Family, ...] = (
    Family("gpt2", CAUSAL, _GPT2, "learned positions, fused QKV, tied head"),
    Family("llama", CAUSAL, _llama_like("LlamaConfig"), "RoPE, RMSNorm, SwiGLU, grouped-query attention"),
    Family("mistral", CAUSAL, _llama_like("MistralConfig", sliding_window=_of("window")), "sliding window"),
    Family("qwen2", CAUSAL, _llama_like("Qwen2Config"), "biased QKV projections"),
    Family("qwen3", CAUSAL, _llama_like("Qwen3Config", head_dim=10), "normalised queries and keys, own head size"),
    Family("gemma", CAUSAL, _llama_like("GemmaConfig", **_GEMMA_HEADS), "scaled embeddings, tied head"),
    Family("gemma2", CAUSAL, _llama_like("Gemma2Config", **_GEMMA2), "soft caps, alternating sliding window"),
    Family("phi3", CAUSAL, _llama_like("Phi3Config"), "QKV and gate-up projections fused"),
    Family("olmo2", CAUSAL, _llama_like("Olmo2Config"), "norms after attention and feed-forward"),
    Family("starcoder2", CAUSAL, _llama_like("Starcoder2Config", sliding_window=_of("window")), "LayerNorm and RoPE"),
    Family("mixtral", CAUSAL, _llama_like("MixtralConfig", **_EXPERTS), "mixture of experts"),
    Family("gpt_oss", CAUSAL, _llama_like("GptOssConfig", **_GPT_OSS), "attention sinks, experts, sliding window"),
    Family("gpt_neox", CAUSAL, _GPT_NEOX, "partial RoPE, parallel residual"),
    Family("gpt_neo", CAUSAL, _GPT_NEO, "local attention in every second layer"),
    Family("opt", CAUSAL, _OPT, "learned positions from the mask, ReLU"),
    Family("bloom", CAUSAL, _BLOOM, "ALiBi"),
    Family("falcon", CAUSAL, _FALCON, "multi-query attention beside the feed-forward"),
    Family("bert", MASKED, _bert_like("BertConfig"), "padding mask, token types, GELU"),
    Family("roberta", MASKED, _bert_like("RobertaConfig"), "positions counted over tokens that are not padding"),
    Family("distilbert", MASKED, _DISTILBERT, "no token types"),
    Family("electra", MASKED, _bert_like("ElectraConfig", embedding_size=48), "embedding narrower than the model"),
    Family("albert", MASKED, _bert_like("AlbertConfig", embedding_size=48), "one layer's weights used by all"),
    Family("modernbert", MASKED, _MODERNBERT, "RoPE, windows to both sides in every second layer"),
    Family("t5", SEQ2SEQ, _T5, "encoder-decoder, relative position bias"),
    Family("bart", SEQ2SEQ, _BART, "encoder-decoder, learned positions"),
    Family("vit", IMAGE, _VIT, "image patches and a class token"),
)

NANO = "nano"
MODEL_CLASSES = {
    CAUSAL: transformers.AutoModelForCausalLM,
    MASKED: transformers.AutoModelForMaskedLM,
    SEQ2SEQ: transformers.AutoModelForSeq2SeqLM,
    IMAGE: transformers.AutoModelForImageClassification,
}
SUFFIXES = (
    (CAUSAL, "ForCausalLM"),
    (CAUSAL, "LMHeadModel"),
    (MASKED, "ForMaskedLM"),
    (SEQ2SEQ, "ForConditionalGeneration"),
    (IMAGE, "ForImageClassification"),
)
"""How the names of a task's classes end."""

BY_MODULE = "; a module and its loss come in with --module"


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
    if not _has_model(config, task):
        raise CannotConvert(f"{config.model_type}: Hugging Face has no {task} model for it{BY_MODULE}")
    config.use_cache = False
    torch.manual_seed(0)
    try:
        model = MODEL_CLASSES[task].from_config(config, attn_implementation="eager", **_expert_options())
    except ValueError as error:
        raise CannotConvert(f"{config.model_type}: no {task} model: {error}") from error
    return _case(config.model_type, model, task, config, dimensions, dtype)


def _expert_options() -> dict[str, str]:
    """Experts by gathered weights: the other implementations loop over the experts that the data choose.

    Releases before 5, which the route of ONNX Runtime's training artifacts needs, have no such option.
    """
    return {"experts_implementation": "batched_mm"} if int(transformers.__version__.split(".")[0]) >= 5 else {}


def _task_of(config: PretrainedConfig) -> str:
    """The task that the configuration's `architectures` name, else the first that Hugging Face has a class for.

    A head of another task (token classification, detection) is refused: its loss would not be the one exported.
    """
    for name in getattr(config, "architectures", None) or []:
        for task, suffix in SUFFIXES:
            if name.endswith(suffix) and _has_model(config, task):
                return task
        if "For" in name and not name.endswith(("ForPreTraining", "ForConditionalGeneration")):
            raise CannotConvert(f"{config.model_type}: {name} is of no --task{BY_MODULE}")
    for task in _by_preference(config):
        if _has_model(config, task):
            return task
    raise CannotConvert(
        f"{config.model_type}: none of the tasks {', '.join(MODEL_CLASSES)} has a model for it{BY_MODULE}"
    )


def _has_model(config: PretrainedConfig, task: str) -> bool:
    """Hugging Face has decoders that take speech (Voxtral, Qwen2-Audio) among those with an encoder of the source."""
    known = type(config) in MODEL_CLASSES[task]._model_mapping
    return known and (task != SEQ2SEQ or bool(getattr(config, "is_encoder_decoder", False)))


def _by_preference(config: PretrainedConfig) -> tuple[str, ...]:
    """Encoders that could be made decoders (BERT) are encoders, unless they say `is_decoder`."""
    if getattr(config, "is_encoder_decoder", False):
        return (SEQ2SEQ,)
    encoder = getattr(config, "is_decoder", None) is False
    return (MASKED, CAUSAL, SEQ2SEQ, IMAGE) if encoder else (CAUSAL, MASKED, SEQ2SEQ, IMAGE)


def _case(
    name: str, model: nn.Module, task: str, config: PretrainedConfig, d: Dimensions, dtype: torch.dtype
) -> TrainingCase:
    jitter_parameters(model)
    model = model.to(dtype).train()
    never_skip_layers(model)
    lengths = {"batch": d.batch, "seq": d.seq}
    text = config if task == IMAGE or hasattr(config, "vocab_size") else config.get_text_config()
    if task != IMAGE and not hasattr(text, "vocab_size"):
        raise CannotConvert(f"{name}: its configuration says no size of a vocabulary to draw tokens from{BY_MODULE}")
    padding = getattr(text, "pad_token_id", None) or 0
    if task == CAUSAL:
        loss = tasks.CausalLanguageModelLoss(model)
        make_inputs = tasks.causal_language_model_inputs(text.vocab_size)
    elif task == MASKED:
        loss = tasks.MaskedLanguageModelLoss(model)
        make_inputs = tasks.masked_language_model_inputs(text.vocab_size, padding)
    elif task == SEQ2SEQ:
        loss = tasks.SequenceToSequenceLoss(model)
        start = getattr(config, "decoder_start_token_id", None) or 0
        make_inputs = tasks.sequence_to_sequence_inputs(text.vocab_size, padding, start)
        lengths["target"] = d.target
    else:
        loss = tasks.ImageClassificationLoss(model)
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", d.image)  # convolutional models and SegFormer take any
        make_inputs = tasks.image_classification_inputs(getattr(vision, "num_channels", 3), size, config.num_labels)
        del lengths["seq"]
    return TrainingCase(
        name, loss.train(), make_inputs, lengths, _largest_lengths(text), parameter_prefix=tasks.MODEL_PREFIX
    )


def never_skip_layers(model: nn.Module) -> None:
    """Takes the coin out of layer drop: even at probability zero, Hugging Face branches on a random tensor.

    A holder drops where it trains; a configuration, where a module that has it does.
    """
    holders: dict[int, object] = {}
    training = set()
    for module in model.modules():
        for holder in (module, getattr(module, "config", None)):
            holders[id(holder)] = holder
            if module.training:
                training.add(id(holder))
    for key, holder in holders.items():
        for name, probability in list(getattr(holder, "__dict__", {}).items()):
            if not name.endswith("layerdrop") or not isinstance(probability, (int, float)):
                continue
            if probability > 0 and key in training:
                raise CannotConvert(f"layer drop of {probability}: a graph cannot skip layers at random; set it to 0")
            object.__setattr__(holder, name, _NeverReached())  # configurations check the types of their fields


class _NeverReached:
    """A threshold that no random number is below."""

    def __gt__(self, random_number: object) -> bool:
        return False


def _largest_lengths(config: PretrainedConfig) -> dict[str, int]:
    """A learned position table bounds the lengths; rotary positions do not, whatever the configuration says."""
    if getattr(config, "rope_parameters", None) or hasattr(config, "rope_theta"):
        return {}
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    bounded = positions is not None and positions > 0  # -1: XLNet's word for no bound
    return {"seq": positions, "target": positions} if bounded else {}


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
