"""Compiles a printed Function with LLVM to a shared library, byte for byte the same wherever it is built.

The pipeline is our own: TVM's default one simplifies and narrows arithmetic, and vectorizes some of it wrongly.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import tirx
from tvm.ir import StringImm
from tvm.target import Target

from isobit.export.tvm.expression import imm
from isobit.export.tvm.function import Function, constant_symbol
from isobit.quant.errors import InputError
from isobit.targets.toolchain import find, run

LINKER_HINT = "sudo apt-get install gcc"
LINK_SECONDS = 120
INVALID = "LLVM module verification failed"
VECTOR_FEATURES = ("avx", "amx", "bmi", "dotprod", "fma", "i8mm", "sse", "sve")


def host_cpu() -> str:
    """This machine's CPU, as LLVM names it."""
    return str(tvm.get_global_func("target.llvm_get_system_cpu")())


def llvm_target(cpu: str) -> dict[str, str]:
    """TVM's description of a Linux machine of this architecture with this CPU; raises InputError for an unknown one."""
    target = {"kind": "llvm", "mcpu": cpu, "mtriple": f"{platform.machine()}-linux-gnu"}
    if not tvm.get_global_func("target.llvm_is_valid_cpu")(cpu, target["mtriple"]):
        raise InputError(f"LLVM knows no {platform.machine()} CPU '{cpu}'; this machine's is '{host_cpu()}'")
    return target


def dot_lanes(cpu: str) -> int:
    """int32 lanes of the CPU's widest `vpdpbusd`, an instruction that sums products of bytes; 0 if it has none."""
    target = Target(llvm_target(cpu))

    def has(*features: str) -> bool:
        return all(tvm.get_global_func("target.llvm_cpu_has_feature")(f, target) for f in features)

    return 16 if has("avx512vnni") else 8 if has("avxvnni") else 0


def missing_features(cpu: str) -> list[str]:
    """Vector extensions that code for `cpu` may use and this machine lacks."""
    if cpu == host_cpu():
        return []
    here = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    wanted = tvm.get_global_func("target.llvm_get_cpu_features")(Target(llvm_target(cpu)))
    return sorted(str(f) for f in wanted if str(f).startswith(VECTOR_FEATURES) and f in here and not here[f])


def script(function: Function) -> str:
    """The function as TVM script, for people; constants are asked for by name."""
    return str(tvm.IRModule({"sequence": function.prim}).script()).rstrip() + "\n"


def lowered(prim: tirx.PrimFunc, target: dict[str, Any], host: dict[str, Any]) -> Any:
    """The module after the passes that CPU and GPU share.  None of them changes integer arithmetic."""
    passes = tirx.transform
    return tvm.ir.transform.Sequential(
        [
            passes.BindTarget(Target(target).with_host(Target(host))),
            passes.FlattenBuffer(),
            passes.VectorizeLoop(False),
            passes.UnrollLoop(),
            passes.VerifyMemory(),
            passes.AnnotateEntryFunc(),
            passes.SplitHostDevice(),
            passes.MakePackedAPI(),
        ]
    )(tvm.IRModule({"sequence": prim}))


def compiled(function: Function, cpu: str) -> Any:
    """A TVM module of machine code with the function `sequence`, its constants inside.

    LLVM 22's vectorizer of straight-line code makes invalid code of some functions, and says so: it then stays off.
    """
    target = llvm_target(cpu)
    try:
        return _compiled(function, target)
    except tvm.error.InternalError as e:
        if INVALID not in str(e):
            raise
        return _compiled(function, {**target, "cl-opt": ["-vectorize-slp:bool=0"]})


def _compiled(function: Function, target: dict[str, Any]) -> Any:
    constants = "".join(_llvm_constant(name, array) for name, array in function.constants.items())
    prim = function.prim
    if constants:
        body = tirx.AttrStmt(imm(0), "pragma_import_llvm", StringImm(constants), prim.body)
        prim = tirx.PrimFunc(prim.params, body).with_attrs(dict(prim.attrs.items()))
    passes = tirx.transform
    lower_calls = tvm.ir.transform.Sequential([passes.LowerTVMBuiltin(), passes.LowerIntrin()])
    return tvm.get_global_func("target.build.llvm")(lower_calls(lowered(prim, target, target)), Target(target))


def link(module: Any, path: Path) -> None:
    """Write a shared library; a file at `path` is replaced whole: a process that has it loaded keeps its own."""
    linker = find("gcc", LINKER_HINT)
    with TemporaryDirectory(dir=path.parent, prefix=".link") as folder:
        module.write_to_file(str(Path(folder, "sequence.o")))
        command: list[str | Path] = [
            linker,
            "-shared",
            "-o",
            "sequence.so",
            "sequence.o",
            "-Wl,--build-id=none",
            "-Wl,-O1",
        ]
        run(command, Path(folder), LINK_SECONDS, f"link {path.name}")
        os.replace(Path(folder, "sequence.so"), path)


def _llvm_constant(name: str, array: npt.NDArray[np.integer]) -> str:
    """LLVM text: the data, and the function that gives its address."""
    text = "".join(f"\\{byte:02X}" for byte in array.tobytes())
    return (
        f'@{name}.data = private unnamed_addr constant [{array.nbytes} x i8] c"{text}", align 64\n'
        f"define ptr @{constant_symbol(name)}() alwaysinline {{\n  ret ptr @{name}.data\n}}\n"
    )
