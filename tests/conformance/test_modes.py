"""Models in every nonlinear mode: exact on every target, and as near to float as the mode allows."""

from __future__ import annotations

import pytest

from isobit.quant.quantize import Quantized
from isobit.quant.recipe import MODES, Recipe
from isobit.targets.target import TARGETS
from isobit.tools.families import SEQUENCES, fidelity, quantized, shape_of
from tests.families import assert_exact

MODELS = ("Mamba", "Hybrid", "Gated DeltaNet", "GRU"), ("I-ViT", "MobileNetV2")
"""Groups that are one Program each: selective decays, softplus, masked softmax, L2 norms, gates; GELU, LayerNorm."""

EXPECTED = {
    "quad": {"decay", "silu", "softplus", "rsqrt", "shifted_exp", "shifted_exp_of_history", "sigmoid", "tanh", "gelu"},
    "ivit": {
        "decay_ivit", "gated_ivit", "softplus_ivit", "factor_ivit", "norm_ivit", "centre_ivit", "shifted_exp_ivit",
        "shifted_exp_of_history_ivit", "shiftmax_ivit", "sigmoid_ivit", "tanh_ivit",
    },
    "clz": {
        "decay_ivit", "gated_clz", "softplus_ivit", "rsqrt_clz", "shifted_exp_ivit", "shifted_exp_of_history_ivit",
        "shiftmax_clz", "sigmoid_clz", "tanh_clz",
    },
    "lut": {
        "lookup", "octave_index", "table_index", "distance_index", "distance_index_of_history", "rsqrt_lut", "divide",
    },
}  # fmt: skip
"""Ops that the models have together, by mode."""

FLOORS = {"quad": 20.0, "clz": 10.0, "lut": 20.0}
"""Least signal-to-noise ratio in dB of every model with 8-bit operands; what is published promises none."""

TOOLS = pytest.mark.needs("gcc", "g++")
QUICK = ["interpret", "ort", "c"]
OTHERS = [t for t in TARGETS if t not in QUICK]


def models(mode: str, families: tuple[str, ...]) -> dict[str, Quantized]:
    recipe = Recipe(f"w8a8-{mode}", nonlinear=mode)
    return {f: quantized(f, "tiny", recipe, steps=16, calibration=SEQUENCES) for f in families}


@TOOLS
@pytest.mark.parametrize("mode", ["quad", "ivit", *(pytest.param(m, marks=pytest.mark.slow) for m in ("clz", "lut"))])
def test_models_are_exact_and_have_the_ops_of_their_mode(mode: str) -> None:
    found = set[str]()
    for families in MODELS:
        made = models(mode, families)
        for f, q in made.items():
            found |= {n.op for n in q.program.nodes}
            if mode in FLOORS:
                assert fidelity(q, shape_of(f, "tiny"), steps=16)["snr"] >= FLOORS[mode], f
        assert_exact(made, "tiny", QUICK)
    assert found >= EXPECTED[mode]
    of_others = {op for m, ops in EXPECTED.items() if m != mode for op in ops} - EXPECTED[mode]
    assert found & of_others <= {"divide"}


@pytest.mark.slow
@pytest.mark.needs("gcc", "g++", "arm-none-eabi-gcc", "qemu-system-arm")
@pytest.mark.parametrize("families", MODELS, ids=lambda names: names[0])
@pytest.mark.parametrize("mode", MODES)
def test_models_are_exact_on_the_other_targets(mode: str, families: tuple[str, ...]) -> None:
    assert_exact(models(mode, families), "tiny", OTHERS)
