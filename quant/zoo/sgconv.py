"""SGConv, a long convolution whose kernel is coarser and smaller the further it looks back (Li et al., 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.nn import causal_conv1d
from isobit.quant.zoo.blocks import PreNorm


class SGConv(nn.Module):
    """(B, T, d_model) -> same, causal: a depthwise FIR, GELU, and a linear layer.

    The kernel of a channel joins n_scales pieces of kernel_dim values; piece i is stretched by 2^max(0, i - 1) and
    halved i times.  It is divided by its norm at initialisation and has kernel_dim * 2^(n_scales - 1) taps.
    """

    kernel_norm: Tensor
    no_bias: Tensor

    def __init__(self, d_model: int, kernel_dim: int = 64, n_scales: int = 4) -> None:
        super().__init__()
        self.kernel_list = nn.ParameterList(torch.randn(d_model, kernel_dim) for _ in range(n_scales))
        self.D = nn.Parameter(torch.randn(d_model))
        self.output_linear = nn.Linear(d_model, d_model)
        self.register_buffer("no_bias", torch.zeros(d_model), persistent=False)
        self.register_buffer("kernel_norm", torch.ones(d_model, 1))
        with torch.no_grad():
            self.kernel_norm = self.kernel().norm(dim=-1, keepdim=True)

    def kernel(self) -> Tensor:
        """(d_model, taps): what each channel's input of j steps ago is multiplied by, without the skip D."""
        pieces = []
        for i, values in enumerate(self.kernel_list):
            stretch, factor = 2 ** max(0, i - 1), 2.0 ** (len(self.kernel_list) - 1 - i)
            piece = (factor * values).unsqueeze(0)
            pieces.append(functional.interpolate(piece, scale_factor=stretch, mode="linear").squeeze(0))
        return torch.cat(pieces, dim=-1) / self.kernel_norm

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel()
        taps = torch.cat([kernel[:, :1] + self.D.unsqueeze(-1), kernel[:, 1:]], dim=-1).flip(-1)
        out: Tensor = self.output_linear(functional.gelu(causal_conv1d(x, taps, self.no_bias)))
        return out


def sgconv(d_model: int, n_layers: int, kernel_dim: int = 64, n_scales: int = 4) -> nn.Module:
    """(B, T, d_model) -> same, causal: layers of SGConv on a norm, residual, as the authors' S4 backbone has them."""
    return nn.Sequential(
        *(PreNorm(nn.LayerNorm(d_model), SGConv(d_model, kernel_dim, n_scales)) for _ in range(n_layers))
    )
