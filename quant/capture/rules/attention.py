"""Softmax attention on a window, rotary positions, and the choice of the largest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import fx

from isobit.quant.capture.rules.builder import Builder

if TYPE_CHECKING:
    from isobit.quant.capture.capture import Capture


def causal_attention(c: Capture, n: fx.Node) -> None:
    """Softmax attention on a ring of the last keys and values (Vaswani et al. 2017, eq. 1)."""
    b = Builder(c, n)
    q, k, v = (b.value(i) for i in range(3))
    window, factor = n.args[3], n.args[4]
    assert isinstance(window, int)
    assert isinstance(factor, int | float)
    (heads, size), (groups, width) = b.dims(q), b.dims(v)
    scaled = b.add("scale", q, b.parameter(str(factor), np.array(float(factor))), role="scaled_q")
    grouped = b.reshaped(scaled, groups, heads // groups, size)
    if window > 1:
        k = b.add("history", k, role="keys", dims=(window, groups, size), length=window, cache="keys")
        v = b.add("history", v, role="values", dims=(window, groups, width), length=window, cache="values")
    else:
        k, v = b.reshaped(k, 1, groups, size), b.reshaped(v, 1, groups, width)
    dims = (groups, heads // groups, window)
    scores = b.add("einsum", grouped, k, role="scores", dims=dims, index="grd,wgd->grw")
    weights = b.add("softmax", scores, role="weights", masked=1)
    mixed = b.add("einsum", weights, v, role="mixed", dims=(*dims[:2], width), index="grw,wgv->grv")
    b.done(b.reshaped(mixed, heads, width))


def rotary(c: Capture, n: fx.Node) -> None:
    """Pairs (i, i + D/2) turned by the step's number times theta_i (Su et al. 2021, RoPE)."""
    b, x = Builder(c, n), c.value(n, 0)
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
