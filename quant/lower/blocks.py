"""Products of weights, and of operands, in blocks that share a scale: sums of blocks, and the sum of these.

A block of an operand gets its exponent at run time, from integers; see quant/ops/blocks.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from isobit.quant.capture.graph import Floats, GraphNode
from isobit.quant.expr.interval import Interval
from isobit.quant.formats.blocks import WINDOW, Blocks, Rows, carry_of, exponent, quantized_rows
from isobit.quant.formats.format import Format
from isobit.quant.lower.lowering import Lowering
from isobit.quant.lower.moves import merged, padded, recent, split
from isobit.quant.lower.quantity import WIDE_BITS, Quantity, accumulator_bits, letters
from isobit.quant.lower.sums import Moments, Ring, Start, corrected, exact_sum, importance, least_steps, settle_sum
from isobit.quant.lower.terms import new_axes
from isobit.quant.program import IntType


@dataclass(frozen=True, kw_only=True)
class Blocked(Quantity):
    """An operand of dims (..., blocks, size): real = integer * 2^exponent * scale.

    known: of integer * 2^exponent.  exponents: the value that holds them, (..., blocks).  largest: of the integers.
    """

    exponents: str
    largest: int


BLOCK = "a"
"""Label of the axis of blocks."""


def block_of(format: Format | Blocks, weight: Floats, rows: int, along: int) -> int:
    """Input channels in a block of a weight with axes of `rows`, of `along` input channels, flattened, and of a kernel.

    As many as `size` weights are, at least one.  0 where a row is one block: it has no more channels, as a depthwise
    kernel, or the format no blocks, or the weight came with the model as integers.
    """
    if not isinstance(format, Blocks) or weight.dtype.kind == "i":
        return 0
    channels, kernel = math.prod(weight.shape[rows : rows + along]), math.prod(weight.shape[rows + along :])
    size = max(format.size // kernel, 1)
    return size if size < channels else 0


def has_exponents(low: Lowering, x: Quantity, weight: Floats, rows: int, along: int) -> bool:
    """Whether x, beside such a weight, is in blocks too, each with an exponent.

    Not where a kernel has several elements, or x takes no more bits as it is.
    """
    blocks, kernel = low.recipe.blocks, math.prod(weight.shape[rows + along :])
    return (
        blocks is not None
        and kernel == 1
        and block_of(blocks, weight, rows, along) > 0
        and not x.fits(blocks.element.bits)
    )


def operand(low: Lowering, n: GraphNode, weight: Floats, rows: int, along: int) -> Quantity:
    """What multiplies such a weight, before it is in blocks."""
    v = n.inputs[0]
    return low.need(v, WIDE_BITS if has_exponents(low, low.settled(v), weight, rows, along) else low.recipe.operand)


def _in_blocks(low: Lowering, n: GraphNode, x: Quantity, axis: int, count: int, size: int) -> Quantity:
    """x with `count` axes, from `axis` on, as one, padded, and that as two: blocks, and what is in them."""
    x = merged(low, n, x, axis, count, f"{n.output}.merged")
    blocks = -(-x.dims[axis] // size)
    x = padded(low, n, x, axis, 0, blocks * size - x.dims[axis], f"{n.output}.padded")
    return split(low, n, x, axis, (blocks, size), f"{n.output}.blocks")


def _with_exponents(low: Lowering, n: GraphNode, x: Quantity, axis: int, format: Blocks) -> Blocked:
    """Elements and exponents of x, 16 bits, whose blocks lie along `axis`.

    The window of exponents ends with that of the largest 16-bit magnitude.  An element counts the smallest number of
    the format, or, where 16 bits have none so small, the unit of x in the window's lowest block.
    """
    element, width = format.element, WIDE_BITS
    carry = carry_of(format.rule, element, width)
    top = width - 2 + (carry < 1 << width)
    lowest = top - WINDOW
    whole = int(exponent(np.asarray(element.largest * 2.0**-element.point)))
    up = element.point + whole - lowest
    coarser = max(up - WINDOW, 0)
    labels, loc = letters(len(x.dims)), n.loc
    kept = labels.replace(labels[axis], "")
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


def _constants(
    low: Lowering, n: GraphNode, q: Rows, format: Blocks, rows: tuple[int, ...], inside: tuple[int, ...]
) -> tuple[str, str]:
    """The elements, (*rows, blocks, *inside), and the multipliers, (*rows, blocks)."""
    blocks, element, (scale, mantissa) = (*rows, q.codes.shape[1]), format.element, format.scale
    codes = q.codes.reshape(*blocks, *inside)
    return (
        low.constant(f"{n.output}.weight", codes, element.elem, mantissa=element.mantissa),
        low.constant(f"{n.output}.multipliers", q.multipliers.reshape(blocks), scale, mantissa=mantissa),
    )


def blocked_products(
    low: Lowering, n: GraphNode, op: str, index: str, x: Quantity, weight: Floats, bias: Floats, along: str,
    format: Blocks, channels: tuple[int, ...], state: Ring | None, params: dict[str, int] | None,
    moments: Moments | None,
) -> None:  # fmt: skip
    """A sum for every block, then the sum of these times the blocks' multipliers.

    op, index: of the plain product, whose operands have the input channels `along`.  A causal convolution is a product
    with the history of its operand.
    """
    (seen, kept, out), made = index.partition("->")[0].split(","), index.partition("->")[2]
    if state:
        op, seen = "matmul", f"t{kept[-1]}{seen[1:]}"
        x = recent(low, n, x, weight.shape[-1], state(x, ""), f"{n.output}.history")
        x = replace(x, known=IntType(x.known.bits).range)
    size, axis = block_of(format, weight, bias.ndim, len(along)), seen.index(along) - 1
    x = _in_blocks(low, n, x, axis, len(along), size)
    if low.recipe.blocks and has_exponents(low, x, weight, bias.ndim, len(along)):
        x = _with_exponents(low, n, x, axis + 1, low.recipe.blocks)
    rows, inside = weight.reshape(bias.size, -1), (size, *weight.shape[bias.ndim + len(along) :])
    least, counts = least_steps(bias.ravel(), x, format), importance(weight, rows, moments)
    q = quantized_rows(rows, format, least, math.prod(inside), counts)
    codes, multipliers = _constants(low, n, q, format, bias.shape, inside)
    zero = (low.constant(f"{n.output}.zero", 0, IntType(8)),) if op == "convolution" else ()
    sum_op, sizes = op if zero else "dot", new_axes(low, n, index)
    seen, kept = (k.replace(along, BLOCK + along[0]) for k in (seen, kept))
    sum_index = f"{seen},{kept}{',' * len(zero)}->{made}{BLOCK}"
    scaled = f"{made}{BLOCK},{seen.replace(along[0], '')}->{made}{BLOCK}"
    total = f"{made}{BLOCK},{out}{BLOCK},{out}->{made}"
    sums, largest = np.abs(q.codes).sum(-1), x.largest if isinstance(x, Blocked) else x.magnitude

    def emit(part: Quantity, role: str, acc: dict[str, int], first: str) -> str:
        own = {"acc": accumulator_bits(int(sums.max()) * part.magnitude), **(params or {})}
        value = low.node(sum_op, sum_index, (part, codes, *zero), f"{n.output}.sums{role}", n.loc, own, sizes=sizes)
        if isinstance(x, Blocked):
            value = low.node("scale_block", scaled, (value, x.exponents), f"{n.output}.scaled{role}", n.loc, {})
        return low.node("matmul", total, (value, multipliers, first), f"{n.output}.acc{role}", n.loc, acc)

    most = int(sums.max()) * int(q.multipliers.sum(-1).max()) * x.magnitude
    start = Start(corrected(bias, weight, q, moments), x.unit * q.steps)
    plain = replace(x, known=Interval(-largest, largest))
    settle_sum(low, n, *exact_sum(low, n, plain, most, start, emit), start, channels)
