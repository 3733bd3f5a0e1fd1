"""A .pt2 file, as torch.export.save writes it, to a module: no pickle is opened, and nothing in it is run.

The file is a zip.  torch.export.load would open the pickles in it (example inputs, custom objects, weights under some
conditions), load compiled code, evaluate its expressions for sizes with sympy.sympify, which is eval, and resolve its
operators by name anywhere in torch.  So the parts that are taken are checked, and only these are given to it.
"""

from __future__ import annotations

import io
import json
import logging
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

import isobit.quant.capture.whole_layers
import isobit.quant.nn  # noqa: F401  # The operators that a file may name.
from isobit.quant.capture.export import ROLL, Traced, traced
from isobit.quant.capture.loops.rolled import CannotRoll
from isobit.quant.errors import InputError

EXPORT = """save it again with:
    from torch.export import Dim, export, save
    program = export(model.eval(), (example,), dynamic_shapes=({0: Dim("B"), 1: Dim("T")},))
    save(program, "model.pt2")
where example is a float tensor (2, 7, channels), or int64 (2, 7) for identifiers; for images, float (2, C, H, W) and
dynamic_shapes=({0: Dim("B")},)"""

SIZE = re.compile(
    r"Symbol\('[su]\d+'(, (positive|nonnegative|integer)=True)*\)|[su]\d+|-?\d+|[ (),]"
    r"|Integer|Add|Mul|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv"
)
"""What a size may be made of: symbols, whole numbers, and few functions; no name of anything else, and no power."""

OPERATOR = re.compile(
    r"torch\.ops\.(aten|isobit)\.(?!from_file\b)\w+(\.\w+)?|torch\.sym_\w+|math\.\w+"
    r"|torch\.ops\.higher_order\.(scan|cond|while_loop|map_impl|associative_scan)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|ge|le|gt|lt|and_|or_)"
)
"""Operators that compute, and touch no file and no program; which of them are taken is up to capture."""

NAME = re.compile(r"[A-Za-z_]\w*")

CONTAINERS = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", None)
"""Of inputs and results."""

KEPT = ("archive_format", "archive_version", "byteorder", ".data/version")

ITEM_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 12: 1, 13: 2}
"""Bytes of an element, by the number that the file has for its type; complex and quantized ones are not here."""


class ExportedModule(nn.Module):
    """An exported program as a module: (B, T, ...) -> (B, T, ...), for any batch.

    steps: the only number of steps that it takes; None where any may be.
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        self.program = program
        x = _user_input(program)
        batch, *rest = x.meta["val"].shape
        self.batch = batch if isinstance(batch, int) else None
        self.steps = rest[0] if len(rest) in (1, 2) and isinstance(rest[0], int) else None
        self.dtype = x.meta["val"].dtype

    def traced(self, shape: tuple[int, ...], ids: bool) -> Traced:
        """The program's graph, if samples like `shape` are what it takes."""
        wanted = _user_input(self.program).meta["val"]
        sizes = tuple(d if isinstance(d, int) else "?" for d in wanted.shape)
        rest = 1 if len(shape) == 4 else 2
        if len(sizes) != len(shape) or sizes[rest:] != shape[rest:] or ids == wanted.is_floating_point():
            raise InputError(
                f"the program takes {wanted.dtype}, ({', '.join(map(str, sizes))}), and the samples are "
                f"{'identifiers' if ids else 'real numbers'}, {shape}; give it what it takes, or {EXPORT}"
            )
        if self.steps == 1:
            raise InputError(f"the program was exported for one step, which says nothing of the next one; {EXPORT}")
        try:
            return traced(self.program)
        except CannotRoll as e:
            raise InputError(
                f"the program has a loop over time, unrolled over {self.steps} steps, and {e}: {ROLL}\nThen {EXPORT}"
            ) from e

    def forward(self, x: Tensor) -> Tensor:
        """Runs the program's operators one by one, for a fixed batch on as many samples at a time."""
        if self.batch is None:
            return self._run(x)
        missing = -len(x) % self.batch
        padded = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
        return torch.cat([self._run(part) for part in padded.split(self.batch)])[: len(x)]

    def _run(self, x: Tensor) -> Tensor:
        p = self.program
        lifted = {**p.graph_signature.inputs_to_parameters, **p.graph_signature.inputs_to_buffers}
        lifted |= p.graph_signature.inputs_to_lifted_tensor_constants
        tensors = {**p.constants, **p.state_dict}
        given = [
            tensors[lifted[n.name]] if n.name in lifted else x.to(self.dtype)
            for n in p.graph.nodes
            if n.op == "placeholder"
        ]
        result = fx.Interpreter(p.graph_module).run(*given)
        made: Tensor = result[0] if isinstance(result, tuple | list) else result
        return made


def _user_input(program: ExportedProgram) -> fx.Node:
    names = [n for n in program.graph_signature.user_inputs if isinstance(n, str)]
    if len(names) != 1 or len(program.graph_signature.user_inputs) != 1:
        raise InputError(
            f"the program takes {len(program.graph_signature.user_inputs)} inputs, expected one tensor (B, T, channels)"
        )
    found: fx.Node = next(n for n in program.graph.nodes if n.name == names[0])
    return found


def load_program(path: Path) -> ExportedModule:
    """The program in the .pt2 file `path`.  Raises InputError, before it allocates what the file claims."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; expected one that torch.export.save wrote")
    try:
        clean = _checked(path)
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise InputError(f"{path}: not a readable .pt2 file ({type(e).__name__}: {e}); {EXPORT}") from e
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        program = torch.export.load(clean)
        return ExportedModule(program)
    except InputError as e:
        raise InputError(f"{path}: {e}") from None
    except Exception as e:
        reason = next((line for line in str(e).splitlines() if line.strip()), type(e).__name__)
        raise InputError(f"{path}: torch {torch.__version__} cannot read it ({reason}); {EXPORT}") from e
    finally:
        logging.disable(disabled)


def _checked(path: Path) -> io.BytesIO:
    """The file's program, weights and constants, checked, without anything else that it holds."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members):
            raise InputError(f"{path}: its members are compressed, as torch.export.save does not; {EXPORT}")
        root = members[0].filename.partition("/")[0] if members else ""
        names = {m.filename.removeprefix(f"{root}/") for m in members}
        _check_members(path, names)
        parts = {name: archive.read(f"{root}/{name}") for name in KEPT if name in names}
        parts["models/model.json"] = archive.read(f"{root}/models/model.json")
        for kind in ("weights", "constants"):
            folder = f"data/{kind}"
            config = archive.read(f"{root}/{folder}/model_{kind}_config.json")
            parts[f"{folder}/model_{kind}_config.json"] = config
            for file, size in _payloads(path, json.loads(config)["config"]):
                if f"{folder}/{file}" not in parts:
                    parts[f"{folder}/{file}"] = archive.read(f"{root}/{folder}/{file}")
                if size > len(parts[f"{folder}/{file}"]):
                    have = len(parts[f"{folder}/{file}"])
                    raise InputError(f"{path}: {folder}/{file} has {have} bytes, expected at least {size}; {EXPORT}")
    parts["models/model.json"] = _checked_program(path, json.loads(parts["models/model.json"]))
    parts["data/sample_inputs/model.pt"] = b""
    clean = io.BytesIO()
    with zipfile.ZipFile(clean, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            archive.writestr(f"model/{name}", content)
    clean.seek(0)
    return clean


def _check_members(path: Path, names: set[str]) -> None:
    if "data.pkl" in names:
        raise InputError(
            f"{path}: a pickle made by torch.save, which can run code when it is opened; {EXPORT}\n"
            "or give its weights as .safetensors beside pkg.mod:factory"
        )
    if any(name.startswith("data/aotinductor/") for name in names):
        raise InputError(f"{path}: holds compiled code instead of a program; {EXPORT}")
    if "archive_format" not in names or "models/model.json" not in names:
        raise InputError(f"{path}: holds no model of that name, or is older than torch 2.8; {EXPORT}")


def _payloads(path: Path, config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """File and least size in bytes of every tensor."""
    for name, entry in config.items():
        file, meta = entry["path_name"], entry["tensor_meta"]
        if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", file):
            raise InputError(
                f"{path}: {name} is a pickled object, which can run code when it is opened; expected plain tensors: "
                f"take it out of the model, and {EXPORT}"
            )
        if meta["dtype"] not in ITEM_SIZES:
            raise InputError(f"{path}: {name} is no tensor of real numbers or integers; {EXPORT}")
        count = 1
        for size in meta["sizes"]:
            count *= int(size["as_int"])
        yield file, count * ITEM_SIZES[meta["dtype"]]


def _checked_program(path: Path, program: dict[str, Any]) -> bytes:
    """The program as JSON, of which every name, operator and size is one that torch may evaluate."""
    version = program["schema_version"]["major"]
    for key, value in _strings(program["graph_module"], ""):
        if key in RULES and not RULES[key](value):
            raise InputError(f"{path}: its {key} {value[:80]!r} is not one of an exported model; {EXPORT}")
    if program["graph_module"].get("metadata") is not None:
        program["graph_module"]["metadata"] = {}
    if not isinstance(version, int):
        raise InputError(f"{path}: its version is {version!r}, expected a number; {EXPORT}")
    program["guards_code"] = []
    return json.dumps(program).encode()


def _strings(value: object, key: str) -> Iterator[tuple[str, str]]:
    """Every string of a JSON value with the key that it stands under, keys of tables of values as names too."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, dict):
        for k, item in value.items():
            if key.endswith("_values"):
                yield "name", k
            if k != "metadata":
                yield from _strings(item, k)


def _is_container(text: str) -> bool:
    return not text or _is_plain(json.loads(text)[1])


def _is_plain(spec: dict[str, Any]) -> bool:
    """A tree of CONTAINERS; keys of a dict are a list, without the objects of which torch would import the class."""
    return spec["type"] in CONTAINERS and "{" not in str(spec["context"]) and all(map(_is_plain, spec["children_spec"]))


def _is_size(text: str) -> bool:
    return SIZE.sub("", text) == "" and len(text) < 500


RULES: dict[str, Callable[[str], object]] = {
    "expr_str": _is_size,
    "target": OPERATOR.fullmatch,
    "as_operator": OPERATOR.fullmatch,
    **dict.fromkeys(("name", "as_name"), lambda text: not text or NAME.fullmatch(text)),
    **dict.fromkeys(("in_spec", "out_spec"), _is_container),
}
"""By key, what its strings may be."""
