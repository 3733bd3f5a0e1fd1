"""The families of the zoo in groups: each is one Program, so that one build of a target covers several families."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from isobit.quant.program import Arrays, Program
from isobit.quant.quantize import Quantized
from isobit.quant.vectors import Vectors, golden, join, prefixed
from isobit.quant.zoo.families import FAMILIES
from isobit.tools.families import golden_steps, real_input, shape_of, slug

LARGEST = 4
"""Families in a group."""


def groups() -> Iterator[tuple[str, ...]]:
    """Every family once; sequences and images apart, for an image is one step."""
    for timed in (True, False):
        alike = [name for name, f in FAMILIES.items() if ("T" in f.shape) is timed]
        for i in range(0, len(alike), LARGEST):
            yield tuple(alike[i : i + LARGEST])


@dataclass(frozen=True)
class Joined:
    """One Program of a group's, every name led by its family's, and its golden vectors."""

    program: Program
    vectors: list[Vectors]


def joined(made: dict[str, Quantized], size: str) -> Joined:
    program = join("families", [prefixed(q.program, slug(family)) for family, q in made.items()])
    real: Arrays = {}
    for family, q in made.items():
        real |= {f"{slug(family)}.{k}": x for k, x in real_input(q, shape_of(family, size)).items()}
    steps = golden_steps(shape_of(next(iter(made)), size))
    return Joined(program, list(golden(program, real, steps)))
