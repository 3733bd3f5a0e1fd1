"""nn.LSTM and nn.GRU kept whole: torch.export would unroll them over a fixed number of steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from isobit.quant.errors import InputError

NOT_RUN = "this operator stands for a recurrent layer while its model is exported; it is never run"


@torch.library.custom_op("isobit::cell", mutates_args=())
def _cell(x: Tensor, parameters: list[Tensor], kind: str) -> Tensor:
    raise RuntimeError(NOT_RUN)


@_cell.register_fake
def _(x: Tensor, parameters: list[Tensor], kind: str) -> Tensor:
    return x.new_empty((*x.shape[:2], parameters[1].shape[1]))


@torch.library.custom_op("isobit::cell_final_state", mutates_args=())
def _final_state(x: Tensor) -> Tensor:
    raise RuntimeError(NOT_RUN)


@_final_state.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((1, x.shape[0], x.shape[2]))


def _whole_lstm(self: nn.LSTM, x: Tensor, start: object = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    y = _whole(self, x, start)
    return y, (_final_state(y), _final_state(y))


def _whole_gru(self: nn.GRU, x: Tensor, start: object = None) -> tuple[Tensor, Tensor]:
    y = _whole(self, x, start)
    return y, _final_state(y)


def _whole(cell: nn.LSTM | nn.GRU, x: Tensor, start: object) -> Tensor:
    kind = "lstm" if isinstance(cell, nn.LSTM) else "gru"
    if start is not None:
        raise InputError(f"a recurrent layer of torch (nn.{kind.upper()}) with an initial state: expected none, 0")
    return _cell(x, [getattr(cell, name) for layer in cell._all_weights for name in layer], kind)


@contextmanager
def whole_cells(module: nn.Module) -> Iterator[None]:
    """While active, nn.LSTM and nn.GRU layers are one operator each.  Refuses recurrent layers that cannot be taken."""
    for name, cell in module.named_modules():
        if not isinstance(cell, nn.RNNBase):
            continue
        where = name or type(cell).__name__
        if not isinstance(cell, nn.LSTM | nn.GRU):
            raise InputError(f"{where}: {type(cell).__name__} is not supported, expected nn.LSTM or nn.GRU")
        if cell.bidirectional or not cell.batch_first or getattr(cell, "proj_size", 0):
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
