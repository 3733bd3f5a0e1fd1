"""The certificate of a complex state checked again, in exact fractions.

Seen from the ellipse's own axes, a step is a matrix A and a push.  The ellipse is kept if A's norm and the push's
length are at most 1 together: with c the square of what the push leaves, if c I - A' A has no negative eigenvalue.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from isobit.quant.certificates.certificate import Certificate
from isobit.quant.check import Checked
from isobit.quant.program import Node


def turned(n: Node, c: Certificate, facts: Checked) -> Iterator[str]:
    """What is wrong with the certificate of a `hold`; `step` names the `hold` of the other part of the state."""
    made, found = {m.output: m for m in facts.program.nodes}, {k.node: k for k in facts.program.certificates}
    other = found.get(c.step)
    if other is None or other.kind != "ellipse" or any(k.lo != tuple(-v for v in k.hi) for k in (c, other)):
        yield f"expected symmetric bounds, here and of {c.step}"
        return
    part, other_part = _part(n, made[c.step], c, facts), _part(made[c.step], n, other, facts)
    if part is None or other_part is None:
        yield f"{n.output} and {c.step} do not hold parts of a state that a constant turns, from 0 on"
        return
    half = Fraction(1, 2)
    elements = enumerate(zip(part, other_part, strict=True))
    for i, ((x, own, cross, push, unit), (y, own_y, cross_y, push_y, unit_y)) in elements:
        left = 1 - (Fraction(push, unit) + half) / x - (Fraction(push_y, unit_y) + half) / y
        a, b = Fraction(own, unit), Fraction(cross * y, unit * x)
        d, e = Fraction(cross_y * x, unit_y * y), Fraction(own_y, unit_y)
        p, q, r = left**2 - a**2 - d**2, left**2 - b**2 - e**2, a * b + d * e
        if left <= 0 or min(p, q) < 0 or p * q < r**2:
            yield f"element {i} leaves the ellipse with half-axes {x} and {y}"


def _part(n: Node, other: Node, c: Certificate, facts: Checked) -> list[tuple[int, int, int, int, int]] | None:
    """By element: its bound, what it is multiplied by, what the other part is, what is added at most, and 2^s."""
    program = facts.program
    m = next((m for m in program.nodes if m.output == n.inputs[0]), None)
    if n.op != "hold" or n.state is None or program.state[n.state].initial or m is None:
        return None
    if m.op not in ("rotate", "rotate_and_add") or (m.inputs[0], m.inputs[2]) != (n.state, other.state):
        return None
    dims, gains = program.state[n.state].type.dims, [program.constant.get(i) for i in (m.inputs[1], m.inputs[3])]
    bounds = np.array(c.hi).reshape([size if k in c.axes else 1 for k, size in zip(n.labels.state, dims, strict=True)])
    if any(g is None or g.array.shape != dims for g in gains) or min(c.hi) <= 0:
        return None
    columns = [np.broadcast_to(bounds, dims), *(g.array for g in gains if g is not None)]
    drive = [abs(end) for i in m.inputs[4:] for end in (facts.ranges[i].lo, facts.ranges[i].hi)]
    push, unit = abs(m.param.get("mu", 0)) * max([0, *drive]), 1 << m.param["s"]
    elements = zip(*(column.ravel().tolist() for column in columns), strict=True)
    return [(x, own, cross, push, unit) for x, own, cross in elements]
