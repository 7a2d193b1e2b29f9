"""Tiny training steps that a sharding tool is likely to get wrong, one idea each.

All lengths collide on purpose: sequence, hidden size and vocabulary are 16, which is also batch * 8; four heads have
size four. A tool that recognises an axis by its length is wrong on nearly every one of them.

Every class is a case: its docstring's first line says what is hard, `forward` is the whole step.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from tasks import IGNORED_LABEL
from training_case import Sizes, TrainingCase, jitter_parameters

BATCH, SEQ, HIDDEN, HEADS, HEAD_DIM, VOCAB = 2, 16, 16, 4, 4, 16


class Case(nn.Module):
    """One attention layer between an embedding and a head; subclasses change one thing."""

    extra_inputs: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, HIDDEN)
        self.query, self.key, self.value, self.output = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.norm = nn.LayerNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCAB, bias=False)
        self.build()

    def build(self) -> None:
        """Parameters and buffers of the subclass."""

    def make_inputs(self, sizes: Sizes, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Token ids and labels, the first row's first five ignored; and the extra inputs, which are ids too."""

        def tokens() -> torch.Tensor:
            return torch.randint(0, VOCAB, (BATCH, SEQ), generator=generator)

        inputs = {"input_ids": tokens(), "labels": tokens()}
        inputs["labels"][0, :5] = IGNORED_LABEL
        return inputs | {name: tokens() for name in self.extra_inputs}

    def heads_of(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.view(*projected.shape[:2], HEADS, HEAD_DIM).transpose(1, 2)

    def attend(
        self, x: torch.Tensor, memory: torch.Tensor | None = None, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        memory = x if memory is None else memory
        query, key, value = (
            self.heads_of(layer(source))
            for layer, source in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(HEAD_DIM)
        if bias is not None:
            scores = scores + bias
        return self.merge(scores.softmax(-1) @ value)

    def merge(self, heads: torch.Tensor) -> torch.Tensor:
        return self.output(heads.transpose(1, 2).reshape(heads.shape[0], heads.shape[2], HIDDEN))

    def layer(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return x + self.attend(self.norm(x), bias=bias)

    def token_loss(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self.head(x).reshape(-1, VOCAB), labels.reshape(-1), ignore_index=IGNORED_LABEL)


def causal_mask() -> torch.Tensor:
    return torch.triu(torch.full((SEQ, SEQ), float("-inf")), 1)


class TokenShift(Case):
    """Every token is mixed with the one before it: Pad and Slice along the sequence."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        previous = functional.pad(x, (0, 0, 1, 0))[:, :-1]
        return self.token_loss(self.layer(x + 0.5 * previous), labels)


class CausalConvolution(Case):
    """A depthwise convolution over the sequence needs three tokens of the shard before."""

    def build(self) -> None:
        self.convolution = nn.Conv1d(HIDDEN, HIDDEN, kernel_size=4, groups=HIDDEN)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        padded = functional.pad(x.transpose(1, 2), (3, 0))
        return self.token_loss(self.layer(x + self.convolution(padded).transpose(1, 2)), labels)


class ConvolutionModule(Case):
    """The Conformer's: pointwise, gated, depthwise over both sides, batch-normalized, pointwise; then a dense one."""

    def build(self) -> None:
        self.expand = nn.Conv1d(HIDDEN, 2 * HIDDEN, kernel_size=1)
        self.depthwise = nn.Conv1d(HIDDEN, HIDDEN, kernel_size=5, padding=2, groups=HIDDEN)
        self.batch_norm = nn.BatchNorm1d(HIDDEN).eval()
        self.contract = nn.Conv1d(HIDDEN, HIDDEN, kernel_size=1)
        self.dense = nn.Conv1d(HIDDEN, HIDDEN, kernel_size=3, padding=2, dilation=2, groups=2)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        gated = functional.glu(self.expand(self.norm(x).transpose(1, 2)), dim=1)
        mixed = self.contract(functional.silu(self.batch_norm(self.depthwise(gated))))
        mixed = mixed + self.dense(mixed)
        return self.token_loss(self.layer(x + mixed.transpose(1, 2)), labels)


class ConvolutionByTaps(Case):
    """The same convolution written as shifted slices times a row of weights each."""

    def build(self) -> None:
        self.taps = nn.Parameter(torch.zeros(3, HIDDEN))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        padded = functional.pad(x, (0, 0, 2, 0))
        mixed = sum(padded[:, i : i + SEQ] * self.taps[i] for i in range(3))
        return self.token_loss(self.layer(x + mixed), labels)


class RelativePositionBias(Case):
    """T5's bias: a table looked up by clipped distance, [seq, seq] indices from a constant."""

    def build(self) -> None:
        self.distance_bias = nn.Embedding(8, HEADS)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        position = torch.arange(SEQ)
        bucket = (position[None] - position[:, None]).clamp(-3, 4) + 3
        bias = self.distance_bias(bucket).permute(2, 0, 1)[None]
        return self.token_loss(self.layer(self.embedding(input_ids), bias), labels)


class Alibi(Case):
    """Each head has its own slope times distance: a constant [heads, seq, seq] with the causal mask."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        slopes = torch.tensor([2.0 ** -(head + 1) for head in range(HEADS)])
        position = torch.arange(SEQ)
        distance = (position[None] - position[:, None]).float()
        bias = slopes[:, None, None] * distance + causal_mask()
        return self.token_loss(self.layer(self.embedding(input_ids), bias), labels)


class SlidingWindow(Case):
    """A window of five tokens, longer than a shard at sp 4: the mask is global, whatever the local length."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        position = torch.arange(SEQ)
        distance = position[:, None] - position[None]
        bias = torch.where((distance >= 0) & (distance < 5), 0.0, float("-inf"))
        return self.token_loss(self.layer(self.embedding(input_ids), bias), labels)


class BlockLocalAttention(Case):
    """Attention inside blocks of four: the sequence is split into two axes by a view."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        query, key, value = (
            layer(x).view(BATCH, SEQ // 4, 4, HEADS, HEAD_DIM).permute(0, 3, 1, 2, 4)
            for layer in (self.query, self.key, self.value)
        )
        heads = (query @ key.transpose(-1, -2)).softmax(-1) @ value
        x = x + self.output(heads.permute(0, 2, 3, 1, 4).reshape(BATCH, SEQ, HIDDEN))
        return self.token_loss(x, labels)


class QueriesInChunks(Case):
    """Causal attention of six queries at a time: each chunk's positions are a slice that some ranks have nothing of."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        query, key, value = (self.heads_of(layer(self.norm(x))) for layer in (self.query, self.key, self.value))
        mask = causal_mask()
        chunks = [
            (query[:, :, begin : begin + 6] @ key.transpose(-1, -2) / 2 + mask[begin : begin + 6]).softmax(-1) @ value
            for begin in range(0, SEQ, 6)
        ]
        return self.token_loss(x + self.merge(torch.cat(chunks, 2)), labels)


class MeanPooling(Case):
    """One label for each row, from the mean over the sequence."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        pooled = self.layer(self.embedding(input_ids)).mean(1)
        return functional.cross_entropy(self.head(pooled), labels[:, -1])


class FirstAndLastToken(Case):
    """Losses from the first and the last position only: one rank owns each."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.layer(self.embedding(input_ids))
        first = functional.cross_entropy(self.head(x[:, 0]), labels[:, 0].clamp(min=0))
        return first + functional.cross_entropy(self.head(x[:, -1]), labels[:, -1])


class ClassToken(Case):
    """A learned token is put before the sequence: 17 positions, which nothing divides."""

    def build(self) -> None:
        self.class_token = nn.Parameter(torch.zeros(1, 1, HIDDEN))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.class_token.expand(BATCH, -1, -1), self.embedding(input_ids)], dim=1)
        x = self.layer(x)
        return functional.cross_entropy(self.head(x[:, 0]), labels[:, -1]) + self.token_loss(x[:, 1:], labels)


class SequenceFirst(Case):
    """[seq, batch, hidden] inside, heads merged with the batch as in fairseq: axis 1 is not the sequence."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids).transpose(0, 1)
        query, key, value = (
            layer(x).contiguous().view(SEQ, BATCH * HEADS, HEAD_DIM).transpose(0, 1)
            for layer in (self.query, self.key, self.value)
        )
        scores = torch.bmm(query, key.transpose(1, 2)) / math.sqrt(HEAD_DIM)
        heads = torch.bmm(scores.softmax(-1), value).transpose(0, 1).contiguous().view(SEQ, BATCH, HIDDEN)
        return self.token_loss((x + self.output(heads)).transpose(0, 1).contiguous(), labels)


class CrossAttention(Case):
    """Queries from one sequence, keys and values from another of the same length."""

    extra_inputs = ("encoder_input_ids",)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, encoder_input_ids: torch.Tensor) -> torch.Tensor:
        memory = self.layer(self.embedding(encoder_input_ids))
        x = self.embedding(input_ids)
        return self.token_loss(x + self.attend(self.norm(x), memory), labels)


class FusedGroupedQueries(Case):
    """One projection holds, for each of two groups, two query heads, a key and a value head, interleaved."""

    def build(self) -> None:
        self.fused = nn.Linear(HIDDEN, 2 * (2 + 2) * HEAD_DIM)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        grouped = self.fused(self.norm(x)).view(BATCH, SEQ, 2, 4, HEAD_DIM).permute(0, 2, 3, 1, 4)
        query, key, value = grouped.split([2, 1, 1], dim=2)
        scores = (query @ key.transpose(-1, -2) / math.sqrt(HEAD_DIM)) + causal_mask()
        heads = (scores.softmax(-1) @ value).permute(0, 3, 1, 2, 4).reshape(BATCH, SEQ, HIDDEN)
        return self.token_loss(x + self.output(heads), labels)


class SharedKeysAndValues(Case):
    """Two layers attend to the same keys and values, whose gradient comes from both."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        key, value = self.heads_of(self.key(x)), self.heads_of(self.value(x))
        for _ in range(2):
            query = self.heads_of(self.query(self.norm(x)))
            scores = query @ key.transpose(-1, -2) / math.sqrt(HEAD_DIM) + causal_mask()
            x = x + self.merge(scores.softmax(-1) @ value)
        return self.token_loss(x, labels)


class AttentionSinks(Case):
    """One learned score for each head joins the keys: a softmax over 17, a parameter of one number per head."""

    def build(self) -> None:
        self.sinks = nn.Parameter(torch.zeros(HEADS))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        query, key, value = (self.heads_of(layer(x)) for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / math.sqrt(HEAD_DIM) + causal_mask()
        sinks = self.sinks[None, :, None, None].expand(BATCH, -1, SEQ, 1)
        probabilities = torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :SEQ]
        return self.token_loss(x + self.merge(probabilities @ value), labels)


class InterleavedRotary(Case):
    """Rotary positions on even and odd channels: a view splits the head, constants hold every position."""

    def rotate(self, heads: torch.Tensor) -> torch.Tensor:
        angle = torch.arange(SEQ).float()[:, None] * torch.tensor([1.0, 0.1])
        even, odd = heads.reshape(BATCH, HEADS, SEQ, HEAD_DIM // 2, 2).unbind(-1)
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        query, key = (self.rotate(self.heads_of(layer(x))) for layer in (self.query, self.key))
        scores = query @ key.transpose(-1, -2) / math.sqrt(HEAD_DIM) + causal_mask()
        return self.token_loss(x + self.merge(scores.softmax(-1) @ self.heads_of(self.value(x))), labels)


class LinearAttention(Case):
    """Causal attention without a softmax: a running sum of outer products over the sequence."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        query, key, value = (self.heads_of(layer(x)) for layer in (self.query, self.key, self.value))
        state = (key.exp().unsqueeze(-1) * value.unsqueeze(-2)).cumsum(dim=2)
        heads = (query.unsqueeze(-2) @ state).squeeze(-2) / SEQ
        return self.token_loss(x + self.merge(heads), labels)


class StateSpace(Case):
    """Mamba 2 before grouped attention: states of chunks decay through those that follow, in sums of outer products."""

    chunk = 2
    kv_heads = 2
    width = 6

    def build(self) -> None:
        channels = HIDDEN + 2 * self.width
        self.joint = nn.Linear(HIDDEN, channels)
        self.convolution = nn.Conv1d(channels, channels, kernel_size=3, groups=channels, padding=2)
        self.rate = nn.Linear(HIDDEN, HEADS)
        self.key, self.value = (nn.Linear(HIDDEN, self.kv_heads * HEAD_DIM) for _ in range(2))
        self.mixed = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        joint = functional.silu(self.convolution(self.joint(x).transpose(1, 2))[..., :SEQ]).transpose(1, 2)
        x = x + self.mixed(self.states_and_chunks(joint, self.rate(x)).reshape(BATCH, -1, HIDDEN)[:, :SEQ])
        x = x + self.attend_in_groups(self.norm(x))
        return self.token_loss(x[:, :-1], labels[:, 1:])

    def attend_in_groups(self, x: torch.Tensor) -> torch.Tensor:
        query = self.heads_of(self.query(x))
        key, value = (
            layer(x).view(BATCH, SEQ, self.kv_heads, 1, HEAD_DIM).expand(-1, -1, -1, HEADS // self.kv_heads, -1)
            for layer in (self.key, self.value)
        )
        key, value = (self.heads_of(repeated.reshape(BATCH, SEQ, HIDDEN)) for repeated in (key, value))
        return self.merge((query @ key.transpose(-1, -2) / 2 + causal_mask()).softmax(-1) @ value)

    def states_and_chunks(self, joint: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
        """[batch, chunks, chunk, heads, width]"""
        padding = (0, 0, 0, -SEQ % self.chunk)
        joint, rates = functional.pad(joint, padding), functional.pad(-functional.softplus(rates), padding)
        chunks = (BATCH, joint.shape[1] // self.chunk, self.chunk, HEADS)
        value, key, query = joint.split([HIDDEN, self.width, self.width], -1)
        value = value.reshape(*chunks, HEAD_DIM)
        key, query = (shared.reshape(*chunks[:3], 1, self.width).expand(*chunks, self.width) for shared in (key, query))
        rates = rates.view(chunks).permute(0, 3, 1, 2)
        since_begin = rates.cumsum(-1)
        until_end = since_begin[..., -1:] - since_begin

        scores = (query[:, :, :, None] * key[:, :, None]).sum(-1) * self.decays(rates).permute(0, 2, 3, 4, 1)
        inside = (scores[..., None] * value[:, :, None]).sum(3)

        kept = key * until_end.exp().permute(0, 2, 3, 1)[..., None]
        states = (kept[..., None] * value[..., None, :]).sum(2)
        states = torch.cat([torch.zeros_like(states[:, :1]), states], 1)
        between = self.decays(functional.pad(since_begin[..., -1], (1, 0))).permute(0, 2, 3, 1)
        states = (between[..., None, None] * states[:, None]).sum(2)[:, :-1]

        asked = query * since_begin.exp().permute(0, 2, 3, 1)[..., None]
        return inside + (asked[..., None] * states[:, :, None]).sum(-2)

    def decays(self, rates: torch.Tensor) -> torch.Tensor:
        """exp(rates of k + 1 ... i, summed) from position k to i along the last axis; 0 where k is later."""
        size = rates.shape[-1]
        kept = torch.tril(torch.ones(size, size, dtype=torch.bool))
        sums = rates[..., None].expand(*rates.shape, size).masked_fill(~kept.tril(-1), 0).cumsum(-2)
        return sums.masked_fill(~kept, float("-inf")).exp()


class StateSpaceOfPaddedChunks(StateSpace):
    """The same where the sequence is no whole number of chunks, and every head of attention has keys of its own."""

    chunk = 3
    kv_heads = HEADS


class TokenMixer(Case):
    """A linear layer over the sequence axis, of the same shape as one over the hidden axis."""

    def build(self) -> None:
        self.mixer = nn.Linear(SEQ, SEQ)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        return self.token_loss(self.layer(x + self.mixer(x.transpose(1, 2)).transpose(1, 2)), labels)


class ReversedSequence(Case):
    """A second pass over the reversed sequence."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        backwards = self.attend(x.flip(1), bias=causal_mask()).flip(1)
        return self.token_loss(x + self.attend(x, bias=causal_mask()) + backwards, labels)


class InstanceNorm(Case):
    """Mean and variance over the sequence for each channel."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()
        return self.token_loss(self.layer(x), labels)


class PackedDocuments(Case):
    """Token 3 ends a document; attention stays inside documents, counted by a running sum over the sequence."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        document = (input_ids == 3).long().cumsum(1)
        same = document[:, :, None] == document[:, None, :]
        bias = torch.where(same, 0.0, -1e9)[:, None] + causal_mask()
        return self.token_loss(self.layer(self.embedding(input_ids), bias), labels)


class SharedConstant(Case):
    """One [16, 16] constant is a scale over seq x hidden here and a projection hidden x vocab there."""

    def build(self) -> None:
        generator = torch.Generator().manual_seed(11)
        self.register_buffer("table", torch.randn(SEQ, HIDDEN, generator=generator))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.layer(self.embedding(input_ids) * self.table)
        extra = x @ self.table
        return self.token_loss(x, labels) + 0.01 * (extra * extra).mean()


class LearnedPositions(Case):
    """A parameter with one row for each position, added without an index: its gradient is no partial sum."""

    def build(self) -> None:
        self.positions = nn.Parameter(torch.zeros(SEQ, HIDDEN))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.token_loss(self.layer(self.embedding(input_ids) + self.positions), labels)


class TiedEmbeddings(Case):
    """The head is the embedding: its gradient is a scatter plus a product, to be reduced once."""

    def build(self) -> None:
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.token_loss(self.layer(self.embedding(input_ids), causal_mask()), labels)


class ShiftedLabels(Case):
    """Causal shift by slices: 15 predictions from 16 positions, one of them across every shard boundary."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.layer(self.embedding(input_ids), causal_mask())
        return self.token_loss(x[:, :-1], labels[:, 1:])


class PaddedLabels(Case):
    """Causal shift by padding the labels: all 16 logits stay, the last has no label."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.layer(self.embedding(input_ids), causal_mask())
        return self.token_loss(x, functional.pad(labels, (0, 1), value=IGNORED_LABEL)[:, 1:])


class ChunkedCrossEntropy(Case):
    """The head runs on four strided chunks of the sequence, one after the other."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.layer(self.embedding(input_ids)).view(BATCH * SEQ // 4, 4, HIDDEN)
        labels = labels.view(BATCH * SEQ // 4, 4)
        total = sum(self.summed_loss(x[:, i], labels[:, i]) for i in range(4))
        return total / (labels != IGNORED_LABEL).sum()

    def summed_loss(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self.head(x).reshape(-1, VOCAB)
        return functional.cross_entropy(logits, labels.reshape(-1), ignore_index=IGNORED_LABEL, reduction="sum")


class UnevenlyChunkedCrossEntropy(ChunkedCrossEntropy):
    """The head runs on chunks of five tokens, the last of one: no chunk is a shard."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.layer(self.embedding(input_ids))
        pairs = zip(x.split(5, dim=1), labels.split(5, dim=1), strict=True)
        return sum(self.summed_loss(chunk, target) for chunk, target in pairs) / (labels != IGNORED_LABEL).sum()


class HalfWithoutLabels(Case):
    """No label in the first half: at sp 2 one rank has nothing to average, and must not divide by its zero."""

    def make_inputs(self, sizes: Sizes, generator: torch.Generator) -> dict[str, torch.Tensor]:
        inputs = super().make_inputs(sizes, generator)
        inputs["labels"][:, : SEQ // 2] = IGNORED_LABEL
        return inputs

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.token_loss(self.layer(self.embedding(input_ids), causal_mask()), labels)


class ZLoss(Case):
    """Besides the cross-entropy over labelled tokens, a mean over all tokens."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.layer(self.embedding(input_ids)))
        loss = functional.cross_entropy(logits.view(-1, VOCAB), labels.view(-1), ignore_index=IGNORED_LABEL)
        return loss + 1e-2 * (torch.logsumexp(logits, -1) ** 2).mean()


class WeightedCrossEntropy(Case):
    """Class weights and label smoothing: the mean divides by a sum of weights, and labels are ignored at -1."""

    def build(self) -> None:
        self.register_buffer("class_weight", torch.linspace(0.5, 2.0, VOCAB))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.layer(self.embedding(input_ids))).view(-1, VOCAB)
        labels = torch.where(labels == IGNORED_LABEL, -1, labels).view(-1)
        return functional.cross_entropy(logits, labels, weight=self.class_weight, ignore_index=-1, label_smoothing=0.1)


class LoadBalancingLoss(Case):
    """Two experts mixed by a gate, and a loss on the squared mean of the gate: nonlinear in a mean over tokens."""

    def build(self) -> None:
        self.gate = nn.Linear(HIDDEN, 2)
        self.experts = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(2))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.layer(self.embedding(input_ids))
        share = self.gate(x).softmax(-1)
        mixed = sum(share[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))
        return self.token_loss(x + mixed, labels) + share.mean((0, 1)).square().sum()


CASES: tuple[type[Case], ...] = tuple(
    value
    for value in list(globals().values())
    if isinstance(value, type) and issubclass(value, Case) and value is not Case
)


def file_name(case_class: type[Case]) -> str:
    """TokenShift -> token_shift."""
    name = case_class.__name__
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in name).lstrip("_")


def training_case(case_class: type[Case]) -> TrainingCase:
    """The case with jittered weights, all lengths fixed."""
    torch.manual_seed(0)
    module = case_class()
    jitter_parameters(module, scale=0.1)
    return TrainingCase(file_name(case_class), module, module.make_inputs, {"batch": BATCH, "seq": SEQ})
