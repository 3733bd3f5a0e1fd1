"""Loops over time in a user's own module: as torch's scan, as a Python loop, as a cell; and causal convolutions.

Every module is captured from shapes alone, then compared with torch at other numbers of steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.nn import functional

from isobit.quant.capture.capture import capture, disagreement, random_inputs
from isobit.quant.capture.graph import Graph
from isobit.quant.errors import InputError
from isobit.quant.quantize import layer_snr, quantize
from isobit.quant.vectors import golden
from isobit.targets.verify import EXACT, verify

C = 4
Forward = Callable[["Model", Tensor], Any]
STEPS = (1, 18)


class Model(nn.Module):
    """f(self, x) with a few layers at hand."""

    def __init__(self, f: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f = f
        self.u, self.v, self.w, self.g = (nn.Linear(C, C) for _ in range(4))
        self.both, self.head = nn.Linear(2 * C, C), nn.Linear(C, 3)
        self.a = nn.Parameter(torch.rand(C))
        self.lstm_cell, self.gru_cell, self.rnn_cell = nn.LSTMCell(C, C), nn.GRUCell(C, C), nn.RNNCell(C, C)
        self.lstm, self.gru = nn.LSTM(C, C, batch_first=True), nn.GRU(C, C, 2, batch_first=True)
        self.depthwise, self.full = nn.Conv1d(C, C, 3, groups=C, padding=2), nn.Conv1d(C, C, 3, dilation=2)

    def forward(self, x: Tensor) -> Any:
        return self.f(self, x)


def zeros(x: Tensor, *dims: int) -> Tensor:
    return x.new_zeros(x.shape[0], *(dims or (C,)))


# torch's scan.


def scan_decay(m: Model, x: Tensor) -> Any:
    def step(h: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.sigmoid(m.a) * h + x_t
        return h, torch.tanh(h)

    return scan(step, zeros(x), m.u(x), dim=1)[1]


def scan_rnn(m: Model, x: Tensor) -> Any:
    def step(h: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(m.u(h) + m.v(x_t))
        return h, h.clone()

    return scan(step, zeros(x), x.transpose(0, 1), dim=0)[1].transpose(0, 1)


def scan_matrix(m: Model, x: Tensor) -> Any:
    def step(state: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        q, k, v, decay = now
        state = decay.unsqueeze(-1) * state + k.unsqueeze(-1) * v.unsqueeze(-2)
        return state, torch.einsum("bkv,bk->bv", state, q)

    parts = m.u(x), m.v(x), m.w(x), torch.sigmoid(m.g(x) + 2)
    return scan(step, zeros(x, C, C), parts, dim=1)[1]


def scan_heads(m: Model, x: Tensor) -> Any:
    """Two heads, the state as (V, K), a decay per head that is a parameter, read by matmul."""

    def step(state: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        q, k, v = now
        outer = torch.einsum("bhv,bhk->bhvk", v, k)
        state = state * torch.sigmoid(m.a[:2])[:, None, None] + outer
        return state, (state * q.unsqueeze(-2)).sum(-1)

    heads = [p.unflatten(-1, (2, 2)) for p in (m.u(x), m.v(x), m.w(x))]
    return scan(step, zeros(x, 2, 2, 2), heads, dim=1)[1].flatten(2)


def scan_delays(m: Model, x: Tensor) -> Any:
    """A delay of two steps, and the largest value so far, from -3."""

    def step(carry: tuple[Tensor, ...], x_t: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        one, two, most = carry
        most = torch.maximum(most, x_t)
        return (x_t * 1.0, one * 1.0, most), one + 2 * two + most

    start = zeros(x), zeros(x), torch.full_like(x[:, 0], -3.0)
    return scan(step, start, x, dim=1)[1]


def scan_final_state(m: Model, x: Tensor) -> Any:
    h, _ = scan(lambda h, x_t: (0.5 * h + x_t, x_t * 1.0), zeros(x), m.u(x), dim=1)
    return m.head(h)


def scan_lstm_cell(m: Model, x: Tensor) -> Any:
    def step(state: tuple[Tensor, Tensor], x_t: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        h, c = m.lstm_cell(x_t, state)
        return (h, c), h * 1.0

    return scan(step, (zeros(x), zeros(x)), x, dim=1)[1]


# Loops of Python.


def loop_unbind(m: Model, x: Tensor) -> Any:
    h, ys = zeros(x), []
    for x_t in x.unbind(1):
        h = torch.tanh(m.u(h) + x_t)
        ys.append(h)
    return torch.stack(ys, 1)


def loop_in_place(m: Model, x: Tensor) -> Any:
    h, y = zeros(x), torch.zeros_like(x)
    for t in range(x.size(1)):
        h = torch.tanh(m.u(h) + x[:, t, :])
        y[:, t] = h
    return y


def loop_slices(m: Model, x: Tensor) -> Any:
    h, ys = zeros(x, 1, C), []
    for t in range(x.size(1)):
        h = 0.5 * h + x[:, t : t + 1]
        ys.append(h)
    return torch.cat(ys, 1)


def loop_special_start(m: Model, x: Tensor) -> Any:
    rows = [x[:, 0]]
    for t in range(1, x.shape[1]):
        rows.append(rows[-1] * m.a + x[:, t])
    return torch.stack(rows, 1)


def loop_no_start(m: Model, x: Tensor) -> Any:
    h, ys = None, []
    for t in range(x.shape[1]):
        h = m.gru_cell(x[:, t], h)
        ys.append(h)
    return torch.stack(ys, 1)


def loop_two_results(m: Model, x: Tensor) -> Any:
    """Time first, a convex gate, a second state that follows the first, two lists."""
    x = m.u(x)
    h, z, first, second = zeros(x), zeros(x), [], []
    xs = x.transpose(0, 1)
    for t in range(xs.shape[0]):
        gate = torch.sigmoid(m.v(xs[t]) + h)
        h = h + gate * (xs[t] - h)
        first.append(h)
        z = 0.9 * z + h
        second.append(torch.tanh(z))
    return torch.stack(first).transpose(0, 1) * torch.stack(second, 1)


def loop_twice(m: Model, x: Tensor) -> Any:
    return loop_special_start(m, loop_unbind(m, x))


def loop_shift(m: Model, x: Tensor) -> Any:
    return torch.stack([m.u(x[:, t]) - (x[:, t - 1] if t else 0) for t in range(x.shape[1])], 1)


def loop_blend(m: Model, x: Tensor) -> Any:
    h, ys = zeros(x), []
    for t in range(x.shape[1]):
        z = torch.sigmoid(m.g(x[:, t]))
        h = (1 - z) * h + z * m.u(x[:, t])
        ys.append(h)
    return torch.stack(ys, 1)


def loop_last(m: Model, x: Tensor) -> Any:
    h = zeros(x)
    for t in range(x.shape[1]):
        h = torch.tanh(m.both(torch.cat([x[:, t], h], -1)))
    return m.head(h)


def loop_lstm_cell(m: Model, x: Tensor) -> Any:
    state, ys = None, []
    for t in range(x.shape[1]):
        state = m.lstm_cell(x[:, t], state)
        ys.append(state[0])
    return torch.stack(ys, 1)


def loop_rnn_cell(m: Model, x: Tensor) -> Any:
    h, ys = zeros(x), []
    for t in range(x.shape[1]):
        h = m.rnn_cell(x[:, t], h)
        ys.append(h)
    return torch.stack(ys, 1)


def loop_negative_decay(m: Model, x: Tensor) -> Any:
    """A decay between -1 and 1 is no decay of a diagonal recurrence."""
    h, ys = zeros(x), []
    for t in range(x.shape[1]):
        h = torch.tanh(m.g(x[:, t])) * h + x[:, t]
        ys.append(h)
    return torch.stack(ys, 1)


def selective_scan(m: Model, x: Tensor) -> Any:
    """As the reference of mamba_ssm, with (B, D, L) and einsums of three operands."""
    dt = functional.softplus(m.u(x)).transpose(1, 2)
    a = -torch.exp(m.a[:, None] + m.a[None, :3])
    b, c = m.v(x)[..., :3].transpose(1, 2), m.w(x)[..., 1:].transpose(1, 2)
    decay = torch.exp(torch.einsum("bdl,dn->bdln", dt, a))
    drive = torch.einsum("bdl,bnl,bdl->bdln", dt, b, x.transpose(1, 2))
    h, ys = a.new_zeros((x.shape[0], C, 3)), []
    for i in range(x.shape[1]):
        h = decay[:, :, i] * h + drive[:, :, i]
        ys.append(torch.einsum("bdn,bn->bd", h, c[:, :, i]))
    return torch.stack(ys, dim=2).transpose(1, 2)


# Layers of torch, and the last step.


def lstm_with_zeros(m: Model, x: Tensor) -> Any:
    h = x.new_zeros(1, x.shape[0], C)
    return m.lstm(x, (h, h))[0][:, -1]


def gru_final_state(m: Model, x: Tensor) -> Any:
    return m.head(m.gru(x)[1][-1])


def mean_over_time(m: Model, x: Tensor) -> Any:
    return m.head(torch.relu(m.u(x)).mean(dim=1)) - m.head(x[:, -1])


def conv_cut(m: Model, x: Tensor) -> Any:
    u = m.u(x)
    return functional.silu(m.depthwise(u.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2) * u


def conv_padded(m: Model, x: Tensor) -> Any:
    return torch.relu(m.full(functional.pad(x.permute(0, 2, 1), (4, 0)))).mean(-1)


def sizes_and_in_place(m: Model, x: Tensor) -> Any:
    batch, steps, _ = x.shape
    y = m.u(x)
    y += x
    return y.view(batch, steps, 2, 2).transpose(2, 3).reshape(batch, steps, -1).relu_()


MODELS: dict[Forward, tuple[set[str], set[str]]] = {
    scan_decay: ({"diagonal_recurrence"}, {"previous", "add"}),
    scan_rnn: ({"previous", "linear"}, {"shift"}),
    scan_matrix: ({"linear_recurrence"}, {"previous", "add", "einsum"}),
    scan_heads: ({"linear_recurrence"}, {"previous", "add", "reduce"}),
    scan_delays: ({"shift", "maximum"}, {"diagonal_recurrence"}),
    scan_final_state: ({"diagonal_recurrence"}, {"previous"}),
    scan_lstm_cell: ({"diagonal_recurrence", "previous"}, {"concat"}),
    loop_unbind: ({"previous", "tanh"}, {"slice"}),
    loop_in_place: ({"previous", "tanh"}, {"slice"}),
    loop_slices: ({"diagonal_recurrence"}, {"slice", "previous"}),
    loop_special_start: ({"diagonal_recurrence"}, {"previous"}),
    loop_no_start: ({"convex_recurrence"}, {"slice"}),
    loop_two_results: ({"convex_recurrence", "diagonal_recurrence"}, {"slice"}),
    loop_twice: ({"previous", "diagonal_recurrence"}, {"slice"}),
    loop_shift: ({"shift"}, {"previous"}),
    loop_blend: ({"convex_recurrence"}, {"previous", "offset"}),
    loop_last: ({"previous", "concat"}, {"slice"}),
    loop_lstm_cell: ({"diagonal_recurrence", "previous"}, {"slice"}),
    loop_rnn_cell: ({"previous", "tanh"}, {"slice"}),
    loop_negative_decay: ({"previous", "mul"}, {"diagonal_recurrence"}),
    selective_scan: ({"diagonal_recurrence", "einsum"}, {"previous", "slice"}),
    lstm_with_zeros: ({"diagonal_recurrence", "previous"}, set()),
    gru_final_state: ({"convex_recurrence", "previous"}, set()),
    mean_over_time: ({"running_mean"}, {"reduce"}),
    conv_cut: ({"causal_conv1d"}, {"permute", "pad"}),
    conv_padded: ({"causal_fir", "running_mean"}, {"permute", "pad"}),
    sizes_and_in_place: ({"linear", "permute"}, set()),
}
"""Operators that the graph has, and such that it does not have."""

LAST = {scan_final_state, loop_last, lstm_with_zeros, gru_final_state, mean_over_time, conv_padded}
"""Those that return the last step only."""


def graph_of(f: Forward) -> tuple[Graph, Model]:
    module = Model(f).eval()
    return capture(module, (1, 6, C), "model"), module


@pytest.mark.parametrize("f", MODELS, ids=lambda f: f.__name__)
def test_the_graph_is_the_module(f: Forward) -> None:
    graph, module = graph_of(f)
    present, absent = MODELS[f]
    used = {n.op for n in graph.nodes}
    assert present <= used, used
    assert not absent & used, used
    assert graph.last is (f in LAST)
    for steps in STEPS:
        assert disagreement(graph, module, random_inputs(graph, (3, steps))) < 1e-6


@pytest.mark.needs("gcc")
def test_integers_of_loops_are_the_same_in_c() -> None:
    for f, least in ((scan_heads, 30.0), (loop_two_results, 25.0), (selective_scan, 15.0), (loop_lstm_cell, 25.0)):
        x = np.random.default_rng(1).normal(size=(8, 64, C))
        made = quantize(Model(f), x, name=f.__name__)
        ratio = layer_snr(made.program, made.graph, x)["y"]
        print(f"{f.__name__}: {ratio:.1f} dB")
        assert ratio > least
        assert [row.status for row in verify(made.program, ["c"], list(golden(made.program))).rows] == [EXACT]


def backwards(m: Model, x: Tensor) -> Any:
    h, ys = zeros(x), []
    for t in reversed(range(x.shape[1])):
        h = 0.5 * h + x[:, t]
        ys.append(h)
    return torch.stack(ys, 1)


def weight_per_step(m: Model, x: Tensor) -> Any:
    table = m.both.weight.repeat(40, 1)
    h, ys = zeros(x), []
    for t in range(x.shape[1]):
        h = 0.5 * h + x[:, t] * table[t, :C]
        ys.append(h)
    return torch.stack(ys, 1)


def two_steps_back(m: Model, x: Tensor) -> Any:
    rows = [x[:, 0], x[:, 1]]
    for t in range(2, x.shape[1]):
        rows.append(rows[-2] * 0.5 + x[:, t])
    return torch.stack(rows, 1)


def other_first_step(m: Model, x: Tensor) -> Any:
    rows = [3 * x[:, 0]]
    for t in range(1, x.shape[1]):
        rows.append(rows[-1] * 0.5 + x[:, t])
    return torch.stack(rows, 1)


def learned_start(m: Model, x: Tensor) -> Any:
    h, ys = m.a.expand(x.shape[0], C), []
    for t in range(x.shape[1]):
        h = 0.5 * h + x[:, t]
        ys.append(h)
    return torch.stack(ys, 1)


def scan_of_everything(m: Model, x: Tensor) -> Any:
    return scan(lambda h, x_t: (h + x_t, h + x.mean((1, 2))[:, None]), zeros(x), x, dim=1)[1]


def conv_ahead(m: Model, x: Tensor) -> Any:
    return functional.pad(m.full(functional.pad(x.transpose(1, 2), (2, 2))), (0, 0)).transpose(1, 2)


def conv_uncut(m: Model, x: Tensor) -> Any:
    return m.depthwise(x.transpose(1, 2)).transpose(1, 2)


def last_and_all(m: Model, x: Tensor) -> Any:
    return x + m.u(x[:, -1])[:, None]


def other_when_short(m: Model, x: Tensor) -> Any:
    return m.u(x) if x.shape[1] > 4 else m.v(x)


def first_step(m: Model, x: Tensor) -> Any:
    return m.u(x[:, 0])


STEP = r".*from torch\._higher_order_ops\.scan import scan.*DiagonalRecurrence"

REFUSED: dict[Forward, str] = {
    backwards: rf"loops over time.*not the same as step .*test_loops\.py:\d+: .*{STEP}",
    weight_per_step: rf"loops over time.*step 1 is not the same as step \d+.*test_loops\.py:\d+.*{STEP}",
    two_steps_back: rf"further back than the step before it.*test_loops\.py:\d+.*{STEP}",
    other_first_step: rf"not what it seems when it is rolled up: .*differs from the module on random inputs .*{STEP}",
    other_when_short: "is another for every number of steps.*random inputs of 2 steps",
    learned_start: "starts from a value that depends on the input, or differs between elements; expected zeros",
    scan_of_everything: "the step of a scan reads x, which has all time steps: hand it over among xs",
    conv_ahead: r"conv1d with 2 zeros before .* reaches back 4 is not causal: use functional\.pad\(x, \(4, 0\)\)",
    conv_uncut: r"steps that are no time steps, before or after them, is not supported",
    last_and_all: "is not supported",
    first_step: r"aten\.select\.int along batch or time is not supported",
}


@pytest.mark.parametrize("f", REFUSED, ids=lambda f: f.__name__)
def test_what_cannot_be_rolled_up_is_refused(f: Forward) -> None:
    with pytest.raises(InputError) as e:
        graph_of(f)
    assert re.search(REFUSED[f], str(e.value), re.DOTALL), str(e.value)
