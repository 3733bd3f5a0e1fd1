"""What a traced build reports, against the reference."""

from __future__ import annotations

import numpy as np

from isobit.quant.interpret import interpret
from isobit.quant.program import Arrays, Program
from isobit.quant.vectors import Vectors
from isobit.targets.target import Session


def wrong_taps(session: Session, program: Program, v: Vectors) -> list[str]:
    """The nodes of which any element differs."""
    expected: Arrays = {}
    interpret(program, v.inputs, v.start, expected)
    got = session.trace(v.inputs, v.start)
    return [k for k, e in expected.items() if not np.array_equal(e, got[k])]
