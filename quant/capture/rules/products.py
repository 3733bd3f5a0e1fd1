"""Matrix products and einsum: layers where one side is a parameter, else products of values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx

from isobit.quant.capture.graph import Dims

if TYPE_CHECKING:
    from isobit.quant.capture.capture import Capture


def repeated(c: Capture, n: fx.Node, x: str, dims: Dims) -> str:
    """Copies of a value along axes that it lacks, or where it has one element, joined."""
    have = (1,) * (len(dims) - len(c.dims[x])) + c.dims[x]
    if have != c.dims[x]:
        x = c.add(n, "reshape", (x,), "reshape", have, {"dims": have})
    for axis, (d, wanted) in enumerate(zip(have, dims, strict=True)):
        if d != wanted:
            have = (*have[:axis], wanted, *have[axis + 1 :])
            x = c.add(n, "concat", (x,) * wanted, "repeat", have, {"axis": axis})
    return x


def matmul(c: Capture, n: fx.Node) -> None:
    if not c.is_value(n.args[1]):
        weight = c.parameter(n, 1)
        if c.parameters[weight].ndim != 2:
            raise c.error(n, f"{n.target} with a parameter of shape {c.parameters[weight].shape}, expected a matrix")
        transposed = c.enter(f"{weight}.T", torch.from_numpy(c.parameters[weight].T.copy()))
        c.emit(n, "linear", (c.value(n, 0), transposed), contracted=1)
        return
    a, b = c.value(n, 0), c.value(n, 1)
    rank = len(c.dims[a])
    if rank < 2 or len(c.dims[b]) != rank or c.dims[a][: rank - 2] != c.dims[b][: rank - 2]:
        raise c.error(n, f"{n.target} of {c.dims[a]} and {c.dims[b]}: expected equal ranks and leading axes")
    batch = "hgef"[: rank - 2]
    c.emit(n, "einsum", (a, b), "matmul", index=f"{batch}mk,{batch}kn->{batch}mn")


def einsum(c: Capture, n: fx.Node) -> None:
    """Of values, two at a time; with one parameter at most, which is a layer's or a factor."""
    equation, operands = n.args[0], n.args[1]
    assert isinstance(equation, str)
    assert isinstance(operands, list | tuple)
    given, _, output = equation.replace(" ", "").partition("->")
    parts = given.split(",")
    if "." in equation or not output or any(len(set(p)) != len(p) for p in (*parts, output)):
        raise c.error(n, f"einsum '{equation}': expected all axes named, once in each operand, and an output")
    lead = _lead(c, n, output)
    values, factors = [], []
    for o, p in zip(operands, parts, strict=True):
        if not c.is_value(o):
            factors.append((o, p))
            continue
        if _lead(c, o, p) != lead:
            raise c.error(n, f"einsum '{equation}': batch and time must stay, in values and output")
        values.append((c.values[o], _without(p, lead)))
    out = _without(output, lead)
    if len(factors) > 1 or any(k in lead for _, p in factors for k in p):
        raise c.error(n, f"einsum '{equation}': expected at most one parameter, which has neither batch nor time")
    while len(values) > (1 if factors else 2):
        (a, p), (b, q), *rest = values
        later = "".join([out, *(w for _, w in (*rest, *factors))])
        made = "".join(k for k in dict.fromkeys(p + q) if k in later)
        values = [(_product(c, n, (a, p), (b, q), made), made), *rest]
    if factors:
        _with_parameter(c, n, values[0], factors[0], out)
    elif len(values) == 2:
        c.values[n] = _product(c, n, values[0], values[1], out)
    else:
        raise c.error(n, f"einsum '{equation}' of one operand is not supported: use sum and permute")


def _lead(c: Capture, n: fx.Node, labels: str) -> tuple[str, ...]:
    """The letters of the batch and of time."""
    time = c.time_axis(n)
    return (labels[0],) if time is None else (labels[1 if time == 0 else 0], labels[time])


def _without(labels: str, lead: tuple[str, ...]) -> str:
    return "".join(k for k in labels if k not in lead)


def _product(c: Capture, n: fx.Node, first: tuple[str, str], second: tuple[str, str], out: str) -> str:
    """Of two values with labelled axes: where nothing is summed it is elementwise."""
    (a, p), (b, q) = first, second
    sizes = dict(zip(p, c.dims[a], strict=True)) | dict(zip(q, c.dims[b], strict=True))
    dims = tuple(sizes[k] for k in out)
    if set(p + q) != set(out):
        return c.add(n, "einsum", (a, b), "einsum", dims, {"index": f"{p},{q}->{out}"})
    return c.add(n, "mul", (_aligned(c, n, a, p, out), _aligned(c, n, b, q, out)), "einsum", dims, {})


def _aligned(c: Capture, n: fx.Node, x: str, labels: str, out: str) -> str:
    """A value with its axes in the order of `out`, with 1 element for those that it lacks."""
    order = tuple(labels.index(k) for k in out if k in labels)
    if order != tuple(range(len(labels))):
        x = c.add(n, "permute", (x,), "permute", tuple(c.dims[x][i] for i in order), {"order": order})
    sizes = dict(zip((k for k in out if k in labels), c.dims[x], strict=True))
    dims = tuple(sizes.get(k, 1) for k in out)
    return x if dims == c.dims[x] else c.add(n, "reshape", (x,), "reshape", dims, {"dims": dims})


def _with_parameter(c: Capture, n: fx.Node, value: tuple[str, str], factor: tuple[object, str], out: str) -> None:
    """A linear layer, one for each group, or a factor."""
    (x, p), w = value, factor[1]
    operand = factor[0]
    assert isinstance(operand, fx.Node)
    name = c.enter(*c.tensors[operand])
    array = torch.from_numpy(c.parameters[name])
    shared, summed = ("".join(k for k in p if k in w and (k in out) is kept) for kept in (True, False))
    new = "".join(k for k in w if k not in p)
    if not summed and all(k in out for k in p + w):
        order = [w.index(k) for k in out if k in w]
        sizes = dict(zip(w, array.shape, strict=True)) | dict(zip(p, c.dims[x], strict=True))
        shaped = array.permute(order).reshape([sizes[k] if k in w else 1 for k in out])
        x = repeated(c, n, _aligned(c, n, x, p, out), tuple(sizes[k] for k in out))
        c.emit(n, "scale", (x, c.enter(f"{name}.for({out})", shaped)), "einsum")
        return
    if not shared:
        kind, order = "linear", [w.index(k) for k in new + summed if k in w]
        fits = p.endswith(summed) and out == p[: len(p) - len(summed)] + new
    else:
        kind, order = "grouped_linear", [w.index(k) for k in shared + new + summed if k in w]
        fits = p == shared + summed and out == shared + new and len(shared) == len(new) == len(summed) == 1
    if not summed or not fits or any(k not in out for k in new):
        raise c.error(
            n, f"einsum '{n.args[0]}' with a parameter: expected one like a linear layer, one per group, or a factor"
        )
    c.emit(n, kind, (x, c.enter(f"{name}.permuted", array.permute(order))), contracted=len(summed))


def fitting(c: Capture, n: fx.Node, x: str, parameter: str) -> tuple[str, str]:
    """A value and a parameter that broadcasts with it, not along the batch or time, both as operands of one node."""
    array, dims = c.parameters[parameter], c.dims[x]
    if array.ndim > len(dims):
        lead = array.ndim - len(dims)
        if array.shape[:lead] != (1,) * lead or lead > (2 if c.timed else 1):
            raise c.error(n, f"{n.target} of {dims} and a parameter of shape {array.shape}")
        array = array.reshape(array.shape[lead:])
        parameter = c.enter(f"{parameter}[0]", torch.from_numpy(array))
    if any(p != d and 1 not in (p, d) for p, d in zip(reversed(array.shape), reversed(dims), strict=False)):
        raise c.error(n, f"{n.target} with a parameter of shape {array.shape}, expected one that broadcasts to {dims}")
    return repeated(c, n, x, np.broadcast_shapes(dims, array.shape)), parameter
