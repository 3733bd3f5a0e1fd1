"""The target `hls`: a package of HLS C++, verified by C simulation with g++; synthesis is left to Vitis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from isobit.quant.expr.rewrite import selected
from isobit.quant.program import Program
from isobit.targets import toolchain
from isobit.targets.files import write_files
from isobit.targets.hls.package import Package
from isobit.targets.hls.runner import HlsSession, runner
from isobit.targets.hls.unit import applied, walk
from isobit.targets.target import Artifact, Options

INSTALL = "apt-get install g++"

WARNINGS = ("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror")
SANITIZERS = ("-fsanitize=undefined,address", "-fno-sanitize-recover=all")

COMPILE_SECONDS = 600


def probe() -> str:
    """The version of g++; raises ToolMissing."""
    return toolchain.version(toolchain.find("g++", INSTALL))


def build(program: Program, folder: Path, options: Options) -> Artifact:
    """Write the package; `options` has nothing that concerns this target."""
    return Artifact("hls", program, folder, write_files(folder, Package(program).files()), options)


def start(artifact: Artifact, scratch: Path, traced: bool) -> HlsSession:
    """Compile the package as it lies in the artifact's folder, edits included, with a runner and sanitizers."""
    package = Package(artifact.program)
    source, binary = scratch / "run.cpp", scratch / f"{package.name}_run"
    source.write_text(runner(package.unit, package.name), encoding="utf-8", newline="\n")
    command: list[str | Path] = [
        toolchain.find("g++", INSTALL),
        *("-std=c++14", "-Og", *WARNINGS, *SANITIZERS, *(["-DISOBIT_TRACE"] if traced else [])),
        *(f"-I{folder}" for folder in (artifact.folder, artifact.folder / "csim")),
        *(artifact.folder / f"{package.name}.cpp", source, "-o", binary),
    ]
    toolchain.run(command, scratch, COMPILE_SECONDS, f"compile {package.name}.cpp")
    return HlsSession(artifact.program, package.unit, binary, scratch, traced, figures(package))


def figures(package: Package) -> Mapping[str, object]:
    """lines of the source; products summed per time step, and terms without a multiplier; the widest multiplication, as
    operand widths."""
    products = [
        tuple(sorted(a.bits for a in n.args))
        for kernel in package.nest.kernels
        for s, _ in walk(kernel.body)
        if (apply := applied(s)) and package.unit.shifted(apply) is None
        for n in apply.body.nodes
        if n.op == "mul" and selected(n) is None
    ]
    return {
        "lines": package.source().count("\n"),
        "macs": sum(package.unit.macs(k) for k in package.nest.kernels),
        "sums": sum(package.unit.sums(k) for k in package.nest.kernels),
        "multiplier": "{} x {}".format(*max(products, key=sum)) if products else "none",
    }
