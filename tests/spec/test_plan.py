"""The fusion plan: what is computed where a contraction reads it, and what is stored."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from isobit.quant.errors import InputError
from isobit.quant.program import Program
from isobit.targets.nest import (
    Accumulate,
    Accumulator,
    Element,
    Let,
    Literal,
    Loop,
    Operand,
    Statement,
    Store,
    Tap,
    nest,
)
from isobit.targets.plan import MOST_TIMES
from isobit.targets.taps import RECORD, traced_outputs
from tests.fused import blocks, codes, dense, nested


def text(o: Operand) -> str:
    if isinstance(o, Literal):
        return str(o.value)
    name = o.value.partition(".")[2] or o.value
    return f"{name}[{', '.join(map(str, o.indices))}]" if isinstance(o, Element) else name


def lines(statements: tuple[Statement, ...], pad: str = "") -> Iterator[str]:
    for s in statements:
        match s:
            case Loop():
                yield f"{pad}for {s.index} < {s.extent}:"
                yield from lines(s.body, pad + "  ")
            case Accumulator(value, _, start):
                yield f"{pad}{value.partition('.')[2]} = {text(start)}"
            case Accumulate(value, term, combine):
                join = "+=" if combine == "sum" else "max="
                yield f"{pad}{value.partition('.')[2]} {join} {term.node.op}({', '.join(map(text, term.operands))})"
            case Let(value, _, apply):
                yield f"{pad}{value.partition('.')[2]} = {apply.node.op}({', '.join(map(text, apply.operands))})"
            case Store(to, operand):
                yield f"{pad}{text(to)} = {text(operand)}"
            case Tap():
                yield f"{pad}tap {s.node.output.partition('.')[2]}[{s.position}]"


def kernels(program: Program, inside: bool = True) -> list[list[str]]:
    return [list(lines(k.body)) for k in nest(program, inside).kernels]


def test_codes_are_unpacked_where_they_are_read() -> None:
    (kernel,) = kernels(codes())
    assert kernel == [
        "for r < 2:",
        "  for w < 3:",
        "    score.acc = score.start[r]",
        "    for p < 2:",
        "      for c < 5:",
        "        read.y = code_of_byte(bytes[w, c], read.shifts[p])",
        "        tap read.y[(w * 2 + p) * 5 + c]",
        "        score.acc += matmul(q[r, p, c], read.y)",
        "    score.acc[r, w] = score.acc",
        "    tap score.acc[r * 3 + w]",
    ]
    assert nest(codes()).scratch == ()


def test_blocks_are_summed_inside_the_sum_over_blocks() -> None:
    (kernel,) = kernels(blocks())
    assert kernel == [
        "for n < 5:",
        "  all.acc = all.start[n]",
        "  for k < 3:",
        "    sum.acc = 0",
        "    for a < 4:",
        "      sum.acc += dot(x[k, a], sum.w[n, k, a])",
        "    tap sum.acc[n * 3 + k]",
        "    sum.y = requantize(sum.acc)",
        "    tap sum.y[n * 3 + k]",
        "    all.acc += matmul(sum.y, all.w[n, k])",
        "  all.acc[n] = all.acc",
        "  tap all.acc[n]",
    ]


def test_groups_inside_groups() -> None:
    (kernel,) = kernels(nested())
    assert kernel == [
        "all.y = 0",
        "for a < 2:",
        "  most.y = -50292",
        "  for c < 3:",
        "    sum.y = 0",
        "    for d < 4:",
        "      sum.x = product(x[a, c, d], sum.w[a, c, d])",
        "      tap sum.x[(a * 3 + c) * 4 + d]",
        "      sum.y += reduce_sum(sum.x)",
        "    tap sum.y[a * 3 + c]",
        "    most.y max= reduce_max(sum.y)",
        "  tap most.y[a]",
        "  all.y += reduce_sum(most.y)",
        "all.y[] = all.y",
        "tap all.y[0]",
    ]


@pytest.mark.parametrize(
    ("program", "stored"),
    [
        (codes(queries=MOST_TIMES), []),
        (codes(queries=MOST_TIMES + 1), ["codes.read.y"]),
        (codes(held=True), []),
        (codes(held=True, late=True), ["codes.read.y"]),
        (dense(), ["dense.wide.y", "dense.row.acc"]),
    ],
    ids=["as often as allowed", "once more", "the past", "the past, gone when it is read", "rows of weights"],
)
def test_what_is_stored(program: Program, stored: list[str]) -> None:
    assert list(nest(program).scratch) == stored


def test_a_target_may_store_everything() -> None:
    assert [k.name for k in nest(blocks(), inside=False).kernels] == ["blocks.sum.y", "blocks.all.acc"]


def test_taps_are_reported_in_the_order_of_the_nodes() -> None:
    for program in (codes(), blocks(), nested()):
        assert nest(program).order == list(program.nodes)


def records(*taps: tuple[int, int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.void]]:
    return np.array(list(taps), RECORD)


def test_an_element_is_reported_where_it_is_computed_again() -> None:
    lowered = nest(dense())
    size = [lowered.type(n.output).size for n in lowered.program.nodes]
    once = [(number, i, 10 * number + i) for number, count in enumerate(size) for i in range(count)]
    for taps in (once, [t for t in once for _ in range(2)]):
        made = traced_outputs(records(*taps), lowered, 1, 1)
        assert [made[n.output].ravel().tolist() for n in lowered.program.nodes] == [
            [10 * number + i for i in range(count)] for number, count in enumerate(size)
        ]
    with pytest.raises(InputError, match=r"dense\.wide .*: no ISOBIT_TAP of some element"):
        traced_outputs(records(*once[1:]), lowered, 1, 1)
    with pytest.raises(InputError, match=r"dense\.wide .*: ISOBIT_TAPs of an element differ"):
        traced_outputs(records(*once, (0, 0, 5)), lowered, 1, 1)
