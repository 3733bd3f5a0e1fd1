"""Number formats of weights: FORMATS and MX by name, and groups of any of them."""

from __future__ import annotations

import re
from dataclasses import replace
from difflib import get_close_matches
from functools import cache

from isobit.quant.errors import InputError
from isobit.quant.formats.blocks import INTEGER, RULES, Blocks
from isobit.quant.formats.format import Format, integer, minifloat, powers, signed_digits

FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        *(integer(bits) for bits in range(2, 17)),
        Format("binary", "-1 and 1 times the mean magnitude", (1,)),
        Format("ternary", "-1, 0 and 1 times the mean magnitude", (0, 1)),
        *(powers(bits) for bits in (3, 4, 5)),
        signed_digits(),
        minifloat(4, 3, largest=448, name="e4m3"),
        minifloat(4, 3, name="e4m3full"),
        minifloat(5, 2, largest=57344, name="e5m2"),
        minifloat(3, 4),
        minifloat(3, 2),
        minifloat(2, 3),
        minifloat(2, 1),
    )
}
"""Elements; `e4m3full` has no NaN and reaches 480, as Brevitas' E4M3."""

MX: dict[str, Blocks] = {
    "mxfp8": Blocks("mxfp8", FORMATS["e4m3"], 32, "floor"),
    "mxfp8-e5m2": Blocks("mxfp8-e5m2", FORMATS["e5m2"], 32, "floor"),
    "mxfp6": Blocks("mxfp6", FORMATS["e2m3"], 32, "floor"),
    "mxfp6-e3m2": Blocks("mxfp6-e3m2", FORMATS["e3m2"], 32, "floor"),
    "mxfp4": Blocks("mxfp4", FORMATS["e2m1"], 32, "floor"),
    "mxint8": Blocks("mxint8", Format("int8", "integers of 8 bits, 1.6", range(128), 6), 32, "floor"),
}
"""OCP's microscaling formats (v1.0): blocks of 32 with a power of two as scale."""

GROUPS = (16, 32, 64, 128)
"""Sizes of groups and blocks."""

SCALES = re.compile(f"tensor|g({'|'.join(map(str, GROUPS))})")
"""How many scales a weight has, where not one for each output."""

MINIFLOAT = re.compile(r"e([1-7])m([0-6])(?:b(\d+))?")

LARGEST_BIAS = 127


@cache
def format_named(name: str) -> Format | Blocks:
    """An element, `int4`, `e3m2`, `e3m2b5` (with a bias), with one scale `int4-tensor`, in groups `int4-g32`; MX,
    `mxfp4`, `mxfp4-g16`, `mxfp4-rceil`.

    Raises InputError that names the nearest one.
    """
    if name in MX:
        return MX[name]
    base, _, option = name.rpartition("-")
    if base in MX and option in RULES:
        return Blocks(name, MX[base].element, MX[base].size, option)
    of = format_named(base) if base and SCALES.fullmatch(option) else None
    if isinstance(of, Format) and not of.shared and option == "tensor":
        return replace(of, name=name, what=f"{of.what}; one scale", shared=True)
    if of and option != "tensor" and not (isinstance(of, Format) and of.shared):
        element, rule = (of, INTEGER) if isinstance(of, Format) else (of.element, of.rule)
        return Blocks(name, element, int(option[1:]), rule)
    if name in FORMATS:
        return FORMATS[name]
    if match := MINIFLOAT.fullmatch(name):
        exponent, mantissa, bias = int(match[1]), int(match[2]), None if match[3] is None else int(match[3])
        if exponent + mantissa < 8 and (bias or 0) <= LARGEST_BIAS:
            return minifloat(exponent, mantissa, bias, name=name)
    near = get_close_matches(base or name, [*FORMATS, *MX], 1) or ["int8"]
    raise InputError(f"there is no format '{name}', the nearest is '{near[0]}'; `isobit formats` lists them")
