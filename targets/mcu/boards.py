"""The microcontroller boards, and how a program is compiled and linked for one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from isobit.targets import toolchain

RUNTIME: Final = Path(__file__).resolve().parents[2] / "runtime_stubs"
BUILD_TIMEOUT_S: Final = 120

LANGUAGE_FLAGS: Final = (
    *("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wundef", "-Wdouble-promotion", "-Werror"),
    # A function folded into an equal one would be missing from the call graph of the stack analysis.
    *("-ffunction-sections", "-fdata-sections", "-fno-ipa-icf"),
)
# Of what a program may use from outside itself: memcpy and memset (newlib), wide arithmetic (libgcc).
LINK_FLAGS: Final = ("-nostdlib", "-Wl,--gc-sections", "-Wl,--fatal-warnings", "-Wl,--no-warn-rwx-segments")
LIBRARIES: Final = ("-lc", "-lgcc")

KIB: Final = 1024
MIB: Final = 1024 * KIB


@dataclass(frozen=True)
class Region:
    """A range of addresses: its first one and its size in bytes."""

    origin: int
    size: int


@dataclass(frozen=True)
class Toolchain:
    """The programs for one instruction set. `prefix` + "gcc", "nm", ... name the compiler's."""

    prefix: str
    compiler_hint: str
    emulator: str
    emulator_hint: str

    def tool(self, name: str) -> Path:
        """A program of the compiler: "gcc", "size", "nm", "objdump". Raises ToolMissing."""
        return toolchain.find(self.prefix + name, self.compiler_hint)

    def find_emulator(self) -> Path:
        """The system emulator. Raises ToolMissing."""
        return toolchain.find(self.emulator, self.emulator_hint)


@dataclass(frozen=True)
class Board:
    """A core, the simulated machine it runs on, and the memory a program gets there.

    `stack_size` bytes of `ram` are the stack. `startup` and `linker_script` are files of runtime_stubs/boards.
    """

    name: str
    core: str
    toolchain: Toolchain
    compile_flags: tuple[str, ...]
    machine: str
    machine_flags: tuple[str, ...]
    flash: Region
    ram: Region
    stack_size: int
    startup: str
    linker_script: str


@dataclass(frozen=True)
class Firmware:
    """A linked program and, for the stack analysis, the call graph the compiler wrote for each source."""

    elf: Path
    call_graphs: tuple[Path, ...]


ARM: Final = Toolchain(
    prefix="arm-none-eabi-",
    compiler_hint="apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi",
    emulator="qemu-system-arm",
    emulator_hint="apt-get install qemu-system-arm",
)


def _arm(name: str, core: str, cpu: str, abi: str, machine: str, flash: Region, ram: Region) -> Board:
    """A board with an Arm core; `abi` is gcc's -mfloat-abi.  A quarter of its RAM is stack, at most 512 KiB."""
    flags = (f"-mcpu={cpu}", "-mthumb", f"-mfloat-abi={abi}")
    stack = min(ram.size // 4, 512 * KIB)
    return Board(name, core, ARM, flags, machine, (), flash, ram, stack, "startup_arm.c", "arm.ld")


# Floating-point units are left off (soft ABI; on the M55, +nofp keeps integer Helium), so that a float that
# slipped into a program shows as a call of __aeabi_f*. QEMU has no M0 board of useful size: M0 code runs on an
# M3, where startup makes a misaligned access fault as on an M0.
CODE: Final = Region(0x00000000, 4 * MIB)
SRAM: Final = Region(0x20000000, 4 * MIB)

BOARDS: Final[Mapping[str, Board]] = MappingProxyType(
    {
        "m0": _arm("m0", "Cortex-M0", "cortex-m0", "soft", "mps2-an385", CODE, SRAM),
        "m3": _arm("m3", "Cortex-M3", "cortex-m3", "soft", "mps2-an385", CODE, SRAM),
        "m4": _arm("m4", "Cortex-M4", "cortex-m4", "soft", "mps2-an386", CODE, SRAM),
        "m7": _arm("m7", "Cortex-M7", "cortex-m7", "soft", "mps2-an500", CODE, SRAM),
        "m33": _arm(
            "m33", "Cortex-M33", "cortex-m33", "soft", "mps2-an505",
            Region(0x10000000, 4 * MIB), Region(0x38000000, 2 * MIB),
        ),
        "m55": _arm(
            "m55", "Cortex-M55", "cortex-m55+nofp", "hard", "mps3-an547",
            Region(0x00000000, 512 * KIB), Region(0x20000000, 512 * KIB),
        ),
    }
)  # fmt: skip


def build(
    board: Board,
    sources: Sequence[Path],
    folder: Path,
    flags: Sequence[str] = (),
    optimise: str = "-O2",
) -> Firmware:
    """Compiles `sources` with the board's own support files and links `folder`/firmware.elf.

    `main` is in `sources`; they see the headers `isobit/*.h`. `flags` are added to every compilation of
    `sources` (-D, -I with an absolute path). Every source needs a file name of its own.
    Raises ToolMissing or ToolFailed.
    """
    gcc = board.toolchain.tool("gcc")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    support = [RUNTIME / "boards" / name for name in (board.startup, "semihosting.c", "count.c")]
    common = [*board.compile_flags, *LANGUAGE_FLAGS, optimise, "-DISOBIT_BOARD", f"-I{RUNTIME / 'include'}"]

    objects: list[Path] = []
    for source in (*support, *sources):
        target = folder / f"{source.name}.o"
        if target in objects:
            raise ValueError(f"two sources are named {source.name}; rename one, their objects share a folder")
        own = flags if source in sources else ()
        compile_command: list[str | Path] = [
            gcc,
            *common,
            *own,
            "-fcallgraph-info=su",
            "-c",
            source.resolve(),
            "-o",
            target,
        ]
        toolchain.run(compile_command, folder, BUILD_TIMEOUT_S, f"compile {source.name} for {board.name}")
        objects.append(target)

    elf = folder / "firmware.elf"
    script = RUNTIME / "boards" / board.linker_script
    link: list[str | Path] = [*board.compile_flags, *LINK_FLAGS, *_memory_symbols(board), "-T", script]
    link_command: list[str | Path] = [gcc, *link, *objects, *LIBRARIES, "-o", elf]
    toolchain.run(link_command, folder, BUILD_TIMEOUT_S, f"link {elf.name} for {board.name}")
    return Firmware(elf, tuple(target.with_suffix(".ci") for target in objects))


def _memory_symbols(board: Board) -> list[str]:
    values = {
        "isobit_flash_origin": board.flash.origin,
        "isobit_flash_size": board.flash.size,
        "isobit_ram_origin": board.ram.origin,
        "isobit_ram_size": board.ram.size,
        "isobit_stack_size": board.stack_size,
    }
    return [f"-Wl,--defsym={symbol}={value:#x}" for symbol, value in values.items()]
