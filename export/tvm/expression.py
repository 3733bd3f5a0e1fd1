"""Prints a traced definition as TIR: 32-bit arithmetic where the intervals prove it enough, 64-bit where not.

Every node has one form and one width, and no pass of `build` rewrites arithmetic: what is printed is compiled.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")

from tvm import tirx
from tvm.ir import TensorLoad

from isobit.quant.expr.symbols import Sym, Traced
from isobit.quant.program import word

Expr = Any
Buffer = Any
Stmt = Any

BINARY: dict[str, Callable[[Expr, Expr], Expr]] = {
    "add": tirx.Add,
    "sub": tirx.Sub,
    "mul": tirx.Mul,
    "floordiv": tirx.Div,
    "and": tirx.bitwise_and,
    "or": tirx.bitwise_or,
    "xor": tirx.bitwise_xor,
    "shl": tirx.shift_left,
    "shr": tirx.shift_right,
}
"""Primitives whose operands and result are integers of one width.  Div truncates: dividends are proved >= 0."""

COMPARE: dict[str, Callable[[Expr, Expr], Expr]] = {"lt": tirx.LT, "le": tirx.LE, "eq": tirx.EQ}


def imm(value: int, dtype: str = "int32") -> Expr:
    return tirx.IntImm(dtype, value)


def dtype_of(expr: Expr) -> str:
    return str(expr.ty.dtype)


def cast(expr: Expr, dtype: str) -> Expr:
    """`expr` in another integer type, which is proved to hold it."""
    if dtype_of(expr) == dtype:
        return expr
    return imm(expr.value, dtype) if isinstance(expr, tirx.IntImm) else tirx.Cast(dtype, expr)


def load(buffer: Buffer, *indices: Expr) -> Expr:
    return tirx.BufferLoad(buffer, [imm(i) if isinstance(i, int) else i for i in indices])


def store(buffer: Buffer, value: Expr, *indices: Expr) -> Stmt:
    return tirx.BufferStore(buffer, value, [imm(i) if isinstance(i, int) else i for i in indices])


def sequence_of(statements: list[Stmt]) -> Stmt:
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)


def serial(index: Expr, extent: int, body: Stmt) -> Stmt:
    """for index in 0..extent-1."""
    return tirx.For(index, imm(0), imm(extent), tirx.ForKind.SERIAL, body)


@dataclass
class Block:
    """Statements in order.  table: the constant buffer that holds a definition's table, given its values and name.

    A scalar is a buffer of one element, which LLVM turns into a register; chains of TIR's own `Bind` cost exponential
    build time.  scope: the memory that scalars live in, empty on the CPU, `local` on the GPU.
    """

    table: Callable[[tuple[int, ...], str], Buffer]
    scope: str
    statements: list[Stmt] = field(default_factory=list)

    def child(self) -> Block:
        return Block(self.table, self.scope)

    def scalar(self, name: str, value: Expr) -> Buffer:
        """A new scalar that holds `value`."""
        buffer = tirx.decl_buffer((1,), dtype_of(value), name, scope=self.scope)
        self.statements += [tirx.AllocBuffer(buffer), store(buffer, value, 0)]
        return buffer

    def body(self) -> Stmt:
        return sequence_of(self.statements)


def expression(traced: Traced, operands: list[Expr], block: Block) -> Expr:
    """`traced` on `operands`, in the result's word; its named and its shared values become scalars of `block`."""
    return _Printer(traced, block).print(operands)


class _Printer:
    def __init__(self, traced: Traced, block: Block) -> None:
        self.traced, self.block = traced, block
        self.tables = traced.tables
        self.uses = Counter(a.number for n in traced.nodes for a in n.args)
        self.made: dict[int, Expr] = {}

    def print(self, operands: list[Expr]) -> Expr:
        for symbol, operand in zip(self.traced.operands, operands, strict=True):
            self.made[symbol.number] = cast(operand, f"int{word(symbol.bits)}")
        for n in self.traced.nodes:
            if n.op == "var":
                if self.uses[n.number] > 1 and not is_scalar(self.made[n.number]):
                    self.made[n.number] = load(self.block.scalar(n.name, self.made[n.number]), 0)
                continue
            made = self.operation(n)
            kept = n.op != "const" and not n.is_condition and n is not self.traced.result
            if kept and (n.name or self.uses[n.number] > 1):
                made = load(self.block.scalar(n.name or "part", made), 0)
            self.made[n.number] = made
        return self.made[self.traced.result.number]

    def value(self, n: Sym, bits: int) -> Expr:
        """The node in a word of `bits`."""
        return imm(n.values[0], f"int{bits}") if n.op == "const" else cast(self.made[n.number], f"int{bits}")

    def operation(self, n: Sym) -> Expr:
        """The node in its own word: computed in 64 bits if it or an operand needs them."""
        own = f"int{word(n.bits)}"
        if n.op == "const":
            return imm(n.values[0], own)
        if n.op == "table":
            return cast(load(self.block.table(n.values, self.tables[n.values]), self.value(n.args[0], 32)), own)
        if n.op == "clz":
            return cast(self.leading_zeros(n), own)
        values = n.args[1:] if n.op == "select" else n.args
        wide = max(word(x.bits) for x in (n, *values))
        if n.op == "mulh" or (n.op in ("shl", "shr") and n.args[1].range.hi > 31):
            wide = 64
        args = [self.value(x, wide) for x in values]
        if n.op in COMPARE:
            return COMPARE[n.op](*args)
        return cast(self.computed(n, args), own)

    def computed(self, n: Sym, args: list[Expr]) -> Expr:
        match n.op:
            case "select":
                return tirx.Select(self.condition(n.args[0]), *args)
            case "clip":
                x, lo, hi = args
                return tirx.Max(tirx.Min(x, hi), lo)
            case "mulh":
                return BINARY["shr"](tirx.Mul(*args), imm(32, "int64"))
            case _:
                return BINARY[n.op](*args)

    def condition(self, n: Sym) -> Expr:
        return imm(n.values[0], "bool") if n.op == "const" else self.made[n.number]

    def leading_zeros(self, n: Sym) -> Expr:
        """int32; TIR's clz counts in the whole word and is undefined at 0."""
        x, width = n.args[0], n.args[1].values[0]
        bits = word(x.bits)
        wide = self.value(x, bits)
        zeros = tirx.Add(tirx.clz(wide), imm(width - bits))
        if x.range.lo > 0:
            return zeros
        return tirx.Select(tirx.EQ(wide, imm(0, f"int{bits}")), imm(width), zeros)


def is_scalar(expr: Expr) -> bool:
    """Whether reading it again costs nothing: a constant or the only element of a buffer."""
    if isinstance(expr, TensorLoad):
        return [getattr(i, "value", None) for i in expr.indices] == [0]
    return isinstance(expr, tirx.IntImm)
