"""Terms combined over indices: products of two operands as matrix products, everything else term by term.

ONNX Runtime's MatMul on int32 and int64 wraps around, as NumPy's does, so that it is exact wherever the sum fits; its
MatMulInteger is as exact and much faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from isobit.export.onnx.body import Body, Value
from isobit.quant.check import Checked
from isobit.quant.expr.interval import Interval
from isobit.quant.ops.matmul import product
from isobit.quant.program import IntType, Node

INT32 = IntType(32).range
NARROW = (TensorProto.INT8, TensorProto.INT16, TensorProto.INT32)


def combined(n: Node, c: Checked, body: Body, operands: Sequence[Value]) -> Value:
    """The terms of `operands` summed, or the largest of them, over the indices that the output lacks.

    The axes of the result are batch and output; the value that starts a sum is not in it.
    """
    order, reduced = "b" + n.labels.output, n.labels.reduced
    sizes = c.sizes[n.output]
    if n.spec.define is product and (made := _matrix_product(n, c, body, operands)) is not None:
        return made
    terms = body.mapped(c.bodies[n.output], operands, order + reduced)
    if not reduced:
        return Value(body.place(terms, order), order, TensorProto.INT64)
    if n.spec.combine == "sum":
        term = body.place(terms, terms.axes)
        total = body.sum(term, len(terms.axes), [sizes[k] for k in reduced], partial_sums(n, c))
        return Value(total, order, TensorProto.INT64)
    if c.ranges[n.output] in INT32:
        axes = body.constant(range(len(order), len(terms.axes)))
        term = body.place(terms, terms.axes, TensorProto.INT32)
        return Value(body.op("ReduceMax", term, axes, keepdims=0), order, TensorProto.INT32)
    last = [sizes[k] for k in reduced]
    term = merged(body, body.place(terms, terms.axes), "bt", [*([sizes[k]] for k in order[2:]), last])
    return Value(body.largest(term, math.prod(last)), order, TensorProto.INT64)


def partial_sums(n: Node, c: Checked) -> Interval:
    """Every partial sum of the terms alone; `check` knows the accumulator with the value that starts it."""
    known = c.ranges[n.output]
    start = c.ranges[n.inputs[-1]] if n.spec.start else Interval(0, 0)
    return Interval(min(0, known.lo - start.lo), max(0, known.hi - start.hi))


def merged(body: Body, x: str, kept: str, groups: Sequence[Sequence[int]]) -> str:
    """x with the axes `kept` (batch and time, or none) as they are, then one axis for every group of sizes."""
    if all(len(sizes) == 1 for sizes in groups):
        return x
    return body.op("Reshape", x, body.constant([*[0] * len(kept), *(math.prod(sizes) for sizes in groups)]))


def _matrix_product(n: Node, c: Checked, body: Body, operands: Sequence[Value]) -> Value | None:
    """x w as (..., rows, inner) times (..., inner, columns); None where no operand has an axis of its own.

    Axes of both operands and of the output, and batch and time where both have them, number the matrices.  Where
    nothing numbers them, one matrix w is for all of x, whose rows stay as many axes as they are.
    """
    x, w = operands if "t" in operands[0].axes else reversed(operands)
    out, inner = n.labels.output, n.labels.reduced
    both = set(x.axes) & set(w.axes)
    shared = [k for k in out if k in both and k != "t"]
    rows, columns = ("".join(k for k in out if k in own and k not in both) for own in (x.axes.replace("t", ""), w.axes))
    if not set(inner) <= both or not (rows or columns):
        return None
    sizes = c.sizes[n.output]
    lead = "bt" if "t" in w.axes else ""
    single = not lead and not shared

    def side(v: Value, kept: str, groups: Sequence[str], element: int) -> str:
        name = body.place(v, kept + "".join(groups), element)
        return merged(body, name, kept, [[sizes[k] for k in group] for group in groups])

    x_groups, w_groups = [*shared, *(rows if single else [rows]), inner], [*shared, inner, columns]
    fits = partial_sums(n, c) in INT32 and c.ranges[n.output] in INT32
    if fits and x.element == w.element == TensorProto.INT8:
        # Operands as unsigned with zero point 128, as signed ones flipped in their highest bit: the unsigned by signed
        # kernel saturates pairs of products to 16 bits on x86 with AVX2 and no VNNI, the signed by signed one is slow.
        sign, element = body.constant(128, np.uint8), int(TensorProto.INT32)
        left, right = side(x, "bt", x_groups, x.element), side(w, lead, w_groups, w.element)
        left, right = (body.op("BitwiseXor", body.cast(v, TensorProto.UINT8), sign) for v in (left, right))
        total = body.op("MatMulInteger", left, right, sign, sign)
    else:
        element = TensorProto.INT32 if fits and x.element in NARROW and w.element in NARROW else TensorProto.INT64
        total = body.op("MatMul", side(x, "bt", x_groups, element), side(w, lead, w_groups, element))
    apart = "".join(shared) + rows + columns
    if len(columns) != 1 or (len(rows) != 1 and not single):
        total = body.op("Reshape", total, body.constant([0, 0, *(sizes[k] for k in apart)]))
    return Value(body.align(total, "bt" + apart, "b" + out), "b" + out, element)
