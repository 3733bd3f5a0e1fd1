"""The families of the zoo in groups: each is one Program, so that one build of a target covers several families."""

from __future__ import annotations

from collections.abc import Iterator

from isobit.quant.program import Program
from isobit.quant.quantize import Quantized
from isobit.quant.vectors import Vectors
from isobit.quant.zoo.families import FAMILIES
from isobit.targets.gpu.driver import NO_GPU
from isobit.targets.verify import EXACT, NOT_RUN, verify
from isobit.tools.families import joined

LARGEST = 4
"""Families in a group."""


def groups() -> Iterator[tuple[str, ...]]:
    """Every family once; sequences and images apart, for an image is one step."""
    for timed in (True, False):
        alike = [name for name, f in FAMILIES.items() if ("T" in f.shape) is timed]
        for i in range(0, len(alike), LARGEST):
            yield tuple(alike[i : i + LARGEST])


def assert_exact(made: dict[str, Quantized], size: str, targets: list[str]) -> None:
    """All families as one Program, on golden vectors; a GPU that is not there has at least compiled it."""
    one = joined(made, size)
    assert_all_exact(one.program, one.vectors, targets)


def assert_all_exact(program: Program, vectors: list[Vectors], targets: list[str]) -> None:
    """One Program, as `assert_exact`."""
    for r in verify(program, targets, vectors).rows:
        compiled = r.target == "gpu" and (r.status, r.reason) == (NOT_RUN, NO_GPU)
        assert compiled or (r.status == EXACT and r.values > 0), f"{r.target}: {r.reason}\n{r.divergence}"
