"""A model by name: of the zoo, `pkg.mod:factory` with weights in a .safetensors file, a .pt2 file, or a folder."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from isobit.quant.errors import InputError

ZOO = {"digits": "isobit.quant.zoo.digits:load"}
"""Models that ship with isobit, with their weights."""

PREFIX = "zoo:"
"""Before the name of a family of the zoo: its tiny size, with weights from SEED; its odd size with ODD behind it."""

ODD = ":odd"

SEED = 0

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")

ELEMENTS = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
"""Of tensors in a file of weights: floats become those of the module."""

SAVE = "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"

EXPECTED = (
    "expected pkg.mod:factory, a .pt2 file of torch.export.save, a Hugging Face folder (config.json, .safetensors), "
    f"zoo:FAMILY (isobit families lists them), or one of {', '.join(ZOO)}"
)


def load_model(
    spec: str,
    weights: Path | None = None,
    t_max: int | None = None,
    note: Callable[[str], object] = lambda message: None,
) -> nn.Module:
    """The module that `spec` names, in eval mode, with `weights` loaded where given.

    spec: a key of ZOO; zoo:FAMILY; the path of a .pt2 file, or of a Hugging Face folder; or `pkg.mod:factory`, a
    callable without arguments that returns the module; the working directory is importable.
    weights: .safetensors with exactly the module's tensors.  t_max: the longest sequence, for attention in a folder.
    note: called with what was converted, left out, or made up.  Raises InputError.
    """
    path = Path(spec)
    if spec in ZOO or path.suffix in (".pt2", *PICKLES) or path.is_dir():
        if weights is not None:
            raise InputError(f"{spec} ships with its weights; remove {weights}, or name a factory: pkg.mod:factory")
        if path.suffix in PICKLES:
            raise InputError(
                f"{spec}: a pickle can run code when it is opened; name the model as pkg.mod:factory, and give its "
                f"weights with --weights, saved with {SAVE}"
            )
        return _load_path(path, t_max, note) if spec not in ZOO else _call_factory(ZOO[spec]).eval()
    if spec.startswith(PREFIX):
        module = _family(spec)
        if weights is None:
            note(f"{spec}: its weights are not trained, but random (seed {SEED})")
    else:
        with _working_directory_importable():
            module = _call_factory(spec)
    if weights is not None:
        load_weights(module, weights)
    return module.eval()


def name_of(spec: str) -> str:
    """A name for the model in generated code: what `spec` calls it, as an identifier."""
    path = Path(spec)
    if path.is_dir() or path.suffix == ".pt2":
        name = path.resolve().name if path.is_dir() else path.stem
    else:
        name = spec.removesuffix(ODD).rpartition(":")[2]
    name = re.sub(r"\W", "_", name, flags=re.ASCII)
    return name if name[:1].isalpha() else f"model_{name}"


def _load_path(path: Path, t_max: int | None, note: Callable[[str], object]) -> nn.Module:
    if path.is_dir():
        from isobit.quant.huggingface.load import load_folder

        return load_folder(path, t_max, note)
    from isobit.quant.capture.program_file import load_program

    program = load_program(path)
    if program.steps is not None:
        note(f"{path}: exported for {program.steps} steps only; what it does there is taken for any number of steps")
    return program


def _family(spec: str) -> nn.Module:
    from isobit.quant.zoo.families import FAMILIES

    name = spec.removeprefix(PREFIX).removesuffix(ODD)
    if name not in FAMILIES:
        close = difflib.get_close_matches(name.lower(), [f.lower() for f in FAMILIES], n=3, cutoff=0.5)
        nearest = [f for f in FAMILIES if f.lower() in close]
        raise InputError(
            f"the zoo has no family '{name}'; {'near it are' if nearest else 'it has'} {', '.join(nearest or FAMILIES)}"
        )
    tiny, odd = FAMILIES[name].sizes()
    torch.manual_seed(SEED)
    return (odd if spec.endswith(ODD) else tiny)[0]()


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """So that a model may lie beside the command, as with `python -m`."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _call_factory(spec: str) -> nn.Module:
    package, colon, attribute = spec.partition(":")
    if not (package and colon and attribute):
        raise InputError(f"model '{spec}': {EXPECTED}")
    try:
        container = importlib.import_module(package)
    except ModuleNotFoundError as e:
        if e.name is not None and (package == e.name or package.startswith(e.name + ".")):
            raise InputError(
                f"model '{spec}': there is no module {package}; run from the folder that holds it, or install it"
            ) from e
        raise InputError(
            f"model '{spec}': {package} needs the module {e.name}, which is not installed: install it"
        ) from e
    except Exception as e:
        raise InputError(f"model '{spec}': importing {package} failed: {type(e).__name__}: {e}") from e
    factory = getattr(container, attribute, None)
    if factory is None:
        names = [k for k, v in vars(container).items() if callable(v) and not k.startswith("_")]
        raise InputError(f"model '{spec}': {package} has no {attribute}; it has {', '.join(names) or 'no callables'}")
    if not callable(factory):
        raise InputError(
            f"model '{spec}': {attribute} is a {type(factory).__name__}, expected a callable without arguments"
        )
    try:
        module = factory()
    except Exception as e:
        raise InputError(
            f"model '{spec}': {attribute}() raised {type(e).__name__}: {e}; it is called without arguments"
        ) from e
    if not isinstance(module, nn.Module):
        raise InputError(f"model '{spec}': {attribute}() returned {type(module).__name__}, expected a torch.nn.Module")
    return module


def load_weights(module: nn.Module, path: Path) -> None:
    """Load every tensor of the .safetensors file `path` into `module`; names and shapes must match exactly.

    A parameter that a module leaves out of its state before it has a value, as Brevitas does, may be given.
    """
    if path.suffix in PICKLES:
        raise InputError(f"{path}: a pickle can run code when it is opened; save the weights with {SAVE}")
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: expected a .safetensors file, as made by {SAVE}")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    expected = module.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            expected |= {k: p.detach() for k, p in module.named_parameters() if k in shapes and k not in expected}
            for name in _tied(expected, shapes):
                del expected[name]
            _check_shapes(path, {k: tuple(v.shape) for k, v in expected.items()}, shapes)
            tensors = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError) as e:
        raise InputError(f"{path}: not a readable .safetensors file ({e}); save it again with {SAVE}") from e
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != expected[name].is_floating_point() or tensor.dtype not in ELEMENTS:
            raise InputError(f"{path}: tensor {name} is {tensor.dtype}, expected {expected[name].dtype}")
        if bad := int((~torch.isfinite(tensor)).sum()):
            raise InputError(
                f"{path}: tensor {name}: {bad} of {tensor.numel()} values are NaN or infinite, expected none"
            )
    module.load_state_dict(tensors, strict=False)


def _tied(expected: dict[str, torch.Tensor], given: dict[str, tuple[int, ...]]) -> list[str]:
    """Names that may be left out: of a tensor that the file has under another name."""
    held = {expected[name].data_ptr() for name in given if name in expected and expected[name].numel()}
    return [name for name in expected if name not in given and expected[name].data_ptr() in held]


def _check_shapes(path: Path, expected: dict[str, tuple[int, ...]], got: dict[str, tuple[int, ...]]) -> None:
    faults = [f"{name} is missing" for name in expected if name not in got]
    faults += [f"{name} is not in the model" for name in got if name not in expected]
    faults += [f"{k} has shape {got[k]}, expected {s}" for k, s in expected.items() if k in got and got[k] != s]
    if faults:
        more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise InputError(
            f"{path} does not fit the model: {'; '.join(faults[:8])}{more}. Use the weights of this architecture"
        )
