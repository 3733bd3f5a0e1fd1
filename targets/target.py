"""What a target is: how a Program becomes files for it, and how those files are run here.

Each target is a folder with `target.py`, which has the functions of `Target`, and one row in TARGETS.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from isobit.quant.errors import InputError
from isobit.quant.program import Arrays, Program


@dataclass(frozen=True)
class Options:
    """What a user may choose about a build. board: of `mcu`. arch: of `gpu` (sm_90) and `cpu` (an LLVM CPU name)."""

    board: str | None = None
    arch: str | None = None


@dataclass(frozen=True)
class Artifact:
    """The files that `build` made of a Program in `folder`: the same Program and options give the same bytes."""

    target: str
    program: Program
    folder: Path
    files: tuple[str, ...]
    options: Options = Options()


@dataclass(frozen=True)
class Run:
    """outputs: name -> int64 (B, T, *shape); states after the last step: name -> int64 (B, *shape).

    info: figures that the target knows, such as flash, ram, stack (bytes) and instructions (per time step).
    """

    outputs: Arrays
    states: Arrays
    info: Mapping[str, object] = field(default_factory=dict)


def step_by_step(
    call: Callable[[Arrays, Arrays | None], tuple[Arrays, Arrays]], inputs: Arrays, states: Arrays | None
) -> Run:
    """One `call(inputs, states) -> (outputs, states)` per time step, states carried from call to call."""
    rows: list[Arrays] = []
    for t in range(next(iter(inputs.values())).shape[1]):
        outputs, states = call({k: x[:, t : t + 1] for k, x in inputs.items()}, states)
        rows.append(outputs)
    return Run({k: np.concatenate([r[k] for r in rows], axis=1) for k in rows[0]}, states or {})


class Session(Protocol):
    """An artifact made ready to run on this machine."""

    def run(self, inputs: Arrays, states: Arrays | None, by_step: bool) -> Run:
        """Run int64 (B, T, *shape) inputs from `states` (None: reset).

        by_step: one call of the target's `step` per time step, states carried from call to call; else one `sequence`.
        """

    def trace(self, inputs: Arrays, states: Arrays | None) -> Arrays:
        """The output of every node, int64 (B, T, *shape), from a build of the same kernels with taps."""


class NotHere(InputError):
    """The artifact is built, but nothing on this machine can run it; the message is the reason."""


class Target(Protocol):
    """The functions of a target's module."""

    def probe(self) -> str:
        """The toolchain's name and version; raises ToolMissing."""

    def build(self, program: Program, folder: Path, options: Options) -> Artifact:
        """Write the files for a user into `folder`, which exists."""

    def start(self, artifact: Artifact, scratch: Path, traced: bool) -> Session:
        """Compile what a run needs into `scratch`; `traced` builds have taps.  Raises NotHere."""


@dataclass(frozen=True)
class Row:
    """One row of TARGETS.  inside: as `plan` takes it."""

    module: str
    summary: str
    simulated: bool = False
    inside: bool = True


TARGETS: dict[str, Row] = {
    "interpret": Row("isobit.targets.interpret.target", "the numpy reference"),
    "ort": Row("isobit.targets.ort.target", "the .onnx itself in ONNX Runtime"),
    "cpu": Row("isobit.targets.cpu.target", "TVM TIR through LLVM", inside=False),
    "gpu": Row("isobit.targets.gpu.target", "TVM TIR through CUDA, compiled to a cubin", inside=False),
    "c": Row("isobit.targets.c.target", "C99, no malloc, no float; verified under UBSan and ASan"),
    "mcu": Row("isobit.targets.mcu.target", "the same C on a microcontroller board, under QEMU", simulated=True),
    "hls": Row("isobit.targets.hls.target", "HLS C++ (ap_int, streams), C simulation with g++", simulated=True),
}


def target(name: str) -> Target:
    """The target of this name; its module, and what it needs, is imported now."""
    if name not in TARGETS:
        raise InputError(f"unknown target '{name}'; the targets are {', '.join(TARGETS)}")
    return cast(Target, importlib.import_module(TARGETS[name].module))
