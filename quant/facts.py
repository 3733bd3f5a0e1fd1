"""What is known of a Program without running it: widths, bounds, multiply-accumulates, bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isobit.quant.check import check
from isobit.quant.ops import Structure
from isobit.quant.program import Node, Program


@dataclass(frozen=True)
class NodeFacts:
    """One node.

    macs: per time step; bits: needed by its values, stored: their container; widest: any intermediate value;
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
    weights: int
    state: int
    scale: float | None


def node_facts(program: Program) -> list[NodeFacts]:
    """One row per node, in order."""
    checked, rows = check(program), []
    for n in program.nodes:
        known, body = checked.ranges[n.output], checked.bodies[n.output]
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
                widest=max(s.bits for s in body.nodes),
                acc=acc,
                used=known.bits if acc else None,
                macs=macs(program, n),
                weights=sum(len(program.constant[i].data) for i in n.inputs if i in program.constant),
                state=state.size * state.elem.container // 8 if state else 0,
                scale=n.scale,
            )
        )
    return rows


def macs(program: Program, n: Node) -> int:
    """Multiply-accumulates per time step: products summed; a recurrence counts its update and its readout."""
    sizes = check(program).sizes[n.output]
    labels = set(n.labels.output + n.labels.reduced + n.labels.state) - {"t"}
    elements = int(np.prod([sizes[k] for k in labels], dtype=np.int64))
    match n.spec.structure:
        case Structure.CONTRACTION | Structure.CONVOLUTION | Structure.WINDOW:
            return elements if n.spec.combine == "sum" else 0
        case Structure.RECURRENCE:
            return 2 * elements if n.spec.readout else elements
        case _:
            return 0


def totals(program: Program) -> dict[str, int | str]:
    """Sums over the Program, for people."""
    rows = node_facts(program)
    proofs = check(program).proofs
    return {
        "digest": program.digest,
        "nodes": len(rows),
        "multiply-accumulates per step": sum(r.macs for r in rows),
        "weight bytes": sum(len(c.data) for c in program.constants),
        "state bytes": sum(r.state for r in rows),
        "widest intermediate value, bits": max(r.widest for r in rows),
        "bounds proved": len(proofs),
    }
