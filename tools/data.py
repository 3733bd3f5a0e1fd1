"""Reading and writing the arrays that users give and get: .npz files, never pickles, sizes checked before use."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isobit.quant.errors import InputError
from isobit.quant.lower.edges import quantize_input
from isobit.quant.program import Array, Arrays, Input, Program

LARGEST = 2 << 30
"""Bytes that one file of arrays may unpack to."""

UNREADABLE = (ValueError, OSError, EOFError, MemoryError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    """The named arrays of an .npz file, all of numbers; InputError with file, expected and got otherwise."""
    if path.is_dir():
        raise InputError(f"{path}: expected an .npz with {_listed(names)}, got a folder")
    if not path.exists():
        raise InputError(f"{path}: there is no such file; expected an .npz with {_listed(names)}")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > LARGEST:
            raise InputError(f"{path}: its arrays take {size} bytes, the limit is {LARGEST}; split the file")
        with np.load(path, allow_pickle=False) as arrays:
            missing = [n for n in names if n not in arrays.files]
            if missing:
                raise InputError(f"{path}: expected {_listed(names)}, got {_listed(tuple(arrays.files))}")
            found = {n: arrays[n] for n in names}
    except UNREADABLE as e:
        raise InputError(f"{path}: not a readable .npz of plain arrays ({e}); write it with numpy.savez") from None
    for name, array in found.items():
        if not isinstance(array, np.ndarray):
            raise InputError(f"{path}: {name} is not an array; write it with numpy.savez")
        if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
            raise InputError(f"{path}: array {name}: expected numbers, got {array.dtype}")
    return found


def _listed(names: tuple[str, ...]) -> str:
    return "arrays " + ", ".join(f"'{n}'" for n in names) if names else "no array"


def npz_bytes(arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    """The content of an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def only_input(p: Program) -> Input:
    if len(p.inputs) != 1:
        raise InputError(f"{p.name} has {len(p.inputs)} inputs; --data serves models with one")
    return p.inputs[0]


def read_input(p: Program, path: Path, raw: bool) -> Arrays:
    """Array `x` of a file as the Program's input integers, by `to_integers`."""
    return {only_input(p).name: to_integers(p, read_arrays(path, ("x",))["x"], raw, f"{path}: array x")}


def to_integers(p: Program, x: npt.NDArray[Any], raw: bool, where: str) -> Array:
    """int64 (samples, T, *shape): with `raw` x holds the input's own integers, else real values for the edge rule."""
    t = only_input(p).type
    if x.ndim != len(t.shape) + 1 or x.shape[2:] != t.dims or 0 in x.shape:
        expected = ", ".join(["samples", *map(str, t.shape)])
        raise InputError(f"{where}: expected shape ({expected}), none of them 0, got {x.shape}")
    if not raw:
        assert t.scale is not None
        return quantize_input(x, t.scale, t.elem, where)
    if not np.issubdtype(x.dtype, np.integer):
        raise InputError(f"{where}: --raw expects the input's integers, got {x.dtype}; leave --raw out for real values")
    if x.min() < t.elem.range.lo or x.max() > t.elem.range.hi:
        raise InputError(
            f"{where}: expected integers of {t.elem}, {t.elem.range.lo} to {t.elem.range.hi}, "
            f"got {x.min()} to {x.max()}; leave --raw out for real values"
        )
    return x.astype(np.int64)


def saturated_integers(p: Program, x: npt.NDArray[Any], raw: bool) -> str | None:
    """What to tell a user whose integers, taken for real values, leave the input's range: was --raw meant?"""
    t = only_input(p).type
    if raw or not np.issubdtype(x.dtype, np.integer) or t.scale is None:
        return None
    lo, hi = t.elem.range.lo * t.scale, t.elem.range.hi * t.scale
    outside = int(((x < lo) | (x > hi)).sum())
    if not outside:
        return None
    return (
        f"x: {outside} of {x.size} values leave the input's range, {lo:g} to {hi:g}, and saturate; "
        "if these integers are the input's own, say --raw"
    )
