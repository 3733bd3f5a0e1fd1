"""The whole language: each primitive's meaning, written once over any kind of value.

A `Domain` says what a kind of value (int, numpy array, torch tensor, z3 term) adds to Python's own operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

CONDITIONS = ("lt", "le", "eq")
"""Primitives whose result is a condition: it may feed `select` and nothing else."""


@dataclass(frozen=True)
class Domain:
    """One interpretation of the language.

    where(condition, a, b); clip(x, lo, hi); lookup(values, index); bit_length(x) for x >= 0, 0 for 0;
    divide(a, b) for a >= 0, b > 0, rounding down.
    """

    where: Callable[[Any, Any, Any], Any]
    clip: Callable[[Any, Any, Any], Any]
    lookup: Callable[[tuple[int, ...], Any], Any]
    bit_length: Callable[[Any], Any]
    divide: Callable[[Any, Any], Any]


PRIMITIVES: dict[str, Callable[..., Any]] = {
    "add": lambda d, a, b: a + b,
    "sub": lambda d, a, b: a - b,
    "mul": lambda d, a, b: a * b,
    "mulh": lambda d, a, b: (a * b) >> 32,
    "shl": lambda d, a, n: a << n,
    "shr": lambda d, a, n: a >> n,
    "and": lambda d, a, b: a & b,
    "or": lambda d, a, b: a | b,
    "xor": lambda d, a, b: a ^ b,
    "lt": lambda d, a, b: a < b,
    "le": lambda d, a, b: a <= b,
    "eq": lambda d, a, b: a == b,
    "select": lambda d, c, a, b: d.where(c, a, b),
    "clip": lambda d, x, lo, hi: d.clip(x, lo, hi),
    "floordiv": lambda d, a, b: d.divide(a, b),
    "clz": lambda d, x, width: width - d.bit_length(x),
    "table": lambda d, values, index: d.lookup(values, index),
    "bound": lambda d, x, lo, hi: x,
}

INTS = Domain(
    where=lambda c, a, b: a if c else b,
    clip=lambda x, lo, hi: lo if x < lo else hi if x > hi else x,
    lookup=lambda values, index: values[index],
    bit_length=lambda x: x.bit_length(),
    divide=lambda a, b: a // b,
)


@cache
def numpy_domain() -> Domain:
    """int64 arrays; every operand below 2^63 in magnitude, as `trace` proves."""
    import numpy as np

    def bit_length(x: Any) -> Any:
        x, n = np.asarray(x, np.int64), np.zeros(np.shape(x), np.int64)
        for k in (32, 16, 8, 4, 2, 1):
            big = x >= (1 << k)
            n, x = np.where(big, n + k, n), np.where(big, x >> k, x)
        return n + (x > 0)

    return Domain(
        where=np.where,
        clip=lambda x, lo, hi: np.minimum(np.maximum(x, lo), hi),
        lookup=lambda values, index: np.asarray(values, np.int64)[index],
        bit_length=bit_length,
        divide=np.floor_divide,
    )


@cache
def torch_domain() -> Domain:
    """int64 tensors, with the limits of `numpy_domain`."""
    import torch

    def bit_length(x: Any) -> Any:
        n = torch.zeros_like(x)
        for k in (32, 16, 8, 4, 2, 1):
            big = x >= (1 << k)
            n, x = torch.where(big, n + k, n), torch.where(big, x >> k, x)
        return n + (x > 0)

    def clip(x: Any, lo: Any, hi: Any) -> Any:
        x = torch.as_tensor(x)
        return torch.minimum(torch.maximum(x, torch.as_tensor(lo)), torch.as_tensor(hi))

    return Domain(
        where=lambda c, a, b: torch.where(torch.as_tensor(c), torch.as_tensor(a), torch.as_tensor(b)),
        clip=clip,
        lookup=lambda values, index: torch.tensor(values, dtype=torch.int64)[index],
        bit_length=bit_length,
        divide=lambda a, b: torch.div(a, b, rounding_mode="floor"),
    )


@cache
def z3_domain() -> Domain:
    """Signed bit vectors of one width, wide enough for every intermediate value: no wrap, so integers."""
    import z3

    def lift(x: Any, condition: Any) -> Any:
        return z3.BitVecVal(x, condition.arg(0).size()) if isinstance(x, int) else x

    def lookup(values: tuple[int, ...], index: Any) -> Any:
        width = index.size()
        result = z3.BitVecVal(values[-1], width)
        for i in range(len(values) - 2, -1, -1):
            result = z3.If(index == i, z3.BitVecVal(values[i], width), result)
        return result

    def bit_length(x: Any) -> Any:
        width = x.size()
        n = z3.BitVecVal(0, width)
        for k in range(width - 1):
            n = z3.If(x >= (1 << k), z3.BitVecVal(k + 1, width), n)
        return n

    return Domain(
        where=lambda c, a, b: z3.If(c, lift(a, c), lift(b, c)),
        clip=lambda x, lo, hi: z3.If(x < lo, lo, z3.If(x > hi, hi, x)),
        lookup=lookup,
        bit_length=bit_length,
        divide=lambda a, b: z3.UDiv(a, b),
    )


DOMAINS: dict[str, Callable[[], Domain]] = {"numpy": numpy_domain, "torch": torch_domain, "z3": z3_domain}
"""By the top-level package of a value's type: heavy packages load when their values appear."""


def domain_of(*args: Any) -> Domain:
    """The interpretation that some argument asks for; plain ints otherwise."""
    for a in args:
        package = type(a).__module__.partition(".")[0]
        if package in DOMAINS:
            return DOMAINS[package]()
    return INTS
