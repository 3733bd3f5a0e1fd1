"""RULES: one exported operator, one small function that adds its graph nodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import fx

from isobit.quant.capture import composite, loops, products, time_last, torch_cells
from isobit.quant.capture.graph import Dims

if TYPE_CHECKING:
    from isobit.quant.capture.capture import Capture

Rule = Callable[["Capture", fx.Node], object]

PART_ROLES = {
    ("isobit.selective_recurrence.default", 0): "u",
    ("isobit.selective_recurrence.default", 1): "dt",
    ("isobit.selective_recurrence.default", 3): "B",
    ("isobit.selective_recurrence.default", 4): "C",
    ("isobit.causal_conv1d.default", 0): "x",
    ("aten.silu.default", 0): "z",
}
"""What a part of a split projection is called, by the operand that it becomes."""


def _linear(c: Capture, n: fx.Node) -> None:
    bias = (c.parameter(n, 2),) if c.optional(n, 2) else ()
    c.emit(n, "linear", (c.value(n, 0), c.parameter(n, 1), *bias), contracted=1)


def _embedding(c: Capture, n: fx.Node) -> None:
    weight, ids = c.parameter(n, 0), c.value(n, 1)
    if ids != c.input:
        raise c.error(n, "an embedding of computed identifiers is not supported, only of the model's input")
    c.vocabulary = len(c.parameters[weight])
    c.emit(n, "embedding", (ids, weight))


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, list | tuple):
        first, last = int(value[0]), int(value[-1])
        return first, last
    assert isinstance(value, int)
    return value, value


def _conv2d(c: Capture, n: fx.Node) -> None:
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


def _batch_norm(c: Capture, n: fx.Node) -> None:
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


def _dropout(c: Capture, n: fx.Node) -> None:
    if len(n.args) < 3 or n.args[2]:
        raise c.error(n, "dropout in training mode is not supported: call model.eval() before the export")
    c.values[n] = c.value(n, 0)


def _norm(op: str) -> Rule:
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


def _l2norm(c: Capture, n: fx.Node) -> None:
    eps = c.argument(n, 1, "eps", 1e-6)
    assert isinstance(eps, int | float)
    c.emit(n, "l2norm", (c.value(n, 0),), eps=float(eps), over=1)


def _softmax(c: Capture, n: fx.Node) -> None:
    x, dim = c.value(n, 0), n.args[1]
    assert isinstance(dim, int)
    if c.axis(n, dim) != len(c.dims[x]) - 1:
        raise c.error(n, "softmax along the last axis is supported, no other")
    c.emit(n, "softmax", (x,), "softmax")


def _unary(op: str) -> Rule:
    return lambda c, n: c.emit(n, op, (c.value(n, 0),), op)


def _gelu(c: Capture, n: fx.Node) -> None:
    form = n.kwargs.get("approximate", "none")
    c.emit(n, "gelu" if form == "none" else "gelu_tanh", (c.value(n, 0),), "gelu")


def _softplus(c: Capture, n: fx.Node) -> None:
    if n.args[1:] not in ((), (1,), (1, 20)) or n.kwargs:
        raise c.error(n, f"softplus with beta and threshold {n.args[1:]}, expected 1 and 20")
    c.emit(n, "softplus", (c.value(n, 0),), "softplus")


def _elu(c: Capture, n: fx.Node) -> None:
    if any(v != 1 for v in n.args[1:]):
        raise c.error(n, f"elu with {n.args[1:]}, expected alpha 1")
    c.emit(n, "elu", (c.value(n, 0),), "elu")


def _clamp(lo: float, hi: float, role: str) -> Rule:
    return lambda c, n: c.emit(n, "clamp", (c.value(n, 0),), role, lo=lo, hi=hi)


def _clamp_to(c: Capture, n: fx.Node) -> None:
    lo, hi = c.argument(n, 1, "min"), c.argument(n, 2, "max")
    if not all(v is None or isinstance(v, int | float) for v in (lo, hi)):
        raise c.error(n, "clamp between tensors is not supported, only between numbers")
    low = float(lo) if isinstance(lo, int | float) else -math.inf
    high = float(hi) if isinstance(hi, int | float) else math.inf
    c.emit(n, "clamp", (c.value(n, 0),), "clamp", lo=low, hi=high)


def _leaky_relu(c: Capture, n: fx.Node) -> None:
    slope = c.argument(n, 1, "negative_slope", 0.01)
    assert isinstance(slope, int | float)
    c.emit(n, "prelu", (c.value(n, 0), c.enter(str(slope), torch.tensor(float(slope)))), "leaky_relu")


def _prelu(c: Capture, n: fx.Node) -> None:
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


def _power(c: Capture, n: fx.Node) -> None:
    x, exponent = c.value(n, 0), n.args[1]
    if exponent == 2:
        c.emit(n, "mul", (x, x), "square")
    elif exponent == 0.5:
        c.emit(n, "sqrt", (x,), "sqrt")
    else:
        raise c.error(n, f"the power {exponent} is not supported, expected 2 or 0.5")


def _rsqrt(c: Capture, n: fx.Node) -> None:
    c.emit(n, "rsqrt", (c.value(n, 0),), "rsqrt", eps=0.0)


def _numbers(c: Capture, n: fx.Node) -> list[bool]:
    """Of both operands, whether they are known before any input."""
    if n.kwargs:
        raise c.error(n, f"{n.target} with {dict(n.kwargs)} is not supported: multiply one operand first")
    return [not c.is_value(a) for a in n.args[:2]]


def _with_parameter(c: Capture, n: fx.Node, op: str, role: str) -> None:
    known = _numbers(c, n)
    x = c.value(n, known.index(False))
    c.emit(n, op, products.fitting(c, n, x, c.parameter(n, known.index(True))), role)


def _mul(c: Capture, n: fx.Node) -> None:
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


def _add(c: Capture, n: fx.Node) -> None:
    if any(_numbers(c, n)):
        _with_parameter(c, n, "offset", "offset")
    else:
        c.emit(n, "add", (c.value(n, 0), c.value(n, 1)), "add")


def _negated(c: Capture, n: fx.Node, x: str, dims: Dims) -> str:
    minus = c.enter("-1.0", torch.tensor(-1.0, dtype=torch.float64))
    return c.add(n, "scale", (x, minus), "neg", dims, {})


def _sub(c: Capture, n: fx.Node) -> None:
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
    c.emit(n, "offset", products.fitting(c, n, x, name), "sub")


def _reverse_sub(c: Capture, n: fx.Node) -> None:
    """parameter - x."""
    x = _negated(c, n, c.value(n, 0), c.dims[c.value(n, 0)])
    c.emit(n, "offset", products.fitting(c, n, x, c.parameter(n, 1)), "sub")


def _div(c: Capture, n: fx.Node) -> None:
    if c.is_value(n.args[1]) and not c.is_value(n.args[0]):
        raise c.error(n, "a parameter divided by a value is not supported: divide values, or multiply")
    if c.is_value(n.args[1]):
        c.emit(n, "div", (c.value(n, 0), c.value(n, 1)), "div")
        return
    name, x = c.parameter(n, 1), c.value(n, 0)
    inverse = c.enter(f"1/{name}", 1 / torch.from_numpy(c.parameters[name]))
    c.emit(n, "scale", products.fitting(c, n, x, inverse), "scale")


def _maximum(c: Capture, n: fx.Node) -> None:
    c.emit(n, "maximum", (c.value(n, 0), c.value(n, 1)), "maximum")


def _neg(c: Capture, n: fx.Node) -> None:
    _negated(c, n, c.value(n, 0), c.shape(n))


def _reshape(c: Capture, n: fx.Node) -> None:
    x, dims = c.value(n, 0), c.shape(n)
    if math.prod(dims) != math.prod(c.dims[x]):
        raise c.error(n, f"{n.target} of {c.dims[x]} to {dims}: batch and time must stay axes of their own")
    if dims == c.dims[x]:
        c.values[n] = x
    else:
        c.emit(n, "reshape", (x,), "reshape", dims=dims)


BROADCASTING = ("aten.mul.Tensor", "aten.add.Tensor", "aten.sub.Tensor", "aten.div.Tensor", "aten.maximum.default")


def _expand(c: Capture, n: fx.Node) -> None:
    """Nothing for operators that broadcast; else copies, joined."""
    x, dims = c.value(n, 0), c.shape(n)
    if all(str(user.target) in BROADCASTING for user in n.users):
        c.values[n] = x
        return
    c.values[n] = products.repeated(c, n, x, dims)


def _permuted(c: Capture, n: fx.Node, order: list[int]) -> None:
    source = n.args[0]
    assert isinstance(source, fx.Node)
    time = c.time_axis(source)
    lead = [0] if time is None else [1, 0] if time == 0 else [0, time]
    axes = [k for k in range(len(order)) if k not in lead]
    if order[0] not in lead or (time is not None and order.index(time) != c.time_axis(n)):
        raise c.error(n, f"{n.target} moves batch or time in a way that is not supported: expected (B, T, ...)")
    x, rest = c.value(n, 0), tuple(axes.index(k) for k in order if k in axes)
    if rest == tuple(range(len(rest))):
        c.values[n] = x
        c.shape(n)
    else:
        c.emit(n, "permute", (x,), "permute", order=rest)


def _permute(c: Capture, n: fx.Node) -> None:
    order, rank = n.args[1], len(n.meta["val"].shape)
    assert isinstance(order, list)
    _permuted(c, n, [int(k) % rank for k in order])


def _transpose(c: Capture, n: fx.Node) -> None:
    order = list(range(len(n.meta["val"].shape)))
    first, second = (int(k) % len(order) for k in n.args[1:3])  # type: ignore[arg-type]
    order[first], order[second] = order[second], order[first]
    _permuted(c, n, order)


def _matrix_transpose(c: Capture, n: fx.Node) -> None:
    order = list(range(len(n.meta["val"].shape)))
    order[-2:] = order[-1], order[-2]
    _permuted(c, n, order)


def _movedim(c: Capture, n: fx.Node) -> None:
    rank = len(n.meta["val"].shape)
    source, target = (int(k) % rank for k in n.args[1:3])  # type: ignore[arg-type]
    order = [k for k in range(rank) if k != source]
    order.insert(target, source)
    _permuted(c, n, order)


def sliced(c: Capture, n: fx.Node, x: str, axis: int, start: int, step: int, size: int, role: str = "part") -> str:
    """Elements start, start + step, ... of one axis of dims."""
    dims = (*c.dims[x][:axis], size, *c.dims[x][axis + 1 :])
    return c.add(n, "slice", (x,), role, dims, {"axis": axis, "start": start, "step": step, "size": size})


def _flip(c: Capture, n: fx.Node) -> None:
    x, axes = c.value(n, 0), n.args[1]
    assert isinstance(axes, list)
    for axis in axes:
        within = c.axis(n, int(axis))
        size = c.dims[x][within]
        x = sliced(c, n, x, within, size - 1, -1, size, "flip")


def _slice(c: Capture, n: fx.Node) -> None:
    x, operand = c.value(n, 0), n.args[0]
    dim, start, end, step = (
        c.argument(n, i, k, d) for i, k, d in ((1, "dim", 0), (2, "start", None), (3, "end", None), (4, "step", 1))
    )
    assert isinstance(operand, fx.Node)
    if operand.meta["val"].shape == n.meta["val"].shape:
        c.values[n] = x
        return
    if (
        not all(isinstance(v, int | None) for v in (start, end))
        or not isinstance(dim, int)
        or not isinstance(step, int)
    ):
        raise c.error(n, f"{n.target} with limits that depend on the input is not supported")
    axis = c.axis(n, dim)
    first, last, stride = slice(start, end, step).indices(c.dims[x][axis])
    sliced(c, n, x, axis, first, stride, len(range(first, last, stride)))


def _select(c: Capture, n: fx.Node) -> None:
    x, dim, index = c.value(n, 0), n.args[1], n.args[2]
    assert isinstance(dim, int)
    assert isinstance(index, int)
    axis = c.axis(n, dim)
    _item(c, n, x, axis, index % c.dims[x][axis])


def _item(c: Capture, n: fx.Node, x: str, axis: int, index: int) -> None:
    """One element of an axis, which disappears."""
    one = sliced(c, n, x, axis, index, 1, 1)
    dims = (*c.dims[x][:axis], *c.dims[x][axis + 1 :])
    c.add(n, "reshape", (one,), "item", dims, {"dims": dims})


def _part(c: Capture, n: fx.Node) -> None:
    """One part of a split value."""
    split, index = n.args
    assert isinstance(split, fx.Node)
    assert isinstance(index, int)
    if str(split.target) not in PARTS:
        raise c.error(n, f"an item of {split.target} is not supported; supported: items of {', '.join(PARTS)}")
    x = c.value(split, 0)
    if str(split.target) == "aten.unbind.int":
        dim = c.argument(split, 1, "dim", 0)
        assert isinstance(dim, int)
        _item(c, n, x, c.axis(split, dim), index)
        return
    dim = c.argument(split, 2, "dim", 0)
    assert isinstance(dim, int)
    try:
        axis = c.axis(split, dim)
    except Exception:
        raise c.error(n, f"{split.target} along time or batch is not supported, only along channels") from None
    sizes = [int(part.shape[axis + (2 if c.timed else 1)]) for part in split.meta["val"]]
    user = next(iter(n.users))
    role = PART_ROLES.get((str(user.target), user.args.index(n) if n in user.args else -1), f"part{index}")
    if str(user.target) == "aten.linear.default" and c.loc(user) != c.name:
        role = f"{c.loc(user).rpartition('.')[2]}_input"
    source = split.args[0]
    assert isinstance(source, fx.Node)
    n.meta["nn_module_stack"] = source.meta.get("nn_module_stack")
    sliced(c, n, x, axis, sum(sizes[:index]), 1, sizes[index], role)


def _cat(c: Capture, n: fx.Node) -> None:
    parts, dim = n.args[0], c.argument(n, 1, "dim", 0)
    assert isinstance(parts, list | tuple)
    assert isinstance(dim, int)
    if not all(c.is_value(p) for p in parts):
        raise c.error(n, f"{n.target} of a parameter and values is not supported")
    axis = c.axis(n, dim, len(n.meta["val"].shape))
    c.emit(n, "concat", [c.values[p] for p in parts], "concat", axis=axis)  # type: ignore[index]


def _pad(c: Capture, n: fx.Node) -> None:
    x, pads, rank = c.value(n, 0), n.args[1], len(c.dims[c.value(n, 0)])
    assert isinstance(pads, list)
    if c.argument(n, 2, "mode", "constant") != "constant" or c.argument(n, 3, "value", 0) not in (None, 0, 0.0):
        raise c.error(n, "padding with anything but zeros is not supported")
    if len(pads) // 2 > rank:
        raise c.error(n, "padding of batch or time is not supported: use CausalConv1d, whose history starts at zero")
    for i in range(len(pads) // 2):
        before, after, axis = int(pads[2 * i]), int(pads[2 * i + 1]), rank - 1 - i
        if before or after:
            dims = (*c.dims[x][:axis], c.dims[x][axis] + before + after, *c.dims[x][axis + 1 :])
            x = c.add(n, "pad", (x,), "pad", dims, {"axis": axis, "before": before, "after": after})
    c.values[n] = x


def _reduce(how: str) -> Rule:
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


def _pool(how: str) -> Rule:
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


def _converted(c: Capture, n: fx.Node) -> None:
    """Nothing between float32 and float64, or between integers."""
    source = n.args[0]
    assert isinstance(source, fx.Node)
    before, after = source.meta["val"].dtype, n.meta["val"].dtype
    real = {before, after} <= {torch.float32, torch.float64}
    whole = not any(t.is_floating_point or t.is_complex for t in (before, after))
    if not (before == after or real or whole):
        raise c.error(n, f"{n.target} from {before} to {after} is not supported, expected float32 or float64")
    c.values[n] = c.value(n, 0)


def _adaptive_avg_pool(c: Capture, n: fx.Node) -> None:
    if _pair(n.args[1]) != (1, 1):
        raise c.error(n, f"{n.target} to {n.args[1]}, expected 1 x 1")
    c.emit(n, "reduce", (c.value(n, 0),), "mean", how="mean", axes=(1, 2), keep=1)


def _pixel_shuffle(c: Capture, n: fx.Node) -> None:
    x, r = c.value(n, 0), n.args[1]
    assert isinstance(r, int)
    channels, high, wide = c.dims[x]
    split = (channels // (r * r), r, r, high, wide)
    x = c.add(n, "reshape", (x,), "split", split, {"dims": split})
    moved = (split[0], high, r, wide, r)
    x = c.add(n, "permute", (x,), "permute", moved, {"order": (0, 3, 1, 4, 2)})
    dims = c.shape(n)
    c.add(n, "reshape", (x,), "pixel_shuffle", dims, {"dims": dims})


def _custom(op: str, operands: int, parameters: tuple[int, ...] = ()) -> Rule:
    """An operator of isobit.quant.nn that is one of the graph: values first, then parameters."""

    def rule(c: Capture, n: fx.Node) -> None:
        values = [c.value(n, i) for i in range(operands) if i not in parameters]
        c.emit(n, op, (*values, *(c.parameter(n, i) for i in parameters)))

    return rule


def _diagonal_recurrence(c: Capture, n: fx.Node) -> None:
    decay, x = n.args[0], c.value(n, 1)
    if isinstance(decay, fx.Node) and decay in c.shaped:
        raise c.error(n, f"the decay is a parameter for every step, expected one of shape {c.dims[x]} for all of them")
    c.emit(n, "diagonal_recurrence", (c.value(n, 0) if c.is_value(decay) else c.parameter(n, 0), x))


def _causal_conv1d(c: Capture, n: fx.Node) -> None:
    x, weight, bias = c.value(n, 0), c.parameter(n, 1), c.parameter(n, 2)
    kernel = c.parameters[weight].shape[1]
    if kernel < 2:
        raise c.error(n, "a causal convolution with a kernel of 1 keeps no history, expected a kernel of at least 2")
    if c.timed:
        c.emit(n, "causal_conv1d", (x, weight, bias))
        return
    composite.convolution_along_positions(c, n, x, weight, bias)


def _causal_fir(c: Capture, n: fx.Node) -> None:
    x, weight, bias = c.value(n, 0), c.parameter(n, 1), c.parameter(n, 2)
    if c.parameters[weight].shape[2] < 2:
        matrix = c.enter(f"{weight}[:, :, 0]", torch.from_numpy(c.parameters[weight][:, :, 0].copy()))
        c.emit(n, "linear", (x, matrix, bias), contracted=1)
        return
    c.emit(n, "causal_fir", (x, weight, bias))


def _selective_recurrence(c: Capture, n: fx.Node) -> None:
    u, dt, b, k = (c.value(n, i) for i in (0, 1, 3, 4))
    c.emit(n, "selective_recurrence", (u, dt, b, k, c.parameter(n, 2)), inner=int(not c.timed))


RULES: dict[str, Rule] = {
    "aten.linear.default": _linear,
    "aten.embedding.default": _embedding,
    "aten.conv2d.default": _conv2d,
    "aten.conv2d.padding": _conv2d,
    "aten.batch_norm.default": _batch_norm,
    "aten._native_batch_norm_legit_no_training.default": _batch_norm,
    "aten.dropout.default": _dropout,
    "aten.rms_norm.default": _norm("rms_norm"),
    "aten.layer_norm.default": _norm("layer_norm"),
    "aten.softmax.int": _softmax,
    "aten.silu.default": _unary("silu"),
    "aten.sigmoid.default": _unary("sigmoid"),
    "aten.tanh.default": _unary("tanh"),
    "aten.exp.default": _unary("exp"),
    "aten.abs.default": _unary("abs"),
    "aten.sqrt.default": _unary("sqrt"),
    "aten.hardswish.default": _unary("hardswish"),
    "aten.log_sigmoid.default": _unary("log_sigmoid"),
    "aten.gelu.default": _gelu,
    "aten.softplus.default": _softplus,
    "aten.elu.default": _elu,
    "aten.relu.default": _clamp(0.0, math.inf, "relu"),
    "aten.relu6.default": _clamp(0.0, 6.0, "relu6"),
    "aten.hardtanh.default": _clamp_to,
    "aten.clamp.default": _clamp_to,
    "aten.clamp_min.default": _clamp_to,
    "aten.leaky_relu.default": _leaky_relu,
    "aten.prelu.default": _prelu,
    "aten.pow.Tensor_Scalar": _power,
    "aten.square.default": lambda c, n: c.emit(n, "mul", (c.value(n, 0), c.value(n, 0)), "square"),
    "aten.rsqrt.default": _rsqrt,
    "aten.mul.Tensor": _mul,
    "aten.add.Tensor": _add,
    "aten.sub.Tensor": _sub,
    "aten.rsub.Scalar": _reverse_sub,
    "aten.div.Tensor": _div,
    "aten.neg.default": _neg,
    "aten.maximum.default": _maximum,
    "aten.reshape.default": _reshape,
    "aten.view.default": _reshape,
    "aten._unsafe_view.default": _reshape,
    "aten.flatten.using_ints": _reshape,
    "aten.unflatten.int": _reshape,
    "aten.unsqueeze.default": _reshape,
    "aten.squeeze.dim": _reshape,
    "aten.squeeze.dims": _reshape,
    "aten.expand.default": _expand,
    "aten.permute.default": _permute,
    "aten.transpose.int": _transpose,
    "aten.movedim.int": _movedim,
    "aten.mT.default": _matrix_transpose,
    "aten.flip.default": _flip,
    "aten.slice.Tensor": _slice,
    "aten.select.int": _select,
    "getitem": _part,
    "aten.cat.default": _cat,
    "aten.pad.default": _pad,
    "aten.mean.dim": _reduce("mean"),
    "aten.sum.dim_IntList": _reduce("sum"),
    "aten.amax.default": _reduce("max"),
    "aten.avg_pool2d.default": _pool("mean"),
    "aten.max_pool2d.default": _pool("max"),
    "aten.adaptive_avg_pool2d.default": _adaptive_avg_pool,
    "aten.to.dtype": _converted,
    "aten.type_as.default": _converted,
    "aten.pixel_shuffle.default": _pixel_shuffle,
    "aten.matmul.default": products.matmul,
    "aten.einsum.default": products.einsum,
    "scan": loops.scan,
    "aten.lstm_cell.default": torch_cells.lstm_cell,
    "aten.gru_cell.default": torch_cells.gru_cell,
    "aten.rnn_tanh_cell.default": torch_cells.rnn_tanh_cell,
    "aten.rnn_relu_cell.default": torch_cells.rnn_relu_cell,
    "aten.lstm.input": torch_cells.whole_lstm,
    "aten.gru.input": torch_cells.whole_gru,
    "isobit.cell.default": torch_cells.kept_whole,
    "isobit.l2norm.default": _l2norm,
    "isobit.heaviside.default": lambda c, n: c.emit(n, "heaviside", (c.value(n, 0),), threshold=0.0),
    "isobit.shift.default": _custom("shift", 1),
    "isobit.causal_conv1d.default": _causal_conv1d,
    "isobit.causal_fir.default": _causal_fir,
    "isobit.running_mean.default": _custom("running_mean", 1),
    "isobit.selective_recurrence.default": _selective_recurrence,
    "isobit.diagonal_recurrence.default": _diagonal_recurrence,
    "isobit.convex_recurrence.default": _custom("convex_recurrence", 2),
    "isobit.linear_recurrence.default": composite.linear_recurrence,
    "isobit.delta_recurrence.default": composite.delta_recurrence,
    "isobit.generalized_delta_recurrence.default": composite.generalized_delta_recurrence,
    "isobit.complex_recurrence.default": composite.complex_recurrence,
    "isobit.dense_recurrence.default": composite.dense_recurrence,
    "isobit.wkv4.default": composite.wkv4,
    "isobit.slstm.default": composite.slstm,
    "isobit.mlstm.default": composite.mlstm,
    "isobit.running_logsumexp.default": composite.running_logsumexp,
    "isobit.causal_attention.default": composite.causal_attention,
    "isobit.rotary.default": composite.rotary,
    "isobit.top_k_mask.default": composite.top_k_mask,
    "isobit.lif.default": composite.lif,
    "isobit.ttt_linear.default": composite.ttt_linear,
}

PARTS = ("aten.split_with_sizes.default", "aten.split.Tensor", "aten.chunk.default", "aten.unbind.int")
"""Operators whose items `_part` takes."""

IDENTITIES = (
    "aten.contiguous.default",
    "aten.clone.default",
    "aten.alias.default",
)
"""Operators that change nothing in eval mode."""

ONE_STEP = ("isobit.l2norm.default", "isobit.heaviside.default", "isobit.top_k_mask.default")
"""Operators of isobit that look at one step only; all others run along time."""

ALONG_POSITIONS = ("isobit.selective_recurrence.default", "isobit.causal_conv1d.default")
"""Of those that run along time, the ones that may run along the positions of an image instead."""

SUPPORTED = sorted(
    {".".join(op.split(".")[:2]) for op in (*RULES, *PARTS, *IDENTITIES, *time_last.CONVOLUTIONS) if "._" not in op}
    - {"getitem", "isobit.cell"}
)
"""What a message lists: operators by name, without those that only torch or isobit itself writes."""
