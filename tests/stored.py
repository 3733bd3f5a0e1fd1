"""Every kind of packed constant, and a Program that shows all of their numbers to a target."""

from __future__ import annotations

import numpy as np

from isobit.quant.formats import FORMATS
from isobit.quant.interpret import interpret
from isobit.quant.program import DIGITS, SIGN, Array, Input, IntType, Node, Program, TensorType, constant
from isobit.quant.storage import Storage, storage
from isobit.quant.vectors import Vectors, join, prefixed

INTEGERS = [IntType(bits, signed) for bits in range(1, 17) for signed in (True, False)]
MINIFLOATS = {storage(f.elem, f.mantissa): f.elem for f in FORMATS.values() if f.mantissa is not None}
ELEMENTS = {storage(elem): elem for elem in INTEGERS} | MINIFLOATS
ELEMENTS |= {storage(IntType(9, False), 0): IntType(9, False), storage(SIGN): SIGN, storage(DIGITS): DIGITS}
"""By storage: the element type."""

STORED = tuple(ELEMENTS)

COLUMNS = 3
MOST = 300
"""Numbers shown of one storage: all that its elements hold, or the first, the last and some between."""


def numbers(s: Storage) -> Array:
    shown = s.decoded(np.unique(np.linspace(0, (1 << s.bits) - 1, MOST).astype(np.int64)))
    limits = ELEMENTS[s].range
    return shown[(shown >= limits.lo) & (shown <= limits.hi)]


def stored_program() -> tuple[Program, Vectors]:
    """Rows of a table for every storage, and every row of each."""
    programs = []
    for s, elem in ELEMENTS.items():
        shown = numbers(s)
        rows = np.resize(shown, (128, COLUMNS))
        x = Input("x", TensorType(("T",), IntType(7, signed=False)))
        held = constant("table", rows, elem, mantissa=s.mantissa)
        node = Node("embedding", (), ("x", "table"), "y", "t,vc->tc", s.name)
        programs.append(prefixed(Program(s.name, (x,), (held,), (), (node,), ("y",)), s.name))
    program = join("stored", programs)
    steps = np.arange(MOST // COLUMNS + 1)[None]
    inputs = {i.name: steps for i in program.inputs}
    outputs, states = interpret(program, inputs)
    return program, Vectors("stored", "every number", inputs, outputs, states)
