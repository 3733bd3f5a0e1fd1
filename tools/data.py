"""Reading and writing the arrays that users give and get: .npz files, never pickles, sizes checked before use."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isobit.quant.errors import InputError

LARGEST = 2 << 30
"""Bytes that one file of arrays may unpack to."""


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    """The named arrays of an .npz file; InputError with file, expected and got otherwise."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected an .npz with {_listed(names)}")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > LARGEST:
            raise InputError(f"{path}: its arrays take {size} bytes, the limit is {LARGEST}; split the file")
        with np.load(path, allow_pickle=False) as arrays:
            missing = [n for n in names if n not in arrays.files]
            if missing:
                raise InputError(f"{path}: expected {_listed(names)}, got {_listed(tuple(arrays.files))}")
            return {n: arrays[n] for n in names}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as e:
        raise InputError(f"{path}: not a readable .npz of plain arrays ({e}); write it with numpy.savez") from None


def _listed(names: tuple[str, ...]) -> str:
    return "arrays " + ", ".join(f"'{n}'" for n in names) if names else "no array"


def npz_bytes(arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    """The content of an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
