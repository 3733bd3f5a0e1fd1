"""Matrix products of 8-bit operands by `vpdpbusd`: 4 products per lane and instruction (AVX512-VNNI, AVX-VNNI).

The instruction multiplies unsigned by signed bytes, so x enters as x + 128 and the sum starts 128 * sum(w) lower.
Of 16 bits, x is two bytes, 256 * high + low; a minifloat that no byte holds is two limbs, 128 * high + low; each pair
has a sum of its own.
Weights of fewer bits are stored as planes of 4, 2 and 1 bits, whose vectors hold as many quads as a byte has parts, and
become bytes in registers; those whose codes take too many lookups are stored as the bytes that they are.
Sums wrap at 32 bits on the way; the result is exact because `check` proves that it fits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import tirx

from isobit.export.tvm.expression import Buffer, Expr, Stmt, dtype_of, imm, load, store
from isobit.quant.expr.interval import Interval
from isobit.quant.ops.matmul import product
from isobit.quant.program import Array, Node
from isobit.quant.storage import Storage
from isobit.targets.nest import Accumulate, Accumulator, Element, Kernel, Loop, Nest, Statement

INT8, INT16, INT32 = (Interval(-(1 << (bits - 1)), (1 << (bits - 1)) - 1) for bits in (8, 16, 32))
DOT = {8: "llvm.x86.avx512.vpdpbusd.256", 16: "llvm.x86.avx512.vpdpbusd.512"}
LOOKUP = {8: "llvm.x86.avx2.pshuf.b", 16: "llvm.x86.avx512.pshuf.b.512"}
"""By the number of int32 lanes."""

QUAD = 4
MOST_ACCUMULATORS = 8
LIMB = 7
"""Bits of the low limb of a weight that takes two."""

TWO_LIMBS = Interval(-(127 << LIMB), 127 << LIMB)

MOST_LOOKED_UP = 6
"""Bits of the codes that are looked up: a table of 16 numbers serves four of them."""

BYTES = Storage(8, signed=True)

LEAST = 16
"""Rows and columns below which plain loops are as fast."""


@dataclass(frozen=True)
class Product:
    """A kernel `for n: y[n] = start[n] + sum(k: x[k] * weight[n, k]); then rest`, x and weight of 8 bits.

    weight: (N, K), start: (N,), their values; storage: of the weight; bytes: of an element of x; row, column: the names
    of n and k.
    """

    node: Node
    x: Element
    weight: Array
    storage: Storage
    bytes: int
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
        """Tables of 16 numbers that give a code's integer, or one limb of it."""
        return 1 << max(self.storage.bits - 4, 0) if self.storage.is_coded else 0

    @property
    def limbs(self) -> int:
        """Bytes of a weight."""
        return 1 if self.storage.decoder.range in INT8 else 2

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Limb of the weight and byte of x, from the low ones on, of every sum."""
        return [(i, j) for i in range(self.limbs) for j in range(self.bytes)]

    def shift(self, pair: tuple[int, int]) -> int:
        """What a sum counts, as a power of two."""
        return LIMB * pair[0] + 8 * pair[1]


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
    weight, storage = constant[w.value].array, constant[w.value].storage
    if storage.is_coded and storage.bits > MOST_LOOKED_UP and nest.range(w.value) in INT8:
        storage = BYTES
    looked_up = storage.is_coded and storage.bits <= MOST_LOOKED_UP and storage.decoder.range in TWO_LIMBS
    if not (storage.signed and (storage.decoder.range in INT8 or looked_up)):
        return None
    if nest.range(x.value) not in INT16 or known not in INT32 or min(weight.shape) < LEAST:
        return None
    bytes_of_x = 1 if nest.range(x.value) in INT8 else 2
    return Product(node, x, weight, storage, bytes_of_x, constant[start.value].array, n, k, tuple(rest))


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
    """For every limb, and every 16 codes, a vector that repeats their integers."""
    numbers = p.storage.decoded(np.arange(16 * p.lookups) % (1 << p.storage.bits))
    half = 1 << (LIMB - 1)
    low = ((numbers + half) & (2 * half - 1)) - half
    limbs = [numbers] if p.limbs == 1 else [low, (numbers - low) >> LIMB]
    entries = np.stack(limbs).astype(np.int8).reshape(-1, 1, 16)
    return np.tile(entries, (1, lanes * QUAD // 16, 1)).reshape(-1)


def folded_start(p: Product, lanes: int) -> npt.NDArray[np.int32]:
    """Where each accumulator starts, modulo 2^32, one for each row of `packed`."""
    lowered = p.start - (128 << 8 * (p.bytes - 1)) * p.weight.sum(1)
    return np.pad(lowered, (0, -p.rows % lanes)).astype(np.uint64).astype(np.uint32).view(np.int32)


def unsigned_copy(p: Product, x: Expr, column: Expr, copy: Buffer) -> list[Stmt]:
    """The bytes of x, the highest plus 128, one row after the other, and 0 in the padding, whatever weights it meets.

    `x` is the element at `column`.
    """
    stores, size = list[Stmt](), p.quads * QUAD
    for j in range(p.bytes):
        byte = tirx.Cast("uint8", tirx.shift_right(x, imm(8 * j, dtype_of(x))) if j else x)
        if j == p.bytes - 1:
            byte = tirx.bitwise_xor(byte, imm(128, "uint8"))
        stores.append(store(copy, byte, tirx.Add(column, imm(j * size)) if j else column))
    fill = tirx.For(
        column, imm(0), imm(p.columns), tirx.ForKind.SERIAL, tirx.SeqStmt(stores) if p.bytes > 1 else stores[0]
    )
    padding = (j * size + k for j in range(p.bytes) for k in range(p.columns, size))
    return [fill, *(store(copy, imm(0, "uint8"), k) for k in padding)]


@dataclass(frozen=True)
class Buffers:
    """Bytes of x; codes as `packed` orders them; `tables` where there are any; what the sums start from; the sums."""

    copy: Buffer
    weight: Buffer
    tables: Buffer | None
    start: Buffer
    total: Buffer


def dot_products(p: Product, lanes: int, held: Buffers) -> list[Stmt]:
    """total[n] for every row of the weight: groups of accumulators that stay in registers."""
    blocks, statements, first = -(-p.rows // lanes), list[Stmt](), 0
    while first < blocks:
        width = min(MOST_ACCUMULATORS // len(p.pairs), blocks - first)
        repeats = (blocks - first) // width
        variable = tirx.Var("group", "int32")
        block = tirx.Add(tirx.Mul(variable, imm(width)), imm(first))
        body = _group(p, lanes, width, block, held)
        statements.append(tirx.For(variable, imm(0), imm(repeats), tirx.ForKind.SERIAL, body))
        first += repeats * width
    return statements


def _group(p: Product, lanes: int, width: int, first: Expr, held: Buffers) -> Stmt:
    """`width` blocks of rows, from block `first`, over all columns."""
    groups, kind, size, pairs = p.quads // p.unrolled, f"int32x{lanes}", QUAD * lanes, p.pairs
    acc = tirx.decl_buffer((width * len(pairs) * lanes,), "int32", "acc", data_alignment=4)
    group = tirx.Var("columns", "int32")

    def place_of(j: int, pair: int) -> Expr:
        return imm((j * len(pairs) + pair) * lanes)

    def row_of(block: int) -> Expr:
        return tirx.Mul(tirx.Add(first, imm(block)), imm(lanes))

    def summed(j: int) -> Expr:
        """The sums of a block as one, modulo 2^32; added in 64 bits, where nothing wraps."""
        if len(pairs) == 1:
            return _vector(acc, place_of(j, 0), lanes)
        wide, total = f"int64x{lanes}", None
        for i, pair in enumerate(pairs):
            part = tirx.Cast(wide, _vector(acc, place_of(j, i), lanes))
            part = tirx.shift_left(part, tirx.Broadcast(imm(p.shift(pair), "int64"), imm(lanes)))
            total = part if total is None else tirx.Add(total, part)
        return tirx.Cast(kind, total)

    steps = list[Stmt]()
    for u in range(p.unrolled):
        quad = tirx.Add(tirx.Mul(group, imm(p.unrolled)), imm(u))
        bytes_of_x = []
        for row in range(p.bytes):
            at = tirx.Add(tirx.Mul(quad, imm(QUAD)), imm(row * p.quads * QUAD))
            four = tirx.reinterpret("int32", _vector(held.copy, at, QUAD))
            bytes_of_x.append(tirx.reinterpret(f"int8x{size}", tirx.Broadcast(four, imm(lanes))))
        for j in range(width):
            place = tirx.Add(tirx.Mul(tirx.Add(first, imm(j)), imm(groups)), group)
            codes = _codes(p, size, held.weight, place, u)
            limbs = [_integers(p, lanes, codes, held, i) for i in range(p.limbs)]
            for i, (limb, byte) in enumerate(pairs):
                now = _vector(acc, place_of(j, i), lanes)
                added = tirx.call_llvm_pure_intrin(kind, DOT[lanes], now, bytes_of_x[byte], limbs[limb])
                steps.append(store(acc, added, tirx.Ramp(place_of(j, i), imm(1), imm(lanes))))
    loop = tirx.For(
        group, imm(0), imm(groups), tirx.ForKind.SERIAL, tirx.SeqStmt(steps) if len(steps) > 1 else steps[0]
    )
    zero = tirx.Broadcast(imm(0), imm(lanes))
    before = [
        store(acc, zero if i else _vector(held.start, row_of(j), lanes), tirx.Ramp(place_of(j, i), imm(1), imm(lanes)))
        for j in range(width)
        for i in range(len(pairs))
    ]
    after = [store(held.total, summed(j), tirx.Ramp(row_of(j), imm(1), imm(lanes))) for j in range(width)]
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


def _integers(p: Product, lanes: int, codes: Expr, held: Buffers, limb: int) -> Expr:
    """The integers of a vector of codes, or a limb of them, int8."""
    size, kind, bits = QUAD * lanes, f"int8x{QUAD * lanes}", p.storage.bits
    if held.tables is None:
        sign = 1 << (bits - 1)
        signed = codes if bits == 8 else tirx.Sub(tirx.bitwise_xor(codes, _every(sign, size)), _every(sign, size))
        return tirx.reinterpret(kind, signed)
    high, found = tirx.shift_right(codes, _every(4, size)), None
    low = tirx.reinterpret(kind, tirx.bitwise_and(codes, _every(15, size)) if p.lookups > 1 else codes)
    for i in range(p.lookups):
        numbers = _vector(held.tables, imm((limb * p.lookups + i) * size), size)
        looked = tirx.call_llvm_pure_intrin(kind, LOOKUP[lanes], numbers, low)
        found = looked if found is None else tirx.Select(tirx.EQ(high, _every(i, size)), looked, found)
    return found


def _vector(buffer: Buffer, base: Expr, size: int) -> Expr:
    return load(buffer, tirx.Ramp(base, imm(1), imm(size)))


def _every(value: int, size: int) -> Expr:
    return tirx.Broadcast(imm(value, "uint8"), imm(size))
