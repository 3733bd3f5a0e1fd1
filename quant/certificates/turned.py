"""Certificates of complex states that a constant turns and shrinks: the search.

h' = a h + u keeps |h| <= |u| / (1 - |a|).  The two parts of h have units of their own: the disc is an ellipse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isobit.quant.certificates.certificate import Certificate, differing
from isobit.quant.check import Checked
from isobit.quant.expr.interval import Interval
from isobit.quant.program import Array, Node

Floats = npt.NDArray[np.float64]

SLACKS = 1e-3, 1e-2, 1e-1
"""By how much an ellipse is larger than it has to be, because its half-axes are rounded."""


@dataclass(frozen=True)
class Part:
    """One part of a complex state, made of itself and of the other: own*x + cross*y, and at most `push`."""

    own: Floats
    cross: Floats
    push: float


def turned(n: Node, c: Checked) -> Certificate:
    """Of a `hold` of one part; it saturates where there is no other part, or no ellipse."""
    holds = [m for m in c.program.nodes if m.op == "hold"]
    for other in holds:
        one, two = (n, other) if holds.index(n) < holds.index(other) else (other, n)
        x, y = _part(one, two, c), _part(two, one, c)
        if other is n or x is None or y is None:
            continue
        axes = _half_axes(x, y)
        if axes is None:
            break
        hi = axes[0 if n is one else 1].reshape(c.states[n.state or ""].dims)
        return Certificate(n.output, "ellipse", other.output, *differing(n.labels.state, -hi, hi))
    return Certificate(n.output, "saturates")


def _part(n: Node, other: Node, c: Checked) -> Part | None:
    program = c.program
    made = next(m for m in program.nodes if m.output == n.inputs[0])
    turns = made.op in ("rotate", "rotate_and_add") and (made.inputs[0], made.inputs[2]) == (n.state, other.state)
    if not turns or n.state is None or program.state[n.state].initial:
        return None
    gains = [program.constant[i].array for i in (made.inputs[1], made.inputs[3]) if i in program.constant]
    if len(gains) < 2 or any(g.shape != c.states[n.state].dims for g in gains):
        return None
    unit, drive = 1 << made.param["s"], c.ranges[made.inputs[4]] if made.op == "rotate_and_add" else Interval(0, 0)
    push = made.param.get("mu", 0) * max(abs(drive.lo), abs(drive.hi)) / unit + 0.5
    return Part(gains[0].ravel() / unit, gains[1].ravel() / unit, push)


def _half_axes(x: Part, y: Part) -> tuple[Array, Array] | None:
    """Of an ellipse that the turn keeps: in its coordinates the turn shrinks by more than the drive adds."""
    ratio = np.sqrt(np.maximum(abs(x.cross), 1e-9) / np.maximum(abs(y.cross), 1e-9))
    size = np.hypot(np.maximum(abs(x.own), abs(y.own)), x.cross / ratio)
    if (size >= 1).any():
        return None
    least = (x.push + y.push * ratio) / (1 - size)
    for slack in SLACKS:
        half = np.ceil(least * (1 + slack)), np.ceil(least / ratio * (1 + slack))
        turn = np.array([[x.own, x.cross * half[1] / half[0]], [y.cross * half[0] / half[1], y.own]])
        norm = np.linalg.norm(np.moveaxis(turn, -1, 0), ord=2, axis=(1, 2))
        if (norm + x.push / half[0] + y.push / half[1] < 1 - 1e-9).all():
            return half[0].astype(np.int64), half[1].astype(np.int64)
    return None
