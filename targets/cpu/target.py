"""The target `cpu`: a Program as a shared library with one function, `sequence`, that TVM's runtime calls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isobit.quant.errors import InputError
from isobit.quant.interpret import checked_inputs
from isobit.quant.program import Arrays, Program
from isobit.targets.nest import identifier, nest
from isobit.targets.target import Artifact, NotHere, Options, Run
from isobit.targets.toolchain import ToolMissing, find, version

if TYPE_CHECKING:
    from isobit.export.tvm.function import Function, Parameter

TVM_HINT = "pip install 'isobit[tvm]'"
MOST_ELEMENTS = (1 << 31) - 1
"""Of one array: the generated code indexes with int32."""


def tvm_version() -> str:
    """TVM's version, without importing it; raises ToolMissing."""
    try:
        return metadata.version("apache-tvm")
    except metadata.PackageNotFoundError:
        raise ToolMissing("apache-tvm", TVM_HINT) from None


def probe() -> str:
    """The versions of TVM and of the linker; raises ToolMissing."""
    tvm = tvm_version()
    return f"TVM {tvm}, {version(find('gcc', 'sudo apt-get install gcc'))}"


def build(program: Program, folder: Path, options: Options) -> Artifact:
    """Write NAME.so, NAME.tir.py (the function as TVM script) and NAME.json (its parameters), for the LLVM CPU options.arch.

    Weights are inside the library.  The same Program and CPU give the same bytes; the default is this machine's CPU.
    """
    probe()
    from isobit.export.tvm import build as tvm_build
    from isobit.export.tvm.function import sequence

    name, cpu = identifier(program.name), options.arch or tvm_build.host_cpu()
    function = sequence(nest(program), traced=False)
    tvm_build.link(tvm_build.compiled(function, cpu), folder / f"{name}.so")
    (folder / f"{name}.tir.py").write_text(tvm_build.script(function))
    described = {"cpu": cpu, "function": "sequence", "tvm": tvm_version()}
    (folder / f"{name}.json").write_text(description(program, function, described))
    return Artifact("cpu", program, folder, (f"{name}.so", f"{name}.tir.py", f"{name}.json"), options)


def start(artifact: Artifact, scratch: Path, traced: bool) -> CpuSession:
    """Load the library, or, traced, one with taps made in `scratch`.  Raises NotHere if this CPU cannot run it."""
    probe()
    from isobit.export.tvm import build as tvm_build
    from isobit.export.tvm.function import sequence

    path = artifact.folder / artifact.files[0]
    cpu = artifact.options.arch or tvm_build.host_cpu()
    if missing := tvm_build.missing_features(cpu):
        raise NotHere(f"compiled for {cpu}, this CPU lacks {', '.join(missing)}")
    function = sequence(nest(artifact.program), traced)
    if traced:
        path = scratch / f"{identifier(artifact.program.name)}_traced.so"
        tvm_build.link(tvm_build.compiled(function, cpu), path)
    return CpuSession(artifact.program, function, path)


def description(program: Program, function: Function, facts: Mapping[str, object]) -> str:
    """JSON for whoever calls the compiled function: its parameters in order, and what they were compiled from."""
    parameters = [{"name": p.name, "role": p.role, "dtype": p.dtype, "shape": p.shape} for p in function.parameters]
    content = {"program": program.name, "digest": program.digest, **facts, "parameters": parameters}
    return json.dumps(content, indent=2) + "\n"


class CpuSession:
    """A loaded library."""

    def __init__(self, program: Program, function: Function, path: Path) -> None:
        import tvm

        self.program, self.parameters = program, function.parameters
        self.size = path.stat().st_size
        self.module: Any = tvm.runtime.load_module(str(path))
        self.sequence: Any = self.module["sequence"]

    def run(self, inputs: Arrays, states: Arrays | None, by_step: bool) -> Run:
        """As Session.run: a step is a call with T = 1."""
        results, after = run_calls(self.program, self.parameters, self.call, inputs, states, by_step)
        outputs = {o: results["output", o] for o in self.program.outputs}
        return Run(outputs, after, {"library bytes": self.size})

    def trace(self, inputs: Arrays, states: Arrays | None) -> Arrays:
        """As Session.trace; the session was started with `traced`."""
        results, _ = run_calls(self.program, self.parameters, self.call, inputs, states, by_step=False)
        traces = {value: array for (role, value), array in results.items() if role == "trace"}
        if not traces:
            raise ValueError("this session has no taps: start it with traced=True")
        return traces

    def call(self, arguments: list[Array]) -> None:
        self.sequence(*arguments)
