"""Brevitas models: a copy of the user's module with plain operators in place of its quantizers, and what these were.

A weight becomes its integer codes times its scale, an activation's quantizer one `fake_quantize`.  Everything is read
from what Brevitas itself computes, in one run of the user's module, so that it does not matter how a quantizer was
configured.  Brevitas is never imported from here: a module that needs it has imported it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from isobit.quant.capture.stand_ins import Bias, Quantize, Quantizer, Weight
from isobit.quant.errors import InputError
from isobit.quant.formats.format import Format, minifloat

OF_BREVITAS = {
    "ROUND": "half_even", "FLOOR": "floor", "CEIL": "ceil", "ROUND_TO_ZERO": "to_zero", "DPU": "half_even_or_up",
}  # fmt: skip
"""By Brevitas' float_to_int_impl_type."""

LAYERS = ("QuantLinear", "QuantConv1d", "QuantConv2d")
"""Layers of Brevitas whose weights may be quantized."""

REFUSED = {
    "QuantLSTM": "write its cells with QuantLinear in a loop over time",
    "QuantRNN": "write its cells with QuantLinear in a loop over time",
    "QuantMultiheadAttention": "write it with QuantLinear and QuantIdentity",
    "TruncAvgPool2d": "use a mean and a QuantIdentity",
    "TruncAdaptiveAvgPool2d": "use a mean and a QuantIdentity",
}
"""Layers of Brevitas that are not taken, and what to do instead."""

WEIGHT_BITS = 8

SAME = 1e-4
"""Of the largest output, a difference that rounding errors of floats explain."""

RARE = 0.1
"""The share of outputs that a number near a tie of some quantizer may change."""


def is_brevitas(module: nn.Module) -> bool:
    """Whether a layer of Brevitas is in it."""
    return "brevitas" in sys.modules and any(type(m).__module__.startswith("brevitas.") for m in module.modules())


def example(module: nn.Module, samples: npt.NDArray[np.float64]) -> Tensor:
    """The first sample as an input of the module."""
    if samples.ndim == 2:
        return torch.from_numpy(samples[:1]).long()
    return torch.from_numpy(samples[:1]).to(next((p.dtype for p in module.parameters()), torch.float32))


def without_quantizers(module: nn.Module, sample: Tensor) -> nn.Module:
    """A copy that torch.export takes, where `fake_quantize` and integer weights stand for the quantizers.

    sample: an input of one sequence or image.  Raises InputError, naming the layer, for a quantizer that is not taken.
    """
    if not is_brevitas(module):
        return module
    module = module.eval()
    for name, m in module.named_modules():
        if (remedy := REFUSED.get(type(m).__name__)) and type(m).__module__.startswith("brevitas."):
            raise InputError(f"{name}: {type(m).__name__} of Brevitas is not supported: {remedy}")
    _check_scales(module)
    (found, biases), (again, _) = (
        _observed(module, sample),
        _observed(module, sample / 2 + 1 if sample.is_floating_point() else sample),
    )
    quantizers = {name: _quantizer(module, name, q, again[name]) for name, q in found.items()}
    plain = copy.deepcopy(module)
    replaced: dict[int, nn.Module] = {}
    for name, proxy in list(plain.named_modules(remove_duplicate=False)):
        if not _is_activation(proxy):
            continue
        fused: Any = proxy.fused_activation_quant_proxy
        if id(proxy) not in replaced:
            replaced[id(proxy)] = Quantize(quantizers.get(name), getattr(fused, "activation_impl", None))
        _put(plain, name, replaced[id(proxy)])
    for name, layer in list(plain.named_modules()):
        if hasattr(layer, "return_quant_tensor"):
            layer.return_quant_tensor = False
        if hasattr(layer, "weight_quant"):
            _exact_layer(module.get_submodule(name), layer, name, biases.get(name))
    _check_equal(module, plain, sample)
    return plain


def _check_equal(module: nn.Module, plain: nn.Module, sample: Tensor) -> None:
    """Raises InputError where the copy, with its quantizers, is not the module: both compute in the same float type."""
    quantizers = [m for m in plain.modules() if isinstance(m, Quantize)]
    try:
        for m in quantizers:
            m.rounds = True
        with torch.no_grad():
            expected, made = module(sample), plain(sample)
    except Exception as e:
        raise InputError(
            f"the model fails where its layers give tensors instead of QuantTensors: {type(e).__name__}: {e}; where it "
            "reads .value or .scale of one, let its layer return_quant_tensor=False"
        ) from e
    finally:
        for m in quantizers:
            m.rounds = False
    expected = expected.value if hasattr(expected, "scale") else expected
    if not isinstance(made, Tensor) or not isinstance(expected, Tensor) or made.shape != expected.shape:
        raise InputError(f"the model returns a {type(expected).__name__}, expected one tensor, (B, T, channels)")
    off = (made - expected).abs() > SAME * expected.abs().max().clamp_min(1e-30)
    if off.double().mean() > RARE:
        raise InputError(
            f"without Brevitas the model gives other outputs on the first sample, {int(off.sum())} of {off.numel()}: "
            "does it change, or ask, what its quantizers or QuantTensors are? Use them through their layers only"
        )


def weights(plain: nn.Module) -> dict[str, npt.NDArray[np.int64]]:
    """By layer, the codes of the weights of a copy that `without_quantizers` made."""
    found = {k.rpartition(".")[0]: m.codes for k, m in plain.named_modules() if isinstance(m, Weight)}
    return {k: codes.numpy() for k, codes in found.items() if isinstance(codes, Tensor)}


def _check_scales(module: nn.Module) -> None:
    """Brevitas leaves a scale out of a module's state until it was trained, calibrated or loaded."""
    state = module.state_dict()
    for path, m in module.named_modules():
        if not _is_activation(m) or not m.is_quant_enabled:
            continue
        if unset := [k for k, _ in m.named_parameters() if f"{path}.{k}" not in state]:
            raise InputError(
                f"{path} ({type(m).__name__}): {unset[0]} has no value yet, expected a trained one: train or calibrate "
                "the model in Brevitas, and load the state that it then has"
            )


def _put(root: nn.Module, path: str, new: nn.Module) -> None:
    owner, _, attribute = path.rpartition(".")
    setattr(root.get_submodule(owner), attribute, new)


def _is_activation(m: nn.Module) -> bool:
    return hasattr(m, "fused_activation_quant_proxy") and hasattr(m, "is_quant_enabled")


@contextmanager
def recorded(module: nn.Module) -> Iterator[dict[str, list[Any]]]:
    """While active, what every quantizer of an activation returns, by its first path in the module."""
    made: dict[str, list[Any]] = {}
    hooks = [
        m.register_forward_hook(lambda m, args, y, name=name: made.setdefault(name, []).append(y))
        for name, m in module.named_modules()
        if _is_activation(m) and m.is_quant_enabled
    ]
    try:
        yield made
    finally:
        for hook in hooks:
            hook.remove()


def _observed(module: nn.Module, sample: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """By path, what quantizers of activations return, and by layer, the bias in float64 as it is added."""
    biases: dict[str, list[Tensor]] = {}
    hooks = [
        m.bias_quant.register_forward_hook(
            lambda m, args, y, name=name: biases.setdefault(name, []).append(_bias(args, y))
        )
        for name, m in module.named_modules()
        if hasattr(m, "bias_quant") and hasattr(m, "weight_quant")
    ]
    with recorded(module) as made, torch.no_grad():
        try:
            module(sample)
        except Exception as e:
            raise InputError(
                f"the model fails on an input {tuple(sample.shape)}: {type(e).__name__}: {e}; run it once in Brevitas"
            ) from e
        finally:
            for hook in hooks:
                hook.remove()
    for name, values in biases.items():
        if any(not torch.equal(v, values[0]) for v in values):
            raise InputError(
                f"{name}: its bias has the scale of its input, and the layer is used with inputs of several scales; "
                "give every use a layer of its own, or the inputs one quantizer"
            )
    return {name: values[0] for name, values in made.items()}, {name: values[0] for name, values in biases.items()}


def _bias(args: tuple[Any, ...], made: Any) -> Tensor:
    """In float64; a bias of integers at the scale of the accumulator is so exactly."""
    if not hasattr(made, "scale"):
        return torch.as_tensor(made).double()
    value, scale = made.value.double().reshape(-1), made.scale.double().reshape(-1)
    codes = torch.round(value / scale)
    x, weight = args[1:3] if len(args) > 2 else (None, None)
    if not hasattr(x, "scale") or not hasattr(weight, "scale"):
        scaled: Tensor = codes * scale
        return scaled
    exact = x.scale.double().reshape(-1) * weight.scale.double().reshape(-1)
    held: Tensor = codes * (exact if torch.allclose(exact, scale, rtol=1e-6, atol=0) else scale)
    return held


def _quantizer(module: nn.Module, name: str, made: Any, again: Any) -> Quantizer:
    proxy: Any = module.get_submodule(name)
    where, kind = f"{name} ({type(proxy).__name__})", type(made).__name__
    if kind not in ("IntQuantTensor", "FloatQuantTensor"):
        raise InputError(
            f"{where}: makes a {kind}, expected integers or minifloats with one scale: groups and MX are not supported "
            "for activations; use Int8ActPerTensorFloat or its kin"
        )
    if made.scale.numel() != 1 or made.zero_point.numel() != 1:
        raise InputError(
            f"{where}: has {made.scale.numel()} scales, expected one for the tensor: "
            "set scaling_per_output_channel=False"
        )
    scale, zero = float(made.scale.double()), float(made.zero_point.double())
    if (scale, zero) != (float(again.scale.double()), float(again.zero_point.double())):
        raise InputError(
            f"{where}: its scale depends on the input, {scale:g} here and {float(again.scale):g} there; expected a "
            "trained or calibrated one, as of Int8ActPerTensorFloat"
        )
    if not scale > 0 or zero != round(zero):
        raise InputError(f"{where}: scale {scale:g}, zero point {zero:g}; expected a scale > 0 and a whole zero point")
    if kind == "FloatQuantTensor":
        return _float_quantizer(where, name, proxy, made, scale, zero)
    inside: Any = proxy.fused_activation_quant_proxy.tensor_quant
    if not hasattr(inside, "int_quant"):
        raise InputError(f"{where}: {type(inside).__name__} is not supported for activations, expected 2 to 16 bits")
    low, high = (int(f(made.bit_width)) for f in (inside.int_quant.min_int, inside.int_quant.max_int))
    if not 3 <= high - low + 1 <= 1 << 16:
        raise InputError(f"{where}: its codes are [{low}, {high}], expected 2 to 16 bits")
    return Quantizer(name, scale, low, high, int(zero), _rounding(where, inside.int_quant))


def _rounding(where: str, quant: Any) -> str:
    kind = type(quant.float_to_int_impl).__name__
    names = {"RoundSte": "ROUND", "FloorSte": "FLOOR", "CeilSte": "CEIL", "RoundToZeroSte": "ROUND_TO_ZERO"}
    mode = names.get(kind, "DPU" if kind.lower().startswith("dpu") else "")
    if mode not in OF_BREVITAS:
        raise InputError(f"{where}: rounds by {kind}, expected float_to_int_impl_type {', '.join(OF_BREVITAS)}")
    return OF_BREVITAS[mode]


def _float_quantizer(where: str, name: str, proxy: Any, made: Any, scale: float, zero: float) -> Quantizer:
    inside = proxy.fused_activation_quant_proxy.tensor_quant
    if zero or not inside.float_clamp_impl.saturating or _rounding(where, inside) != "half_even":
        raise InputError(
            f"{where}: expected a minifloat that saturates, without a zero point, rounded to nearest: "
            "saturating=True, float_to_int_impl_type=ROUND"
        )
    format = _format(where, made, inside.float_clamp_impl)
    assert format.mantissa is not None
    low = -format.largest if inside.signed else 0
    return Quantizer(name, scale * 2.0**-format.point, low, format.largest, 0, "half_even", format.mantissa)


def _format(where: str, made: Any, clamp: Any) -> Format:
    exponent, mantissa, bias = (
        float(v) for v in (made.exponent_bit_width, made.mantissa_bit_width, made.exponent_bias)
    )
    if not all(v == round(v) for v in (exponent, mantissa, bias)) or not (1 <= exponent <= 5 and 0 <= mantissa <= 6):
        raise InputError(
            f"{where}: a minifloat of {exponent:g} bits of exponent, {mantissa:g} of mantissa and bias {bias:g}; "
            "expected whole numbers, 1 to 5 and 0 to 6 bits"
        )
    largest = None if clamp.max_available_float is None else float(clamp.max_available_float())
    return minifloat(int(exponent), int(mantissa), int(bias), largest)


def _exact_layer(original: Any, layer: Any, name: str, bias: Tensor | None) -> None:
    """The layer's weight as codes and scales, and its bias, in place of their proxies."""
    kind = type(layer).__name__
    layer.bias_quant = Bias(bias)
    if not original.weight_quant.is_quant_enabled:
        return
    if not any(c.__name__ in LAYERS for c in type(layer).__mro__):
        raise InputError(f"{name}: {kind} with a quantized weight is not supported, expected {', '.join(LAYERS)}")
    with torch.no_grad():
        layer.weight_quant = Weight(*_weight(f"{name} ({kind})", original))


def _weight(where: str, layer: Any) -> tuple[Tensor, Tensor]:
    """Integer codes, int64 of the weight's shape, and what one is worth, float64, for the tensor or per channel."""
    if layer.weight_quant.requires_quant_input:
        raise InputError(f"{where}: its weights depend on its input's quantizer, which is not supported")
    made = layer.quant_weight()
    rows, kind = len(layer.weight), type(made).__name__
    if kind not in ("IntQuantTensor", "FloatQuantTensor"):
        raise InputError(
            f"{where}: its weights are a {kind}, expected integers or minifloats with a scale for the tensor or per "
            "output channel: groups and MX of Brevitas are not supported"
        )
    if bool((made.zero_point != 0).any()):
        raise InputError(
            f"{where}: its weights have the zero point {float(made.zero_point.abs().max()):g}, expected 0: use a "
            "symmetric quantizer, as Int8WeightPerChannelFloat"
        )
    scale = made.scale.double().reshape(-1)
    if len(scale) not in (1, rows):
        raise InputError(f"{where}: its weights have {len(scale)} scales, expected 1 or {rows}, one per output channel")
    real = made.value.double() / scale.reshape(-1, *[1] * (made.value.ndim - 1))
    if kind == "IntQuantTensor":
        codes, bits = torch.round(real), float(made.bit_width)
        if bits > WEIGHT_BITS:
            raise InputError(f"{where}: its weights have {bits:g} bits, expected at most {WEIGHT_BITS}")
        worth = scale
    else:
        format = _format(where, made, layer.weight_quant.tensor_quant.float_clamp_impl)
        codes, worth = torch.from_numpy(format.rounded(real.numpy())).double(), scale * 2.0**-format.point
    if not bool(torch.isfinite(made.value).all()) or not torch.allclose(
        codes * (worth / scale)[0], real, rtol=1e-5, atol=1e-5
    ):
        raise InputError(f"{where}: its weights are not multiples of their scale; is quantization delayed or observed?")
    return codes.long(), worth if len(worth) > 1 else worth.reshape(())
