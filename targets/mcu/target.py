"""The C package on a microcontroller board, run under QEMU: exact instruction counts, flash, RAM and stack."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from isobit.quant.errors import InputError
from isobit.quant.program import Arrays, Program
from isobit.targets import toolchain
from isobit.targets.c.harness import harness, read_output, read_taps, write_input
from isobit.targets.c.package import sources
from isobit.targets.files import write_files
from isobit.targets.mcu.boards import BOARDS, Board, Firmware
from isobit.targets.mcu.boards import build as build_firmware
from isobit.targets.mcu.qemu import Memory, measure, run_elf
from isobit.targets.nest import identifier, nest
from isobit.targets.target import Artifact, NotHere, Options, Run

DEFAULT_BOARD = "m4"
FORBIDDEN = re.compile(r"__aeabi_[fd]|^malloc$|^free$|printf$")
"""Symbols that a firmware must not contain: floating point, the heap, formatted output."""


def board_of(options: Options) -> Board:
    """The board that the user chose."""
    name = options.board or DEFAULT_BOARD
    if name not in BOARDS:
        raise InputError(f"unknown board '{name}'; the boards are {', '.join(BOARDS)}")
    return BOARDS[name]


def probe() -> str:
    board = BOARDS[DEFAULT_BOARD]
    compiler = toolchain.version(board.toolchain.tool("gcc"))
    return f"{compiler}; {toolchain.version(board.toolchain.find_emulator())}"


def build(program: Program, folder: Path, options: Options) -> Artifact:
    """Writes the same sources as target `c`."""
    board_of(options)
    return Artifact("mcu", program, folder, write_files(folder, sources(program)), options)


def start(artifact: Artifact, scratch: Path, traced: bool) -> Session:
    """Compiles the package's own sources, as they lie in its folder, with the harness and the board's startup."""
    board, name = board_of(artifact.options), identifier(artifact.program.name)
    main = scratch / "harness.c"
    main.write_text(harness(artifact.program))
    flags = [f"-I{artifact.folder.resolve()}", *(["-DISOBIT_TRACE"] if traced else [])]
    firmware = build_firmware(board, [artifact.folder / f"{name}.c", main], scratch / "firmware", flags)
    _refuse_forbidden_symbols(board, firmware)
    step = measure(board, firmware.elf, firmware.call_graphs, root=f"{name}_step")
    if step.stack > board.stack_size:
        raise NotHere(f"one step needs {step.stack:,} B of stack, board {board.name} has {board.stack_size:,} B")
    return Session(artifact, scratch, board, firmware, step)


def _refuse_forbidden_symbols(board: Board, firmware: Firmware) -> None:
    listing = toolchain.run([board.toolchain.tool("nm"), firmware.elf], None, 60, "list the firmware's symbols").stdout
    symbols = [line.split()[-1] for line in listing.splitlines()]
    if bad := sorted(s for s in symbols if FORBIDDEN.search(s)):
        raise toolchain.ToolFailed("link the firmware", [str(firmware.elf)], "forbidden symbols", ", ".join(bad))


@dataclass(frozen=True)
class Session:
    """A linked firmware in `scratch`; `memory.stack` is that of one step."""

    artifact: Artifact
    scratch: Path
    board: Board
    firmware: Firmware
    memory: Memory

    def run(self, inputs: Arrays, states: Arrays | None, by_step: bool) -> Run:
        program = self.artifact.program
        write_input(self.scratch / "in.bin", program, inputs, states, by_step)
        result = run_elf(self.board, self.firmware.elf, self.scratch, count=True, timeout=600)
        self._expect_success(result.exit_code)
        batch, steps = inputs[program.inputs[0].name].shape[:2]
        instructions = round((result.instructions or 0) / (batch * steps))
        return Run(*read_output(self.scratch / "out.bin", program, batch, steps, by_step), self._info(instructions))

    def trace(self, inputs: Arrays, states: Arrays | None) -> Arrays:
        program = self.artifact.program
        write_input(self.scratch / "in.bin", program, inputs, states, by_step=True)
        self._expect_success(run_elf(self.board, self.firmware.elf, self.scratch, timeout=600).exit_code)
        batch, steps = inputs[program.inputs[0].name].shape[:2]
        return read_taps(self.scratch / "taps.bin", nest(program), batch, steps)

    def _expect_success(self, exit_code: int) -> None:
        if exit_code != 0:
            what = f"run {self.artifact.program.name} on {self.board.name}"
            raise toolchain.ToolFailed(what, [str(self.firmware.elf)], f"exit code {exit_code}", "")

    def _info(self, instructions: int) -> dict[str, object]:
        m = self.memory
        return {
            "board": self.board.name,
            "instructions": instructions,
            "flash": m.flash,
            "ram": m.ram,
            "stack": m.stack,
        }
