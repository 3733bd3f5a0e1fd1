"""Recipes in files: what a right one is, and where a wrong one is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from isobit.quant.errors import InputError
from isobit.quant.recipe import CERTIFIED, RECIPES, Recipe
from isobit.quant.recipe_file import LARGEST_FILE, recipe_of

GOOD = """\
version = 1
weights = "int4-g32"
act_bits = 12
state_bits = "certified"

[layers."blocks.0.*"]
weights = "e2m1"

[layers.head]
state_bits = 32
act_bits = 16

[layers."*.attn"]
cache_bits = 2
"""


def test_a_file_is_its_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    layers: dict[str, dict[str, int | str]] = {
        "blocks.0.*": {"weights": "e2m1"},
        "head": {"state_bits": 32, "act_bits": 16},
        "*.attn": {"cache_bits": 2},
    }
    assert recipe_of(str(path)) == Recipe("mine", "int4-g32", act_bits=12, state_bits=CERTIFIED, layers=layers)
    path.write_text('version = 1\nname = "other"\n')
    assert recipe_of(str(path)) == Recipe("other")
    assert recipe_of("w4a8") is RECIPES["w4a8"]


WRONG = {
    ("version = 1", "version = 2"): r"mine\.toml, line 1: version is 2, expected 1",
    ("version = 1", ""): r"mine\.toml: version is missing, expected 1",
    ("act_bits", "act_bit"): r"line 3: there is no key 'act_bit', the nearest is 'act_bits'",
    ("act_bits = 12", "act_bits = 20"): r"line 3: recipe mine: act_bits is 20, expected 2 to 16",
    ("act_bits = 12", 'act_bits = "8"'): r"line 3: act_bits is '8', expected a whole number",
    ("act_bits = 12", "act_bits = true"): r"line 3: act_bits is True, expected a whole number",
    ('"int4-g32"', "4"): r"line 2: weights is 4, expected a text",
    ('"int4-g32"', '"int4g32"'): r"line 2: recipe mine: weights: there is no format 'int4g32', the nearest is 'int4'",
    (
        '"int4-g32"',
        '"int4-g32"\nactivations = "int8"',
    ): r"line 3: .*activations is 'int8', expected a minifloat",
    (
        '"int4-g32"',
        '"int4-g32"\nactivations = "e9m9"',
    ): r"line 3: .*activations: there is no format 'e9m9'",
    (
        '"int4-g32"',
        '"e4m3"\nactivations = "e4m3"\nmultiplier = "lmul"',
    ): r"line 4: .*multiplier is 'lmul', expected one of exact, l-mul, l-mul-paper",
    ("act_bits = 12", 'multiplier = "l-mul"'): r"recipe mine: multiplier is 'l-mul', weights is 'int4-g32'",
    ("act_bits = 16", 'multiplier = "l-mul"'): r"layers 'head': multiplier is 'l-mul', weights is 'int4-g32'",
    ("act_bits = 12", "multiplier = 8"): r"line 3: multiplier is 8, expected a text",
    ('"certified"', '"cert"'): r"line 4: state_bits is 'cert', expected a whole number",
    ('weights = "e2m1"', "nonlinear = 3"): r"line 7: nonlinear is 3, expected a text",
    ('weights = "e2m1"', "linear = 3"): r"line 7: there is no key 'linear', the nearest is 'nonlinear'",
    ('weights = "e2m1"', 'nonlinear = "quat"'): r"line 7: .*nonlinear is 'quat', expected one of quad, ivit",
    (
        'weights = "e2m1"',
        "wide_bits = 4",
    ): r"line 7: recipe mine, layers 'blocks\.0\.\*': wide_bits 4 is below act_bits",
    ("state_bits = 32", "state_bits = 1"): r"line 10: recipe mine, layers 'head': state_bits is 1, expected 2 to 32",
    (
        "[layers.head]\nstate_bits = 32\nact_bits = 16\n",
        "[layers]\nhead = 3",
    ): r"line 6: expected a table for each pattern",
    (
        "cache_bits = 2",
        "cache_bits = 3",
    ): r"line 14: .*layers '\*\.attn': cache_bits is 3, expected 2 or 4, or 0: as act_bits",
    ("cache_bits = 2", 'cache_bits = "4"'): r"line 14: cache_bits is '4', expected a whole number",
    ("act_bits = 12", "cache_bits = 8"): r"line 3: recipe mine: cache_bits is 8, expected 2 or 4",
    ("act_bits = 12", "act_bits 12"): r"mine\.toml: Expected '=' after a key.*line 3",
}


@pytest.mark.parametrize("change", WRONG, ids=range(len(WRONG)))
def test_a_wrong_file_is_refused(change: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(InputError, match=WRONG[change]):
        recipe_of(str(path))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.toml: No such file or directory; by name there are w8a8"):
        recipe_of(str(tmp_path / "nothing.toml"))
    path = tmp_path / "large.toml"
    path.write_bytes(b"#" * (LARGEST_FILE + 1))
    with pytest.raises(InputError, match="more than 1048576 bytes"):
        recipe_of(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"large\.toml: .*utf-8"):
        recipe_of(str(path))
