"""What an op is: a scalar definition, and the index structure around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from inspect import Parameter, signature
from typing import Any, Literal

from isobit.quant.ops.moves import Move


class Structure(Enum):
    """The loops around a definition."""

    POINTWISE = "one value per index of the output"
    CONTRACTION = "terms combined over the indices that the output lacks"
    CONVOLUTION = "terms summed over a kernel that slides along axes of the first operand, inside one time step"
    WINDOW = "terms summed over the last K time steps, kept in a ring"
    HISTORY = "the last K time steps themselves, kept in a ring"
    RECURRENCE = "a state updated at every step of a scanned axis, and read out"
    LAYOUT = "elements moved, none computed"
    GATHER = "rows of a constant table, chosen by an index"

    @property
    def is_stateful(self) -> bool:
        """Whether a node of it may own a state."""
        return self in (Structure.WINDOW, Structure.HISTORY, Structure.RECURRENCE)


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

    define: pointwise, the value; contraction, convolution and window, one term; recurrence, the new state from (state,
    operands); history, layout and gather, an element as it is (its keywords are the op's parameters).
    start: contraction, convolution and window, the last operand starts the accumulator (a bias).
    combine: contraction, how terms join: their sum or the largest.
    readout: recurrence, one term of the output from (state, the last operands); None is the new state itself.
    reads_old: recurrence, the readout sees the state before its update.
    moves, sizes: layout, its moves and the sizes of the axes that it makes, from (labels, sizes of axes, **params).
    """

    structure: Structure
    define: Callable[..., Any]
    start: bool = False
    combine: Literal["sum", "max"] = "sum"
    readout: Callable[..., Any] | None = None
    reads_old: bool = False
    moves: Callable[..., tuple[Move, ...]] | None = None
    sizes: Callable[..., dict[str, int]] | None = None
    cases: tuple[Case, ...] = ()

    @property
    def queries(self) -> int:
        """How many operands, the last ones, only the readout of a recurrence takes."""
        return len(signature(self.readout).parameters) - 1 if self.readout else 0

    @property
    def operands(self) -> int | None:
        """How many operands a node has; None where the index signature alone says it."""
        if self.structure is Structure.LAYOUT:
            return None
        defined = sum(p.kind is not Parameter.KEYWORD_ONLY for p in signature(self.define).parameters.values())
        extra = {Structure.RECURRENCE: self.queries - 1, Structure.GATHER: 1}
        return defined + self.start + extra.get(self.structure, 0)

    @property
    def summary(self) -> str:
        """The first line of the definition's docstring."""
        return (self.define.__doc__ or "").strip().split("\n")[0]
