"""The arguments of a compiled `sequence`: what they are, in which order, and calls with them.  Needs no TVM."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from isobit.quant.errors import InputError
from isobit.quant.interpret import checked_inputs, checked_states
from isobit.quant.program import Array, Arrays, Program

Role = Literal["input", "state", "output", "trace", "workspace", "extent"]
Argument = npt.NDArray[np.signedinteger]

MOST_ELEMENTS = (1 << 31) - 1
"""Of one array: the generated code indexes with int32."""


@dataclass(frozen=True)
class Parameter:
    """One argument: its name in the code, the Program's value that it holds, and its type; B is the batch, T the time.

    role: `workspace` is memory for the function's own use, `extent` the number B or T.
    """

    name: str
    value: str
    role: Role
    dtype: str
    shape: tuple[int | str, ...]

    def extents(self, batch: int, steps: int) -> tuple[int, ...]:
        sizes = {"B": batch, "T": steps}
        return tuple(d if isinstance(d, int) else sizes[d] for d in self.shape)


def description(program: Program, parameters: tuple[Parameter, ...], facts: Mapping[str, object]) -> str:
    """JSON for whoever calls the compiled function: its parameters in order, and what they were compiled from."""
    rows = [json.dumps({"name": p.name, "role": p.role, "dtype": p.dtype, "shape": p.shape}) for p in parameters]
    head = json.dumps({"program": program.name, "digest": program.digest, **facts}, indent=2)
    return head.removesuffix("\n}") + ',\n  "parameters": [\n    ' + ",\n    ".join(rows) + "\n  ]\n}\n"


@dataclass(frozen=True)
class Results:
    """outputs, traces: name -> int64 (B, T, *shape); states after the last step: name -> int64 (B, *shape)."""

    outputs: Arrays
    traces: Arrays
    states: Arrays


def run_calls(
    program: Program,
    parameters: tuple[Parameter, ...],
    call: Callable[[list[Argument]], None],
    inputs: Arrays,
    states: Arrays | None,
    by_step: bool,
) -> Results:
    """One call for the whole time, or one for each step; states are carried from call to call.

    `call` gets one contiguous array per parameter and writes states, outputs and traces in place.
    """
    given = checked_inputs(program, inputs)
    batch, steps = next(iter(given.values())).shape[:2]
    length = 1 if by_step else steps
    now = program.initial_states(batch) if states is None else checked_states(program, states, batch)
    made: dict[Role, dict[str, list[Array]]] = {"output": {}, "trace": {}}
    for start in range(0, steps, length):
        arguments = [_argument(p, given, now, batch, start, length) for p in parameters]
        call(arguments)
        for p, array in zip(parameters, arguments, strict=True):
            if p.role == "state":
                now[p.value] = array.astype(np.int64)
            elif p.role in made:
                made[p.role].setdefault(p.value, []).append(array.astype(np.int64))
    outputs, traces = ({k: np.concatenate(v, axis=1) for k, v in made[role].items()} for role in ("output", "trace"))
    return Results(outputs, traces, now)


def _argument(p: Parameter, inputs: Arrays, states: Arrays, batch: int, start: int, length: int) -> Argument:
    extents = p.extents(batch, length)
    if np.prod(extents, dtype=object) > MOST_ELEMENTS:
        raise InputError(f"{p.value}: {extents} has more than {MOST_ELEMENTS} elements; run fewer time steps at a time")
    if p.role == "input":
        return np.array(inputs[p.value][:, start : start + length], p.dtype, order="C")
    if p.role == "state":
        return np.array(states[p.value], p.dtype, order="C")
    if p.role == "extent":
        return np.array(batch if p.value == "B" else length, p.dtype)
    return np.zeros(extents, p.dtype)
