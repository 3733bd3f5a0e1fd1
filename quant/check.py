"""What holds of a Program, proved: shapes, intervals, widths, accumulators, states, `bound` claims.

`check` runs after every pass; nothing is built from a Program that it has not accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from inspect import Parameter, signature

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


@lru_cache(maxsize=16)
def check(program: Program) -> Checked:
    """Prove the Program well formed and free of overflow; CheckError names the user's layer and the remedy."""
    return _Checker(program).run()


def _index_is_well_formed(n: Node) -> None:
    """The signature's axes: letters, named once in each operand, all of them known to the structure's loops."""
    labels, structure = n.labels, n.spec.structure

    def refuse(why: str) -> None:
        raise CheckError(f"index '{n.index}': {why}")

    if len(n.inputs) != len(labels.inputs):
        refuse(f"it is for {len(labels.inputs)} operands, the node has {len(n.inputs)}")
    for each in (*labels.inputs, labels.output, labels.state):
        if each and not (each.isascii() and each.isalpha()):
            refuse(f"'{each}' is not made of letters")
        if len(set(each)) < len(each):
            refuse(f"it names an axis twice in '{each}'")
        if "t" in each[1:]:
            refuse("t is time, and comes first")
    if not labels.output.startswith("t") or "t" in labels.state:
        refuse("an output has time first, a state has none")
    known = set("t" + "".join(labels.inputs) + labels.state)
    if unknown := set(labels.output) - known:
        refuse(f"no operand has {', '.join(sorted(unknown))}")
    stateful = structure in (Structure.WINDOW, Structure.RECURRENCE)
    if stateful != (n.state is not None):
        raise CheckError(f"{n.op} {'needs a state' if stateful else 'has no state'}, got {n.state}")
    if structure is Structure.POINTWISE and known - set(labels.output):
        refuse("a pointwise output has every axis of its operands")
    if structure is not Structure.RECURRENCE and not any("t" in k for k in labels.inputs):
        refuse("no operand has time")
    if structure is Structure.WINDOW and [k.replace("t", "") for k in labels.inputs] != ["c", "cj", "c"]:
        refuse("a window is tc,cj,c->tc")
    if structure is Structure.RECURRENCE:
        inner = "".join(k for k in labels.state if k not in labels.output)
        if known - {"t"} - set(labels.state) or labels.output[1:] + inner != labels.state:
            refuse("a recurrence's state has all axes, those of the output first")


def _parameters_fit(n: Node) -> None:
    """The node's parameters are those of its definition, and `acc` where the structure accumulates."""
    parameters = signature(n.spec.define).parameters.values()
    wanted = {p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY}
    if n.spec.structure is not Structure.POINTWISE:
        wanted |= set(NOT_PARAMETERS)
    if wanted != set(n.param):
        raise CheckError(f"expected parameters {sorted(wanted)}, got {sorted(n.param)}")
    operands = sum(p.kind is not Parameter.KEYWORD_ONLY for p in parameters)
    state = n.spec.structure is Structure.RECURRENCE
    expected = operands - state + (n.spec.readout is not None) + n.spec.start
    if expected != len(n.inputs):
        raise CheckError(f"expected {expected} operands, got {len(n.inputs)}")
    if big := [k for k, v in n.params if abs(v) >= 1 << 63]:
        raise CheckError(f"parameter {big[0]} does not fit 64 bits")


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
        made = [n.output for n in self.p.nodes]
        for output in self.p.outputs:
            if output not in made or self.p.outputs.count(output) > 1:
                raise CheckError(f"output {output}: expected the value of a node, named once")
        return self.c

    def _names_are_unique(self) -> None:
        p = self.p
        for i in p.inputs:
            if i.type.shape[:1] != ("T",) or not all(isinstance(d, int) and d > 0 for d in i.type.shape[1:]):
                raise CheckError(f"input {i.name} has shape {i.type.shape}, expected (T, sizes above 0)")
        fixed = {c.name: c.type for c in p.constants} | {s.name: s.type for s in p.states}
        for name, t in fixed.items():
            if not all(isinstance(d, int) and d > 0 for d in t.shape):
                raise CheckError(f"{name} has shape {t.shape}, expected sizes above 0")
        names = [i.name for i in p.inputs] + list(p.constant) + list(p.state) + [n.output for n in p.nodes]
        names += [c.name for c in p.constants if p.constant[c.name] is not c]
        names += [s.name for s in p.states if p.state[s.name] is not s]
        if twice := {k for k in names if names.count(k) > 1} if len(set(names)) < len(names) else set():
            raise CheckError(f"{', '.join(sorted(twice))}: two values have this name")
        owners = [n.state for n in p.nodes if n.state]
        if sorted(owners) != sorted(p.state):
            raise CheckError(f"states {sorted(p.state)} and the nodes that own them, {sorted(owners)}, differ")

    def _shapes(self, n: Node) -> None:
        """Every index has one size; operands exist before their use."""
        sizes: dict[str, int] = {}
        _index_is_well_formed(n)
        _parameters_fit(n)

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
            if self.p.state[n.state].initial not in state.elem.range:
                raise CheckError(
                    f"state {n.state} starts at {self.p.state[n.state].initial}, {state.elem} does not hold it"
                )
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
                if n.state:
                    held = self.p.state[n.state].type.elem
                    if terms[0] not in held.range:
                        raise CheckError(f"state {n.state} holds {held}, the input is in {terms[0]}")
                    terms = [held.range, *terms[1:]]
                c.bodies[out] = self._trace(n.spec.define, terms, params)
                c.ranges[out] = self._accumulated(
                    n, c.bodies[out].range, ranges[-1] if n.spec.start else Interval(0, 0)
                )
            case Structure.RECURRENCE:
                self._recurrence(n, ranges, params)
        c.types[out] = TensorType(
            tuple("T" if k == "t" else c.sizes[out][k] for k in n.labels.output), smallest(c.ranges[out]), n.scale
        )

    def _recurrence(self, n: Node, ranges: list[Interval], params: dict[str, int]) -> None:
        assert n.state is not None
        c, state = self.c, self.p.state[n.state]
        held = state.type.elem.range
        updates, queries = (ranges[:-1], ranges[-1:]) if n.spec.readout else (ranges, [])
        body = c.bodies[n.output] = self._trace(n.spec.define, [held, *updates], params)
        if body.range not in held:
            raise CheckError(f"state {n.state} can reach {body.range}, its type {state.type.elem} holds {held}")
        width = n.param.get("acc", 0)
        if (needed := max(s.bits for s in body.nodes)) > width:
            raise CheckError(
                f"its update needs {needed} bits, acc is {width}; "
                "use a smaller shift `up`, fewer bits, or a wider accumulator"
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
        """The interval of every partial sum, in any order of summation; it must fit the declared accumulator."""
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
        """Exact extremes of sums of products with constant weights (the bound of A2Q, Colbert et al. 2023)."""
        if n.spec.define is not product or n.inputs[1] not in self.p.constant:
            return None
        w, x = self.p.constant[n.inputs[1]].array.astype(object), self.c.bodies[n.output].operands[0].range
        axes = tuple(i for i, k in enumerate(n.labels.inputs[1]) if k in reduced)
        repeated = [k for k in reduced if k not in n.labels.inputs[1]]
        w = w * int(np.prod([self.c.sizes[n.output][k] for k in repeated], dtype=object)) if repeated else w
        largest = np.maximum(np.maximum(w * x.hi, w * x.lo), 0).sum(axes)
        least = np.minimum(np.minimum(w * x.hi, w * x.lo), 0).sum(axes)
        return int(np.min(least)), int(np.max(largest))
