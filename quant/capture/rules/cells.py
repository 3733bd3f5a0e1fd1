"""LSTM and GRU: nn.LSTMCell, nn.GRUCell and nn.RNNCell in the step of a loop, nn.LSTM and nn.GRU whole or in a file.

In a module that is at hand the latter are kept whole by `isobit.quant.capture.whole_layers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from torch import fx

from isobit.quant.capture.constants import uniform
from isobit.quant.capture.final import final_state
from isobit.quant.capture.graph import Floats
from isobit.quant.capture.rules.builder import Builder

if TYPE_CHECKING:
    from isobit.quant.capture.capture import Capture


def _gate(
    b: Builder, x: str, h: str, weights: tuple[Floats, ...], rows: slice, role: str, sign: int = 1
) -> tuple[str, str]:
    """The part of one gate that x makes, and the part that h makes."""
    w_x, w_h, b_x, b_h = (sign * w[rows] for w in weights)
    parts = []
    for v, w, start, of in ((x, w_x, b_x, "x"), (h, w_h, b_h, "h")):
        path = f"{b.c.loc(b.n)}.{role}_{of}"
        bias = (b.parameter(f"{path}.bias", start),) if start.any() else ()
        parts.append(b.linear(v, b.parameter(f"{path}.weight", w), *bias, role=f"{role}_{of}"))
    return parts[0], parts[1]


def _lstm(b: Builder, x: str, weights: tuple[Floats, ...], size: int, tag: str) -> str:
    """Hochreiter and Schmidhuber 1997, with a forget gate: c = f c + i g, h = o tanh(c)."""
    name = b.named(f"h_{tag}")
    before, gates = b.previous(name, (size,)), {}
    for i, gate in enumerate("ifgo"):
        parts = _gate(b, x, before, weights, slice(i * size, (i + 1) * size), f"{gate}_{tag}")
        total = b.add("add", *parts, role=f"{gate}_{tag}_in")
        gates[gate] = b.add("tanh" if gate == "g" else "sigmoid", total, role=f"{gate}_{tag}")
    new = b.add("mul", gates["i"], gates["g"], role=f"ig_{tag}")
    cell_state = b.add("diagonal_recurrence", gates["f"], new, role=f"c_{tag}")
    return b.add("mul", gates["o"], b.add("tanh", cell_state, role=f"tanh_c_{tag}"), name=name)


def _gru(b: Builder, x: str, weights: tuple[Floats, ...], size: int, tag: str) -> str:
    """Cho et al. 2014, with the reset gate on the product, as in torch: h = (1 - z) n + z h; 1 - z is a sigmoid too."""
    name = b.named(f"h_{tag}")
    before = b.previous(name, (size,))
    reset_in = b.add("add", *_gate(b, x, before, weights, slice(0, size), f"r_{tag}"), role=f"r_{tag}_in")
    parts = _gate(b, x, before, weights, slice(size, 2 * size), f"not_z_{tag}", -1)
    update = b.add("sigmoid", b.add("add", *parts, role=f"not_z_{tag}_in"), role=f"not_z_{tag}")
    seen, kept = _gate(b, x, before, weights, slice(2 * size, 3 * size), f"n_{tag}")
    reset = b.add("sigmoid", reset_in, role=f"r_{tag}")
    new = b.add("add", seen, b.add("mul", reset, kept, role=f"rh_{tag}"), role=f"n_{tag}_in")
    return b.add("convex_recurrence", update, b.add("tanh", new, role=f"n_{tag}"), name=name)


def kept_whole(c: Capture, n: fx.Node) -> None:
    """nn.LSTM or nn.GRU, (x, parameters, kind, state), as `isobit.quant.capture.whole_layers` keeps them."""
    tensors, kind, state = n.args[1:4]
    _starts_at_zero(c, n, state)
    assert isinstance(tensors, list | tuple)
    arrays = [c.tensors[t][1].double().numpy() for t in tensors]  # type: ignore[index]
    size = arrays[1].shape[1]
    per_layer = 4 if len(arrays) > 2 and arrays[2].ndim == 1 else 2
    zeros = [np.zeros(len(arrays[0]))] * 2
    layers = [(*arrays[i : i + per_layer], *zeros)[:4] for i in range(0, len(arrays), per_layer)]
    b, x = Builder(c, n), c.value(n, 0)
    for i, layer in enumerate(layers):
        x = (_lstm if kind == "lstm" else _gru)(b, x, layer, size, f"l{i}")
    b.done(x)


def _weights(c: Capture, n: fx.Node, first: int) -> tuple[Floats, ...]:
    """Weights of x and of h, and their biases, from operand `first`."""
    arrays = [c.parameters[c.parameter(n, i)] for i in range(first, first + 4) if c.optional(n, i)]
    return (*arrays, *[np.zeros(len(arrays[0]))] * 2)[:4]


def lstm_cell(c: Capture, n: fx.Node) -> None:
    """c = f c + i g, h = o tanh(c); gates in torch's order i, f, g, o."""
    b, x = Builder(c, n), c.value(n, 0)
    before = n.args[1]
    assert isinstance(before, list | tuple)
    if not all(c.is_value(v) for v in before):
        raise c.error(n, "nn.LSTMCell on a state that is no value of a loop over time is not supported")
    h, cell = (c.values[v] for v in before)  # type: ignore[index]
    weights, gates = _weights(c, n, 2), {}
    size = weights[1].shape[1]
    for i, gate in enumerate("ifgo"):
        total = b.add("add", *_gate(b, x, h, weights, slice(i * size, (i + 1) * size), gate), role=f"{gate}_in")
        gates[gate] = b.add("tanh" if gate == "g" else "sigmoid", total, role=gate)
    kept, new = b.add("mul", gates["f"], cell, role="fc"), b.add("mul", gates["i"], gates["g"], role="ig")
    made = b.add("add", kept, new, role="c")
    out = b.add("mul", gates["o"], b.add("tanh", made, role="tanh_c"), role="h")
    for user in n.users:
        c.values[user] = (out, made)[user.args[1]]  # type: ignore[index]
    del c.values[n]


def gru_cell(c: Capture, n: fx.Node) -> None:
    """h = h + (1 - z) (n - h), with the reset gate on the product, as in torch; 1 - z is a sigmoid too."""
    b, x, h = Builder(c, n), c.value(n, 0), c.value(n, 1)
    weights = _weights(c, n, 2)
    size = weights[1].shape[1]
    reset_in = b.add("add", *_gate(b, x, h, weights, slice(0, size), "r"), role="r_in")
    parts = _gate(b, x, h, weights, slice(size, 2 * size), "not_z", -1)
    update = b.add("sigmoid", b.add("add", *parts, role="not_z_in"), role="not_z")
    seen, kept = _gate(b, x, h, weights, slice(2 * size, 3 * size), "n")
    gated = b.add("mul", b.add("sigmoid", reset_in, role="r"), kept, role="rh")
    new = b.add("tanh", b.add("add", seen, gated, role="n_in"), role="n")
    b.done(b.add("add", h, b.add("mul", update, b.add("sub", new, h, role="n_h"), role="step"), role="h"))


def rnn_tanh_cell(c: Capture, n: fx.Node) -> None:
    _rnn_cell(c, n, "tanh")


def rnn_relu_cell(c: Capture, n: fx.Node) -> None:
    _rnn_cell(c, n, "relu")


def _rnn_cell(c: Capture, n: fx.Node, how: str) -> None:
    """h = tanh(W x + U h + b), or relu."""
    b, x, h = Builder(c, n), c.value(n, 0), c.value(n, 1)
    weights = _weights(c, n, 2)
    parts = _gate(b, x, h, weights, slice(0, len(weights[0])), "h")
    total = b.add("add", *parts, role="h_in")
    b.done(b.add("tanh", total, role="h") if how == "tanh" else b.add("clamp", total, role="h", lo=0.0, hi=np.inf))


def _starts_at_zero(c: Capture, n: fx.Node, states: object) -> None:
    for s in states if isinstance(states, list | tuple) else (states,):
        known = c.known(s)
        if known is None or uniform(known) != 0:
            raise c.error(n, "a recurrent layer of torch with an initial state is not supported, expected zeros")


def whole_lstm(c: Capture, n: fx.Node) -> None:
    _whole(c, n, _lstm)


def whole_gru(c: Capture, n: fx.Node) -> None:
    _whole(c, n, _gru)


def _whole(c: Capture, n: fx.Node, layer: Callable[[Builder, str, tuple[Floats, ...], int, str], str]) -> None:
    """(x, state, parameters, has_biases, layers, dropout, train, bidirectional, batch_first), as torch exports it."""
    x, start, tensors, _, layers, _, _, bidirectional, batch_first = n.args
    assert isinstance(tensors, list | tuple)
    _starts_at_zero(c, n, start)
    if bidirectional:
        raise c.error(n, f"{n.target} in two directions is not supported: a stream has no end to start from")
    assert isinstance(x, fx.Node)
    if bool(batch_first) == c.time_first(x):
        raise c.error(n, f"{n.target} along the batch is not supported: expected time where batch_first says it is")
    arrays = [c.tensors[t][1].double().numpy() for t in tensors]  # type: ignore[index]
    assert isinstance(layers, int)
    each = len(arrays) // layers
    b, y = Builder(c, n), c.value(n, 0)
    for i in range(layers):
        own = arrays[i * each : (i + 1) * each]
        if len(own) not in (2, 4):
            raise c.error(n, f"{n.target} with a projection is not supported")
        y = layer(b, y, (*own, *[np.zeros(len(own[0]))] * 2)[:4], own[1].shape[1], f"l{i}")
    for user in n.users:
        if user.args[1] == 0:
            c.values[user] = y
        else:
            final_state(c, user, y, "hidden" if user.args[1] == 1 else "cell")
