"""Golden vectors: generated, seeded, each with the reason why it exists; never edited by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from isobit.quant.interpret import interpret
from isobit.quant.ops import OPS, Case, Structure
from isobit.quant.program import (
    Array,
    Arrays,
    Constant,
    Input,
    IntType,
    Node,
    Program,
    State,
    TensorType,
    constant,
    int_type,
)


@dataclass(frozen=True)
class Vectors:
    """Input sequences of one length with the reference's answers.

    inputs, outputs: name -> int64 (B, T, *shape); states: name -> int64 (B, *shape) after the last step.
    start: the states before the first step; None for reset states.
    """

    name: str
    why: str
    inputs: Arrays
    outputs: Arrays
    states: Arrays
    start: Arrays | None = None

    @property
    def steps(self) -> int:
        return int(next(iter(self.inputs.values())).shape[1])

    @property
    def batch(self) -> int:
        return int(next(iter(self.inputs.values())).shape[0])

    def select(self, rows: slice) -> Vectors:
        """Some of the batch."""

        def cut(arrays: Arrays) -> Arrays:
            return {k: x[rows] for k, x in arrays.items()}

        start = None if self.start is None else cut(self.start)
        return Vectors(self.name, self.why, cut(self.inputs), cut(self.outputs), cut(self.states), start)

    @property
    def values(self) -> int:
        """How many integers a comparison compares."""
        return sum(a.size for a in (*self.outputs.values(), *self.states.values()))


def edges(elem: IntType) -> Array:
    """Zero, the ends of the type, and every power of two +-2 that it holds."""
    known = elem.range
    near = {known.lo, known.hi, 0}
    for k in range(elem.bits):
        near |= {sign * (1 << k) + d for sign in (1, -1) for d in (-2, -1, 0, 1, 2)}
    return np.array(sorted(v for v in near if v in known), np.int64)


def random_values(elem: IntType, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Half uniform over the type, a quarter edges, a quarter small."""
    known = elem.range
    uniform = rng.integers(known.lo, known.hi, shape, dtype=np.int64, endpoint=True)
    small = np.clip(rng.integers(-8, 9, shape), known.lo, known.hi)
    kind = rng.integers(0, 4, shape)
    return np.where(kind < 2, uniform, np.where(kind == 2, rng.choice(edges(elem), shape), small))


def golden(program: Program, real: Arrays | None = None, steps: int = 16, seed: int = 0) -> Iterator[Vectors]:
    """Corner cases, seeded random, one step, a resumed sequence, and real samples (name -> (B, T, *shape))."""
    rng = np.random.default_rng(seed)

    def shape(i: Input, batch: int, length: int) -> tuple[int, ...]:
        return (batch, length, *i.type.dims)

    def corners(i: Input) -> Array:
        low, high = (np.full(shape(i, 1, steps), end, np.int64) for end in (i.type.elem.range.lo, i.type.elem.range.hi))
        odd = (np.arange(steps) % 2).reshape(1, -1, *[1] * len(i.type.dims))
        return np.concatenate([low, high, np.zeros_like(low), np.where(odd, low, high)])

    parts = {i.name: corners(i) for i in program.inputs}
    yield _vectors(program, "corners", "constant at both ends and at zero, and alternating between the ends", parts)
    randoms = {i.name: random_values(i.type.elem, shape(i, 8, steps), rng) for i in program.inputs}
    yield _vectors(program, "random", f"seeded random over each input's type (seed {seed})", randoms)
    single = {i.name: random_values(i.type.elem, shape(i, 2, 1), rng) for i in program.inputs}
    yield _vectors(program, "one-step", "a sequence of length one", single)
    later = {i.name: random_values(i.type.elem, shape(i, 2, steps // 2), rng) for i in program.inputs}
    _, saved = interpret(program, {k: x[:2] for k, x in randoms.items()})
    yield _vectors(program, "resumed", "a sequence that starts from saved states", later, saved)
    if real is not None:
        yield _vectors(program, "real", "samples given by the user", real)


def _vectors(program: Program, name: str, why: str, inputs: Arrays, start: Arrays | None = None) -> Vectors:
    outputs, states = interpret(program, inputs, start)
    return Vectors(name, why, inputs, outputs, states, start)


def case_program(op: str, case: Case, name: str = "case") -> Program:
    """A Program of one node, as a Case describes it."""
    rng = np.random.default_rng(0)
    inputs, constants, operands = list[Input](), list[Constant](), list[str]()
    index, _, _ = case.index.partition("->")
    for position, (labels, elem) in enumerate(
        zip(index.split(","), case.operands, strict=True) if case.operands else ()
    ):
        shape = tuple("T" if k == "t" else case.sizes[k] for k in labels)
        operands.append(f"{name}.x{position}")
        if elem.startswith("="):
            t = int_type(elem[1:])
            constants.append(constant(operands[-1], random_values(t, tuple(case.sizes[k] for k in labels), rng), t))
        else:
            inputs.append(Input(operands[-1], TensorType(shape, int_type(elem))))
    states: tuple[State, ...] = ()
    structure = OPS[op].structure
    if case.state:
        held = int_type(case.state)
        labels = case.index.partition("|")[2]
        dims = tuple(case.sizes[k] for k in labels)
        if structure is Structure.WINDOW:
            dims = (case.sizes["j"] - 1, *(case.sizes[k] for k in index.split(",")[0] if k != "t"))
        if structure is Structure.HISTORY:
            dims = (case.params["length"] - 1, *(case.sizes[k] for k in index if k != "t"))
        states = (State(f"{name}.state", TensorType(dims, held)),)
    node = Node(
        op,
        tuple(sorted(case.params.items())),
        tuple(operands),
        f"{name}.y",
        case.index,
        name,
        f"{name}.state" if states else None,
    )
    if not inputs:
        inputs.append(Input(f"{name}.clock", TensorType(("T", 1), IntType(8))))
    return Program(name, tuple(inputs), tuple(constants), states, (node,), (node.output,))


def join(name: str, programs: list[Program]) -> Program:
    """Independent Programs as one, so that one build covers them all."""
    return Program(
        name,
        tuple(i for p in programs for i in p.inputs),
        tuple(c for p in programs for c in p.constants),
        tuple(s for p in programs for s in p.states),
        tuple(n for p in programs for n in p.nodes),
        tuple(o for p in programs for o in p.outputs),
    )


def prefixed(program: Program, prefix: str) -> Program:
    """The same Program; every value's and every layer's name starts with `prefix` and a dot."""

    def named(name: str) -> str:
        return f"{prefix}.{name}"

    return Program(
        prefix,
        tuple(replace(i, name=named(i.name)) for i in program.inputs),
        tuple(replace(c, name=named(c.name)) for c in program.constants),
        tuple(replace(s, name=named(s.name)) for s in program.states),
        tuple(
            replace(
                n,
                inputs=tuple(map(named, n.inputs)),
                output=named(n.output),
                loc=named(n.loc),
                state=named(n.state) if n.state else None,
            )
            for n in program.nodes
        ),
        tuple(map(named, program.outputs)),
    )
