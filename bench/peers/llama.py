"""The model that every contestant of the long-context benchmark trains: a Llama in plain PyTorch.

Its attention is a parameter, so that a hand-written sequence-parallel scheme replaces that and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""query [batch, heads, seq, width], key and value [batch, kv_heads, seq, width] -> [batch, heads, seq, width]."""

IGNORED = -100
"""The label of a position that does not count."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the model. Defaults are those of the benchmark: 14 million parameters, 55 MiB in float32."""

    vocab: int = 4096
    hidden: int = 512
    heads: int = 8
    kv_heads: int = 4
    inner: int = 1408
    layers: int = 4

    @property
    def width(self) -> int:
        """Of one head."""
        return self.hidden // self.heads


EIGHT_BILLION = Config(vocab=16384, hidden=4096, heads=32, kv_heads=8, inner=14336, layers=2)
"""Two layers of Llama 3.1 8B, with a vocabulary an eighth as large."""


def causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """PyTorch's own fused attention over whole sequences."""
    groups = query.shape[1] // key.shape[1]
    return functional.scaled_dot_product_attention(
        query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), is_causal=True
    )


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding, halves convention; x [batch, heads, seq, width], cosine and sine [seq, width / 2]."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)


class Block(nn.Module):
    """Pre-norm block: attention, then a SwiGLU feed-forward."""

    def __init__(self, config: Config, attend: Attend) -> None:
        super().__init__()
        c = config
        self.config = config
        self.attend = attend
        self.attention_norm = nn.RMSNorm(c.hidden, 1e-5)
        self.feed_forward_norm = nn.RMSNorm(c.hidden, 1e-5)
        self.query = nn.Linear(c.hidden, c.heads * c.width, bias=False)
        self.key = nn.Linear(c.hidden, c.kv_heads * c.width, bias=False)
        self.value = nn.Linear(c.hidden, c.kv_heads * c.width, bias=False)
        self.output = nn.Linear(c.heads * c.width, c.hidden, bias=False)
        self.gate = nn.Linear(c.hidden, c.inner, bias=False)
        self.up = nn.Linear(c.hidden, c.inner, bias=False)
        self.down = nn.Linear(c.inner, c.hidden, bias=False)

    def forward(self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        batch, seq, _ = x.shape
        y = self.attention_norm(x)
        query, key, value = (
            part.view(batch, seq, -1, self.config.width).transpose(1, 2)
            for part in (self.query(y), self.key(y), self.value(y))
        )
        attended = self.attend(rotate(query, cosine, sine), rotate(key, cosine, sine), value)
        x = x + self.output(attended.transpose(1, 2).reshape(batch, seq, -1))
        y = self.feed_forward_norm(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """Sum of the cross-entropies of the next tokens, divided by `valid` or else by the number of labels that count.

    `labels` are already shifted: position i holds the token that follows position i.
    """

    def __init__(self, config: Config, attend: Attend = causal_attention, *, checkpointed: bool = False) -> None:
        super().__init__()
        self.config = config
        self.checkpointed = checkpointed
        self.embedding = nn.Embedding(config.vocab, config.hidden)
        self.blocks = nn.ModuleList(Block(config, attend) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, 1e-5)
        self.head = nn.Linear(config.hidden, config.vocab, bias=False)

    def initialize(self, seed: int) -> None:
        """The same parameters for the same seed, whatever drew random numbers before."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0, 0.02, generator=generator)

    def forward(
        self, ids: torch.Tensor, labels: torch.Tensor, first_position: int = 0, valid: int | None = None
    ) -> torch.Tensor:
        width = self.config.width
        frequencies = 10000.0 ** (-torch.arange(0, width, 2, device=ids.device) / width)
        positions = torch.arange(first_position, first_position + ids.shape[1], device=ids.device)
        angles = positions[:, None] * frequencies
        x = self.embedding(ids)
        cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for block in self.blocks:
            rotation = (cosine, sine)
            x = checkpoint(block, x, *rotation, use_reentrant=False) if self.checkpointed else block(x, *rotation)
        logits = self.head(self.norm(x)).flatten(0, 1).float()
        total = functional.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum")
        return total / (valid if valid is not None else (labels != IGNORED).sum())


def make_batch(config: Config, seq: int, seed: int = 1234) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and shifted labels, [1, seq] each; the last position has no label."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, config.vocab, (1, seq), generator=generator)
    labels = torch.cat((ids[:, 1:], torch.full((1, 1), IGNORED)), 1)
    return ids, labels
