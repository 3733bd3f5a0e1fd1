"""Programs of matrix products by constant weights, plain and in blocks, as vector instructions compute them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from isobit.export.tvm import products
from isobit.quant.formats import GROUPS
from isobit.quant.ops import Case
from isobit.quant.program import Array, Input, IntType, Node, Program, TensorType, constant
from isobit.quant.storage import Storage
from isobit.quant.vectors import case_program, join
from tests.stored import ELEMENTS, numbers


def matrix_products() -> Program:
    """8-bit products whose sizes leave every remainder, and one whose sums wrap on the way to a result that fits."""
    sizes = [(16, 16), (17, 19), (130, 67), (300, 18), (32, 130)]
    operands = ("i8", "=i8", "=i20")
    cases = [Case("", "tk,nk,n->tn", {"n": n, "k": k}, operands, {"acc": 32}) for n, k in sizes]
    programs = [case_program("matmul", c, f"product.{i}") for i, c in enumerate(cases)]
    last = case_program("matmul", Case("", "tk,nk,n->tn", {"n": 16, "k": 16}, operands, {"acc": 32}), "wrapping")
    weight = constant("wrapping.x1", np.full((16, 16), -128), IntType(8))
    start = constant("wrapping.x2", np.full(16, (1 << 31) - 1 - 16 * 128 * 128), IntType(32))
    return join("products", [*programs, replace(last, constants=(weight, start))])


def stored_as_vectors() -> list[Storage]:
    """Those whose numbers are bytes or two limbs."""

    def looked_up(s: Storage) -> bool:
        return s.is_coded and s.bits <= products.MOST_LOOKED_UP and s.decoder.range in products.TWO_LIMBS

    return [
        s for s, elem in ELEMENTS.items() if s.signed and s.bits <= 8 and (looked_up(s) or elem.range in products.INT8)
    ]


def packed_products() -> Program:
    """Every packed storage with all of its numbers, times 8 and 16 bits."""
    programs = []
    for s in stored_as_vectors():
        elem = ELEMENTS[s]
        for bits in (8, 16):
            case = Case("", "tk,nk,n->tn", {"n": 19, "k": 37}, (f"i{bits}", "=i8", "=i20"), {"acc": 32})
            made = case_program("matmul", case, f"{s.name}.{bits}")
            weight = constant(f"{s.name}.{bits}.x1", np.resize(numbers(s), (19, 37)), elem, mantissa=s.mantissa)
            programs.append(replace(made, constants=(weight, made.constants[1])))
    return join("packed", programs)


def in_blocks(
    name: str, weight: Array, elem: IntType, factors: Array, start: Array, bits: int = 8, acc: int = 32,
    mantissa: int | None = None, exponents: int = 0, of: str = "ta",
) -> Program:  # fmt: skip
    """Operands of `bits` bits by weights (N, A, C): the sum of every block times its factor, (N, A), and a start.

    exponents: bits of those that the sums are shifted by first, one for each of the axes `of`.
    """
    values = [f"{name}.{k}" for k in ("x", "weight", "factors", "start")]
    x = Input(values[0], TensorType(("T", *weight.shape[1:]), IntType(bits)))
    held = (
        constant(values[1], weight, elem, mantissa=mantissa),
        constant(values[2], factors, IntType(max(int(factors.max()).bit_length(), 1), signed=False)),
        constant(values[3], start, IntType(acc)),
    )
    sums = Node("dot", (("acc", 32),), (values[0], values[1]), f"{name}.sums", "tac,nac->tna", name)
    inputs, nodes = [x], [sums]
    if exponents:
        sizes = dict(zip("na", factors.shape, strict=True))
        dims = ("T", *(sizes[k] for k in of[1:]))
        inputs.append(Input(f"{name}.exponents", TensorType(dims, IntType(exponents, signed=False))))
        scaled = (sums.output, inputs[1].name), f"{name}.scaled", f"tna,{of}->tna"
        nodes.append(Node("scale_block", (), *scaled, name))
    total = Node("matmul", (("acc", acc),), (nodes[-1].output, *values[2:]), f"{name}.y", "tna,na,n->tn", name)
    return Program(name, tuple(inputs), held, (), (*nodes, total), (total.output,))


def groups_of_integers(sizes: Iterable[int], exponents: int = 0) -> list[Program]:
    """Rows and blocks that fill vectors of 4 bits, and that leave some of 1 and 2 bits over."""
    rng, programs = np.random.default_rng(0), list[Program]()
    for size, (rows, blocks, bits) in itertools.product(sizes, [(16, 4, 4), (150, 5, 3)]):
        elem = IntType(bits)
        weight = rng.integers(elem.range.lo, elem.range.hi, (rows, blocks, size), endpoint=True)
        factors, start = rng.integers(0, 256, (rows, blocks)), rng.integers(-(1 << 20), 1 << 20, rows)
        programs.append(in_blocks(f"g{size}.i{bits}.{exponents}", weight, elem, factors, start))
    return programs


def large_sums(factor: int, exponents: int = 0) -> Program:
    """Sums of blocks that fit 32 bits; those of x + 2^15 do not."""
    weight, zero, name = np.full((16, 1, 320), -128), np.zeros(16, np.int64), f"large.{factor}.{exponents}"
    return in_blocks(name, weight, IntType(8), np.full((16, 1), factor), zero, 16, 64, exponents=exponents)


def blocked_products() -> Program:
    """Every size of a group, and odd ones; every packed storage; sums that wrap, and of 64 bits."""
    rng, programs = np.random.default_rng(0), groups_of_integers((*GROUPS, 5, 20))
    for s in stored_as_vectors():
        for bits, acc in ((8, 32), (16, 64)):
            weight = np.resize(numbers(s), (19, 5, 16))
            factors, start = 1 << rng.integers(0, 9, (19, 5)), rng.integers(-(1 << 20), 1 << 20, 19)
            name = f"{s.name}.{bits}"
            programs.append(in_blocks(name, weight, ELEMENTS[s], factors, start, bits, acc, s.mantissa))
    programs.append(large_sums(factor=1))
    lowest, factors = np.full((16, 2, 32), -128), np.full((16, 2), 255)
    reach, limit = 2 * 32 * 255 * 128, (1 << 31) - 1
    for name, first, factor, bits in (
        ("wraps.up", limit - reach * 128, 1, 8),
        ("wraps.down", reach * 127 - limit, 1, 8),
        ("wide", -(1 << 60), 1, 16),
        ("wide.factors", 1 << 60, 1 << 22, 16),
    ):
        acc = 4 * bits
        programs.append(in_blocks(name, lowest, IntType(8), factors * factor, np.full(16, first), bits, acc))
    return join("blocked", programs)


def shifted_products() -> Program:
    """The same where the sums of blocks are shifted: by up to 7, by up to 31, and from one end of 32 bits."""
    rng, programs = np.random.default_rng(0), groups_of_integers((*GROUPS, 5, 20), exponents=3)
    for s in stored_as_vectors():
        for bits, acc in ((8, 32), (8, 64), (16, 64)):
            weight = np.resize(numbers(s), (19, 5, 16))
            factors, start = 1 << rng.integers(0, 3, (19, 5)), rng.integers(-(1 << 20), 1 << 20, 19)
            name, most = f"{s.name}.{bits}.{acc}", 2 if acc == 32 else 5
            programs.append(in_blocks(name, weight, ELEMENTS[s], factors, start, bits, acc, s.mantissa, most))
    programs.append(large_sums(factor=1, exponents=5))
    lowest, factors = np.full((16, 2, 32), -128), np.full((16, 2), 15)
    reach, limit = (2 * 32 * 15 * 128) << 3, (1 << 31) - 1
    for name, first in (("up", limit - reach * 128), ("down", reach * 127 - limit)):
        programs.append(in_blocks(name, lowest, IntType(8), factors, np.full(16, first), exponents=2))
    return join("shifted", programs)


def not_only_products() -> list[Program]:
    """Sums of blocks that something else reads, or that are an output; large ones, where the total takes 64 bits;
    shifted ones that are an output; shifts by row; zeros shifted beyond a word."""
    rng = np.random.default_rng(0)
    weight, factors = rng.integers(-8, 8, (19, 3, 16)), rng.integers(0, 256, (19, 3))
    zero = np.zeros(19, np.int64)
    made = in_blocks("read", weight, IntType(4), factors, zero)
    shifted = in_blocks("shifted", weight, IntType(4), factors, zero, exponents=2)
    same = (("hi", 1 << 20), ("lo", -(1 << 20)), ("ma", 1), ("mb", 1), ("s", 1))
    again = Node("add", same, ("read.sums", "read.sums"), "read.twice", "tna,tna->tna", "read")
    zeros = in_blocks("far", weight * 0, IntType(4), factors, zero, exponents=5)
    params = {"hi": 40, "lo": 0, "ma": 2, "mb": 2, "s": 1}
    far = Node("add", tuple(params.items()), ("far.exponents",) * 2, "far", "ta,ta->ta", "far")
    return [
        replace(made, nodes=(*made.nodes, again), outputs=("read.y", "read.twice")),
        replace(made, outputs=("read.sums", "read.y")),
        large_sums(factor=255),
        replace(shifted, outputs=("shifted.sums", "shifted.y")),
        replace(shifted, outputs=("shifted.scaled", "shifted.y")),
        in_blocks("by.row", weight, IntType(4), factors, zero, exponents=2, of="tn"),
        replace(
            zeros, nodes=(far, zeros.nodes[0], replace(zeros.nodes[1], inputs=("far.sums", "far")), zeros.nodes[2])
        ),
    ]
