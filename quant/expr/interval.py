"""Integer intervals and how every primitive maps them.  Sound: the result holds every value that can occur."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from isobit.quant.errors import ExprError
from isobit.quant.expr.operators import Operators
from isobit.quant.expr.primitives import INTS, PRIMITIVES

MAX_SHIFT = 62


@dataclass(frozen=True)
class Interval(Operators):
    """All integers from `lo` to `hi`, both included."""

    lo: int
    hi: int

    def __post_init__(self) -> None:
        if self.lo > self.hi:
            raise ExprError(f"empty interval [{self.lo}, {self.hi}]")

    @property
    def bits(self) -> int:
        """Width of the two's complement integer that holds it."""
        return max((v if v >= 0 else ~v).bit_length() for v in (self.lo, self.hi)) + 1

    @property
    def size(self) -> int:
        return self.hi - self.lo + 1

    def __contains__(self, other: object) -> bool:
        if isinstance(other, Interval):
            return self.lo <= other.lo and other.hi <= self.hi
        return isinstance(other, int) and self.lo <= other <= self.hi

    def join(self, other: Interval) -> Interval:
        """The smallest interval that holds both."""
        return Interval(min(self.lo, other.lo), max(self.hi, other.hi))

    def meet(self, other: Interval) -> Interval:
        """What both hold."""
        return Interval(max(self.lo, other.lo), min(self.hi, other.hi))

    def apply(self, primitive: str, *args: Any) -> Interval:
        if primitive == "table":
            values, index = args
            return table_interval(values, interval_of(index))
        if primitive == "bound":
            x, lo, hi = args
            return interval_of(x).meet(Interval(lo, hi))
        operands = [interval_of(a) for a in args]
        known = INTERVALS[primitive](*operands)
        if all(o.lo == o.hi for o in operands):
            exact = int(PRIMITIVES[primitive](INTS, *(o.lo for o in operands)))
            return Interval(exact, exact)
        return known

    def __str__(self) -> str:
        return f"[{self.lo}, {self.hi}]"


def interval_of(x: Interval | int) -> Interval:
    return x if isinstance(x, Interval) else Interval(int(x), int(x))


def _corners(f: Callable[[int, int], int]) -> Callable[[Interval, Interval], Interval]:
    """For f monotone in each operand while the other is fixed: its extremes are at the corners."""

    def rule(a: Interval, b: Interval) -> Interval:
        values = [f(p, q) for p in (a.lo, a.hi) for q in (b.lo, b.hi)]
        return Interval(min(values), max(values))

    return rule


def _shift(f: Callable[[int, int], int]) -> Callable[[Interval, Interval], Interval]:
    def rule(a: Interval, n: Interval) -> Interval:
        if n.lo < 0 or n.hi > MAX_SHIFT:
            raise ExprError(f"shift amount in {n} is outside 0..{MAX_SHIFT}")
        return _corners(f)(a, n)

    return rule


def _full(a: Interval, b: Interval) -> Interval:
    w = max(a.bits, b.bits)
    return Interval(-(1 << (w - 1)), (1 << (w - 1)) - 1)


def _and(a: Interval, b: Interval) -> Interval:
    if a.lo >= 0 and b.lo >= 0:
        return Interval(0, min(a.hi, b.hi))
    if b.lo >= 0:
        return Interval(0, b.hi)
    if a.lo >= 0:
        return Interval(0, a.hi)
    return _full(a, b)


def _or_xor(a: Interval, b: Interval) -> Interval:
    full = _full(a, b)
    return Interval(0, full.hi) if a.lo >= 0 and b.lo >= 0 else full


def _flag(surely: bool, possibly: bool) -> Interval:
    return Interval(int(surely), int(possibly))


def _select(c: Interval, a: Interval, b: Interval) -> Interval:
    return a if c.lo == 1 else b if c.hi == 0 else a.join(b)


def _clip(x: Interval, lo: Interval, hi: Interval) -> Interval:
    if lo.hi > hi.lo:
        raise ExprError(f"clip: the lower limit {lo} can pass the upper limit {hi}")
    return Interval(max(lo.lo, min(x.lo, hi.lo)), max(lo.hi, min(x.hi, hi.hi)))


def _floordiv(a: Interval, b: Interval) -> Interval:
    if b.lo <= 0:
        raise ExprError(f"floordiv: divisor in {b} is not proved positive")
    if a.lo < 0:
        raise ExprError(f"floordiv: dividend in {a} is not proved non-negative (C truncates, Python floors)")
    return _corners(lambda p, q: p // q)(a, b)


def _clz(x: Interval, width: Interval) -> Interval:
    if x.lo < 0 or x.hi.bit_length() > width.lo:
        raise ExprError(f"clz: operand in {x} does not fit {width.lo} unsigned bits")
    return Interval(width.lo - x.hi.bit_length(), width.hi - x.lo.bit_length())


def _mulh(a: Interval, b: Interval) -> Interval:
    if max(a.bits, b.bits) > 32:
        raise ExprError(f"mulh: operands in {a} and {b} do not both fit 32 bits")
    product = _corners(lambda p, q: p * q)(a, b)
    return Interval(product.lo >> 32, product.hi >> 32)


def table_interval(values: tuple[int, ...], index: Interval) -> Interval:
    if index.lo < 0 or index.hi >= len(values):
        raise ExprError(f"a table of {len(values)} is read at {index}")
    reach = values[index.lo : index.hi + 1]
    return Interval(min(reach), max(reach))


INTERVALS: dict[str, Callable[..., Interval]] = {
    "add": lambda a, b: Interval(a.lo + b.lo, a.hi + b.hi),
    "sub": lambda a, b: Interval(a.lo - b.hi, a.hi - b.lo),
    "mul": _corners(lambda p, q: p * q),
    "mulh": _mulh,
    "shl": _shift(lambda p, q: p << q),
    "shr": _shift(lambda p, q: p >> q),
    "and": _and,
    "or": _or_xor,
    "xor": _or_xor,
    "lt": lambda a, b: _flag(a.hi < b.lo, a.lo < b.hi),
    "le": lambda a, b: _flag(a.hi <= b.lo, a.lo <= b.hi),
    "eq": lambda a, b: _flag(a.lo == a.hi == b.lo == b.hi, a.lo <= b.hi and b.lo <= a.hi),
    "select": _select,
    "clip": _clip,
    "floordiv": _floordiv,
    "clz": _clz,
}
