"""Terms of sums of products: exact, or L-Mul where the operands are codes; the ops, parameters and units of each."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from isobit.quant.capture.graph import GraphNode
from isobit.quant.formats.format import Format
from isobit.quant.formats.multiplier import codes_of
from isobit.quant.lower.lowering import Lowering
from isobit.quant.lower.quantity import Coded, Quantity
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
