"""Cells of the status tables: what verifying a Program on a target came to, as data and as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

from isobit.quant.errors import IsobitError
from isobit.quant.program import Program
from isobit.quant.vectors import Vectors
from isobit.targets.verify import EXACT, MISMATCH, NOT_RUN, REFUSED, Row, verify


class Cell(TypedDict):
    status: str
    reason: str


def verified(program: Program, target: str, vectors: Sequence[Vectors]) -> Cell:
    """One Program on one target."""
    try:
        (row,) = verify(program, [target], vectors).rows
    except IsobitError as e:
        row = Row(target, REFUSED, reason=str(e))
    return {"status": row.status, "reason": row.reason}


def gravest(found: Iterable[Cell]) -> Cell:
    order = (MISMATCH, REFUSED, NOT_RUN, EXACT)
    return min(found, key=lambda c: order.index(c["status"]))


def text(cell: Cell) -> str:
    """The status, and why where it is not exact."""
    return cell["status"] if cell["status"] == EXACT else f"{cell['status']}: {cell['reason']}"


def markdown_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table for README.md."""
    head = list(columns)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"
