"""Functions of one value: activations, norms, softmax."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import fx

from isobit.quant.capture.rules.builder import Rule

if TYPE_CHECKING:
    from isobit.quant.capture.capture import Capture


def unary(op: str) -> Rule:
    return lambda c, n: c.emit(n, op, (c.value(n, 0),), op)


def gelu(c: Capture, n: fx.Node) -> None:
    form = n.kwargs.get("approximate", "none")
    c.emit(n, "gelu" if form == "none" else "gelu_tanh", (c.value(n, 0),), "gelu")


def softplus(c: Capture, n: fx.Node) -> None:
    if n.args[1:] not in ((), (1,), (1, 20)) or n.kwargs:
        raise c.error(n, f"softplus with beta and threshold {n.args[1:]}, expected 1 and 20")
    c.emit(n, "softplus", (c.value(n, 0),), "softplus")


def elu(c: Capture, n: fx.Node) -> None:
    if any(v != 1 for v in n.args[1:]):
        raise c.error(n, f"elu with {n.args[1:]}, expected alpha 1")
    c.emit(n, "elu", (c.value(n, 0),), "elu")


def clamp(lo: float, hi: float, role: str) -> Rule:
    return lambda c, n: c.emit(n, "clamp", (c.value(n, 0),), role, lo=lo, hi=hi)


def clamp_to(c: Capture, n: fx.Node) -> None:
    lo, hi = c.argument(n, 1, "min"), c.argument(n, 2, "max")
    if not all(v is None or isinstance(v, int | float) for v in (lo, hi)):
        raise c.error(n, "clamp between tensors is not supported, only between numbers")
    low = float(lo) if isinstance(lo, int | float) else -math.inf
    high = float(hi) if isinstance(hi, int | float) else math.inf
    c.emit(n, "clamp", (c.value(n, 0),), "clamp", lo=low, hi=high)


def leaky_relu(c: Capture, n: fx.Node) -> None:
    slope = c.argument(n, 1, "negative_slope", 0.01)
    assert isinstance(slope, int | float)
    c.emit(n, "prelu", (c.value(n, 0), c.enter(str(slope), torch.tensor(float(slope)))), "leaky_relu")


def prelu(c: Capture, n: fx.Node) -> None:
    """The slope belongs to axis 1 of the user's tensor: the first axis of an image's dims."""
    x, slope = c.value(n, 0), c.parameter(n, 1)
    if c.parameters[slope].size > 1:
        if c.timed:
            raise c.error(n, "prelu with a slope per time step is not supported: axis 1 is time")
        shape = (-1, *[1] * (len(c.dims[x]) - 1))
        slope = c.enter(f"{slope}[:, None]", torch.from_numpy(c.parameters[slope].reshape(shape)))
    else:
        slope = c.enter(f"{slope}[0]", torch.from_numpy(c.parameters[slope].reshape(())))
    c.emit(n, "prelu", (x, slope), "prelu")


def softmax(c: Capture, n: fx.Node) -> None:
    x, dim = c.value(n, 0), n.args[1]
    assert isinstance(dim, int)
    if c.axis(n, dim) != len(c.dims[x]) - 1:
        raise c.error(n, "softmax along the last axis is supported, no other")
    c.emit(n, "softmax", (x,), "softmax")


def norm(op: str) -> Rule:
    def rule(c: Capture, n: fx.Node) -> None:
        x = c.value(n, 0)
        over = n.args[1]
        assert isinstance(over, list)
        dims = c.dims[x]
        if tuple(over) != dims[len(dims) - len(over) :]:
            raise c.error(n, f"{op} over {over}, expected over the last axes of {dims}")
        weights = [c.parameter(n, i) for i in ((2, 3) if op == "layer_norm" else (2,)) if c.optional(n, i)]
        if not weights:
            ones = torch.ones(over, dtype=torch.float64)
            weights = [c.enter(f"ones({', '.join(map(str, over))})", ones)]
        eps = c.argument(n, 4 if op == "layer_norm" else 3, "eps")
        default = 1e-5 if op == "layer_norm" else torch.finfo(n.meta["val"].dtype).eps
        eps = default if eps is None else eps
        assert isinstance(eps, int | float)
        c.emit(n, op, (x, *weights), eps=float(eps), over=len(over))

    return rule


def l2norm(c: Capture, n: fx.Node) -> None:
    eps = c.argument(n, 1, "eps", 1e-6)
    assert isinstance(eps, int | float)
    c.emit(n, "l2norm", (c.value(n, 0),), eps=float(eps), over=1)


def dropout(c: Capture, n: fx.Node) -> None:
    if len(n.args) < 3 or n.args[2]:
        raise c.error(n, "dropout in training mode is not supported: call model.eval() before the export")
    c.values[n] = c.value(n, 0)
