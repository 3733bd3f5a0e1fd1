"""A folder's config.json: its values by key, checked, with errors that name the key, what is there and what can be."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isobit.quant.errors import InputError

LEGACY_LAYER_TYPES = {"attention": "full_attention", "mamba": "linear_attention"}
"""What configurations before transformers 5 call a kind of layer, and its name since."""


@dataclass(frozen=True)
class Config:
    """The object in config.json; a key that is null counts as absent."""

    path: Path
    values: Mapping[str, object]

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def error(self, key: str, expected: str) -> InputError:
        got = f"is {json.dumps(self.values[key])}" if self.has(key) else "is missing"
        return InputError(f"{self.path}: {key} {got if len(got) < 200 else got[:200] + '...'}, expected {expected}")

    def integer(self, key: str, default: int | None = None, low: int = 1) -> int:
        """A whole number of at least `low`."""
        value = self.values[key] if self.has(key) else default
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise self.error(key, f"a whole number of at least {low}")
        return value

    def number(self, key: str, default: float | None = None, low: float = -math.inf) -> float:
        """A finite number of at least `low`."""
        value = self.values[key] if self.has(key) else default
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value < math.inf:
            raise self.error(key, "a finite number" if low == -math.inf else f"a finite number of at least {low:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values[key] if self.has(key) else default
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def choice(self, key: str, supported: Sequence[str], default: str | None = None) -> str:
        value = self.values[key] if self.has(key) else default
        if not isinstance(value, str) or value not in supported:
            raise self.error(key, f"one of {', '.join(supported)} (what isobit supports)")
        return value

    def only(self, key: str, supported: object, default: object = None) -> None:
        """Refuse any value but `supported`, for a key that would change the model."""
        value = self.values[key] if self.has(key) else default
        if value != supported:
            raise self.error(key, f"{json.dumps(supported)} (what isobit supports)")

    def integers(self, key: str) -> list[int]:
        """A list of whole numbers of at least 0; empty if absent."""
        value = self.values[key] if self.has(key) else []
        if not isinstance(value, list) or any(not isinstance(v, int) or isinstance(v, bool) or v < 0 for v in value):
            raise self.error(key, "a list of whole numbers")
        return value

    def layer_types(self, key: str, supported: Sequence[str], layers: int) -> list[str]:
        """The kind of each of the `layers` layers, under its name since transformers 5."""
        value = self.values.get(key)
        if not isinstance(value, list) or len(value) != layers:
            raise self.error(key, f"a list of {layers} kinds of layer")
        kinds = [LEGACY_LAYER_TYPES.get(v, v) if isinstance(v, str) else v for v in value]
        if any(kind not in supported for kind in kinds):
            raise self.error(key, f"only {', '.join(supported)} (what isobit supports)")
        return kinds

    def section(self, key: str) -> Config:
        """The object under `key`; empty if absent."""
        value = self.values[key] if self.has(key) else {}
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return Config(self.path, {f"{key}.{name}": item for name, item in value.items()})

    def interval(self, key: str) -> tuple[float, float]:
        """Two numbers, low and high, either of which may be infinite; (0, infinity) if absent."""
        value = self.values[key] if self.has(key) else [0.0, math.inf]
        if (
            not isinstance(value, list)
            or len(value) != 2
            or any(not isinstance(v, int | float) or isinstance(v, bool) for v in value)
            or not value[0] < value[1]
        ):
            raise self.error(key, "two numbers, low and high")
        return float(value[0]), float(value[1])

    def share(self, key: str, whole: int, of: str, default: int | None = None) -> int:
        """The whole number at `key`, which must divide `whole`, the value of `of`."""
        value = self.integer(key, default)
        if whole % value:
            raise self.error(key, f"a divisor of {of} ({whole})")
        return value
