"""The target `cpu`: a Program as a shared library with one function, `sequence`, that TVM's runtime calls."""

from __future__ import annotations

import importlib.util
import shutil
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from isobit.export.tvm.parameters import Argument, description, run_calls
from isobit.quant.program import Arrays, Program
from isobit.targets.nest import identifier, nest
from isobit.targets.target import TARGETS, Artifact, NotHere, Options, Run
from isobit.targets.toolchain import ToolMissing, find, version

if TYPE_CHECKING:
    from isobit.export.tvm.function import Function

TVM_HINT = "pip install 'isobit[tvm]'"


def tvm_version() -> str:
    """TVM's version, without importing it; raises ToolMissing."""
    try:
        if importlib.util.find_spec("tvm"):
            return metadata.version("apache-tvm")
    except ImportError:  # PackageNotFoundError is one
        pass
    raise ToolMissing("apache-tvm", TVM_HINT)


def probe() -> str:
    """The versions of TVM and of the linker; raises ToolMissing."""
    tvm = tvm_version()
    return f"TVM {tvm}, {version(find('gcc', 'sudo apt-get install gcc'))}"


def build(program: Program, folder: Path, options: Options) -> Artifact:
    """Write NAME.so, NAME.tir.py (the function as TVM script) and NAME.json (its parameters), for the CPU options.arch.

    Weights are inside the library.  The same Program and CPU give the same bytes; the default, in LLVM's names, is this
    machine's.
    """
    probe()
    from isobit.export.tvm import build as tvm_build
    from isobit.export.tvm.function import sequence

    name, cpu = identifier(program.name), options.arch or tvm_build.host_cpu()
    function = sequence(nest(program, TARGETS["cpu"].inside), traced=False, dot_lanes=tvm_build.dot_lanes(cpu))
    tvm_build.link(tvm_build.compiled(function, cpu), folder / f"{name}.so")
    (folder / f"{name}.tir.py").write_text(tvm_build.script(function))
    described = {"cpu": cpu, "function": "sequence", "tvm": tvm_version()}
    (folder / f"{name}.json").write_text(description(program, function.parameters, described))
    return Artifact("cpu", program, folder, (f"{name}.so", f"{name}.tir.py", f"{name}.json"), options)


def start(artifact: Artifact, scratch: Path, traced: bool) -> CpuSession:
    """Load the library, or, traced, one with taps made in `scratch`.  Raises NotHere if this CPU cannot run it."""
    tvm_version()
    from isobit.export.tvm import build as tvm_build
    from isobit.export.tvm.function import sequence

    path = artifact.folder / artifact.files[0]
    cpu = artifact.options.arch or tvm_build.host_cpu()
    if missing := tvm_build.missing_features(cpu):
        raise NotHere(f"compiled for {cpu}, this CPU lacks {', '.join(missing)}")
    function = sequence(nest(artifact.program, TARGETS["cpu"].inside), traced, dot_lanes=tvm_build.dot_lanes(cpu))
    if traced:
        path = scratch / f"{identifier(artifact.program.name)}_traced.so"
        tvm_build.link(tvm_build.compiled(function, cpu), path)
    return CpuSession(artifact.program, function, path, scratch)


class CpuSession:
    """A loaded library."""

    def __init__(self, program: Program, function: Function, path: Path, scratch: Path) -> None:
        import tvm

        self.program, self.parameters = program, function.parameters
        self.size = path.stat().st_size
        # The loader knows a library by its path: one that was rebuilt in place would be the old one.
        with TemporaryDirectory(dir=scratch) as folder:
            self.module: Any = tvm.runtime.load_module(shutil.copy(path, folder))
        self.sequence: Any = self.module["sequence"]

    def run(self, inputs: Arrays, states: Arrays | None, by_step: bool) -> Run:
        """As Session.run: a step is a call with T = 1."""
        results = run_calls(self.program, self.parameters, self._call, inputs, states, by_step)
        return Run(results.outputs, results.states, {"library_bytes": self.size})

    def trace(self, inputs: Arrays, states: Arrays | None) -> Arrays:
        """As Session.trace; the session was started with `traced`."""
        traces = run_calls(self.program, self.parameters, self._call, inputs, states, by_step=False).traces
        if not traces:
            raise ValueError("this session has no taps: start it with traced=True")
        return traces

    def _call(self, arguments: list[Argument]) -> None:
        self.sequence(*arguments)
