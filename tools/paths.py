"""Where a command may write: asked before long work starts, and written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from isobit.quant.errors import InputError
from isobit.targets.files import write_files


def check_output_file(path: Path) -> None:
    """Raises InputError where no file can be written to `path`; missing folders are made later."""
    if path.is_dir():
        raise InputError(f"{path}: expected a file to write to, got a folder; name a file in it")
    _check_holder(path)


def check_output_folder(path: Path) -> None:
    """Raises InputError where no folder can be written to `path`; missing ones are made later."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: expected a folder to write to, got a file; name another")
    _check_holder(path / "file")


def _check_holder(path: Path) -> None:
    holder = next(p for p in path.absolute().parents if p.exists())
    if not holder.is_dir():
        raise InputError(f"{path}: cannot be written, {holder} is a file; name another place")
    if not os.access(holder, os.W_OK | os.X_OK):
        raise InputError(f"{path}: cannot be written, the folder {holder} is not yours to write to; name another place")


def write_folder(out: Path, made: Path, files: Sequence[str]) -> None:
    """Copy `files` from the folder `made`.  A new `out` appears at once; in an old one each file is replaced whole."""
    if out.exists():
        _copy(out, made, files)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as near:
        fresh = Path(near, "package")
        fresh.mkdir()
        _copy(fresh, made, files)
        fresh.rename(out)


def _copy(out: Path, made: Path, files: Sequence[str]) -> None:
    write_files(out, {file: (made / file).read_bytes() for file in files})
