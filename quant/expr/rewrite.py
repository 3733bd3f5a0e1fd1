"""Rewrites of expression graphs, each proved before it is used."""

from __future__ import annotations

from functools import cache

import numpy as np

from isobit.quant.errors import ExprError
from isobit.quant.expr.interval import Interval
from isobit.quant.expr.symbols import Graph, Sym, Traced

INT32 = Interval(-(1 << 31), (1 << 31) - 1)


UNIT = Interval(-1, 1)


def selected(n: Sym) -> tuple[Sym, Sym] | None:
    """Of a product with an operand that is -1, 0 or 1: that operand, and the other one, whose sign it selects."""
    if n.op != "mul" or any(a.fixed is not None for a in n.args):
        return None
    a, b = n.args
    return (b, a) if b.range in UNIT else (a, b) if a.range in UNIT else None


def multiplies(traced: Traced) -> bool:
    """Whether there is a product that is more than a selection."""
    return any(n.op in ("mul", "mulh") and selected(n) is None for n in traced.nodes)


def high_products(traced: Traced) -> Traced:
    """`(a * b + (R << 32)) >> s`, s >= 32, becomes `(mulh(a, b) + R) >> (s - 32)`: no 64-bit arithmetic is left.

    One instruction for the product on every 32-bit core.  Proved by z3 for each s in use.
    """
    graph = Graph(table_names=traced.result.graph.table_names)
    new: dict[int, Sym] = {}
    for n in traced.nodes:
        if n.op == "var":
            new[n.number] = graph.operand(n.name, n.range)
            continue
        rewritten = _high_product(n, new, graph)
        new[n.number] = rewritten if rewritten is not None else _copy(n, new, graph)
    operands = tuple(new.get(o.number, o) for o in traced.operands)
    return Traced(operands, new[traced.result.number])


def _copy(n: Sym, new: dict[int, Sym], graph: Graph) -> Sym:
    if n.op == "const":
        return graph.symbol(n.values[0])
    args = [new[a.number] for a in n.args]
    copy = graph.apply("table", n.values, *args) if n.op == "table" else graph.apply(n.op, *args)
    if copy.op != "const":
        copy.name, copy.range = copy.name or n.name, copy.range.meet(n.range)
    return copy


def _high_product(n: Sym, new: dict[int, Sym], graph: Graph) -> Sym | None:
    """The rewritten node, where `n` has the form of a rounding shift of a product of two int32."""
    if n.op != "shr" or (shift := n.args[1].fixed) is None or shift < 33 or n.args[0].op != "add":
        return None
    product, rounding = n.args[0].args
    if product.op != "mul" or (r := rounding.fixed) is None or r % (1 << 32):
        return None
    a, b = (new[x.number] for x in product.args)
    if a.range not in INT32 or b.range not in INT32 or product.range.bits <= 32:
        return None
    high = graph.apply("mulh", a, b)
    if Interval(high.range.lo + (r >> 32), high.range.hi + (r >> 32)) not in INT32:
        return None
    prove_high_product(shift, r >> 32)
    return graph.apply("shr", graph.apply("add", high, r >> 32), shift - 32)


@cache
def prove_high_product(shift: int, rounding: int) -> None:
    """For every 63-bit product p: (p + (rounding << 32)) >> shift == ((p >> 32) + rounding) >> (shift - 32)."""
    import z3

    p = z3.BitVec("p", 66)
    whole = (p + (rounding << 32)) >> shift
    halves = ((p >> 32) + rounding) >> (shift - 32)
    solver = z3.Solver()
    solver.add(p >= -(1 << 63), p < (1 << 63), whole != halves)
    if solver.check() != z3.unsat:
        raise ExprError(f"the mulh rewrite at shift {shift} and rounding {rounding} could not be proved")


def tabulate(traced: Traced, most: int = 256) -> Traced | None:
    """The same function as one table, where it has one operand of at most `most` values; proved by exhaustion."""
    used = [o for o in traced.operands if o in traced.nodes]
    if len(used) != 1 or used[0].range.size > most:
        return None
    x = used[0]
    domain = np.arange(x.range.lo, x.range.hi + 1)
    operands = [domain if o is x else np.zeros_like(domain) for o in traced.operands]
    values = tuple(int(v) for v in np.broadcast_to(traced.evaluate(*operands), domain.shape))
    graph = Graph()
    symbols = tuple(graph.operand(o.name, o.range) for o in traced.operands)
    symbol = symbols[traced.operands.index(x)]
    index = graph.apply("sub", symbol, x.range.lo) if x.range.lo else symbol
    result = Traced(symbols, graph.apply("table", values, index))
    if not np.array_equal(result.evaluate(*operands), traced.evaluate(*operands)):
        raise ExprError(f"the table of {x.name} in {x.range} does not equal the function that it replaces")
    return result
