"""Prints a Function as CUDA source with TVM.  Needs neither CUDA nor a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tvm
from tvm import tirx
from tvm.tirx.build import split_host_device_mods

from isobit.export.tvm.build import lowered
from isobit.export.tvm.function import Function, constant_symbol

C_TYPES = {"uint8": "unsigned char", "int8": "signed char", "int16": "short", "int32": "int", "int64": "long long"}


@dataclass(frozen=True)
class Source:
    """CUDA source of one kernel.  arguments: the names of its parameters, in order."""

    text: str
    kernel: str
    arguments: tuple[str, ...]


def source(function: Function, arch: str) -> Source:
    """One kernel, weights included: a block of threads for each batch element."""
    target = {"kind": "cuda", "arch": arch}
    _, devices = split_host_device_mods(lowered(function.prim, target, {"kind": "llvm"}))
    ((device, module),) = devices.items()
    module = tvm.ir.transform.Sequential([tirx.transform.LowerIntrin()])(module)
    ((symbol, prim),) = module.functions.items()
    text = tvm.get_global_func("target.build.cuda")(module, device).inspect_source("cuda")
    constants = "".join(_constant(name, array) for name, array in function.constants.items())
    return Source(constants + str(text), str(symbol.name_hint), tuple(str(p.name) for p in prim.params))


def _constant(name: str, array: npt.NDArray[np.integer]) -> str:
    """The data in the GPU's memory, and the function that gives its address."""
    ctype, values = C_TYPES[array.dtype.name], ",".join(map(_literal, array.ravel().tolist()))
    return (
        f"__device__ const {ctype} {name}_data[{array.size}] = {{{values}}};\n"
        f"__device__ __forceinline__ {ctype}* {constant_symbol(name)}() {{ return ({ctype}*){name}_data; }}\n"
    )


def _literal(value: int) -> str:
    return "-9223372036854775807 - 1" if value == -(1 << 63) else str(value)
