"""How constants are stored: codes of few bits, one after another, from the lowest bit of the first byte on.

A code is the integer itself in two's complement; where the constant has a mantissa, a minifloat: sign, exponent,
mantissa, with subnormals; where its elements are -1 and 1, one bit, 0 and 1; where they are sums of two signed powers
of two, signs and places of both in 7 bits.  So four-bit integers and E2M1 take half a byte, ternary weights a quarter,
binary ones an eighth, E4M3 one byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from isobit.quant.errors import CheckError
from isobit.quant.expr import clip, select
from isobit.quant.expr.interval import Interval
from isobit.quant.expr.symbols import Traced, trace

if TYPE_CHECKING:
    from isobit.quant.program import Constant, IntType

WIDEST = 16
"""Bits of the widest codes that are packed."""


def two_complement(code: Any, *, bits: int) -> Any:
    """The signed integer of a code."""
    return (code ^ (1 << (bits - 1))) - (1 << (bits - 1))


def unsigned(code: Any, *, bits: int) -> Any:
    """The integer of a code without a sign."""
    return code


def sign(code: Any) -> Any:
    """1 where the code is 1, -1 where it is 0."""
    return (code << 1) - 1


def minifloat(code: Any, *, bits: int, mantissa: int, exponents: int) -> Any:
    """The number of a code of sign, exponent and mantissa, in units of the smallest one."""
    size = magnitude(code & ((1 << (bits - 1)) - 1), mantissa=mantissa, exponents=exponents)
    return select(code < 1 << (bits - 1), size, 0 - size)


def magnitude(code: Any, *, mantissa: int, exponents: int) -> Any:
    """The number of a code of exponent, at most `exponents`, and mantissa, in units of the smallest one."""
    exponent = code >> mantissa
    lead = select(exponent < 1, 0, 1 << mantissa)
    shift = clip(exponent - 1, 0, exponents - 1)
    return (lead + (code & ((1 << mantissa) - 1))) << shift


def shifted(x: Any, code: Any, *, bits: int, exponents: int) -> Any:
    """x times the power of two, or the zero, of a code of sign and exponent, without a multiplier."""
    exponent = code & ((1 << (bits - 1)) - 1)
    size = select(exponent < 1, 0, x << clip(exponent - 1, 0, exponents - 1))
    return select(code < 1 << (bits - 1), size, 0 - size)


def digits(code: Any) -> Any:
    """The sum of the two signed powers of two of a code, or 0."""
    return shifted_twice(1, code)


def shifted_twice(x: Any, code: Any) -> Any:
    """x times the sum of the two signed powers of two of a code, or times 0, without a multiplier.

    From the lowest bit on: 3 bits of the first place, its sign, the sign of the second place, and 2 bits of how far
    that is above the first one, less 1, modulo 8: so each pair of places has a code.  Code 0 is 0: 3 is also 4 - 1.
    """
    opposite = 0 - x
    place = (code + (code >> 5) + 1) & 7
    first = select((code & 8) < 1, x, opposite) << (code & 7)
    second = select((code & 16) < 1, x, opposite) << place
    return select(code < 1, 0, first + second)


@dataclass(frozen=True)
class Storage:
    """Codes of `bits` bits; signed or not; of minifloats where `mantissa` is not None; of -1 and 1 without `zero`.

    exponents: the highest that is in use; a code of a higher one is read as that.  digits: whether they are of sums of
    two signed powers of two.
    """

    bits: int
    signed: bool
    mantissa: int | None = None
    exponents: int = 0
    zero: bool = True
    digits: bool = False

    @property
    def name(self) -> str:
        """As a word: i4, u8, s1, csd8k2, e4m3, and e4m0u where there is no sign."""
        if not self.zero:
            return f"s{self.bits}"
        if self.digits:
            return "csd8k2"
        if self.mantissa is None:
            return f"{'i' if self.signed else 'u'}{self.bits}"
        return f"e{self.bits - self.signed - self.mantissa}m{self.mantissa}{'' if self.signed else 'u'}"

    @property
    def is_coded(self) -> bool:
        """Whether a code is something else than the integer in two's complement."""
        return self.mantissa is not None or self.digits or not self.zero

    @property
    def product(self) -> tuple[Callable[..., Any], dict[str, int]] | None:
        """The definition that gives x times a code's number by shifts, where one does, and its parameters."""
        if self.digits:
            return shifted_twice, {}
        if self.mantissa == 0 and self.signed:
            return shifted, {"bits": self.bits, "exponents": self.exponents}
        return None

    @property
    def straddles(self) -> bool:
        """Whether a code may lie in several bytes."""
        return 8 % self.bits != 0

    @property
    def number(self) -> tuple[Callable[..., Any], dict[str, int]]:
        """The definition that gives a code's integer, and its parameters."""
        if not self.zero:
            return sign, {}
        if self.digits:
            return digits, {}
        if self.mantissa is None:
            return two_complement if self.signed else unsigned, {"bits": self.bits}
        own = {"mantissa": self.mantissa, "exponents": self.exponents}
        return (minifloat, {"bits": self.bits, **own}) if self.signed else (magnitude, own)

    @cached_property
    def decoder(self) -> Traced:
        """`number`, recorded: what targets print."""
        define, params = self.number
        return trace(define, [Interval(0, (1 << self.bits) - 1)], params)

    def decoded(self, codes: npt.ArrayLike) -> npt.NDArray[np.int64]:
        define, params = self.number
        return np.asarray(define(np.asarray(codes, np.int64), **params))

    def codes(self, integers: npt.NDArray[np.int64], strict: bool = True) -> npt.NDArray[np.int64]:
        """The code of every integer; of zero the positive one.

        Where there is none, the one of a neighbour, or, if strict, CheckError.
        """
        if not self.is_coded:
            return integers & ((1 << self.bits) - 1)
        every, order = _numbers(self)
        place = np.clip(np.searchsorted(every, integers), 0, len(every) - 1)
        if strict and (wrong := every[place] != integers).any():
            raise CheckError(f"{integers[wrong][0]} is no number of {self.name}")
        return order[place]


@cache
def _numbers(storage: Storage) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All numbers of a format in ascending order, and their codes."""
    numbers = storage.decoded(np.arange(1 << storage.bits))
    order = np.argsort(numbers, kind="stable")
    return numbers[order], order


def storage(elem: IntType, mantissa: int | None = None) -> Storage:
    """How integers of this type are stored; `mantissa` where they are minifloats."""
    if elem.digits:
        return Storage(7, signed=True, digits=True)
    if mantissa is None:
        return Storage(elem.bits, elem.signed, zero=elem.zero)
    exponents = elem.bits - elem.signed - mantissa
    return Storage(elem.signed + exponents.bit_length() + mantissa, elem.signed, mantissa, exponents)


def tightest(values: npt.NDArray[np.int64]) -> tuple[IntType, int | None]:
    """Element type and mantissa with which these integers take the fewest bits."""
    from isobit.quant.program import IntType

    lo, hi = int(values.min()), int(values.max())
    best: tuple[IntType, int | None] = IntType(Interval(lo, hi).bits), None
    elem = IntType(1 + max(-lo, hi).bit_length())
    for mantissa in range(min(7, elem.bits - 2)):
        s = storage(elem, mantissa)
        if s.bits < storage(*best).bits and (s.decoded(s.codes(values, strict=False)) == values).all():
            best = elem, mantissa
    return best


def is_packed(c: Constant) -> bool:
    """Whether a constant takes less room as codes than in a machine integer for every element."""
    return c.storage.bits <= WIDEST and c.storage.bits < c.type.elem.container


def stored_bytes(c: Constant) -> int:
    """Bytes of a constant on every target but `hls`, whose memories have the width of a code."""
    return packed_bytes(c.storage, c.type.size) if is_packed(c) else len(c.data)


def packed_bytes(s: Storage, size: int) -> int:
    """Bytes of `size` codes, and of what the read of the last one touches behind them."""
    return -(-size * s.bits // 8) + touched(s) - 1


def packed(c: Constant) -> npt.NDArray[np.uint8]:
    """The codes of a constant, row-major, with as many bytes behind them as a read of the last one touches."""
    s = c.storage
    bits = (s.codes(c.array.ravel())[:, None] >> np.arange(s.bits)) & 1
    data = np.packbits(bits.astype(np.uint8), bitorder="little")
    return np.pad(data, (0, touched(s) - 1))


def touched(s: Storage) -> int:
    """Bytes that the read of one code touches, from the one with its lowest bit on."""
    return 1 + s.straddles + (s.bits > 9)


def unpacked(s: Storage, data: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.int64]:
    """The integers of `size` codes: the inverse of `packed`."""
    bits = np.unpackbits(data, bitorder="little")[: size * s.bits].reshape(size, s.bits)
    return s.decoded(bits.astype(np.int64) @ (1 << np.arange(s.bits)))
