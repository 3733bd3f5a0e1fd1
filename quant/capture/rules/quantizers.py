"""Quantizers that came with the model, and the parameters of the layers that they belong to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import fx

if TYPE_CHECKING:
    from isobit.quant.capture.capture import Capture


def fake_quantize(c: Capture, n: fx.Node) -> None:
    """Of x * gain + shift, which `simplify` takes from what makes x."""
    names = ("quantizer", "scale", "zero", "lo", "hi", "rounding", "mantissa")
    one, none = (c.enter(str(v), torch.tensor(v, dtype=torch.float64)) for v in (1.0, 0.0))
    time = c.time_axis(n)
    attrs = dict(zip(names, n.args[1:], strict=True)) | {"time": -1 if time is None else time}
    c.emit(n, "fake_quantize", (c.value(n, 0), one, none), **attrs)  # type: ignore[arg-type]


def exact(c: Capture, n: fx.Node) -> None:
    """The parameter as it is held, float64."""
    source = n.args[0]
    assert isinstance(source, fx.Node)
    c.tensors[n] = c.tensors[source]


def codes_times_scale(c: Capture, n: fx.Node) -> None:
    """The codes, int64, and for `scaled`, the scale of whoever multiplies with them."""
    codes, scale = n.args[:2]
    assert isinstance(codes, fx.Node)
    assert isinstance(scale, fx.Node)
    c.tensors[n] = c.tensors[codes]
    c.factors[n] = c.tensors[scale]


def scaled(c: Capture, n: fx.Node) -> None:
    """Makes of a layer with integer weights, which `n` became, x * codes + bias / scale, times the scale."""
    name, scale = c.factors[n.args[1]]  # type: ignore[index]
    made = c.padded[n].value if n in c.padded else c.values[n]
    layer, dims = c.nodes[made], c.dims[made]
    if layer.op not in ("linear", "conv2d", "causal_conv1d", "causal_fir"):
        raise c.error(n, f"{n.target} with the quantized weight of a layer is not supported: call the layer itself")
    bias = [c.enter(f"{i}/{name}", torch.from_numpy(c.parameters[i]) / scale) for i in layer.inputs[2:]]
    c.nodes[made] = replace(layer, inputs=(*layer.inputs[:2], *bias))
    factor = scale.reshape(-1, 1, 1) if layer.op == "conv2d" and scale.ndim else scale
    output = c.add(n, "scale", (made, c.enter(name, factor)), "scale", dims, {})
    if n in c.padded:
        del c.values[n]
        c.padded[n] = replace(c.padded[n], value=output)
