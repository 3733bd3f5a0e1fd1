"""Linear transformers in float (Katharopoulos et al., Transformers are RNNs, 2020)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import LinearRecurrence
from isobit.quant.zoo.blocks import with_ones


class LinearAttention(nn.Module):
    """o = S^T phi(q) / z . phi(q), with sums S of phi(k) v^T and z of phi(k), phi = elu + 1 (eq. 7 and 18 to 20).

    (B, T, d_model) -> (B, T, d_model). z is kept as one more column of S.
    """

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, d_model // heads
        self.query_projection = nn.Linear(d_model, d_model)
        self.key_projection = nn.Linear(d_model, d_model)
        self.value_projection = nn.Linear(d_model, d_model)
        self.recurrence = LinearRecurrence()
        self.out_projection = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        values = functional.linear(x, *with_ones(self.value_projection, self.heads))
        parts = (functional.elu(self.query_projection(x)) + 1, functional.elu(self.key_projection(x)) + 1, values)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        total, weight = self.recurrence(q, k, v).split([self.size, 1], dim=-1)
        out: Tensor = self.out_projection((total / weight).flatten(-2))
        return out


class LinearTransformerBlock(nn.Module):
    """norm1(x + attention(x)), then norm2 of that plus two linear layers with GELU: the authors' encoder layer."""

    def __init__(self, d_model: int, heads: int, d_hidden: int) -> None:
        super().__init__()
        self.attention = LinearAttention(d_model, heads)
        self.linear1, self.linear2 = nn.Linear(d_model, d_hidden), nn.Linear(d_hidden, d_model)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        out: Tensor = self.norm2(x + self.linear2(functional.gelu(self.linear1(x))))
        return out


def linear_transformer(d_model: int, heads: int, layers: int, d_hidden: int) -> nn.Module:
    """`layers` blocks, (B, T, d_model) -> (B, T, d_model)."""
    return nn.Sequential(*(LinearTransformerBlock(d_model, heads, d_hidden) for _ in range(layers)))
