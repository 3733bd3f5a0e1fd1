"""The C package, verified on this machine under the undefined-behaviour and address sanitizers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from isobit.quant.program import Arrays, Program
from isobit.quant.storage import stored_bytes
from isobit.targets import toolchain
from isobit.targets.c.harness import harness, read_output, read_taps, write_input
from isobit.targets.c.package import RUNTIME, sources
from isobit.targets.files import write_files
from isobit.targets.nest import identifier, nest
from isobit.targets.target import Artifact, Options, Run

HINT = "apt-get install gcc"
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wundef", "-Wdouble-promotion", "-Werror")
SANITIZERS = ("-fsanitize=undefined,address", "-fno-sanitize-recover=all")


def probe() -> str:
    return toolchain.version(toolchain.find("gcc", HINT))


def build(program: Program, folder: Path, options: Options) -> Artifact:
    """Writes the package's sources; `options` has nothing for this target."""
    return Artifact("c", program, folder, write_files(folder, sources(program)), options)


def start(artifact: Artifact, scratch: Path, traced: bool) -> Session:
    """Compiles the package's own sources, as they lie in its folder, with a harness."""
    gcc = toolchain.find("gcc", HINT)
    name = identifier(artifact.program.name)
    (scratch / "harness.c").write_text(harness(artifact.program))
    command: list[str | Path] = [
        gcc, *WARNINGS, *SANITIZERS, "-Og", *(["-DISOBIT_TRACE"] if traced else []),
        "-I", artifact.folder, "-I", RUNTIME / "include",
        artifact.folder / f"{name}.c", scratch / "harness.c", RUNTIME / "host" / "host_io.c", "-o", scratch / "harness",
    ]  # fmt: skip
    toolchain.run(command, scratch, timeout=300, what=f"compile the C package of {artifact.program.name}")
    return Session(artifact, scratch)


@dataclass(frozen=True)
class Session:
    """A compiled harness in `scratch`."""

    artifact: Artifact
    scratch: Path

    def run(self, inputs: Arrays, states: Arrays | None, by_step: bool) -> Run:
        program = self.artifact.program
        batch, steps = self._execute(inputs, states, by_step)
        return Run(*read_output(self.scratch / "out.bin", program, batch, steps, by_step), self._info())

    def trace(self, inputs: Arrays, states: Arrays | None) -> Arrays:
        batch, steps = self._execute(inputs, states, by_step=True)
        return read_taps(self.scratch / "taps.bin", nest(self.artifact.program), batch, steps)

    def _execute(self, inputs: Arrays, states: Arrays | None, by_step: bool) -> tuple[int, int]:
        program = self.artifact.program
        write_input(self.scratch / "in.bin", program, inputs, states, by_step)
        toolchain.run(
            [self.scratch / "harness"], self.scratch, timeout=600, what=f"run the C package of {program.name}"
        )
        return inputs[program.inputs[0].name].shape[:2]

    def _info(self) -> dict[str, object]:
        program = self.artifact.program
        return {
            "weights": sum(map(stored_bytes, program.constants)),
            "state": sum(s.type.bytes for s in program.states),
        }
