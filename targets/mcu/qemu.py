"""Running a board's program on QEMU with exact instruction counts, and measuring the memory it needs."""

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from isobit.targets import toolchain
from isobit.targets.mcu.boards import RUNTIME, Board
from isobit.targets.toolchain import ToolFailed

FAULT_EXIT: Final = 99  # of a program that faulted, or took an exception it does not handle
INSPECT_TIMEOUT_S: Final = 60

FLASH_SECTIONS: Final = frozenset({".vectors", ".text", ".ARM.extab", ".ARM.exidx", ".data"})
RAM_SECTIONS: Final = frozenset({".data", ".bss"})
STACK_SECTION: Final = ".stack"

INDIRECT_CALL: Final = "__indirect_call"  # gcc's name for every callee it does not know


@dataclass(frozen=True)
class RunResult:
    """How a program ended: its exit code, and the instructions it executed between the count markers.

    `instructions` adds up over `regions` begin-end pairs; both are None where nothing was counted.
    """

    exit_code: int
    instructions: int | None
    regions: int | None


@dataclass(frozen=True)
class Memory:
    """Bytes that a program occupies.

    `flash` is code, constants and the image of initialised data; `ram` is static data; `stack` is the worst
    case over `stack_path`, the functions from the root inwards. Exception frames are not included: no interrupt is
    enabled, and a fault ends the program on a stack of its own.
    """

    flash: int
    ram: int
    stack: int
    stack_path: tuple[str, ...]


class StackUnbounded(Exception):
    """The worst stack of a program cannot be told: recursion, a call by pointer, or a frame of dynamic size."""


def run_elf(board: Board, elf: Path, cwd: Path, count: bool = False, timeout: float = 60) -> RunResult:
    """Runs a program to its end; the files it opens are relative to `cwd`.

    With `count`, the program must contain the markers of isobit/count.h. Raises ToolMissing, and ToolFailed when
    QEMU itself fails, when the core locks up, or when the program runs for more than `timeout` seconds.
    """
    emulator = board.toolchain.find_emulator()
    what = f"run {elf.name} on {board.machine}"
    command: list[str | Path] = [emulator, "-M", board.machine, *board.machine_flags]
    command += ["-display", "none", "-monitor", "none", "-serial", "null"]
    command += ["-semihosting-config", "enable=on,target=native", "-kernel", elf.resolve()]
    with tempfile.TemporaryDirectory(prefix="isobit-") as scratch:
        counts = Path(scratch) / "counts"
        if count:
            command += ["-plugin", _plugin_argument(board, elf, counts)]
        done = toolchain.run(command, cwd, timeout, what, check=False)
        qemu_complained = done.returncode == 1 and f"{emulator.name}: " in done.stderr
        if done.returncode < 0 or qemu_complained:
            raise ToolFailed(what, [str(word) for word in command], f"exit code {done.returncode}", done.stderr)
        if not count:
            return RunResult(done.returncode, None, None)
        values = dict(line.split() for line in counts.read_text().splitlines())
    return RunResult(done.returncode, int(values["instructions"]), int(values["regions"]))


def measure(board: Board, elf: Path, call_graphs: Sequence[Path], root: str = "Reset_Handler") -> Memory:
    """The memory of a linked program; `call_graphs` are the .ci files gcc -fcallgraph-info=su wrote for it.

    The stack is that of a call of `root`. A function without a call graph (memcpy, the division of libgcc) is
    bounded from its machine code. Raises StackUnbounded, ToolMissing or ToolFailed.
    """
    flash, ram = _static_sizes(board, elf)
    stack, path = _worst_stack(_call_graph(call_graphs), _MachineCode(board, elf), root)
    return Memory(flash, ram, stack, tuple(_short(name) for name in path))


def _plugin_argument(board: Board, elf: Path, counts: Path) -> str:
    symbols = _symbols(board, elf)
    for marker in ("isobit_count_begin", "isobit_count_end"):
        if marker not in symbols:
            raise ValueError(f"{elf} has no {marker}: a counted program calls both markers of isobit/count.h")
    begin, end = symbols["isobit_count_begin"], symbols["isobit_count_end"]
    words = [str(_counting_plugin()), f"begin={begin:#x}", f"end={end:#x}", f"out={counts}"]
    return ",".join(word.replace(",", ",,") for word in words)


def _counting_plugin() -> Path:
    """The compiled qemu/count_plugin.c: from the user's cache folder, or compiled into it."""
    source = RUNTIME / "qemu" / "count_plugin.c"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isobit"
    plugin = cache / f"count_plugin-{os.uname().machine}-{digest}.so"
    if plugin.exists():
        return plugin
    gcc = toolchain.find("gcc", "apt-get install gcc libc6-dev")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=cache) as scratch:
        fresh = Path(scratch) / plugin.name
        flags = ["-std=c99", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
        toolchain.run([gcc, *flags, source, "-o", fresh], cache, 60, "compile the instruction counter")
        fresh.replace(plugin)
    return plugin


def _inspect(board: Board, tool: str, *arguments: str | Path) -> str:
    path = board.toolchain.tool(tool)
    return toolchain.run([path, *arguments], None, INSPECT_TIMEOUT_S, f"read a program with {path.name}").stdout


def _symbols(board: Board, elf: Path) -> dict[str, int]:
    rows = [line.split() for line in _inspect(board, "nm", elf).splitlines()]
    return {row[2]: int(row[0], 16) for row in rows if len(row) == 3}


def _static_sizes(board: Board, elf: Path) -> tuple[int, int]:
    """Bytes of flash and of RAM without the stack."""
    rows = [line.split() for line in _inspect(board, "size", "-A", elf).splitlines()]
    sizes = {row[0]: int(row[1]) for row in rows if len(row) == 3 and row[1].isdigit()}
    known = FLASH_SECTIONS | RAM_SECTIONS | {STACK_SECTION}
    # The summary counts exactly the sections that occupy memory.
    occupied = int(_inspect(board, "size", elf).splitlines()[1].split()[3])
    if occupied != sum(sizes.get(name, 0) for name in known):
        raise ValueError(f"{elf}: memory outside the sections {sorted(known)} of {board.linker_script}: {sizes}")
    flash = sum(sizes.get(name, 0) for name in FLASH_SECTIONS)
    return flash, sum(sizes.get(name, 0) for name in RAM_SECTIONS)


@dataclass(frozen=True)
class _Function:
    """One node of the call graph: its own frame in bytes, or None where it varies, and the names of its callees."""

    frame: int | None
    callees: frozenset[str]


_NODE: Final = re.compile(r'node: \{ title: "([^"]+)" label: "[^"]*\\n(\d+) bytes \(([a-z,]+)\)')
_EDGE: Final = re.compile(r'edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"')


def _call_graph(files: Sequence[Path]) -> dict[str, _Function]:
    """The functions that gcc compiled. A function in several files (inline, from a header) is their worst case."""
    frames: dict[str, int | None] = {}
    callees: dict[str, set[str]] = {}
    for file in files:
        text = file.read_text()
        for name, size, kind in _NODE.findall(text):
            before = frames.get(name, 0)
            # "dynamic" alone has no bound; "static" and "dynamic,bounded" state one.
            frames[name] = None if kind == "dynamic" or before is None else max(before, int(size))
        for caller, callee in _EDGE.findall(text):
            callees.setdefault(caller, set()).add(callee)
    return {name: _Function(frame, frozenset(callees.get(name, ()))) for name, frame in frames.items()}


def _short(name: str) -> str:
    """gcc's title of a static function is "path/of/file.c:name"; for people, the file's own name is enough."""
    return name.rpartition("/")[2]


def _worst_stack(graph: Mapping[str, _Function], code: "_MachineCode", root: str) -> tuple[int, tuple[str, ...]]:
    """The deepest stack of a call of `root` in bytes, and the functions that make it up."""
    known: dict[str, tuple[int, tuple[str, ...]]] = {}

    def visit(name: str, callers: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        path = " -> ".join(_short(each) for each in (*callers, name))
        if name in callers:
            raise StackUnbounded(f"the stack of {root} has no bound: {path} is recursive; make it a loop")
        if name == INDIRECT_CALL:
            caller = path.removesuffix(f" -> {name}")
            raise StackUnbounded(f"the stack of {root} has no bound: {caller} calls through a pointer; call by name")
        if name not in known:
            function = graph.get(name)
            if function is None:
                known[name] = (code.stack_of(name, path), (name,))
            elif function.frame is None:
                raise StackUnbounded(
                    f"the stack of {root} has no bound: the frame of {path} varies (alloca or a variable-length "
                    "array); give the array a constant size"
                )
            else:
                inner = [visit(callee, (*callers, name)) for callee in sorted(function.callees)]
                depth, names = max(inner, key=lambda found: found[0], default=(0, ()))
                known[name] = (function.frame + depth, (name, *names))
        return known[name]

    return visit(root, ())


_BLOCK: Final = re.compile(r"^[0-9a-f]+ <(.+)>:$")
_INSTRUCTION: Final = re.compile(r"^ *[0-9a-f]+:\t(\S+)(?:\t([^;@]*))?")
_TARGET: Final = re.compile(r"<([^>+]+)(?:\+0x[0-9a-f]+)?>")
_REGISTERS: Final = re.compile(r"\{([^}]*)\}")
_PRE_DECREMENT: Final = re.compile(r"\[sp, #-(\d+)\]!")
_FRAME_SIZE: Final = re.compile(r"^sp, (?:sp, )?#(\d+)$")
_NOT_EXECUTED: Final = ("nop", ".short", ".word")  # padding and constants after a function
_LEAVING: Final = ("b", "bl", "bx", "pop", "ldmia", "udf")  # what ends a function that does not fall through


class _MachineCode:
    """The Arm code of a program, for the stack of library functions that come without a call graph."""

    def __init__(self, board: Board, elf: Path) -> None:
        self._board = board
        self._elf = elf
        self._blocks: dict[str, list[tuple[str, str]]] | None = None

    def stack_of(self, name: str, path: str) -> int:
        """An upper bound of the stack of a call of `name`: everything that all code reachable from it pushes.

        Library code pushes nothing in loops, so each instruction counts once. `path` is for the message only.
        gcc's graph has calls that it weighed and did not make, as one of two divisions: what is not linked needs 0.
        """
        blocks = self._load()
        if name not in blocks and name not in _symbols(self._board, self._elf):
            return 0
        if name not in blocks:
            raise StackUnbounded(f"the stack of {path} cannot be told: the program has neither its call graph nor it")
        reached, waiting, total = {name}, [name], 0
        while waiting:
            for mnemonic, operands in blocks[waiting.pop()]:
                pushed = _pushed_bytes(mnemonic, operands)
                if pushed is None:
                    raise StackUnbounded(f"the stack of {path} cannot be told: it has `{mnemonic} {operands}`")
                total += pushed
                fresh = {target for target in _TARGET.findall(operands) if target in blocks} - reached
                reached |= fresh
                waiting += fresh
        return total

    def _load(self) -> dict[str, list[tuple[str, str]]]:
        if self._blocks is None:
            self._blocks = {}
            body: list[tuple[str, str]] = []
            addresses = _symbols(self._board, self._elf)
            for line in _inspect(self._board, "objdump", "-d", "--no-show-raw-insn", self._elf).splitlines():
                if header := _BLOCK.match(line):
                    if body and body[-1][0] not in _LEAVING:
                        body.append(("b", f"<{header[1]}>"))  # falls through into the next function
                    body = self._blocks[header[1]] = []
                elif (found := _INSTRUCTION.match(line)) and found[1] not in _NOT_EXECUTED:
                    body.append((found[1].removesuffix(".n").removesuffix(".w"), (found[2] or "").strip()))
            by_address = {addresses[name]: name for name in self._blocks if name in addresses}
            for alias, address in addresses.items():
                if address in by_address:
                    self._blocks.setdefault(alias, self._blocks[by_address[address]])
        return self._blocks


def _pushed_bytes(mnemonic: str, operands: str) -> int | None:
    """By how much an Arm instruction lowers the stack pointer; None where that, or where it goes, is not known."""
    if mnemonic in ("bx", "blx") and operands != "lr":
        return None
    if mnemonic in ("push", "vpush") or (mnemonic in ("stmdb", "stmfd") and operands.startswith("sp!")):
        listed = _REGISTERS.search(operands)
        return sum(_register_bytes(part.strip()) for part in listed[1].split(",")) if listed else None
    if decrement := _PRE_DECREMENT.search(operands):
        return int(decrement[1])
    if mnemonic in ("sub", "subs", "subw", "mov", "add", "addw") and operands.startswith("sp,"):
        frame = _FRAME_SIZE.match(operands)
        if frame is None:
            return None
        return int(frame[1]) if mnemonic.startswith("sub") else 0
    return 0


def _register_bytes(listed: str) -> int:
    """Bytes of one entry of a register list: "r4", "lr", "d8" or "d8-d15"."""
    first, _, last = listed.partition("-")
    count = int(last[1:]) - int(first[1:]) + 1 if last else 1
    return count * (8 if first.startswith("d") else 4)
