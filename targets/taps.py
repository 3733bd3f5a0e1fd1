"""What traced builds of generated sources report: records of taps, in order of execution."""

from __future__ import annotations

import numpy as np

from isobit.quant.errors import InputError
from isobit.quant.program import Arrays
from isobit.targets.nest import Nest

RECORD = np.dtype([("node", "<i4"), ("index", "<i4"), ("value", "<i8")])
"""The node's number, the position of the element in its output, row-major, and the element."""


def traced_outputs(records: np.ndarray[tuple[int, ...], np.dtype[np.void]], n: Nest, batch: int, steps: int) -> Arrays:
    """Every node's output, int64 (B, T, *dims).

    Every step reports every element, and one that is computed again where it is read again, with the same bits.
    """
    made: Arrays = {}
    for number, node in enumerate(n.program.nodes):
        t, mine = n.checked.types[node.output], records[records["node"] == number]
        place = mine["index"].astype(np.int64) + t.size * (np.arange(len(mine)) * batch * steps // max(len(mine), 1))
        values = np.zeros(batch * steps * t.size, np.int64)
        seen = np.zeros(values.shape, bool)
        values[place], seen[place] = mine["value"], True
        if not seen.all() or not np.array_equal(values[place], mine["value"]):
            what = "no ISOBIT_TAP of some element" if not seen.all() else "ISOBIT_TAPs of an element differ"
            raise InputError(f"{node.loc} ({node.output}): {what}")
        made[node.output] = values.reshape(batch, steps, *t.dims)
    return made
