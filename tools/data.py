"""Reading and writing the arrays that users give and get: .npz files, never pickles, sizes checked before use."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isobit.quant.check import check
from isobit.quant.errors import InputError
from isobit.quant.lower.edges import quantize_for
from isobit.quant.ops import Structure
from isobit.quant.program import Array, Arrays, Input, Program
from isobit.targets.files import write_file
from isobit.tools import show

IMAGES = 4
"""Axes of images: samples, channels, height, width."""

LARGEST = 2 << 30
"""Bytes that one file of arrays may unpack to."""

UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


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


def write_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Write an .npz file, whole or not at all; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, buffer.getvalue())


def read_input(p: Program, path: Path, raw: bool) -> Arrays:
    """Array `x` of a file as the Program's input integers, by `to_integers`."""
    return {only_input(p).name: to_integers(p, read_arrays(path, ("x",))["x"], raw, f"{path}: array x")}


def only_input(p: Program) -> Input:
    """The input that --data is for."""
    if len(p.inputs) != 1:
        raise InputError(f"{p.name} has {len(p.inputs)} inputs; --data serves models with one")
    return p.inputs[0]


def with_time(p: Program, x: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    """x as (samples, T, *shape of the Program's input), which has no axes of size 1.

    x: (samples, T, *dims); for a Program with one channel, or one that takes identifiers, (samples, T); for images,
    which are sequences of one step, (samples, C, H, W).
    """
    t = only_input(p).type
    if 0 not in x.shape and x.ndim > 1:
        if _without_units(x.shape[2:]) == t.dims:
            return x.reshape(*x.shape[:2], *t.dims)
        if x.ndim == IMAGES and _without_units(x.shape[1:]) == t.dims:
            return x.reshape(len(x), 1, *t.dims)
    forms = [", ".join(["samples", *map(str, t.shape)])]
    if len(t.dims) == IMAGES - 1:
        forms.append(", ".join(["samples", *map(str, t.dims)]))
    raise InputError(f"{where}: expected shape ({') or ('.join(forms)}), none of them 0, got {x.shape}")


def _without_units(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(d for d in shape if d != 1)


def takes_identifiers(p: Program) -> bool:
    """Whether the Program's input says which row of a table it is."""
    name = only_input(p).name
    return any(n.spec.structure is Structure.GATHER and n.inputs[0] == name for n in p.nodes)


def to_integers(p: Program, x: npt.NDArray[Any], raw: bool, where: str) -> Array:
    """int64 (samples, T, *shape), of x as `with_time` takes it.

    With `raw`, or for a Program that takes identifiers, x holds the input's own integers; else real values for the edge
    rule.
    """
    entry, x, ids = only_input(p), with_time(p, x, where), takes_identifiers(p)
    t = entry.type
    known = t.elem.range
    if ids:
        if not np.issubdtype(x.dtype, np.integer):
            raise InputError(f"{where}: expected identifiers, integers from 0 to {known.hi}, got {x.dtype}")
        if x.min() < 0 or x.max() > known.hi:
            raise InputError(f"{where}: expected identifiers from 0 to {known.hi}, got {x.min()} to {x.max()}")
        return x.astype(np.int64)
    if raw:
        if not np.issubdtype(x.dtype, np.integer):
            raise InputError(f"{where}: expected integers, got {x.dtype}; leave out --raw for real values")
        if x.min() < known.lo or x.max() > known.hi:
            raise InputError(
                f"{where}: expected {t.elem}, integers from {known.lo} to {known.hi}, got {x.min()} to {x.max()}; "
                "leave out --raw for real values"
            )
        return x.astype(np.int64)
    if t.scale is None:
        raise InputError(f"{where}: {p.name} says no scale for its input; give its integers, with --raw")
    lo, hi = known.lo * t.scale, known.hi * t.scale
    if np.issubdtype(x.dtype, np.integer) and (outside := int(((x < lo) | (x > hi)).sum())):
        show.note(
            f"{where}: {outside} of {x.size} values leave the input's range, {lo:g} to {hi:g}, and saturate; "
            "if these integers are the input's own, say --raw"
        )
    return quantize_for(entry, x, where)


def read_labelled(p: Program, path: Path, raw: bool) -> tuple[Arrays, npt.NDArray[np.integer]]:
    """Arrays `x`, as `read_input`, and `y`: for each sample the index of its class among the Program's outputs."""
    arrays = read_arrays(path, ("x", "y"))
    x = to_integers(p, arrays["x"], raw, f"{path}: array x")
    y, where = arrays["y"], f"{path}: array y"
    dims = check(p).types[p.outputs[0]].dims
    if len(p.outputs) != 1 or len(dims) != 1:
        raise InputError(f"{p.name}: accuracy is for a classifier with one output per class, this one's is {dims}")
    if y.shape != (len(x),):
        raise InputError(f"{where}: expected one label for each of the {len(x)} samples, got shape {y.shape}")
    if not np.issubdtype(y.dtype, np.integer):
        raise InputError(f"{where}: expected integers, got {y.dtype}")
    if y.min() < 0 or y.max() >= dims[0]:
        raise InputError(f"{where}: expected labels from 0 to {dims[0] - 1}, got {y.min()} to {y.max()}")
    return {only_input(p).name: x}, y
