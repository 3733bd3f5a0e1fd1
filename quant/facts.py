"""What is known of a Program without running it: widths, bounds, multiply-accumulates, bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isobit.quant.certificates.search import interval_bound, state_limits
from isobit.quant.check import check
from isobit.quant.expr.rewrite import multiplies
from isobit.quant.expr.symbols import Traced
from isobit.quant.ops import Structure
from isobit.quant.ops.matmul import product
from isobit.quant.program import Node, Program
from isobit.quant.storage import stored_bytes


@dataclass(frozen=True)
class NodeFacts:
    """One node.

    macs: per time step, with a multiplier; sums: terms summed without one.
    bits: needed by its values, stored: their container; widest: any intermediate value;
    acc: declared accumulator, used: bits of it that can be reached; weights, state: bytes.
    """

    node: str
    op: str
    loc: str
    range: str
    bits: int
    stored: int
    widest: int
    acc: int | None
    used: int | None
    macs: int
    sums: int
    weights: int
    state: int
    scale: float | None


def node_facts(program: Program) -> list[NodeFacts]:
    """One row per node, in order."""
    checked, rows = check(program), []
    for n in program.nodes:
        known, body = checked.ranges[n.output], checked.bodies.get(n.output)
        acc = n.param.get("acc")
        state = program.state[n.state].type if n.state else None
        rows.append(
            NodeFacts(
                node=n.output,
                op=n.op,
                loc=n.loc,
                range=str(known),
                bits=known.bits,
                stored=checked.types[n.output].elem.container,
                widest=max(s.bits for s in body.nodes) if body else known.bits,
                acc=acc,
                used=known.bits if acc else None,
                macs=macs(program, n),
                sums=sums(program, n),
                weights=sum(stored_bytes(program.constant[i]) for i in n.inputs if i in program.constant),
                state=state.bytes if state else 0,
                scale=n.scale,
            )
        )
    return rows


def macs(program: Program, n: Node) -> int:
    """Multiply-accumulates per time step: products summed; a recurrence counts its update and its readout.

    What needs no multiplier is none: a sum of values, of values times -1, 0, 1 or few powers of two, of L-Mul products.
    """
    return 0 if shifts(program, n) else _elements(program, n) * sum(map(multiplies, _summed(program, n)))


def sums(program: Program, n: Node) -> int:
    """Terms per time step that are summed, or a state updated, without a multiplier."""
    return _elements(program, n) * sum(shifts(program, n) or not multiplies(body) for body in _summed(program, n))


def shifts(program: Program, n: Node) -> bool:
    """Whether it sums products with constants that are few signed powers of two."""
    held = [program.constant[i] for i in n.inputs[1:2] if i in program.constant]
    return n.spec.define is product and any(c.storage.product for c in held)


def _summed(program: Program, n: Node) -> list[Traced]:
    """The terms of a sum, or a recurrence's update and the terms of its readout."""
    checked = check(program)
    match n.spec.structure:
        case Structure.CONTRACTION | Structure.CONVOLUTION | Structure.WINDOW:
            return [checked.bodies[n.output]] if n.spec.combine == "sum" else []
        case Structure.RECURRENCE:
            bodies = [checked.bodies[n.output], checked.readouts.get(n.output)]
            return [b for b in bodies if b is not None and b.result.op != "var"]
        case _:
            return []


def _elements(program: Program, n: Node) -> int:
    """Places of the loops around its terms, in one time step."""
    sizes = check(program).sizes[n.output]
    labels = set(n.labels.output + n.labels.reduced + n.labels.state) - {"t"}
    return int(np.prod([sizes[k] for k in labels], dtype=np.int64))


@dataclass(frozen=True)
class StateFacts:
    """The state of one node that carries a certificate, as far as it is a recurrence's.

    elements: of the state; certified: those that its limits never touch, for t_max steps where that is not None.
    step: the value that joins the decay and the drive.  bits: what holds the bound of any element.  interval_bits: what
    would hold it by intervals alone, the slowest decay with the largest drive.  saved: the difference, a mean.
    """

    node: str
    op: str
    loc: str
    kind: str
    width: int
    elements: int
    certified: int
    t_max: int | None
    step: str
    bits: int | None
    interval_bits: int | None
    saved: float | None

    @property
    def verdict(self) -> str:
        """For people: certified, for how long, or how much of it saturates."""
        if self.t_max is not None:
            return f"T_max {self.t_max}"
        if self.certified in (0, self.elements):
            return "certified" if self.certified else "saturates"
        return f"{self.certified} of {self.elements} certified"


def state_facts(program: Program) -> list[StateFacts]:
    """One row per certificate of a recurrence, in order; a ring and what a step hands on as it is have none."""
    checked, rows = check(program), []
    made = {n.output: n for n in program.nodes}
    for c in program.certificates:
        n = made[c.node]
        if n.spec.structure is not Structure.RECURRENCE or (c.kind == "holds" and n.op == "delay"):
            continue
        limits, plain = state_limits(n, checked), interval_bound(n, checked)
        lo, hi = np.array(c.lo), np.array(c.hi)
        bits = np.array([max(a, -b).bit_length() + 1 for a, b in zip(c.hi, c.lo, strict=True)])
        elements = int(np.prod([checked.sizes[n.output][k] for k in n.labels.state], dtype=np.int64))
        inside = (lo >= limits.lo) & (hi <= limits.hi)
        rows.append(
            StateFacts(
                node=c.node,
                op=n.op,
                loc=n.loc,
                kind=c.kind,
                width=limits.bits,
                elements=elements,
                certified=int(inside.sum()) * elements // len(inside) if len(inside) else 0,
                t_max=c.t_max if c.kind == "steps" else None,
                step=c.step,
                bits=int(bits.max()) if c.lo else None,
                interval_bits=None if plain is None else plain.bits,
                saved=float(plain.bits - bits.mean()) if plain is not None and c.lo else None,
            )
        )
    return rows


def totals(program: Program) -> dict[str, int | str]:
    """Sums over the Program, for people."""
    rows = node_facts(program)
    proofs, endless = check(program).proofs, [s for s in state_facts(program) if s.t_max is None]
    return {
        "digest": program.digest,
        "nodes": len(rows),
        "multiply-accumulates per step": sum(r.macs for r in rows),
        "terms summed without a multiplier per step": sum(r.sums for r in rows),
        "weight bytes": sum(map(stored_bytes, program.constants)),
        "state bytes": sum(r.state for r in rows),
        "widest intermediate value, bits": max(r.widest for r in rows),
        "bounds proved": len(proofs),
        "recurrent states certified": f"{sum(s.certified for s in endless)} of {sum(s.elements for s in endless)}",
    }
