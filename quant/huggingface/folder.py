"""The files of a Hugging Face folder: config.json, and tensors in .safetensors files, one or sharded; no pickles."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from isobit.quant.capture.factory import PICKLES, _check_shapes
from isobit.quant.errors import InputError
from isobit.quant.huggingface.config import Config

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

FLOATS = ("F64", "F32", "F16", "BF16")
"""Element types that are read, all as float32."""


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its name there, its shape and its element type as safetensors spells it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def read_config(folder: Path) -> Config:
    """config.json of `folder`; raises InputError where the folder or the file is not one."""
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder with {CONFIG} and {SINGLE}, as made by save_pretrained")
    path = folder / CONFIG
    values = _read_json(path, f"the folder needs the {CONFIG} that save_pretrained writes")
    return Config(path, values)


def read_entries(folder: Path) -> dict[str, Entry]:
    """What the folder's .safetensors files hold, by tensor name; no tensor is read."""
    if (folder / INDEX).is_file():
        return _read_index(folder / INDEX)
    files = [folder / SINGLE] if (folder / SINGLE).is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [p.name for p in sorted(folder.iterdir()) if p.suffix in PICKLES]
        if pickles:
            raise InputError(
                f"{folder}: its weights are pickles ({', '.join(pickles[:3])}), and a pickle can run code when it is "
                "opened; convert them once, where they are trusted: save_pretrained of transformers writes safetensors,"
                f" or safetensors.torch.save_file(torch.load({pickles[0]!r}, weights_only=True), {SINGLE!r})"
            )
        raise InputError(f"{folder}: there is no .safetensors file; expected {SINGLE}, or shards with {INDEX}")
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in _read_header(file).items():
            if name in entries:
                raise InputError(
                    f"{file}: tensor {name} is in {entries[name].file.name} too; which one counts is unknown: "
                    f"keep the files of one model only, or add {INDEX}"
                )
            entries[name] = entry
    return entries


def fill(
    module: nn.Module,
    folder: Path,
    entries: Mapping[str, Entry],
    tied: Mapping[str, str],
    ignored: Sequence[str],
    note: Callable[[str], object],
) -> None:
    """Give `module`, built on the meta device, every tensor of `entries`; names and shapes must match exactly.

    tied: tensors of the module that are another tensor of it, and may be absent; so may those that have a value.
    ignored: patterns of names that the module has no use for.  note is called with what was converted or left.
    Raises InputError, before anything of the size that the configuration says is allocated.
    """
    left = sorted(name for name in entries if any(re.search(pattern, name) for pattern in ignored))
    if left:
        note(f"{folder}: {len(left)} tensors are not needed and not read ({_few(left)})")
    wanted = {name: entry for name, entry in entries.items() if name not in left}
    state = module.state_dict()
    absent = {name for name in state if name not in wanted and (name in tied or not state[name].is_meta)}
    expected = {name: tuple(tensor.shape) for name, tensor in state.items() if name not in absent}
    _check_shapes(folder, expected, {name: entry.shape for name, entry in wanted.items()})
    tensors = {name: state[name] for name in absent - set(tied)} | _read_tensors(wanted, note)
    for name, source in tied.items():
        if name in tensors and not torch.equal(tensors[name], tensors[source]):
            raise InputError(
                f"{folder}: {CONFIG} says that {wanted[name].name} is {wanted[source].name} (tie_word_embeddings), "
                "but the two differ: set tie_word_embeddings to false if they were trained apart, else remove the first"
            )
        tensors[name] = tensors[source]
    module.load_state_dict(tensors, strict=True, assign=True)
    for name, source in tied.items():
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, module.get_parameter(source))


def _read_tensors(entries: Mapping[str, Entry], note: Callable[[str], object]) -> dict[str, Tensor]:
    """The tensors in float32, all of them finite."""
    for entry in entries.values():
        if entry.dtype not in FLOATS:
            raise InputError(
                f"{entry.file}: tensor {entry.name} is {entry.dtype}, expected one of {', '.join(FLOATS)}: "
                "a checkpoint that is quantized already cannot be read; use the one that it was made from"
            )
    tensors = {}
    for path in sorted({entry.file for entry in entries.values()}):
        with _opened(path) as file:
            for name, entry in entries.items():
                if entry.file == path:
                    tensors[name] = _float32(entry, file.get_tensor(entry.name))
    for dtype in FLOATS:
        count = sum(entry.dtype == dtype for entry in entries.values())
        if count and dtype != "F32":
            note(f"{count} of {len(entries)} tensors are {dtype}, converted to float32")
    return tensors


def _float32(entry: Entry, tensor: Tensor) -> Tensor:
    converted = tensor.float()
    if bad := int((~torch.isfinite(converted)).sum()):
        raise InputError(
            f"{entry.file}: tensor {entry.name}: {bad} of {tensor.numel()} values are NaN, infinite or beyond float32, "
            "expected none: use the checkpoint of a run that converged"
        )
    return converted


def _read_index(path: Path) -> dict[str, Entry]:
    weight_map = _read_json(path, "").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise InputError(f"{path}: weight_map is missing or no object of file names, expected tensor name -> file name")
    headers: dict[str, dict[str, Entry]] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"{path}: weight_map names {name!r}, expected a .safetensors file in the same folder")
        if not (path.parent / name).is_file():
            raise InputError(f"{path}: weight_map names {name}, and there is no such file; download all shards")
        headers[name] = _read_header(path.parent / name)
    lost = [name for name, file in weight_map.items() if name not in headers[file]]
    if lost:
        raise InputError(f"{path}: {_few(lost)} is not in the file that weight_map names; the index is of other files")
    stray = [name for header in headers.values() for name in header if name not in weight_map]
    if stray:
        raise InputError(f"{path}: {_few(stray)} is in the files, but not in weight_map; the index is of other files")
    return {name: headers[file][name] for name, file in weight_map.items()}


def _read_header(path: Path) -> dict[str, Entry]:
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: Entry(path, name, tuple(s.get_shape()), str(s.get_dtype())) for name, s in slices.items()}


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as e:
        raise InputError(f"{path}: not a readable .safetensors file ({e}); download or save it again") from e


def _read_json(path: Path, remedy: str) -> dict[str, object]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_hook=_plain_floats)
    except FileNotFoundError as e:
        raise InputError(f"{path}: there is no such file; {remedy}") from e
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: not a readable JSON file ({e}); download or save it again") from e
    if not isinstance(values, dict):
        raise InputError(f"{path}: a JSON {type(values).__name__}, expected an object")
    return values


def _plain_floats(item: dict[str, object]) -> object:
    """transformers writes an infinity as {"__float__": "Infinity"}."""
    return float(str(item["__float__"])) if set(item) == {"__float__"} else item


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
