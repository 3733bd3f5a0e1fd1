"""Convolution, pooling and normalisation of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from isobit.quant.capture.rules.builder import Rule

if TYPE_CHECKING:
    from isobit.quant.capture.capture import Capture


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, list | tuple):
        first, last = int(value[0]), int(value[-1])
        return first, last
    assert isinstance(value, int)
    return value, value


def conv2d(c: Capture, n: fx.Node) -> None:
    x, weight = c.value(n, 0), c.parameter(n, 1)
    stride, dilation = _pair(c.argument(n, 3, "stride", 1)), _pair(c.argument(n, 5, "dilation", 1))
    groups, padding = c.argument(n, 6, "groups", 1), c.argument(n, 4, "padding", 0)
    if len(c.dims[x]) != 3:
        raise c.error(n, f"conv2d of a value {c.dims[x]}, expected (channels, height, width)")
    kernel = c.parameters[weight].shape[-2:]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = tuple(p for t in total for p in (t // 2, t - t // 2))
    elif padding == "valid":
        pads = (0, 0, 0, 0)
    else:
        high, wide = _pair(padding)
        pads = (high, high, wide, wide)
    if groups == c.dims[x][0] == len(c.parameters[weight]) and groups != 1:
        weight = c.enter(f"{weight}[:, 0]", torch.from_numpy(c.parameters[weight][:, 0]))
    elif groups != 1:
        raise c.error(n, f"conv2d in {groups} groups, expected 1, or one for each of as many channels out as in")
    bias = (c.parameter(n, 2),) if c.optional(n, 2) else ()
    c.emit(n, "conv2d", (x, weight, *bias), stride=stride, dilation=dilation, padding=pads)


def batch_norm(c: Capture, n: fx.Node) -> None:
    """x * g + h with g = weight / sqrt(var + eps), h = bias - mean * g, along the first axis of dims."""
    x = c.value(n, 0)
    named = [c.parameter(n, i) if c.optional(n, i) else "" for i in (1, 2, 3, 4)]
    if not named[2]:
        raise c.error(n, "batch_norm without running statistics is not supported")
    weight, bias, mean, var = (torch.from_numpy(c.parameters[p]) if p else None for p in named)
    assert mean is not None
    assert var is not None
    whole = str(n.target) == "aten.batch_norm.default"
    if whole and n.args[5]:
        raise c.error(n, "batch_norm in training mode is not supported: call model.eval() before the export")
    eps = n.args[7 if whole else 6]
    assert isinstance(eps, float)
    channels = (-1, *[1] * (len(c.dims[x]) - 1))
    gain = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
    shift = -mean * gain if bias is None else bias - mean * gain
    loc = c.loc(n)
    names = c.enter(f"{loc}.gain", gain.reshape(channels)), c.enter(f"{loc}.shift", shift.reshape(channels))
    scaled = c.add(n, "scale", (x, names[0]), "scale", c.dims[x], {})
    c.add(n, "offset", (scaled, names[1]), "", c.dims[x], {})
    if not whole:
        c.unusable |= {u: "statistics of batch_norm are not supported" for u in n.users if u.args[1] != 0}
        c.values |= {u: c.values[n] for u in n.users if u.args[1] == 0}


def pool(how: str) -> Rule:
    """Pooling without overlap: the axes are split, the inner ones reduced."""

    def rule(c: Capture, n: fx.Node) -> None:
        x = c.value(n, 0)
        kernel = _pair(n.args[1])
        stride = _pair(n.args[2]) if len(n.args) > 2 and n.args[2] else kernel
        padding = _pair(n.args[3]) if len(n.args) > 3 else (0, 0)
        if how == "max":
            plain = _pair(c.argument(n, 4, "dilation", 1)) == (1, 1)
        else:
            plain = c.argument(n, 6, "divisor_override") is None
        channels, high, wide = c.dims[x]
        if not plain or stride != kernel or padding != (0, 0) or high % kernel[0] or wide % kernel[1]:
            raise c.error(
                n,
                f"{n.target} of {high} x {wide} by {kernel}, stride {stride}, padding {padding}: expected windows that "
                "do not overlap and cover the image, without dilation or another divisor; use a strided convolution",
            )
        dims = (channels, high // kernel[0], kernel[0], wide // kernel[1], kernel[1])
        split = c.add(n, "reshape", (x,), "windows", dims, {"dims": dims})
        c.emit(n, "reduce", (split,), how, how=how, axes=(2, 4), keep=0)

    return rule


def adaptive_avg_pool(c: Capture, n: fx.Node) -> None:
    if _pair(n.args[1]) != (1, 1):
        raise c.error(n, f"{n.target} to {n.args[1]}, expected 1 x 1")
    c.emit(n, "reduce", (c.value(n, 0),), "mean", how="mean", axes=(1, 2), keep=1)


def pixel_shuffle(c: Capture, n: fx.Node) -> None:
    x, r = c.value(n, 0), n.args[1]
    assert isinstance(r, int)
    channels, high, wide = c.dims[x]
    split = (channels // (r * r), r, r, high, wide)
    x = c.add(n, "reshape", (x,), "split", split, {"dims": split})
    moved = (split[0], high, r, wide, r)
    x = c.add(n, "permute", (x,), "permute", moved, {"order": (0, 3, 1, 4, 2)})
    dims = c.shape(n)
    c.add(n, "reshape", (x,), "pixel_shuffle", dims, {"dims": dims})
