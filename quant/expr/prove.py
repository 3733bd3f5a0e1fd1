"""Proofs of the claims that `bound` leaves, and of rewrites: by intervals over cases, by enumeration, or by z3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isobit.quant.errors import ExprError
from isobit.quant.expr.interval import Interval
from isobit.quant.expr.primitives import numpy_domain, z3_domain
from isobit.quant.expr.symbols import Claim, Sym, Traced, evaluate_node, intervals

MOST_ENUMERATED = 1 << 20
Z3_MILLISECONDS = 20_000


@dataclass(frozen=True)
class Proof:
    """How a claim was proved, for reports: `cases`, `enumeration` or `z3`."""

    claim: Claim
    method: str


def prove_claims(traced: Traced) -> list[Proof]:
    """Prove every `bound` in the definition, or raise ExprError with the claim and, where found, a counterexample."""
    return [_proof(c, traced) for c in traced.claims]


_known: dict[tuple[object, ...], str] = {}


def _proof(claim: Claim, traced: Traced) -> Proof:
    cone = _cone(claim.node, frozenset())
    key = (Traced(traced.operands, claim.node).key, claim.known, claim.lo, claim.hi)
    if key not in _known:
        _known[key] = _method(claim, cone)
    return Proof(claim, _known[key])


def _method(claim: Claim, cone: tuple[Sym, ...]) -> str:
    if _by_cases(claim, cone):
        return "cases"
    for cut in _cuts(claim.node, cone):
        if cut.range.size <= MOST_ENUMERATED and _enumerate(claim, cut):
            return "enumeration"
    _by_z3(claim, cone)
    return "z3"


def _cone(node: Sym, stop: frozenset[int]) -> tuple[Sym, ...]:
    """Everything `node` is computed from, `node` last, not going past `stop`."""
    live: set[int] = set()
    todo = [node]
    while todo:
        n = todo.pop()
        if n.number not in live:
            live.add(n.number)
            if n.number not in stop:
                todo += n.args
    return tuple(n for n in node.graph.nodes if n.number in live)


def _by_cases(claim: Claim, cone: tuple[Sym, ...]) -> bool:
    """One case per bit length of an operand of `clz`: inside a case the count is a constant and intervals suffice."""
    counts = [n for n in cone if n.op == "clz"]
    if len(counts) != 1 or counts[0].args[0] is claim.node:
        return False
    x, width = counts[0].args[0], counts[0].args[1].range.lo
    for case in _bit_lengths(x.range):
        given = {x.number: case, counts[0].number: Interval(width - case.hi.bit_length(), width - case.hi.bit_length())}
        if intervals(cone, given)[claim.node.number] not in Interval(claim.lo, claim.hi):
            return False
    return True


def _bit_lengths(x: Interval) -> Iterator[Interval]:
    for n in range(x.lo.bit_length(), x.hi.bit_length() + 1):
        lo, hi = (1 << n) >> 1, (1 << n) - 1
        if lo <= x.hi and hi >= x.lo:
            yield Interval(max(lo, x.lo), min(hi, x.hi))


def _cuts(node: Sym, cone: tuple[Sym, ...]) -> Iterator[Sym]:
    """Nodes through which every path from the operands to `node` goes, nearest to `node` first."""
    for cut in reversed(cone[:-1]):
        if cut.op != "const" and all(n.op != "var" or n is cut for n in _cone(node, frozenset({cut.number}))):
            yield cut


def _enumerate(claim: Claim, cut: Sym) -> bool:
    """Whether the claim holds for every value in the interval of `cut`; false only counts where that is an operand."""
    import numpy as np

    cone = _cone(claim.node, frozenset({cut.number}))
    exact = intervals(cone, {cut.number: cut.range})
    dtype: type = np.int64 if all(i.bits <= 64 for i in exact.values()) else object
    x: Any = np.arange(cut.range.lo, cut.range.hi + 1).astype(dtype)
    values: dict[int, Any] = {cut.number: x}
    for n in cone:
        if n.number not in values:
            values[n.number] = evaluate_node(n, numpy_domain(), [values[a.number] for a in n.args])
    wrong = (values[claim.node.number] < claim.lo) | (values[claim.node.number] > claim.hi)
    if np.any(wrong) and cut.op == "var":
        at = int(np.argmax(wrong))
        got, where = int(values[claim.node.number][at]), f"{cut.name or cut.op} = {int(x[at])}"
        raise ExprError(
            f"bound [{claim.lo}, {claim.hi}] on {claim.node.name or claim.node.op} is false: {got} at {where}"
        )
    return not np.any(wrong)


def term_width(nodes: Sequence[Sym], known: Mapping[int, Interval]) -> int:
    """Bits of a vector in which every value of `nodes` and every product inside `mulh` is exact."""
    products = [sum(known[a.number].bits for a in n.args) for n in nodes if n.op == "mulh"]
    return max([known[n.number].bits for n in nodes] + products) + 1


def _by_z3(claim: Claim, cone: tuple[Sym, ...]) -> None:
    import z3

    exact = intervals(cone, {})
    width = term_width(cone, exact)
    terms, solver = dict[int, Any](), z3.Solver()
    solver.set("timeout", Z3_MILLISECONDS)
    for n in cone:
        if n.op == "var":
            term = z3.BitVec(n.name, width)
            solver.add(term >= n.range.lo, term <= n.range.hi)
            terms[n.number] = term
        elif n.op == "const":
            terms[n.number] = z3.BitVecVal(n.values[0], width)
        else:
            terms[n.number] = evaluate_node(n, z3_domain(), [terms[a.number] for a in n.args])
    term = terms[claim.node.number]
    solver.add(z3.Or(term < claim.lo, term > claim.hi))
    answer = solver.check()
    name = claim.node.name or claim.node.op
    if answer == z3.sat:
        raise ExprError(f"bound [{claim.lo}, {claim.hi}] on {name} is false: {solver.model()}")
    if answer != z3.unsat:
        raise ExprError(f"bound [{claim.lo}, {claim.hi}] on {name} in {claim.known} could not be proved in 20 s")
