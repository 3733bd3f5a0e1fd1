"""Prints a Nest as one TIR function, `sequence(inputs, states, outputs, [traces], [workspace])`.

Inputs and outputs are (B, T, *shape), states (B, *shape) and updated in place; B and T >= 1 are read from the shapes of
the arguments, and `step` is the same function called with T = 1.  On the CPU the batch loop is parallel and all others
are plain loops, which LLVM vectorizes.  On the GPU one block of threads runs a batch element through all of its time;
the threads share the elements of a kernel's output and meet after every kernel.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.ir import Call, PointerType, PrimType, Range, StringImm

from isobit.export.tvm import products, vnni
from isobit.export.tvm.expression import (
    Block,
    Buffer,
    Expr,
    Stmt,
    cast,
    dtype_of,
    expression,
    imm,
    load,
    sequence_of,
    serial,
    store,
)
from isobit.export.tvm.parameters import Parameter, Role
from isobit.quant.expr.interval import Interval
from isobit.quant.ops.moves import Affine
from isobit.quant.program import Constant, container, word
from isobit.quant.storage import is_packed, packed, touched
from isobit.targets.nest import (
    Accumulate,
    Accumulator,
    Apply,
    Element,
    Index,
    Kernel,
    Let,
    Literal,
    Local,
    Loop,
    Nest,
    Operand,
    Statement,
    Store,
    Tap,
    identifier,
)

EXTENTS = (Parameter("batch", "B", "extent", "int32", ()), Parameter("steps", "T", "extent", "int32", ()))
"""The symbolic extents of the arrays; a GPU kernel takes them as arguments."""

STACK_BYTES = 1 << 18
"""Scratch of one batch element that may live on a CPU thread's stack; beyond it the runtime allocates."""

SHARED_BYTES = 40 << 10
"""Scratch that may live in a GPU block's shared memory, at least 48 KiB everywhere; the rest is workspace."""


@dataclass(frozen=True)
class Function:
    """A printed Nest.  prim: the function; constants: arrays that it asks for by name, for the compiler to embed."""

    prim: tirx.PrimFunc
    parameters: tuple[Parameter, ...]
    constants: Mapping[str, npt.NDArray[np.integer]]


def sequence(nest: Nest, traced: bool, threads: int | None = None, dot_lanes: int = 0) -> Function:
    """traced: further int64 parameters, one per node, receive every Tap.  threads: of a GPU block; None is the CPU.

    dot_lanes: int32 lanes of the CPU's `vpdpbusd`, 0 where it has none.
    """
    return _Printer(nest, traced, threads, dot_lanes).function()


def threads_for(nest: Nest) -> int:
    """Threads of a GPU block: as many as the widest kernel has elements, in warps, at most 256."""
    widest = max((_elements(p) for k in nest.kernels for p in _passes(k)), default=1)
    return min(256, -(-widest // 32) * 32)


def constant_symbol(name: str) -> str:
    """The compiled function that gives the address of a constant."""
    return f"isobit_constant_{name}"


def _passes(kernel: Kernel) -> list[tuple[Statement, ...]]:
    """What the threads of a block do between two barriers: each loop of a kernel that is made of loops."""
    loops = [s for s in kernel.body if isinstance(s, Loop)]
    return [(loop,) for loop in loops] if len(loops) == len(kernel.body) else [kernel.body]


def _independent(body: tuple[Statement, ...]) -> tuple[list[Loop], tuple[Statement, ...]]:
    """The loops around everything in a pass, whose iterations may run in any order, and what they hold."""
    loops = list[Loop]()
    while len(body) == 1 and isinstance(body[0], Loop) and not (body[0].reduction or body[0].ordered):
        loops.append(body[0])
        body = body[0].body
    return loops, body


def _elements(body: tuple[Statement, ...]) -> int:
    loops, _ = _independent(body)
    return int(np.prod([loop.extent for loop in loops], dtype=np.int64))


class _Printer:
    def __init__(self, nest: Nest, traced: bool, threads: int | None, dot_lanes: int) -> None:
        self.nest, self.traced, self.threads, self.dot_lanes = nest, traced, threads, dot_lanes
        self.products = products.products(nest) if dot_lanes else {}
        self.inside = {p.sums.kernel.name for p in self.products.values() if p.sums}
        self.scratch = [v for v in nest.scratch if v not in self.inside]
        self.scope = "local" if threads else ""
        self.batch, self.time = tirx.Var("b", "int32"), tirx.Var("t", "int32")
        self.sizes = {p.value: tirx.Var(p.name, "int32") for p in EXTENTS}
        self.buffers: dict[str, Buffer] = {}
        self.traces: dict[str, Buffer] = {}
        self.lead: dict[str, tuple[Expr, ...]] = {}
        self.tables: dict[tuple[int, ...], Buffer] = {}
        self.taken = {identifier(name) for name in nest.program.constant}
        self.constants: dict[str, npt.NDArray[np.integer]] = {}
        self.constant_buffers: dict[str, Buffer] = {}
        self.thread = tirx.IterVar(
            Range(0, threads or 1), tirx.Var("tx", "int32"), tirx.IterVar.ThreadIndex, "threadIdx.x"
        )
        self.index: dict[str, Expr] = {}
        self.locals: dict[str, Expr] = {}

    def function(self) -> Function:
        on_chip, workspace = self.placed_scratch()
        parameters = self.parameters(workspace)
        arguments = [self.argument(p) for p in parameters]
        setup = [self.allocation(v) for v in on_chip]
        kernels = [self.kernel(k) for k in self.nest.kernels if k.name not in self.inside]
        constants = [self.declaration(name) for name in self.constants]
        steps = tirx.For(self.time, imm(0), self.sizes["T"], tirx.ForKind.SERIAL, sequence_of(kernels))
        prim = tirx.PrimFunc(arguments, self.batched(sequence_of([*constants, *setup, steps])))
        prim = prim.with_attr("global_symbol", "sequence").with_attr("tirx.noalias", True)
        return Function(prim, parameters, self.constants)

    def placed_scratch(self) -> tuple[list[str], list[str]]:
        """Scratch values that the function allocates, and those that a GPU takes from its caller."""
        if not self.threads:
            return self.scratch, []
        on_chip, workspace, used = list[str](), list[str](), 0
        for v in self.scratch:
            size = -(-self.nest.type(v).bytes // 16) * 16
            fits = used + size <= SHARED_BYTES
            used += size if fits else 0
            (on_chip if fits else workspace).append(v)
        return on_chip, workspace

    def parameters(self, workspace: list[str]) -> tuple[Parameter, ...]:
        program = self.nest.program

        def parameter(value: str, role: Role, lead: tuple[str, ...]) -> Parameter:
            t = self.nest.type(value)
            return Parameter(identifier(value), value, role, t.elem.dtype.name, (*lead, *t.dims))

        found = [parameter(i.name, "input", ("B", "T")) for i in program.inputs]
        found += [parameter(s.name, "state", ("B",)) for s in program.states]
        found += [parameter(o, "output", ("B", "T")) for o in program.outputs]
        if self.traced:
            for n in self.nest.order:
                shape: tuple[int | str, ...] = ("B", "T", *self.nest.checked.types[n.output].dims)
                found.append(Parameter(f"trace_{identifier(n.output)}", n.output, "trace", "int64", shape))
        return tuple(found + [parameter(v, "workspace", ("B",)) for v in workspace])

    def argument(self, p: Parameter) -> Buffer:
        extents = [imm(d) if isinstance(d, int) else self.sizes[d] for d in p.shape]
        buffer = _buffer(p.name, extents, p.dtype)
        if p.role == "trace":
            self.traces[p.value] = buffer
        else:
            self.lead[p.value] = (self.batch, self.time) if "T" in p.shape else (self.batch,)
            self.buffers[p.value] = buffer
        return buffer

    def allocation(self, value: str) -> Stmt:
        t = self.nest.type(value)
        self.lead[value] = ()
        dims = [imm(d) for d in t.dims or (1,)]
        self.buffers[value] = _buffer(identifier(value), dims, t.elem.dtype.name, "shared" if self.threads else "")
        return _on_stack(self.buffers[value]) if self.small else tirx.AllocBuffer(self.buffers[value])

    @functools.cached_property
    def small(self) -> bool:
        """Whether a CPU keeps the scratch values on its stack."""
        return not self.threads and sum(self.nest.type(v).bytes for v in self.scratch) <= STACK_BYTES

    def constant(self, name: str, array: npt.NDArray[np.integer]) -> Buffer:
        """A buffer of constants, declared where all of them are; `name` is unique among them."""
        self.constants[name] = array
        self.constant_buffers[name] = _buffer(name, [imm(d) for d in array.shape], array.dtype.name)
        return self.constant_buffers[name]

    def declaration(self, name: str) -> Stmt:
        """Inside the batch loop, so that the address stays a constant when the loop's body becomes a function."""
        pointer = PointerType(PrimType(self.constants[name].dtype.name), "global")
        address = Call("tirx.call_extern", [StringImm(constant_symbol(name))], ret_ty=pointer)
        return tirx.DeclBuffer(self.constant_buffers[name], data=address)

    def table(self, values: tuple[int, ...], name: str) -> Buffer:
        if values not in self.tables:
            bits = container(Interval(min(values), max(values)))
            self.tables[values] = self.constant(self.unique(name), np.array(values, np.dtype(f"<i{bits // 8}")))
        return self.tables[values]

    def unique(self, name: str) -> str:
        """A name that no other constant has."""
        found = next(n for i in itertools.count() if (n := f"{name}_{i}" if i else name) not in self.taken)
        self.taken.add(found)
        return found

    def batched(self, body: Stmt) -> Stmt:
        if not self.threads:
            return tirx.For(self.batch, imm(0), self.sizes["B"], tirx.ForKind.PARALLEL, body)
        block = tirx.IterVar(Range(0, self.sizes["B"]), self.batch, tirx.IterVar.ThreadIndex, "blockIdx.x")
        body = tirx.AttrStmt(self.thread, "thread_extent", imm(self.threads), body)
        return tirx.AttrStmt(block, "thread_extent", self.sizes["B"], body)

    def kernel(self, kernel: Kernel) -> Stmt:
        if not self.threads:
            block = self.block()
            if product := self.products.get(kernel.name):
                self.vector_product(product, block)
            else:
                self.statements(kernel.body, block)
            return block.body()
        barrier = tirx.Evaluate(Call("tirx.tvm_storage_sync", [StringImm("shared")], ret_ty="int32"))
        return sequence_of([s for p in _passes(kernel) for s in (self.lanes(p, self.threads), barrier)])

    def vector_product(self, p: products.Product, block: Block) -> None:
        """The sums of all rows, then the rest of the kernel in a loop of its own."""
        name, lanes = identifier(p.node.output), self.dot_lanes
        at = [tirx.Var(str(k), "int32") for k in p.x.indices]
        self.index |= dict(zip(map(str, p.x.indices), at, strict=True))
        made = products.constants(p, lanes)
        constants = {role: self.constant(self.unique(f"{name}_{role}"), array) for role, array in made.items()}
        copy = _buffer(f"{name}_bytes", [imm(p.bytes * p.size)], "uint8")
        total = _buffer(f"{name}_total", [imm(len(made["start"]))], made["start"].dtype.name)
        exponents = _buffer(f"{name}_exponents", [imm(p.filled)], "int32")
        block.statements += [_on_stack(copy), _on_stack(total), _on_stack(exponents)]
        parts = None
        if p.sums and self.traced:
            parts = _buffer(f"{name}_parts", [imm(p.filled), *total.shape], "int32")
            block.statements.append(tirx.AllocBuffer(parts))
        exponent = self.element(p.exponents, block) if p.exponents else None
        held = vnni.Buffers(copy, total, exponents, parts, **constants)
        block.statements += vnni.copies(p, held, at, self.element(p.x, block), exponent)
        block.statements += vnni.dot_products(p, lanes, held)
        if parts is not None:
            self.reported_sums(p, parts, block)
        row, rest = tirx.Var(p.row, "int32"), block.child()
        self.index[p.row], self.locals[p.node.output] = row, load(total, row)
        self.statements(p.rest, rest)
        block.statements.append(serial(row, p.rows, rest.body()))

    def reported_sums(self, p: products.Product, parts: Buffer, block: Block) -> None:
        """What follows the sums of blocks, in a traced build."""
        assert p.sums
        inner = block.child()
        lowered = self.constant(self.unique(f"{identifier(p.sums.value)}_lowered"), p.lowered)
        row, of = tirx.Var(p.sums.row, "int32"), tirx.Var(p.sums.block, "int32")
        self.index |= {p.sums.row: row, p.sums.block: of}
        found = tirx.Sub(tirx.Cast("int64", load(parts, of, row)), load(lowered, row, of))
        self.locals[p.sums.value] = tirx.Cast("int32", found)
        self.statements(p.sums.rest, inner)
        block.statements.append(serial(row, p.rows, serial(of, p.blocks, inner.body())))

    def lanes(self, body: tuple[Statement, ...], threads: int) -> Stmt:
        """A pass with its independent elements dealt to the threads of a block in turn."""
        loops, inner = _independent(body)
        count, turn, block = _elements(body), tirx.Var("turn", "int32"), self.block()
        lane = self.thread.var
        if count > threads:
            lane = load(block.scalar("lane", tirx.Add(tirx.Mul(turn, imm(threads)), lane)), 0)
        rest = count
        for loop in loops:
            rest //= loop.extent
            place = tirx.Div(lane, imm(rest)) if rest > 1 else lane
            wrapped = tirx.Mod(place, imm(loop.extent)) if loop is not loops[0] else place
            self.index[loop.index] = wrapped if len(loops) == 1 else load(block.scalar(loop.index, wrapped), 0)
        guarded = block if count % threads == 0 else block.child()
        self.statements(inner, guarded)
        if guarded is not block:
            block.statements.append(tirx.IfThenElse(tirx.LT(lane, imm(count)), guarded.body(), None))
        if count <= threads:
            return block.body()
        return serial(turn, -(-count // threads), block.body())

    def block(self) -> Block:
        return Block(self.table, self.scope)

    def statements(self, statements: tuple[Statement, ...], block: Block) -> None:
        for s in statements:
            match s:
                case Loop():
                    self.loop(s, block)
                case Accumulator():
                    dtype = f"int{word(s.range.bits)}"
                    start = self.operand(s.start, block, dtype)
                    self.locals[s.value] = load(block.scalar(identifier(s.value), cast(start, dtype)), 0)
                case Accumulate():
                    self.accumulate(s, block)
                case Let():
                    value = cast(self.apply(s.apply, block), f"int{word(s.range.bits)}")
                    self.locals[s.value] = load(block.scalar(identifier(s.value), value), 0)
                case Store():
                    to = self.buffers[s.to.value]
                    value = cast(self.operand(s.operand, block, str(to.dtype)), str(to.dtype))
                    block.statements.append(store(to, value, *self.place(s.to, block)))
                case Tap():
                    if self.traced:
                        place = [self.batch, self.time, *(self.position(i, block) for i in s.indices)]
                        value = cast(self.operand(s.operand, block, "int64"), "int64")
                        block.statements.append(store(self.traces[s.node.output], value, *place))

    def loop(self, s: Loop, block: Block) -> None:
        if s.extent < 1:
            return
        variable, body = tirx.Var(s.index, "int32"), block.child()
        self.index[s.index] = variable
        self.statements(s.body, body)
        block.statements.append(serial(variable, s.extent, body.body()))

    def accumulate(self, s: Accumulate, block: Block) -> None:
        """The result fits the accumulator; a term alone may be wider, where the start outweighs it."""
        total, term = self.locals[s.value], self.apply(s.term, block)
        wide = max(dtype_of(total), dtype_of(term))
        join = tirx.Add if s.combine == "sum" else tirx.Max
        value = join(cast(total, wide), cast(term, wide))
        block.statements.append(store(total.source, cast(value, dtype_of(total)), 0))

    def apply(self, apply: Apply, block: Block) -> Expr:
        return expression(apply.body, [self.operand(o, block) for o in apply.operands], block)

    def operand(self, o: Operand, block: Block, dtype: str = "int32") -> Expr:
        """dtype: of a literal."""
        match o:
            case Element():
                return self.element(o, block)
            case Local():
                return self.locals[o.value]
            case Literal():
                return imm(o.value, dtype)

    def element(self, e: Element, block: Block) -> Expr:
        c = self.nest.program.constant.get(e.value)
        if c is not None and e.value not in self.buffers:
            array = np.frombuffer(c.data, c.type.elem.dtype).reshape(c.type.dims or (1,))
            self.lead[e.value] = ()
            self.buffers[e.value] = self.constant(identifier(e.value), packed(c) if is_packed(c) else array)
        if c is not None and is_packed(c):
            return self.decoded(c, self.place(e, block), block)
        return load(self.buffers[e.value], *self.place(e, block))

    def decoded(self, c: Constant, place: list[Expr], block: Block) -> Expr:
        """The integer of a code, which may lie in several bytes."""
        position, codes, s = imm(0), self.buffers[c.name], c.storage
        for k, size in zip(place, c.type.dims or (1,), strict=True):
            position = tirx.Add(tirx.Mul(position, imm(size)), k)
        at = load(block.scalar("at", tirx.Mul(position, imm(s.bits))), 0)
        first, window = tirx.shift_right(at, imm(3)), imm(0)
        for i in range(touched(s)):
            byte = tirx.Cast("int32", load(codes, tirx.Add(first, imm(i))))
            window = tirx.bitwise_or(window, tirx.shift_left(byte, imm(8 * i)))
        code = tirx.bitwise_and(tirx.shift_right(window, tirx.bitwise_and(at, imm(7))), imm((1 << s.bits) - 1))
        return cast(expression(s.decoder, [code], block), f"int{word(self.nest.range(c.name).bits)}")

    def place(self, e: Element, block: Block) -> list[Expr]:
        """Where an element of a stored value lies; a scalar outside of time is an array of one."""
        return [*self.lead[e.value], *(self.position(i, block) for i in e.indices)] or [imm(0)]

    def position(self, i: Index, block: Block) -> Expr:
        match i:
            case Affine():
                parts = [self.index[k] if c == 1 else tirx.Mul(self.index[k], imm(c)) for k, c in i.terms]
                parts += [imm(i.by)] if i.by else []
                return functools.reduce(tirx.Add, parts)
            case int():
                return imm(i)
            case str():
                return self.index[i]
            case _:
                return cast(self.operand(i, block), "int32")


def _on_stack(buffer: Buffer) -> Stmt:
    """Memory of the function's own frame, where TVM would ask its runtime for more than 1 KiB."""
    return tirx.AllocBuffer(buffer, {"disable_lower_builtin": imm(1, "bool")})


def _buffer(name: str, shape: list[Expr], dtype: str, scope: str = "") -> Buffer:
    """Aligned to its elements only: a caller's arrays need not be aligned for vectors."""
    return tirx.decl_buffer(shape, dtype, name, scope=scope, data_alignment=np.dtype(dtype).itemsize)
