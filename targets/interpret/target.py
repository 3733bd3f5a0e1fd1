"""The reference, run on the saved Program: by step it must give what it gives as a sequence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isobit.quant.interpret import interpret
from isobit.quant.program import Arrays, Program
from isobit.targets.target import Artifact, Options, Run, step_by_step


def probe() -> str:
    return f"numpy {np.__version__}"


def build(program: Program, folder: Path, options: Options) -> Artifact:
    """Nothing to write: the Program is what runs."""
    return Artifact("interpret", program, folder, (), options)


def start(artifact: Artifact, scratch: Path, traced: bool) -> Session:
    return Session(artifact.program)


@dataclass(frozen=True)
class Session:
    program: Program

    def run(self, inputs: Arrays, states: Arrays | None, by_step: bool) -> Run:
        if by_step:
            return step_by_step(lambda x, s: interpret(self.program, x, s), inputs, states)
        return Run(*interpret(self.program, inputs, states))

    def trace(self, inputs: Arrays, states: Arrays | None) -> Arrays:
        taps: Arrays = {}
        interpret(self.program, inputs, states, taps)
        return taps
