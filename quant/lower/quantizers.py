"""Lowering of quantizers that came with the model: their scale, their codes and their rounding, in one op."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from isobit.quant.capture.graph import Dims, Floats, GraphNode
from isobit.quant.errors import CheckError
from isobit.quant.expr.interval import Interval
from isobit.quant.lower.dyadic import MULTIPLIER_BITS, dyadics
from isobit.quant.lower.lowering import OUTPUT, Lowering, as_it_is
from isobit.quant.lower.quantity import Quantity, letters, trained_range
from isobit.quant.lower.sums import WIDE_SUM, high_bits
from isobit.quant.ops.requantize import ROUNDINGS
from isobit.quant.program import Array, IntType

MOST_APART = 2.0**20
"""Of two scales whose values are added exactly."""

BELOW = 2.0**-24
"""Of the finer scale, the unit of a sum of two values whose scales are no multiples."""

ROOM = 61
"""Bits that an offset may take, so that a product, an offset and a rounding constant are added in 64."""


def fake_quantize(low: Lowering, n: GraphNode) -> None:
    """In one rounding from the accumulator, or the value in its widest form, with the gain and shift of `simplify`."""
    v, known, unit = n.inputs[0], trained_range(n), n.number("scale")
    x = low.sums.get(v) or low.quantities[v]
    if (
        v == low.graph.input
        and as_it_is(low, n)
        and x.known == known
        and x.scale == unit
        and n.output != low.graph.output
    ):
        low.quantities[n.output] = replace(x, trained=True)
        return
    dims = x.dims
    gain, shift = (_along(low.graph.parameters[i], dims) for i in n.inputs[1:])
    lacking = low.remainders.get(v, np.zeros(()))
    ratio, offset = x.scale * gain / unit, (shift + gain * lacking) / unit
    minifloat = n.integer("mantissa") >= 0
    if x.known.bits > WIDE_SUM and not minifloat and not _is_dyadic(ratio, x.magnitude):
        value, scale, reach = high_bits(low, x.value, f"{n.output}.high", n.loc, x.scale, x.magnitude)
        x = Quantity(value, dims, scale, Interval(-reach, reach))
        ratio = x.scale * gain / unit
    m, b, s = _multipliers(ratio, offset, x.magnitude, n)
    params = {"s": s, "lo": n.integer("lo")}
    if minifloat:
        op, params = "quantize_minifloat", params | {"mantissa": n.integer("mantissa"), "most": n.integer("hi")}
    else:
        rounding = [f.__name__ for f in ROUNDINGS].index(n.text("rounding"))
        op, params = "quantize", params | {"zero": n.integer("zero"), "hi": n.integer("hi"), "rounding": rounding}
    if np.all(m == m.flat[0]) and np.all(b == b.flat[0]):
        m, b = m.flat[:1], b.flat[:1]
    name = OUTPUT if n.output == low.graph.output else n.output
    axes = letters(len(dims))
    if m.size == 1:
        params |= {"m": int(m.item()), "b": int(b.item())}
        value = low.node(op, f"t{axes}->t{axes}", (x,), name, n.loc, params, unit)
    else:
        width = IntType(Interval(int(b.min()), int(b.max())).bits)
        operands = low.constant(f"{n.output}.multiplier", m, IntType(32)), low.constant(f"{n.output}.offset", b, width)
        index = f"t{axes},{axes},{axes}->t{axes}"
        value = low.node(f"{op}_per_channel", index, (x, *operands), name, n.loc, params, unit)
    low.quantities[n.output] = Quantity(value, dims, np.asarray(unit), known, trained=True)


def exact_addition(low: Lowering, n: GraphNode, a: Quantity, b: Quantity, sign: float) -> bool:
    """a + sign * b for a quantizer, at the finer of two scales, or 2^-24 of it; False where these are too far apart."""
    fine, coarse = sorted((a.unit, b.unit))
    ratio = coarse / fine
    if ratio > MOST_APART:
        return False
    unit = fine if ratio == round(ratio) else fine * BELOW
    ma, mb = round(a.unit / unit), round(sign * b.unit / unit)
    reach = abs(ma) * a.magnitude + abs(mb) * b.magnitude
    params = {"ma": 2 * ma, "mb": 2 * mb, "s": 1, "lo": -reach, "hi": reach}
    dims = low.graph.dims[n.output]
    index = f"t{letters(len(a.dims))},t{letters(len(b.dims))}->t{letters(len(dims))}"
    value = low.node("add", index, (a, b), f"{n.output}.acc", n.loc, params, unit)
    low.accumulator(n, value, unit, Interval(-reach, reach))
    low.sums[n.output] = low.quantities[n.output]
    return True


def _along(array: Floats, dims: Dims) -> Floats:
    """A parameter with the rank of a value's dims; a scalar stays one."""
    return array.reshape((1,) * (len(dims) - array.ndim) + array.shape) if array.size > 1 else array.reshape(())


def _is_dyadic(ratio: Floats, magnitude: int) -> bool:
    """Whether multipliers beside which `magnitude` fits are the ratios exactly."""
    m, s = dyadics(ratio.ravel(), 4 * magnitude)
    return all(float(k) == r * 2.0**s for k, r in zip(m, ratio.ravel(), strict=True))


def _multipliers(ratio: Floats, offset: Floats, magnitude: int, n: GraphNode) -> tuple[Array, Array, int]:
    """m, b and s, of one shape, so that x * ratio + offset is (x*m + b) / 2^s, as exactly as 64 bits allow."""
    whole = np.broadcast_shapes(ratio.shape, offset.shape)
    beyond = max(abs(n.integer("zero")), n.integer("hi") if n.integer("mantissa") >= 0 else 1)
    for bits in range(MULTIPLIER_BITS, 0, -1):
        m, s = dyadics(ratio.ravel(), 4 * magnitude, bits)
        if float(np.abs(offset).max()) * 2.0**s < 2.0**ROOM and beyond << s < 1 << ROOM:
            b = np.rint(np.ldexp(offset, s)).astype(np.int64)
            while s > 1 and not (np.any(m & 1) or np.any(b & 1)):
                m, b, s = m >> 1, b >> 1, s - 1
            return np.broadcast_to(m.reshape(ratio.shape), whole), np.broadcast_to(b, whole), s
    raise CheckError(
        f"its scale {n.number('scale'):g} is far below the values that it quantizes, up to "
        f"{float(np.abs(ratio).max()) * magnitude:.3g} steps: is the quantizer trained?"
    )
