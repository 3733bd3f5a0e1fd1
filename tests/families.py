"""The families of the zoo in groups: each is one Program, so that one build of a target covers several families."""

from __future__ import annotations

from collections.abc import Iterator

from isobit.quant.zoo.families import FAMILIES

LARGEST = 4
"""Families in a group."""


def groups() -> Iterator[tuple[str, ...]]:
    """Every family once; sequences and images apart, for an image is one step."""
    for timed in (True, False):
        alike = [name for name, f in FAMILIES.items() if ("T" in f.shape) is timed]
        for i in range(0, len(alike), LARGEST):
            yield tuple(alike[i : i + LARGEST])
