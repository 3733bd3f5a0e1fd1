"""Buffers between kernels in the nested blocks of `step`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from isobit.quant.program import Input, Program, TensorType, int_type
from isobit.targets.c.blocks import Block, blocks
from isobit.targets.nest import Kernel, Nest, nest
from tests.feedback import FEEDBACK
from tests.models import Builder, mamba_block


def chain(*widths: int) -> Program:
    """Layers one after the other, of these widths."""
    b, x = Builder("chain", 0), "x"
    for i, (columns, rows) in enumerate(itertools.pairwise(widths)):
        x = b.dense(x, rows, columns, f"l{i}", 127, 38, "n")
    inputs = (Input("x", TensorType(("T", widths[0]), int_type("i8"))),)
    return Program(b.name, inputs, tuple(b.constants), (), tuple(b.nodes), (x,))


def lines(block: Block, pad: str = "") -> Iterator[str]:
    yield f"{pad}{', '.join(block.buffers)}"
    for p in block.parts:
        if isinstance(p, Block):
            yield from lines(p, pad + "  ")
        else:
            yield f"{pad}run {p.name}"


def test_two_blocks_share_memory() -> None:
    made = blocks(nest(chain(4, 60, 8, 50, 4)))
    assert list(lines(made)) == [
        "chain.l1.y",
        "  chain.l0.y",
        "  run chain.l0.y",
        "  run chain.l1.y",
        "  chain.l2.y",
        "  run chain.l2.y",
        "  run chain.l3.y",
    ]
    assert made.bytes == 8 + 60


def reached(block: Block, around: tuple[str, ...] = ()) -> Iterator[tuple[Kernel, tuple[str, ...]]]:
    """Every kernel in order, and the buffers of the blocks that it is in."""
    for p in block.parts:
        if isinstance(p, Block):
            yield from reached(p, (*around, *block.buffers))
        else:
            yield p, (*around, *block.buffers)


def declared(block: Block) -> list[str]:
    return [*block.buffers, *(v for p in block.parts if isinstance(p, Block) for v in declared(p))]


def most_in_use(lowered: Nest) -> int:
    used = [[i for i, k in enumerate(lowered.kernels) if v in (*k.reads, *k.writes)] for v in lowered.scratch]
    sizes = [lowered.type(v).bytes for v in lowered.scratch]
    return max(
        sum(size for size, at in zip(sizes, used, strict=True) if at[0] <= i <= at[-1])
        for i in range(len(lowered.kernels))
    )


@pytest.mark.parametrize("program", [mamba_block(), chain(3, 9, 2, 40, 5, 30, 6), *(f() for f in FEEDBACK.values())])
def test_every_buffer_is_declared_once_around_what_uses_it(program: Program) -> None:
    lowered = nest(program)
    made = blocks(lowered)
    assert sorted(declared(made)) == sorted(lowered.scratch)
    kernels = list(reached(made))
    assert [k for k, _ in kernels] == list(lowered.kernels)
    for k, around in kernels:
        assert {*k.reads, *k.writes} & {*lowered.scratch} <= {*around}
    assert made.bytes == max(sum(lowered.type(v).bytes for v in around) for _, around in kernels)
    assert most_in_use(lowered) <= made.bytes <= sum(lowered.type(v).bytes for v in lowered.scratch)
