"""A search for integer programs of 2^-f, 1/(1 + e) and 1/sqrt(x): coefficients, shifts and table sizes.

Every shape of program below is tried with every choice of its shifts; from a real fit its coefficients are improved by
descent over the integers.  The error is over every input.  What a program costs is counted in its expression graph.
After AutoNumerics-Zero (Real et al., 2023), which evolves such programs in floats.

python -m isobit.tools.search_nonlinears writes the log beside this file and docs/search.md; it takes minutes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from isobit.quant.capture.graph import Floats
from isobit.quant.expr import table
from isobit.quant.expr.interval import Interval
from isobit.quant.expr.symbols import trace
from isobit.quant.ops.exp2 import FRAC, ONE, mantissa
from isobit.quant.ops.interpolate import interpolate
from isobit.quant.ops.requantize import rounding_shift
from isobit.quant.ops.rmsnorm import newton_rsqrt
from isobit.quant.ops.silu import newton_reciprocal
from isobit.quant.program import Array
from isobit.tools.cells import markdown_table

STORED = Path(__file__).with_name("search_nonlinears.json")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "search.md"

Coefficients = dict[str, int]

STRIDES = (256, 64, 16, 4, 1, 8, 2, 1)
"""Steps of the descent, one after the other."""

WEIGHTS = (1, 30, 1000)
"""Of what a program breaks, beside its error, in one descent each."""

MOST_MOVES = 60
"""Of the descent at one stride."""

BOX = {1: range(-12, 13), 2: range(-12, 13), 3: range(-5, 6)}
"""By how many coefficients move, how far around the end all are tried."""


class Entry(TypedDict):
    """products, reads, entries, operations: of the expression graph; reads and entries are those of tables.

    tried: programs that were evaluated.  error: relative, the largest.
    """

    coefficients: Coefficients
    error: float
    products: int
    reads: int
    entries: int
    operations: int
    tried: int


Table = dict[str, dict[str, Entry]]
"""function -> shape -> the best program of it."""


@dataclass(frozen=True)
class Shape:
    """define: the program.  start: coefficients of a real fit, to be improved.  choices: those that are enumerated."""

    define: Callable[..., Any]
    start: Coefficients
    choices: tuple[Coefficients, ...] = ({},)


@dataclass(frozen=True)
class Function:
    """Every input; the real values, at both ends where an input stands for a range; and what a program must keep.

    broken: by how many units a result breaks it.  limits: on products, reads and entries, of the program that is used.
    """

    inputs: Array
    real: tuple[Floats, ...]
    shapes: Mapping[str, Shape]
    limits: tuple[int, int, int]
    broken: Callable[[Array], int] = lambda found: 0


def linear(f: Any) -> Any:
    return ONE - (f >> 1)


def quadratic_by_shifts(f: Any, *, i: int, j: int, k: int) -> Any:
    q = (f * (ONE - f)) >> 15
    return ONE - (f >> 1) - (q >> i) - (q >> j) - (q >> k)


def quadratic(f: Any, *, a: int, b: int) -> Any:
    return ONE - rounding_shift(f * (a - ((f * b) >> 15)), 15)


def cubic_of_one_shift(f: Any, *, a: int, b: int, i: int) -> Any:
    return ONE - rounding_shift(f * (a - ((f * (b - (f >> i))) >> 15)), 15)


def cubic(f: Any, *, a: int, b: int, c: int) -> Any:
    return ONE - rounding_shift(f * (a - ((f * (b - ((f * c) >> 15))) >> 15)), 15)


def quartic_of_one_shift(f: Any, *, a: int, b: int, c: int, i: int) -> Any:
    return ONE - rounding_shift(f * (a - ((f * (b - ((f * (c - (f >> i))) >> 15))) >> 15)), 15)


def polynomial(e: Any, *, a: int, b: int, c: int) -> Any:
    return a - ((e * (b - ((e * c) >> 15))) >> 15)


def polynomial_of_two_shifts(e: Any, *, a: int, b: int, c: int, i: int, j: int) -> Any:
    return a - ((e * (b - ((e * (c - (e >> i) - (e >> j))) >> 15))) >> 15)


def line_and_newton(e: Any, *, a: int) -> Any:
    r = a - (e >> 1)
    return rounding_shift(r * (2 * ONE - (((ONE + e) * r) >> 15)), 15)


def reciprocal_of_table(e: Any, *, bits: int) -> Any:
    return table(tuple(round(ONE / (1 + (i + 0.5) / (1 << bits))) for i in range(1 << bits)), e >> (15 - bits))


def between(f: Callable[[float], float], bits: int, x: Any, width: int) -> Any:
    """f on [0, 1), ONE times, by 2^bits intervals and a line in each; x has `width` bits."""
    values = [round(ONE * f(i / (1 << bits))) for i in range((1 << bits) + 1)]
    return interpolate((*values, values[-1]), x, width - bits)


def exp2_of_lines(f: Any, *, bits: int) -> Any:
    return between(lambda x: 2.0**-x, bits, f, 15)


def reciprocal_of_lines(e: Any, *, bits: int) -> Any:
    return between(lambda x: 1 / (1 + x), bits, e, 15)


def rsqrt_of_table(m: Any, *, bits: int) -> Any:
    first = 1 << (bits - 2)
    values = tuple(min(32767, round((1 << 14) * ((i + 0.5) / (1 << bits)) ** -0.5)) for i in range(first, 1 << bits))
    return table(values, (m >> (16 - bits)) - first)


def rsqrt_of_lines(m: Any, *, bits: int) -> Any:
    """On [1/4, 1), shifted to begin at 0."""
    step, first = 1 << (16 - bits), 1 << (bits - 2)
    values = [min(32767, round((1 << 14) * (i / (1 << bits)) ** -0.5)) for i in range(first, (1 << bits) + 1)]
    return interpolate((*values, values[-1]), m - first * step, 16 - bits)


def _q15(**real: float) -> Coefficients:
    return {k: round(v * ONE) for k, v in real.items()}


def _each(name: str, values: range) -> tuple[Coefficients, ...]:
    return tuple({name: v} for v in values)


def _pairs(values: range) -> tuple[Coefficients, ...]:
    return tuple({"i": i, "j": j} for i, j in combinations(values, 2))


def _newton(bits: int) -> tuple[Coefficients, ...]:
    return tuple({"bits": bits, "at": at, "up": up} for at, up in product(range(20, 40), range(-2, 5)))


def _falls_from_one(found: Array) -> int:
    """2^-f is 1 at 0, never rises, and does not fall below 1/2, where the next octave begins."""
    return int(abs(found[0] - ONE) + max(np.diff(found).max(), 0) + max(ONE // 2 - found.min(), 0))


def functions() -> dict[str, Function]:
    f = np.arange(1 << FRAC) << (15 - FRAC)
    e, m = np.arange(ONE), np.arange(1 << 14, 1 << 16)
    exp2_shapes = {
        "a line": Shape(linear, {}),
        "a quadratic by shifts": Shape(
            quadratic_by_shifts, {}, tuple({"i": i, "j": j, "k": k} for i, j, k in combinations(range(2, 10), 3))
        ),
        "a quadratic": Shape(quadratic, _q15(a=0.672, b=0.172)),
        "a cubic, its lead one shift": Shape(cubic_of_one_shift, _q15(a=0.69, b=0.23), _each("i", range(3, 8))),
        "a cubic, its lead two shifts": Shape(mantissa, _q15(a=0.691, b=0.23), _pairs(range(3, 10))),
        "a cubic": Shape(cubic, _q15(a=0.6915, b=0.2302), _each("c", range(1200, 1341, 10))),
        "a quartic, its lead one shift": Shape(
            quartic_of_one_shift, _q15(a=0.693, b=0.2395, c=0.053), _each("i", range(5, 9))
        ),
        **{f"a table of {1 << k} and lines": Shape(exp2_of_lines, {"bits": k}, ({},)) for k in (4, 5, 6)},
    }
    reciprocal_shapes = {
        "a quadratic": Shape(polynomial, _q15(a=0.993, b=0.83, c=0.33)),
        "a cubic, its lead two shifts": Shape(
            polynomial_of_two_shifts, _q15(a=0.998, b=0.96, c=0.68), _pairs(range(1, 7))
        ),
        "a line and a Newton step": Shape(line_and_newton, _q15(a=0.96)),
        **{f"a table of {1 << k}": Shape(reciprocal_of_table, {"bits": k}) for k in (6, 8)},
        **{f"a table of {1 << k} and lines": Shape(reciprocal_of_lines, {"bits": k}) for k in (4, 5, 6)},
        **{f"a table of {1 << k} and a Newton step": Shape(newton_reciprocal, {}, _newton(k)) for k in (4, 5, 6, 7)},
    }
    rsqrt_shapes = {
        **{f"a table of {3 << (k - 2)}": Shape(rsqrt_of_table, {"bits": k}) for k in (8, 10)},
        **{f"a table of {3 << (k - 2)} and lines": Shape(rsqrt_of_lines, {"bits": k}) for k in (6, 7, 8)},
        **{f"a table of {3 << (k - 2)} and a Newton step": Shape(newton_rsqrt, {}, _newton(k)) for k in (5, 6, 7, 8)},
    }
    return {
        "2^-f": Function(f, (ONE * 2.0 ** (-f / ONE),), exp2_shapes, (2, 0, 0), _falls_from_one),
        "1/(1 + e)": Function(e, (ONE / (1 + e / ONE),), reciprocal_shapes, (2, 1, 64)),
        "1/sqrt(x)": Function(m, (2.0**22 / np.sqrt(m), 2.0**22 / np.sqrt(m + 1.0)), rsqrt_shapes, (3, 1, 192)),
    }


@dataclass
class Found:
    """The best program so far that keeps what it must, and how many were tried."""

    error: float = np.inf
    coefficients: Coefficients | None = None
    tried: int = 0

    def score(self, function: Function, shape: Shape, coefficients: Coefficients, weight: int) -> float:
        """The largest relative error, and `weight` units for each by which the program breaks what it must keep."""
        found = np.broadcast_to(shape.define(function.inputs, **coefficients), function.inputs.shape)
        error = max(float(np.abs(found / real - 1).max()) for real in function.real)
        broken = function.broken(found)
        self.tried += 1
        if not broken and error < self.error:
            self.error, self.coefficients = error, coefficients
        return error + weight * broken / ONE


def descend(found: Found, function: Function, shape: Shape, fixed: Coefficients, weight: int) -> None:
    """The best neighbour, again and again, at ever smaller strides, then all near the end; sizes of tables stay."""
    moving = [k for k in shape.start if k != "bits"]
    at = {**shape.start, **fixed}
    best = found.score(function, shape, at, weight)
    if not moving:
        return

    def near(reach: range) -> Iterator[Coefficients]:
        for step in product(reach, repeat=len(moving)):
            yield {**at, **{k: at[k] + by for k, by in zip(moving, step, strict=True)}}

    for stride in STRIDES:
        for _ in range(MOST_MOVES):
            scores = [
                (found.score(function, shape, c, weight), i, c)
                for i, c in enumerate(near(range(-stride, stride + 1, stride)))
            ]
            score, _, coefficients = min(scores, key=lambda s: s[:2])
            if score >= best:
                break
            best, at = score, coefficients
    for c in near(BOX[len(moving)]):
        found.score(function, shape, c, weight)


def costs(function: Function, shape: Shape, coefficients: Coefficients) -> tuple[int, int, int, int]:
    """Products, reads and entries of tables, and all operations of the expression graph."""
    known = Interval(int(function.inputs.min()), int(function.inputs.max()))
    nodes = [n for n in trace(shape.define, [known], coefficients).nodes if n.op not in ("var", "const", "bound")]
    tables = [n for n in nodes if n.op == "table"]
    entries = sum(len(v) for v in {n.values for n in tables})
    return sum(n.op == "mul" for n in nodes), len(tables), entries, len(nodes)


def search(progress: Callable[[str], None] = lambda _: None) -> Table:
    """The best program of every shape."""
    found: Table = {}
    for name, function in functions().items():
        found[name] = {}
        for label, shape in function.shapes.items():
            best = Found()
            for fixed, weight in product(shape.choices, WEIGHTS if shape.start.keys() - {"bits"} else WEIGHTS[:1]):
                descend(best, function, shape, fixed, weight)
            if best.coefficients is None:
                continue
            products, reads, entries, operations = costs(function, shape, best.coefficients)
            found[name][label] = {
                "coefficients": best.coefficients, "error": float(f"{best.error:.4e}"), "products": products,
                "reads": reads, "entries": entries, "operations": operations, "tried": best.tried,
            }  # fmt: skip
            progress(f"{name}, {label}: {best.error:.3e}, {best.coefficients}, {best.tried} programs")
    return found


def spent(entry: Entry) -> tuple[int, ...]:
    """What a program costs, of each kind."""
    return entry["products"], entry["reads"], entry["entries"], entry["operations"]


def dominated(entry: Entry, others: Mapping[str, Entry]) -> bool:
    """Whether another program costs no more of anything and errs less."""
    return any(
        o["error"] < entry["error"] and all(a <= b for a, b in zip(spent(o), spent(entry), strict=True))
        for o in others.values()
    )


def winner(name: str, found: Mapping[str, Entry]) -> str:
    """Of the programs within the function's limits, the one of the least error."""
    limits = functions()[name].limits
    inside = [k for k, o in found.items() if all(a <= b for a, b in zip(spent(o), limits, strict=False))]
    return min(inside, key=lambda k: found[k]["error"])


def cells(name: str, found: Mapping[str, Entry]) -> Iterator[list[str]]:
    """A row per shape."""
    used = winner(name, found)
    for label, o in sorted(found.items(), key=lambda item: item[1]["error"]):
        mark = "used" if label == used else "" if dominated(o, found) else "yes"
        coefficients = ", ".join(f"{k} = {v}" for k, v in o["coefficients"].items())
        counts = (*spent(o), o["tried"])
        yield [label, f"{o['error']:.2e}", *map(str, counts), mark, coefficients]


COLUMNS = ("program", "relative error", "products", "reads", "entries", "operations", "tried", "Pareto", "coefficients")


def markdown(found: Table) -> str:
    parts = [
        "# The search for integer programs\n",
        "Written by `tools/search_nonlinears.py`. Every shape of program with the best coefficients that were found,",
        "over every input; what it costs, counted in its expression graph; and how many were tried. Pareto: no other",
        "program costs no more of anything and errs less. Used: the least error within the limits of the function.\n",
    ]
    for name, of in found.items():
        products, reads, entries = functions()[name].limits
        limits = f"Limits: {products} products, " + (
            f"{reads} read of at most {entries} entries" if reads else "no table"
        )
        parts += [f"## {name}\n", f"{limits}.\n", markdown_table(COLUMNS, cells(name, of))]
    return "\n".join(parts)


def load() -> Table:
    """The stored Table."""
    found: Table = json.loads(STORED.read_text())
    return found


def main() -> None:
    found = search(print)
    STORED.resolve().write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(markdown(found))


if __name__ == "__main__":
    main()
