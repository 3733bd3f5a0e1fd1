"""A second reference, slower and separate: the loop nests executed on Python's integers, against the numpy one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from isobit.quant.interpret import interpret
from isobit.quant.ops import OPS
from isobit.quant.program import Arrays, Program
from isobit.quant.vectors import golden
from isobit.targets.nest import (
    Accumulate,
    Accumulator,
    Apply,
    Element,
    Let,
    Local,
    Loop,
    Nest,
    Offset,
    Operand,
    Statement,
    Store,
    nest,
)
from isobit.tools.golden import GOLDEN, digests
from isobit.tools.status import op_program
from tests.models import mamba_block

Memory = dict[str, dict[tuple[int, ...], int]]


class Machine:
    """Executes one time step of a Nest on memory of Python integers."""

    def __init__(self, lowered: Nest, memory: Memory) -> None:
        self.nest, self.memory = lowered, memory
        self.index: dict[str, int] = {}
        self.local: dict[str, int] = {}

    def run(self, statements: tuple[Statement, ...]) -> None:
        for s in statements:
            match s:
                case Loop():
                    for i in range(s.extent):
                        self.index[s.index] = i
                        self.run(s.body)
                case Accumulator():
                    self.local[s.value] = 0 if s.start is None else self.read(s.start)
                case Accumulate():
                    self.local[s.value] += self.apply(s.term)
                case Let():
                    self.local[s.value] = self.apply(s.apply)
                case Store():
                    self.memory[s.to.value][self.place(s.to)] = self.read(s.operand)

    def apply(self, a: Apply) -> int:
        spec = a.node.spec
        define = spec.readout if a.role == "readout" else spec.define
        assert define is not None
        params = {} if a.role in ("term", "readout") else {k: v for k, v in a.node.params if k != "acc"}
        return int(define(*(self.read(o) for o in a.operands), **params))

    def read(self, o: Operand) -> int:
        return self.local[o.value] if isinstance(o, Local) else self.memory[o.value][self.place(o)]

    def place(self, e: Element) -> tuple[int, ...]:
        def at(i: str | int | Offset) -> int:
            return i if isinstance(i, int) else self.index[i] if isinstance(i, str) else self.index[i.label] + i.by

        return tuple(at(i) for i in e.indices)


def scalars(array: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> dict[tuple[int, ...], int]:
    return {i: int(array[i]) for i in itertools.product(*map(range, array.shape))}


def by_machine(program: Program, inputs: Arrays) -> tuple[Arrays, Arrays]:
    """What `interpret` returns, for a batch of one."""
    lowered = nest(program)
    memory: Memory = {c.name: scalars(c.array) for c in program.constants}
    memory |= {k: scalars(x[0]) for k, x in program.initial_states(1).items()}
    memory |= {v: {} for v in (*lowered.scratch, *program.outputs)}
    steps = inputs[program.inputs[0].name].shape[1]
    outputs = {o: np.zeros((1, steps, *lowered.type(o).dims), np.int64) for o in program.outputs}
    for t in range(steps):
        memory |= {k: scalars(x[0, t]) for k, x in inputs.items()}
        machine = Machine(lowered, memory)
        for kernel in lowered.kernels:
            machine.run(kernel.body)
        for o in program.outputs:
            for place, value in memory[o].items():
                outputs[o][(0, t, *place)] = value
    states = {s.name: np.zeros((1, *s.type.dims), np.int64) for s in program.states}
    for name, array in states.items():
        for place, value in memory[name].items():
            array[(0, *place)] = value
    return outputs, states


@pytest.mark.parametrize("op", [*OPS, "a Mamba block"])
def test_the_two_references_agree(op: str) -> None:
    program = mamba_block(d_model=5, d_inner=6, d_state=3) if op == "a Mamba block" else op_program(op)
    for v in golden(program, steps=3):
        if v.start is None:
            one = v.select(slice(1, 2))
            outputs, states = by_machine(program, one.inputs)
            expected, expected_states = interpret(program, one.inputs)
            assert all(np.array_equal(outputs[k], e) for k, e in expected.items())
            assert all(np.array_equal(states[k], e) for k, e in expected_states.items())


def test_the_reference_gives_what_it_always_gave(pytestconfig: pytest.Config) -> None:
    stored = json.loads((Path(pytestconfig.rootpath) / GOLDEN).read_text())
    assert digests() == stored, (
        "the arithmetic changed: if that is meant, run `make vectors` and say why in CHANGELOG.md"
    )
