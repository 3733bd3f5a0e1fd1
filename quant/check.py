"""What holds of a Program, proved: shapes, intervals, widths, accumulators, states, `bound` claims.

`check` runs after every pass; nothing is built from a Program that it has not accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from isobit.quant.errors import CheckError, ExprError
from isobit.quant.expr.interval import Interval
from isobit.quant.expr.prove import Proof, prove_claims
from isobit.quant.expr.symbols import Traced, trace
from isobit.quant.ops import OPS, Structure
from isobit.quant.ops.matmul import product
from isobit.quant.program import CONTAINERS, IntType, Node, Program, TensorType, smallest

NOT_PARAMETERS = ("acc",)
"""Parameters of the structure, not of the definition: the accumulator's width."""


@dataclass(frozen=True)
class Checked:
    """Facts about a Program: type and interval of every value, and every definition specialised to its intervals.

    bodies: by node output, the value of a pointwise node, the term of a sum, or the update of a state.
    readouts: by node output, the term of a recurrence's output.
    """

    program: Program
    types: dict[str, TensorType]
    ranges: dict[str, Interval]
    sizes: dict[str, dict[str, int]]
    bodies: dict[str, Traced]
    readouts: dict[str, Traced]
    proofs: list[Proof]

    def accumulator(self, n: Node) -> IntType:
        """The accumulator's type of a structural node, as declared and proved."""
        return IntType(n.param["acc"])


_checked: WeakKeyDictionary[Program, Checked] = WeakKeyDictionary()


def check(program: Program) -> Checked:
    """Prove the Program well formed and free of overflow, or raise CheckError naming the user's layer and the remedy."""
    if program not in _checked:
        _checked[program] = _Checker(program).run()
    return _checked[program]


class _Checker:
    def __init__(self, program: Program) -> None:
        self.p = program
        types = {i.name: i.type for i in program.inputs} | {c.name: c.type for c in program.constants}
        ranges = {i.name: i.type.elem.range for i in program.inputs}
        for c in program.constants:
            ranges[c.name] = Interval(int(c.array.min()), int(c.array.max())) if c.array.size else Interval(0, 0)
        self.c = Checked(program, types, ranges, {}, {}, {}, [])

    def run(self) -> Checked:
        self._names_are_unique()
        for n in self.p.nodes:
            where = f"{n.loc} ({n.op} -> {n.output})"
            try:
                if n.op not in OPS:
                    raise CheckError(f"unknown op '{n.op}'; known: {', '.join(OPS)}")
                self._shapes(n)
                self._node(n)
            except (ExprError, CheckError) as e:
                raise CheckError(f"{where}: {e}") from e
        for output in self.p.outputs:
            if output not in self.c.types:
                raise CheckError(f"output {output} is not made by any node")
        return self.c

    def _names_are_unique(self) -> None:
        p = self.p
        names = [x.name for x in (*p.inputs, *p.constants, *p.states)] + [n.output for n in p.nodes]
        if twice := {k for k in names if names.count(k) > 1} if len(set(names)) < len(names) else set():
            raise CheckError(f"{', '.join(sorted(twice))}: two values have this name")
        owners = [n.state for n in p.nodes if n.state]
        if sorted(owners) != sorted(p.state):
            raise CheckError(f"states {sorted(p.state)} and the nodes that own them, {sorted(owners)}, differ")

    def _shapes(self, n: Node) -> None:
        """Every index has one size; operands exist before their use."""
        sizes: dict[str, int] = {}
        if len(n.inputs) != len(n.labels.inputs):
            raise CheckError(f"index '{n.index}' is for {len(n.labels.inputs)} operands, the node has {len(n.inputs)}")
        for labels in (*n.labels.inputs, n.labels.output, n.labels.state):
            if len(set(labels)) < len(labels):
                raise CheckError(f"index '{n.index}' names an axis twice in '{labels}'")
        if unknown := set(n.labels.output) - set("t" + "".join(n.labels.inputs) + n.labels.state):
            raise CheckError(f"index '{n.index}': no operand has {', '.join(sorted(unknown))}")

        def place(name: str, t: TensorType, labels: str) -> None:
            if len(labels) != len(t.shape):
                raise CheckError(f"{name} has shape {t.shape}, its index is '{labels}'")
            for d, k in zip(t.shape, labels, strict=True):
                if (k == "t") != (d == "T"):
                    raise CheckError(f"{name} has shape {t.shape}, its index is '{labels}': t is time")
                if isinstance(d, int) and sizes.setdefault(k, d) != d:
                    raise CheckError(f"index {k} is {sizes[k]} and, in {name}, {d}")

        for name, labels in zip(n.inputs, n.labels.inputs, strict=True):
            if name not in self.c.types:
                raise CheckError(f"operand {name} is not made before it is used")
            place(name, self.c.types[name], labels)
        if n.state:
            state = self.p.state[n.state].type
            if n.spec.structure is Structure.RECURRENCE:
                place(n.state, state, n.labels.state)
            elif state.shape != (ring := (sizes["j"] - 1, sizes["c"])):
                raise CheckError(f"{n.state} has shape {state.shape}, a ring of {ring} is needed")
        self.c.sizes[n.output] = sizes

    def _node(self, n: Node) -> None:
        c, out = self.c, n.output
        params = {k: v for k, v in n.params if k not in NOT_PARAMETERS}
        ranges = [c.ranges[i] for i in n.inputs]
        match n.spec.structure:
            case Structure.POINTWISE:
                c.bodies[out] = self._trace(n.spec.define, ranges, params)
                c.ranges[out] = c.bodies[out].range
            case Structure.CONTRACTION | Structure.WINDOW:
                terms = ranges[:-1] if n.spec.start else ranges
                if n.state and terms[0] not in self.p.state[n.state].type.elem.range:
                    raise CheckError(f"state {n.state} holds {self.p.state[n.state].type.elem}, the input is in {terms[0]}")
                c.bodies[out] = self._trace(n.spec.define, terms, params)
                c.ranges[out] = self._accumulated(n, c.bodies[out].range, ranges[-1] if n.spec.start else Interval(0, 0))
            case Structure.RECURRENCE:
                self._recurrence(n, ranges, params)
        c.types[out] = TensorType(
            tuple("T" if k == "t" else c.sizes[out][k] for k in n.labels.output), smallest(c.ranges[out]), n.scale
        )

    def _recurrence(self, n: Node, ranges: list[Interval], params: dict[str, int]) -> None:
        assert n.state is not None
        c, state = self.c, self.p.state[n.state]
        held = state.type.elem.range
        if state.initial not in held:
            raise CheckError(f"state {n.state} starts at {state.initial}, its type holds {held}")
        updates, queries = (ranges[:-1], ranges[-1:]) if n.spec.readout else (ranges, [])
        body = c.bodies[n.output] = self._trace(n.spec.define, [held, *updates], params)
        if body.range not in held:
            raise CheckError(f"state {n.state} can reach {body.range}, its type {state.type.elem} holds {held}")
        width = n.param.get("acc", 0)
        if (needed := max(s.bits for s in body.nodes)) > width:
            raise CheckError(
                f"its update needs {needed} bits, acc is {width}; use a smaller shift `up`, fewer bits, or a wider accumulator"
            )
        if n.spec.readout:
            reached = body.range.join(Interval(state.initial, state.initial))
            readout = c.readouts[n.output] = self._trace(n.spec.readout, [reached, *queries], {})
            c.ranges[n.output] = self._accumulated(n, readout.range, Interval(0, 0))
        else:
            c.ranges[n.output] = body.range

    def _trace(self, definition: object, ranges: list[Interval], params: dict[str, int]) -> Traced:
        traced = trace(definition, ranges, params)  # type: ignore[arg-type]
        self.c.proofs.extend(prove_claims(traced))
        return traced

    def _accumulated(self, n: Node, term: Interval, start: Interval) -> Interval:
        """The interval that holds every partial sum, in any order of summation; it must fit the declared accumulator."""
        sizes = self.c.sizes[n.output]
        reduced = [k for k in n.labels.reduced if k not in n.labels.output]
        count = int(np.prod([sizes[k] for k in reduced], dtype=object)) if reduced else 1
        lo, hi = min(term.lo, 0) * count, max(term.hi, 0) * count
        exact = self._constant_weights(n, reduced)
        if exact is not None:
            lo, hi = exact
        known = Interval(lo + start.lo, hi + start.hi).join(start)
        width = n.param.get("acc")
        if width not in CONTAINERS:
            raise CheckError(f"parameter acc is {width}: an accumulator has 8, 16, 32 or 64 bits")
        if known not in IntType(width).range:
            raise CheckError(
                f"its accumulator can reach {known}, an int{width} holds {IntType(width).range}; "
                f"give this layer fewer bits of weights or activations, or a {min(64, 2 * width)}-bit accumulator"
            )
        return known

    def _constant_weights(self, n: Node, reduced: list[str]) -> tuple[int, int] | None:
        """Exact extremes over channels of sums of products with constant weights (the bound of A2Q, Colbert et al. 2023)."""
        if n.spec.define is not product or n.inputs[1] not in self.p.constant:
            return None
        w, x = self.p.constant[n.inputs[1]].array.astype(object), self.c.ranges[n.inputs[0]]
        axes = tuple(i for i, k in enumerate(n.labels.inputs[1]) if k in reduced)
        largest = np.maximum(np.maximum(w * x.hi, w * x.lo), 0).sum(axes)
        least = np.minimum(np.minimum(w * x.hi, w * x.lo), 0).sum(axes)
        return int(np.min(least)), int(np.max(largest))
