"""Small Programs whose states have certificates, of every kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from isobit.quant.certificates.search import certify
from isobit.quant.program import Input, Program, TensorType, constant, int_type
from isobit.quant.vectors import join
from tests.models import Builder

WIDE = {"lo": -(1 << 30) + 1, "hi": (1 << 30) - 1, "acc": 64}
INT16 = {"lo": -32767, "hi": 32767}
RATES = [[40, 90, 700], [25, 2000, 60]]

Inputs = Mapping[str, tuple[tuple[int, ...], str]]


def _certified(b: Builder, inputs: Inputs, *outputs: str) -> Program:
    made = tuple(Input(name, TensorType(("T", *shape), int_type(elem))) for name, (shape, elem) in inputs.items())
    return certified(Program(b.name, made, tuple(b.constants), tuple(b.states), tuple(b.nodes), outputs))


def certified(p: Program) -> Program:
    return replace(p, certificates=certify(replace(p, certificates=())))


def _fixed(b: Builder, name: str, values: object, elem: str) -> str:
    b.constants.append(constant(f"{b.name}.{name}", np.array(values), int_type(elem)))
    return b.constants[-1].name


def selective(**limits: int) -> Program:
    """A state (2, 3): the step's code, u7, settles the decay and, times u, the drive."""
    b = Builder("selective", 0)
    decay = b.node("decay", "tc,cn->tcn", ["dt", _fixed(b, "rate", RATES, "u11")], "ssm.decay", s=6)
    v = b.node("multiply", "tc,tc->tc", ["dt", "u"], "ssm.v", None, m=1, s=2, **INT16)
    state, params = b.state("state", (2, 3), "i31"), {"up": 9, **WIDE, **limits}
    o = b.node("linear_recurrence", "tcn,tc,tn,tn->tc|cn", [decay, v, "k", "q"], "ssm.o", state, **params)
    inputs = {"dt": ((2,), "u7"), "u": ((2,), "i8"), "k": ((3,), "i4"), "q": ((3,), "i4")}
    return _certified(b, inputs, o)


def crossed() -> Program:
    """A state (2, 2) whose rows fade, and whose columns are driven, by the same two values.

    One code settles both on the diagonal only.
    """
    b = Builder("crossed", 0)
    decay = b.node("decay", "tc,c->tc", ["s", _fixed(b, "rate", [40, 40], "u11")], "cross.decay", s=6)
    v = b.node("requantize", "tn->tn", ["s"], "cross.v", None, m=200, s=1, **INT16)
    state = b.state("state", (2, 2), "i31")
    y = b.node("diagonal_recurrence", "tc,tn->tcn|cn", [decay, v], "cross.y", state, up=9, **WIDE)
    return _certified(b, {"s": ((2,), "u7")}, y)


def gated() -> Program:
    """A decay that never reaches 1, of a gate beyond a layout node, and a drive that knows nothing of it."""
    b = Builder("gated", 0)
    gate = b.node("sigmoid", "tm->tm", ["g"], "gate.y", mx=7562, sx=7, m=2, s=1, lo=0, hi=32767)
    rows = b.node("split_axis", "tm->thv", [gate], "gate.rows", inner=2)
    state = b.state("state", (2, 2), "i31")
    y = b.node("diagonal_recurrence", "thv,th->thv|hv", [rows, "y"], "cell.y", state, up=14, **WIDE)
    return _certified(b, {"g": ((4,), "i8"), "y": ((2,), "i16")}, y)


def constant_decay() -> Program:
    """A matrix state per head, and a decay per head."""
    b = Builder("heads", 0)
    decay, state = _fixed(b, "decay", [32000, 32766], "u15"), b.state("state", (2, 3, 2), "i31")
    o = b.node("linear_recurrence", "h,thv,thk,thk->thv|hvk", [decay, "hv", "hk", "hk"], "heads.o", state, up=3, **WIDE)
    return _certified(b, {"hv": ((2, 3), "i16"), "hk": ((2, 2), "i8")}, o)


def convex_and_sums() -> Program:
    """A convex gate, a sum for seven steps, a count, a delay, a potential that leaks and one that does not."""
    b = Builder("mixed", 0)
    h = b.state("h", (2,), "i16")
    convex = b.node("convex_recurrence", "tc,tc->tc|c", ["z", "c"], "convex.y", h, acc=32, **INT16)
    limits = {"lo": -7 * 8192, "hi": 7 * 8192}
    total = b.node("running_sum", "tc->tc|c", ["c"], "sum.y", b.state("sum", (2,), "i17"), acc=32, **limits)
    count = b.node("step_count", "->t|", [], "sum.count", b.state("count", (), "u3"), acc=32, t_max=7)
    last = b.node("delay", "tc->tc|c", ["c"], "last.y", b.state("last", (2,), "i14"), acc=32)
    leaks = b.state("potential", (2,), "i16")
    leaked = b.node("add", "tc,tc->tc", [leaks, "c"], "lif.leaked", None, ma=1, mb=2, s=1, **INT16)
    spike = b.node("at_most", "tc->tc", [leaked], "lif.below", threshold=9000)
    reset = b.node("multiply", "tc,tc->tc", [leaked, spike], "lif.reset", None, m=2, s=1, **INT16)
    b.node("hold", "tc->tc|c", [reset], "lif.held", leaks, acc=32)
    full = b.state("full", (2,), "i16")
    filled = b.node("add", "tc,tc->tc", [full, "c"], "sat.filled", None, ma=2, mb=2, s=1, **INT16)
    b.node("hold", "tc->tc|c", [filled], "sat.held", full, acc=32)
    return _certified(b, {"z": ((2,), "u15"), "c": ((2,), "i14")}, convex, total, count, last)


def turning() -> Program:
    """A complex state (2, 2), whose parts have units of their own."""
    b = Builder("turning", 0)
    re, im = b.state("re", (2, 2), "i30"), b.state("im", (2, 2), "i30")
    p = _fixed(b, "p", [[12000, 15000], [9000, 16000]], "i16")
    q, r = _fixed(b, "q", [[-9000, -800], [0, -3000]], "i16"), _fixed(b, "r", [[11000, 3300], [0, 700]], "i16")
    limits = {"lo": -(1 << 29) + 1, "hi": (1 << 29) - 1}
    new = b.node("rotate_and_add", "tcn,cn,tcn,cn,tc->tcn", [re, p, im, q, "e"], "re.y", None, mu=777, s=14, **limits)
    other = b.node("rotate", "tcn,cn,tcn,cn->tcn", [im, p, re, r], "im.y", None, s=14, **limits)
    parts = (("re", new, re), ("im", other, im))
    held = [b.node("hold", "tcn->tcn|cn", [y], f"{part}.held", state, acc=32) for part, y, state in parts]
    return _certified(b, {"e": ((2,), "i12")}, *held)


def every_kind() -> Program:
    """All of the above in one."""
    parts = [selective(), gated(), constant_decay(), convex_and_sums(), turning()]
    return replace(join("certified", parts), certificates=tuple(c for p in parts for c in p.certificates))
