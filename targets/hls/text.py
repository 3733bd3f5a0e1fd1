"""C++ text: names that are free, integer literals, lines of at most 110 columns."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

COLUMNS = 110

RESERVED = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t class compl const
    const_cast constexpr continue decltype default delete do double dynamic_cast else enum explicit export extern false
    float for friend goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private
    protected public register reinterpret_cast return short signed sizeof static static_assert static_cast struct switch
    template this thread_local throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t
    while xor xor_eq ap_int ap_uint hls isobit
"""
"""Keywords of C++, and what the generated code takes from headers."""


class Names:
    """The names in use in one scope."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self.taken = {*RESERVED.split(), *taken}

    def has(self, name: str) -> bool:
        return name in self.taken

    def fresh(self, wanted: str) -> str:
        """`wanted` as an ASCII identifier; with a number behind it where it is taken."""
        base = re.sub(r"[^A-Za-z0-9_]", "_", wanted)
        base = f"_{base}" if not base or base[0].isdigit() else base
        name, number = base, 2
        while name in self.taken:
            name, number = f"{base}_{number}", number + 1
        self.taken.add(name)
        return name


def ap(bits: int) -> str:
    """The signed type of this width."""
    return f"ap_int<{bits}>"


def literal(value: int) -> str:
    """An integer literal of type int, or long long where int does not hold it."""
    if value == -(1 << 63):
        return f"(-{(1 << 63) - 1}LL - 1)"
    return str(value) if -(1 << 31) < value < (1 << 31) else f"{value}LL"


def literal_width(value: int) -> int:
    return 32 if -(1 << 31) < value < (1 << 31) else 64


def wrapped(line: str) -> str:
    """A statement or signature, broken behind a comma or an equals sign where it is too long."""
    indent = len(line) - len(line.lstrip())
    lines = []
    while len(line) > COLUMNS:
        cut = max(line.rfind(", ", 0, COLUMNS) + 1, line.rfind(" = ", 0, COLUMNS) + 2)
        if cut <= indent + 4:
            break
        lines.append(line[:cut])
        line = " " * (indent + 4) + line[cut:].lstrip()
    return "\n".join([*lines, line])


def comment(text: str, indent: int = 0) -> str:
    """Comment lines; a further line of the text stands `indent` columns in."""
    return textwrap.fill(
        text, COLUMNS, initial_indent="// ", subsequent_indent=f"// {' ' * indent}", break_on_hyphens=False
    )


def commented(line: str, note: str) -> str:
    """A line with a comment behind it, or above it where there is no room."""
    whole = f"{line}  // {note}"
    if len(whole) <= COLUMNS:
        return whole
    indent = len(line) - len(line.lstrip())
    return f"{' ' * indent}// {note}\n{wrapped(line)}"


def filled(values: Sequence[int], indent: int) -> str:
    """Literals separated by commas, in as few lines as fit."""
    lines, line = list[str](), ""
    for value in values:
        item = f"{literal(value)}, "
        if indent + len(line) + len(item) > COLUMNS:
            lines.append(line.rstrip())
            line = ""
        line += item
    lines.append(line.removesuffix(", "))
    return "\n".join(" " * indent + x for x in lines)


def dims(shape: Sequence[int]) -> str:
    """`[16][4]`."""
    return "".join(f"[{d}]" for d in shape)


def initialised(declaration: str, values: Sequence[int], shape: Sequence[int]) -> str:
    """A declaration with its values, row-major."""
    if not shape:
        return f"{declaration} = {literal(values[0])};"
    line = f"{declaration} = {{{filled(values, 0)}}};"
    if len(shape) == 1 and len(line) <= COLUMNS:
        return line
    return f"{declaration} = {{\n{_rows(values, shape, 4)}\n}};"


def _rows(values: Sequence[int], shape: Sequence[int], indent: int) -> str:
    """What stands between the outer braces of an array of this shape."""
    if len(shape) == 1:
        return filled(values, indent)
    pad, size, rows = " " * indent, len(values) // shape[0], []
    for i in range(shape[0]):
        inner = _rows(values[i * size : (i + 1) * size], shape[1:], indent + 4)
        if len(shape) == 2 and "\n" not in inner and len(inner) + 2 <= COLUMNS:
            rows.append(f"{pad}{{{inner.strip()}}}")
        else:
            rows.append(f"{pad}{{\n{inner}\n{pad}}}")
    return ",\n".join(rows)
