"""Matrix products of bytes by `vpdpbusd`: 4 products per lane and instruction (AVX512-VNNI, AVX-VNNI).

The instruction multiplies unsigned by signed bytes: x enters as x + 128.
Codes of few bits become bytes in registers.  The sums of a block's rows, and what they are multiplied by and added to,
are vectors of one int32, or int64, for every row of a strip.
Sums wrap at 32 bits on the way; the result is exact because `check` proves that it fits.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from isobit.export.tvm.expression import Buffer, Expr, Stmt, cast, dtype_of, imm, load, sequence_of, serial, store
from isobit.export.tvm.products import QUAD, Product

DOT = {8: "llvm.x86.avx512.vpdpbusd.256", 16: "llvm.x86.avx512.vpdpbusd.512"}
LOOKUP = {8: "llvm.x86.avx2.pshuf.b", 16: "llvm.x86.avx512.pshuf.b.512"}
"""By the number of int32 lanes."""

MOST_ACCUMULATORS = 8


@dataclass(frozen=True)
class Buffers:
    """Bytes of x; the totals; exponents of blocks; parts: room for the sums of blocks, (blocks, rows), where wanted;
    and `constants`."""

    copy: Buffer
    total: Buffer
    exponents: Buffer
    parts: Buffer | None
    packed: Buffer
    start: Buffer
    numbers: Buffer | None = None
    multipliers: Buffer | None = None
    begun: Buffer | None = None


def copies(p: Product, held: Buffers, at: list[Expr], x: Expr, exponent: Expr | None) -> list[Stmt]:
    """The bytes of x, the highest plus 128, one row after the other, and 0 in the padding, whatever weights it meets;
    the exponents, and 0 for blocks that only fill vectors.

    x is the element at `at`: a column, or a block and a column of it; exponent: of the block, if it has one.
    """
    copy, block, width = held.copy, (at[0] if p.sums else None), p.quads * QUAD

    def stored(j: int, column: Expr, byte: Expr) -> Stmt:
        place = tirx.Add(column, imm(j * p.size)) if j else column
        return store(copy, byte, tirx.Add(place, tirx.Mul(block, imm(width))) if p.sums else place)

    stores = list[Stmt]()
    for j in range(p.bytes):
        byte = tirx.Cast("uint8", tirx.shift_right(x, imm(8 * j, dtype_of(x))) if j else x)
        if j == p.bytes - 1:
            byte = tirx.bitwise_xor(byte, imm(128, "uint8"))
        stores.append(stored(j, at[-1], byte))
    zero = imm(0, "uint8")
    statements = [serial(at[-1], p.columns, sequence_of(stores))]
    statements += [stored(j, imm(k), zero) for j in range(p.bytes) for k in range(p.columns, width)]
    behind = list[Stmt]()
    if exponent is not None:
        statements.append(store(held.exponents, cast(exponent, "int32"), block))
        behind += [store(held.exponents, imm(0), imm(k)) for k in range(p.blocks, p.filled)]
    if p.sums:
        statements = [serial(block, p.blocks, sequence_of(statements))]
    behind += [store(copy, zero, imm(j * p.size + k)) for j in range(p.bytes) for k in range(p.blocks * width, p.size)]
    return [*statements, *behind]


def dot_products(p: Product, lanes: int, held: Buffers) -> list[Stmt]:
    """total[n] for every row of the weight: strips of `lanes` rows, several at a time, whose sums stay in registers."""
    strips, statements, first = -(-p.rows // lanes), list[Stmt](), 0
    while first < strips:
        count = min(MOST_ACCUMULATORS // len(p.pairs), strips - first)
        repeats = (strips - first) // count
        variable = tirx.Var("group", "int32")
        sums = _registers(count * len(p.pairs) * lanes, "int32", "acc")
        totals = _registers(count * lanes, str(held.total.dtype), "scaled") if p.sums else None
        strip = tirx.Add(tirx.Mul(variable, imm(count)), imm(first))
        body = _Strips(p, lanes, count, strip, held, sums, totals).body()
        statements.append(serial(variable, repeats, body))
        first += repeats * count
    return statements


@dataclass(frozen=True)
class _Strips:
    """`count` strips, from strip `first` on, over all columns.

    sums: for every strip and pair; totals: of these, times the blocks' multipliers, where there are any.
    """

    p: Product
    lanes: int
    count: int
    first: Expr
    held: Buffers
    sums: Buffer
    totals: Buffer | None

    def body(self) -> Stmt:
        p, every = self.p, range(self.count)
        if self.totals is None:
            columns = tirx.Var("columns", "int32")
            loop = serial(columns, p.quads // p.unrolled, self.steps(columns, range(p.unrolled)))
            starts = [self.read(self.held.start, self.row(j)) for j in every]
            after = [self.write(self.held.total, self.row(j), self.summed(j)) for j in every]
            return sequence_of([tirx.AllocBuffer(self.sums), *self.started(starts), loop, *after])
        before = [self.write(self.totals, imm(j * self.lanes), self.read(self.held.start, self.row(j))) for j in every]
        shared = tirx.Var("shared", "int32")
        blocks = [s for i in range(p.together) for s in self.block(shared, i)]
        loop = serial(shared, p.filled // p.together, sequence_of(blocks))
        after = [self.write(self.held.total, self.row(j), self.read(self.totals, imm(j * self.lanes))) for j in every]
        return sequence_of([tirx.AllocBuffer(self.sums), tirx.AllocBuffer(self.totals), *before, loop, *after])

    def block(self, shared: Expr, i: int) -> list[Stmt]:
        """The i-th of the blocks that share vectors: its sums, and what they add to the totals."""
        p, block = self.p, tirx.Add(tirx.Mul(shared, imm(self.p.together)), imm(i))
        statements = self.started([self.begun(block, j) for j in range(self.count)])
        if (groups := p.quads // p.unrolled) > 1:
            columns = tirx.Var("columns", "int32")
            group = tirx.Add(tirx.Mul(shared, imm(groups)), columns)
            statements.append(serial(columns, groups, self.steps(group, range(p.unrolled))))
        else:
            statements.append(self.steps(shared, range(i * p.quads, (i + 1) * p.quads)))
        return statements + [s for j in range(self.count) for s in self.scaled(block, j)]

    def scaled(self, block: Expr, j: int) -> list[Stmt]:
        """A strip's sums of a block, times its multipliers, are added; in 64 bits, where nothing wraps."""
        assert self.totals is not None
        wide, statements = f"int64x{self.lanes}", list[Stmt]()
        if self.held.parts is not None:
            rows = tirx.Ramp(self.row(j), imm(1), imm(self.lanes))
            statements.append(store(self.held.parts, self.summed(j), block, rows))
        factor = self.read(self.held.multipliers, self.of_block(block, j))
        if self.p.exponents:
            own = str(self.totals.dtype)
            by = tirx.Broadcast(cast(load(self.held.exponents, block), own), imm(self.lanes))
            factor = tirx.shift_left(tirx.Cast(f"{own}x{self.lanes}", factor), by)
        factor = tirx.Cast(wide, factor)
        total = tirx.Cast(wide, self.read(self.totals, imm(j * self.lanes)))
        total = tirx.Add(total, tirx.Mul(tirx.Cast(wide, self.summed(j)), factor))
        total = total if self.p.wide else tirx.Cast(f"int32x{self.lanes}", total)
        return [*statements, self.write(self.totals, imm(j * self.lanes), total)]

    def begun(self, block: Expr, j: int) -> Expr:
        """Where a strip's sums of a block start: as much lower as x + 128 makes them too large, or at 0."""
        if self.held.begun is None:
            return tirx.Broadcast(imm(0), imm(self.lanes))
        sums = tirx.Cast(f"int32x{self.lanes}", self.read(self.held.begun, self.of_block(block, j)))
        return tirx.shift_left(sums, tirx.Broadcast(imm(8 * self.p.bytes - 1), imm(self.lanes)))

    def started(self, starts: list[Expr]) -> list[Stmt]:
        """The sums: the lowest of each strip from its start, the others from 0."""
        zero, stores = tirx.Broadcast(imm(0), imm(self.lanes)), list[Stmt]()
        for j in range(self.count):
            for i in range(len(self.p.pairs)):
                stores.append(self.write(self.sums, self.place(j, i), zero if i else starts[j]))
        return stores

    def steps(self, group: Expr, quads: range) -> Stmt:
        """What `quads` of the group of columns add to the sums."""
        p, lanes, steps = self.p, self.lanes, list[Stmt]()
        size, kind = QUAD * lanes, f"int32x{lanes}"
        for u in quads:
            quad = tirx.Add(tirx.Mul(group, imm(p.unrolled)), imm(u))
            bytes_of_x = []
            for row in range(p.bytes):
                at = tirx.Add(tirx.Mul(quad, imm(QUAD)), imm(row * p.size))
                four = tirx.reinterpret("int32", _vector(self.held.copy, at, QUAD))
                bytes_of_x.append(tirx.reinterpret(f"int8x{size}", tirx.Broadcast(four, imm(lanes))))
            for j in range(self.count):
                strip, groups = tirx.Add(self.first, imm(j)), imm(p.size // (QUAD * p.unrolled))
                codes = _codes(p, size, self.held.packed, tirx.Add(tirx.Mul(strip, groups), group), u)
                limbs = [_integers(p, lanes, codes, self.held, i) for i in range(p.limbs)]
                for i, (limb, byte) in enumerate(p.pairs):
                    now = self.read(self.sums, self.place(j, i))
                    added = tirx.call_llvm_pure_intrin(kind, DOT[lanes], now, bytes_of_x[byte], limbs[limb])
                    steps.append(self.write(self.sums, self.place(j, i), added))
        return sequence_of(steps)

    def summed(self, j: int) -> Expr:
        """The sums of a strip as one, modulo 2^32; added in 64 bits, where nothing wraps."""
        pairs = self.p.pairs
        if len(pairs) == 1:
            return self.read(self.sums, self.place(j, 0))
        wide, total = f"int64x{self.lanes}", None
        for i, pair in enumerate(pairs):
            part = tirx.Cast(wide, self.read(self.sums, self.place(j, i)))
            part = tirx.shift_left(part, tirx.Broadcast(imm(self.p.shift(pair), "int64"), imm(self.lanes)))
            total = part if total is None else tirx.Add(total, part)
        return tirx.Cast(f"int32x{self.lanes}", total)

    def place(self, j: int, pair: int) -> Expr:
        return imm((j * len(self.p.pairs) + pair) * self.lanes)

    def row(self, j: int) -> Expr:
        """The first row of a strip."""
        return tirx.Mul(tirx.Add(self.first, imm(j)), imm(self.lanes))

    def of_block(self, block: Expr, j: int) -> Expr:
        """Where a strip's constants of a block are."""
        strip = tirx.Add(self.first, imm(j))
        return tirx.Mul(tirx.Add(tirx.Mul(strip, imm(self.p.filled)), block), imm(self.lanes))

    def read(self, buffer: Buffer, at: Expr) -> Expr:
        return _vector(buffer, at, self.lanes)

    def write(self, buffer: Buffer, at: Expr, value: Expr) -> Stmt:
        return store(buffer, value, tirx.Ramp(at, imm(1), imm(self.lanes)))


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
    if held.numbers is None:
        sign = 1 << (bits - 1)
        signed = codes if bits == 8 else tirx.Sub(tirx.bitwise_xor(codes, _every(sign, size)), _every(sign, size))
        return tirx.reinterpret(kind, signed)
    high, found = tirx.shift_right(codes, _every(4, size)), None
    low = tirx.reinterpret(kind, tirx.bitwise_and(codes, _every(15, size)) if p.lookups > 1 else codes)
    for i in range(p.lookups):
        numbers = _vector(held.numbers, imm((limb * p.lookups + i) * size), size)
        looked = tirx.call_llvm_pure_intrin(kind, LOOKUP[lanes], numbers, low)
        found = looked if found is None else tirx.Select(tirx.EQ(high, _every(i, size)), looked, found)
    return found


def _vector(buffer: Buffer, base: Expr, size: int) -> Expr:
    return load(buffer, tirx.Ramp(base, imm(1), imm(size)))


def _every(value: int, size: int) -> Expr:
    return tirx.Broadcast(imm(value, "uint8"), imm(size))


def _registers(size: int, dtype: str, name: str) -> Buffer:
    return tirx.decl_buffer((size,), dtype, name, data_alignment=4)
