"""Recipes: how many bits each class of values gets."""

from __future__ import annotations

from dataclasses import dataclass

from isobit.quant.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """Bit widths.  Every value is symmetric about zero; weights have a scale per output channel.

    weight_bits: of matmuls and convolutions.  act_bits: their other operand, and B and C of recurrences.
    wide_bits: what enters a nonlinear, the step size and the drive of recurrences, gates, the residual stream, outputs.
    state_bits: of recurrences.  nonlinear: the mode of silu, softplus and exp.
    """

    name: str
    weight_bits: int = 8
    act_bits: int = 8
    wide_bits: int = 16
    state_bits: int = 16
    nonlinear: str = "quad"

    def __post_init__(self) -> None:
        widths = {"weight_bits": self.weight_bits, "act_bits": self.act_bits, "wide_bits": self.wide_bits}
        for field, bits in (widths | {"state_bits": self.state_bits}).items():
            if not 2 <= bits <= 16:
                raise InputError(f"recipe {self.name}: {field} is {bits}, expected 2 to 16")
        if self.wide_bits < self.act_bits:
            raise InputError(f"recipe {self.name}: wide_bits {self.wide_bits} is below act_bits {self.act_bits}")
        if self.nonlinear != "quad":
            raise InputError(f"recipe {self.name}: nonlinear is '{self.nonlinear}', expected quad")


RECIPES = {
    "w8a8": Recipe("w8a8"),
    "w8a16": Recipe("w8a16", act_bits=16),
    "w4a8": Recipe("w4a8", weight_bits=4),
}


def recipe_named(name: str) -> Recipe:
    """The row of RECIPES, or an InputError that lists them."""
    if name not in RECIPES:
        raise InputError(f"there is no recipe '{name}'; there are {', '.join(RECIPES)}")
    return RECIPES[name]
