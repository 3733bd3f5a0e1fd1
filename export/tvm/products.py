"""Matrix products of bytes by constant weights: which kernels are one, and how its constants lie in memory.

x enters as x + 128, so the sum starts 128 * sum(w) lower.
Of 16 bits, x is two bytes, 256 * high + low; a minifloat that no byte holds is two limbs, 128 * high + low; each pair
has a sum of its own.
Weights of fewer bits are stored as planes of 4, 2 and 1 bits, whose vectors hold as many quads as a byte has parts;
those whose codes take too many lookups are stored as the bytes that they are.
Of weights in blocks, the sums of a step are a kernel of their own and the next one's operand: both are one product,
also where sums are shifted by exponents of the operand's blocks.  Then the sum of each block starts lower.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isobit.quant.expr.interval import Interval
from isobit.quant.ops.blocks import scale_block
from isobit.quant.ops.matmul import product
from isobit.quant.program import Array, Node
from isobit.quant.storage import Storage
from isobit.targets.nest import (
    Accumulate,
    Accumulator,
    Apply,
    Element,
    Kernel,
    Let,
    Literal,
    Local,
    Loop,
    Nest,
    Statement,
    Store,
)

INT8, INT16, INT32 = (Interval(-(1 << (bits - 1)), (1 << (bits - 1)) - 1) for bits in (8, 16, 32))

QUAD = 4
LIMB = 7
"""Bits of the low limb of a weight that takes two."""

SHIFTS = Interval(0, 31)
"""Exponents that a sum of 32 bits may be shifted by."""

TWO_LIMBS = Interval(-(127 << LIMB), 127 << LIMB)

MOST_LOOKED_UP = 6
"""Bits of the codes that are looked up: a table of 16 numbers serves four of them."""

BYTES = Storage(8, signed=True)

LEAST = 16
"""Rows and columns below which plain loops are as fast."""


@dataclass(frozen=True)
class Sums:
    """The kernel `for n, a: s[n, a] = sum(c: x[a, c] * weight[n, a, c])` before a product in blocks.

    multipliers: (N, A), what the product takes each sum times; row, block: the names of n and a; value: the sum's;
    rest: what follows it, without the store.  exponents: at a, by which it is shifted.
    """

    kernel: Kernel
    multipliers: Array
    row: str
    block: str
    value: str
    rest: tuple[Statement, ...]
    exponents: Element | None


@dataclass(frozen=True)
class Product:
    """A kernel `for n: y[n] = start[n] + sum(a: multiplier[n, a] * sum(c: x[a, c] * weight[n, a, c])); then rest`.

    x is of 8 or 16 bits.  Without `sums` it is one block, times 1, and the index of x is c alone.
    weight: (N, A, C), start: (N,), their values; storage: of the weight; bytes: of an element of x; row: the name of n;
    wide: whether y takes 64 bits.
    """

    node: Node
    x: Element
    weight: Array
    storage: Storage
    bytes: int
    start: Array
    wide: bool
    row: str
    rest: tuple[Statement, ...]
    sums: Sums | None = None

    @property
    def rows(self) -> int:
        return len(self.weight)

    @property
    def blocks(self) -> int:
        return int(self.weight.shape[1])

    @property
    def columns(self) -> int:
        """Of a block."""
        return int(self.weight.shape[2])

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
        """Of a block's columns, with those that only fill vectors: whole groups of `unrolled`, or a part of one."""
        quads = -(-self.columns // QUAD)
        if self.blocks > 1 and quads < self.unrolled:
            return 1 << (quads - 1).bit_length()
        return -(-quads // self.unrolled) * self.unrolled

    @property
    def together(self) -> int:
        """Blocks whose codes share vectors."""
        return max(self.unrolled // self.quads, 1)

    @property
    def filled(self) -> int:
        """Blocks, with those that only fill vectors."""
        return -(-self.blocks // self.together) * self.together

    @property
    def size(self) -> int:
        """Columns of all blocks, with those that only fill vectors."""
        return self.filled * self.quads * QUAD

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

    @property
    def exponents(self) -> Element | None:
        """Of the blocks of x."""
        return self.sums.exponents if self.sums else None

    @property
    def lowered(self) -> Array:
        """By how much the sum of each block is too large, (N, A): 0 where it starts lower."""
        return np.asarray((128 << 8 * (self.bytes - 1)) * self.weight.sum(2) * (self.exponents is None))


def products(nest: Nest) -> dict[str, Product]:
    """By the name of their kernels."""
    return {k.name: p for k in nest.kernels if (p := product_of(k, nest))}


def product_of(kernel: Kernel, nest: Nest) -> Product | None:
    """The kernel, with the one before it if that makes its sums of blocks, as a product of constant weights, if it is
    one and large enough."""
    constant, node = nest.program.constant, kernel.group.head
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
    if (w.indices, start.indices) != ((n, k), (n,)) or not {w.value, start.value} <= set(constant):
        return None
    value, sums = w.value, None
    if x.indices == (n, k):
        found = _sums(x.value, constant[w.value].array, kernel, nest)
        if found is None or nest.range(w.value) not in INT32:
            return None
        sums, x, value = found
    elif x.indices != (k,):
        return None
    stored = constant[value]
    weight, storage = stored.array, stored.storage
    if storage.is_coded and storage.bits > MOST_LOOKED_UP and nest.range(value) in INT8:
        storage = BYTES
    looked_up = storage.is_coded and storage.bits <= MOST_LOOKED_UP and storage.decoder.range in TWO_LIMBS
    if not (storage.signed and (storage.decoder.range in INT8 or looked_up)):
        return None
    if nest.range(x.value) not in INT16 or min(len(weight), weight[0].size) < LEAST:
        return None
    weight, bytes_of_x = weight.reshape(len(weight), -1, weight.shape[-1]), 1 if nest.range(x.value) in INT8 else 2
    wide = known not in INT32
    if wide and not (sums and (sums.exponents or ((1 << 8 * bytes_of_x) - 1) * _largest(weight) in INT32)):
        return None
    return Product(node, x, weight, storage, bytes_of_x, constant[start.value].array, wide, n, tuple(rest), sums)


def _largest(weight: Array) -> int:
    """Sum of the magnitudes of a block."""
    return int(np.abs(weight).sum(2).max())


def _sums(value: str, multipliers: Array, reader: Kernel, nest: Nest) -> tuple[Sums, Element, str] | None:
    """The kernel right before `reader` that makes `value`, its operand and the name of its weights, if it sums blocks,
    or scales these sums, for `reader` only."""
    place = nest.kernels.index(reader)
    kernel, constant = nest.kernels[place - 1], nest.program.constant
    node = kernel.group.head
    if place == 0 or node is None or node.spec.define is not product or kernel.writes != (value,):
        return None
    if value in nest.program.outputs or any(value in k.reads for k in nest.kernels if k is not reader):
        return None
    match kernel.body:
        case (
            Loop(
                n,
                _,
                False,
                (
                    Loop(
                        a,
                        _,
                        False,
                        (
                            Accumulator(_, known, Literal(0)),
                            Loop(c, _, True, (Accumulate(_, term),)),
                            *after,
                        ),
                    ),
                ),
            ),
        ):
            pass
        case _:
            return None
    x, w = term.operands
    if not (isinstance(x, Element) and isinstance(w, Element) and w.value in constant):
        return None
    if (x.indices, w.indices) != ((a, c), (n, a, c)) or known not in INT32:
        return None
    rest, exponents = tuple(s for s in after if not isinstance(s, Store)), None
    if value != node.output:
        exponents = _exponents(rest, node.output, a)
        if exponents is None or nest.range(exponents.value) not in SHIFTS:
            return None
    return Sums(kernel, multipliers, n, a, node.output, rest, exponents), x, w.value


def _exponents(rest: tuple[Statement, ...], value: str, a: str) -> Element | None:
    """Those at `a`, if all that `rest` makes is `value` shifted by them."""
    match [s.apply for s in rest if isinstance(s, Let)]:
        case [Apply(node, operands=(Local(shifted), Element(_, (at,)) as found))] if (shifted, at) == (value, a):
            return found if node.spec.define is scale_block else None
        case _:
            return None


def constants(p: Product, lanes: int) -> dict[str, npt.NDArray[np.integer]]:
    """By the names of `vnni.Buffers`: codes, where totals start, the numbers of looked up codes, the multipliers of
    blocks, and, where these have exponents, minus the sums of their weights."""
    found: dict[str, npt.NDArray[np.integer]] = {"packed": packed(p, lanes), "start": folded_start(p, lanes)}
    if p.lookups:
        found["numbers"] = tables(p, lanes)
    if p.sums:
        found["multipliers"] = by_blocks(p, p.sums.multipliers, lanes)
    if p.exponents:
        found["begun"] = by_blocks(p, -p.weight.sum(2), lanes)
    return found


def packed(p: Product, lanes: int) -> npt.NDArray[np.uint8]:
    """Codes in the order in which they are used, flat: strips of `lanes` rows, groups of `unrolled` quads of columns,
    planes, vectors of (rows in the strip, 4)."""
    codes = p.storage.codes(p.weight)
    fill = (-p.rows % lanes, p.filled - p.blocks, p.quads * QUAD - p.columns)
    codes = np.pad(codes, [(0, more) for more in fill])
    strips = codes.reshape(-1, lanes, p.size // (QUAD * p.unrolled), p.unrolled, QUAD).transpose(0, 2, 3, 1, 4)
    vectors = []
    for width, low in p.planes:
        parts = 8 // width
        plane = (strips >> low & (1 << width) - 1).reshape(*strips.shape[:2], p.unrolled // parts, parts, lanes * QUAD)
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


def by_blocks(p: Product, values: Array, lanes: int) -> npt.NDArray[np.integer]:
    """(N, A), flat: strips of `lanes` rows, blocks, rows in the strip; 0 where they only fill vectors."""
    found = np.pad(values, ((0, -p.rows % lanes), (0, p.filled - p.blocks)))
    dtype = np.result_type(np.min_scalar_type(found.min()), np.min_scalar_type(found.max()))
    return found.astype(dtype).reshape(-1, lanes, p.filled).transpose(0, 2, 1).reshape(-1)


def folded_start(p: Product, lanes: int) -> npt.NDArray[np.signedinteger]:
    """Where each total starts, modulo 2^32 or, if wide, 2^64, one for each row of `packed`."""
    factors = p.sums.multipliers if p.sums else 1
    start = np.pad(p.start - (factors * p.lowered).sum(1), (0, -p.rows % lanes))
    return start if p.wide else start.astype(np.uint64).astype(np.uint32).view(np.int32)
