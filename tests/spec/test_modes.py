"""The nonlinear modes: their bars and the stored error table; exact reciprocals and roots of `clz`; tables of `lut`."""

from __future__ import annotations

from math import isqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from isobit.quant.calibrate.observe import float_outputs, observe
from isobit.quant.capture.capture import capture
from isobit.quant.interpret import interpret
from isobit.quant.lower.edges import InputSpec
from isobit.quant.lower.lower import lower
from isobit.quant.ops import clz, ivit, lut
from isobit.quant.program import Array, IntType
from isobit.quant.quantize import quantize
from isobit.quant.recipe import MODES, Recipe, with_layers
from isobit.quant.recipe_file import recipe_of
from isobit.tools import nonlinears
from isobit.tools.nonlinears import (
    EXPONENTS,
    Function,
    captured,
    error,
    functions,
    load,
    lowered,
    norm_rows,
    operations,
    score_rows,
)
from tests.spec.test_nonlinears import magnitudes

BARS = {
    "softmax": 1e-3,
    "silu": 0.004,
    "gelu": 0.004,
    "gelu, tanh form": 0.004,
    "layernorm": 2.0**-12,
    "rmsnorm": 2.0**-12,
}
"""Of mode `quad` with 16-bit outputs, at every scale; of norms relative."""


def test_the_stored_table_is_complete_and_meets_the_bars() -> None:
    table = load()
    assert list(table) == list(functions())
    for name, modes in table.items():
        assert list(modes) == list(MODES)
        assert all(len(found) == len(EXPONENTS) for entry in modes.values() for found in entry["errors"].values())
        if name in BARS:
            assert max(e for found in modes["quad"]["errors"].values() for e in found) <= BARS[name], name


@pytest.mark.parametrize("name", functions())
def test_the_stored_table_is_what_the_modes_give(name: str) -> None:
    """At one scale, in all modes and widths."""
    function, exponent = functions()[name], -5
    for bits in nonlinears.WIDTHS:
        graph = captured(function, bits)
        for mode in MODES:
            stored = load()[name][mode]["errors"][str(bits)][EXPONENTS.index(exponent)]
            assert error(function, graph, mode, bits, exponent) == pytest.approx(stored, rel=1e-3, abs=1e-7), mode
    for mode in MODES:
        program = lowered(function, graph, mode, 16, -8)[-1]
        assert operations(program) == load()[name][mode]["operations"]


def test_the_page_shows_the_stored_table() -> None:
    assert nonlinears.markdown(load()) in nonlinears.PAGE.read_text()


@pytest.mark.parametrize("size", [2, 16, 300, 1024])
def test_softmax_of_short_and_long_rows(size: int) -> None:
    """A long row of small powers, each rounded, still sums up."""
    function = Function(lambda: nn.Softmax(-1), lambda bits, scale: score_rows(bits, scale, size))
    for bits in (8, 16):
        graph = captured(function, bits)
        assert max(error(function, graph, "quad", bits, e) for e in (-8, -5, -2)) <= BARS["softmax"]


@pytest.mark.parametrize("size", [8, 192])
@pytest.mark.parametrize("make", [nn.LayerNorm, nn.RMSNorm])
def test_norms_of_short_and_long_rows(size: int, make: type[nn.LayerNorm] | type[nn.RMSNorm]) -> None:
    function = Function(lambda: make(size, eps=1e-6), lambda bits, scale: norm_rows(bits, scale, size), relative=True)
    for bits in (8, 16):
        graph = captured(function, bits)
        assert max(error(function, graph, "quad", bits, e) for e in (-8, -2)) <= 2.0**-12


def test_roots_of_clz_are_exact() -> None:
    """Of squares, of their neighbours, and of the ends of the range of a mantissa."""
    rng = np.random.default_rng(0)
    k = np.append(rng.integers(1 << 29, 1 << 30, 5000), [1 << 29, (1 << 30) - 1, (1 << 29) + 1])
    v = np.concatenate([k * k, k * k + 1, k * k - 1, k * k + 2 * k, [(1 << 60) - 1, 1 << 58]])
    v = v[v >= 1 << 58]
    assert clz.isqrt(v).tolist() == [isqrt(i) for i in v.tolist()]


def test_reciprocal_roots_of_clz_and_lut() -> None:
    for function, bar in ((clz.rsqrt_clz, 2.0**-14), (lut.rsqrt_lut, 0.0011)):
        found = []
        for width in (16, 36, 58):
            v = magnitudes(width)
            found.append(
                np.abs(function(v, up=0, eps=0, least=1, width=width) / 2.0 ** (14 + width // 2) * np.sqrt(v) - 1).max()
            )
        assert bar / 2.5 < max(found) < bar


def test_quotients_of_clz_keep_their_bits() -> None:
    """Within two units of Q0.15 below the true quotient, at every magnitude; 1 is exact."""
    rng = np.random.default_rng(1)
    total = np.concatenate([rng.integers(1 << k, 2 << k, 500) for k in range(36)])
    part = np.minimum((total * rng.random(total.shape)).astype(np.int64), total)
    for down, most in ((0, 1 << 31), (5, 1 << 36)):
        inside = total[(total < most) & (total >= 1 << (16 + down))], part[(total < most) & (total >= 1 << (16 + down))]
        got = clz.shiftmax_clz(inside[1], inside[0], down=down)
        below = inside[1] / inside[0] * 2.0**15 - got
        assert below.min() > -1
        assert below.max() < 2
        assert np.all(clz.shiftmax_clz(inside[0], inside[0], down=down) >= (1 << 15) - 1)


@pytest.mark.parametrize("bits", [8, 16])
def test_gates_of_clz_are_symmetric_and_of_one_element(bits: int) -> None:
    x = np.arange(-(1 << (bits - 1)) + 1, 1 << (bits - 1))
    for x0 in (1, 10, 256, 4096):
        down = max(0, (x0 << 16).bit_length() - 31)
        gate = clz.sigmoid_of(x, x0, down)
        assert np.all(np.abs(gate + gate[::-1] - (1 << 15)) <= 2)
        assert np.all((gate >= 0) & (gate <= 1 << 15))


@pytest.mark.parametrize("module", [nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.ELU, nn.LogSigmoid])
def test_tables_of_lut_are_the_rounded_functions(module: type[nn.Module]) -> None:
    """Of 8 bits at every input; of 16 bits at every input that is a multiple of 2^6."""
    for bits, step in ((8, 1), (16, 64)):
        codes = np.arange(-(1 << (bits - 1)), 1 << (bits - 1))[None, None]
        scale = 2.0 ** (3 - bits)
        graph = capture(module().eval(), codes.shape, "layer")
        real = codes.astype(np.float64) * scale
        program = lower(
            graph, observe(graph, real), Recipe("r", nonlinear="lut"), "m", InputSpec(IntType(bits), scale), 1
        )
        unit = next(n for n in program.nodes if n.op == "lookup").scale
        assert unit is not None
        got = interpret(program, {"x": codes})[0]["y"]
        assert np.array_equal(got[..., ::step], np.rint(float_outputs(graph, real) / unit)[..., ::step])


def test_a_table_of_distances_ends_with_what_empty_slots_read() -> None:
    slot = np.arange(6)
    for count in range(8):
        index = lut.distance_index_of_history(np.full(6, -32767), 32767, count, slot, length=6, s=0)
        assert index.tolist() == np.where(slot >= 6 - count, lut.LAST - 1, lut.LAST).tolist()
        weights = ivit.shifted_exp_of_history_ivit(np.full(6, 7), 7, count, slot, length=6, x0=16)
        assert weights.tolist() == np.where(slot >= 6 - count, 16 << 15, 0).tolist()


def noise(*shape: int) -> Array:
    return np.asarray(np.random.default_rng(3).integers(-127, 128, shape))


def test_a_mode_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('version = 1\nnonlinear = "clz"\n\n[layers."blocks.*"]\nnonlinear = "lut"\n')
    recipe = recipe_of(str(path))
    assert (recipe.nonlinear, recipe.at("blocks.0.act").nonlinear, recipe.at("head").nonlinear) == ("clz", "lut", "clz")


def test_a_mode_of_a_single_layer() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 4), nn.SiLU()).eval()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel()).reshape(p.shape))
    recipe = with_layers(Recipe("r"), ["3:nonlinear=lut"])
    made = quantize(module, noise(2, 3, 4), recipe, name="model", input=InputSpec(IntType(8), 2.0**-5))
    ops = {n.loc: n.op for n in made.program.nodes if n.op in ("silu", "lookup")}
    assert ops == {"1": "silu", "3": "lookup"}
