"""What the command line prints: results on standard output, progress and notes on standard error."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout

from isobit.targets.verify import MISMATCH, Row

WIDTH = 150
"""Columns where the output is no terminal."""

GLUE = "\ue000"
"""Stands for a space at which no line may break; rich breaks at a no-break space."""

UNITS = {
    "instructions": "instr/step",
    "macs": "MACs/step",
    "sums": "sums/step",
    "flash": "B flash",
    "ram": "B RAM",
    "stack": "B stack",
    "weights": "B weights",
    "state": "B state",
    "library_bytes": "B library",
    "cubin_bytes": "B cubin",
    "lines": "lines",
}
"""What follows a target's figure; one that is not here is shown as `name value`."""


def print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def note(message: str) -> None:
    """Something the user should know, on standard error."""
    sys.stderr.write(f"isobit: {message}\n")


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()
) -> None:
    """A table on standard output; columns named in `right` are numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for c in columns:
        table.add_column(c, justify="right" if c in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    with console.capture() as captured:
        if title:
            console.print(Text(title, style="italic"), soft_wrap=True)
        console.print(table)
    lines = captured.get().replace(GLUE, " ").splitlines()
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines))


def cell(value: object) -> str:
    """Integers with separators, floats to three digits, None as nothing."""
    match value:
        case None:
            return ""
        case bool() | str():
            return str(value)
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.3g}"
    return str(value)


@contextmanager
def progress(as_json: bool) -> Iterator[Callable[[str], None]]:
    """Yields a function that shows what is being done now, on standard error.

    On a terminal one live line; else plain lines, and none with `as_json`.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        with Console(stderr=True).status("") as status:
            yield lambda message: status.update(Text(message))
    elif as_json:
        yield lambda message: None
    else:
        yield lambda message: print(f"  {message}", file=sys.stderr, flush=True)


@contextmanager
def aside() -> Iterator[None]:
    """For a user's own model: what it prints goes to standard error, and what torch logs of a failure, nowhere."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logging.disable(disabled)


VERIFICATION_COLUMNS = ("target", "result", "values", "what ran, or why not", "figures", "seconds")


def verification_rows(rows: Sequence[Row]) -> list[list[object]]:
    """Cells of the verification table."""
    return [
        [r.target, r.status, r.values or None, r.ran or r.reason, figures(r.info), f"{r.seconds:.1f}"] for r in rows
    ]


def figures(info: Mapping[str, object]) -> str:
    """A target's figures in one cell; a line may break between them only."""
    parts = []
    for key, value in info.items():
        text = f"{cell(value)} {UNITS[key]}" if key in UNITS else f"{key} {value}"
        parts.append(text.replace(" ", GLUE))
    return ", ".join(parts)


def print_verification(title: str, rows: Sequence[Row]) -> None:
    """The table, then for each mismatch where it first shows."""
    print_table(title, VERIFICATION_COLUMNS, verification_rows(rows), right=("values", "seconds"))
    for r in rows:
        if r.status == MISMATCH:
            sys.stdout.write(
                "\n".join(["", f"{r.target}: {r.reason}", *([str(r.divergence)] if r.divergence else []), ""])
            )
