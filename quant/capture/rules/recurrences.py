"""Recurrences, convolutions along time and cells that feed back, written with the operators of isobit.quant.nn.

A node may read another one, which stands behind it, as it was one step before (`previous`, `recall`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx

from isobit.quant.capture.graph import NEVER
from isobit.quant.capture.rules.builder import Builder, Rule

if TYPE_CHECKING:
    from isobit.quant.capture.capture import Capture


def custom(op: str, operands: int, parameters: tuple[int, ...] = ()) -> Rule:
    """An operator of isobit.quant.nn that is one of the graph: values first, then parameters."""

    def rule(c: Capture, n: fx.Node) -> None:
        values = [c.value(n, i) for i in range(operands) if i not in parameters]
        c.emit(n, op, (*values, *(c.parameter(n, i) for i in parameters)))

    return rule


def causal_conv1d(c: Capture, n: fx.Node) -> None:
    x, weight, bias = c.value(n, 0), c.parameter(n, 1), c.parameter(n, 2)
    kernel = c.parameters[weight].shape[1]
    if kernel < 2:
        raise c.error(n, "a causal convolution with a kernel of 1 keeps no history, expected a kernel of at least 2")
    if c.timed:
        c.emit(n, "causal_conv1d", (x, weight, bias))
        return
    convolution_along_positions(c, n, x, weight, bias)


def causal_fir(c: Capture, n: fx.Node) -> None:
    x, weight, bias = c.value(n, 0), c.parameter(n, 1), c.parameter(n, 2)
    if c.parameters[weight].shape[2] < 2:
        matrix = c.enter(f"{weight}[:, :, 0]", torch.from_numpy(c.parameters[weight][:, :, 0].copy()))
        c.emit(n, "linear", (x, matrix, bias), contracted=1)
        return
    c.emit(n, "causal_fir", (x, weight, bias))


def selective_recurrence(c: Capture, n: fx.Node) -> None:
    u, dt, b, k = (c.value(n, i) for i in (0, 1, 3, 4))
    c.emit(n, "selective_recurrence", (u, dt, b, k, c.parameter(n, 2)), inner=int(not c.timed))


def diagonal_recurrence(c: Capture, n: fx.Node) -> None:
    decay, x = n.args[0], c.value(n, 1)
    if isinstance(decay, fx.Node) and decay in c.shaped:
        raise c.error(n, f"the decay is a parameter for every step, expected one of shape {c.dims[x]} for all of them")
    c.emit(n, "diagonal_recurrence", (c.value(n, 0) if c.is_value(decay) else c.parameter(n, 0), x))


def convolution_along_positions(c: Capture, n: fx.Node, x: str, weight: str, bias: str) -> None:
    """A causal depthwise convolution along the first axis of an image model's positions, zeros before them."""
    b = Builder(c, n)
    kernel, (length, channels) = c.parameters[weight].shape[1], b.dims(x)
    padded = b.add("pad", x, role="padded", dims=(length + kernel - 1, channels), axis=0, before=kernel - 1, after=0)
    b.done(b.add("positions_conv1d", padded, weight, bias, role="out", dims=(length, channels)))


def _decay(b: Builder, position: int) -> tuple[str, ...]:
    """The decay operand of a recurrence: a value, a parameter, or none."""
    operand = b.n.args[position] if position < len(b.n.args) else None
    if operand is None:
        return ()
    return (b.value(position),) if b.c.is_value(operand) else (b.c.parameter(b.n, position),)


def _grouped(b: Builder, k: str, decay: tuple[str, ...], *per_head: str) -> tuple[tuple[str, ...], list[str]]:
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
    b = Builder(c, n)
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
    b = Builder(c, n)
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
    b = Builder(c, n)
    r, decay, k, v, a, other = (b.value(i) for i in range(6))
    name = b.named("out")
    removed = b.add("recall", a, name, role="removed", dims=b.dims(v))
    b.done(b.add("delta_update", r, k, v, other, removed, decay, name=name, dims=b.dims(v)))


def complex_recurrence(c: Capture, n: fx.Node) -> None:
    """h = a h + u, y = 2 Re(c h), of complex h (Gu et al. 2022, S4D, eq. 3), as real and imaginary parts."""
    b, u = Builder(c, n), c.value(n, 0)
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
    b, x = Builder(c, n), c.value(n, 0)
    name = b.named("memory")
    moved = b.linear(b.previous(name, b.dims(x)), c.parameter(n, 1), role="moved")
    b.done(b.add("add", moved, x, name=name))


def wkv4(c: Capture, n: fx.Node) -> None:
    """RWKV-4's WKV with the running maximum of its exponents (Peng et al. 2023, "RWKV", appendix D)."""
    b = Builder(c, n)
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
    b = Builder(c, n)
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
    b = Builder(c, n)
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
    b, x = Builder(c, n), c.value(n, 0)
    name = b.named("logsumexp")
    ahead = b.add("sub", b.previous(name, b.dims(x), NEVER), x, role="ahead")
    b.done(b.add("add", x, b.add("softplus", ahead, role="gain"), name=name))


def lif(c: Capture, n: fx.Node) -> None:
    """Leaky integrate-and-fire neurons (Zhu et al. 2023, SpikeGPT, eq. 1 to 3)."""
    b, x = Builder(c, n), c.value(n, 0)
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
    b = Builder(c, n)
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
