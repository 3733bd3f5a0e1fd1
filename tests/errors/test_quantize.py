"""What a user can get wrong on the way to a Program, and what the message must name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.capture.capture import capture, disagreement
from isobit.quant.capture.factory import load_model
from isobit.quant.errors import InputError
from isobit.quant.lower.edges import InputSpec, input_spec, quantize_input
from isobit.quant.nn import CausalConv1d, SelectiveRecurrence
from isobit.quant.program import IntType
from isobit.quant.quantize import quantize
from isobit.quant.recipe import Recipe

C = 4
MODEL = "tests.errors.test_quantize:small"
GOOD = np.random.default_rng(0).normal(size=(2, 5, C))

not_callable = 3


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(C, C), nn.SiLU())


def returns_none() -> None:
    pass


def needs_an_argument(size: int) -> nn.Module:
    return nn.Linear(size, size)


class Inner(nn.Module):
    """`f` of the input, called from a submodule `inner`."""

    def __init__(self, f: Callable[..., Tensor]) -> None:
        super().__init__()
        self.f = f
        self.p = nn.Parameter(torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x, self.p)


def outer(f: Callable[..., Tensor]) -> nn.Module:
    model = nn.Sequential()
    model.add_module("inner", Inner(f))
    return model


def over_time(x: Tensor, p: Tensor) -> Tensor:
    rows = [x[:, 0]]
    for t in range(1, x.shape[1]):
        rows.append(rows[-1] * p + x[:, t])
    return torch.stack(rows, dim=1)


def recurrence(x: Tensor, dt: Tensor, rate: float) -> Tensor:
    y: Tensor = SelectiveRecurrence()(x, dt, torch.full((C, C), rate), x, x)
    return y


MODELS: list[tuple[str, Callable[..., Tensor], list[str]]] = [
    (
        "op without a rule",
        lambda x, p: torch.softmax(x, -1),
        ["inner", "aten.softmax", "aten.linear", "isobit.quant.nn"],
    ),
    ("loop over time", over_time, ["loop over time", "SelectiveRecurrence"]),
    ("parameter added", lambda x, p: x + p, ["inner", "bias"]),
    ("alpha", lambda x, p: torch.add(x, x, alpha=2), ["inner", "alpha"]),
    ("softplus beta", lambda x, p: functional.softplus(x, beta=2), ["inner", "softplus", "expected 1 and 20"]),
    ("split of the input", lambda x, p: x.split(2, dim=-1)[0], ["inner", "expected of a linear"]),
    ("mixed channels", lambda x, p: x * functional.linear(x, p[None]), ["inner", "4 and 1 channels"]),
    ("wrong factor", lambda x, p: x * p[None, None, None, :], ["inner", "expected (B, T, channels)"]),
    ("weights from data", lambda x, p: functional.linear(x, torch.outer(x[0, 0], p)), ["inner", "aten.select"]),
    ("time is lost", lambda x, p: functional.silu(x.mean(1)), ["inner", "aten.mean"]),
    ("identity", lambda x, p: functional.dropout(x, training=False), ["returns its input"]),
    ("kernel of 1", lambda x, p: CausalConv1d(C, 1)(x), ["kernel of at least 2"]),
    ("negative step", lambda x, p: recurrence(x, x, -1.0), ["inner", "softplus"]),
    ("growing state", lambda x, p: recurrence(x, functional.softplus(x), 1.0), ["inner", "reaches 1,", "grow"]),
]


@pytest.mark.parametrize(("f", "words"), [m[1:] for m in MODELS], ids=[m[0] for m in MODELS])
def test_models(f: Callable[..., Tensor], words: list[str]) -> None:
    with pytest.raises(InputError) as e:
        quantize(outer(f), GOOD, name="model")
    for word in words:
        assert word in str(e.value)


def test_models_with_several_inputs_or_outputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return functional.silu(x), functional.silu(x)

    with pytest.raises(InputError, match="returns 2 values"):
        capture(Two(), (1, 2, C))
    with pytest.raises(InputError, match="one tensor"):
        capture(nn.Bilinear(C, C, C), (1, 2, C))
    with pytest.raises(InputError, match="three sizes"):
        capture(small(), (2, C))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
def test_parameters_of_other_types(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=rf"0\.weight is {dtype}.*float32"):
        quantize(small().to(dtype), GOOD, name="model")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite(value: float) -> None:
    model = small()
    with torch.no_grad():
        model.get_parameter("0.bias")[1] = value
    with pytest.raises(InputError, match=r"0\.bias: 1 of 4"):
        quantize(model, GOOD, name="model")


def test_a_module_that_is_not_its_graph() -> None:
    graph, model = capture(small(), (1, 2, C)), small()
    with pytest.raises(InputError, match="differs from the module"):
        disagreement(graph, model, GOOD)


def nan_at(*index: int) -> npt.NDArray[np.float64]:
    x = GOOD.copy()
    x[index] = np.nan
    return x


CALIBRATIONS: list[tuple[str, npt.ArrayLike, str]] = [
    ("rank", GOOD[0], r"expected shape \(samples, time, channels\), got \(5, 4\); .*x\[None\]"),
    ("scalar", 3.0, r"got \(\)"),
    ("channels", GOOD[..., :3], "cannot trace .* as many channels as the samples"),
    ("nan", nan_at(1, 2, 3), r"1 of 40 values are NaN or infinite, the first at \(1, 2, 3\)"),
    ("infinite", GOOD * np.inf, "values are NaN or infinite"),
    ("empty", GOOD[:0], r"empty, \(0, 5, 4\)"),
    ("no time", GOOD[:, :0], r"empty, \(2, 0, 4\)"),
    ("text", np.full(GOOD.shape, "a"), "array of numbers, got <U1"),
    ("objects", GOOD.astype(object), "array of numbers, got object"),
    ("complex", GOOD.astype(complex), "array of numbers, got complex128"),
    ("bool", GOOD > 0, "array of numbers, got bool"),
]


@pytest.mark.parametrize(("x", "message"), [c[1:] for c in CALIBRATIONS], ids=[c[0] for c in CALIBRATIONS])
def test_calibration(x: npt.ArrayLike, message: str) -> None:
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)):
        quantize(small(), x, name="model")


def test_calibration_outside_the_declared_input() -> None:
    with pytest.raises(InputError, match=r"calibration: values in \[0, 16\].*u4.*\[0, 15\]"):
        quantize(small(), np.arange(17 * C).reshape(1, 17, C) // C, name="m", input=InputSpec(IntType(4, False), 1.0))


def test_calibration_on_which_the_model_diverges() -> None:
    with pytest.raises(InputError, match=r"^inner: its mul is not finite on the calibration data"):
        quantize(outer(lambda x, p: x * x), GOOD * 1e200, name="model")
    with pytest.raises(InputError, match="model: the module's output is not finite on the calibration data"):
        quantize(outer(lambda x, p: x * x), GOOD * 1e30, name="model")


def test_settings() -> None:
    with pytest.raises(InputError, match="w8a8"):
        quantize(small(), GOOD, "int8", name="model")
    with pytest.raises(InputError, match="t_max is 0"):
        quantize(small(), GOOD, name="model", t_max=0)
    with pytest.raises(InputError, match="act_bits is 1"):
        Recipe("r", act_bits=1)
    with pytest.raises(InputError, match="below act_bits"):
        Recipe("r", wide_bits=4)
    with pytest.raises(InputError, match="expected quad"):
        Recipe("r", nonlinear="lut")
    for elem, scale in ((IntType(8), None), (None, 0.5), (IntType(8), 0.3), (IntType(8), -0.5), (IntType(17), 0.5)):
        with pytest.raises(InputError, match="input"):
            InputSpec(elem, scale)
    with pytest.raises(InputError, match="expected an array of integers, got float64"):
        input_spec(GOOD, 0.5)
    with pytest.raises(InputError, match="1 of 2 values are NaN"):
        quantize_input([0.0, np.nan], 1.0, IntType(8))


SPECS = {
    "digit": "expected pkg.mod:factory or one of digits",
    "no.such.module:make": "there is no module no.such.module",
    "tests.errors.test_quantize:absent": "has no absent; it has .*small",
    "tests.errors.test_quantize:not_callable": "is a int",
    "tests.errors.test_quantize:returns_none": "returned NoneType",
    "tests.errors.test_quantize:needs_an_argument": "TypeError: .*size.*without arguments",
}


@pytest.mark.parametrize(("spec", "message"), SPECS.items())
def test_factories(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(spec)


def test_a_factory_whose_file_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("half_written.py").write_text("def make(:\n")
    Path("needs_more.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(InputError, match="SyntaxError"):
        load_model("half_written:make")
    with pytest.raises(InputError, match=r"needs_more needs .*not_installed_anywhere.*install it"):
        load_model("needs_more:make")


def write(path: Path, **changes: Tensor | None) -> Path:
    """The small model's weights with changes, in which `_` stands for the dot of a name."""
    tensors = {"0.weight": torch.ones(C, C), "0.bias": torch.ones(C)}
    for name, tensor in changes.items():
        key = name[1:].replace("_", ".")
        if tensor is None:
            del tensors[key]
        else:
            tensors[key] = tensor
    save_file(tensors, path)
    return path


def test_weights_are_loaded(tmp_path: Path) -> None:
    model = load_model(MODEL, write(tmp_path / "w.safetensors"))
    assert torch.equal(model.get_parameter("0.weight"), torch.ones(C, C))
    assert isinstance(load_model("digits"), nn.Module)


WEIGHTS: list[tuple[dict[str, Tensor | None], str]] = [
    ({"_0_bias": None}, r"0\.bias is missing"),
    ({"_9_bias": torch.ones(2)}, r"9\.bias is not in the model"),
    ({"_0_bias": torch.ones(5)}, r"0\.bias has shape \(5,\), expected \(4,\)"),
    ({"_0_bias": torch.full((C,), torch.nan)}, r"0\.bias: 4 of 4 values are NaN"),
    ({"_0_bias": torch.ones(C, dtype=torch.int8)}, r"0\.bias is torch.int8, expected torch.float32"),
]


@pytest.mark.parametrize(("changes", "message"), WEIGHTS)
def test_weights_that_do_not_fit(tmp_path: Path, changes: dict[str, Tensor | None], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(MODEL, write(tmp_path / "w.safetensors", **changes))


def test_files_that_are_not_weights(tmp_path: Path) -> None:
    pickled = tmp_path / "w.pt"
    torch.save(small().state_dict(), pickled)
    renamed = tmp_path / "renamed.safetensors"
    renamed.write_bytes(pickled.read_bytes())
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(write(tmp_path / "w.safetensors").read_bytes()[:-8])
    for path, message in (
        (pickled, "pickle can run code.*save_file"),
        (tmp_path / "w.npz", "expected a .safetensors file"),
        (tmp_path / "absent.safetensors", "no such file"),
        (renamed, "not a readable .safetensors"),
        (cut, "not a readable .safetensors"),
    ):
        with pytest.raises(InputError, match=message):
            load_model(MODEL, path)
    with pytest.raises(InputError, match="ships with its weights"):
        load_model("digits", pickled)
