"""Programs whose operands of contractions are computed where they are read, and some that must be stored."""

from __future__ import annotations

from isobit.quant.program import Input, Program, TensorType, int_type
from tests.models import Builder

Inputs = dict[str, tuple[tuple[int, ...], str]]


def _program(b: Builder, inputs: Inputs, *outputs: str) -> Program:
    made = tuple(Input(name, TensorType(("T", *shape), int_type(elem))) for name, (shape, elem) in inputs.items())
    return Program(b.name, made, tuple(b.constants), tuple(b.states), tuple(b.nodes), outputs)


def codes(queries: int = 2, held: bool = False, late: bool = False) -> Program:
    """Scores of queries and of codes of 4 bits, two to a byte.

    held: the bytes are those of the last step, whose state changes after the scores are made or, if late, before.
    """
    b = Builder("codes", 0)
    bytes_ = b.state("bytes", (3, 5), "i8") if held else "bytes"
    shifts, start = b.constant("read.shifts", 0, 5, (2,), "u3"), b.constant("score.start", -9, 9, (queries,), "i8")
    read = b.node("code_of_byte", "twc,p->twpc", [bytes_, shifts], "read.y", bits=4)
    kept = b.node("hold", "twc->twc|wc", ["bytes"], "kept.y", bytes_, acc=32) if held and late else ""
    y = b.node("matmul", "trpc,twpc,r->trw", ["q", read, start], "score.acc", acc=32)
    if held and not late:
        kept = b.node("hold", "twc->twc|wc", ["bytes"], "kept.y", bytes_, acc=32)
    return _program(b, {"bytes": ((3, 5), "i8"), "q": ((queries, 2, 5), "i8")}, y, *([kept] if kept else []))


def blocks() -> Program:
    """Sums of 4 products, rounded, times multipliers; the axis of the blocks is named as another one in the sums."""
    b = Builder("blocks", 0)
    weight, rest = b.constant("sum.w", -8, 8, (5, 3, 4), "i4"), b.constant("all.w", 1, 99, (5, 3), "i8")
    sums = b.node("dot", "tuk,nuk->tnu", ["x", weight], "sum.acc", acc=32)
    rounded = b.node("requantize", "tnu->tnu", [sums], "sum.y", m=3, s=2, lo=-4096, hi=4095)
    start = b.constant("all.start", -99, 99, (5,), "i16")
    y = b.node("matmul", "tnk,nk,n->tn", [rounded, rest, start], "all.acc", acc=32)
    return _program(b, {"x": ((3, 4), "i8")}, y)


def nested() -> Program:
    """A sum of largest sums, of which the innermost reads what a product makes element by element."""
    b = Builder("nested", 0)
    weight = b.constant("sum.w", -99, 99, (2, 3, 4), "i8")
    made = b.node("product", "tacd,acd->tacd", ["x", weight], "sum.x")
    inner = b.node("reduce_sum", "tacd->tac", [made], "sum.y", acc=32)
    middle = b.node("reduce_max", "tac->ta", [inner], "most.y", acc=32)
    return _program(b, {"x": ((2, 3, 4), "i8")}, b.node("reduce_sum", "ta->t", [middle], "all.y", acc=32))


def dense() -> Program:
    """Rows of weights read x again and again, though it is cheap; what rows make is summed, though only once."""
    b = Builder("dense", 0)
    one, weight = b.constant("wide.one", 1, 2, (6,), "i8"), b.constant("row.w", -99, 99, (7, 6), "i8")
    wide = b.node("join_codes", "tk,k->tk", ["x", one], "wide.y", bits=7, offset=0)
    start = b.constant("row.start", -99, 99, (7,), "i8")
    rows = b.node("matmul", "tk,nk,n->tn", [wide, weight, start], "row.acc", acc=32)
    return _program(b, {"x": ((6,), "i8")}, b.node("reduce_sum", "tn->t", [rows], "all.y", acc=64))


FUSED = {
    "codes": codes,
    "codes of the past": lambda: codes(held=True),
    "codes of the past, read late": lambda: codes(held=True, late=True),
    "codes read often": lambda: codes(queries=5),
    "blocks": blocks,
    "nested sums": nested,
    "rows": dense,
}
