"""What holds of a Program, proved: shapes, intervals, widths, accumulators, states, `bound` claims.

`check` runs after every pass; nothing is built from a Program that it has not accepted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from inspect import Parameter, signature
from math import prod

import numpy as np

from isobit.quant.errors import CheckError, ExprError
from isobit.quant.expr.interval import Interval
from isobit.quant.expr.prove import Proof, prove_claims
from isobit.quant.expr.symbols import Traced, trace
from isobit.quant.index_rules import check_index
from isobit.quant.ops import OPS, Structure
from isobit.quant.ops.matmul import product
from isobit.quant.ops.moves import Move
from isobit.quant.program import CONTAINERS, Constant, IntType, Node, Program, TensorType, smallest
from isobit.quant.storage import WIDEST

STRUCTURE_PARAMETERS = {
    Structure.CONTRACTION: ("acc",),
    Structure.CONVOLUTION: ("acc",),
    Structure.WINDOW: ("acc",),
    Structure.HISTORY: ("length",),
    Structure.RECURRENCE: ("acc",),
}
"""Parameters of the loops, not of the definition: the accumulator's width, a history's length.

A convolution has, for every axis i along which its kernel slides, stride<i> and dilation<i> too.
"""


MOST_ELEMENTS = (1 << 31) - 1
"""Elements of a value in one time step; generated code counts them in 32 bits."""


MOST_STEPS = 1 << 16
"""Largest number of time steps that an op counts; it may be the size of a table."""


def loop_parameters(n: Node) -> set[str]:
    """Names of a node's parameters that its definition does not take."""
    slides = {f"{name}{i}" for i in range(len(n.labels.slides)) for name in ("stride", "dilation")}
    return slides | set(STRUCTURE_PARAMETERS.get(n.spec.structure, ()))


def term_parameters(n: Node) -> dict[str, int]:
    """The parameters that a node's definition takes."""
    of_loops = loop_parameters(n)
    return {k: v for k, v in n.params if k not in of_loops}


@dataclass(frozen=True)
class Checked:
    """Facts about a Program: type and interval of every value, and every definition specialised to its intervals.

    bodies: by node output, the value of a pointwise node, the term of a sum, or the update of a state.
    readouts: by node output, the term of a recurrence's output.
    states: type of every state, those that live inside one step included.
    """

    program: Program
    types: dict[str, TensorType]
    ranges: dict[str, Interval]
    sizes: dict[str, dict[str, int]]
    bodies: dict[str, Traced]
    readouts: dict[str, Traced]
    proofs: list[Proof]
    states: dict[str, TensorType]


def carry_name(n: Node) -> str:
    """The name of the state of a recurrence that scans an axis inside a step."""
    return f"{n.output}.carry"


@lru_cache(maxsize=16)
def check(program: Program) -> Checked:
    """Prove the Program well formed and free of overflow; CheckError names the user's layer and the remedy."""
    return _Checker(program).run()


def _parameters_fit(n: Node) -> None:
    """The node's parameters are those of its definition and of its structure."""
    wanted = {p.name for p in signature(n.spec.define).parameters.values() if p.kind is Parameter.KEYWORD_ONLY}
    wanted |= loop_parameters(n)
    if sorted(wanted) != sorted(k for k, _ in n.params):
        raise CheckError(f"expected parameters {sorted(wanted)}, got {sorted(k for k, _ in n.params)}")
    if odd := [k for k, v in n.params if type(v) is not int or abs(v) >= 1 << 63]:
        raise CheckError(f"parameter {odd[0]} is {n.param[odd[0]]!r}, expected an integer of 64 bits")
    if n.param.get("t_max", 0) > MOST_STEPS:
        raise CheckError(f"parameter t_max is {n.param['t_max']}, expected at most {MOST_STEPS}")
    if "acc" in n.param and n.param["acc"] not in CONTAINERS:
        raise CheckError(f"parameter acc is {n.param['acc']}: an accumulator has 8, 16, 32 or 64 bits")


def _ring(n: Node, sizes: dict[str, int]) -> tuple[int, ...]:
    """Shape of the state of a window or a history: all of its steps but the last."""
    if n.spec.structure is Structure.WINDOW:
        return sizes["j"] - 1, *(sizes[k] for k in n.labels.inputs[0] if k != "t")
    return n.param["length"] - 1, *(sizes[k] for k in n.labels.inputs[0] if k != "t")


def _refuse_large(name: str, dims: Iterable[int | str]) -> None:
    if (size := prod(d for d in dims if isinstance(d, int))) > MOST_ELEMENTS:
        raise CheckError(f"{name} has {size} elements in a time step, expected at most {MOST_ELEMENTS}")


def _values_of(c: Constant) -> Interval:
    """The interval of a constant, which its type must hold."""
    wanted = c.type.bytes
    if len(c.data) != wanted:
        raise CheckError(f"{c.name} has {len(c.data)} bytes, {c.type} needs {wanted}")
    known = Interval(int(c.array.min()), int(c.array.max()))
    if known not in c.type.elem.range:
        raise CheckError(f"{c.name} has values in {known}, {c.type.elem} does not hold them")
    if c.storage.is_coded:
        _refuse_other_numbers(c)
    return known


def _refuse_other_numbers(c: Constant) -> None:
    mantissa, most = c.mantissa, c.type.elem.bits - c.type.elem.signed
    if mantissa is not None and (not 0 <= mantissa < most or c.storage.bits > WIDEST):
        raise CheckError(f"{c.name}: {c.type.elem} holds no minifloats with a mantissa of {mantissa} bits")
    try:
        c.storage.codes(c.array)
    except CheckError as e:
        raise CheckError(f"{c.name}: {e}") from e


class _Checker:
    def __init__(self, program: Program) -> None:
        self.p = program
        types = {i.name: i.type for i in program.inputs} | {c.name: c.type for c in program.constants}
        types |= {s.name: TensorType(("T", *s.type.shape), s.type.elem, s.type.scale) for s in program.states}
        self.written: set[str] = set()
        self.c = Checked(program, types, {}, {}, {}, {}, [], {s.name: s.type for s in program.states})

    def run(self) -> Checked:
        self._tensors()
        self._names()
        for n in self.p.nodes:
            where = f"{n.loc} ({n.op} -> {n.output})"
            try:
                if n.op not in OPS:
                    raise CheckError(f"unknown op '{n.op}'; known: {', '.join(OPS)}")
                self._shapes(n)
                self._node(n)
            except (ExprError, CheckError) as e:
                raise CheckError(f"{where}: {e}") from e
        self._outputs()
        self._certificates()
        return self.c

    def _outputs(self) -> None:
        """Outputs are values of nodes, and every node is there for one of them or for its state."""
        made = {n.output for n in self.p.nodes}
        for output in self.p.outputs:
            if output not in made or self.p.outputs.count(output) > 1:
                raise CheckError(f"output {output}: expected the value of a node, named once")
        read = {i for n in self.p.nodes for i in n.inputs} | set(self.p.outputs)
        for n in self.p.nodes:
            if n.output not in read and n.state is None:
                raise CheckError(f"{n.loc} ({n.op} -> {n.output}): nothing reads its value; leave the node out")

    def _certificates(self) -> None:
        """Their form: one of a stateful node at most, with bounds that have the shape they say."""
        stateful = {n.output: n for n in self.p.nodes if n.spec.structure.is_stateful}
        for c in self.p.certificates:
            if c.node not in stateful:
                raise CheckError(f"certificate of {c.node}: no stateful node makes it, or it has two")
            if why := c.fits(stateful.pop(c.node).labels.state, self.c.sizes[c.node]):
                raise CheckError(f"certificate of {c.node}: {why}")

    def _tensors(self) -> None:
        """Shape, element type and interval of what no node makes."""
        p = self.p
        for i in p.inputs:
            if i.type.shape[:1] != ("T",):
                raise CheckError(f"input {i.name} has shape {i.type.shape}, expected (T, sizes above 0)")
        types = [(i.name, i.type, i.type.shape[1:]) for i in p.inputs]
        types += [(c.name, c.type, c.type.shape) for c in p.constants]
        types += [(s.name, s.type, s.type.shape) for s in p.states]
        for name, t, shape in types:
            if not all(isinstance(d, int) and d > 0 for d in shape):
                raise CheckError(f"{name} has shape {t.shape}, expected sizes above 0")
            _refuse_large(name, shape)
            if not 1 <= t.elem.bits <= 63 + t.elem.signed:
                raise CheckError(f"{name} has elements {t.elem}, expected i1 to i64 or u1 to u63")
            if t.elem.of_constants and name not in p.constant:
                raise CheckError(f"{name} has elements {t.elem}, which only constants have")
            self.c.ranges[name] = t.elem.range
        self.c.ranges.update({c.name: _values_of(c) for c in p.constants})

    def _names(self) -> None:
        p = self.p
        carried = [carry_name(n) for n in p.nodes if n.op in OPS and n.labels.scanned]
        names = [i.name for i in p.inputs] + [c.name for c in p.constants] + [s.name for s in p.states]
        names += [n.output for n in p.nodes] + carried
        if not all(names):
            raise CheckError("a value has no name")
        if twice := sorted(k for k, count in Counter(names).items() if count > 1):
            raise CheckError(f"{', '.join(twice)}: two values have this name")
        if not p.inputs or not p.outputs:
            raise CheckError(f"{len(p.inputs)} inputs and {len(p.outputs)} outputs, expected at least one of each")
        owners = [n.state for n in p.nodes if n.state]
        if sorted(owners) != sorted(p.state):
            raise CheckError(f"states {sorted(p.state)} and the nodes that own them, {sorted(owners)}, differ")

    def _shapes(self, n: Node) -> None:
        """Every index has one size; operands exist before their use."""
        sizes: dict[str, int] = {}
        check_index(n)
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
            if name == n.state:
                raise CheckError(f"operand {name} is the state that this node updates")
            if name in self.written:
                raise CheckError(f"operand {name} is a state that an earlier node has already updated")
            if name not in self.c.types:
                raise CheckError(f"operand {name} is not made before it is used")
            place(name, self.c.types[name], labels)
        self._made_axes(n, sizes)
        if n.state:
            state = self.p.state[n.state].type
            if self.p.state[n.state].initial not in state.elem.range:
                raise CheckError(
                    f"state {n.state} starts at {self.p.state[n.state].initial}, {state.elem} does not hold it"
                )
            if n.spec.structure is Structure.RECURRENCE:
                place(n.state, state, n.labels.state)
            elif state.shape != (ring := _ring(n, sizes)):
                raise CheckError(f"{n.state} has shape {state.shape}, a ring of {ring} is needed")
            self.written.add(n.state)
        self.c.sizes[n.output] = sizes

    def _made_axes(self, n: Node, sizes: dict[str, int]) -> None:
        """Sizes of axes that the structure makes."""
        if n.spec.sizes:
            sizes |= n.spec.sizes(n.labels, sizes, **n.param)
        if n.spec.structure is Structure.HISTORY:
            if n.param["length"] < 2:
                raise CheckError(f"a history of {n.param['length']} steps, expected at least 2")
            sizes[n.labels.output[1]] = n.param["length"]
        for i, (slid, made, kernel) in enumerate(n.labels.slides):
            stride, dilation = n.step(i)
            reach = dilation * (sizes[kernel] - 1) + 1
            if stride < 1 or dilation < 1 or reach > sizes[slid]:
                raise CheckError(f"a kernel that reaches over {reach} of {sizes[slid]} elements: pad the operand first")
            size = (sizes[slid] - reach) // stride + 1
            if sizes.setdefault(made, size) != size:
                raise CheckError(f"index {made} is {sizes[made]}, the convolution makes {size}")

    def _node(self, n: Node) -> None:
        c, out, structure = self.c, n.output, n.spec.structure
        params = term_parameters(n)
        ranges = [c.ranges[i] for i in n.inputs]
        match structure:
            case Structure.POINTWISE:
                c.bodies[out] = self._trace(n.spec.define, ranges, params)
                c.ranges[out] = c.bodies[out].range
            case Structure.CONTRACTION | Structure.CONVOLUTION | Structure.WINDOW:
                terms = ranges[:-1] if n.spec.start else ranges
                if n.state:
                    terms = [self._held(n, terms[0]), *terms[1:]]
                c.bodies[out] = self._trace(n.spec.define, terms, params)
                c.ranges[out] = self._accumulated(
                    n, c.bodies[out].range, ranges[-1] if n.spec.start else Interval(0, 0)
                )
            case Structure.RECURRENCE:
                self._recurrence(n, ranges, params)
            case Structure.HISTORY:
                c.ranges[out] = self._held(n, ranges[0])
            case Structure.LAYOUT:
                fills = [m.fill for m in self._moves(n) if m.operand is None]
                known = [*ranges, *(Interval(f, f) for f in fills)]
                c.ranges[out] = Interval(min(k.lo for k in known), max(k.hi for k in known))
            case Structure.GATHER:
                rows = c.sizes[out][n.labels.inputs[1][0]]
                if ranges[0] not in Interval(0, rows - 1):
                    raise CheckError(f"an index in {ranges[0]} reads a table of {rows} rows")
                c.bodies[out] = self._trace(n.spec.define, ranges[1:], params)
                c.ranges[out] = c.bodies[out].range
        shape = tuple("T" if k == "t" else c.sizes[out][k] for k in n.labels.output)
        _refuse_large(out, shape)
        c.types[out] = TensorType(shape, smallest(c.ranges[out]), n.scale)

    def _held(self, n: Node, x: Interval) -> Interval:
        """What the ring of a window or history holds; its input must fit."""
        assert n.state is not None
        held = self.p.state[n.state].type.elem
        if x not in held.range:
            raise CheckError(f"state {n.state} holds {held}, the input is in {x}")
        return held.range

    def _moves(self, n: Node) -> tuple[Move, ...]:
        assert n.spec.moves is not None
        return n.spec.moves(n.labels, self.c.sizes[n.output], **n.param)

    def _recurrence(self, n: Node, ranges: list[Interval], params: dict[str, int]) -> None:
        c, queries = self.c, n.spec.queries
        updates, asked = ranges[: len(ranges) - queries], ranges[len(ranges) - queries :]
        initial = self.p.state[n.state].initial if n.state else 0
        held = self.p.state[n.state].type.elem.range if n.state else self._carried(n, params)
        body = c.bodies[n.output] = self._trace(n.spec.define, [held, *updates], params)
        if body.range not in held:
            elem = f"type {self.p.state[n.state].type.elem}" if n.state else "scan"
            raise CheckError(f"state {n.state or carry_name(n)} can reach {body.range}, its {elem} holds {held}")
        width = n.param["acc"]
        if (needed := max(s.bits for s in body.nodes)) > width:
            raise CheckError(
                f"its update needs {needed} bits, acc is {width}; "
                "use a smaller shift `up`, fewer bits, or a wider accumulator"
            )
        reached = body.range.join(Interval(initial, initial))
        if not n.state:
            dims = tuple(c.sizes[n.output][k] for k in n.labels.state)
            c.states[carry_name(n)] = TensorType(dims, smallest(reached))
        if n.spec.readout:
            seen = held if n.spec.reads_old else reached
            readout = c.readouts[n.output] = self._trace(n.spec.readout, [seen, *asked], {})
            c.ranges[n.output] = self._accumulated(n, readout.range, Interval(0, 0))
        else:
            c.ranges[n.output] = body.range

    def _carried(self, n: Node, params: dict[str, int]) -> Interval:
        """The range of a state that does not outlive the step: zero, and what its update is clipped to."""
        if "lo" not in params or "hi" not in params:
            raise CheckError(f"{n.op} cannot scan an axis inside a step: its update has no limits lo and hi")
        return Interval(min(params["lo"], 0), max(params["hi"], 0))

    def _trace(self, definition: object, ranges: list[Interval], params: dict[str, int]) -> Traced:
        try:
            traced = trace(definition, ranges, params)  # type: ignore[arg-type]
        except (ArithmeticError, IndexError, MemoryError, ValueError) as e:
            raise CheckError(f"its parameters {params} have no meaning: {e}") from e
        self.c.proofs.extend(prove_claims(traced))
        return traced

    def _accumulated(self, n: Node, term: Interval, start: Interval) -> Interval:
        """The interval of every partial sum, in any order of summation; it must fit the declared accumulator."""
        sizes, reduced = self.c.sizes[n.output], list(n.labels.reduced)
        if n.spec.combine == "max":
            lo, hi = term.lo, term.hi
        else:
            count = int(np.prod([sizes[k] for k in reduced], dtype=object)) if reduced else 1
            lo, hi = min(term.lo, 0) * count, max(term.hi, 0) * count
        exact = self._constant_weights(n, reduced)
        if exact is not None:
            lo, hi = exact
        known = Interval(lo, hi) if n.spec.combine == "max" else Interval(lo + start.lo, hi + start.hi).join(start)
        width = n.param["acc"]
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
