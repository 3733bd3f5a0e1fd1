"""Lowering of sums of products: linear layers, convolutions, products of two values, embeddings."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from isobit.quant.capture.graph import Floats, GraphNode
from isobit.quant.expr.interval import Interval
from isobit.quant.formats import FORMATS, format_named
from isobit.quant.formats.blocks import SCALE_BITS, Blocks, quantized_rows
from isobit.quant.formats.format import Format
from isobit.quant.lower.moves import padded, split
from isobit.quant.lower.quantity import Lowering, Quantity, accumulator_bits, largest, letters
from isobit.quant.program import Array, IntType

BIAS_BITS = 24
"""A channel's unit is never so fine that its bias leaves this many bits of the accumulator, more where blocks, weights
of more than 8 bits or operands of more than 16 have a finer unit."""

WIDE_SUM = 36
"""Bits up to which an accumulator is requantized as it is."""

PRECISE = FORMATS["int16"]
"""Of the weights of a matrix that is applied at every step to what it made one step before."""


def _products(
    low: Lowering, n: GraphNode, op: str, index: str, x: Quantity, weight: Floats, bias: Floats, summed: int,
    format: Format | None = None, channels: tuple[int, ...] = (), state: str | None = None,
    params: dict[str, int] | None = None,
) -> None:  # fmt: skip
    """Sums of x * weight over the last `summed` axes of the weight; each of its other elements has its own scale.

    bias: of the shape of those other axes.  format: of the weights, if not the recipe's.  channels: that shape as a
    value's dims see it, with 1 where it is constant.  Weights that are integers stay what they are.
    """
    if weight.dtype.kind == "i":
        codes, known = weight.astype(np.int64), Interval(int(weight.min()), int(weight.max()))
        elem, steps = IntType(known.bits), np.ones(())
        _sums(low, n, op, index, x, codes, elem, steps, bias, summed, channels, state, params)
        return
    chosen = format or format_named(low.recipe.weights)
    rows, starts = weight.reshape(-1, math.prod(weight.shape[weight.ndim - summed :])), bias.ravel()
    if isinstance(chosen, Blocks) and op == "matmul" and summed == 1 and rows.shape[1] > chosen.size:
        _blocked_products(low, n, index, x, weight, bias, chosen, channels)
        return
    q = quantized_rows(rows, chosen, _least_steps(starts, x, chosen))
    codes = q.codes.reshape(weight.shape)
    _sums(low, n, op, index, x, codes, _elem(chosen), q.steps, bias, summed, channels, state, params)


def _sums(
    low: Lowering, n: GraphNode, op: str, index: str, x: Quantity, codes: Array, elem: IntType, steps: Floats,
    bias: Floats, summed: int, channels: tuple[int, ...], state: str | None, params: dict[str, int] | None,
) -> None:  # fmt: skip
    """`_products` with integer weights, of which one is worth steps[row], or for all rows `steps`."""
    kernel, units = low.constant(f"{n.output}.weight", codes, elem), x.unit * np.asarray(steps)
    first, start = _bias_constant(low, n, bias, units)
    sums = np.abs(codes).sum(tuple(range(codes.ndim - summed, codes.ndim))).ravel() * x.magnitude
    reach, most = int((sums + start).max()), int(sums.max() + start.max())
    params = {**(params or {}), "acc": accumulator_bits(most)}
    acc = low.node(
        op, index, (x, kernel, first), f"{n.output}.acc", n.loc, params, state=state, sizes=_new_axes(low, n, index)
    )
    low.remainders[n.output] = (bias.ravel() - np.rint(bias.ravel() / units) * units).reshape(channels or bias.shape)
    _settle(low, n, acc, units.reshape(channels or bias.shape) if units.ndim else units, reach)


def _least_steps(starts: Floats, x: Quantity, format: Format | Blocks) -> Floats:
    """The units that BIAS_BITS allows."""
    finer = max(_elem(format).bits - 8, 0) + max(x.known.bits - 16, 0) + SCALE_BITS * isinstance(format, Blocks)
    return np.asarray(np.abs(starts) / (x.unit * 2.0 ** (BIAS_BITS + finer)))


def _elem(format: Format | Blocks) -> IntType:
    """The integers that the numbers of a format are."""
    element = format.element if isinstance(format, Blocks) else format
    return IntType(Interval(-element.largest, element.largest).bits)


def _bias_constant(low: Lowering, n: GraphNode, bias: Floats, units: Floats) -> tuple[str, Array]:
    """What starts the accumulators, at the unit of each, and its magnitudes."""
    start = np.rint(bias.ravel() / units).astype(np.int64)
    bits = max(32, Interval(int(start.min()), int(start.max())).bits)
    return low.constant(f"{n.output}.bias", start.reshape(bias.shape), IntType(bits)), np.abs(start)


def _blocked_products(
    low: Lowering, n: GraphNode, index: str, x: Quantity, weight: Floats, bias: Floats, format: Blocks,
    channels: tuple[int, ...],
) -> None:  # fmt: skip
    """A sum for every block, then the sum of these times the blocks' multipliers.

    index: of the plain product, whose first operand ends in the axis that is summed.
    """
    (seen, kept, out), made = index.partition("->")[0].split(","), index.partition("->")[2]
    rows, starts = weight.reshape(-1, weight.shape[-1]), bias.ravel()
    q = quantized_rows(rows, format, _least_steps(starts, x, format), format.size)
    count, axis = q.codes.shape[1], len(x.dims) - 1
    x = padded(low, n, x, axis, 0, count * format.size - x.dims[axis], f"{n.output}.padded")
    x = split(low, n, x, axis, (count, format.size), f"{n.output}.blocks")
    most = int(np.abs(q.codes).sum(-1).max()) * x.magnitude
    codes = low.constant(f"{n.output}.weight", q.codes.reshape(*bias.shape, count, format.size), _elem(format))
    partial = low.node(
        "dot", f"{seen[:-1]}uv,{kept[:-1]}uv->{made}u", (x, codes), f"{n.output}.sums", n.loc,
        {"acc": accumulator_bits(most)},
    )  # fmt: skip
    multipliers = low.constant(
        f"{n.output}.multipliers", q.multipliers.reshape(*bias.shape, count), IntType(SCALE_BITS + 2)
    )
    first, start = _bias_constant(low, n, bias, x.unit * q.steps)
    reach = int(most * q.multipliers.sum(-1).max() + start.max())
    acc = low.node(
        "matmul", f"{made}u,{kept[:-1]}u,{out}->{made}", (partial, multipliers, first), f"{n.output}.acc", n.loc,
        {"acc": accumulator_bits(reach)},
    )  # fmt: skip
    _settle(low, n, acc, (x.unit * q.steps).reshape(channels or bias.shape), reach)


def _settle(low: Lowering, n: GraphNode, acc: str, scale: Floats, reach: int) -> None:
    """The accumulator of `n`; of one that is very wide, the high 32 bits, for a multiplier must fit beside it in 64."""
    low.sums[n.output] = Quantity(acc, low.graph.dims[n.output], np.asarray(scale), Interval(-reach, reach))
    if Interval(-reach, reach).bits > WIDE_SUM and not low.only_quantized(n.output):
        acc, scale, reach = high_bits(low, acc, f"{n.output}.high", n.loc, scale, reach)
    low.accumulator(n, acc, scale, Interval(-reach, reach))


def high_bits(low: Lowering, acc: str, name: str, loc: str, scale: Floats, reach: int) -> tuple[str, Floats, int]:
    """The high 32 bits of a value up to `reach`: its name, scale and reach."""
    axes, shift = letters(len(low.dims[acc])), Interval(-reach, reach).bits - 32
    reach = (reach >> shift) + 1
    params = {"m": 1, "s": shift, "lo": -reach, "hi": reach}
    return low.node("requantize", f"t{axes}->t{axes}", (acc,), name, loc, params), scale * 2.0**shift, reach


def _new_axes(low: Lowering, n: GraphNode, index: str) -> dict[str, int]:
    """Sizes of the axes of the output, as the float graph knows them."""
    made = index.partition("->")[2].removeprefix("t")
    return dict(zip(made, low.graph.dims[n.output], strict=True))


def _bias(low: Lowering, n: GraphNode, shape: tuple[int, ...]) -> Floats:
    return low.graph.parameters[n.inputs[2]] if len(n.inputs) > 2 else np.zeros(shape)


def linear(low: Lowering, n: GraphNode) -> None:
    """An accumulator with a scale per output channel; it is settled by whoever reads it.

    On what the layer itself made one step before, an error would grow: there, weights and operand are wide.
    """
    precise = bool(n.attr.get("precise"))
    x = low.need(n.inputs[0], low.recipe.wide_bits if precise else low.recipe.operand)
    weight, summed = low.graph.parameters[n.inputs[1]], n.integer("contracted")
    rows = weight.ndim - summed
    lead = "".join("xyzw"[: len(x.dims) - summed])
    out, inner = "nopqs"[:rows], "klmij"[:summed]
    index = f"t{lead}{inner},{out}{inner},{out}->t{lead}{out}"
    channels = (1,) * len(lead) + weight.shape[:rows]
    bias = _bias(low, n, weight.shape[:rows])
    _products(low, n, "matmul", index, x, weight, bias, summed, PRECISE if precise else None, channels)


def grouped_linear(low: Lowering, n: GraphNode) -> None:
    """A matrix of its own for every group."""
    x, weight = low.need(n.inputs[0], low.recipe.operand), low.graph.parameters[n.inputs[1]]
    _products(low, n, "matmul", "tgk,gnk,gn->tgn", x, weight, _bias(low, n, weight.shape[:2]), 1)


def conv2d(low: Lowering, n: GraphNode) -> None:
    """The image is padded first, so that the kernel never leaves it.

    The kernel slides along an axis where it has several elements and several places; else the axis is one of a plain
    product.
    """
    x, weight = low.need(n.inputs[0], low.recipe.operand), low.graph.parameters[n.inputs[1]]
    padding, strides, dilations = n.integers("padding"), n.integers("stride"), n.integers("dilation")
    depthwise, made_dims = weight.ndim == 3, low.graph.dims[n.output]
    seen, kernel, made, params = "", "", "", dict[str, int]()
    for i, name in enumerate("yx"):
        axis, size, places = 1 + i, weight.shape[weight.ndim - 2 + i], made_dims[1 + i]
        before, after = padding[2 * i : 2 * i + 2]
        x = padded(low, n, x, axis, before, after, f"{n.output}.padded_{name}")
        slides = size > 1 and places > 1
        if not slides:
            step = strides[i] if size == 1 else dilations[i]
            x = _every(low, n, x, axis, step, places if size == 1 else size, f"{n.output}.taken_{name}")
        else:
            at = len(params) // 2
            params |= {f"stride{at}": strides[i], f"dilation{at}": dilations[i]}
        seen += name
        kernel += "ij"[i] if slides or size == 1 else name
        made += "vu"[i] if slides or size > 1 else name
    index = f"tc{seen},c{kernel},c->tc{made}" if depthwise else f"tc{seen},nc{kernel},n->tn{made}"
    bias, channels = _bias(low, n, weight.shape[:1]), (len(weight), 1, 1)
    op = "convolution" if params else "matmul"
    _products(low, n, op, index, x, weight, bias, weight.ndim - 1, channels=channels, params=params)


def _every(low: Lowering, n: GraphNode, x: Quantity, axis: int, step: int, size: int, name: str) -> Quantity:
    """`size` elements of an axis, from the first on."""
    if x.dims[axis] == size:
        return x
    axes = letters(len(x.dims))
    params = {"start": 0, "step": step, "size": size}
    index = f"t{axes}->t{axes.replace(axes[axis], 'z')}"
    value = low.node("take", index, (x,), name, n.loc, params, x.unit, sizes={"z": size})
    return replace(x, value=value, dims=low.dims[value])


def positions_conv1d(low: Lowering, n: GraphNode) -> None:
    x, weight = low.need(n.inputs[0], low.recipe.operand), low.graph.parameters[n.inputs[1]]
    bias, channels = _bias(low, n, weight.shape[:1]), (1, len(weight))
    params = {"stride0": 1, "dilation0": 1}
    _products(low, n, "convolution", "tlc,cj,c->tmc", x, weight, bias, 1, channels=channels, params=params)


def _ring(low: Lowering, n: GraphNode, x: Quantity, steps: int) -> str:
    """The last inputs, which start at 0; their number is an axis even where it is 1."""
    name = low.state(f"{n.output}.ring", (steps, *x.dims), IntType(x.known.bits), x.unit)
    held = low.states[-1]
    kept = (steps, *(d for d in x.dims if d != 1))
    low.states[-1] = replace(held, type=replace(held.type, shape=kept))
    return name


def causal_conv1d(low: Lowering, n: GraphNode) -> None:
    """As `linear`; the ring holds the quantized input and starts at 0."""
    x, weight = low.need(n.inputs[0], low.recipe.operand), low.graph.parameters[n.inputs[1]]
    ring = _ring(low, n, x, weight.shape[1] - 1)
    _products(low, n, "causal_conv1d", "tc,cj,c->tc", x, weight, _bias(low, n, weight.shape[:1]), 1, state=ring)


def causal_fir(low: Lowering, n: GraphNode) -> None:
    x, weight = low.need(n.inputs[0], low.recipe.operand), low.graph.parameters[n.inputs[1]]
    ring = _ring(low, n, x, weight.shape[2] - 1)
    _products(low, n, "causal_conv1d", "tc,ncj,n->tn", x, weight, _bias(low, n, weight.shape[:1]), 2, state=ring)


def history(low: Lowering, n: GraphNode) -> None:
    x, length = low.need(n.inputs[0], low.width(n.output)), n.integer("length")
    ring = _ring(low, n, x, length - 1)
    axes = letters(len(x.dims))
    index, params = f"t{axes}->tw{axes}", {"length": length}
    value = low.node(
        "history", index, (x,), n.output, n.loc, params, x.unit, ring, sizes={"w": length}
    )  # fmt: skip
    low.quantities[n.output] = Quantity(value, low.graph.dims[n.output], x.scale, x.known)


def embedding(low: Lowering, n: GraphNode) -> None:
    """Rows of a table with one scale; rows that no identifier reaches are zero."""
    ids, table = low.quantities[n.inputs[0]], low.graph.parameters[n.inputs[1]]
    bits = low.width(n.output)
    scale = low.scale_of(n.output, bits)
    codes = np.clip(np.rint(table / scale), -largest(bits), largest(bits)).astype(np.int64)
    codes = np.pad(codes, ((0, ids.known.hi + 1 - len(codes)), (0, 0)))
    rows = low.constant(f"{n.output}.table", codes, IntType(bits), scale)
    lead = "xyzw"[: len(ids.dims)]
    index = f"t{lead},vc->t{lead}c"
    value = low.node("embedding", index, (ids, rows), low.name(n.output, bits), n.loc, {}, scale)
    known = Interval(int(codes.min()), int(codes.max()))
    low.quantities[n.output] = Quantity(value, low.graph.dims[n.output], np.asarray(scale), known)


def einsum(low: Lowering, n: GraphNode) -> None:
    """A product of two values, exact."""
    a, b = (low.need(i, low.recipe.operand) for i in n.inputs)
    operands, _, output = n.text("index").partition("->")
    left, right = operands.split(",")
    sizes = dict(zip(left, a.dims, strict=True)) | dict(zip(right, b.dims, strict=True))
    count = math.prod(d for k, d in sizes.items() if k not in output)
    reach = count * a.magnitude * b.magnitude
    params = {"acc": accumulator_bits(reach)}
    scale = a.unit * b.unit
    index = f"t{left},t{right}->t{output}"
    acc = low.node("dot", index, (a, b), f"{n.output}.acc", n.loc, params, scale)
    _settle(low, n, acc, np.asarray(scale), reach)


def reduce(low: Lowering, n: GraphNode) -> None:
    """A sum, the same sum at another scale for a mean, or the largest."""
    x, axes, how = low.need(n.inputs[0], low.recipe.wide_bits), n.integers("axes"), n.text("how")
    labels = letters(len(x.dims))
    gone = "".join(labels[i] for i in axes)
    kept = "".join(k for k in labels if k not in gone)
    count = math.prod(x.dims[i] for i in axes)
    known = x.known if how == "max" else Interval(count * min(x.known.lo, 0), count * max(x.known.hi, 0))
    params = {"acc": accumulator_bits(max(abs(known.lo), abs(known.hi)))}
    op = "reduce_max" if how == "max" else "reduce_sum"
    scale = x.unit / (count if how == "mean" else 1)
    acc = low.node(op, f"t{labels}->t{kept}", (x,), f"{n.output}.acc", n.loc, params, scale)
    low.dims[acc] = low.graph.dims[n.output]
    low.accumulator(n, acc, scale, known)
    low.sums[n.output] = low.quantities[n.output]
    if how == "max" and x.trained:
        low.quantities[n.output] = replace(low.quantities[n.output], trained=True)
