"""Sums and products of values and parameters, reductions, conversions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from isobit.quant.capture.graph import Dims
from isobit.quant.capture.rules.builder import Rule
from isobit.quant.capture.rules.products import fitting

if TYPE_CHECKING:
    from isobit.quant.capture.capture import Capture


def linear(c: Capture, n: fx.Node) -> None:
    bias = (c.parameter(n, 2),) if c.optional(n, 2) else ()
    c.emit(n, "linear", (c.value(n, 0), c.parameter(n, 1), *bias), contracted=1)


def embedding(c: Capture, n: fx.Node) -> None:
    weight, ids = c.parameter(n, 0), c.value(n, 1)
    if ids != c.input:
        raise c.error(n, "an embedding of computed identifiers is not supported, only of the model's input")
    c.vocabulary = len(c.parameters[weight])
    c.emit(n, "embedding", (ids, weight))


def _numbers(c: Capture, n: fx.Node) -> list[bool]:
    """Of both operands, whether they are known before any input."""
    if n.kwargs:
        raise c.error(n, f"{n.target} with {dict(n.kwargs)} is not supported: multiply one operand first")
    return [not c.is_value(a) for a in n.args[:2]]


def _with_parameter(c: Capture, n: fx.Node, op: str, role: str) -> None:
    known = _numbers(c, n)
    x = c.value(n, known.index(False))
    c.emit(n, op, fitting(c, n, x, c.parameter(n, known.index(True))), role)


def mul(c: Capture, n: fx.Node) -> None:
    known = _numbers(c, n)
    if any(known):
        x, factor = c.value(n, known.index(False)), c.parameter(n, known.index(True))
        if c.dims[x][-1:] == (1,) and c.parameters[factor].ndim == 1 and c.parameters[factor].size > 1:
            column = c.enter(f"{factor}[:, None]", torch.from_numpy(c.parameters[factor][:, None].copy()))
            c.emit(n, "linear", (x, column), "outer", contracted=1)
        else:
            _with_parameter(c, n, "scale", "scale")
    else:
        c.emit(n, "mul", (c.value(n, 0), c.value(n, 1)), "mul")


def add(c: Capture, n: fx.Node) -> None:
    if any(_numbers(c, n)):
        _with_parameter(c, n, "offset", "offset")
    else:
        c.emit(n, "add", (c.value(n, 0), c.value(n, 1)), "add")


def _negated(c: Capture, n: fx.Node, x: str, dims: Dims) -> str:
    minus = c.enter("-1.0", torch.tensor(-1.0, dtype=torch.float64))
    return c.add(n, "scale", (x, minus), "neg", dims, {})


def sub(c: Capture, n: fx.Node) -> None:
    known = _numbers(c, n)
    if not any(known):
        c.emit(n, "sub", (c.value(n, 0), c.value(n, 1)), "sub")
        return
    name = c.parameter(n, known.index(True))
    x = c.value(n, known.index(False))
    if known[1]:
        name = c.enter(f"-{name}", -torch.from_numpy(c.parameters[name]))
    else:
        x = _negated(c, n, x, c.dims[x])
    c.emit(n, "offset", fitting(c, n, x, name), "sub")


def reverse_sub(c: Capture, n: fx.Node) -> None:
    """parameter - x."""
    x = _negated(c, n, c.value(n, 0), c.dims[c.value(n, 0)])
    c.emit(n, "offset", fitting(c, n, x, c.parameter(n, 1)), "sub")


def div(c: Capture, n: fx.Node) -> None:
    if c.is_value(n.args[1]) and not c.is_value(n.args[0]):
        raise c.error(n, "a parameter divided by a value is not supported: divide values, or multiply")
    if c.is_value(n.args[1]):
        c.emit(n, "div", (c.value(n, 0), c.value(n, 1)), "div")
        return
    name, x = c.parameter(n, 1), c.value(n, 0)
    inverse = c.enter(f"1/{name}", 1 / torch.from_numpy(c.parameters[name]))
    c.emit(n, "scale", fitting(c, n, x, inverse), "scale")


def neg(c: Capture, n: fx.Node) -> None:
    _negated(c, n, c.value(n, 0), c.shape(n))


def maximum(c: Capture, n: fx.Node) -> None:
    c.emit(n, "maximum", (c.value(n, 0), c.value(n, 1)), "maximum")


def power(c: Capture, n: fx.Node) -> None:
    x, exponent = c.value(n, 0), n.args[1]
    if exponent == 2:
        c.emit(n, "mul", (x, x), "square")
    elif exponent == 0.5:
        c.emit(n, "sqrt", (x,), "sqrt")
    else:
        raise c.error(n, f"the power {exponent} is not supported, expected 2 or 0.5")


def rsqrt(c: Capture, n: fx.Node) -> None:
    c.emit(n, "rsqrt", (c.value(n, 0),), "rsqrt", eps=0.0)


def reduce(how: str) -> Rule:
    def rule(c: Capture, n: fx.Node) -> None:
        x, axes = c.value(n, 0), c.argument(n, 1, "dim")
        rank = len(c.dims[x]) + (2 if c.timed else 1)
        if axes is None or axes == []:
            raise c.error(n, f"{how} over everything mixes the batch: name the axes")
        named = axes if isinstance(axes, list) else [axes]
        within = sorted(c.axis(n, a, rank) for a in named if isinstance(a, int))
        keep = bool(c.argument(n, 2, "keepdim", False))
        c.emit(n, "reduce", (x,), how, how=how, axes=tuple(within), keep=int(keep))

    return rule


def converted(c: Capture, n: fx.Node) -> None:
    """Nothing between float32 and float64, or between integers."""
    source = n.args[0]
    assert isinstance(source, fx.Node)
    before, after = source.meta["val"].dtype, n.meta["val"].dtype
    real = {before, after} <= {torch.float32, torch.float64}
    whole = not any(t.is_floating_point or t.is_complex for t in (before, after))
    if not (before == after or real or whole):
        raise c.error(n, f"{n.target} from {before} to {after} is not supported, expected float32 or float64")
    c.values[n] = c.value(n, 0)
