"""Values (B, C, T) with time behind the channels, as nn.Conv1d has them: causal convolutions, and what keeps the order.

A convolution is causal where the zeros before its input reach as far back as its kernel, and what lies behind the last
step is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx

if TYPE_CHECKING:
    from isobit.quant.capture.capture import Capture

CONVOLUTIONS = ("aten.conv1d.default", "aten.conv1d.padding")

KEEP_THE_ORDER = (
    "silu.default", "sigmoid.default", "tanh.default", "exp.default", "abs.default", "sqrt.default",
    "hardswish.default", "log_sigmoid.default", "gelu.default", "softplus.default", "elu.default", "relu.default",
    "relu6.default", "hardtanh.default", "clamp.default", "clamp_min.default", "leaky_relu.default",
    "pow.Tensor_Scalar", "square.default", "rsqrt.default", "mul.Tensor", "add.Tensor", "sub.Tensor", "rsub.Scalar",
    "div.Tensor", "neg.default", "maximum.default", "dropout.default", "batch_norm.default",
    "_native_batch_norm_legit_no_training.default", "transpose.int", "permute.default", "movedim.int", "mT.default",
    "einsum.default", "isobit.fake_quantize.default", "isobit.exact.default",
    "isobit.codes_times_scale.default",
)  # fmt: skip
"""Operators that mean the same wherever time stands, or say where it goes."""


@dataclass(frozen=True)
class Padded:
    """A value with zeros before and after its steps."""

    value: str
    before: int
    after: int


def take(c: Capture, n: fx.Node, op: str) -> bool:
    """Makes the value of `n` where an operand has time last, or zeros around its steps; says whether it did."""
    around = next((i for i in n.all_input_nodes if i in c.padded), None)
    last = around is not None or any(c.is_value(i) and (c.time_axis(i) or 0) > 1 for i in n.all_input_nodes)
    if op in CONVOLUTIONS:
        if not last:
            raise c.error(n, f"{op} of a value that is not (B, channels, T) is not supported")
        _conv1d(c, n)
    elif not last:
        return False
    elif op == "aten.pad.default" and around is None:
        _pad(c, n)
    elif op == "aten.slice.Tensor" and around is not None:
        _cut(c, n, c.padded[around])
    elif around is not None:
        raise c.error(n, f"{op} of a value with steps that are no time steps, before or after them, is not supported")
    else:
        return _in_any_order(c, n, op)
    return True


def _in_any_order(c: Capture, n: fx.Node, op: str) -> bool:
    """False where the rule of the operator may be used."""
    if op == "aten.slice.Tensor" and n.meta["val"].shape == n.all_input_nodes[0].meta["val"].shape:
        c.values[n] = c.value(n, 0)
        return True
    if op.removeprefix("aten.") not in KEEP_THE_ORDER and not c.is_identity(op):
        raise c.error(n, f"{op} of a value (B, channels, T), with time last, is not supported: transpose it first")
    return False


def _pad(c: Capture, n: fx.Node) -> None:
    x, pads = n.args[0], n.args[1]
    assert isinstance(x, fx.Node)
    assert isinstance(pads, list)
    zeros = c.argument(n, 2, "mode", "constant") == "constant" and not c.argument(n, 3, "value", 0)
    if not zeros or len(pads) != 2 or c.time_axis(x) != x.meta["val"].ndim - 1:
        raise c.error(n, "padding of a value (B, channels, T) by anything but zeros before its steps is not supported")
    before, after = (int(p) for p in pads)
    c.padded[n] = Padded(c.value(n, 0), before, after)


def _cut(c: Capture, n: fx.Node, padded: Padded) -> None:
    """What lies behind the last step goes."""
    source = n.args[0]
    assert isinstance(source, fx.Node)
    if n.meta["val"].shape == source.meta["val"].shape:
        c.padded[n] = padded
        return
    start = c.argument(n, 2, "start", 0)
    axis = c.time_axis(n)
    if padded.before or start not in (None, 0) or axis is None or c.argument(n, 1, "dim", 0) not in (axis, -1):
        raise c.error(n, "a causal convolution keeps the first T steps of its result: cut the others off: [..., :T]")
    c.values[n] = padded.value


def _conv1d(c: Capture, n: fx.Node) -> None:
    source, weight = n.args[0], c.parameters[c.parameter(n, 1)]
    assert isinstance(source, fx.Node)
    x = c.padded.get(source) or Padded(c.value(n, 0), 0, 0)
    stride, padding, dilation = (
        _one(c, n, i, k, d) for i, k, d in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    groups = c.argument(n, 6, "groups", 1)
    channels, reach = c.dims[x.value][-1], dilation * (weight.shape[2] - 1)
    depthwise = groups == channels == len(weight) != 1
    if stride != 1 or len(c.dims[x.value]) != 1 or not (groups == 1 or depthwise):
        raise c.error(
            n,
            f"conv1d with stride {stride} in {groups} groups is not supported: expected stride 1, and 1 group "
            "or one for each channel",
        )
    before, after = x.before + padding, x.after + padding
    if before != reach:
        raise c.error(
            n,
            f"conv1d with {before} zeros before the first step and a kernel that reaches back {reach} is not causal: "
            f"use functional.pad(x, ({reach}, 0)), or padding={reach} and [..., :T] on the result",
        )
    name = _emitted(c, n, x.value, _dilated(weight, dilation), depthwise)
    if after:
        del c.values[n]
        c.padded[n] = Padded(name, 0, after)


def _one(c: Capture, n: fx.Node, position: int, name: str, default: int) -> int:
    value = c.argument(n, position, name, default)
    value = value[0] if isinstance(value, list | tuple) else value
    if not isinstance(value, int):
        raise c.error(n, f"conv1d with {name} '{value}' is not causal: pad with zeros before the first step only")
    return value


def _dilated(weight: np.ndarray, dilation: int) -> np.ndarray:
    """The same kernel with zeros between its elements."""
    made = np.zeros((*weight.shape[:2], dilation * (weight.shape[2] - 1) + 1), weight.dtype)
    made[:, :, ::dilation] = weight
    return made


def _emitted(c: Capture, n: fx.Node, x: str, weight: np.ndarray, depthwise: bool) -> str:
    loc, rows = c.loc(n), len(weight)
    bias = c.parameter(n, 2) if c.optional(n, 2) else c.enter(f"zeros({rows})", torch.zeros(rows, dtype=torch.float64))
    if weight.shape[2] == 1:
        matrix = np.diag(weight[:, 0, 0]) if depthwise else weight[:, :, 0]
        name = c.enter(f"{loc}.weight[:, :, 0]", torch.from_numpy(np.ascontiguousarray(matrix)))
        return c.add(n, "linear", (x, name, bias), "", (rows,), {"contracted": 1})
    if depthwise:
        name = c.enter(f"{loc}.weight[:, 0]", torch.from_numpy(np.ascontiguousarray(weight[:, 0])))
        return c.add(n, "causal_conv1d", (x, name, bias), "", (rows,), {})
    name = c.enter(f"{loc}.weight", torch.from_numpy(weight))
    return c.add(n, "causal_fir", (x, name, bias), "", (rows,), {})
