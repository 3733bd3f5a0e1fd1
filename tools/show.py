"""What the command line prints: tables, progress, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from isobit.targets.verify import MISMATCH, Row


def print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()
) -> None:
    """A table on standard output; columns named in `right` are numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for c in columns:
        table.add_column(c, justify="right" if c in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*("" if v is None else str(v) for v in row))
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yields a function that shows what is being done now, on standard error: a live line on a terminal, else plain lines."""
    if quiet:
        yield lambda _: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda message: console.print(f"  {message}", markup=False, highlight=False)
        return
    with console.status("") as status:
        yield lambda message: status.update(message)


def verification_rows(rows: Sequence[Row]) -> list[list[object]]:
    """Cells of the verification table."""
    return [
        [
            r.target,
            r.status,
            f"{r.values:,}" if r.values else "",
            r.ran or r.reason,
            figures(r.info),
            f"{r.seconds:.1f}",
        ]
        for r in rows
    ]


VERIFICATION_COLUMNS = ("target", "result", "values", "what ran, or why not", "figures", "seconds")


def figures(info: Any) -> str:
    """A target's figures in one cell."""
    units = {"instructions": "instructions/step", "flash": "B flash", "ram": "B RAM", "stack": "B stack"}
    units |= {"size": "B", "weights": "B weights", "state": "B state"}
    parts = []
    for key, value in info.items():
        number = f"{value:,}" if isinstance(value, int) else str(value)
        parts.append(f"{number} {units[key]}" if key in units else f"{key} {number}")
    return ", ".join(parts)


def print_verification(title: str, rows: Sequence[Row]) -> None:
    print_table(title, VERIFICATION_COLUMNS, verification_rows(rows), right=("values", "seconds"))
    for r in rows:
        if r.status == MISMATCH:
            sys.stdout.write(
                f"\n{r.target}: {r.reason}\n{r.divergence or 'every traced node is equal: the fault lies outside the kernels'}\n"
            )
