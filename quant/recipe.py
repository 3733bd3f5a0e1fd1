"""Recipes: how many bits each class of values gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from isobit.quant.errors import InputError
from isobit.quant.formats import format_named
from isobit.quant.formats.blocks import RULES, Blocks
from isobit.quant.formats.format import Format
from isobit.quant.formats.multiplier import EXACT, MULTIPLIERS, OFFSETS, Codes

STATE_BITS = 16
"""Of a state, unless something else is said."""

CERTIFIED = 0
"""As state_bits: each state has the resolution of STATE_BITS, and as many bits, up to 32, as its certified bound needs;
where there is none, STATE_BITS."""


MODES = ("quad", "ivit", "clz", "lut")
"""Of nonlinears: the default; the arithmetic of I-ViT as published; its approximations with reciprocals that keep their
bits; tables of 10-bit inputs."""

OF_LAYERS = ("weights", "activations", "multiplier", "act_bits", "wide_bits", "state_bits", "cache_bits", "nonlinear")
"""What a layer may have of its own."""

NAMES = ("weights", "activations", "multiplier", "nonlinear")
"""Of these, the texts; the others are numbers."""

CACHE_BITS = (0, 2, 4)
"""Of keys and values; a byte holds whole codes."""


@dataclass(frozen=True)
class Recipe:
    """Formats.  Every value is symmetric about zero; weights have a scale per output channel.

    weights: a format by its name, of matmuls and convolutions.  activations: a minifloat, or MX blocks, of their other
    operands; integers of act_bits where empty.  multiplier: of the two, one of MULTIPLIERS.
    act_bits: also of keys and queries, B and C of recurrences.
    wide_bits: what enters a nonlinear, the step size and the drive of recurrences, gates, the residual stream, outputs.
    state_bits: of recurrences, up to 32; or CERTIFIED.  nonlinear: one of MODES, of exponentials, gates and norms.
    cache_bits: of the keys and values that attention keeps, asymmetric, with a zero and a step per channel of keys and
    per token of values; 0: symmetric, as other operands.
    layers: for layers whose path matches a pattern (of fnmatch, the last that does), widths of their own.
    """

    name: str
    weights: str = "int8"
    activations: str = ""
    multiplier: str = EXACT
    act_bits: int = 8
    wide_bits: int = 16
    state_bits: int = STATE_BITS
    cache_bits: int = 0
    nonlinear: str = "quad"
    layers: Mapping[str, Mapping[str, int | str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, format in (("weights", self.weights), ("activations", self.activations or "e4m3")):
            try:
                chosen = format_named(format)
            except InputError as e:
                raise InputError(f"recipe {self.name}: {key}: {e}") from e
            if key == "activations" and not _is_operand(chosen):
                raise InputError(
                    f"recipe {self.name}: activations is '{format}', expected a minifloat, as e4m3, or blocks, as mxfp8"
                )
        if (blocks := self.blocks) and not self._meets(blocks):
            raise InputError(
                f"recipe {self.name}: activations is '{self.activations}', blocks of {blocks.size}, and weights is "
                f"'{self.weights}', expected blocks of {blocks.size} too"
            )
        self._check_multiplier()
        widths = {"act_bits": self.act_bits, "wide_bits": self.wide_bits}
        for key, bits in widths.items():
            if not 2 <= bits <= 16:
                raise InputError(f"recipe {self.name}: {key} is {bits}, expected 2 to 16")
        if self.state_bits != CERTIFIED and not 2 <= self.state_bits <= 32:
            raise InputError(f"recipe {self.name}: state_bits is {self.state_bits}, expected 2 to 32, or 0: certified")
        if self.cache_bits not in CACHE_BITS:
            raise InputError(f"recipe {self.name}: cache_bits is {self.cache_bits}, expected 2 or 4, or 0: as act_bits")
        if self.wide_bits < self.act_bits:
            raise InputError(f"recipe {self.name}: wide_bits {self.wide_bits} is below act_bits {self.act_bits}")
        if self.nonlinear not in MODES:
            raise InputError(f"recipe {self.name}: nonlinear is '{self.nonlinear}', expected one of {', '.join(MODES)}")
        for pattern, own in self.layers.items():
            if unknown := sorted(set(own) - set(OF_LAYERS)):
                raise InputError(
                    f"recipe {self.name}, layers '{pattern}': there is no {', '.join(unknown)}; "
                    f"there are {', '.join(OF_LAYERS)}"
                )
            self._with(pattern, own)

    def _check_multiplier(self) -> None:
        if self.multiplier not in MULTIPLIERS:
            raise InputError(
                f"recipe {self.name}: multiplier is '{self.multiplier}', expected one of {', '.join(MULTIPLIERS)}"
            )
        formats = [format_named(name) for name in (self.weights, self.activations) if name]
        mantissas = {f.mantissa if isinstance(f, Format) else None for f in formats}
        if self.multiplier != EXACT and (len(formats) < 2 or len(mantissas) > 1 or None in mantissas):
            raise InputError(
                f"recipe {self.name}: multiplier is '{self.multiplier}', weights is '{self.weights}' and activations "
                f"is '{self.activations}', expected two minifloats with as many bits of mantissa, as e4m3"
            )

    def _with(self, pattern: str, own: Mapping[str, int | str]) -> Recipe:
        return replace(self, name=f"{self.name}, layers '{pattern}'", layers={}, **own)  # type: ignore[arg-type]

    @property
    def blocks(self) -> Blocks | None:
        """Of the operand of a linear layer or a 1x1 convolution, beside the weights, where it is in blocks."""
        chosen = format_named(self.activations) if self.activations else None
        return chosen if isinstance(chosen, Blocks) else None

    def _meets(self, blocks: Blocks) -> bool:
        weights = format_named(self.weights)
        return isinstance(weights, Blocks) and weights.size == blocks.size

    @property
    def operand(self) -> int | Format | Codes:
        """Of matmuls and convolutions, beside the weights: a width of integers, a minifloat, that of blocks, codes."""
        if not self.activations:
            return self.act_bits
        chosen = format_named(self.activations)
        if self.multiplier != EXACT:
            assert isinstance(chosen, Format)
            assert chosen.mantissa is not None
            return Codes(chosen, OFFSETS[self.multiplier](chosen.mantissa))
        element = chosen.element if isinstance(chosen, Blocks) else chosen
        return element.bits if element.mantissa is None else element

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


def _is_operand(format: Format | Blocks) -> bool:
    if isinstance(format, Blocks):
        return format.rule in RULES
    return format.mantissa is not None and not format.shared


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("w8a8"),
        Recipe("w8a16", act_bits=16),
        Recipe("w4a8", weights="int4-g32"),
        Recipe("w4a4", weights="int4-g32", act_bits=4),
        Recipe("w2a8", weights="int2-g32"),
        Recipe("ternary-a8", weights="ternary"),
        Recipe("binary-a8", weights="binary"),
        Recipe("pot-a8", weights="pot4"),
        Recipe("mxfp8", weights="mxfp8", activations="mxfp8"),
        Recipe("mxfp6", weights="mxfp6", activations="mxfp6"),
        Recipe("mxfp4-a8", weights="mxfp4"),
        Recipe("fp8-e4m3", weights="e4m3", activations="e4m3"),
        Recipe("fp8-e4m3-lmul", weights="e4m3", activations="e4m3", multiplier="l-mul"),
        Recipe("fp6-e3m2", weights="e3m2", activations="e3m2"),
        Recipe("w8a8-certified", state_bits=CERTIFIED),
        Recipe("w8a8-kv4", cache_bits=4),
        Recipe("w8a8-kv2", cache_bits=2),
    )
}


def recipe_named(name: str) -> Recipe:
    """The row of RECIPES, or an InputError that lists them."""
    if name not in RECIPES:
        raise InputError(f"there is no recipe '{name}'; there are {', '.join(RECIPES)}")
    return RECIPES[name]


def with_layers(recipe: Recipe, texts: Iterable[str]) -> Recipe:
    """What single layers have of their own, as a command line writes it: PATTERN:state_bits=32,weights=int4-g32."""
    layers = dict(recipe.layers)
    for text in texts:
        pattern, _, pairs = text.rpartition(":")
        own = {key: value for key, _, value in (part.partition("=") for part in pairs.split(","))}
        if not pattern or not all(key in NAMES or v.isdecimal() or v == "certified" for key, v in own.items()):
            raise InputError(f"--layer '{text}', expected PATTERN:KEY=VALUE, as in 'blocks.0.*:state_bits=32'")
        layers[pattern] = {
            key: v if key in NAMES else CERTIFIED if v == "certified" else int(v) for key, v in own.items()
        }
    return replace(recipe, layers=layers)
