"""torch's LSTM (Hochreiter and Schmidhuber, 1997) and GRU (Cho et al., 2014) as sequence models."""

from __future__ import annotations

from torch import Tensor, nn


class LSTM(nn.Module):
    """(B, T, d_model) -> (B, T, d_hidden): the hidden states of the last of `layers` layers of nn.LSTM."""

    def __init__(self, d_model: int, d_hidden: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(d_model, d_hidden, layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.lstm(x)[0]
        return hidden


class GRU(nn.Module):
    """(B, T, d_model) -> (B, T, d_hidden): the hidden states of the last of `layers` layers of nn.GRU."""

    def __init__(self, d_model: int, d_hidden: int, layers: int) -> None:
        super().__init__()
        self.gru = nn.GRU(d_model, d_hidden, layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.gru(x)[0]
        return hidden
