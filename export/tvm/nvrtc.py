"""NVRTC, NVIDIA's run-time compiler, through ctypes: machine code from CUDA source without nvcc, a GPU or TVM."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isobit.quant.errors import InputError
from isobit.targets.toolchain import ToolFailed, ToolMissing

NVRTC_HINT = "pip install 'isobit[cuda]'"

HEADERS = {
    "cuda/std/cstdint": """namespace cuda { namespace std {
typedef signed char int8_t; typedef short int16_t; typedef int int32_t; typedef long long int64_t;
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
} }
""",
    "cuda/std/type_traits": """namespace cuda { namespace std {
template <class A, class B> struct is_same { static constexpr bool value = false; };
template <class A> struct is_same<A, A> { static constexpr bool value = true; };
template <class A, class B> inline constexpr bool is_same_v = is_same<A, B>::value;
template <class T> struct is_integral; template <class T> struct is_floating_point;
template <class T> struct is_signed; template <class T> struct is_unsigned;
template <bool C, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { typedef T type; };
template <bool C, class A, class B> struct conditional { typedef A type; };
template <class A, class B> struct conditional<false, A, B> { typedef B type; };
} }
""",
}
"""What TVM's preamble takes from CUDA's own headers, so that no toolkit is needed."""


class Nvrtc:
    """NVIDIA's run-time compiler, from the wheel nvidia-cuda-nvrtc-cu12 or the system's libraries."""

    def __init__(self) -> None:
        """Raises ToolMissing."""
        self.library = _nvrtc_library()
        self.library.nvrtcGetErrorString.restype = ctypes.c_char_p

    @property
    def version(self) -> str:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self.library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        return f"{major.value}.{minor.value}"

    @property
    def architectures(self) -> list[str]:
        """What `cubin` can compile for, such as sm_90."""
        count = ctypes.c_int()
        self._check(self.library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        found = (ctypes.c_int * count.value)()
        self._check(self.library.nvrtcGetSupportedArchs(found))
        return [f"sm_{n}" for n in found]

    def check_architecture(self, arch: str) -> None:
        """Raises InputError for one that `cubin` cannot compile for."""
        if not re.fullmatch(r"sm_\d+[af]?", arch) or arch.rstrip("af") not in self.architectures:
            raise InputError(f"GPU architecture '{arch}': NVRTC {self.version} knows {', '.join(self.architectures)}")

    def cubin(self, text: str, arch: str) -> bytes:
        """Machine code for one architecture, the same bytes for the same source; raises InputError for one unknown."""
        self.check_architecture(arch)
        program = ctypes.c_void_p()
        names, headers = _strings(list(HEADERS)), _strings(list(HEADERS.values()))
        create = self.library.nvrtcCreateProgram
        self._check(create(ctypes.byref(program), text.encode(), b"kernel.cu", len(HEADERS), headers, names))
        try:
            options = [f"--gpu-architecture={arch}", "--std=c++17", "-default-device"]
            if self.library.nvrtcCompileProgram(program, len(options), _strings(options)):
                log = self._bytes(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
                raise ToolFailed("compile kernel.cu", ["nvrtc", *options], "refused", log)
            return self._bytes(program, "CUBIN")
        finally:
            self.library.nvrtcDestroyProgram(ctypes.byref(program))

    def _bytes(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self.library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self.library, f"nvrtcGet{what}")(program, buffer))
        return buffer.raw

    def _check(self, result: int) -> None:
        if result:
            reason = self.library.nvrtcGetErrorString(result).decode()
            raise ToolFailed("compile kernel.cu", ["nvrtc"], reason, "")


def _nvrtc_library() -> Any:
    folders = list[Path]()
    if importlib.util.find_spec("nvidia") and (wheel := importlib.util.find_spec("nvidia.cuda_nvrtc")):
        folders = [Path(folder, "lib") for folder in wheel.submodule_search_locations or ()]
    candidates = [str(path) for folder in folders for path in sorted(folder.glob("libnvrtc.so.*"))]
    for candidate in [*candidates, "libnvrtc.so.13", "libnvrtc.so.12"]:
        try:
            return ctypes.CDLL(candidate)
        except OSError:
            continue
    raise ToolMissing("NVRTC", NVRTC_HINT)


def _strings(values: Sequence[str]) -> Any:
    return (ctypes.c_char_p * len(values))(*[v.encode() for v in values])
