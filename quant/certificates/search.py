"""Certificates of recurrent states: the search.

A recurrence S' = R(a*S + w), R the op's own rounding from Q.15, keeps an interval exactly when it leads from both of
the interval's ends into it.  For one pair (a, w) the smallest such interval has a closed form; for all pairs that can
meet it is the hull of theirs.  Which pairs can meet is the point: in a selective state space the code of the step
settles the decay and, with it, the largest drive.  Taken apart, the slowest decay would meet the largest drive.
"""

from __future__ import annotations

from functools import reduce
from itertools import product

import numpy as np

from isobit.quant.certificates.certificate import Certificate, differing
from isobit.quant.certificates.joint import Extremes, Joint
from isobit.quant.certificates.turned import turned
from isobit.quant.check import Checked, carry_name, check
from isobit.quant.expr.interval import Interval, interval_of
from isobit.quant.ops import Structure
from isobit.quant.program import Node, Program

PRODUCTS = {
    "linear_recurrence": ((1, 2),),
    "linear_recurrence_before": ((1, 2),),
    "delta_recurrence": ((1, 2), (3, 4)),
    "diagonal_recurrence": ((1,),),
}
"""By op, which operands are multiplied, and then added, to drive the state; operand 0 is the decay."""

ENDLESS = 1 << 31
"""More steps than any sequence has."""


def certify(program: Program) -> tuple[Certificate, ...]:
    """One certificate for every stateful node, in order."""
    checked = check(program)
    return tuple(_certificate(n, checked) for n in program.nodes if n.spec.structure.is_stateful)


def certified_bits(program: Program) -> dict[str, tuple[str, int]]:
    """By name of a state whose past fades: its layer, and the bits that its certificate asks for, 32 at most."""
    stateful = {n.output: n for n in program.nodes}
    found = {}
    for c in certify(program):
        n = stateful[c.node]
        if (n.op in PRODUCTS and c.kind == "invariant") or c.kind == "ellipse":
            bits = max(*c.hi, *(-v for v in c.lo)).bit_length() + 1
            if bits <= 32:
                found[n.state or f"{n.output.removesuffix('.acc')}.state"] = n.loc, bits
    return found


def _certificate(n: Node, c: Checked) -> Certificate:
    match n.op:
        case op if op in PRODUCTS:
            return _decayed(n, c)
        case "convex_recurrence":
            return _convex(n, c)
        case "outer_sum" | "running_sum" | "step_count":
            return _summed(n, c)
        case "outer_step":
            return Certificate(n.output, "saturates")
    return _held(n, c)


def _decayed(n: Node, c: Checked) -> Certificate:
    decay = c.ranges[n.inputs[0]]
    if decay.lo < 0 or decay.hi >= 1 << 15:
        return Certificate(n.output, "saturates")
    joint, start = Joint(n, c), initial(n, c)
    lo, hi = np.full(len(joint.kinds), start), np.full(len(joint.kinds), start)
    for codes in joint.chunks():
        below, above = fixed_points(n, [joint.extremes(e, codes) for e in joint.operands])
        lo, hi = np.minimum(lo, below.min(0)), np.maximum(hi, above.max(0))
    scanned = tuple(i for i, k in enumerate(joint.axes) if k not in n.labels.state)
    lo, hi = lo[joint.kind_of].min(scanned), hi[joint.kind_of].max(scanned)
    axes = "".join(k for k in joint.axes if k in n.labels.state)
    return Certificate(n.output, "invariant", joint.step, *differing(axes, lo, hi))


def initial(n: Node, c: Checked) -> int:
    """Of every element of a node's state."""
    return c.program.state[n.state].initial if n.state else 0


def fixed_points(n: Node, operands: list[Extremes]) -> Extremes:
    """The smallest interval around 0 that S' = (S*decay + w + 2^14) >> 15 keeps, for 0 <= decay < 2^15."""
    lo = hi = np.zeros((1, 1), np.int64)
    for factors in PRODUCTS[n.op]:
        corners = [reduce(np.multiply, corner) for corner in product(*(operands[i] for i in factors))]
        lo, hi = lo + reduce(np.minimum, corners), hi + reduce(np.maximum, corners)
    up, slack = n.param["up"], (1 << 15) - operands[0][1]
    return np.minimum(((lo << up) + (1 << 14)) // slack, 0), np.maximum(((hi << up) - (1 << 14)) // slack + 1, 0)


def interval_bound(n: Node, c: Checked) -> Interval | None:
    """What intervals alone show of a decayed state: the largest decay of all meets the largest drive of all."""
    known = [c.ranges[i] for i in n.inputs]
    if n.op not in PRODUCTS or known[0].lo < 0 or known[0].hi >= 1 << 15:
        return None
    below, above = fixed_points(n, [(np.full((1, 1), k.lo), np.full((1, 1), k.hi)) for k in known])
    return Interval(below.item(), above.item()).join(Interval(*2 * (initial(n, c),)))


def _convex(n: Node, c: Checked) -> Certificate:
    """A mean of the state and an operand lies between them."""
    gate, x = (c.ranges[i] for i in n.inputs)
    if gate not in Interval(0, 1 << 15):
        return Certificate(n.output, "saturates")
    kept = x.join(Interval(*2 * (initial(n, c),)))
    return Certificate(n.output, "invariant", lo=(kept.lo,), hi=(kept.hi,))


def _summed(n: Node, c: Checked) -> Certificate:
    """As many steps as the limits allow, each with the largest term."""
    known = [c.ranges[i] for i in n.inputs[: len(n.inputs) - n.spec.queries]]
    term, start = Interval(1, 1), initial(n, c)
    for i, k in enumerate(known):
        term = k if i == 0 else term * k
    limits = state_limits(n, c)
    room = [limit // end for limit, end in ((limits.hi - start, term.hi), (start - limits.lo, -term.lo)) if end > 0]
    t_max = min([*room, ENDLESS])
    if t_max < 1:
        return Certificate(n.output, "saturates")
    lo, hi = start + t_max * min(term.lo, 0), start + t_max * max(term.hi, 0)
    return Certificate(n.output, "steps", lo=(lo,), hi=(hi,), t_max=t_max)


def state_limits(n: Node, c: Checked) -> Interval:
    """What the clip of a stateful node lets through."""
    held = c.states[n.state if n.state else carry_name(n)].elem.range
    top = n.param.get("hi", n.param.get("t_max", held.hi))
    return held.meet(Interval(min(n.param.get("lo", held.lo), top), top))


def _held(n: Node, c: Checked) -> Certificate:
    """A state that is an operand: where it is made of its own past, its limits must not act in that loop."""
    kept = c.ranges[n.inputs[0]].join(Interval(*2 * (initial(n, c),)))
    free, looped = {"lo": -1 << 62, "hi": 1 << 62}, {n.state: kept}
    for m in c.program.nodes[: c.program.nodes.index(n)]:
        if looped.keys() & set(m.inputs):
            params = {k: free.get(k, v) for k, v in m.params}
            operands = (looped.get(i, c.ranges[i]) for i in m.inputs)
            pointwise = m.spec.structure is Structure.POINTWISE
            looped[m.output] = interval_of(m.spec.define(*operands, **params)) if pointwise else c.ranges[m.output]
    if looped.get(n.inputs[0], kept) not in kept:
        return turned(n, c)
    return Certificate(n.output, "holds", lo=(kept.lo,), hi=(kept.hi,))
