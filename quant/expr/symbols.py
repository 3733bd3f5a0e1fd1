"""Symbols: calling a definition with them records its expression graph, every node with a sound interval."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import FrameType
from typing import Any

from isobit.quant.errors import ExprError
from isobit.quant.expr.interval import Interval, table_interval
from isobit.quant.expr.operators import Operators
from isobit.quant.expr.primitives import CONDITIONS, PRIMITIVES, domain_of

WORD = 64
"""No intermediate value may be wider."""


@dataclass(eq=False)
class Sym(Operators):
    """One node: an operand (`var`), a constant (`const`), or a primitive applied to earlier nodes."""

    graph: Graph
    number: int
    op: str
    args: tuple[Sym, ...]
    values: tuple[int, ...]
    range: Interval
    name: str = ""

    @property
    def bits(self) -> int:
        return self.range.bits

    @property
    def is_condition(self) -> bool:
        return self.op in CONDITIONS

    @property
    def fixed(self) -> int | None:
        """The value, where it is a constant."""
        return self.range.lo if self.op == "const" else None

    def apply(self, primitive: str, *args: Any) -> Any:
        return self.graph.apply(primitive, *args)


@dataclass(frozen=True)
class Claim:
    """An obligation left by `bound`: `node`, which intervals place in `known`, lies in [lo, hi]."""

    node: Sym
    known: Interval
    lo: int
    hi: int


@dataclass(eq=False)
class Graph:
    """Nodes in the order in which they were made; structurally equal nodes are one node."""

    nodes: list[Sym] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    table_names: dict[tuple[int, ...], str] = field(default_factory=dict)
    _memo: dict[Any, Sym] = field(default_factory=dict)

    def _node(self, op: str, args: tuple[Sym, ...], values: tuple[int, ...], known: Interval, name: str = "") -> Sym:
        key = (op, tuple(a.number for a in args), values, name if op == "var" else "")
        if key not in self._memo:
            self._memo[key] = Sym(self, len(self.nodes), op, args, values, known, name)
            self.nodes.append(self._memo[key])
        return self._memo[key]

    def operand(self, name: str, known: Interval) -> Sym:
        return self._node("var", (), (), known, name)

    def symbol(self, value: Any) -> Sym:
        if isinstance(value, Sym):
            return value
        return self._node("const", (), (int(value),), Interval(int(value), int(value)))

    def apply(self, primitive: str, *args: Any) -> Sym:
        if primitive == "bound":
            return self._bound(self.symbol(args[0]), *args[1:])
        if primitive == "table":
            values, index = tuple(int(v) for v in args[0]), self.symbol(args[1])
            if index.fixed is not None:
                return self.symbol(values[index.fixed])
            return self._node("table", (index,), values, table_interval(values, index.range))
        nodes = tuple(self.symbol(a) for a in args)
        _refuse_misused_conditions(primitive, nodes)
        if all(n.op == "const" for n in nodes):
            return self.symbol(PRIMITIVES[primitive](domain_of(), *(n.range.lo for n in nodes)))
        if primitive == "select" and nodes[0].fixed is not None:
            return nodes[1] if nodes[0].fixed else nodes[2]
        if (same := _identity(primitive, nodes)) is not None:
            return same
        known = nodes[0].range.apply(primitive, *(n.range for n in nodes))
        return self._node(primitive, nodes, (), _sharpen(primitive, nodes, known))

    def _bound(self, node: Sym, lo: int, hi: int) -> Sym:
        if node.range not in Interval(lo, hi):
            self.claims.append(Claim(node, node.range, lo, hi))
            node.range = node.range.meet(Interval(lo, hi))
        return node


def _refuse_misused_conditions(primitive: str, nodes: tuple[Sym, ...]) -> None:
    for position, n in enumerate(nodes):
        wanted = primitive == "select" and position == 0
        if n.is_condition and not wanted:
            raise ExprError(f"{primitive} takes a condition ({n.op}): only select may")
        if wanted and not n.is_condition and n.op != "const":
            raise ExprError(f"select wants a comparison first, got {n.op}")


def _identity(primitive: str, nodes: tuple[Sym, ...]) -> Sym | None:
    """The operand that x + 0, x - 0, x * 1, x << 0, x >> 0 and their mirrors leave as it is."""
    if primitive in ("add", "sub", "shl", "shr") and nodes[1].fixed == 0:
        return nodes[0]
    if primitive == "mul" and nodes[1].fixed == 1:
        return nodes[0]
    if (primitive, nodes[0].fixed) in (("add", 0), ("mul", 1)):
        return nodes[1]
    return None


def _sharpen(primitive: str, nodes: tuple[Sym, ...], known: Interval) -> Interval:
    """Two facts that intervals of the operands alone lose: x * x >= 0, and select(x < 0, -x, x) >= 0."""
    if primitive == "mul" and nodes[0] is nodes[1]:
        lo, hi = nodes[0].range.lo, nodes[0].range.hi
        return Interval(0 if lo <= 0 <= hi else min(lo * lo, hi * hi), max(lo * lo, hi * hi))
    if primitive == "select":
        condition, negated, x = nodes
        is_sign = condition.op == "lt" and condition.args[0] is x and condition.args[1].fixed == 0
        if is_sign and negated.op == "sub" and negated.args[0].fixed == 0 and negated.args[1] is x:
            return Interval(max(0, x.range.lo, -x.range.hi), max(abs(x.range.lo), abs(x.range.hi)))
    return known


@dataclass(frozen=True)
class Traced:
    """One definition, specialised to its parameters and to the intervals of its operands."""

    operands: tuple[Sym, ...]
    result: Sym

    @cached_property
    def nodes(self) -> tuple[Sym, ...]:
        """What the result needs, operands and constants included, each after its arguments."""
        live: set[int] = set()
        todo = [self.result]
        while todo:
            n = todo.pop()
            if n.number not in live:
                live.add(n.number)
                todo += n.args
        return tuple(n for n in self.result.graph.nodes if n.number in live)

    @property
    def range(self) -> Interval:
        return self.result.range

    @property
    def claims(self) -> list[Claim]:
        live = {n.number for n in self.nodes}
        return [c for c in self.result.graph.claims if c.node.number in live]

    @property
    def tables(self) -> dict[tuple[int, ...], str]:
        """Values of every table in use, and the name the definition gives it."""
        names = self.result.graph.table_names
        return {n.values: names.get(n.values, "table") for n in self.nodes if n.op == "table"}

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """Equal for definitions that are the same program on the same intervals."""
        place = {n.number: i for i, n in enumerate(self.nodes)}
        return tuple((n.op, tuple(place[a.number] for a in n.args), n.values, n.range, n.name) for n in self.nodes)

    def evaluate(self, *operands: Any) -> Any:
        """The graph on values of any one kind (ints, arrays, tensors, z3 terms)."""
        domain, values = domain_of(*operands), dict[int, Any]()
        for symbol, value in zip(self.operands, operands, strict=True):
            values[symbol.number] = value
        for n in self.nodes:
            if n.number not in values:
                values[n.number] = evaluate_node(n, domain, [values[a.number] for a in n.args])
        return values[self.result.number]


def evaluate_node(n: Sym, domain: Any, args: Sequence[Any]) -> Any:
    if n.op == "const":
        return n.values[0]
    if n.op == "table":
        return domain.lookup(n.values, args[0])
    return PRIMITIVES[n.op](domain, *args)


def intervals(nodes: Sequence[Sym], given: Mapping[int, Interval]) -> dict[int, Interval]:
    """Intervals of `nodes`, computed anew from those in `given`; of claims, only those on earlier nodes are believed.

    Claims are proved in the order in which they were made, so this is not circular.
    """
    known: dict[int, Interval] = {}
    claimed = {c.node.number: Interval(c.lo, c.hi) for c in nodes[-1].graph.claims if c.node is not nodes[-1]}
    for n in nodes:
        if n.number in given:
            known[n.number] = given[n.number]
        elif n.op in ("const", "var"):
            known[n.number] = n.range
        elif n.op == "table":
            known[n.number] = table_interval(n.values, known[n.args[0].number])
        else:
            operands = [known[a.number] for a in n.args]
            known[n.number] = operands[0].apply(n.op, *operands)
        if n.number in claimed:
            known[n.number] = known[n.number].meet(claimed[n.number])
    return known


def trace(definition: Callable[..., Any], operands: Sequence[Interval], params: Mapping[str, Any]) -> Traced:
    """Record `definition`: its first parameters become operands with these intervals, `params` are its keywords.

    Local variables of the definition give their names to the nodes, tables included.
    Raises ExprError where it leaves the language or needs more than 64 bits.
    """
    graph = Graph()
    names = list(inspect.signature(definition).parameters)[: len(operands)]
    symbols = tuple(graph.operand(name, known) for name, known in zip(names, operands, strict=True))
    with _naming(definition, graph):
        result = definition(*symbols, **params)
    traced = Traced(symbols, graph.symbol(result))
    if traced.result.is_condition:
        raise ExprError("the result is a condition: use select(condition, 1, 0)")
    for n in traced.nodes:
        if n.bits > WORD:
            raise ExprError(f"{n.name or n.op} in {n.range} needs {n.bits} bits, the limit is {WORD}")
    return traced


class _naming:
    """While active, names symbols and tables after the local variables of the definition and of the ops it calls."""

    def __init__(self, definition: Callable[..., Any], graph: Graph) -> None:
        self.graph = graph
        self.globals: dict[str, Any] = getattr(definition, "__globals__", {})
        for name, value in _tables(self.globals):
            graph.table_names.setdefault(value, name.lower())

    def __enter__(self) -> None:
        self.before = sys.gettrace()
        sys.settrace(self._enter_frame)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)

    def _enter_frame(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith("isobit.quant.ops") and frame.f_globals is not self.globals:
            return None
        for name, value in _tables(frame.f_globals):
            self.graph.table_names.setdefault(value, name.lower())
        return self._watch

    def _watch(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        parameters = frame.f_code.co_varnames[: frame.f_code.co_argcount]
        for name, value in frame.f_locals.items():
            if name in parameters:
                continue
            if isinstance(value, Sym) and not value.name and value.op not in ("const", "var"):
                value.name = name
            elif _is_table(value):
                self.graph.table_names.setdefault(value, name)
        return self._watch


def _is_table(value: object) -> bool:
    return isinstance(value, tuple) and len(value) > 1 and all(type(v) is int for v in value)


def _tables(names: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    return ((k, v) for k, v in names.items() if _is_table(v))
