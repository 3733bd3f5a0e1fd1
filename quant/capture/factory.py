"""A model by name: a zoo model, or `pkg.mod:factory` with weights in a .safetensors file."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from isobit.quant.errors import InputError

ZOO = {"digits": "isobit.quant.zoo.digits:load"}
"""Models that ship with isobit, with their weights."""

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")

SAVE = "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"


def load_model(spec: str, weights: Path | None = None) -> nn.Module:
    """The module that `spec` names, in eval mode, with `weights` loaded where given.

    spec: a key of ZOO, or `pkg.mod:factory`, a callable without arguments that returns the module; the working
    directory is importable.  weights: .safetensors with exactly the module's tensors.  Raises InputError.
    """
    if spec in ZOO and weights is not None:
        raise InputError(f"{spec} ships with its weights; remove {weights}, or name a factory: pkg.mod:factory")
    with _working_directory_importable():
        module = _call_factory(ZOO.get(spec, spec))
    if weights is not None:
        load_weights(module, weights)
    return module.eval()


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
        raise InputError(f"model '{spec}': expected pkg.mod:factory or one of {', '.join(ZOO)}")
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
    """Load every tensor of the .safetensors file `path` into `module`; names and shapes must match exactly."""
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
            _check_shapes(path, {k: tuple(v.shape) for k, v in expected.items()}, shapes)
            tensors = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError) as e:
        raise InputError(f"{path}: not a readable .safetensors file ({e}); save it again with {SAVE}") from e
    for name, tensor in tensors.items():
        if tensor.is_complex() or tensor.is_floating_point() != expected[name].is_floating_point():
            raise InputError(f"{path}: tensor {name} is {tensor.dtype}, expected {expected[name].dtype}")
        if bad := int((~torch.isfinite(tensor)).sum()):
            raise InputError(
                f"{path}: tensor {name}: {bad} of {tensor.numel()} values are NaN or infinite, expected none"
            )
    module.load_state_dict(tensors, strict=True)


def _check_shapes(path: Path, expected: dict[str, tuple[int, ...]], got: dict[str, tuple[int, ...]]) -> None:
    faults = [f"{name} is missing" for name in expected if name not in got]
    faults += [f"{name} is not in the model" for name in got if name not in expected]
    faults += [f"{k} has shape {got[k]}, expected {s}" for k, s in expected.items() if k in got and got[k] != s]
    if faults:
        more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise InputError(
            f"{path} does not fit the model: {'; '.join(faults[:8])}{more}. Use the weights of this architecture"
        )
