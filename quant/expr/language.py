"""What a definition may call, beside Python's `+ - * >> << & | ^` and comparisons.

Rules of the language.  A definition never branches on a value.  A comparison gives a condition, which only `select`
takes; `select` evaluates both arms.  Shift amounts are proved within 0..62, every intermediate value within 64 bits.
"""

from __future__ import annotations

from typing import Any

from isobit.quant.expr.operators import Operators
from isobit.quant.expr.primitives import PRIMITIVES, domain_of


def apply(primitive: str, *args: Any) -> Any:
    """One primitive, in the interpretation that its operands ask for."""
    for a in args:
        if isinstance(a, Operators):
            return a.apply(primitive, *args)
    return PRIMITIVES[primitive](domain_of(*args), *args)


def clip(x: Any, lo: Any, hi: Any) -> Any:
    """x limited to [lo, hi], lo <= hi."""
    return apply("clip", x, lo, hi)


def select(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b."""
    return apply("select", condition, a, b)


def equal(a: Any, b: Any) -> Any:
    """The condition a == b (the operator is Python's own identity of symbols)."""
    return apply("eq", a, b)


def floordiv(a: Any, b: Any) -> Any:
    """a / b rounded down; a is proved >= 0 and b > 0.  Slow on every target: prefer a table and Newton steps."""
    return apply("floordiv", a, b)


def clz(x: Any, width: int) -> Any:
    """Leading zeros of x >= 0 seen as an unsigned number of `width` bits; `width` for 0."""
    return apply("clz", x, width)


def table(values: tuple[int, ...], index: Any) -> Any:
    """values[index]; the index is proved to be inside."""
    return apply("table", values, index)


def bound(x: Any, lo: int, hi: int) -> Any:
    """x, and a fact that intervals cannot show: lo <= x <= hi.  `check` refuses a Program with an unproved bound."""
    return apply("bound", x, lo, hi)
