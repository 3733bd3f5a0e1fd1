"""Expression graphs as C++ over ap_int: a named value is a variable of exactly the width that its interval needs.

`+ - *` of ap_int widen, so an expression never loses bits; a width is cut where a value is named, multiplied or
returned.  Every value has at most 64 bits, so no product has more than the 128 that a tool accepts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isobit.quant.expr.interval import Interval
from isobit.quant.expr.rewrite import selected
from isobit.quant.expr.symbols import Sym, Traced
from isobit.targets.hls.text import Names, ap, comment, commented, literal, literal_width, wrapped

WIDEST = 128
INLINE_LENGTH = 56
"""An unnamed subexpression longer than this gets a variable."""

OTHER, SUM, PRODUCT, ATOM = range(4)

ROLES = {
    "add": "sum",
    "sub": "difference",
    "mul": "product",
    "mulh": "high",
    "shl": "shifted",
    "shr": "shifted",
    "and": "masked",
    "or": "merged",
    "xor": "mixed",
    "select": "chosen",
    "clip": "limited",
    "floordiv": "quotient",
    "clz": "zeros",
    "table": "entry",
}
"""Names of values that the definition does not name."""


@dataclass(frozen=True)
class Text:
    """A C++ expression: the width of its type, how tightly it binds, whether it is a literal of a built-in type."""

    text: str
    width: int
    level: int = OTHER
    is_literal: bool = False

    def at(self, level: int) -> str:
        """The expression as an operand that must bind at least so tightly."""
        return self.text if self.level >= level else f"({self.text})"


def is_inline(traced: Traced) -> bool:
    """Of one operation at most: not worth a function."""
    return sum(n.op not in ("const", "var") for n in traced.nodes) <= 1


def table_width(values: Sequence[int]) -> int:
    return Interval(min(values), max(values)).bits


def inline(traced: Traced, operands: Sequence[str], tables: Mapping[tuple[int, ...], str]) -> str:
    """The graph as one expression of these operands, each an identifier or an array element."""
    printer = _Printer(traced, operands, tables, Names())
    return printer.text(traced.result).text


def function(name: str, notes: Sequence[str], traced: Traced, tables: Mapping[tuple[int, ...], str]) -> str:
    """The graph as an inlined function below comment lines `notes`; its own comments give every value's interval."""
    names = Names(tables.values())
    operands = [names.fresh(o.name) for o in traced.operands]
    used = {text: o for o, text in zip(traced.operands, operands, strict=True) if o in traced.nodes}
    params = ", ".join(f"{ap(o.bits)} {text}" for text, o in used.items())
    printer = _Printer(traced, operands, tables, names)
    lines = printer.statements()
    ranges = ", ".join(f"{text} in {o.range}" for text, o in used.items())
    head = [*notes, *([comment(ranges)] if ranges else [])]
    signature = wrapped(f"static {ap(traced.range.bits)} {name}({params}) {{")
    return "\n".join([*head, signature, "#pragma HLS INLINE", *lines, "}"])


class _Printer:
    def __init__(
        self, traced: Traced, operands: Sequence[str], tables: Mapping[tuple[int, ...], str], names: Names
    ) -> None:
        self.traced, self.tables, self.names = traced, tables, names
        self.uses = Counter(a.number for n in traced.nodes for a in n.args)
        self.known = {o.number: Text(text, o.bits, ATOM) for o, text in zip(traced.operands, operands, strict=True)}

    def statements(self) -> list[str]:
        """One variable for every named, shared or long value, then the return."""
        lines = []
        for n in self.traced.nodes:
            if n is not self.traced.result and self._is_variable(n):
                name = self.names.fresh(n.name or ROLES[n.op])
                lines.append(commented(f"  const {ap(n.bits)} {name} = {self.text(n).text};", str(n.range)))
                self.known[n.number] = Text(name, n.bits, ATOM)
        lines.append(commented(f"  return {self.text(self.traced.result).text};", str(self.traced.range)))
        return lines

    def _is_variable(self, n: Sym) -> bool:
        if n.op in ("const", "var") or n.is_condition:
            return False
        return bool(n.name) or self.uses[n.number] > 1 or len(self.text(n).text) > INLINE_LENGTH

    def text(self, n: Sym) -> Text:
        if n.number not in self.known:
            self.known[n.number] = self._print(n)
        return self.known[n.number]

    def exact(self, n: Sym) -> Text:
        """The value in a type of its own width, where C++ would give it a wider one."""
        text = self.text(n)
        return text if text.is_literal or text.width <= n.bits else self.cast(n, n.bits)

    def cast(self, n: Sym, width: int) -> Text:
        text = self.text(n)
        if text.level == ATOM and not text.is_literal and text.width == width:
            return text
        return Text(f"{ap(width)}({text.text})", width, ATOM)

    def _print(self, n: Sym) -> Text:
        match n.op:
            case "const":
                return _constant(n.values[0])
            case "add" | "sub":
                return self._sum(n)
            case "mul" if chosen := selected(n):
                return self._selected(n, *chosen)
            case "mul":
                a, b = self.exact(n.args[0]), self.exact(n.args[1])
                return Text(f"{a.at(PRODUCT)} * {b.at(ATOM)}", a.width + b.width, PRODUCT)
            case "mulh":
                a, b = self.exact(n.args[0]), self.exact(n.args[1])
                return Text(f"({a.at(PRODUCT)} * {b.at(ATOM)}) >> 32", a.width + b.width)
            case "shl":
                a = self.text(n.args[0])
                a = self.cast(n.args[0], n.bits) if a.is_literal or a.width < n.bits else a
                return Text(f"{a.at(ATOM)} << {self._amount(n.args[1])}", a.width)
            case "shr":
                a = self.text(n.args[0])
                a = self.cast(n.args[0], n.args[0].bits) if a.is_literal else a
                return Text(f"{a.at(ATOM)} >> {self._amount(n.args[1])}", a.width)
            case "and" | "or" | "xor":
                a, b = self.text(n.args[0]), self.text(n.args[1])
                sign = {"and": "&", "or": "|", "xor": "^"}[n.op]
                return Text(f"{a.at(ATOM)} {sign} {b.at(ATOM)}", max(a.width, b.width))
            case "lt" | "le" | "eq":
                a, b = self.text(n.args[0]), self.text(n.args[1])
                sign = {"lt": "<", "le": "<=", "eq": "=="}[n.op]
                return Text(f"{a.at(ATOM)} {sign} {b.at(ATOM)}", 1)
            case "select":
                condition = self.text(n.args[0])
                arms = [self.cast(x, n.bits).text for x in n.args[1:]]
                return Text(f"{condition.at(ATOM)} ? {arms[0]} : {arms[1]}", n.bits)
            case "clip":
                width = max(x.bits for x in n.args)
                arguments = ", ".join(self.text(x).text for x in n.args)
                return Text(f"isobit::clip<{width}>({arguments})", width, ATOM)
            case "clz":
                return Text(f"isobit::leading_zeros<{n.args[1].fixed}>({self.text(n.args[0]).text})", 8, ATOM)
            case "floordiv":
                a, b = self.exact(n.args[0]), self.exact(n.args[1])
                return Text(f"{a.at(ATOM)} / {b.at(ATOM)}", a.width + 1)
            case "table":
                index = self.exact(n.args[0])
                return Text(f"{self.tables[n.values]}[{index.text}]", table_width(n.values), ATOM)
        raise AssertionError(f"primitive {n.op} has no C++ form")

    def _selected(self, n: Sym, sign: Sym, x: Sym) -> Text:
        """x, 0 or -x, by a sign in [-1, 1]: no multiplier."""
        which, kind = self.exact(sign).at(ATOM), ap(n.bits)
        arms = [(f"{which} > 0", self.cast(x, n.bits).text)] if sign.range.hi == 1 else []
        arms += [(f"{which} < 0", f"{kind}(-{self.text(x).at(ATOM)})")] if sign.range.lo == -1 else []
        return Text("".join(f"{condition} ? {arm} : " for condition, arm in arms) + f"{kind}(0)", n.bits)

    def _sum(self, n: Sym) -> Text:
        a, b = self.text(n.args[0]), self.text(n.args[1])
        if max(a.width, b.width) >= WIDEST:
            a, b = self.exact(n.args[0]), self.exact(n.args[1])
        width = max(a.width, b.width) + 1
        if n.op == "sub" and n.args[0].fixed == 0:
            return Text(f"-{b.at(ATOM)}", b.width + 1)
        return Text(f"{a.at(SUM)} {'+' if n.op == 'add' else '-'} {b.at(PRODUCT)}", width, SUM)

    def _amount(self, n: Sym) -> str:
        """A shift's amount; an ap type that gives it has at most 32 bits."""
        return (self.exact(n) if self.text(n).width > 32 else self.text(n)).at(ATOM)


def _constant(value: int) -> Text:
    """Large powers of two, which scale and round, are written as shifts."""
    if value < (1 << 10) or value & (value - 1):
        return Text(literal(value), literal_width(value), ATOM, is_literal=True)
    one, width = ("1", 32) if value < (1 << 31) else ("1LL", 64)
    return Text(f"({one} << {value.bit_length() - 1})", width, ATOM, is_literal=True)
