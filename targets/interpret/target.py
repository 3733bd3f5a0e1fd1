"""The reference, run on the saved Program: by step it must give what it gives as a sequence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isobit.quant.interpret import interpret
from isobit.quant.program import Arrays, Program
from isobit.targets.target import Artifact, Options, Run


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
        if not by_step:
            return Run(*interpret(self.program, inputs, states))
        rows: list[Arrays] = []
        for t in range(next(iter(inputs.values())).shape[1]):
            outputs, states = interpret(self.program, {k: x[:, t : t + 1] for k, x in inputs.items()}, states)
            rows.append(outputs)
        assert states is not None
        return Run({k: np.concatenate([r[k] for r in rows], axis=1) for k in rows[0]}, states)

    def trace(self, inputs: Arrays, states: Arrays | None) -> Arrays:
        taps: Arrays = {}
        interpret(self.program, inputs, states, taps)
        return taps
