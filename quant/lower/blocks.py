"""Products of weights, and of operands, in blocks that share a scale: sums of blocks, and the sum of these.

A block of an operand gets its exponent at run time, from integers; see quant/ops/blocks.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from isobit.quant.capture.graph import Floats, GraphNode
from isobit.quant.expr.interval import Interval
from isobit.quant.formats.blocks import WINDOW, Blocks, carry_of, exponent, quantized_rows
from isobit.quant.lower.lowering import Lowering
from isobit.quant.lower.moves import padded, split
from isobit.quant.lower.quantity import WIDE_BITS, Quantity, accumulator_bits, letters
from isobit.quant.lower.sums import Moments, Start, corrected, exact_sum, importance, least_steps, settle


@dataclass(frozen=True, kw_only=True)
class Blocked(Quantity):
    """An operand of dims (..., blocks, size): real = integer * 2^exponent * scale.

    known: of integer * 2^exponent.  exponents: the value that holds them, (..., blocks).  largest: of the integers.
    """

    exponents: str
    largest: int


def is_blocked(format: Blocks, weight: Floats, summed: int) -> bool:
    """Whether the products of a weight are in blocks: they are summed along one axis, of more than one block."""
    return summed == 1 and weight.shape[-1] > format.size


def _in_blocks(low: Lowering, n: GraphNode, x: Quantity, size: int) -> Quantity:
    """x with its last axis, padded, as blocks."""
    axis = len(x.dims) - 1
    count = -(-x.dims[axis] // size)
    x = padded(low, n, x, axis, 0, count * size - x.dims[axis], f"{n.output}.padded")
    return split(low, n, x, axis, (count, size), f"{n.output}.blocks")


def blocked_operand(low: Lowering, n: GraphNode, format: Blocks) -> Blocked:
    """The operand of `n` as elements and exponents.

    The window of exponents ends with that of the largest 16-bit magnitude.  An element counts the smallest number of
    the format, or, where 16 bits have none so small, the unit of x in the window's lowest block.
    """
    x = _in_blocks(low, n, low.need(n.inputs[0], WIDE_BITS), format.size)
    element, width = format.element, WIDE_BITS
    carry = carry_of(format.rule, element, width)
    top = width - 2 + (carry < 1 << width)
    lowest = top - WINDOW
    whole = int(exponent(np.asarray(element.largest * 2.0**-element.point)))
    up = element.point + whole - lowest
    coarser = max(up - WINDOW, 0)
    labels, loc = letters(len(x.dims)), n.loc
    kept = labels[:-1]
    peak = low.node("reduce_absmax", f"t{labels}->t{kept}", (x,), f"{n.output}.peaks", loc, {"acc": 32})
    params = {"width": width, "carry": carry, "lowest": lowest, "window": WINDOW}
    exponents = low.node("block_exponent", f"t{kept}->t{kept}", (peak,), f"{n.output}.exponents", loc, params)
    most, shift = element.largest >> coarser, up - coarser
    params = {
        "up": max(shift, 0) + 1, "s": 1 + max(-shift, 0), "mantissa": element.significant, "most": most,
        "width": width + max(shift, 0) + 1,
    }  # fmt: skip
    index = f"t{labels},t{kept}->t{labels}"
    value = low.node("block_element", index, (x, exponents), f"{n.output}.elements", loc, params)
    scale = np.asarray(x.unit * 2.0**-shift)
    reach = most << WINDOW
    return Blocked(value, x.dims, scale, Interval(-reach, reach), exponents=exponents, largest=most)


def blocked_products(
    low: Lowering, n: GraphNode, index: str, x: Quantity, weight: Floats, bias: Floats, format: Blocks,
    channels: tuple[int, ...], moments: Moments | None,
) -> None:  # fmt: skip
    """A sum for every block, then the sum of these times the blocks' multipliers.

    index: of the plain product, whose first operand ends in the axis that is summed.
    """
    (seen, kept, out), made = index.partition("->")[0].split(","), index.partition("->")[2]
    rows, starts = weight.reshape(-1, weight.shape[-1]), bias.ravel()
    counts = importance(weight, rows, moments)
    q = quantized_rows(rows, format, least_steps(starts, x, format), format.size, counts)
    count, element = q.codes.shape[1], format.element
    codes = low.constant(
        f"{n.output}.weight", q.codes.reshape(*bias.shape, count, format.size), element.elem, mantissa=element.mantissa
    )
    elem, mantissa = format.scale
    multipliers = low.constant(
        f"{n.output}.multipliers", q.multipliers.reshape(*bias.shape, count), elem, mantissa=mantissa
    )
    blocks = x if isinstance(x, Blocked) else _in_blocks(low, n, x, format.size)
    largest = x.largest if isinstance(x, Blocked) else x.magnitude
    sums = np.abs(q.codes).sum(-1)

    def emit(part: Quantity, role: str, acc: dict[str, int], first: str) -> str:
        own = {"acc": accumulator_bits(int(sums.max()) * part.magnitude)}
        pair = f"{seen[:-1]}uv,{kept[:-1]}uv->{made}u"
        total = low.node("dot", pair, (part, codes), f"{n.output}.sums{role}", n.loc, own)
        if isinstance(x, Blocked):
            scaled = f"{made}u,{seen[:-1]}u->{made}u"
            total = low.node("scale_block", scaled, (total, x.exponents), f"{n.output}.scaled{role}", n.loc, {})
        rest = f"{made}u,{kept[:-1]}u,{out}->{made}"
        return low.node("matmul", rest, (total, multipliers, first), f"{n.output}.acc{role}", n.loc, acc)

    most = int(sums.max()) * int(q.multipliers.sum(-1).max()) * x.magnitude
    plain = replace(blocks, known=Interval(-largest, largest))
    acc, unit, reach = exact_sum(
        low, n, plain, most, Start(corrected(bias, weight, q, moments), x.unit * q.steps), emit
    )
    settle(low, n, acc, (x.unit * unit * q.steps).reshape(channels or bias.shape), reach)
