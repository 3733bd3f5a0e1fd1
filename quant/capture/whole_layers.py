"""nn.LSTM and nn.GRU kept whole: torch.export would unroll them over a fixed number of steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from isobit.quant.errors import InputError

NOT_RUN = "this operator stands for a recurrent layer while its model is exported; it is never run"


@torch.library.custom_op("isobit::cell", mutates_args=())
def _cell(x: Tensor, parameters: list[Tensor], kind: str, start: list[Tensor]) -> Tensor:
    raise RuntimeError(NOT_RUN)


@_cell.register_fake
def _(x: Tensor, parameters: list[Tensor], kind: str, start: list[Tensor]) -> Tensor:
    return x.new_empty((*x.shape[:2], parameters[1].shape[1]))


@torch.library.custom_op("isobit::cell_final_state", mutates_args=())
def _final_state(x: Tensor, which: str, layers: int) -> Tensor:
    raise RuntimeError(NOT_RUN)


@_final_state.register_fake
def _(x: Tensor, which: str, layers: int) -> Tensor:
    return x.new_empty((layers, x.shape[0], x.shape[2]))


def _whole_lstm(self: nn.LSTM, x: Tensor, start: object = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    y = _whole(self, x, start)
    return y, (_final_state(y, "hidden", self.num_layers), _final_state(y, "cell", self.num_layers))


def _whole_gru(self: nn.GRU, x: Tensor, start: object = None) -> tuple[Tensor, Tensor]:
    y = _whole(self, x, start)
    return y, _final_state(y, "hidden", self.num_layers)


def _whole(cell: nn.LSTM | nn.GRU, x: Tensor, start: object) -> Tensor:
    kind = "lstm" if isinstance(cell, nn.LSTM) else "gru"
    states = [] if start is None else list(start) if isinstance(start, tuple | list) else [start]
    y: Tensor = _cell(x, [getattr(cell, name) for layer in cell._all_weights for name in layer], kind, states)
    return y


@contextmanager
def whole_cells(module: nn.Module) -> Iterator[None]:
    """While active, nn.LSTM and nn.GRU layers are one operator each.  Refuses recurrent layers that cannot be taken."""
    for name, cell in module.named_modules():
        if not isinstance(cell, nn.RNNBase):
            continue
        where = name or type(cell).__name__
        if not isinstance(cell, nn.LSTM | nn.GRU):
            raise InputError(f"{where}: {type(cell).__name__} is not supported, expected nn.LSTM or nn.GRU")
        if cell.bidirectional or not cell.batch_first or cell.proj_size:
            raise InputError(
                f"{where}: expected {type(cell).__name__} with batch_first=True, one direction and no projection; "
                "a stream has no end from which a second direction could start"
            )
    before = nn.LSTM.forward, nn.GRU.forward
    nn.LSTM.forward, nn.GRU.forward = _whole_lstm, _whole_gru  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.LSTM.forward, nn.GRU.forward = before  # type: ignore[method-assign]
