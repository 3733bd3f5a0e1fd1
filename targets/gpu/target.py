"""The target `gpu`: the CPU's TIR as one CUDA kernel, compiled to a cubin anywhere and run where there is a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from isobit.export.tvm.nvrtc import Nvrtc
from isobit.export.tvm.parameters import Argument, Parameter, description, run_calls
from isobit.quant.program import Arrays, Program
from isobit.targets.cpu.target import tvm_version
from isobit.targets.files import write_files
from isobit.targets.gpu.driver import Device, Kernel
from isobit.targets.nest import identifier, nest
from isobit.targets.target import TARGETS, Artifact, NotHere, Options, Run

if TYPE_CHECKING:
    from isobit.export.tvm.function import Function

DEFAULT_ARCH = "sm_90"


def probe() -> str:
    """The versions of TVM and NVRTC; raises ToolMissing."""
    return f"TVM {tvm_version()}, NVRTC {Nvrtc().version}"


@dataclass(frozen=True)
class Compiled:
    """A kernel, and how to launch it: one block of `threads` for each batch element."""

    text: str
    cubin: bytes
    kernel: str
    threads: int
    parameters: tuple[Parameter, ...]


def build(program: Program, folder: Path, options: Options) -> Artifact:
    """Write NAME.cu, NAME.cubin and NAME.json (the kernel's parameters), for the architecture options.arch.

    Weights are inside.  The same Program and architecture give the same bytes; the default is sm_90.
    """
    name, arch = identifier(program.name), options.arch or DEFAULT_ARCH
    made = compiled(program, arch, traced=False)
    launch = {"arch": arch, "kernel": made.kernel, "blocks": "B", "threads": made.threads, "tvm": tvm_version()}
    files: dict[str, str | bytes] = {
        f"{name}.cu": made.text,
        f"{name}.cubin": made.cubin,
        f"{name}.json": description(program, made.parameters, launch),
    }
    return Artifact("gpu", program, folder, write_files(folder, files), options)


def start(artifact: Artifact, scratch: Path, traced: bool) -> GpuSession:
    """Load the cubin, or, traced, one with taps.  Raises NotHere without a GPU that can run it."""
    device, arch = Device(), artifact.options.arch or DEFAULT_ARCH
    if not runs_on(arch, device.arch):
        raise NotHere(f"compiled for {arch}, this GPU is {device.arch}: build with --arch {device.arch}")
    made = compiled(artifact.program, arch, traced)
    cubin = made.cubin if traced else (artifact.folder / artifact.files[1]).read_bytes()
    return GpuSession(artifact.program, made, Kernel(device, cubin, made.kernel))


def compiled(program: Program, arch: str, traced: bool) -> Compiled:
    """From the Program to machine code."""
    probe()
    nvrtc = Nvrtc()
    nvrtc.check_architecture(arch)
    from isobit.export.tvm.cuda import source
    from isobit.export.tvm.function import sequence, threads_for

    loops = nest(program, TARGETS["gpu"].inside)
    threads = threads_for(loops)
    function = sequence(loops, traced, threads)
    kernel = source(function, arch)
    cubin = nvrtc.cubin(kernel.text, arch)
    return Compiled(kernel.text, cubin, kernel.kernel, threads, _in_order(function, kernel.arguments))


def runs_on(arch: str, device: str) -> bool:
    """Whether machine code for `arch` runs on a device: the same major version, and no newer a minor one."""
    if arch == device or arch[-1] in "af":
        return arch.rstrip("af") == device
    return arch[:-1] == device[:-1] and arch[-1] <= device[-1]


def _in_order(function: Function, arguments: tuple[str, ...]) -> tuple[Parameter, ...]:
    """The kernel's own parameters: arrays in the order that TVM gives them, then the extents."""
    from isobit.export.tvm.function import EXTENTS

    known = {f"{p.name}_ptr": p for p in function.parameters} | {p.name: p for p in EXTENTS}
    return tuple(known[name] for name in arguments)


class GpuSession:
    """A loaded kernel."""

    def __init__(self, program: Program, made: Compiled, kernel: Kernel) -> None:
        self.program, self.made, self.kernel = program, made, kernel

    def run(self, inputs: Arrays, states: Arrays | None, by_step: bool) -> Run:
        """As Session.run: a step is a launch with T = 1."""
        results = run_calls(self.program, self.made.parameters, self._call, inputs, states, by_step)
        return Run(results.outputs, results.states, {"cubin_bytes": len(self.kernel.cubin)})

    def trace(self, inputs: Arrays, states: Arrays | None) -> Arrays:
        """As Session.trace; the session was started with `traced`."""
        traces = run_calls(self.program, self.made.parameters, self._call, inputs, states, by_step=False).traces
        if not traces:
            raise ValueError("this session has no taps: start it with traced=True")
        return traces

    def _call(self, arguments: list[Argument]) -> None:
        batch = next(len(a) for a in arguments if a.ndim)
        self.kernel.launch(batch, self.made.threads, arguments)
