"""Affine indices, and the moves of elements that layout ops are made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Affine:
    """The index `coefficient * label + ... + by`, over labels of loops."""

    terms: tuple[tuple[str, int], ...]
    by: int = 0

    def __str__(self) -> str:
        parts = [k if c == 1 else f"{c} * {k}" for k, c in self.terms if c > 0]
        parts += [str(self.by)] * (self.by > 0 or not self.terms)
        text = " + ".join(parts) or "0"
        for k, c in self.terms:
            if c < 0:
                text += f" - {k}" if c == -1 else f" - {-c} * {k}"
        return f"{text} - {-self.by}" if self.by < 0 else text


Place = str | int | Affine
"""An index inside one time step: a loop's label, a number, or a sum of labels."""


def affine(*terms: tuple[str, int], by: int = 0) -> Place:
    """The simplest form of an affine index."""
    kept = tuple((k, c) for k, c in terms if c)
    if not kept:
        return by
    return kept[0][0] if by == 0 and len(kept) == 1 and kept[0][1] == 1 else Affine(kept, by)


@dataclass(frozen=True)
class Move:
    """target[...] = operand[...] for all values of the loops' labels; operand None writes the number `fill`.

    loops: (label, extent), outermost first; places are without batch and time.
    """

    loops: tuple[tuple[str, int], ...]
    operand: int | None
    source: tuple[Place, ...]
    target: tuple[Place, ...]
    fill: int = 0
