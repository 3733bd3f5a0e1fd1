"""Prints a traced definition as C: 32-bit arithmetic where the intervals prove it enough, 64-bit where not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from isobit.quant.expr.symbols import Sym, Traced
from isobit.quant.program import word

INFIX = {"add": "+", "sub": "-", "mul": "*", "shr": ">>", "and": "&", "or": "|", "xor": "^", "floordiv": "/"}
COMPARE = {"lt": "<", "le": "<=", "eq": "=="}
# fmt: off
RESERVED = frozenset({
    "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum",
    "extern", "float", "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return",
    "short", "signed", "sizeof", "static", "struct", "switch", "typedef", "union", "unsigned", "void",
    "volatile", "while",
    "abs", "div", "erf", "exp", "exp2", "floor", "log", "log2", "max", "min", "pow", "round", "signal", "sqrt", "tanh",
})
# fmt: on


def literal(value: int) -> str:
    """A C constant of the value's own word."""
    if value == -(1 << 31):
        return "INT32_MIN"
    if value == -(1 << 63):
        return "INT64_MIN"
    return str(value) if -(1 << 31) <= value < 1 << 31 else f"INT64_C({value})"


@dataclass(frozen=True)
class Lines:
    """Declarations of the definition's intermediate values, and the expression of its result."""

    declarations: tuple[str, ...]
    result: str


def operations(traced: Traced) -> int:
    """How many operations a definition takes."""
    return sum(n.op not in ("var", "const") for n in traced.nodes)


def is_simple(traced: Traced) -> bool:
    """Whether the definition is one operation on its operands, which reads best in place."""
    return operations(traced) <= 1 and not traced.tables


def expression(traced: Traced, operands: list[str], tables: dict[tuple[int, ...], str]) -> Lines:
    """`traced` with `operands` as C expressions; `tables` names the arrays that hold its tables."""
    return _Printer(traced, operands, tables).lines()


class _Printer:
    def __init__(self, traced: Traced, operands: list[str], tables: dict[tuple[int, ...], str]) -> None:
        self.traced, self.tables = traced, tables
        self.text = {o.number: text for o, text in zip(traced.operands, operands, strict=True)}
        self.taken = Counter(dict.fromkeys(operands, 1))
        self.uses = Counter(a.number for n in traced.nodes for a in n.args)

    def lines(self) -> Lines:
        declarations = []
        for n in self.traced.nodes:
            if n.op == "var":
                continue
            text = literal(n.values[0]) if n.op == "const" else self.operation(n)
            keep = n is not self.traced.result and n.op != "const" and not n.is_condition
            if keep and (n.name or self.uses[n.number] > 1):
                name = self.fresh(n.name or "part")
                declarations.append(f"const int{word(n.bits)}_t {name} = {unwrap(text)}; /* {n.range} */")
                text = name
            self.text[n.number] = text
        return Lines(tuple(declarations), unwrap(self.text[self.traced.result.number]))

    def fresh(self, name: str) -> str:
        name = f"{name}_" if name in RESERVED else name
        self.taken[name] += 1
        return name if self.taken[name] == 1 else self.fresh(f"{name}{self.taken[name]}")

    def operation(self, n: Sym) -> str:
        args = [self.text[a.number] for a in n.args]
        values = n.args[1:] if n.op == "select" else n.args
        wide = max(word(x.bits) for x in (n, *values) if not x.is_condition)
        if n.op in ("shl", "shr") and n.args[1].range.hi > 31:
            wide = 64
        match n.op:
            case "lt" | "le" | "eq":
                return f"({args[0]} {COMPARE[n.op]} {args[1]})"
            case "select":
                text = f"({args[0]} ? {args[1]} : {args[2]})"
            case "clip":
                text = f"isobit_clip{wide}({', '.join(map(unwrap, args))})"
            case "mulh":
                return f"isobit_mulh({', '.join(map(unwrap, args))})"
            case "clz":
                return f"isobit_clz({', '.join(map(unwrap, args))})"
            case "table":
                return f"{self.tables[n.values]}[{unwrap(args[0])}]"
            case "shl":
                text = self.shift_left(n, args, wide)
            case "sub" if n.args[0].fixed == 0:
                text = f"(-{self.widened_last(n, args, wide)})"
            case "add" | "sub" if (c := n.args[1].fixed) is not None and -(1 << 31) < c < 0:
                text = f"({self.widened(n, args, wide)} {'-' if n.op == 'add' else '+'} {literal(-c)})"
            case _:
                text = f"({self.widened(n, args, wide)} {INFIX[n.op]} {args[1]})"
        return f"(int32_t){text}" if wide == 64 and word(n.bits) == 32 else text

    def shift_left(self, n: Sym, args: list[str], wide: int) -> str:
        amount = n.args[1].fixed
        if amount is not None and amount < 31:
            return f"({self.widened(n, args, wide)} * {1 << amount})"
        if n.args[0].range.lo >= 0 and wide == 32:
            return f"({args[0]} << {args[1]})"
        shifted = f"isobit_shl({unwrap(args[0])}, {unwrap(args[1])})"
        return shifted if wide == 64 else f"(int32_t){shifted}"

    def widened_last(self, n: Sym, args: list[str], wide: int) -> str:
        return f"(int64_t){args[1]}" if wide == 64 and word(n.args[1].bits) == 32 else args[1]

    def widened(self, n: Sym, args: list[str], wide: int) -> str:
        """The first operand, cast where C would otherwise compute in 32 bits."""
        shift = n.op in ("shl", "shr")
        others = [] if shift else n.args[1:]
        narrow = wide == 64 and all(word(a.bits) == 32 for a in (n.args[0], *others))
        return f"(int64_t){args[0]}" if narrow else args[0]


def unwrap(text: str) -> str:
    """Without the outer parentheses, where one pair encloses everything."""
    if not text.startswith("("):
        return text
    depth = 0
    for i, ch in enumerate(text):
        depth += (ch == "(") - (ch == ")")
        if depth == 0:
            return text[1:-1] if i == len(text) - 1 else text
    return text
