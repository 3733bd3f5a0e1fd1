"""One definition, many interpretations: ints, intervals, arrays, tensors, z3 terms and graphs agree.

For each primitive of the language, and for each definition of each op.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
import z3

from isobit.quant.check import loop_parameters
from isobit.quant.expr.interval import Interval
from isobit.quant.expr.prove import term_width
from isobit.quant.expr.symbols import Traced, trace
from isobit.quant.ops import OPS, Structure
from isobit.quant.program import Array, IntType, Node, Program, int_type
from isobit.quant.vectors import case_program, random_values
from tests.primitives import primitive_programs, primitive_vectors

OPERATORS, PROGRAMS = primitive_programs()
NODES = [(p, n) for p in PROGRAMS for n in p.nodes]
SOME, ALL = 1 << 13, 1 << 17
"""Combinations of values: in the default suite, and in the slow one, of 16 bits all."""


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
@pytest.mark.parametrize("count", [SOME, pytest.param(ALL, marks=pytest.mark.slow)], ids=["some", "all"])
def test_numpy_torch_and_graph_equal_ints(program: Program, node: Node, count: int) -> None:
    values = operands(program, node, count)
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


Definition = tuple[Callable[..., Any], list[IntType], dict[str, int]]


def definitions() -> dict[str, Definition]:
    """Every definition of every op at every case: function, element types of its operands, parameters."""
    found: dict[str, Definition] = {}
    for name, op in OPS.items():
        for i, case in enumerate(op.cases):
            types = [int_type(e.removeprefix("=")) for e in case.operands]
            if op.structure is Structure.GATHER:
                types = types[1:]
            own = loop_parameters(case_program(name, case).nodes[0])
            params = {k: v for k, v in case.params.items() if k not in own}
            held = [int_type(case.state or "i16")] if op.structure is Structure.RECURRENCE else []
            asked = len(types) - op.queries
            terms = len(signature(op.define).parameters) - len(params)
            found[f"{name}.{i}"] = op.define, [*held, *types[:asked]][:terms], params
            if op.readout:
                found[f"{name}.{i}.readout"] = op.readout, [*held, *types[asked:]], {}
    return found


DEFINITIONS = definitions()
each_definition = pytest.mark.parametrize("name", DEFINITIONS)


def test_no_definition_is_left_out() -> None:
    assert {name.split(".")[0] for name in DEFINITIONS} == set(OPS)
    for define, types, params in DEFINITIONS.values():
        assert len(signature(define).parameters) == len(types) + len(params)


def drawn(types: list[IntType], count: int) -> list[Array]:
    """Random values and edges of each type; of functions of one 8-bit operand, all."""
    if len(types) == 1 and types[0].bits <= 8:
        return [np.arange(types[0].range.lo, types[0].range.hi + 1)]
    rng = np.random.default_rng(0)
    return [random_values(t, (count,), rng) for t in types]


@each_definition
def test_definitions_on_numpy_torch_and_graph_equal_ints(name: str) -> None:
    define, types, params = DEFINITIONS[name]
    values = drawn(types, 4000)
    graph = trace(define, [t.range for t in types], params)
    expected = [int(define(*(int(v) for v in row), **params)) for row in zip(*values, strict=True)]

    def listed(x: Any) -> list[int]:
        return [int(v) for v in np.broadcast_to(np.asarray(x), (len(expected),))]

    assert listed(define(*values, **params)) == expected
    assert listed(define(*(torch.from_numpy(v) for v in values), **params)) == expected
    assert listed(graph.evaluate(*values)) == expected
    assert graph.range.lo <= min(expected)
    assert max(expected) <= graph.range.hi


@each_definition
def test_definitions_on_z3_terms_equal_ints(name: str) -> None:
    define, types, params = DEFINITIONS[name]
    graph = trace(define, [t.range for t in types], params)
    width = term_width(graph.nodes, {n.number: n.range for n in graph.nodes})
    for row in itertools.islice(zip(*drawn(types, 8), strict=True), 8):
        term = graph.evaluate(*(z3.BitVecVal(int(v), width) for v in row))
        value = z3.simplify(term).as_signed_long() if isinstance(term, z3.BitVecRef) else int(term)
        assert value == int(define(*(int(v) for v in row), **params))


@each_definition
def test_definitions_on_intervals_hold_their_values(name: str) -> None:
    define, types, params = DEFINITIONS[name]
    rng = np.random.default_rng(0)
    ends = [sorted(int(v) for v in rng.integers(t.range.lo, t.range.hi, 2, endpoint=True)) for t in types]
    known = define(*(Interval(*e) for e in ends), **params)
    for _ in range(200):
        assert int(define(*(int(rng.integers(e[0], e[1] + 1)) for e in ends), **params)) in known
