"""Models whose published weights are taken as they are: classes with the tensor names of the checkpoints.

Each is a factory: `isobit quantize isobit.quant.zoo.pretrained:RWKV7Reverse --weights FILE.safetensors ...`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isobit.quant.nn import RunningMean
from isobit.quant.zoo.mamba import MambaBlock
from isobit.quant.zoo.rwkv7 import Ranks, RWKV7ChannelMix, RWKV7TimeMix

REVERSE_TOKENS = "0123456789,#"
"""The vocabulary of RWKV7Reverse: a number, a comma, the number reversed, then padding."""


class ConstantBranch(nn.Module):
    """x + bias, (B, T, d_model): a layer that always returns one vector."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class RWKV7Reverse(nn.Module):
    """Token ids (B, T) -> logits (B, T, 12): the two-layer RWKV-7 of RWKV-LM that reverses a number.

    x + rwkv(lna(x)) + const, then x + ffn(lnb(x)); RWKV-LM's third branch of a block is the constant vector here.
    The first layer's v0, v1, v2 are in the checkpoint; no output depends on them.
    """

    def __init__(self, d_model: int = 32, heads: int = 2, rank: int = 8) -> None:
        super().__init__()
        self.e = nn.Embedding(len(REVERSE_TOKENS), d_model)
        self.ln1a, self.ln1b, self.const1 = nn.LayerNorm(d_model), nn.LayerNorm(d_model), ConstantBranch(d_model)
        self.ln2a, self.ln2b, self.const2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model), ConstantBranch(d_model)
        ranks = Ranks(rank, rank, rank, rank)
        self.rwkv1, self.rwkv2 = (RWKV7TimeMix(d_model, heads, layer, 2, ranks) for layer in range(2))
        self.ffn1, self.ffn2 = (RWKV7ChannelMix(d_model, layer, 2, 4 * d_model) for layer in range(2))
        for name, shape in (("v0", (d_model,)), ("v1", (d_model, rank)), ("v2", (rank, d_model))):
            self.rwkv1.register_parameter(name, nn.Parameter(torch.zeros(shape)))
        self.lno, self.o = nn.LayerNorm(d_model), nn.Linear(d_model, len(REVERSE_TOKENS))

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.e(ids)
        mixed, v_first = self.rwkv1(self.ln1a(x), None)
        x = self.const1(x + mixed)
        x = x + self.ffn1(self.ln1b(x))
        mixed, _ = self.rwkv2(self.ln2a(x), v_first)
        x = self.const2(x + mixed)
        x = x + self.ffn2(self.ln2b(x))
        logits: Tensor = self.o(self.lno(x))
        return logits


class MambaKeywords(nn.Module):
    """(B, T, 40) -> logits (B, T, 10): the keyword spotter of MambaLite-Micro, one Mamba block, no norm, no residual.

    The logits at step t are of the mean of the block's first t + 1 outputs; the last step classifies the sequence.
    """

    def __init__(self, d_input: int = 40, d_model: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.linear_in = nn.Linear(d_input, d_model)
        self.mamba = MambaBlock(d_model, d_state=16, d_conv=4, expand=2, dt_rank=4)
        self.mean = RunningMean()
        self.classifier = nn.Linear(d_model, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.mean(self.mamba(self.linear_in(x))))
        return logits
