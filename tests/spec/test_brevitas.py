"""Brevitas models: the Program's integers are those that Brevitas makes, at every quantizer and in every layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import brevitas.quant as bq
import brevitas.quant.float as bq_float
import brevitas.quant.float_quant_ocp as bq_ocp
import numpy as np
import pytest
import torch
from torch import nn

from isobit.export.onnx.load import load, save
from isobit.quant import nn as isobit_nn
from isobit.quant.errors import InputError
from isobit.quant.formats import format_named
from isobit.quant.formats.format import Format
from isobit.quant.interpret import interpret
from isobit.quant.lower.edges import InputSpec, quantize_for
from isobit.quant.ops import requantize
from isobit.quant.program import IntType, Program
from isobit.quant.quantize import Quantized, program_inputs, quantize
from isobit.quant.trained import compare
from isobit.quant.vectors import golden
from isobit.targets.verify import EXACT, verify
from tests.brevitas_codes import assert_agrees, assert_equal_everywhere, codes_of, samples, taps_of
from tests.brevitas_models import (
    Activations,
    ConvNet,
    Last,
    Mlp,
    Pools,
    PowersOfTwo,
    Recurrent,
    Residual,
    trained,
)

ROUNDINGS = ("round", "floor", "ceil", "round_to_zero", "dpu")

CODES = {"signed": (-16, 15), "narrow": (-15, 15), "unsigned": (0, 31)}
"""Of 5 bits."""

SETTINGS: dict[str, dict[str, Any]] = {"signed": {}, "narrow": {"narrow_range": True}, "unsigned": {"signed": False}}


class Model(torch.nn.Module):
    """A projection with a state behind it, so that it is a sequence model."""

    def __init__(self, linear: torch.nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.mean = isobit_nn.RunningMean()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mean(self.linear(x))  # type: ignore[no-any-return]


def test_weights_equal_those_of_brevitas() -> None:
    """Our own rounding of a float model, with Brevitas as the oracle."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(24, 16, bias=False)
    oracle = qnn.QuantLinear(24, 16, bias=False, weight_quant=bq.Int8WeightPerChannelFloat)
    oracle.load_state_dict(linear.state_dict(), strict=False)
    x = np.random.default_rng(0).normal(size=(4, 6, 24))
    program = quantize(Model(linear), x, "w8a8", name="model").program
    expected = oracle.quant_weight().int().numpy()
    assert np.array_equal(program.constant["linear.weight"].array, expected)


def grid(*shape: int) -> torch.Tensor:
    """Multiples of 1/64, so that every second value is a tie of a quantizer with scale 1/32."""
    return torch.round(samples(*shape) * 64) / 64


@cache
def power_of_two(rounding: str, codes: str) -> tuple[nn.Module, Quantized, torch.Tensor]:
    torch.manual_seed(0)
    x, top = grid(24, 16, 6), CODES[codes][1] if codes != "signed" else 16
    model = PowersOfTwo(rounding, unit=2.0**-4, top=top, **SETTINGS[codes]).eval()
    return model, quantize(model, x.numpy(), name="m"), x


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_powers_of_two_are_equal_in_every_rounding(rounding: str, codes: str) -> None:
    model, made, x = power_of_two(rounding, codes)
    assert_equal_everywhere(model, made, x)
    assert_agrees(made, 3)
    taps = taps_of(made, x)
    assert (taps["act.act_quant"].min(), taps["act.act_quant"].max()) == CODES[codes]


def test_ties_occur_and_roundings_differ() -> None:
    """What the test above compares is not empty: ties are frequent, and each rounding is another function of them."""
    _, made, x = power_of_two("round", "signed")
    node = next(n for n in made.program.nodes if n.output == "act.act_quant")
    assert (node.op, node.param["m"], node.param["b"]) == ("quantize", 1, 0)
    step = 1 << node.param["s"]
    ties = taps_of(made, x)[node.inputs[0]] % step == step // 2
    assert ties.mean() > 0.01
    results = [taps_of(power_of_two(r, "signed")[1], x)["act.act_quant"] for r in ROUNDINGS]
    for i, a in enumerate(results):
        assert not any(np.array_equal(a, b) for b in results[:i])


def test_the_input_is_rounded_as_its_quantizer_says() -> None:
    for rounding in ROUNDINGS:
        model, made, x = power_of_two(rounding, "signed")
        (entry,) = made.program.inputs
        codes = quantize_for(entry, x.numpy())
        assert np.array_equal(codes, codes_of(model, x)["q.act_quant"][0])
        assert entry.type.elem == IntType(8)


def test_an_input_of_integers_is_exact_too() -> None:
    """The Program's input is a sensor's, 1/64 each; the model's quantizer rounds it to 1/32."""
    torch.manual_seed(0)
    model, x = PowersOfTwo("round", unit=2.0**-4).eval(), grid(24, 16, 6).clamp(-1.9, 1.9)
    codes = torch.round(x * 64).numpy().astype(np.int64)
    made = quantize(model, codes, name="m", input=InputSpec(IntType(8), 1 / 64))
    assert_equal_everywhere(model, made, torch.from_numpy(codes / 64).float())
    assert_agrees(made, 3)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "mlp, 8 bits per channel": (Mlp, (32, 16, 6), 3),
    "mlp, 4 bits per channel": (lambda: Mlp(weight_bit_width=4), (32, 16, 6), 3),
    "mlp, 2 bits per channel": (lambda: Mlp(weight_bit_width=2), (32, 16, 6), 3),
    "mlp, 8 bits per tensor": (lambda: Mlp(weight_quant=bq.Int8WeightPerTensorFloat), (32, 16, 6), 3),
    "mlp, not narrow": (lambda: Mlp(weight_narrow_range=False), (32, 16, 6), 3),
    "mlp, ternary": (lambda: Mlp(weight_quant=bq.SignedTernaryWeightPerTensorConst), (32, 16, 6), 3),
    "mlp, binary": (lambda: Mlp(weight_quant=bq.SignedBinaryWeightPerTensorConst), (32, 16, 6), 3),
    "conv net": (ConvNet, (24, 3, 8, 8), 4),
    "recurrence": (Recurrent, (32, 16, 5), 3),
    "pools": (Pools, (24, 3, 10, 10), 5),
    "last step": (Last, (24, 16, 6), 3),
    "residual": (Residual, (24, 4, 6, 6), 7),
    "asymmetric": (lambda: Residual(bq.ShiftedUint8ActPerTensorFloat), (24, 4, 6, 6), 7),
}


@cache
def imported(name: str) -> tuple[nn.Module, Quantized, torch.Tensor]:
    torch.manual_seed(0)
    make, shape, _ = MODELS[name]
    x = samples(*shape)
    model = trained(make(), x)
    return model, quantize(model, x.numpy(), name="m"), x


@pytest.mark.parametrize("name", MODELS)
def test_integers_are_those_of_brevitas(name: str) -> None:
    """Scales are real numbers here: float32 could round otherwise at a border, and with these seeds never does."""
    model, made, x = imported(name)
    assert_agrees(made, MODELS[name][2])
    if all(r.exact for r in made.trained) and name != "last step":
        assert_equal_everywhere(model, made, x)


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_the_codes_of_brevitas(name: str) -> None:
    model, made, _ = imported(name)
    layers = {k: m for k, m in model.named_modules() if hasattr(m, "weight_quant")}
    assert layers
    for path, layer in layers.items():
        made_weight = made.program.constant[f"{path}.weight"].array
        expected = layer.quant_weight().int().numpy().astype(np.int64)
        if name == "last step" and path == "conv":
            made_weight = made_weight[:, :, ::2]
        assert np.array_equal(made_weight.ravel(), expected.ravel()), path


def test_a_bias_of_integers_starts_the_accumulator() -> None:
    for name in ("mlp, 8 bits per channel", "mlp, 4 bits per channel"):
        model, made, x = imported(name)
        assert isinstance(model, Mlp)
        q = model.q(x)
        bias = model.fc1.bias_quant(model.fc1.bias, q, model.fc1.quant_weight())
        assert np.array_equal(made.program.constant["fc1.bias"].array, bias.int().numpy())


def test_a_bias_of_floats_loses_nothing() -> None:
    """The quantizer adds what the accumulator's start, an integer, lacks: without that, integers differ."""
    model, made, x = imported("mlp, 2 bits per channel")
    constant = made.program.constant["fc2.output_quant.offset"]
    assert np.abs(constant.array).max() > 0
    without = tuple(replace(c, data=bytes(len(c.data))) if c is constant else c for c in made.program.constants)
    program = replace(made.program, constants=without)
    with pytest.raises(InputError, match=r"fc2\.output_quant: .* integers differ from Brevitas'"):
        compare(program, made.graph, model, x.double().numpy(), False)


def test_values_without_a_quantizer_are_of_the_recipe() -> None:
    _, made, _ = imported("recurrence")
    (row,) = (r for r in made.trained if not r.exact)
    assert row.quantizer == "hidden.act_quant"
    assert row.largest <= 1
    assert row.differ < row.values / 20
    assert made.info["brevitas, weights"] == "0 of 276 integers differ"
    assert made.info["brevitas, activations"] == "0 of 14848 integers differ, 3 quantizers"
    assert str(made.info["brevitas, after values of the recipe"]).endswith("of 6144 integers differ, 1 quantizer")


def test_activations_with_a_quantizer_are_off_by_one_at_most() -> None:
    """Between float functions the recipe's approximations decide; limits and layers are Brevitas' own."""
    torch.manual_seed(0)
    x = samples(24, 16, 6)
    made = quantize(trained(Activations(), x), x.numpy(), name="m")
    assert_agrees(made, 3)
    assert {r.quantizer for r in made.trained if r.exact} == {"q.act_quant", "limited.act_quant", "out.output_quant"}
    assert max(r.largest for r in made.trained if not r.exact) == 1


FLOATS: dict[str, tuple[Any, Any, str]] = {
    "e4m3": (bq_float.Fp8e4m3WeightPerTensorFloat, bq_float.Fp8e4m3ActPerTensorFloat, "e4m3full"),
    "e4m3 of OCP per channel": (bq_ocp.Fp8e4m3OCPWeightPerChannelFloat, bq_ocp.Fp8e4m3OCPActPerTensorFloat, "e4m3"),
    "e5m2 of OCP": (bq_ocp.Fp8e5m2OCPWeightPerTensorFloat, bq.Int8ActPerTensorFloat, "e5m2"),
}

SMALL = {"e3m2": (3, 2), "e2m3": (2, 3), "e2m1": (2, 1)}


class FloatMlp(nn.Module):
    def __init__(self, weight: Any, activation: Any, **settings: Any) -> None:
        super().__init__()
        self.q = qnn.QuantIdentity(activation, return_quant_tensor=True, **settings)
        weights = {f"weight_{k}": v for k, v in settings.items()}
        self.fc1 = qnn.QuantLinear(6, 16, bias=True, weight_quant=weight, **weights)
        self.act = qnn.QuantReLU(activation, **settings)
        self.fc2 = qnn.QuantLinear(16, 5, bias=True, weight_quant=weight, **weights)
        self.out = qnn.QuantIdentity(activation, **settings)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.out(self.fc2(self.act(self.fc1(self.q(x)))))
        return y


def widths(name: str) -> dict[str, int]:
    exponent, mantissa = SMALL[name]
    return {"exponent_bit_width": exponent, "mantissa_bit_width": mantissa, "bit_width": exponent + mantissa + 1}


@cache
def float_model(name: str) -> tuple[FloatMlp, Quantized, torch.Tensor, Format]:
    torch.manual_seed(0)
    x = samples(32, 16, 6)
    weight, activation, format = FLOATS.get(
        name, (bq_float.Fp8e4m3WeightPerTensorFloat, bq_float.Fp8e4m3ActPerTensorFloat, name)
    )
    model = trained(FloatMlp(weight, activation, **(widths(name) if name in SMALL else {})), x)
    assert isinstance(model, FloatMlp)
    known = format_named(format)
    assert isinstance(known, Format)
    return model, quantize(model, x.numpy(), name="m"), x, known


@pytest.mark.parametrize("name", [*FLOATS, *SMALL])
def test_minifloats_are_those_of_brevitas(name: str) -> None:
    model, made, _, known = float_model(name)
    assert_agrees(made, 3)
    for layer in ("fc1", "fc2"):
        quantized = model.get_submodule(layer).quant_weight()  # type: ignore[operator]
        expected = (quantized.value / quantized.scale).detach().double().numpy() * 2.0**known.point
        assert np.array_equal(
            made.program.constant[f"{layer}.weight"].array, known.rounded(expected / 2.0**known.point)
        )
        assert np.array_equal(made.program.constant[f"{layer}.weight"].array, np.rint(expected))


TARGETS = [
    pytest.param("interpret"), pytest.param("ort"), pytest.param("c"), pytest.param("cpu"), pytest.param("hls"),
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_gives_these_integers(target: str, tmp_path: Path) -> None:
    programs: dict[str, Program] = {
        **{name: imported(name)[1].program for name in ("conv net", "recurrence", "asymmetric")},
        "powers of two": power_of_two("dpu", "narrow")[1].program,
        "e4m3": float_model("e4m3 of OCP per channel")[1].program,
    }
    for name, program in programs.items():
        save(program, tmp_path / "m.onnx")
        assert load(tmp_path / "m.onnx") == program
        (row,) = verify(program, [target], list(golden(program))).rows
        assert (name, row.status, row.reason) == (name, EXACT, "")


def test_a_wrong_rounding_is_found() -> None:
    """Planted faults: each must be an error that names the layer."""
    model, made, x = power_of_two("round", "signed")
    for fault in ({"rounding": 1}, {"m": 3}, {"b": 40}):
        nodes = tuple(
            replace(n, params=tuple(sorted((n.param | fault).items()))) if n.output == "act.act_quant" else n
            for n in made.program.nodes
        )
        with pytest.raises(InputError, match=r"act\.act_quant: \d+ of \d+ integers differ from Brevitas'"):
            compare(replace(made.program, nodes=nodes), made.graph, model, x.double().numpy(), False)


def test_a_tie_rounded_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where scales are powers of two float32 is no excuse, at ties neither."""

    def half_even(x: Any, s: int) -> Any:
        return (x + (1 << (s - 1))) >> s

    torch.manual_seed(0)
    model, x = PowersOfTwo("round").eval(), grid(24, 16, 6)
    monkeypatch.setattr(requantize, "ROUNDINGS", (half_even, *requantize.ROUNDINGS[1:]))
    with pytest.raises(InputError, match=r"act\.act_quant: \d+ of \d+ integers differ from Brevitas'"):
        quantize(model, x.numpy(), name="m")


def test_a_difference_that_float32_explains_is_counted() -> None:
    """Scales whose ratio is a simple fraction: sums lie on borders between integers, where float32 errs."""
    torch.manual_seed(0)
    model, x = PowersOfTwo("floor", unit=2.0**-4, top=16, narrow_range=True).eval(), grid(24, 16, 6)
    made = quantize(model, x.numpy(), name="m")
    (row,) = (r for r in made.trained if r.differ)
    assert row.exact
    assert row.largest == 1
    assert 0 < row.differ < row.values / 50


def test_an_output_quantizer_gives_the_output() -> None:
    model, made, x = imported("mlp, 8 bits per channel")
    outputs, _ = interpret(made.program, program_inputs(made.program, x.double().numpy()))
    with torch.no_grad():
        real = model(x).double().numpy()
    scale = made.program.nodes[-1].scale
    assert scale is not None
    assert np.array_equal(outputs["y"], np.rint(real / scale))


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    x = samples(32, 16, 6)
    model = trained(Mlp(), x)
    before, made = {k: v.clone() for k, v in model.state_dict().items()}, model(x)
    quantize(model, x.numpy(), name="m")
    assert torch.equal(model(x), made)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
