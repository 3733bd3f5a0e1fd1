"""Certificates checked again, from the Program alone: by the definitions, over all codes, without the search.

An update that is affine in each operand, then rounded, has its extremes over a box at the box's corners.  So it keeps
an interval of states if every corner leads into it, for every code of the step that the operands share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import product

import numpy as np

from isobit.quant.certificates.certificate import Certificate
from isobit.quant.certificates.recheck_turned import turned
from isobit.quant.check import Checked, check
from isobit.quant.errors import CheckError
from isobit.quant.expr.interval import Interval, interval_of
from isobit.quant.ops import Structure
from isobit.quant.program import Array, Node, Program

UPDATES = (
    "linear_recurrence",
    "linear_recurrence_before",
    "diagonal_recurrence",
    "delta_recurrence",
    "convex_recurrence",
)
"""Affine in the state and in each operand, then rounded."""

SUMS = ("running_sum", "outer_sum", "step_count")
"""A term, whatever the state is, is added to it."""

CORNERS = ("multiply", "requantize", "requantize_per_channel", "add", "add_per_channel", "transpose")
"""Pointwise, affine in each operand, then rounded and limited."""

MOVES = ("merge_axes", "split_axis", "take")
"""Each element is one of the operand's."""

FREE = {"lo": -1 << 62, "hi": 1 << 62, "t_max": 1 << 62}
"""Limits that never act."""

LARGEST = 1 << 40
"""Beyond it, an update might not fit the 64 bits in which it is checked."""

AT_ONCE = 1 << 16
"""Values."""

Place = tuple[str, ...]
"""Of an element: for each axis of its value but time, one of the recurrence's, or a text that stands for one index."""

Box = tuple[Array, ...]
"""A value, or its least and its largest: by code of the step, then along the axes of the recurrence."""


def recheck(program: Program, progress: Callable[[str], None] = lambda stage: None) -> None:
    """CheckError, naming the user's layer, at the first certificate of `program` that does not hold."""
    facts, made = check(program), {n.output: n for n in program.nodes}
    for c in program.certificates:
        n = made[c.node]
        progress(f"{n.loc} ({n.op}): {c.kind}")
        for why in CLAIMS[c.kind](n, c, facts):
            raise CheckError(f"{n.loc} ({n.op} -> {n.output}): its certificate ({c.kind}) does not hold: {why}")


def _without_limits(n: Node) -> dict[str, int]:
    return {k: FREE.get(k, v) for k, v in n.params if k != "acc"}


def _start(n: Node, facts: Checked) -> int:
    return facts.program.state[n.state].initial if n.state else 0


def _invariant(n: Node, c: Certificate, facts: Checked) -> Iterator[str]:
    if n.op not in UPDATES or any(abs(v) > LARGEST for v in (*c.lo, *c.hi)):
        yield f"expected one of {', '.join(UPDATES)}, and bounds of at most {LARGEST}"
        return
    view = _View(n, c, facts)
    shape = [size if k in c.axes else 1 for k, size in zip(view.own, view.sizes, strict=True)]
    lo, hi = (np.array(bound, np.int64).reshape(1, *shape) for bound in (c.lo, c.hi))
    if (lo > _start(n, facts)).any() or (hi < _start(n, facts)).any():
        yield f"the state starts at {_start(n, facts)}, outside"
    for codes in view.chunks():
        for end, *corner in product((lo, hi), *(view.box(name, place, codes) for name, place in view.operands)):
            after = n.spec.define(end, *corner, **_without_limits(n))
            for out in np.argwhere((after < lo) | (after > hi))[:1]:
                before, left = (np.broadcast_to(x, after.shape)[tuple(out)] for x in (end, after))
                at = f"code {codes[out[0]]} of {c.step}" if c.step else "an end of its operands"
                yield f"element {out[1:].tolist()} goes from {before} to {left} at {at}"


def _steps(n: Node, c: Certificate, facts: Checked) -> Iterator[str]:
    ends = [(facts.ranges[i].lo, facts.ranges[i].hi) for i in n.inputs[: len(n.inputs) - n.spec.queries]]
    terms = [n.spec.define(0, *corner, **_without_limits(n)) for corner in product(*ends)]
    start, limit = _start(n, facts), n.param.get("hi", n.param.get("t_max", 0))
    reach = Interval(start + c.t_max * min(0, *terms, 0), start + c.t_max * max(0, *terms, 0))
    if n.op not in SUMS or any(
        reach not in Interval(*ends) for ends in ((c.lo[0], c.hi[0]), (n.param.get("lo", 0), limit))
    ):
        yield f"after {c.t_max} steps it can be anywhere in {reach}"


def _holds(n: Node, c: Certificate, facts: Checked) -> Iterator[str]:
    kept, nodes = Interval(c.lo[0], c.hi[0]), facts.program.nodes
    if _start(n, facts) not in kept or (n.spec.structure is Structure.RECURRENCE and n.op not in ("hold", "delay")):
        yield f"the state starts at {_start(n, facts)} and is made by {n.op}"
    looped = {n.state: kept}
    for m in nodes[: nodes.index(n)]:
        if any(i in looped for i in m.inputs):
            operands = [looped.get(i, facts.ranges[i]) for i in m.inputs]
            pointwise = m.spec.structure is Structure.POINTWISE
            value = m.spec.define(*operands, **_without_limits(m)) if pointwise else facts.ranges[m.output]
            looped[m.output] = interval_of(value)
    if (reach := looped.get(n.inputs[0], facts.ranges[n.inputs[0]])) not in kept:
        yield f"what it holds can be anywhere in {reach}"


CLAIMS: dict[str, Callable[[Node, Certificate, Checked], Iterator[str]]] = {
    "invariant": _invariant,
    "ellipse": turned,
    "steps": _steps,
    "holds": _holds,
    "saturates": lambda n, c, facts: iter(()),
}


class _View:
    """The operands of an update as functions of the step's code.

    met: the element of the step that was met first; another one has codes of its own, and only its interval is known.
    """

    def __init__(self, n: Node, c: Certificate, facts: Checked) -> None:
        self.step, self.facts, self.made = c.step, facts, {m.output: m for m in facts.program.nodes}
        self.own, labels = n.labels.state + n.labels.scanned, n.labels.inputs[: len(n.inputs) - n.spec.queries]
        self.sizes = [facts.sizes[n.output][k] for k in self.own]
        self.elements = int(np.prod([facts.sizes[n.output][k] for k in c.axes], dtype=np.int64))
        self.operands = [(i, tuple(k.replace("t", ""))) for i, k in zip(n.inputs, labels, strict=False)]
        self.met: Place | None = None
        self.seen: dict[tuple[str, Place], Box] = {}

    def chunks(self) -> Iterator[Array]:
        """All codes, some at a time."""
        known = self.facts.ranges[self.step] if self.step else Interval(0, 0)
        pieces = min(-(-known.size * self.elements // AT_ONCE), known.size)
        for codes in np.array_split(np.arange(known.lo, known.hi + 1), pieces):
            self.seen.clear()
            yield codes

    def box(self, name: str, place: Place, codes: Array) -> Box:
        """What one element of a value can be at these codes, a part of `chunks`."""
        if (name, place) not in self.seen:
            self.seen[name, place] = self._box(name, place, codes)
        return self.seen[name, place]

    def _box(self, name: str, place: Place, codes: Array) -> Box:
        if name == self.step and self.met in (None, place):
            self.met = place
            return (codes.reshape(-1, *(1 for _ in self.own)),)
        array, m, known = self.facts.program.constant.get(name), self.made.get(name), self.facts.ranges[name]
        if array is not None and set(place) <= set(self.own):
            placed = array.array.transpose([place.index(k) for k in self.own if k in place])
            return (np.expand_dims(placed, [0, *(i + 1 for i, k in enumerate(self.own) if k not in place)]),)
        interval = tuple(np.full([1] * (1 + len(self.own)), v) for v in sorted({known.lo, known.hi}))
        if m is not None and m.op in MOVES:
            return self.box(m.inputs[0], tuple(f"{k} {m.output} {place}" for k in m.labels.inputs[0][1:]), codes)
        if m is None or m.spec.structure is not Structure.POINTWISE:
            return interval
        axes = dict(zip(m.labels.output[1:], place, strict=True))
        places = [tuple(axes[k] for k in labels if k != "t") for labels in m.labels.inputs]
        operands = [self.box(i, p, codes) for i, p in zip(m.inputs, places, strict=True)]
        if m.op not in CORNERS and any(len(operand) > 1 for operand in operands):
            return interval
        values = [m.spec.define(*corner, **m.param) for corner in product(*operands)]
        return (values[0],) if len(values) == 1 else (reduce(np.minimum, values), reduce(np.maximum, values))
