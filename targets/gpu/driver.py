"""The CUDA driver, through ctypes: a cubin's kernel, launched on host arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from isobit.export.tvm.parameters import Argument
from isobit.targets.target import NotHere
from isobit.targets.toolchain import ToolFailed

CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*."""

NO_GPU = "compiled, no GPU"


class Device:
    """The first GPU of this machine."""

    def __init__(self) -> None:
        """Raises NotHere where there is none."""
        try:
            self.driver: Any = ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise NotHere(NO_GPU) from None
        count = ctypes.c_int()
        if self.driver.cuInit(0) or self.driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            raise NotHere(NO_GPU)
        self.device, self.context = ctypes.c_int(), ctypes.c_void_p()
        self.check("cuDeviceGet", ctypes.byref(self.device), 0)
        self.check("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), self.device)
        self.check("cuCtxSetCurrent", self.context)

    @property
    def arch(self) -> str:
        """Such as sm_90."""
        number = ctypes.c_int()
        digits = []
        for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
            self.check("cuDeviceGetAttribute", ctypes.byref(number), attribute, self.device)
            digits.append(number.value)
        return f"sm_{digits[0]}{digits[1]}"

    def check(self, call: str, *arguments: Any) -> None:
        """Call the driver; raises ToolFailed with the driver's name for the error."""
        if result := getattr(self.driver, call)(*arguments):
            name = ctypes.c_char_p()
            self.driver.cuGetErrorName(result, ctypes.byref(name))
            raise ToolFailed("run the kernel", [call], (name.value or b"").decode() or f"error {result}", "")


class Kernel:
    """One kernel of a cubin."""

    def __init__(self, device: Device, cubin: bytes, name: str) -> None:
        self.device, self.cubin = device, cubin
        module, self.function = ctypes.c_void_p(), ctypes.c_void_p()
        device.check("cuModuleLoadData", ctypes.byref(module), cubin)
        device.check("cuModuleGetFunction", ctypes.byref(self.function), module, name.encode())

    def launch(self, blocks: int, threads: int, arguments: Sequence[Argument]) -> None:
        """Run to the end on copies of the arrays, then copy them back; an array of no dimensions is passed by value."""
        memory = list[ctypes.c_uint64]()
        try:
            values: list[Any] = []
            for array in arguments:
                values.append(self._value(array, memory))
            pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(v) for v in values])
            shape = (blocks, 1, 1, threads, 1, 1, 0, None)
            self.device.check("cuLaunchKernel", self.function, *shape, pointers, None)
            self.device.check("cuCtxSynchronize")
            for array, value in zip(arguments, values, strict=True):
                if array.ndim:
                    size = ctypes.c_size_t(array.nbytes)
                    self.device.check("cuMemcpyDtoH_v2", ctypes.c_void_p(array.ctypes.data), value, size)
        finally:
            for pointer in memory:
                self.device.driver.cuMemFree_v2(pointer)

    def _value(self, array: Argument, memory: list[ctypes.c_uint64]) -> Any:
        """What the kernel gets: a scalar, or the address of a copy, which is noted in `memory`."""
        if not array.ndim:
            return ctypes.c_int32(int(array))
        pointer, size = ctypes.c_uint64(), ctypes.c_size_t(array.nbytes)
        self.device.check("cuMemAlloc_v2", ctypes.byref(pointer), size)
        memory.append(pointer)
        self.device.check("cuMemcpyHtoD_v2", pointer, ctypes.c_void_p(array.ctypes.data), size)
        return pointer
