"""A decoder in plain PyTorch, in the manner of nanoGPT: fused QKV projection, learned positions, tied head."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional


class NanoBlock(nn.Module):
    """Pre-norm block: causal self-attention, then a GELU feed-forward of width `inner`."""

    def __init__(self, hidden: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm_attention = nn.LayerNorm(hidden)
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.projection = nn.Linear(hidden, hidden)
        self.norm_feed_forward = nn.LayerNorm(hidden)
        self.widen = nn.Linear(hidden, inner)
        self.narrow = nn.Linear(inner, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self._drop(self.projection(self._attend(self.norm_attention(x))))
        return x + self._drop(self.narrow(functional.gelu(self.widen(self.norm_feed_forward(x)))))

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        batch, seq, hidden = x.shape
        head_dim = hidden // self.heads
        query, key, value = (
            part.view(batch, seq, self.heads, head_dim).transpose(1, 2)
            for part in self.query_key_value(x).split(hidden, dim=2)
        )
        scores = query @ key.transpose(-2, -1) / math.sqrt(head_dim)
        visible = torch.tril(torch.ones(seq, seq, dtype=torch.bool, device=x.device))
        probabilities = self._drop(torch.softmax(scores.masked_fill(~visible, float("-inf")), dim=-1))
        return (probabilities @ value).transpose(1, 2).contiguous().view(batch, seq, hidden)

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(x, self.dropout, self.training)


class NanoGpt(nn.Module):
    """Token ids [batch, seq] -> logits [batch, seq, vocab]; the head shares the token embedding's weight."""

    def __init__(
        self, *, vocab: int, positions: int, hidden: int, heads: int, inner: int, layers: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab, hidden)
        self.position_embedding = nn.Embedding(positions, hidden)
        self.blocks = nn.ModuleList(NanoBlock(hidden, heads, inner, dropout) for _ in range(layers))
        self.final_norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, vocab, bias=False)
        self.head.weight = self.token_embedding.weight
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.token_embedding(input_ids) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x)
        return self.head(self.final_norm(x))
