"""Terms of sums of products: exact, or L-Mul where the operands are codes; ops, parameters, units, limbs of each."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from isobit.quant.capture.graph import GraphNode
from isobit.quant.expr.interval import Interval
from isobit.quant.formats.format import Format
from isobit.quant.formats.multiplier import codes_of
from isobit.quant.lower.lowering import Lowering
from isobit.quant.lower.quantity import Coded, Quantity, letters
from isobit.quant.program import Array


def term_op(x: Quantity, op: str) -> str:
    """The op that sums x's products as `op` sums exact ones."""
    return f"l_{op}" if isinstance(x, Coded) else op


def term_params(x: Quantity) -> dict[str, int]:
    """Parameters of such an op, beside its loops."""
    return x.codes.params if isinstance(x, Coded) else {}


def term_unit(x: Quantity) -> float:
    """The real value of a unit of a product with an operand of scale 1."""
    return x.unit * (x.codes.unit if isinstance(x, Coded) else 1.0)


def new_axes(low: Lowering, n: GraphNode, index: str) -> dict[str, int]:
    """Sizes of the axes of the output, as the float graph knows them."""
    made = index.partition("->")[2].removeprefix("t")
    return dict(zip(made, low.graph.dims[n.output], strict=True))


def weight_constant(low: Lowering, n: GraphNode, x: Quantity, integers: Array, element: Format) -> str:
    """The weight of `n`, from the integers of its format: as they are, or as the codes that x meets."""
    if isinstance(x, Coded):
        codes, elem = codes_of(element, integers)
        return low.constant(f"{n.output}.weight", codes, elem)
    return low.constant(f"{n.output}.weight", integers, element.elem, mantissa=element.mantissa)


def largest_sums(x: Quantity, rows: Array, element: Format | None = None) -> npt.NDArray[np.object_]:
    """The largest magnitudes of sums of x's products with rows of weights, (R, ...), integers of the format: (R,)."""
    if isinstance(x, Coded) and element is not None:
        term = x.codes.largest_term(x.magnitude, 1 << (element.bits - 1))
        return np.full(len(rows), math.prod(rows.shape[1:]) * term, object)
    return np.asarray(np.abs(rows).reshape(len(rows), -1).sum(1).astype(object) * x.magnitude)


def largest_dot(a: Quantity, b: Quantity, count: int) -> int:
    """The largest magnitude of a sum of so many products of two values."""
    term = a.codes.largest_term(a.magnitude, b.magnitude) if isinstance(a, Coded) else a.magnitude * b.magnitude
    return count * term


def limbs(low: Lowering, n: GraphNode, x: Quantity, products: int) -> tuple[int, tuple[Quantity, Quantity], list[int]]:
    """h, the two limbs of x = high * 2^h + low, and the largest magnitudes of their products' sums.

    products: that of x.  Of an integer, the high and the low half of its bits, the low one without a sign; of a code,
    itself with fewer exponents, or 0.
    """
    axes = letters(len(x.dims))

    def limb(role: str, known: Interval, params: dict[str, int]) -> Quantity:
        value = low.node(role, f"t{axes}->t{axes}", (x,), f"{n.output}.{role}", n.loc, params)
        return replace(x, value=value, known=known)

    if isinstance(x, Coded):
        mantissa = x.codes.mantissa
        h = x.magnitude >> mantissa + 1
        most, least = x.magnitude - (h << mantissa), ((h + 1) << mantissa) - 1
        params = {"h": h, "mantissa": mantissa}
        high, rest = limb("high_code", Interval(-most, most), params), limb("low_code", Interval(-least, least), params)
        return h, (high, rest), [(products >> h) + 1, (products >> (x.magnitude - least >> mantissa)) + 1]
    h = x.known.bits // 2
    high = limb("high_limb", Interval(x.known.lo >> h, x.known.hi >> h), {"h": h})
    rest = limb("low_limb", Interval(0, (1 << h) - 1), {"h": h})
    return h, (high, rest), [products * part.magnitude // x.magnitude + 1 for part in (high, rest)]
