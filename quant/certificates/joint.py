"""Values of a Program as functions of the codes of one step, seen from the recurrence that they drive."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from itertools import product

import numpy as np

from isobit.quant.check import Checked
from isobit.quant.ops import Structure
from isobit.quant.program import Array, Node

Place = tuple[str, ...]
"""Which element of a value: for each of its axes but time, an axis of the recurrence, or a text that is the same only
where the index is."""

Element = tuple[str, Place]

NOWHERE: Element = "", ()

Extremes = tuple[Array, Array]
"""Least and largest by code of the step (axis 0) and kind of element (axis 1); one array twice where they agree."""

MOST_CODES = 1 << 16
"""A value with more codes is no step: they are all tried."""

CHUNK = 1 << 18
"""Codes times kinds of elements that are evaluated at once."""

SEPARATELY_MONOTONE = ("multiply", "requantize", "requantize_per_channel", "add", "add_per_channel", "transpose")
"""Pointwise ops that grow, or fall, with each operand while the others stay: their extremes are at the corners."""

MOVING = ("merge_axes", "split_axis", "take")
"""Layout ops whose every element is one of their operand's."""


class Joint:
    """The operands of a recurrence, its decay first, without those of its readout.

    step: the value that the decay is a function of: as early in the Program as possible, but one that the drive depends
    on too where there is such a value; empty where there is none.  source, codes: a value on the way from there to the
    decay that is all that the operands see of the step, and the values that it takes.
    axes: of the recurrence, those along which constants differ; kinds: by kind of element that meets its own constants,
    their values; kind_of: the kind of every element, along `axes`.
    """

    def __init__(self, n: Node, c: Checked) -> None:
        self.checked, self.made = c, {m.output: m for m in c.program.nodes}
        labels = n.labels.inputs[: len(n.inputs) - n.spec.queries]
        self.operands: list[Element] = [(i, tuple(k.replace("t", ""))) for i, k in zip(n.inputs, labels, strict=False)]
        self.step, self.source, self.codes = "", NOWHERE, np.zeros(1, np.int64)
        self.leaves: list[Element] = []
        self.seen: dict[tuple[Element, Element], frozenset[Element]] = {}
        self._choose()
        leaves = {e for operand in self.operands for e in self._constants(operand)}
        own = n.labels.state + n.labels.scanned
        self.leaves = sorted(e for e in leaves if set(e[1]) <= set(own))
        self.axes = "".join(k for k in own if any(k in place for _, place in self.leaves))
        sizes = [c.sizes[n.output][k] for k in self.axes]
        columns = [np.broadcast_to(self._along(e), sizes).ravel() for e in self.leaves]
        table = np.stack(columns, axis=1) if columns else np.zeros((1, 0), np.int64)
        self.kinds, kind_of = np.unique(table, axis=0, return_inverse=True)
        self.kind_of = kind_of.reshape(sizes)

    def chunks(self) -> Iterator[Array]:
        """All codes, some at a time, as a column."""
        for part in np.array_split(self.codes, -(-len(self.codes) * len(self.kinds) // CHUNK)):
            yield part[:, None]

    def extremes(self, element: Element, codes: Array) -> Extremes:
        """Of one element of a value, for these codes of the step."""
        name = element[0]
        if element == self.source:
            return codes, codes
        if element in self.leaves:
            column = self.kinds[:, self.leaves.index(element)]
            return column, column
        known = self.checked.ranges[name]
        interval = np.asarray(known.lo), np.asarray(known.hi)
        sources = self._sources(element)
        if self.source not in self._below(element) and not any(e in self.leaves for e in self._below(element)):
            return interval if known.lo < known.hi else (interval[0], interval[0])
        n, operands = self.made[name], [self.extremes(e, codes) for e in sources]
        if n.spec.structure is Structure.LAYOUT:
            return operands[0]
        if all(lo is hi for lo, hi in operands):
            value = n.spec.define(*(lo for lo, _ in operands), **n.param)
            return value, value
        if n.op not in SEPARATELY_MONOTONE:
            return interval
        corners = [n.spec.define(*corner, **n.param) for corner in product(*operands)]
        return reduce(np.minimum, corners), reduce(np.maximum, corners)

    def _along(self, element: Element) -> Array:
        """A constant with its axes placed along `axes`."""
        name, place = element
        array = self.checked.program.constant[name].array
        array = array.transpose([place.index(k) for k in self.axes if k in place])
        return np.expand_dims(array, [i for i, k in enumerate(self.axes) if k not in place])

    def _choose(self) -> None:
        decay, *drives = self.operands
        chain = [decay]
        while (source := self._only_source(chain[-1])) is not None:
            chain.append(source)
        shared = [s for s in chain[1:] if any(s in self._below(d) for d in drives)]
        if len(chain) == 1:
            return
        start = (shared or chain)[-1]
        known, bound = self.checked.ranges[start[0]], [d for d in drives if start in self._below(d)]
        self.step, self.source, self.codes = start[0], start, np.arange(known.lo, known.hi + 1)
        for e in reversed(chain[: chain.index(start)]):
            if any(place for _, place in self._constants(e)) or not all(e in self._below(d) for d in bound):
                return
            codes, _ = self.extremes(e, self.codes)
            self.source, self.codes = e, np.unique(codes)

    def _only_source(self, element: Element) -> Element | None:
        """What a value is a function of, constants aside; None where there is more than one such value, or none."""
        varying = {e for e in self._sources(element) if e[0] not in self.checked.program.constant}
        source = varying.pop() if len(varying) == 1 else None
        return source if source and self.checked.ranges[source[0]].size <= MOST_CODES else None

    def _sources(self, element: Element) -> list[Element]:
        """What an element is a function of; empty where that is not known."""
        name, place = element
        n = self.made.get(name)
        if n is not None and n.op in MOVING:
            return [(n.inputs[0], tuple(f"{k} of {n.output}({','.join(place)})" for k in n.labels.inputs[0][1:]))]
        if n is None or n.spec.structure is not Structure.POINTWISE:
            return []
        named = dict(zip(n.labels.output[1:], place, strict=True))
        return [
            (i, tuple(named[k] for k in labels if k != "t"))
            for i, labels in zip(n.inputs, n.labels.inputs, strict=True)
        ]

    def _below(self, element: Element) -> frozenset[Element]:
        """The element and all that it is a function of, down to the source."""
        if (element, self.source) not in self.seen:
            sources = [] if element == self.source else self._sources(element)
            self.seen[element, self.source] = frozenset({element}).union(*(self._below(e) for e in sources))
        return self.seen[element, self.source]

    def _constants(self, element: Element) -> list[Element]:
        return [e for e in self._below(element) if e[0] in self.checked.program.constant]
