"""Lowering of attention whose keys and values are kept as codes of few bits, packed into bytes before their rings.

A key is U * (zero[c] + step[c] * code), a value U * (zero[t] * 2^(bits - 2) + step[t] * code), with integers zero and
step of the channel c or the token t.  So q . k = q . zero + (q * step) . code, and the sum of p[t] * v[t] likewise: the
codes themselves are read, nothing is rounded again, and the newest token is read as all others are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from isobit.quant.capture.graph import Dims, GraphNode
from isobit.quant.expr.interval import Interval
from isobit.quant.lower import linear
from isobit.quant.lower.lowering import Lowering
from isobit.quant.lower.moves import padded, split
from isobit.quant.lower.quantity import Quantity, accumulator_bits, letters
from isobit.quant.lower.sums import settle
from isobit.quant.ops.cache import INVERSE_BITS, inverse_of
from isobit.quant.program import IntType

STEP_BITS = 12
"""Bits, at least, of the largest step of a channel of keys."""


@dataclass(frozen=True)
class Cache:
    """packed: bytes of codes, (W, G, C), with the unit U as scale.  zero, step: of channels (G, D) or tokens (W, G)."""

    packed: Quantity
    zero: Quantity
    step: Quantity


def history(low: Lowering, n: GraphNode) -> None:
    """The last values as they are, or their codes."""
    if not low.recipe.cache_bits:
        linear.history(low, n)
    elif n.text("cache") == "keys":
        _keep_keys(low, n)
    else:
        _keep_values(low, n)


def einsum(low: Lowering, n: GraphNode) -> None:
    """A product of two values, exact; of what a cache holds, with its codes."""
    kept = low.plans.get(n.inputs[1])
    if not isinstance(kept, Cache):
        linear.einsum(low, n)
    elif low.producer[n.inputs[1]].text("cache") == "keys":
        _scores(low, n, kept)
    else:
        _mixed(low, n, kept)


def key_steps(least: np.ndarray, most: np.ndarray, unit: float, bits: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Zero and step of every channel in units of `unit` * 2^-up, and up; least, most: in the model's units."""
    levels = (1 << bits) - 1
    widest = float((most - least).max()) / (levels * unit)
    up = max(0, STEP_BITS - math.floor(widest).bit_length())
    fine = unit * 2.0**-up
    zero = np.floor(least / fine).astype(np.int64)
    step = np.maximum(np.ceil((most / fine - zero) / levels), 1).astype(np.int64)
    return zero, step, up


def _keep_keys(low: Lowering, n: GraphNode) -> None:
    """Codes of keys, with a zero and a step per channel from calibration; a ring of bytes."""
    x, bits = low.need(n.inputs[0], low.recipe.wide_bits), low.recipe.cache_bits
    ranges = low.calibration
    zero, step, up = key_steps(ranges.least[n.inputs[0]], ranges.most[n.inputs[0]], x.unit, bits)
    zero, step = zero.reshape(x.dims), step.reshape(x.dims)
    s = bits + 2 * (int(step.max()).bit_length() + 1)
    inverse = np.array([inverse_of(int(k), s) for k in step.ravel()]).reshape(step.shape)
    own = {"zero": zero, "step": step, "inverse": inverse}
    held = [_constant(low, f"{n.output}.{role}", integers) for role, integers in own.items()]
    params = {"up": up + 1, "down": 0, "coarse": 1, "s": s, "bits": bits}
    codes = low.node("cache_code", "tgd,gd,gd,gd->tgd", (x, *held), f"{n.output}.codes", n.loc, params)
    packed = _kept(low, n, _packed(low, n, _codes(codes, x.dims, bits)))
    low.plans[n.output] = Cache(replace(packed, scale=np.asarray(x.unit * 2.0**-up)), held[0], held[1])


def _constant(low: Lowering, name: str, integers: np.ndarray) -> Quantity:
    known = Interval(int(integers.min()), int(integers.max()))
    value = low.constant(name, integers, IntType(known.bits))
    return Quantity(value, integers.shape, np.asarray(1.0), known)


def _keep_values(low: Lowering, n: GraphNode) -> None:
    """Codes of values, with a zero and a step per token and group, from its least and largest; three rings.

    A zero counts 2^whole units of x, so that it is a byte; a step counts 2^-fine of them, 2^(bits - 2) to a zero's.
    """
    x, bits = low.need(n.inputs[0], low.recipe.wide_bits), low.recipe.cache_bits
    most, role = math.floor(low.calibration.ranges[n.inputs[0]].absmax / x.unit), n.output
    whole = max(0, most.bit_length() - 7)
    fine = bits - 2 - whole

    def reduced(op: str, name: str) -> str:
        return low.node(op, "tgv->tg", (x,), f"{role}.{name}", n.loc, {"acc": 32})

    below = reduced("reduce_max_negative", "below")
    zero = low.node("token_zero", "tg->tg", (below,), f"{role}.zero", n.loc, {"s": whole})
    params = {"up": max(fine, 0), "coarse": max(whole, bits - 2), "divisor": ((1 << bits) - 1) << max(-fine, 0)}
    step = low.node("token_step", "tg,tg->tg", (reduced("reduce_max", "top"), zero), f"{role}.step", n.loc, params)
    inverse = low.node("step_inverse", "tg->tg", (step,), f"{role}.inverse", n.loc, {})
    params = {"up": max(fine + 1, 0), "down": max(-fine - 1, 0), "coarse": bits - 1, "s": INVERSE_BITS, "bits": bits}
    operands = (x, zero, step, inverse)
    codes = low.node("cache_code", "tgv,tg,tg,tg->tgv", operands, f"{role}.codes", n.loc, params)
    packed = _kept(low, n, _packed(low, n, _codes(codes, x.dims, bits)))
    tokens = (Quantity(k, x.dims[:1], np.asarray(1.0), Interval(-128, 127)) for k in (zero, step))
    held = [_kept(low, n, k, f".{name}") for k, name in zip(tokens, ("zero", "step"), strict=True)]
    low.plans[n.output] = Cache(replace(packed, scale=np.asarray(x.unit * 2.0**-fine)), held[0], held[1])


def _codes(value: str, dims: Dims, bits: int) -> Quantity:
    return Quantity(value, dims, np.asarray(1.0), Interval(0, (1 << bits) - 1))


def _packed(low: Lowering, n: GraphNode, x: Quantity) -> Quantity:
    """(G, C) bytes, less 128: byte c holds the codes of the channels c, c + C, c + 2C and so on, the first lowest."""
    bits = low.recipe.cache_bits
    parts = 8 // bits
    size = -(-x.dims[1] // parts)
    x = padded(low, n, x, 1, 0, parts * size - x.dims[1], f"{n.output}.padded")

    def taken(i: int) -> str:
        params, sizes = {"start": i * size, "step": 1, "size": size}, {"c": size}
        return low.node("take", "tgd->tgc", (x,), f"{n.output}.part{i}", n.loc, params, sizes=sizes)

    joined = [taken(i) for i in range(parts)]
    while len(joined) > 1:
        params = {"bits": bits, "offset": 128 if len(joined) == 2 else 0}
        bits *= 2
        joined = [
            low.node("join_codes", "tgc,tgc->tgc", (a, b), f"{n.output}.joined{bits}_{i}", n.loc, params)
            for i, (a, b) in enumerate(zip(joined[::2], joined[1::2], strict=True))
        ]
    return Quantity(joined[0], (x.dims[0], size), np.asarray(1.0), Interval(-128, 127))


def _kept(low: Lowering, n: GraphNode, x: Quantity, role: str = "") -> Quantity:
    """The last values of x, with the window as first axis; alone, they have no unit."""
    length, axes = n.integer("length"), letters(len(x.dims))
    ring = linear.ring_of(low, n, length - 1, x, role)
    low.states[-1] = replace(low.states[-1], type=replace(low.states[-1].type, scale=None))
    name, params = f"{n.output}{role and '.kept'}{role}", {"length": length}
    index, sizes = f"t{axes}->tw{axes}", {"w": length}
    value = low.node("history", index, (x,), name, n.loc, params, None, ring, sizes)
    return replace(x, value=value, dims=(length, *x.dims))


def _read(low: Lowering, n: GraphNode, kept: Cache) -> Quantity:
    """The codes of a cache, (W, G, P, C), P of them from every byte."""
    bits, name = low.recipe.cache_bits, kept.packed.value
    shifts = low.constant(f"{name}.shifts", np.arange(0, 8, bits), IntType(4))
    operands, params = (kept.packed, shifts), {"bits": bits}
    codes = low.node("code_of_byte", "twgc,p->twgpc", operands, f"{name}.read", n.loc, params)
    return _codes(codes, low.dims[codes], bits)


def _scores(low: Lowering, n: GraphNode, kept: Cache) -> None:
    """q . k for every token of the window: q * step meets the codes, and q . zero starts the sum."""
    q, codes, role = low.need(n.inputs[0], low.recipe.operand), _read(low, n, kept), n.output
    size = q.dims[2]
    at_zero = size * q.magnitude * kept.zero.magnitude
    scaled = low.node("product", "tgrd,gd->tgrd", (q, kept.step), f"{role}.scaled", n.loc, {})
    params = {"acc": accumulator_bits(at_zero)}
    start = low.node("dot", "tgrd,gd->tgr", (q, kept.zero), f"{role}.start", n.loc, params)
    reach = q.magnitude * kept.step.magnitude
    parts = replace(q, value=scaled, known=Interval(-reach, reach))
    parts = padded(low, n, parts, 2, 0, math.prod(codes.dims[2:]) - size, f"{role}.padded")
    parts = _apart(low, n, parts, codes.dims[2:], f"{role}.parts")
    reach = math.prod(codes.dims[2:]) * reach * codes.known.hi + at_zero
    unit = q.unit * kept.packed.unit
    index, params = "tgrpc,twgpc,tgr->tgrw", {"acc": accumulator_bits(reach)}
    acc = low.node("matmul", index, (parts, codes, start), f"{role}.acc", n.loc, params, unit)
    settle(low, n, acc, np.asarray(unit), reach)


def _mixed(low: Lowering, n: GraphNode, kept: Cache) -> None:
    """The sum of weights times values: weight * step meets the codes, and the sum of weight * zero starts it."""
    p, codes, role = low.need(n.inputs[0], low.recipe.operand), _read(low, n, kept), n.output
    bits = low.recipe.cache_bits
    window, width = codes.dims[0], low.graph.dims[role][-1]
    at_zero = window * p.magnitude * kept.zero.magnitude
    params = {"acc": accumulator_bits(at_zero)}
    start = low.node("dot", "tgrw,twg->tgr", (p, kept.zero), f"{role}.coarse", n.loc, params)
    if bits > 2:
        unit = low.constant(f"{role}.units", np.array(1 << (bits - 2)), IntType(8))
        start = low.node("product", "tgr,->tgr", (start, unit), f"{role}.start", n.loc, {})
    scaled = low.node("product", "tgrw,twg->tgrw", (p, kept.step), f"{role}.scaled", n.loc, {})
    reach = window * p.magnitude * kept.step.magnitude * codes.known.hi + (at_zero << (bits - 2))
    scale = p.unit * kept.packed.unit
    index, params = "tgrw,twgpc,tgr->tgrpc", {"acc": accumulator_bits(reach)}
    acc = low.node("matmul", index, (scaled, codes, start), f"{role}.parts", n.loc, params, scale)
    whole = _together(low, n, acc, f"{role}.whole", scale)
    if low.dims[whole][-1] != width:
        params, sizes = {"start": 0, "step": 1, "size": width}, {"v": width}
        whole = low.node("take", "tgrd->tgrv", (whole,), f"{role}.acc", n.loc, params, scale, sizes=sizes)
    settle(low, n, whole, np.asarray(scale), reach)


def _apart(low: Lowering, n: GraphNode, x: Quantity, dims: Dims, name: str) -> Quantity:
    """The last axis as two; a Program has no axis of size 1."""
    if 1 in dims:
        return replace(x, dims=(*x.dims[:-1], *dims))
    return split(low, n, x, len(x.dims) - 1, dims, name)


def _together(low: Lowering, n: GraphNode, value: str, name: str, scale: float) -> str:
    """(G, R, P, C) as (G, R, P * C)."""
    *lead, parts, size = low.dims[value]
    if size == 1:
        low.dims[value] = (*lead, parts)
        return value
    sizes = {"d": parts * size}
    return low.node("merge_axes", "tgrpc->tgrd", (value,), name, n.loc, {}, scale, sizes=sizes)
