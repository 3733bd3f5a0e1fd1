"""A second reference, slower and separate: the loop nests executed on Python's integers, against the numpy one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from isobit.quant.check import loop_parameters
from isobit.quant.interpret import interpret
from isobit.quant.ops import OPS
from isobit.quant.ops.moves import Affine
from isobit.quant.program import Arrays, Program
from isobit.quant.vectors import golden
from isobit.targets.nest import (
    Accumulate,
    Accumulator,
    Apply,
    Element,
    Index,
    Let,
    Literal,
    Local,
    Loop,
    Nest,
    Operand,
    Statement,
    Store,
    Tap,
    nest,
)
from isobit.tools.golden import GOLDEN, digests
from isobit.tools.status import op_program
from tests.feedback import FEEDBACK
from tests.fused import FUSED
from tests.models import mamba_block

Memory = dict[str, dict[tuple[int, ...], int]]


class Machine:
    """Executes one time step of a Nest on memory of Python integers.

    A loop whose iterations may run in any order runs last to first.
    taps: node -> position, row-major -> integer, as a traced build reports them.
    """

    def __init__(self, lowered: Nest, memory: Memory) -> None:
        self.nest, self.memory = lowered, memory
        self.index: dict[str, int] = {}
        self.local: dict[str, int] = {}
        self.taps: dict[str, dict[int, int]] = {}

    def run(self, statements: tuple[Statement, ...]) -> None:
        for s in statements:
            match s:
                case Loop():
                    for i in range(s.extent) if s.ordered or s.reduction else reversed(range(s.extent)):
                        self.index[s.index] = i
                        self.run(s.body)
                case Accumulator():
                    self.local[s.value] = self.read(s.start)
                    assert self.local[s.value] in s.range
                case Accumulate():
                    term, total = self.apply(s.term), self.local[s.value]
                    self.local[s.value] = max(total, term) if s.combine == "max" else total + term
                case Let():
                    self.local[s.value] = self.apply(s.apply)
                    assert self.local[s.value] in s.range
                case Store():
                    value = self.read(s.operand)
                    assert value in self.nest.type(s.to.value).elem.range
                    self.memory[s.to.value][self.place(s.to)] = value
                case Tap():
                    position = 0
                    for place, size in zip(s.indices, s.sizes, strict=True):
                        position = position * size + self.at(place)
                    assert eval(s.position, {}, self.index) == position
                    value = self.read(s.operand)
                    assert self.taps.setdefault(s.node.output, {}).setdefault(position, value) == value

    def apply(self, a: Apply) -> int:
        spec, own = a.node.spec, loop_parameters(a.node)
        define = spec.readout if a.role == "readout" else spec.define
        assert define is not None
        params = {} if a.role == "readout" else {k: v for k, v in a.node.params if k not in own}
        return int(define(*(self.read(o) for o in a.operands), **params))

    def read(self, o: Operand) -> int:
        match o:
            case Local():
                return self.local[o.value]
            case Literal():
                return o.value
            case Element():
                return self.memory[o.value][self.place(o)]

    def place(self, e: Element) -> tuple[int, ...]:
        return tuple(self.at(i) for i in e.indices)

    def at(self, i: Index) -> int:
        match i:
            case int():
                return i
            case str():
                return self.index[i]
            case Affine():
                return i.by + sum(coefficient * self.index[k] for k, coefficient in i.terms)
            case Element() | Local():
                return self.read(i)


def scalars(array: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> dict[tuple[int, ...], int]:
    return {i: int(array[i]) for i in itertools.product(*map(range, array.shape))}


def by_machine(program: Program, inputs: Arrays, start: Arrays | None) -> tuple[Arrays, Arrays, Arrays]:
    """What `interpret` returns, and its taps, for a batch of one."""
    lowered = nest(program)
    stored = {c.name: c.array for c in program.constants}
    memory: Memory = {k: scalars(x) for k, x in stored.items()}
    memory |= {k: scalars(x[0]) for k, x in (start or program.initial_states(1)).items()}
    memory |= {v: {} for v in (*lowered.scratch, *program.outputs)}
    steps = inputs[program.inputs[0].name].shape[1]
    taps = {n.output: np.zeros((1, steps, *lowered.type(n.output).dims), np.int64) for n in program.nodes}
    for t in range(steps):
        memory |= {k: scalars(x[0, t]) for k, x in inputs.items()}
        machine = Machine(lowered, memory)
        for kernel in lowered.kernels:
            machine.run(kernel.body)
        for name, array in taps.items():
            assert sorted(machine.taps[name]) == list(range(array[0, t].size)), name
            array[0, t] = np.array([machine.taps[name][i] for i in range(array[0, t].size)]).reshape(array.shape[2:])
        for o in program.outputs:
            assert scalars(taps[o][0, t]) == memory[o]
    states = {s.name: np.zeros((1, *s.type.dims), np.int64) for s in program.states}
    for name, array in states.items():
        for place, value in memory[name].items():
            array[(0, *place)] = value
    for name, array in stored.items():
        assert memory[name] == scalars(array)
    return {o: taps[o] for o in program.outputs}, states, taps


PROGRAMS = {"a Mamba block": lambda: mamba_block(d_model=5, d_inner=6, d_state=3), **FEEDBACK, **FUSED}


@pytest.mark.parametrize("op", [*OPS, *PROGRAMS])
def test_the_two_references_agree(op: str) -> None:
    program = PROGRAMS[op]() if op in PROGRAMS else op_program(op)
    for v in golden(program, steps=4):
        one = v.select(slice(1, 2))
        outputs, states, taps = by_machine(program, one.inputs, one.start)
        expected_taps: Arrays = {}
        expected, expected_states = interpret(program, one.inputs, one.start, expected_taps)
        assert [k for k, e in expected_taps.items() if not np.array_equal(taps[k], e)] == []
        assert [k for k, e in expected.items() if not np.array_equal(outputs[k], e)] == []
        assert [k for k, e in expected_states.items() if not np.array_equal(states[k], e)] == []


def test_the_reference_gives_what_it_always_gave(pytestconfig: pytest.Config) -> None:
    stored = json.loads((Path(pytestconfig.rootpath) / GOLDEN).read_text())
    assert digests() == stored, (
        "the arithmetic changed: if that is meant, run `make vectors` and say why in CHANGELOG.md"
    )
