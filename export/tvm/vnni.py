"""Matrix products of 8-bit operands by `vpdpbusd`: 4 products per lane and instruction (AVX512-VNNI, AVX-VNNI).

The instruction multiplies unsigned by signed bytes, so x enters as x + 128 and the sum starts 128 * sum(w) lower.
Weights of fewer bits are stored as planes of 4, 2 and 1 bits, whose vectors hold as many quads as a byte has parts, and
become bytes in registers.
Sums wrap at 32 bits on the way; the result is exact because `check` proves that it fits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import tirx

from isobit.export.tvm.expression import Buffer, Expr, Stmt, imm, load, store
from isobit.quant.expr.interval import Interval
from isobit.quant.ops.matmul import product
from isobit.quant.program import Array, Node
from isobit.quant.storage import Storage
from isobit.targets.nest import Accumulate, Accumulator, Element, Kernel, Loop, Nest, Statement

INT8, INT32 = Interval(-128, 127), Interval(-(1 << 31), (1 << 31) - 1)
DOT = {8: "llvm.x86.avx512.vpdpbusd.256", 16: "llvm.x86.avx512.vpdpbusd.512"}
LOOKUP = {8: "llvm.x86.avx2.pshuf.b", 16: "llvm.x86.avx512.pshuf.b.512"}
"""By the number of int32 lanes."""

QUAD = 4
MOST_ACCUMULATORS = 8
LEAST = 16
"""Rows and columns below which plain loops are as fast."""


@dataclass(frozen=True)
class Product:
    """A kernel `for n: y[n] = start[n] + sum(k: x[k] * weight[n, k]); then rest`, x and weight of 8 bits.

    weight: (N, K), start: (N,), their values; storage: of the weight; row, column: the names of n and k.
    """

    node: Node
    x: Element
    weight: Array
    storage: Storage
    start: Array
    row: str
    column: str
    rest: tuple[Statement, ...]

    @property
    def rows(self) -> int:
        return len(self.weight)

    @property
    def columns(self) -> int:
        return int(self.weight.shape[1])

    @property
    def planes(self) -> list[tuple[int, int]]:
        """Width and lowest bit of the parts in which codes are stored."""
        bits = self.storage.bits
        return [(w, bits & (w - 1)) for w in (8, 4, 2, 1) if bits & w]

    @property
    def unrolled(self) -> int:
        """Quads of columns whose codes share vectors."""
        return 8 // self.planes[-1][0]

    @property
    def quads(self) -> int:
        """Of columns, with those that only fill the last vectors."""
        return -(-self.columns // (QUAD * self.unrolled)) * self.unrolled

    @property
    def lookups(self) -> int:
        """Tables of 16 numbers that give a code's integer."""
        return 1 << max(self.storage.bits - 4, 0) if self.storage.is_coded else 0


def product_of(kernel: Kernel, nest: Nest) -> Product | None:
    """The kernel as a product of constant weights, if it is one and large enough."""
    node, constant = kernel.group.head, nest.program.constant
    if node is None or node.spec.define is not product or node.state or len(kernel.body) != 1:
        return None
    match kernel.body[0]:
        case Loop(n, _, False, (Accumulator(_, known, start), Loop(k, _, True, (Accumulate(_, term),)), *rest)):
            pass
        case _:
            return None
    x, w = term.operands
    if not (isinstance(x, Element) and isinstance(w, Element) and isinstance(start, Element)):
        return None
    if (x.indices, w.indices, start.indices) != ((k,), (n, k), (n,)) or not {w.value, start.value} <= set(constant):
        return None
    weight = constant[w.value].array
    if not constant[w.value].storage.signed:
        return None
    if any(nest.range(o.value) not in INT8 for o in (x, w)) or known not in INT32 or min(weight.shape) < LEAST:
        return None
    return Product(node, x, weight, constant[w.value].storage, constant[start.value].array, n, k, tuple(rest))


def packed(p: Product, lanes: int) -> npt.NDArray[np.uint8]:
    """Codes in the order in which they are used, flat: blocks of `lanes` rows, groups of `unrolled` quads of columns,
    planes, vectors of (rows in the block, 4)."""
    codes = np.pad(p.storage.codes(p.weight), ((0, -p.rows % lanes), (0, p.quads * QUAD - p.columns)))
    blocks = codes.reshape(-1, lanes, p.quads // p.unrolled, p.unrolled, QUAD).transpose(0, 2, 3, 1, 4)
    vectors = []
    for width, low in p.planes:
        parts = 8 // width
        plane = (blocks >> low & (1 << width) - 1).reshape(*blocks.shape[:2], p.unrolled // parts, parts, lanes * QUAD)
        vectors.append((plane << (width * np.arange(parts))[:, None]).sum(-2))
    return np.concatenate(vectors, axis=2).astype(np.uint8).reshape(-1)


def tables(p: Product, lanes: int) -> npt.NDArray[np.int8]:
    """For every 16 codes a vector that repeats their integers."""
    numbers = p.storage.decoded(np.arange(16 * p.lookups) % (1 << p.storage.bits)).astype(np.int8)
    return np.tile(numbers.reshape(-1, 1, 16), (1, lanes * QUAD // 16, 1)).reshape(-1)


def folded_start(p: Product, lanes: int) -> npt.NDArray[np.int32]:
    """Where each accumulator starts, modulo 2^32, one for each row of `packed`."""
    lowered = p.start - 128 * p.weight.sum(1)
    return np.pad(lowered, (0, -p.rows % lanes)).astype(np.uint64).astype(np.uint32).view(np.int32)


def unsigned_copy(p: Product, x: Expr, column: Expr, copy: Buffer) -> list[Stmt]:
    """copy[k] = x[k] + 128, and 0 in the padding, whatever weights it meets; `x` is the element at `column`."""
    flipped = tirx.bitwise_xor(tirx.Cast("uint8", x), imm(128, "uint8"))
    fill = tirx.For(column, imm(0), imm(p.columns), tirx.ForKind.SERIAL, store(copy, flipped, column))
    return [fill, *(store(copy, imm(0, "uint8"), k) for k in range(p.columns, p.quads * QUAD))]


@dataclass(frozen=True)
class Buffers:
    """x + 128; codes as `packed` orders them; `tables` where there are any; what the sums start from; the sums."""

    copy: Buffer
    weight: Buffer
    tables: Buffer | None
    start: Buffer
    total: Buffer


def dot_products(p: Product, lanes: int, held: Buffers) -> list[Stmt]:
    """total[n] for every row of the weight: groups of accumulators that stay in registers."""
    blocks, statements, first = -(-p.rows // lanes), list[Stmt](), 0
    while first < blocks:
        width = min(MOST_ACCUMULATORS, blocks - first)
        repeats = (blocks - first) // width
        variable = tirx.Var("group", "int32")
        block = tirx.Add(tirx.Mul(variable, imm(width)), imm(first))
        body = _group(p, lanes, width, block, held)
        statements.append(tirx.For(variable, imm(0), imm(repeats), tirx.ForKind.SERIAL, body))
        first += repeats * width
    return statements


def _group(p: Product, lanes: int, width: int, first: Expr, held: Buffers) -> Stmt:
    """`width` blocks of rows, from block `first`, over all columns."""
    groups, kind, size = p.quads // p.unrolled, f"int32x{lanes}", QUAD * lanes
    acc = tirx.decl_buffer((width * lanes,), "int32", "acc", data_alignment=4)
    group = tirx.Var("columns", "int32")

    def copied(to: Buffer, to_base: Expr, source: Buffer, base: Expr) -> Stmt:
        return store(to, _vector(source, base, lanes), tirx.Ramp(to_base, imm(1), imm(lanes)))

    def row_of(block: int) -> Expr:
        return tirx.Mul(tirx.Add(first, imm(block)), imm(lanes))

    steps = list[Stmt]()
    for u in range(p.unrolled):
        quad = tirx.Add(tirx.Mul(group, imm(p.unrolled)), imm(u))
        four = tirx.reinterpret("int32", _vector(held.copy, tirx.Mul(quad, imm(QUAD)), QUAD))
        bytes_of_x = tirx.reinterpret(f"int8x{size}", tirx.Broadcast(four, imm(lanes)))
        for j in range(width):
            place = tirx.Add(tirx.Mul(tirx.Add(first, imm(j)), imm(groups)), group)
            bytes_of_w = _integers(p, lanes, _codes(p, size, held.weight, place, u), held)
            now = _vector(acc, imm(j * lanes), lanes)
            added = tirx.call_llvm_pure_intrin(kind, DOT[lanes], now, bytes_of_x, bytes_of_w)
            steps.append(store(acc, added, tirx.Ramp(imm(j * lanes), imm(1), imm(lanes))))
    loop = tirx.For(
        group, imm(0), imm(groups), tirx.ForKind.SERIAL, tirx.SeqStmt(steps) if len(steps) > 1 else steps[0]
    )
    before = [copied(acc, imm(j * lanes), held.start, row_of(j)) for j in range(width)]
    after = [copied(held.total, row_of(j), acc, imm(j * lanes)) for j in range(width)]
    return tirx.SeqStmt([tirx.AllocBuffer(acc), *before, loop, *after])


def _codes(p: Product, size: int, weight: Buffer, place: Expr, u: int) -> Expr:
    """The codes of quad `u` of the group at `place`, uint8: its part of one vector of every plane."""
    vectors, before, found = p.storage.bits * p.unrolled // 8, 0, None
    for width, low in p.planes:
        parts = 8 // width
        at = tirx.Add(tirx.Mul(place, imm(vectors)), imm(before + u // parts))
        code = _vector(weight, tirx.Mul(at, imm(size)), size)
        if (shift := u % parts * width) > 0:
            code = tirx.shift_right(code, _every(shift, size))
        if width < 8:
            code = tirx.bitwise_and(code, _every((1 << width) - 1, size))
        if low:
            code = tirx.shift_left(code, _every(low, size))
        found = code if found is None else tirx.bitwise_or(found, code)
        before += p.unrolled // parts
    return found


def _integers(p: Product, lanes: int, codes: Expr, held: Buffers) -> Expr:
    """The integers of a vector of codes, int8."""
    size, kind, bits = QUAD * lanes, f"int8x{QUAD * lanes}", p.storage.bits
    if held.tables is None:
        sign = 1 << (bits - 1)
        signed = codes if bits == 8 else tirx.Sub(tirx.bitwise_xor(codes, _every(sign, size)), _every(sign, size))
        return tirx.reinterpret(kind, signed)
    high, found = tirx.shift_right(codes, _every(4, size)), None
    low = tirx.reinterpret(kind, tirx.bitwise_and(codes, _every(15, size)) if p.lookups > 1 else codes)
    for i in range(p.lookups):
        numbers = _vector(held.tables, imm(i * size), size)
        looked = tirx.call_llvm_pure_intrin(kind, LOOKUP[lanes], numbers, low)
        found = looked if found is None else tirx.Select(tirx.EQ(high, _every(i, size)), looked, found)
    return found


def _vector(buffer: Buffer, base: Expr, size: int) -> Expr:
    return load(buffer, tirx.Ramp(base, imm(1), imm(size)))


def _every(value: int, size: int) -> Expr:
    return tirx.Broadcast(imm(value, "uint8"), imm(size))
