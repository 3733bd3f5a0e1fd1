"""What an op is: a scalar definition, and the index structure around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Structure(Enum):
    """The loops around a definition; every target has one template for each."""

    POINTWISE = "one value per index of the output"
    CONTRACTION = "terms summed over the indices that the output lacks"
    WINDOW = "terms summed over the last K time steps, kept in a ring"
    RECURRENCE = "a state updated at every time step, then read out"


@dataclass(frozen=True)
class Case:
    """A corner that every target is fed: one node with this index, sizes, operand types and parameters.

    Operand types are written `i8`, `u34`; those that start with `=` are constants.
    """

    why: str
    index: str
    sizes: Mapping[str, int]
    operands: tuple[str, ...]
    params: Mapping[str, int] = field(default_factory=dict)
    state: str = ""


@dataclass(frozen=True)
class Op:
    """One row of OPS.

    define: pointwise, the value; contraction and window, one term; recurrence, the new state from (state, operands).
    start: contraction and window, the last operand starts the accumulator (a bias).
    readout: recurrence, one term of the output from (new state, last operand); None reads the state itself.
    """

    structure: Structure
    define: Callable[..., Any]
    start: bool = False
    readout: Callable[..., Any] | None = None
    cases: tuple[Case, ...] = ()

    @property
    def summary(self) -> str:
        """The first line of the definition's docstring."""
        return (self.define.__doc__ or "").strip().split("\n")[0]
