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

from isobit.quant.calibrate.observe import check_samples
from isobit.quant.capture.capture import capture, disagreement
from isobit.quant.capture.factory import load_model
from isobit.quant.errors import InputError
from isobit.quant.lower.edges import InputSpec, input_spec, quantize_input
from isobit.quant.nn import SelectiveRecurrence, causal_conv1d, diagonal_recurrence, lif
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


def recurrence(x: Tensor, dt: Tensor, rate: float) -> Tensor:
    y: Tensor = SelectiveRecurrence()(x, dt, torch.full((C, C), rate), x, x)
    return y


MODELS: list[tuple[str, Callable[..., Tensor], list[str]]] = [
    (
        "op without a rule",
        lambda x, p: torch.sin(x),
        ["inner", "aten.sin", "aten.linear", "isobit.quant.nn"],
    ),
    ("alpha", lambda x, p: torch.add(x, x, alpha=2), ["inner", "alpha"]),
    ("softplus beta", lambda x, p: functional.softplus(x, beta=2), ["inner", "softplus", "expected 1 and 20"]),
    ("wrong factor", lambda x, p: x * torch.ones(3, 1, 1, C), ["inner", "a parameter of shape (3, 1, 1, 4)"]),
    ("weights from data", lambda x, p: functional.linear(x, torch.outer(x[0, 0], p)), ["inner"]),
    ("softmax over time", lambda x, p: torch.softmax(x, 1), ["inner", "batch or time"]),
    ("steps mixed", lambda x, p: torch.einsum("btc,bsc->bts", x, x), ["inner", "batch and time"]),
    ("sum over all", lambda x, p: x - x.sum(), ["inner", "aten.sum"]),
    ("elu with alpha", lambda x, p: functional.elu(x, 0.5), ["inner", "elu", "expected alpha 1"]),
    ("a power", lambda x, p: x.abs() ** 3, ["inner", "the power 3", "expected 2 or 0.5"]),
    ("identity", lambda x, p: functional.dropout(x, training=False), ["returns its input"]),
    ("kernel of 1", lambda x, p: causal_conv1d(x, torch.ones(C, 1), torch.ones(C)), ["kernel of at least 2"]),
    ("negative step", lambda x, p: recurrence(x, x, -1.0), ["inner", "softplus"]),
    ("growing state", lambda x, p: recurrence(x, functional.softplus(x), 1.0), ["inner", "reaches 1,", "grow"]),
    ("decay above 1", lambda x, p: diagonal_recurrence(torch.exp(x), x), ["inner", "decay", "0 to 1"]),
    ("negative divisor", lambda x, p: x / x, ["inner", "divisor", "expected values > 0"]),
    ("parameter by a value", lambda x, p: p / (x * x + 1), ["inner", "a parameter divided by a value"]),
    ("time is not axis 1", lambda x, p: x.relu().transpose(1, 2), ["axis 1 is not time", "transpose it back"]),
    ("time reversed", lambda x, p: x.flip(1).relu(), ["inner", "aten.flip.default along batch or time"]),
    ("steps as batch", lambda x, p: x.reshape(-1, C).relu().reshape(x.shape), ["inner", "expected (B, T, ...)"]),
    ("over the batch", lambda x, p: x[:1].expand(x.shape[0], -1, -1) + x, ["inner", "along batch or time"]),
    ("a new batch", lambda x, p: x[None].expand(2, -1, -1, -1).sum(0), ["inner", "expected (B, T, ...)"]),
    ("half precision", lambda x, p: (x.half() * 2).float(), ["inner", "float16 is not supported, expected float32"]),
    ("rounded", lambda x, p: (x * 2).to(torch.int64).float(), ["inner", "int64 is not supported, expected float32"]),
    ("complex numbers", lambda x, p: torch.complex(x, x).abs(), ["inner", "aten.complex"]),
    ("seven axes", lambda x, p: x.reshape(*x.shape[:2], 1, 2, 1, 1, 2, 1, 1).relu(), ["inner (clamp)", "at most 6"]),
]


@pytest.mark.parametrize(("f", "words"), [m[1:] for m in MODELS], ids=[m[0] for m in MODELS])
def test_models(f: Callable[..., Tensor], words: list[str]) -> None:
    with pytest.raises(InputError) as e:
        quantize(outer(f), GOOD, name="model")
    for word in words:
        assert word in str(e.value)


def images(f: Callable[[Tensor], Tensor]) -> nn.Module:
    return outer(lambda x, p: f(x))


IMAGE_MODELS: list[tuple[str, Callable[[Tensor], Tensor], list[str]]] = [
    ("groups", lambda x: functional.conv2d(x, torch.ones(4, 2, 3, 3), groups=2), ["inner", "2 groups"]),
    ("overlap", lambda x: functional.max_pool2d(x, 3, stride=1), ["inner", "do not overlap"]),
    ("dilated pool", lambda x: functional.max_pool2d(x, 2, dilation=2), ["inner", "without dilation"]),
    ("a divisor", lambda x: functional.avg_pool2d(x, 2, divisor_override=3), ["inner", "another divisor"]),
    ("time in an image", lambda x: lif(x.flatten(2).transpose(1, 2), 0.5, 1.0), ["isobit.lif", "in an image model"]),
    ("mirrored edges", lambda x: functional.pad(x, (1, 1, 1, 1), "reflect"), ["inner", "anything but zeros"]),
    ("pooled to 2 x 2", lambda x: functional.adaptive_avg_pool2d(x, 2), ["inner", "expected 1 x 1"]),
    ("over the batch", lambda x: x.mean(0, keepdim=True) + x, ["inner", "the batch"]),
]


@pytest.mark.parametrize(("f", "words"), [m[1:] for m in IMAGE_MODELS], ids=[m[0] for m in IMAGE_MODELS])
def test_image_models(f: Callable[[Tensor], Tensor], words: list[str]) -> None:
    with pytest.raises(InputError) as e:
        quantize(images(f), np.random.default_rng(0).normal(size=(2, 4, 6, 6)), name="model")
    for word in words:
        assert word in str(e.value)


@pytest.mark.parametrize(
    ("cell", "word"),
    [
        (nn.LSTM(C, C, batch_first=True, bidirectional=True), "one direction"),
        (nn.GRU(C, C), "batch_first=True"),
        (nn.LSTM(C, C, batch_first=True, proj_size=2), "no projection"),
        (nn.RNN(C, C, batch_first=True), "expected nn.LSTM or nn.GRU"),
    ],
    ids=["two directions", "time first", "projection", "plain"],
)
def test_recurrent_layers_that_cannot_stream(cell: nn.RNNBase, word: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.cell(x)[0]
            return y

    with pytest.raises(InputError, match=f"cell: .*{word}"):
        quantize(Model(), GOOD, name="model")


class Started(nn.Module):
    """A recurrent layer that does not start from zero, or whose state is used: `f` of the layer and of the input."""

    def __init__(self, f: Callable[[nn.LSTM, Tensor], Tensor]) -> None:
        super().__init__()
        self.cell, self.f = nn.LSTM(C, C, 2, batch_first=True), f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.cell, x)


def from_ones(cell: nn.LSTM, x: Tensor) -> Tensor:
    start = torch.ones(2, x.shape[0], C)
    y: Tensor = cell(x, (start, start))[0]
    return y


CELL_STATES: list[tuple[str, Callable[[nn.LSTM, Tensor], Tensor], str]] = [
    ("starts from ones", from_ones, "cell.*with an initial state is not supported, expected zeros"),
    ("uses c", lambda cell, x: cell(x)[1][1][-1].relu(), "only the last layer's h is supported"),
    ("uses h of the first layer", lambda cell, x: cell(x)[1][0][0].relu(), "only the last layer's h is supported"),
    ("adds h to all steps", lambda cell, x: cell(x)[1][0][-1][:, None] + x, "of the last step and of one of all steps"),
]


@pytest.mark.parametrize(("f", "message"), [c[1:] for c in CELL_STATES], ids=[c[0] for c in CELL_STATES])
def test_states_of_recurrent_layers(f: Callable[[nn.LSTM, Tensor], Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quantize(Started(f), GOOD, name="model")


def test_identifiers_beyond_the_vocabulary() -> None:
    model = nn.Sequential(nn.Embedding(5, C), nn.Linear(C, C))
    for ids, known in (([[0, 3, 5]], r"\[0, 5\]"), ([[-1, 4]], r"\[-1, 4\]")):
        with pytest.raises(InputError, match=rf"identifiers in {known}, the model knows 0 to 4"):
            quantize(model, np.array(ids), name="model")


IMAGE_SAMPLES: list[tuple[tuple[int, ...], str]] = [
    ((2, 4, 6), r"cannot trace .* as many channels as the samples"),
    ((2, 2, 4, 6, 6), r"\(samples, channels, height, width\), got \(2, 2, 4, 6, 6\)"),
    ((2, 3, 6, 6), r"cannot trace .* an input \(B, 3, 6, 6\): .* 4 channels, but got 3 channels"),
    ((2, 4, 2, 2), r"cannot trace .* an input \(B, 4, 2, 2\): .*[Kk]ernel size"),
]


@pytest.mark.parametrize(("shape", "message"), IMAGE_SAMPLES)
def test_samples_that_are_no_images_of_the_model(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)):
        quantize(nn.Sequential(nn.Conv2d(4, 3, 3)), np.ones(shape), name="model")


def test_samples_of_another_size_than_the_calibrated_images() -> None:
    graph = capture(nn.Sequential(nn.Conv2d(4, 3, 3)), (1, 4, 6, 6))
    with pytest.raises(InputError, match=r"expected shape \(samples, 4, 6, 6\), got \(2, 4, 6, 5\)"):
        check_samples(np.ones((2, 4, 6, 5)), graph)
    with pytest.raises(InputError, match=r"expected shape \(samples, 4, 6, 6\), got \(1, 2, 4\)"):
        check_samples(np.ones((1, 2, 4)), graph)


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


@pytest.mark.filterwarnings("ignore:Complex modules")
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
    with pytest.raises(InputError, match="expected one of quad, ivit, clz, lut"):
        Recipe("r", nonlinear="lookup")
    with pytest.raises(InputError, match="recipe r: cache_bits is 8, expected 2 or 4, or 0: as act_bits"):
        Recipe("r", cache_bits=8)
    for elem, scale in ((IntType(8), None), (None, 0.5), (IntType(8), 0.3), (IntType(8), -0.5), (IntType(17), 0.5)):
        with pytest.raises(InputError, match="input"):
            InputSpec(elem, scale)
    with pytest.raises(InputError, match="expected an array of integers, got float64"):
        input_spec(GOOD, 0.5)
    with pytest.raises(InputError, match="1 of 2 values are NaN"):
        quantize_input([0.0, np.nan], 1.0, IntType(8))


SPECS = {
    "digit": "expected pkg.mod:factory, .* or one of digits",
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
