"""One definition, many interpretations: each primitive means the same on ints, arrays, tensors, z3 terms and graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import z3

from isobit.quant.expr.interval import Interval
from isobit.quant.expr.prove import term_width
from isobit.quant.expr.symbols import Traced, trace
from isobit.quant.ops import OPS, Structure
from isobit.quant.program import Array, Node, Program, int_type
from tests.primitives import primitive_programs, primitive_vectors

OPERATORS, PROGRAMS = primitive_programs()
NODES = [(p, n) for p in PROGRAMS for n in p.nodes]
ALL = 1 << 17


def operands(program: Program, node: Node, count: int) -> list[Array]:
    """Values of the node's operands, the same random choice of combinations for all."""
    vectors = primitive_vectors(program)
    flat = [vectors[i].ravel() for i in node.inputs]
    keep = np.random.default_rng(1).permutation(flat[0].size)[:count]
    return [f[keep] for f in flat]


def on_ints(node: Node, values: list[Array]) -> list[int]:
    """The reference of references: the definition on Python's own integers."""
    define = OPERATORS[node.op].define
    return [int(define(*(int(v) for v in row), **node.param)) for row in zip(*values, strict=True)]


def traced(program: Program, node: Node) -> Traced:
    known = {i.name: i.type.elem.range for i in program.inputs}
    return trace(OPERATORS[node.op].define, [known[i] for i in node.inputs], node.param)


each_node = pytest.mark.parametrize(("program", "node"), NODES, ids=[f"{n.loc}-{n.inputs[0][:-2]}" for _, n in NODES])


@each_node
def test_numpy_torch_and_graph_equal_ints(program: Program, node: Node) -> None:
    values = operands(program, node, ALL)
    expected = on_ints(node, values)
    define, graph = OPERATORS[node.op].define, traced(program, node)

    def listed(x: Any) -> list[int]:
        return [int(v) for v in np.broadcast_to(np.asarray(x), (len(expected),))]

    assert listed(define(*values, **node.param)) == expected
    assert listed(define(*(torch.from_numpy(v) for v in values), **node.param)) == expected
    assert listed(graph.evaluate(*values)) == expected


@each_node
def test_intervals_hold_and_sampled_z3_terms_equal_ints(program: Program, node: Node) -> None:
    values = operands(program, node, 12)
    graph = traced(program, node)
    width = term_width(graph.nodes, {n.number: n.range for n in graph.nodes})
    for row, expected in zip(zip(*values, strict=True), on_ints(node, values), strict=True):
        assert expected in graph.range
        term = graph.evaluate(*(z3.BitVecVal(int(v), width) for v in row))
        value = z3.simplify(term).as_signed_long() if isinstance(term, z3.BitVecRef) else int(term)
        assert value == expected


@pytest.mark.parametrize("op", OPS)
def test_ops_on_intervals_hold_their_values(op: str) -> None:
    define, case = OPS[op].define, OPS[op].cases[0]
    rng = np.random.default_rng(0)
    params = {k: v for k, v in case.params.items() if k != "acc"}
    elems = ([case.state] if OPS[op].structure is Structure.RECURRENCE else []) + [o.strip("=") for o in case.operands]
    ranges = [int_type(e).range for e in elems][: define.__code__.co_argcount]
    ends = [sorted(int(v) for v in rng.integers(r.lo, r.hi, 2, endpoint=True)) for r in ranges]
    known = define(*(Interval(*e) for e in ends), **params)
    for _ in range(200):
        assert int(define(*(int(rng.integers(e[0], e[1] + 1)) for e in ends), **params)) in known
