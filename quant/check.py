"""What holds of a Program, proved: shapes, intervals, widths, accumulators, states, `bound` claims.

`check` runs after every pass; nothing is built from a Program that it has not accepted.
"""

from __future__ import annotations

from collections.abc import Callable
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
from isobit.quant.ops.moves import Move
from isobit.quant.program import CONTAINERS, IntType, Labels, Node, Program, TensorType, smallest

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


def loop_parameters(n: Node) -> set[str]:
    """Names of a node's parameters that its definition does not take."""
    slides = {f"{name}{i}" for i in range(len(n.labels.slides)) for name in ("stride", "dilation")}
    return slides | set(STRUCTURE_PARAMETERS.get(n.spec.structure, ()))


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
        if "b" in each:
            refuse("b is the batch, which is implied")
        if len(set(each)) < len(each):
            refuse(f"it names an axis twice in '{each}'")
        if "t" in each[1:]:
            refuse("t is time, and comes first")
    if not labels.output.startswith("t") or "t" in labels.state:
        refuse("an output has time first, a state has none")
    known = set("t" + "".join(labels.inputs) + labels.state)
    makes_axes = structure in (Structure.LAYOUT, Structure.CONVOLUTION, Structure.HISTORY)
    if not makes_axes and (unknown := set(labels.output) - known):
        refuse(f"no operand has {', '.join(sorted(unknown))}")
    owns = structure.is_stateful and not labels.scanned
    if owns != (n.state is not None):
        raise CheckError(f"{n.op} {'needs a state' if owns else 'has no state'}, got {n.state}")
    if bool(labels.state) and structure is not Structure.RECURRENCE:
        refuse("only a recurrence has axes of a state")
    if structure is not Structure.RECURRENCE and not any("t" in k for k in labels.inputs):
        refuse("no operand has time")
    rule = _INDEX_RULES.get(structure)
    if why := rule(labels, known) if rule else "":
        refuse(why)


def _pointwise_index(labels: Labels, known: set[str]) -> str:
    return "a pointwise output has every axis of its operands" if known - set(labels.output) else ""


def _window_index(labels: Labels, known: set[str]) -> str:
    x, w, start = labels.inputs
    channels = x[1:]
    fits = len(channels) <= 1 and w[-1:] == "j" and "j" not in channels + start and labels.output == "t" + start
    fits = fits and w[:-1] in (channels, start + channels) and (w[:-1] != channels or start in (channels, ""))
    return "" if fits else "a window is tc,cj,c->tc or tc,ncj,n->tn"


def _history_index(labels: Labels, known: set[str]) -> str:
    x, out = labels.inputs[0], labels.output
    fits = len(out) == len(x) + 1 and x == "t" + out[2:] and out[1] not in x
    return "" if fits else "a history puts its new axis after time, as in tc->twc"


def _recurrence_index(labels: Labels, known: set[str]) -> str:
    inner = "".join(k for k in labels.state if k not in labels.output)
    kept = labels.output[1:].replace(labels.scanned, "") if labels.scanned else labels.output[1:]
    if known - {"t"} - set(labels.state) - set(labels.scanned) or kept + inner != labels.state:
        return "a recurrence's state has all axes but the scanned one, those of the output first"
    if len(labels.scanned) > 1:
        return "a recurrence scans one axis"
    return ""


def _convolution_index(labels: Labels, known: set[str]) -> str:
    if not labels.slides:
        return "a convolution slides along axes that operand, output and kernel each name, as in tyxc,nijc,n->tvun"
    expected = {k for k in "".join(labels.inputs) if k not in labels.reduced}
    slid, made = {y for y, _, _ in labels.slides}, {v for _, v, _ in labels.slides}
    return "" if set(labels.output) == expected - slid | made else "an axis of the output comes from nowhere"


def _gather_index(labels: Labels, known: set[str]) -> str:
    index, rows = labels.inputs
    fits = "t" in index and "t" not in rows and labels.output == index + rows[1:]
    return "" if fits and rows[:1] not in index else "a gather is t,vc->tc: an index and a table"


_INDEX_RULES: dict[Structure, Callable[[Labels, set[str]], str]] = {
    Structure.POINTWISE: _pointwise_index,
    Structure.WINDOW: _window_index,
    Structure.HISTORY: _history_index,
    Structure.RECURRENCE: _recurrence_index,
    Structure.CONVOLUTION: _convolution_index,
    Structure.GATHER: _gather_index,
}
"""By structure: what is wrong with an index signature, or nothing."""


def _parameters_fit(n: Node) -> None:
    """The node's parameters are those of its definition and of its structure."""
    wanted = {p.name for p in signature(n.spec.define).parameters.values() if p.kind is Parameter.KEYWORD_ONLY}
    wanted |= loop_parameters(n)
    if wanted != set(n.param):
        raise CheckError(f"expected parameters {sorted(wanted)}, got {sorted(n.param)}")
    if n.spec.operands not in (None, len(n.inputs)):
        raise CheckError(f"expected {n.spec.operands} operands, got {len(n.inputs)}")
    if big := [k for k, v in n.params if abs(v) >= 1 << 63]:
        raise CheckError(f"parameter {big[0]} does not fit 64 bits")


def _ring(n: Node, sizes: dict[str, int]) -> tuple[int, ...]:
    """Shape of the state of a window or a history: all of its steps but the last."""
    if n.spec.structure is Structure.WINDOW:
        return sizes["j"] - 1, *(sizes[k] for k in n.labels.inputs[0] if k != "t")
    return n.param["length"] - 1, *(sizes[k] for k in n.labels.inputs[0] if k != "t")


class _Checker:
    def __init__(self, program: Program) -> None:
        self.p = program
        types = {i.name: i.type for i in program.inputs} | {c.name: c.type for c in program.constants}
        types |= {s.name: TensorType(("T", *s.type.shape), s.type.elem, s.type.scale) for s in program.states}
        ranges = {i.name: i.type.elem.range for i in program.inputs}
        ranges |= {s.name: s.type.elem.range for s in program.states}
        self.written: set[str] = set()
        for c in program.constants:
            ranges[c.name] = Interval(int(c.array.min()), int(c.array.max())) if c.array.size else Interval(0, 0)
        self.c = Checked(program, types, ranges, {}, {}, {}, [], {s.name: s.type for s in program.states})

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
        """Sizes of axes that only the output has."""
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
            sizes[made] = (sizes[slid] - reach) // stride + 1

    def _node(self, n: Node) -> None:
        c, out, structure = self.c, n.output, n.spec.structure
        of_loops = loop_parameters(n)
        params = {k: v for k, v in n.params if k not in of_loops}
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
        c.types[out] = TensorType(
            tuple("T" if k == "t" else c.sizes[out][k] for k in n.labels.output), smallest(c.ranges[out]), n.scale
        )

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
            raise CheckError(f"state {n.state} can reach {body.range}, its type holds {held}")
        width = n.param.get("acc", 0)
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
        traced = trace(definition, ranges, params)  # type: ignore[arg-type]
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
