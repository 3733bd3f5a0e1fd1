"""Recipes: how many bits each class of values gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from isobit.quant.errors import InputError

STATE_BITS = 16
"""Of a state, unless something else is said."""

CERTIFIED = 0
"""As state_bits: each state has the resolution of STATE_BITS, and as many bits, up to 32, as its certified bound needs;
where there is none, STATE_BITS."""


@dataclass(frozen=True)
class Recipe:
    """Bit widths.  Every value is symmetric about zero; weights have a scale per output channel.

    weight_bits: of matmuls and convolutions.  act_bits: their other operand, and B and C of recurrences.
    wide_bits: what enters a nonlinear, the step size and the drive of recurrences, gates, the residual stream, outputs.
    state_bits: of recurrences, up to 32; or CERTIFIED.  nonlinear: the mode of silu, softplus and exp.
    layers: for layers whose path matches a pattern (of fnmatch, the last that does), widths of their own.
    """

    name: str
    weight_bits: int = 8
    act_bits: int = 8
    wide_bits: int = 16
    state_bits: int = STATE_BITS
    nonlinear: str = "quad"
    layers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        widths = {"weight_bits": self.weight_bits, "act_bits": self.act_bits, "wide_bits": self.wide_bits}
        for key, bits in widths.items():
            if not 2 <= bits <= 16:
                raise InputError(f"recipe {self.name}: {key} is {bits}, expected 2 to 16")
        if self.state_bits != CERTIFIED and not 2 <= self.state_bits <= 32:
            raise InputError(f"recipe {self.name}: state_bits is {self.state_bits}, expected 2 to 32, or 0: certified")
        if self.wide_bits < self.act_bits:
            raise InputError(f"recipe {self.name}: wide_bits {self.wide_bits} is below act_bits {self.act_bits}")
        if self.nonlinear != "quad":
            raise InputError(f"recipe {self.name}: nonlinear is '{self.nonlinear}', expected quad")
        for pattern, own in self.layers.items():
            names = {**widths, "state_bits": self.state_bits}
            if unknown := sorted(set(own) - set(names)):
                raise InputError(
                    f"recipe {self.name}, layers '{pattern}': there is no width {', '.join(unknown)}; "
                    f"there are {', '.join(names)}"
                )
            self._with(pattern, own)

    def _with(self, pattern: str, own: Mapping[str, int]) -> Recipe:
        return replace(self, name=f"{self.name}, layers '{pattern}'", layers={}, **own)  # type: ignore[arg-type]

    @property
    def held_bits(self) -> int:
        """Of states before a certificate widens them."""
        return self.state_bits or STATE_BITS

    def at(self, layer: str) -> Recipe:
        """The widths of the layer of this path."""
        own = [(pattern, widths) for pattern, widths in self.layers.items() if fnmatchcase(layer, pattern)]
        return self._with(*own[-1]) if own else self

    def check_layers(self, layers: Iterable[str]) -> None:
        """Raises InputError for a pattern that matches none of the model's layers."""
        paths = list(dict.fromkeys(layers))
        for pattern in self.layers:
            if not any(fnmatchcase(path, pattern) for path in paths):
                raise InputError(f"recipe {self.name}: no layer matches '{pattern}'; the layers are {', '.join(paths)}")


RECIPES = {
    "w8a8": Recipe("w8a8"),
    "w8a16": Recipe("w8a16", act_bits=16),
    "w4a8": Recipe("w4a8", weight_bits=4),
    "w8a8-certified": Recipe("w8a8-certified", state_bits=CERTIFIED),
}


def recipe_named(name: str) -> Recipe:
    """The row of RECIPES, or an InputError that lists them."""
    if name not in RECIPES:
        raise InputError(f"there is no recipe '{name}'; there are {', '.join(RECIPES)}")
    return RECIPES[name]


def with_layers(recipe: Recipe, texts: Iterable[str]) -> Recipe:
    """Widths of single layers as a command line writes them: PATTERN:state_bits=32,act_bits=16."""
    layers = dict(recipe.layers)
    for text in texts:
        pattern, _, widths = text.rpartition(":")
        pairs = [part.partition("=") for part in widths.split(",")]
        if not pattern or not all(key and (bits.isdecimal() or bits == "certified") for key, _, bits in pairs):
            raise InputError(f"layer widths '{text}', expected PATTERN:WIDTH=BITS, as in 'blocks.0.*:state_bits=32'")
        layers[pattern] = {key: CERTIFIED if bits == "certified" else int(bits) for key, _, bits in pairs}
    return replace(recipe, layers=layers)
