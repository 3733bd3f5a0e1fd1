"""What the zoo's tables say of a family of architectures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

Shape = tuple[int | str, ...]
"""Of one sample, without the batch: ("T", channels) for a sequence, (channels, height, width) for an image."""


@dataclass(frozen=True)
class Family:
    """One architecture at two sizes, with fresh weights at every call.

    summary: what it is, with its paper. make: a tiny size, with inputs of `shape`.
    odd: sizes that are no powers of two, with inputs of `odd_shape`; None means `shape`.
    """

    summary: str
    make: Callable[[], nn.Module]
    odd: Callable[[], nn.Module]
    shape: Shape
    odd_shape: Shape | None = None

    def sizes(self) -> tuple[tuple[Callable[[], nn.Module], Shape], ...]:
        """(make, shape) and (odd, odd_shape)."""
        return (self.make, self.shape), (self.odd, self.shape if self.odd_shape is None else self.odd_shape)
