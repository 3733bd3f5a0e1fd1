"""Lowering of sums of products: linear layers, convolutions, products of two values, embeddings."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from isobit.quant.capture.graph import Floats, GraphNode
from isobit.quant.errors import InputError
from isobit.quant.expr.interval import Interval
from isobit.quant.formats import FORMATS, format_named
from isobit.quant.formats.blocks import Blocks, quantized_rows
from isobit.quant.formats.format import Format
from isobit.quant.lower.blocks import block_of, blocked_products, operand
from isobit.quant.lower.lowering import Lowering
from isobit.quant.lower.moves import padded, recent
from isobit.quant.lower.quantity import Coded, Quantity, accumulator_bits, largest, letters
from isobit.quant.lower.sums import (
    Moments,
    Ring,
    Start,
    corrected,
    element_of,
    exact_sum,
    importance,
    least_steps,
    settle,
    settle_sum,
)
from isobit.quant.lower.terms import (
    largest_dot,
    largest_sums,
    new_axes,
    term_op,
    term_params,
    term_unit,
    weight_constant,
)
from isobit.quant.program import Array, IntType
from isobit.quant.storage import tightest

PRECISE = FORMATS["int16"]
"""Of the weights of a matrix that is applied at every step to what it made one step before."""


def _products(
    low: Lowering, n: GraphNode, op: str, index: str, x: Quantity, weight: Floats, bias: Floats, along: str,
    format: Format | None = None, channels: tuple[int, ...] = (), state: Ring | None = None,
    params: dict[str, int] | None = None, moments: Moments | None = None,
) -> None:  # fmt: skip
    """Sums of x * weight over the axes that the bias lacks; each of its elements, an output, has its own scale.

    along: the labels of input channels, along which weights are in blocks; empty where an output has one.  format: of
    the weights, if not the recipe's.  channels: the bias's shape as a value's dims see it, with 1 where it is constant.
    moments: of x.  Weights that are integers stay what they are.
    """
    if weight.dtype.kind == "i":
        integers = weight.astype(np.int64)
        kernel, start = _trained_kernel(low, n, x, integers), Start(bias, np.asarray(x.unit))
        sums = largest_sums(x, integers.reshape(bias.size, -1))
        _sums(low, n, op, index, x, kernel, sums, start, channels, state, params)
        return
    chosen = format or format_named(low.recipe.weights)
    if isinstance(chosen, Blocks) and block_of(chosen, weight, bias.ndim, len(along)):
        blocked_products(low, n, op, index, x, weight, bias, along, chosen, channels, state, params, moments)
        return
    rows, starts = weight.reshape(bias.size, -1), bias.ravel()
    q = quantized_rows(rows, chosen, least_steps(starts, x, chosen), importance=importance(weight, rows, moments))
    element = element_of(chosen)
    kernel = weight_constant(low, n, x, q.codes.reshape(weight.shape), element)
    units = term_unit(x) * (q.steps.max() if element.shared else q.steps)
    start = Start(corrected(bias, weight, q, moments), np.asarray(units))
    _sums(low, n, op, index, x, kernel, largest_sums(x, q.codes, element), start, channels, state, params)


def _trained_kernel(low: Lowering, n: GraphNode, x: Quantity, integers: Array) -> str:
    """Weights that came with the model as integers, stored in as few bits as integers or minifloats take."""
    if isinstance(x, Coded):
        raise InputError(
            f"{n.loc}: its weights came with the model, as integers, and multiplier '{low.recipe.multiplier}' takes "
            "codes of minifloats: choose multiplier 'exact' for this layer"
        )
    elem, mantissa = tightest(integers)
    return low.constant(f"{n.output}.weight", integers, elem, mantissa=mantissa)


def _sums(
    low: Lowering, n: GraphNode, op: str, index: str, x: Quantity, kernel: str, sums: npt.NDArray[np.object_],
    start: Start, channels: tuple[int, ...], state: Ring | None, params: dict[str, int] | None,
) -> None:  # fmt: skip
    """`_products` with the constant `kernel`; sums: the largest magnitudes of x's products, of every row."""

    def emit(part: Quantity, role: str, acc: dict[str, int], first: str) -> str:
        ring = state(part, role) if state else None
        own = {**(params or {}), **term_params(x), **acc}
        sizes, name = new_axes(low, n, index), f"{n.output}.acc{role}"
        return low.node(term_op(x, op), index, (part, kernel, first), name, n.loc, own, state=ring, sizes=sizes)

    acc, unit, reach = exact_sum(low, n, x, int(sums.max()), start, emit)
    reach = min(reach, int((sums + start.magnitudes).max())) if unit == 1 else reach
    settle_sum(low, n, acc, unit, reach, start, channels)


def _bias(low: Lowering, n: GraphNode, shape: tuple[int, ...]) -> Floats:
    return low.graph.parameters[n.inputs[2]] if len(n.inputs) > 2 else np.zeros(shape)


def _moments(low: Lowering, n: GraphNode, over: tuple[int, ...], more: int = 0) -> Moments:
    """Of the operand, also over these of its axes; `more` axes of the weight follow that it lacks."""
    found = (of[n.inputs[0]].mean(over) for of in (low.calibration.means, low.calibration.squares))
    return Moments(*(m.reshape(*m.shape, *(1,) * more) for m in found))


def linear(low: Lowering, n: GraphNode) -> None:
    """An accumulator with a scale per output channel; it is settled by whoever reads it.

    On what the layer itself made one step before, an error would grow: there, weights and operand are wide.
    """
    precise = bool(n.attr.get("precise"))
    weight, summed = low.graph.parameters[n.inputs[1]], n.integer("contracted")
    rows = weight.ndim - summed
    form, centre = low.recipe.operand, 0.0
    if precise:
        x = low.need(n.inputs[0], low.recipe.wide_bits)
    elif isinstance(form, Format) and not low.recipe.blocks and weight.dtype.kind != "i":
        x, centre = low.centred(n.inputs[0], form)
    else:
        x = operand(low, n, weight, rows, summed)
    lead = "xyzw"[: len(low.graph.dims[n.inputs[0]]) - summed]
    out, inner = "nopqs"[:rows], "klmij"[:summed]
    index = f"t{lead}{inner},{out}{inner},{out}->t{lead}{out}"
    channels = (1,) * len(lead) + weight.shape[:rows]
    bias = _bias(low, n, weight.shape[:rows])
    moments = replace(_moments(low, n, tuple(range(len(lead)))), centre=centre)
    _products(low, n, "matmul", index, x, weight, bias, inner, PRECISE if precise else None, channels, moments=moments)


def grouped_linear(low: Lowering, n: GraphNode) -> None:
    """A matrix of its own for every group."""
    weight = low.graph.parameters[n.inputs[1]]
    x = operand(low, n, weight, 2, 1)
    of = _moments(low, n, ())
    moments = Moments(of.mean[:, None], of.square[:, None])
    bias = _bias(low, n, weight.shape[:2])
    _products(low, n, "matmul", "tgk,gnk,gn->tgn", x, weight, bias, "k", moments=moments)


def conv2d(low: Lowering, n: GraphNode) -> None:
    """The image is padded first, so that the kernel never leaves it.

    The kernel slides along an axis where it has several elements and several places; else the axis is one of a plain
    product.
    """
    weight = low.graph.parameters[n.inputs[1]]
    padding, strides, dilations = n.integers("padding"), n.integers("stride"), n.integers("dilation")
    depthwise, made_dims = weight.ndim == 3, low.graph.dims[n.output]
    along = "" if depthwise else "c"
    x = operand(low, n, weight, 1, len(along))
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
    moments = _moments(low, n, (1, 2), 2)
    _products(low, n, op, index, x, weight, bias, along, channels=channels, params=params, moments=moments)


def _every(low: Lowering, n: GraphNode, x: Quantity, axis: int, step: int, size: int, name: str) -> Quantity:
    """`size` elements of an axis, from the first on."""
    if x.dims[axis] == size:
        return x
    axes = letters(len(x.dims))
    params = {"start": 0, "step": step, "size": size}
    index = f"t{axes}->t{axes.replace(axes[axis], 'z')}"
    value = low.node("take", index, (x,), name, n.loc, params, x.shown_scale, sizes={"z": size})
    return replace(x, value=value, dims=low.dims[value])


def positions_conv1d(low: Lowering, n: GraphNode) -> None:
    x, weight = low.need(n.inputs[0], low.recipe.operand), low.graph.parameters[n.inputs[1]]
    bias, channels = _bias(low, n, weight.shape[:1]), (1, len(weight))
    params = {"stride0": 1, "dilation0": 1}
    moments = _moments(low, n, (0,), 1)
    _products(
        low, n, "convolution", "tlc,cj,c->tmc", x, weight, bias, "", channels=channels, params=params, moments=moments
    )


def ring_of(low: Lowering, n: GraphNode, steps: int, x: Quantity, role: str = "") -> str:
    """The last inputs, which start at 0; their number is an axis even where it is 1."""
    name = low.state(f"{n.output}.ring{role}", (steps, *x.dims), IntType(x.known.bits), x.shown_scale)
    held = low.states[-1]
    kept = (steps, *(d for d in x.dims if d != 1))
    low.states[-1] = replace(held, type=replace(held.type, shape=kept))
    return name


def causal_conv1d(low: Lowering, n: GraphNode) -> None:
    """As `linear`; the ring holds the quantized input and starts at 0."""
    x, weight = low.need(n.inputs[0], low.recipe.operand), low.graph.parameters[n.inputs[1]]
    ring = partial(ring_of, low, n, weight.shape[1] - 1)
    bias, moments = _bias(low, n, weight.shape[:1]), _moments(low, n, (), 1)
    _products(low, n, "causal_conv1d", "tc,cj,c->tc", x, weight, bias, "", state=ring, moments=moments)


def causal_fir(low: Lowering, n: GraphNode) -> None:
    x, weight = low.need(n.inputs[0], low.recipe.operand), low.graph.parameters[n.inputs[1]]
    ring = partial(ring_of, low, n, weight.shape[2] - 1)
    bias, moments = _bias(low, n, weight.shape[:1]), _moments(low, n, (), 1)
    _products(low, n, "causal_conv1d", "tc,ncj,n->tn", x, weight, bias, "c", state=ring, moments=moments)


def history(low: Lowering, n: GraphNode) -> None:
    x, length = low.need(n.inputs[0], low.width(n.output)), n.integer("length")
    low.quantities[n.output] = recent(low, n, x, length, ring_of(low, n, length - 1, x), n.output)


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
    """A sum of products of two values."""
    a, b = (low.need(i, low.recipe.operand) for i in n.inputs)
    operands, _, output = n.text("index").partition("->")
    left, right = operands.split(",")
    sizes = dict(zip(left, a.dims, strict=True)) | dict(zip(right, b.dims, strict=True))
    count = math.prod(d for k, d in sizes.items() if k not in output)
    scale = term_unit(a) * b.unit
    index = f"t{left},t{right}->t{output}"

    def emit(part: Quantity, role: str, acc: dict[str, int], _: str) -> str:
        own, unit = {**term_params(a), **acc}, None if role else scale
        return low.node(term_op(a, "dot"), index, (part, b), f"{n.output}.acc{role}", n.loc, own, unit)

    acc, unit, reach = exact_sum(low, n, a, largest_dot(a, b, count), None, emit)
    settle(low, n, acc, np.asarray(scale * unit), reach)


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
