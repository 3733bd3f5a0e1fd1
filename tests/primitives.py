"""Every primitive of the integer language as a Program of pointwise nodes: what each printer has to get right.

A target that gives the reference's integers on `primitive_vectors` prints every primitive exactly on every pair of
8-bit values, and on every pair of values next to a power of two up to 64 bits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from isobit.quant.expr import bound, clip, clz, floordiv, select, table
from isobit.quant.expr.language import apply, equal
from isobit.quant.ops import Op, Structure
from isobit.quant.program import Array, Arrays, Input, Node, Program, TensorType, int_type
from isobit.quant.vectors import edges, random_values

LANES = 64
"""Elements per time step of every input."""

NARROW_TABLE = tuple((37 * i + 11) % 256 - 128 for i in range(256))
WIDE_TABLE = tuple(int(v) for v in edges(int_type("i64"))[:256])

SMALL = (("i8", "i8"), ("i16", "i16"), ("i32", "i32"))
ANY = (*SMALL, ("i64", "i64"), ("u8", "i8"), ("u32", "i64"))
"""Operand types of what cannot overflow."""


@dataclass(frozen=True)
class Primitive:
    """A definition, the tuples of operand types it is tried with, and the parameters it is tried with."""

    define: Callable[..., Any]
    operands: tuple[tuple[str, ...], ...]
    params: tuple[Mapping[str, int], ...] = ({},)


PRIMITIVES: dict[str, Primitive] = {
    "add": Primitive(lambda a, b: a + b, (*SMALL, ("i63", "i63"), ("u8", "i8"))),
    "add_constant": Primitive(lambda a: a + (1 << 62), (("i63",), ("i8",))),
    "sub": Primitive(lambda a, b: a - b, (*SMALL, ("i63", "i63"), ("u32", "i32"))),
    "sub_from_constant": Primitive(lambda a: -1 - a, (("i64",), ("i8",))),
    "neg": Primitive(lambda a: -a, (("i8",), ("i16",), ("i32",), ("i63",))),
    "mul": Primitive(lambda a, b: a * b, (*SMALL, ("i33", "u31"), ("i62", "i2"))),
    "mul_constant": Primitive(lambda a: a * -2147483647, (("i32",), ("i33",), ("i8",))),
    "mulh": Primitive(lambda a, b: apply("mulh", a, b), (*SMALL, ("i16", "i32"), ("u31", "i32"))),
    "shl": Primitive(lambda a, n: a << clip(n, 0, 31), (("i8", "u6"), ("i16", "u6"), ("i32", "u6"))),
    "shl_far": Primitive(lambda a, n: a << clip(n, 0, 56), (("i8", "u6"),)),
    "shl_farthest": Primitive(lambda a, n: a << clip(n, 0, 62), (("i2", "u6"),)),
    "shl_constant": Primitive(
        lambda a, *, s: a << s, (("i8",), ("i16",), ("i32",)), ({"s": 1}, {"s": 7}, {"s": 16}, {"s": 31})
    ),
    "shl_constant_far": Primitive(lambda a, *, s: a << s, (("i2",),), ({"s": 32}, {"s": 61}, {"s": 62})),
    "one_shl": Primitive(lambda n: 1 << clip(n, 0, 62), (("u6",),)),
    "shr": Primitive(
        lambda a, n: a >> clip(n, 0, 62), (("i8", "u6"), ("i16", "u6"), ("i32", "u6"), ("i64", "u6"), ("u63", "u6"))
    ),
    "shr_short": Primitive(
        lambda a, n: a >> n, (("i8", "u3"), ("i16", "u4"), ("i32", "u5"), ("i64", "u5"), ("u31", "u5"))
    ),
    "shr_constant": Primitive(
        lambda a, *, s: a >> s,
        (("i8",), ("i16",), ("i32",), ("i64",), ("u63",)),
        ({"s": 1}, {"s": 7}, {"s": 15}, {"s": 31}, {"s": 32}, {"s": 33}, {"s": 62}),
    ),
    "constant_shr": Primitive(lambda n: -(1 << 62) >> clip(n, 0, 62), (("u6",),)),
    "and": Primitive(lambda a, b: a & b, ANY),
    "or": Primitive(lambda a, b: a | b, ANY),
    "xor": Primitive(lambda a, b: a ^ b, ANY),
    "and_constant": Primitive(lambda a: a & 4095, (("i8",), ("i64",))),
    "lt": Primitive(lambda a, b: select(a < b, 1, 0), ANY),
    "le": Primitive(lambda a, b: select(a <= b, 1, 0), ANY),
    "gt": Primitive(lambda a, b: select(a > b, 1, 0), ANY),
    "ge": Primitive(lambda a, b: select(a >= b, 1, 0), ANY),
    "eq": Primitive(lambda a, b: select(equal(a, b), 1, 0), ANY),
    "select": Primitive(
        lambda c, a, b: select(c < 0, a, b), (("i8", "i8", "i8"), ("i64", "i64", "i64"), ("i32", "u8", "i64"))
    ),
    "select_constants": Primitive(lambda c: select(c <= 7, -(1 << 63), (1 << 63) - 1), (("i8",), ("i64",))),
    "select_always": Primitive(lambda a: select(equal(1, 1), a, 0), (("i32",),)),
    "magnitude": Primitive(lambda a: select(a < 0, -a, a), (("i8",), ("i32",), ("i63",))),
    "clip": Primitive(
        lambda x, *, lo, hi: clip(x, lo, hi),
        (("i8",), ("i16",), ("i32",), ("i64",)),
        ({"lo": -100, "hi": 99}, {"lo": -(1 << 40), "hi": (1 << 31) + 1}, {"lo": 5, "hi": 5}),
    ),
    "clip_between": Primitive(lambda x, lo, hi: clip(x, lo, hi + 128), (("i8", "i8", "u8"), ("i64", "i8", "u8"))),
    "clip_wide": Primitive(lambda x, lo, hi: clip(x, lo - (1 << 61), hi), (("i64", "i61", "u63"),)),
    "floordiv": Primitive(
        lambda a, b: floordiv(a, b + 1), (("u8", "u8"), ("u16", "u16"), ("u31", "u31"), ("u63", "u62"))
    ),
    "clz": Primitive(
        lambda x, *, width: clz(x, width), (("u8",), ("u16",), ("u32",)), ({"width": 32}, {"width": 47}, {"width": 64})
    ),
    "clz_tight": Primitive(lambda x: clz(x, 63), (("u63",), ("u62",))),
    "table": Primitive(lambda i: table(NARROW_TABLE, i), (("u8",), ("u5",))),
    "table_wide": Primitive(lambda i: table(WIDE_TABLE, i), (("u8",),)),
    "bound": Primitive(lambda a: bound(a ^ a, 0, 0) + a, (("i8",),)),
    "constant": Primitive(lambda a: 12345, (("i8",),)),
}


def primitive_programs() -> tuple[dict[str, Op], tuple[Program, ...]]:
    """The rows that OPS needs, and two Programs: operands of at most 32 bits, and wider ones.

    A node for every primitive, tuple of operand types and parameters; nodes with equal operand types share inputs.
    """
    ops = {f"primitive_{name}": Op(Structure.POINTWISE, p.define) for name, p in PRIMITIVES.items()}
    nodes: dict[str, list[Node]] = {"primitives": [], "wide_primitives": []}
    inputs: dict[str, dict[str, Input]] = {program: {} for program in nodes}
    for name, p in PRIMITIVES.items():
        for number, (operands, params) in enumerate(itertools.product(p.operands, p.params)):
            program = "primitives" if all(int_type(o).bits <= 32 for o in operands) else "wide_primitives"
            group = "_".join(operands)
            names = tuple(f"{group}.{position}" for position in range(len(operands)))
            for operand, elem in zip(names, operands, strict=True):
                inputs[program][operand] = Input(operand, TensorType(("T", LANES), int_type(elem)))
            index = ",".join("tn" for _ in operands) + "->tn"
            where = f"{name}.{number}"
            nodes[program].append(
                Node(f"primitive_{name}", tuple(sorted(params.items())), names, f"{where}.y", index, where)
            )
    return ops, tuple(
        Program(program, tuple(inputs[program].values()), (), (), tuple(made), tuple(n.output for n in made))
        for program, made in nodes.items()
    )


def primitive_vectors(program: Program, steps: int | None = None, seed: int = 0) -> Arrays:
    """Inputs (1, T, LANES) of one of the Programs, the combinations of a node's operands in a random order.

    Combinations: of all values up to 8 bits, of `edges` above, each pair once, and random ones of three operands; then
    random values up to a common T.  `steps` cuts T.
    """
    rng = np.random.default_rng(seed)
    groups: dict[str, list[Input]] = {}
    for i in program.inputs:
        groups.setdefault(i.name.partition(".")[0], []).append(i)
    chosen = {i.name: values for group in groups.values() for i, values in _combinations(group, rng).items()}
    length = -(-max(v.size for v in chosen.values()) // LANES)
    vectors: Arrays = {}
    for i in program.inputs:
        filler = random_values(i.type.elem, (length * LANES - chosen[i.name].size,), rng)
        vectors[i.name] = np.concatenate([chosen[i.name], filler]).reshape(1, length, LANES)[:, :steps]
    return vectors


def _combinations(group: list[Input], rng: np.random.Generator) -> dict[Input, Array]:
    elems = [i.type.elem for i in group]
    domains = [np.arange(e.range.lo, e.range.hi + 1) if e.bits <= 8 else edges(e) for e in elems]
    count = math.prod(d.size for d in domains)
    if len(group) <= 2:
        rows = np.unravel_index(rng.permutation(count), [d.size for d in domains])
    else:
        rows = tuple(rng.integers(0, d.size, 1 << 16) for d in domains)
    return {i: d[row] for i, d, row in zip(group, domains, rows, strict=True)}
