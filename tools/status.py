"""The status table: every op's corner cases on every target, measured; kept in status.json and shown in README.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from isobit.quant.errors import IsobitError
from isobit.quant.ops import OPS
from isobit.quant.program import Program
from isobit.quant.vectors import case_program, golden, join
from isobit.targets.target import TARGETS
from isobit.targets.verify import EXACT, MISMATCH, NOT_RUN, REFUSED, Row, verify

STORED = Path(__file__).with_name("status.json")
"""What `make status` measured last: op -> target -> {"status", "reason"}."""

Table = dict[str, dict[str, dict[str, str]]]


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
            try:
                (row,) = verify(program, [name], vectors).rows
            except IsobitError as e:
                row = Row(name, REFUSED, reason=str(e))
            table[op][name] = {"status": row.status, "reason": row.reason}
    return table


def cells(table: Table) -> Iterator[list[str]]:
    """Rows of the table as text."""
    for op, row in table.items():
        yield [op, *(_cell(row.get(name, {"status": NOT_RUN, "reason": "not measured"})) for name in TARGETS)]


def _cell(cell: dict[str, str]) -> str:
    return cell["status"] if cell["status"] == EXACT else f"{cell['status']}: {cell['reason']}"


def markdown(table: Table) -> str:
    """The table for README.md."""
    head = ["op", *TARGETS]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join([f"`{row[0]}`", *row[1:]]) + " |" for row in cells(table)]
    return "\n".join(lines) + "\n"


def status_command(run_now: bool, as_json: bool) -> int:
    """Returns 1 if any cell is a mismatch."""
    from isobit.tools import families, formats, show

    if run_now:
        with show.progress(as_json) as tell:
            table, numbers, zoo = measure(tell), formats.measure(tell), families.measure(tell)
    else:
        table, numbers, zoo = json.loads(STORED.read_text()), formats.load(), families.load()
    found = [cell["status"] for row in table.values() for cell in row.values()]
    found += [c["status"] for entry in numbers.values() for c in entry["targets"].values()]
    found += [c["status"] for sizes in zoo.values() for entry in sizes.values() for c in entry["targets"].values()]
    if as_json:
        show.print_json({"ops": table, "formats": numbers, "families": zoo})
        return int(MISMATCH in found)
    show.print_table("Ops against targets", ["op", *TARGETS], list(cells(table)))
    show.print_table("Formats against targets", formats.COLUMNS, list(formats.cells(numbers)), formats.NUMBERS)
    show.print_table("Families against targets", families.COLUMNS, list(families.cells(zoo)), families.NUMBERS)
    return int(MISMATCH in found)
