"""Programs that feed back: nodes that read a state which a later node of the same step updates."""

from __future__ import annotations

from collections.abc import Mapping

from isobit.quant.program import Input, Program, TensorType, int_type
from tests.models import Builder

INT8 = {"lo": -127, "hi": 127}
INT16 = {"lo": -32767, "hi": 32767}
Q15 = {"lo": 0, "hi": 32767}


def _program(b: Builder, inputs: Mapping[str, tuple[tuple[int, ...], str]], *outputs: str) -> Program:
    made = tuple(Input(name, TensorType(("T", *shape), int_type(elem))) for name, (shape, elem) in inputs.items())
    return Program(b.name, made, tuple(b.constants), tuple(b.states), tuple(b.nodes), outputs)


def gated_cell(features: int = 3, hidden: int = 5, seed: int = 0) -> Program:
    """An LSTM-like cell and a layer after it: gates of x and of the last output, a cell state, an output gate."""
    b = Builder("cell", seed)
    h, c = b.state("h", (hidden,), "i8"), b.state("c", (hidden,), "i16")
    rows = {i: b.constant(f"gates.w_{i}", -127, 128, (3, hidden, k), "i8") for i, k in (("x", features), ("h", hidden))}
    bias = {i: b.constant(f"gates.b_{i}", -k, k + 1, (3, hidden), "i16") for i, k in (("x", 999), ("h", 0))}
    from_x = b.node("matmul", "tk,gdk,gd->tgd", ["x", rows["x"], bias["x"]], "gates.x", acc=32)
    from_h = b.node("matmul", "tk,gdk,gd->tgd", [h, rows["h"], bias["h"]], "gates.h", acc=32)
    pre = b.node("add", "tgd,tgd->tgd", [from_x, from_h], "gates.y", None, ma=1 << 14, mb=1 << 14, s=15, **INT16)
    part = []
    for i, name in enumerate(("forget", "candidate", "output")):
        one = b.node("take", "tgd->tmd", [pre], f"{name}.row", start=i, step=1, size=1)
        part.append(b.node("merge_axes", "tmd->te", [one], f"{name}.pre"))
    forget = b.node("requantize", "te->te", [part[0]], "forget.gate", None, m=3, s=1, **Q15)
    output = b.node("requantize", "te->te", [part[2]], "output.gate", None, m=3, s=1, **Q15)
    cell = b.node("convex_recurrence", "td,td->td|d", [forget, part[1]], "cell.c", c, acc=64, lo=-32768, hi=32767)
    gated = b.node("multiply", "td,td->td", [cell, output], "cell.h", None, m=1, s=19, **INT8)
    y = b.node("hold", "td->td|d", [gated], "cell.y", h, acc=32)
    return _program(b, {"x": ((features,), "i8")}, b.dense(y, 4, hidden, "head", 127, 36, "n"), forget)


def delta_rule(heads: int = 2, keys: int = 4, values: int = 3) -> Program:
    """What the state holds for a key is read before the state is updated with it."""
    b = Builder("delta", 0)
    s = b.state("state", (heads, values, keys), "i16")
    held = b.node("dot", "thvk,thk->thv", [s, "k"], "read.acc", acc=32)
    u = b.node("requantize", "thv->thv", [held], "read.u", None, m=-3, s=9, lo=-16384, hi=16383)
    inputs = ["decay", "v", "k", u, "k", "q"]
    index = "thk,thv,thk,thv,thk,thk->thv|hvk"
    o = b.node("delta_recurrence", index, inputs, "rule.o", s, up=6, acc=32, lo=-32768, hi=32767)
    shapes = {"decay": ((heads, keys), "u15"), "v": ((heads, values), "i15")}
    return _program(b, shapes | {"k": ((heads, keys), "i8"), "q": ((heads, keys), "i8")}, o)


def loops() -> Program:
    """Two loops: one reads no input; in the other stand a count, a ring, a history, a scan and layouts."""
    b = Builder("loops", 0)
    phase, h = b.state("phase", (3,), "i16"), b.state("h", (4, 3), "i8")
    one = b.constant("one", 1, 2, (3,), "i8")
    turned = b.node("add", "tc,c->tc", [phase, one], "phase.turned", None, ma=-5, mb=1001, s=2, **INT16)
    turned = b.node("hold", "tc->tc|c", [turned], "phase.y", phase, acc=32)
    x = b.node("split_axis", "tk->tlc", ["x"], "split.y", inner=3)
    mixed = b.node("add", "tlc,tlc->tlc", [x, h], "mix.y", None, ma=1, mb=1, s=1, **INT8)
    padded = b.node("pad", "tlc->tmc", [mixed], "mix.padded", before=1, after=1, fill=-7)
    weight, bias = b.constant("conv.w", -99, 99, (3, 3, 3), "i8"), b.constant("conv.b", -99, 99, (3,), "i16")
    acc = b.node("convolution", "tlc,nic,n->tmn", [padded, weight, bias], "conv.acc", acc=32, stride0=1, dilation0=1)
    gate = b.node("requantize", "tmn->tmn", [acc], "conv.gate", None, m=5, s=2, **Q15)
    scanned = b.node(
        "diagonal_recurrence", "tlc,tlc->tlc|c", [gate, mixed], "scan.y", up=14, acc=32, lo=-32768, hi=32767
    )
    count = b.node("step_count", "->t|", [], "count.y", b.state("count", (), "u2"), acc=32, t_max=3)
    table = b.constant("step.table", -40, 41, (4, 3), "i8")
    row = b.node("embedding", "t,vc->tc", [count, table], "step.row")
    last = b.node("history", "tc->twc", [row], "step.last", b.state("step.ring", (1, 3), "i8"), length=2)
    both = b.node("concat", "tlc,twc->tnc", [scanned, last], "all.y")
    most = b.node("reduce_max", "tnc->tc", [both], "all.most", acc=32)
    taps = b.constant("ring.w", -127, 128, (3, 2), "i8"), b.constant("ring.b", -99, 99, (3,), "i16")
    ring = b.state("ring", (1, 3), "i16")
    rung = b.node("causal_conv1d", "tc,cj,c->tc", [most, *taps], "ring.y", ring, acc=32)
    new = b.node("add", "tlc,tc->tlc", [scanned, rung], "h.new", None, ma=1 << 8, mb=3, s=8, **INT8)
    y = b.node("hold", "tlc->tlc|lc", [new], "h.y", h, acc=32)
    out = b.node("add", "tlc,tc->tlc", [y, turned], "out.y", None, ma=1 << 8, mb=3, s=4, **INT16)
    return _program(b, {"x": ((12,), "i8")}, out, last, y)


def gate_of_the_past() -> Program:
    """A gate is made of a state that is updated before the recurrence takes the gate."""
    b = Builder("past", 0)
    held = b.state("held", (4,), "i16")
    gate = b.node("requantize", "tc->tc", [held], "gate.y", None, m=3, s=1, **Q15)
    b.node("hold", "tc->tc|c", ["x"], "held.y", held, acc=32)
    y = b.node(
        "diagonal_recurrence", "tc,tc->tc|c", [gate, "x"], "sum.y", b.state("sum", (4,), "i16"),
        up=14, acc=32, lo=-32768, hi=32767,
    )  # fmt: skip
    return _program(b, {"x": ((4,), "i16")}, y)


FEEDBACK = {
    "gated cell": gated_cell,
    "delta rule": delta_rule,
    "loops": loops,
    "gate of the past": gate_of_the_past,
}
