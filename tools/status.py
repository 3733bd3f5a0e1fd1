"""The status table: every op's corner cases on every target, measured; kept in status.json and shown in README.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from isobit.quant.ops import OPS
from isobit.quant.program import Program
from isobit.quant.vectors import case_program, golden, join
from isobit.targets.target import TARGETS
from isobit.targets.verify import MISMATCH, NOT_RUN
from isobit.tools.cells import Cell, markdown_table, text, verified

STORED = Path(__file__).with_name("status.json")
"""What `make status` measured last: op -> target -> {"status", "reason"}."""

Table = dict[str, dict[str, Cell]]


def op_program(op: str) -> Program:
    """All corner cases of one op as one Program."""
    return join(op, [case_program(op, case, f"{op}.case{i}") for i, case in enumerate(OPS[op].cases)])


def measure(progress: Callable[[str], None] = lambda _: None) -> Table:
    """Verify every op on every target, now."""
    table: Table = {}
    for op in OPS:
        program = op_program(op)
        vectors = list(golden(program))
        table[op] = {}
        for name in TARGETS:
            progress(f"{op} on {name}")
            table[op][name] = verified(program, name, vectors)
    return table


def cells(table: Table) -> Iterator[list[str]]:
    """Rows of the table as text."""
    for op, row in table.items():
        yield [op, *(text(row.get(name, {"status": NOT_RUN, "reason": "not measured"})) for name in TARGETS)]


def markdown(table: Table) -> str:
    """The table for README.md; ops with equal cells are one row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for op, *found in cells(table):
        rows.setdefault(tuple(found), []).append(f"`{op}`")
    return markdown_table([f"{len(table)} ops", *TARGETS], ([", ".join(ops), *found] for found, ops in rows.items()))


def status_command(run_now: bool, as_json: bool) -> int:
    """Returns 1 if any cell is a mismatch."""
    from isobit.tools import families, formats, nonlinears, show

    if run_now:
        with show.progress(as_json) as tell:
            table, errors = measure(tell), nonlinears.measure(tell)
            numbers, zoo = formats.measure(tell), families.measure(tell)
    else:
        table, errors = json.loads(STORED.read_text()), nonlinears.load()
        numbers, zoo = formats.load(), families.load()
    found = [cell["status"] for row in table.values() for cell in row.values()]
    found += [c["status"] for entry in numbers.values() for c in entry["targets"].values()]
    found += [c["status"] for sizes in zoo.values() for entry in sizes.values() for c in entry["targets"].values()]
    if as_json:
        show.print_json({"ops": table, "nonlinears": errors, "formats": numbers, "families": zoo})
        return int(MISMATCH in found)
    show.print_table("Ops against targets", ["op", *TARGETS], list(cells(table)))
    show.print_table("Largest errors of nonlinears", nonlinears.COLUMNS, list(nonlinears.cells(errors)))
    show.print_table("Formats against targets", formats.COLUMNS, list(formats.cells(numbers)), formats.NUMBERS)
    show.print_table("Families against targets", families.COLUMNS, list(families.cells(zoo)), families.NUMBERS)
    return int(MISMATCH in found)
