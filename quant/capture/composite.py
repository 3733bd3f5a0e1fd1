"""Operators that are several of the graph's: LSTM, GRU, the delta rules, WKV, xLSTM, attention, spikes.

A node may read another one, which stands behind it, as it was one step before (`previous`, `recall`): so a cell feeds
back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx

from isobit.quant.capture.graph import NEVER, Attribute, Dims, Floats

if TYPE_CHECKING:
    from isobit.quant.capture.capture import Capture


class _Builder:
    """Adds the graph nodes of one exported node, all in its layer."""

    def __init__(self, c: Capture, n: fx.Node) -> None:
        self.c, self.n = c, n

    def value(self, position: int) -> str:
        return self.c.value(self.n, position)

    def dims(self, v: str) -> Dims:
        return self.c.dims[v]

    def named(self, role: str) -> str:
        """A name for a node that comes later."""
        return self.c.unique(f"{self.c.loc(self.n)}.{role}")

    def add(
        self, op: str, *inputs: str, role: str = "", name: str = "", dims: Dims | None = None, **attrs: Attribute
    ) -> str:
        """dims: those to which the values among the operands broadcast, where None."""
        if dims is None:
            dims = np.broadcast_shapes(*(self.c.dims[i] for i in inputs if i in self.c.dims))
        return self.c.add(self.n, op, inputs, role or op, dims, attrs, name)

    def previous(self, name: str, dims: Dims, initial: float = 0.0) -> str:
        return self.add("previous", name, role=f"{name.rpartition('.')[2]}_before", dims=dims, initial=initial)

    def linear(self, x: str, weight: str, *bias: str, role: str, contracted: int = 1) -> str:
        w, x_dims = self.c.parameters[weight], self.dims(x)
        dims = (*x_dims[: len(x_dims) - contracted], *w.shape[: w.ndim - contracted])
        return self.add("linear", x, weight, *bias, role=role, dims=dims, contracted=contracted)

    def parameter(self, name: str, array: np.ndarray) -> str:
        return self.c.enter(name, torch.from_numpy(np.ascontiguousarray(array)))

    def array(self, position: int) -> tuple[str, np.ndarray]:
        """A parameter of the exported node and its name."""
        name = self.c.parameter(self.n, position)
        return name, self.c.parameters[name]

    def negative(self, x: str) -> str:
        return self.add("scale", x, self.parameter("-1.0", np.array(-1.0)), role="neg")

    def reshaped(self, x: str, *dims: int) -> str:
        if self.dims(x) == dims:
            return x
        return self.c.add(self.n, "reshape", (x,), "reshape", dims, {"dims": dims})

    def done(self, name: str) -> None:
        self.c.values[self.n] = name


def cell(c: Capture, n: fx.Node) -> None:
    """nn.LSTM or nn.GRU, as `isobit.quant.capture.cells` keeps them."""
    tensors, kind = n.args[1:3]
    assert isinstance(tensors, list | tuple)
    arrays = [c.tensors[t][1].double().numpy() for t in tensors]  # type: ignore[index]
    size = arrays[1].shape[1]
    per_layer = 4 if len(arrays) > 2 and arrays[2].ndim == 1 else 2
    zeros = [np.zeros(len(arrays[0]))] * 2
    layers = [(*arrays[i : i + per_layer], *zeros)[:4] for i in range(0, len(arrays), per_layer)]
    b, x = _Builder(c, n), c.value(n, 0)
    for i, layer in enumerate(layers):
        x = (_lstm if kind == "lstm" else _gru)(b, x, layer, size, f"l{i}")
    b.done(x)


def _gate(
    b: _Builder, x: str, h: str, weights: tuple[Floats, ...], rows: slice, role: str, sign: int = 1
) -> tuple[str, str]:
    """The part of one gate that x makes, and the part that h makes."""
    w_x, w_h, b_x, b_h = (sign * w[rows] for w in weights)
    parts = []
    for v, w, start, of in ((x, w_x, b_x, "x"), (h, w_h, b_h, "h")):
        path = f"{b.c.loc(b.n)}.{role}_{of}"
        bias = (b.parameter(f"{path}.bias", start),) if start.any() else ()
        parts.append(b.linear(v, b.parameter(f"{path}.weight", w), *bias, role=f"{role}_{of}"))
    return parts[0], parts[1]


def _lstm(b: _Builder, x: str, weights: tuple[Floats, ...], size: int, tag: str) -> str:
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


def _gru(b: _Builder, x: str, weights: tuple[Floats, ...], size: int, tag: str) -> str:
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


def _decay(b: _Builder, position: int) -> tuple[str, ...]:
    """The decay operand of a recurrence: a value, a parameter, or none."""
    operand = b.n.args[position] if position < len(b.n.args) else None
    if operand is None:
        return ()
    return (b.value(position),) if b.c.is_value(operand) else (b.c.parameter(b.n, position),)


def _grouped(b: _Builder, k: str, decay: tuple[str, ...], *per_head: str) -> tuple[tuple[str, ...], list[str]]:
    """The decay and values per head as (G, R, ...), R heads for every one of G groups with common keys."""
    groups, heads = b.dims(k)[0], b.dims(per_head[0])[0]
    if groups == heads:
        return decay, list(per_head)
    shape = groups, heads // groups
    if decay and decay[0] not in b.c.dims:
        array = b.c.parameters[decay[0]]
        decay = (b.parameter(f"{decay[0]}.grouped", array.reshape(*shape, *array.shape[1:])),)
    elif decay:
        decay = (b.reshaped(decay[0], *shape, *b.dims(decay[0])[1:]),)
    return decay, [b.reshaped(x, *shape, *b.dims(x)[1:]) for x in per_head]


def linear_recurrence(c: Capture, n: fx.Node) -> None:
    """With a bonus u, o = S q + (q . (u k)) v, S from before the step (Peng et al. 2024, "Eagle and Finch", eq. 19)."""
    b = _Builder(c, n)
    q, k, v = (b.value(i) for i in range(3))
    decay = _decay(b, 3)
    if not c.optional(n, 4):
        decay, (grouped,) = _grouped(b, k, decay, v)
        made = b.add("linear_recurrence", q, k, grouped, *decay, role="out", dims=b.dims(grouped))
        b.done(b.reshaped(made, *b.dims(v)))
        return
    now = b.add(
        "einsum",
        q,
        b.add("scale", k, c.parameter(n, 4), role="bonus"),
        role="now",
        dims=b.dims(q)[:1],
        index="hk,hk->h",
    )
    past = b.add("linear_recurrence", q, k, v, *decay, role="past", dims=b.dims(v), reads_old=1)
    b.done(
        b.add(
            "add",
            past,
            b.add("mul", v, b.reshaped(now, len(c.parameters[c.parameter(n, 4)]), 1), role="now_v"),
            role="out",
        )
    )


def delta_recurrence(c: Capture, n: fx.Node) -> None:
    """S = a S; S = S + beta k (v - S k)^T, o = S q (Yang et al. 2024, "Gated Delta Networks", eq. 10)."""
    b = _Builder(c, n)
    q, k, v, beta = (b.value(i) for i in range(4))
    decay = _decay(b, 4)
    name, whole = b.named("out"), b.dims(v)
    per_key = bool(decay) and decay[0] in c.dims and len(b.dims(decay[0])) == 2
    if per_key and b.dims(k)[0] != whole[0]:
        raise c.error(n, "a decay per key with fewer keys than heads is not supported: repeat the keys")
    decay, (v, beta) = _grouped(b, k, decay, v, beta)
    dims, per_head = b.dims(v), (*b.dims(v)[:-1], 1)
    asked = b.add("mul", k, decay[0], role="decayed_k") if per_key else k
    held = b.add("recall", asked, name, role="recalled", dims=dims)
    if decay and decay[0] in c.dims and not per_key:
        held = b.add("mul", held, b.reshaped(decay[0], *per_head), role="decayed")
    elif decay and not per_key:
        factor = b.parameter(f"{decay[0]}.per_head", c.parameters[decay[0]].reshape(per_head))
        held = b.add("scale", held, factor, role="decayed")
    error = b.add("sub", v, held, role="error")
    u = b.add("mul", error, b.reshaped(beta, *per_head), role="u")
    b.add("linear_recurrence", q, k, u, *decay, name=name, dims=dims)
    b.done(b.reshaped(name, *whole))


def generalized_delta_recurrence(c: Capture, n: fx.Node) -> None:
    """S = S diag(w) + (S a) b^T + v k^T, o = S r (Peng et al. 2025, "RWKV-7", eq. 17 and 18)."""
    b = _Builder(c, n)
    r, decay, k, v, a, other = (b.value(i) for i in range(6))
    name = b.named("out")
    removed = b.add("recall", a, name, role="removed", dims=b.dims(v))
    b.done(b.add("delta_update", r, k, v, other, removed, decay, name=name, dims=b.dims(v)))


def complex_recurrence(c: Capture, n: fx.Node) -> None:
    """h = a h + u, y = 2 Re(c h), of complex h (Gu et al. 2022, S4D, eq. 3), as real and imaginary parts."""
    b, u = _Builder(c, n), c.value(n, 0)
    (name_re, a_re), (name_im, a_im), (c_name, c_re), (d_name, c_im) = (b.array(i) for i in range(1, 5))
    dims = a_re.shape
    re, im = b.named("re"), b.named("im")
    re_before, im_before = b.previous(re, dims), b.previous(im, dims)
    minus = b.parameter(f"-{name_im}", -a_im)
    b.add("rotate", re_before, im_before, b.reshaped(u, dims[0], 1), name_re, minus, name=re, dims=dims)
    b.add("rotate", im_before, re_before, name_re, name_im, name=im, dims=dims)
    parts = []
    for part, name, array in ((re, f"2*{c_name}", 2 * c_re), (im, f"-2*{d_name}", -2 * c_im)):
        weight = b.parameter(name, array[:, None])
        made = b.add("grouped_linear", part, weight, role=f"of_{part.rpartition('.')[2]}", dims=(dims[0], 1))
        parts.append(b.reshaped(made, dims[0]))
    b.done(b.add("add", *parts, role="out"))


def dense_recurrence(c: Capture, n: fx.Node) -> None:
    """m = A m + x (Voelker et al. 2019, "Legendre Memory Units", eq. 4)."""
    b, x = _Builder(c, n), c.value(n, 0)
    name = b.named("memory")
    moved = b.linear(b.previous(name, b.dims(x)), c.parameter(n, 1), role="moved")
    b.done(b.add("add", moved, x, name=name))


def wkv4(c: Capture, n: fx.Node) -> None:
    """RWKV-4's WKV with the running maximum of its exponents (Peng et al. 2023, "RWKV", appendix D)."""
    b = _Builder(c, n)
    k, v = b.value(0), b.value(1)
    decay, rate = b.array(2)
    top, num, den = b.named("m"), b.named("numerator"), b.named("denominator")
    dims = b.dims(k)
    m_before = b.previous(top, dims, NEVER)
    num_before, den_before = b.previous(num, dims), b.previous(den, dims)
    now_k = b.add("offset", k, c.parameter(n, 3), role="bonus_k")
    seen = b.add("maximum", m_before, now_k, role="top")
    past = b.add("exp", b.add("sub", m_before, seen, role="past_in"), role="past")
    now = b.add("exp", b.add("sub", now_k, seen, role="now_in"), role="now")
    above = b.add(
        "add", b.add("mul", past, num_before, role="past_v"), b.add("mul", now, v, role="now_v"), role="above"
    )
    below = b.add("add", b.add("mul", past, den_before, role="past_1"), now, role="below")
    out = b.add("div", above, below, role="out")
    faded = b.add("offset", m_before, b.parameter(f"-{decay}", -rate), role="faded")
    b.add("maximum", faded, k, name=top)
    kept = b.add("exp", b.add("sub", faded, top, role="kept_in"), role="kept")
    new = b.add("exp", b.add("sub", k, top, role="new_in"), role="new")
    b.add("diagonal_recurrence", kept, b.add("mul", new, v, role="new_v"), name=num)
    b.add("diagonal_recurrence", kept, new, name=den)
    b.done(out)


def slstm(c: Capture, n: fx.Node) -> None:
    """xLSTM's cell with scalar memory (Beck et al. 2024, eq. 8 to 18)."""
    b = _Builder(c, n)
    recurrent, weights = b.array(4)
    dims = b.dims(b.value(0))
    h, m = b.named("h"), b.named("m")
    h_before, m_before = b.previous(h, dims), b.previous(m, dims, NEVER)
    pre = {}
    for i, gate in enumerate("ifzo"):
        weight = b.parameter(f"{recurrent}[{i}]", weights[i])
        fed = b.add("grouped_linear", h_before, weight, role=f"{gate}_h", dims=dims)
        pre[gate] = b.add("add", b.value(i), fed, role=f"{gate}_in")
    faded = b.add("add", b.add("log_sigmoid", pre["f"], role="log_f"), m_before, role="faded")
    b.add("maximum", faded, pre["i"], name=m)
    past = b.add("exp", b.add("sub", faded, m, role="past_in"), role="past")
    now = b.add("exp", b.add("sub", pre["i"], m, role="now_in"), role="now")
    z = b.add("mul", now, b.add("tanh", pre["z"], role="z"), role="now_z")
    cell = b.add("diagonal_recurrence", past, z, role="c")
    norm = b.add("diagonal_recurrence", past, now, role="n")
    ratio = b.add("div", cell, norm, role="ratio")
    b.done(b.add("mul", b.add("sigmoid", pre["o"], role="o"), ratio, name=h))


def mlstm(c: Capture, n: fx.Node) -> None:
    """xLSTM's cell with matrix memory (Beck et al. 2024, eq. 19 to 27)."""
    b = _Builder(c, n)
    q, k, v, i, f = (b.value(j) for j in range(5))
    heads = b.dims(i)
    m = b.named("m")
    faded = b.add("add", b.add("log_sigmoid", f, role="log_f"), b.previous(m, heads, NEVER), role="faded")
    b.add("maximum", faded, i, name=m)
    past = b.add("exp", b.add("sub", faded, m, role="past_in"), role="past")
    now = b.add("exp", b.add("sub", i, m, role="now_in"), role="now")
    gated = b.add("mul", k, b.reshaped(now, *heads, 1), role="gated_k")
    read = b.add("linear_recurrence", q, gated, v, past, role="read", dims=b.dims(v))
    norm = b.add("diagonal_recurrence", b.reshaped(past, *heads, 1), gated, role="n")
    size = b.add("abs", b.add("einsum", norm, q, role="nq", dims=heads, index="hk,hk->h"), role="abs")
    floor = b.add("exp", b.negative(m), role="floor")
    divisor = b.add("maximum", size, floor, role="divisor")
    b.done(b.add("div", read, b.reshaped(divisor, *heads, 1), role="out"))


def running_logsumexp(c: Capture, n: fx.Node) -> None:
    """L = x + softplus(L - x), the logarithm of a running sum of exponentials."""
    b, x = _Builder(c, n), c.value(n, 0)
    name = b.named("logsumexp")
    ahead = b.add("sub", b.previous(name, b.dims(x), NEVER), x, role="ahead")
    b.done(b.add("add", x, b.add("softplus", ahead, role="gain"), name=name))


def causal_attention(c: Capture, n: fx.Node) -> None:
    """Softmax attention on a ring of the last keys and values (Vaswani et al. 2017, eq. 1)."""
    b = _Builder(c, n)
    q, k, v = (b.value(i) for i in range(3))
    window, factor = n.args[3], n.args[4]
    assert isinstance(window, int)
    assert isinstance(factor, int | float)
    (heads, size), (groups, width) = b.dims(q), b.dims(v)
    scaled = b.add("scale", q, b.parameter(str(factor), np.array(float(factor))), role="scaled_q")
    grouped = b.reshaped(scaled, groups, heads // groups, size)
    if window > 1:
        k = b.add("history", k, role="keys", dims=(window, groups, size), length=window)
        v = b.add("history", v, role="values", dims=(window, groups, width), length=window)
    else:
        k, v = b.reshaped(k, 1, groups, size), b.reshaped(v, 1, groups, width)
    dims = (groups, heads // groups, window)
    scores = b.add("einsum", grouped, k, role="scores", dims=dims, index="grd,wgd->grw")
    weights = b.add("softmax", scores, role="weights", masked=1)
    mixed = b.add("einsum", weights, v, role="mixed", dims=(*dims[:2], width), index="grw,wgv->grv")
    b.done(b.reshaped(mixed, heads, width))


def rotary(c: Capture, n: fx.Node) -> None:
    """Pairs (i, i + D/2) turned by the step's number times theta_i (Su et al. 2021, RoPE)."""
    b, x = _Builder(c, n), c.value(n, 0)
    theta, angles = b.array(1)
    heads, size = b.dims(x)
    half = size // 2
    first, second = (
        b.add("slice", x, role=role, dims=(heads, half), axis=1, start=start, step=1, size=half)
        for role, start in (("first", 0), ("second", half))
    )
    turn = [b.add("rotation", x, theta, role=how, dims=angles.shape, how=how) for how in ("cos", "sin")]
    cos, sin = (b.reshaped(f, 1, half) for f in turn)

    def turned(op: str, u: str, w: str, role: str) -> str:
        return b.add(op, b.add("mul", u, cos, role=f"{role}_cos"), b.add("mul", w, sin, role=f"{role}_sin"), role=role)

    parts = turned("sub", first, second, "turned_first"), turned("add", second, first, "turned_second")
    b.done(b.add("concat", *parts, role="out", dims=(heads, size), axis=1))


def top_k_mask(c: Capture, n: fx.Node) -> None:
    k = n.args[1]
    assert isinstance(k, int)
    c.emit(n, "top_k", (c.value(n, 0),), k=k)


def lif(c: Capture, n: fx.Node) -> None:
    """Leaky integrate-and-fire neurons (Zhu et al. 2023, SpikeGPT, eq. 1 to 3)."""
    b, x = _Builder(c, n), c.value(n, 0)
    leak, threshold = (float(a) for a in n.args[1:3])  # type: ignore[arg-type]
    name = b.named("potential")
    before = b.previous(name, b.dims(x))
    kept = b.add("scale", before, b.parameter(f"1-{leak}", np.array(1 - leak)), role="kept")
    charged = b.add(
        "add", kept, b.add("scale", x, b.parameter(str(leak), np.array(leak)), role="charge"), role="charged"
    )
    spikes = b.add("heaviside", charged, role="spikes", threshold=threshold, at_least=1, negated=0)
    silent = b.add("heaviside", charged, role="silent", threshold=threshold, at_least=1, negated=1)
    b.add("mul", charged, silent, name=name)
    b.done(spikes)


def ttt_linear(c: Capture, n: fx.Node) -> None:
    """A linear model that learns at every step from k to v, then reads q (Sun et al. 2024, TTT-Linear, eq. 4 and 9)."""
    b = _Builder(c, n)
    q, k, v, eta = (b.value(i) for i in range(4))
    weight, bias, start = (c.parameter(n, i) for i in (4, 5, 6))
    heads, _ = b.dims(q)
    name = b.named("learned_read")

    def mean(x: str, role: str) -> str:
        return b.add("reduce", x, role=role, dims=(heads, 1), how="mean", axes=(1,), keep=1)

    def read(x: str, learned: str, role: str) -> str:
        """W x, of the W that the sequence starts from and of what it has learned since."""
        return b.add("add", b.add("grouped_linear", x, start, role=f"{role}_start"), learned, role=role)

    made = read(k, b.add("recall", k, name, role="recalled", dims=b.dims(q)), "made")
    centred = b.add("sub", made, mean(made, "mean"), role="centred")
    inverse = b.add("inverse_rms", centred, role="inverse", dims=(heads, 1), eps=1e-6, over=1)
    z = b.add("rms_norm", centred, role="z", eps=1e-6, over=1)
    guess = b.add(
        "add", k, b.add("offset", b.add("scale", z, weight, role="z_weight"), bias, role="z_bias"), role="guess"
    )
    slope = b.add("scale", b.add("sub", guess, v, role="error"), weight, role="slope")
    flat = b.add("sub", slope, mean(slope, "slope_mean"), role="flat")
    along = b.add("mul", z, mean(b.add("mul", slope, z, role="slope_z"), "slope_z_mean"), role="along")
    rate = b.add("mul", b.reshaped(eta, heads, 1), inverse, role="rate")
    step = b.add("mul", b.add("sub", along, flat, role="descent"), rate, role="step")
    b.add("linear_recurrence", q, k, step, name=name, dims=b.dims(q))
    normal = b.add("layer_norm", read(q, name, "read"), weight, bias, role="normal", eps=1e-6, over=1)
    b.done(b.add("add", q, normal, role="out"))


def convolution_along_positions(c: Capture, n: fx.Node, x: str, weight: str, bias: str) -> None:
    """A causal depthwise convolution along the first axis of an image model's positions, zeros before them."""
    b = _Builder(c, n)
    kernel, (length, channels) = c.parameters[weight].shape[1], b.dims(x)
    padded = b.add("pad", x, role="padded", dims=(length + kernel - 1, channels), axis=0, before=kernel - 1, after=0)
    b.done(b.add("positions_conv1d", padded, weight, bias, role="out", dims=(length, channels)))
