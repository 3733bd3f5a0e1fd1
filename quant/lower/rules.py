"""RULES: for each operator of the float graph, the forms that it asks of its operands, and how it becomes nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from isobit.quant.capture.graph import GraphNode
from isobit.quant.lower import cache, layout, linear, norms, pointwise, quantizers, recurrences
from isobit.quant.lower.lowering import Lowering


@dataclass(frozen=True)
class Rule:
    """emit: adds the nodes to the Program.

    wants: the form of each operand, the last one for all that follow: act or wide, a width of the recipe; operand, a
    width or a minifloat; unit; state, what a state holds; same, whatever is asked of the result; cached, the same or,
    where the recipe keeps codes, wide; any; parameter.
    """

    wants: tuple[str, ...]
    emit: Callable[[Lowering, GraphNode], None]


RULES = {
    "linear": Rule(("operand", "parameter"), linear.linear),
    "grouped_linear": Rule(("operand", "parameter"), linear.grouped_linear),
    "conv2d": Rule(("operand", "parameter"), linear.conv2d),
    "positions_conv1d": Rule(("operand", "parameter"), linear.positions_conv1d),
    "causal_conv1d": Rule(("operand", "parameter"), linear.causal_conv1d),
    "causal_fir": Rule(("operand", "parameter"), linear.causal_fir),
    "embedding": Rule(("any", "parameter"), linear.embedding),
    "einsum": Rule(("operand",), cache.einsum),
    "reduce": Rule(("wide",), linear.reduce),
    "history": Rule(("cached",), cache.history),
    "fake_quantize": Rule(("wide", "parameter"), quantizers.fake_quantize),
    "silu": Rule(("wide",), pointwise.silu),
    "sigmoid": Rule(("wide",), pointwise.sigmoid),
    "tanh": Rule(("wide",), pointwise.tanh),
    "gelu": Rule(("wide",), pointwise.gelu),
    "gelu_tanh": Rule(("wide",), pointwise.gelu_tanh),
    "softplus": Rule(("wide",), pointwise.softplus),
    "log_sigmoid": Rule(("wide",), pointwise.log_sigmoid),
    "exp": Rule(("wide",), pointwise.exp),
    "elu": Rule(("wide",), pointwise.elu),
    "hardswish": Rule(("wide",), pointwise.hardswish),
    "prelu": Rule(("wide", "parameter"), pointwise.prelu),
    "clamp": Rule(("wide",), pointwise.clamp),
    "abs": Rule(("wide",), pointwise.absolute),
    "sqrt": Rule(("wide",), pointwise.sqrt),
    "rsqrt": Rule(("wide",), pointwise.rsqrt),
    "add": Rule(("wide",), pointwise.add),
    "sub": Rule(("wide",), pointwise.sub),
    "mul": Rule(("wide",), pointwise.mul),
    "div": Rule(("wide",), pointwise.div),
    "maximum": Rule(("wide",), pointwise.maximum),
    "scale": Rule(("wide", "parameter"), pointwise.scale),
    "offset": Rule(("wide", "parameter"), pointwise.offset),
    "heaviside": Rule(("wide",), pointwise.heaviside),
    "sign": Rule(("wide",), pointwise.sign),
    "top_k": Rule(("wide",), pointwise.top_k),
    "rotate": Rule(("state", "state", "wide"), pointwise.rotate),
    "rotation": Rule(("any", "parameter"), pointwise.rotation),
    "running_mean": Rule(("wide",), pointwise.running_mean),
    "rms_norm": Rule(("wide", "parameter"), norms.rms_norm),
    "layer_norm": Rule(("wide", "parameter"), norms.layer_norm),
    "l2norm": Rule(("wide",), norms.l2norm),
    "inverse_rms": Rule(("wide",), norms.inverse_rms),
    "softmax": Rule(("wide",), norms.softmax),
    "reshape": Rule(("same",), layout.reshape),
    "permute": Rule(("same",), layout.permute),
    "slice": Rule(("same",), layout.part),
    "concat": Rule(("same",), layout.concat),
    "pad": Rule(("same",), layout.pad),
    "previous": Rule(("state",), recurrences.previous),
    "recall": Rule(("act", "any"), recurrences.recall),
    "shift": Rule(("same",), recurrences.shift),
    "selective_recurrence": Rule(("wide", "wide", "act", "act", "parameter"), recurrences.selective_recurrence),
    "linear_recurrence": Rule(("act", "act", "wide", "unit"), recurrences.linear_recurrence),
    "delta_update": Rule(("act", "act", "wide", "act", "wide", "unit"), recurrences.linear_recurrence),
    "diagonal_recurrence": Rule(("unit", "wide"), recurrences.diagonal_recurrence),
    "convex_recurrence": Rule(("unit", "wide"), recurrences.convex_recurrence),
}
