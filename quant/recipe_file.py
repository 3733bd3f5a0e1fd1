"""Recipes in TOML files: the fields of a Recipe, and a table for the layers of a pattern.

version = 1
name = "mine"
weights = "int4-g32"
act_bits = 8

[layers."blocks.0.*"]
weights = "int8"
state_bits = 32
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from isobit.quant.errors import InputError
from isobit.quant.recipe import CERTIFIED, NAMES, OF_LAYERS, RECIPES, Recipe, recipe_named

VERSION = 1
KEYS = ("version", "name", *OF_LAYERS, "layers")
LARGEST_FILE = 1 << 20
"""Bytes."""


def recipe_of(name: str) -> Recipe:
    """The recipe of this name, or of the file, where `name` ends in .toml.

    Raises InputError with the file, the line, the key, and the nearest right one.
    """
    if not name.endswith(".toml"):
        return recipe_named(name)
    try:
        with open(name, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as e:
        raise InputError(f"recipe {name}: {e.strerror}; by name there are {', '.join(RECIPES)}") from e
    if len(data) > LARGEST_FILE:
        raise InputError(f"recipe {name}: the file has more than {LARGEST_FILE} bytes")
    try:
        text = data.decode()
        return _Reader(name, text).recipe(tomllib.loads(text))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise InputError(f"recipe {name}: {e}") from e


class _Reader:
    """One file; lines: where every key of every table stands."""

    def __init__(self, path: str, text: str) -> None:
        self.path, self.lines, table = path, dict[tuple[str, str], int](), ""
        for number, line in enumerate(text.splitlines(), 1):
            if header := re.match(r"\s*\[\s*(.*?)\s*\]", line):
                table = header[1]
                self.lines.setdefault(("", table.partition(".")[0]), number)
            elif key := re.match(r"\s*[\"']?([\w-]+)[\"']?\s*=", line):
                self.lines.setdefault((table, key[1]), number)

    def error(self, table: str, key: str, message: str) -> InputError:
        line = self.lines.get((table, key))
        return InputError(f"recipe {self.path}{f', line {line}' if line else ''}: {message}")

    def recipe(self, made: Mapping[str, object]) -> Recipe:
        if made.get("version") != VERSION:
            raise self.error("", "version", f"version is {made.get('version', 'missing')}, expected {VERSION}")
        own = self._fields("", {k: v for k, v in made.items() if k not in ("version", "layers")}, KEYS)
        tables = made.get("layers", {})
        if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
            raise self.error("", "layers", 'expected a table for each pattern, [layers."PATTERN"]')
        layers = {pattern: self._fields(self._table(pattern), t, OF_LAYERS) for pattern, t in tables.items()}
        try:
            return replace(Recipe(Path(self.path).stem), **own, layers=layers)  # type: ignore[arg-type]
        except InputError as e:
            places = {self._table(p): fields for p, fields in layers.items() if f"layers '{p}'" in str(e)} or {"": own}
            keys = [(table, key) for table, fields in places.items() for key in fields if key in str(e)]
            raise self.error(*(keys or [("", "")])[0], str(e)) from e

    def _table(self, pattern: str) -> str:
        """The header of the table of a pattern, as it stands in the file."""
        return next(
            (t for t, _ in self.lines if re.fullmatch(rf"layers\s*\.\s*[\"']?{re.escape(pattern)}[\"']?", t)), ""
        )

    def _fields(self, table: str, given: Mapping[str, object], known: tuple[str, ...]) -> dict[str, int | str]:
        fields = dict[str, int | str]()
        for key, value in given.items():
            if key not in known:
                near = get_close_matches(key, known, 1) or known[:1]
                raise self.error(table, key, f"there is no key '{key}', the nearest is '{near[0]}'")
            if key == "state_bits" and value == "certified":
                value = CERTIFIED
            text = key in ("name", *NAMES)
            if not isinstance(value, str if text else int) or isinstance(value, bool):
                expected = "a text" if text else "a whole number"
                raise self.error(table, key, f"{key} is {value!r}, expected {expected}")
            fields[key] = value
        return fields
