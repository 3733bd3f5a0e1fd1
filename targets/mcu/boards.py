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


# Floating-point units are left off (soft ABI; on the M55, +nofp keeps integer Helium), so that a float that
# slipped into a program shows as a call of __aeabi_f*. QEMU has no M0 board of useful size: M0 code runs on an
# M3, where startup makes a misaligned access fault as on an M0.
BOARDS: Final[Mapping[str, Board]] = MappingProxyType(
    {
        "m0": Board(
            name="m0",
            core="Cortex-M0",
            toolchain=ARM,
            compile_flags=("-mcpu=cortex-m0", "-mthumb", "-mfloat-abi=soft"),
            machine="mps2-an385",
            machine_flags=(),
            flash=Region(0x00000000, 4 * MIB),
            ram=Region(0x20000000, 4 * MIB),
            stack_size=64 * KIB,
            startup="startup_arm.c",
            linker_script="arm.ld",
        ),
        "m3": Board(
            name="m3",
            core="Cortex-M3",
            toolchain=ARM,
            compile_flags=("-mcpu=cortex-m3", "-mthumb", "-mfloat-abi=soft"),
            machine="mps2-an385",
            machine_flags=(),
            flash=Region(0x00000000, 4 * MIB),
            ram=Region(0x20000000, 4 * MIB),
            stack_size=64 * KIB,
            startup="startup_arm.c",
            linker_script="arm.ld",
        ),
        "m4": Board(
            name="m4",
            core="Cortex-M4",
            toolchain=ARM,
            compile_flags=("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=soft"),
            machine="mps2-an386",
            machine_flags=(),
            flash=Region(0x00000000, 4 * MIB),
            ram=Region(0x20000000, 4 * MIB),
            stack_size=64 * KIB,
            startup="startup_arm.c",
            linker_script="arm.ld",
        ),
        "m7": Board(
            name="m7",
            core="Cortex-M7",
            toolchain=ARM,
            compile_flags=("-mcpu=cortex-m7", "-mthumb", "-mfloat-abi=soft"),
            machine="mps2-an500",
            machine_flags=(),
            flash=Region(0x00000000, 4 * MIB),
            ram=Region(0x20000000, 4 * MIB),
            stack_size=64 * KIB,
            startup="startup_arm.c",
            linker_script="arm.ld",
        ),
        "m33": Board(
            name="m33",
            core="Cortex-M33",
            toolchain=ARM,
            compile_flags=("-mcpu=cortex-m33", "-mthumb", "-mfloat-abi=soft"),
            machine="mps2-an505",
            machine_flags=(),
            flash=Region(0x10000000, 4 * MIB),
            ram=Region(0x38000000, 2 * MIB),
            stack_size=64 * KIB,
            startup="startup_arm.c",
            linker_script="arm.ld",
        ),
        "m55": Board(
            name="m55",
            core="Cortex-M55",
            toolchain=ARM,
            compile_flags=("-mcpu=cortex-m55+nofp", "-mthumb", "-mfloat-abi=hard"),
            machine="mps3-an547",
            machine_flags=(),
            flash=Region(0x00000000, 512 * KIB),
            ram=Region(0x20000000, 512 * KIB),
            stack_size=64 * KIB,
            startup="startup_arm.c",
            linker_script="arm.ld",
        ),
    }
)


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
