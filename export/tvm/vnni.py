"""Matrix products of 8-bit operands by `vpdpbusd`: 4 products per lane and instruction (AVX512-VNNI, AVX-VNNI).

The instruction multiplies unsigned by signed bytes, so x enters as x + 128 and the sum starts 128 * sum(w) lower.
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
from isobit.targets.nest import Accumulate, Accumulator, Element, Kernel, Loop, Nest, Statement

INT8, INT32 = Interval(-128, 127), Interval(-(1 << 31), (1 << 31) - 1)
INTRINSICS = {8: "llvm.x86.avx512.vpdpbusd.256", 16: "llvm.x86.avx512.vpdpbusd.512"}
"""By the number of int32 lanes."""

QUAD = 4
MOST_ACCUMULATORS = 8
LEAST = 16
"""Rows and columns below which plain loops are as fast."""


@dataclass(frozen=True)
class Product:
    """A kernel `for n: y[n] = start[n] + sum(k: x[k] * weight[n, k]); then rest`, x and weight of 8 bits.

    weight: (N, K), start: (N,), their values; row, column: the names of n and k.
    """

    node: Node
    x: Element
    weight: Array
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
    if any(nest.range(o.value) not in INT8 for o in (x, w)) or known not in INT32 or min(weight.shape) < LEAST:
        return None
    return Product(node, x, weight, constant[start.value].array, n, k, tuple(rest))


def packed(p: Product, lanes: int) -> npt.NDArray[np.int8]:
    """Weights in the order in which they are used: (blocks of rows, quads of columns, rows in the block, 4), flat."""
    rows, columns = -p.rows % lanes, -p.columns % QUAD
    padded = np.pad(p.weight, ((0, rows), (0, columns))).astype(np.int8)
    blocks = padded.reshape(-1, lanes, padded.shape[1] // QUAD, QUAD)
    return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3)).reshape(-1)


def folded_start(p: Product, lanes: int) -> npt.NDArray[np.int32]:
    """Where each accumulator starts, modulo 2^32, one for each row of `packed`."""
    lowered = p.start - 128 * p.weight.sum(1)
    return np.pad(lowered, (0, -p.rows % lanes)).astype(np.uint64).astype(np.uint32).view(np.int32)


def unsigned_copy(p: Product, x: Expr, column: Expr, copy: Buffer) -> list[Stmt]:
    """copy[k] = x[k] + 128, and 0 in the padding, which meets weights of 0; `x` is the element at `column`."""
    flipped = tirx.bitwise_xor(tirx.Cast("uint8", x), imm(128, "uint8"))
    fill = tirx.For(column, imm(0), imm(p.columns), tirx.ForKind.SERIAL, store(copy, flipped, column))
    return [fill, *(store(copy, imm(0, "uint8"), k) for k in range(p.columns, p.columns + -p.columns % QUAD))]


def dot_products(p: Product, lanes: int, copy: Buffer, weight: Buffer, start: Buffer, total: Buffer) -> list[Stmt]:
    """total[n] for every row of `weight`: groups of accumulators that stay in registers."""
    blocks, statements, first = -(-p.rows // lanes), list[Stmt](), 0
    while first < blocks:
        width = min(MOST_ACCUMULATORS, blocks - first)
        repeats = (blocks - first) // width
        variable = tirx.Var("group", "int32")
        block = tirx.Add(tirx.Mul(variable, imm(width)), imm(first))
        body = _group(p, lanes, width, block, copy, weight, start, total)
        statements.append(tirx.For(variable, imm(0), imm(repeats), tirx.ForKind.SERIAL, body))
        first += repeats * width
    return statements


def _group(
    p: Product, lanes: int, width: int, first: Expr, copy: Buffer, weight: Buffer, start: Buffer, total: Buffer
) -> Stmt:
    """`width` blocks of rows, from block `first`, over all columns."""
    quads, kind = -(-p.columns // QUAD), f"int32x{lanes}"
    acc = tirx.decl_buffer((width * lanes,), "int32", "acc", data_alignment=4)
    quad = tirx.Var("quad", "int32")

    def vector(buffer: Buffer, base: Expr, size: int) -> Expr:
        return load(buffer, tirx.Ramp(base, imm(1), imm(size)))

    def copied(to: Buffer, to_base: Expr, source: Buffer, base: Expr) -> Stmt:
        return store(to, vector(source, base, lanes), tirx.Ramp(to_base, imm(1), imm(lanes)))

    def row_of(block: int) -> Expr:
        return tirx.Mul(tirx.Add(first, imm(block)), imm(lanes))

    four = tirx.reinterpret("int32", vector(copy, tirx.Mul(quad, imm(QUAD)), QUAD))
    bytes_of_x = tirx.reinterpret(f"int8x{QUAD * lanes}", tirx.Broadcast(four, imm(lanes)))
    steps = list[Stmt]()
    for j in range(width):
        place = tirx.Add(tirx.Mul(tirx.Add(first, imm(j)), imm(quads)), quad)
        bytes_of_w = vector(weight, tirx.Mul(place, imm(QUAD * lanes)), QUAD * lanes)
        now = vector(acc, imm(j * lanes), lanes)
        added = tirx.call_llvm_pure_intrin(kind, INTRINSICS[lanes], now, bytes_of_x, bytes_of_w)
        steps.append(store(acc, added, tirx.Ramp(imm(j * lanes), imm(1), imm(lanes))))
    loop = tirx.For(quad, imm(0), imm(quads), tirx.ForKind.SERIAL, tirx.SeqStmt(steps) if width > 1 else steps[0])
    before = [copied(acc, imm(j * lanes), start, row_of(j)) for j in range(width)]
    after = [copied(total, row_of(j), acc, imm(j * lanes)) for j in range(width)]
    return tirx.SeqStmt([tirx.AllocBuffer(acc), *before, loop, *after])
