"""Keys and values as codes of 2 and 4 bits: KIVI's formula with integer zeros, bytes, folded products, first steps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isobit.quant.calibrate.evaluate import evaluate
from isobit.quant.calibrate.observe import Calibration
from isobit.quant.interpret import interpret
from isobit.quant.nn import CausalAttention
from isobit.quant.ops.cache import (
    INVERSE_BITS,
    INVERSES,
    MOST_STEP,
    cache_code,
    code_of_byte,
    inverse_of,
    join_codes,
    token_step,
    token_zero,
)
from isobit.quant.program import Array, Arrays, Node
from isobit.quant.quantize import Quantized, program_inputs, quantize, snr
from isobit.quant.recipe import RECIPES, Recipe, recipe_named, with_layers

CHANNELS, STEPS = 6, 24
BITS = (4, 2)

LOSS = 1.0
"""dB that integers may cost beside KIVI in floats."""


class Attention(nn.Module):
    """Attention of linear layers; some channels of keys are far larger than others, and far from zero."""

    def __init__(self, heads: int, groups: int, size: int, width: int, window: int) -> None:
        super().__init__()
        self.heads, self.groups = heads, groups
        self.q, self.k = nn.Linear(CHANNELS, heads * size), nn.Linear(CHANNELS, groups * size)
        self.v, self.attention = nn.Linear(CHANNELS, groups * width), CausalAttention(window, size**-0.5)
        self.k.bias.data[0] += 3
        self.k.weight.data[-1] *= 8

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1))
        k, v = (f(x).unflatten(-1, (self.groups, -1)) for f in (self.k, self.v))
        out: Tensor = self.attention(q, k, v)
        return out.flatten(2)


SHAPES = {
    "grouped": (4, 2, 8, 8, 5),
    "odd": (6, 3, 7, 5, 4),
    "one group": (2, 1, 9, 4, 6),
    "one byte": (2, 2, 2, 3, 3),
    "scalars": (1, 1, 1, 1, 2),
}
"""heads, groups, size of keys, width of values, window."""

RECIPES_OF_TESTS = {
    "w8a8": {},
    "a16": {"act_bits": 16},
    "narrow": {"wide_bits": 8},
    "narrower": {"act_bits": 4, "wide_bits": 6},
    "e4m3": {"activations": "e4m3"},
}

NARROW = ("narrow", "narrower")


@dataclass(frozen=True)
class Run:
    """An attention on noise: what it is made of, and every value of its Program."""

    made: Quantized
    x: np.ndarray
    taps: Arrays

    def node(self, name: str) -> Node:
        return next(n for n in self.made.program.nodes if n.output == f"attention.{name}")

    def __getitem__(self, name: str) -> Array:
        constant = self.made.program.constant.get(f"attention.{name}")
        return self.taps[f"attention.{name}"] if constant is None else constant.array


def samples(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(4, STEPS, CHANNELS)).astype(np.float32).astype(np.float64)


@cache
def run(shape: str, bits: int, recipe: str = "w8a8") -> Run:
    torch.manual_seed(0)
    own = Recipe(recipe, cache_bits=bits, **RECIPES_OF_TESTS[recipe])  # type: ignore[arg-type]
    made, x, taps = quantize(Attention(*SHAPES[shape]), samples(0), own, name="m"), samples(1), Arrays()
    interpret(made.program, program_inputs(made.program, x), taps=taps)
    return Run(made, x, taps)


every_shape = pytest.mark.parametrize("shape", SHAPES)
every_recipe = pytest.mark.parametrize("recipe", RECIPES_OF_TESTS)
both_widths = pytest.mark.parametrize("bits", BITS)


def kivi(x: Array, zero: Array | int, step: Array | int, bits: int) -> Array:
    """round((x - zero) / step), half up, in 0 to 2^bits - 1."""
    return np.asarray(np.clip((2 * (x - zero) + step) // (2 * step), 0, (1 << bits) - 1))


def per_group(x: Array, groups: int, *dims: int) -> Array:
    """(B, T, G, ...), axes of size 1 too."""
    return x.reshape(*x.shape[:2], groups, *dims)


@both_widths
@every_recipe
@every_shape
def test_codes_of_keys_are_kivi_s_per_channel(shape: str, recipe: str, bits: int) -> None:
    r = run(shape, bits, recipe)
    n, levels = r.node("keys.codes"), (1 << bits) - 1
    k, up = r.taps[n.inputs[0]], n.param["up"] - 1
    zero, step = r["keys.zero"], r["keys.step"]
    assert np.array_equal(r["keys.codes"], kivi(k << up, zero, step, bits))
    (source,) = (g.inputs[0] for g in r.made.graph.nodes if g.output == "attention.keys")
    unit = next(m.scale for m in r.made.program.nodes if m.output == n.inputs[0])
    assert unit is not None
    calibration: Calibration = r.made.calibration
    fine = unit * 2.0**-up
    least, most = (np.squeeze(c[source]) / fine for c in (calibration.least, calibration.most))
    assert np.array_equal(zero, np.floor(least))
    assert np.array_equal(step, np.maximum(np.ceil((most - zero) / levels), 1))
    assert set(np.unique(r["keys.codes"])) <= set(range(levels + 1))
    inside = (k << up >= zero) & (k << up <= zero + levels * step)
    assert inside.mean() > 0.8
    assert (
        np.abs((k << up) - (zero + step * r["keys.codes"]))[inside] * 2 <= np.broadcast_to(step, k.shape)[inside]
    ).all()


@both_widths
@every_recipe
@every_shape
def test_codes_of_values_are_kivi_s_per_token(shape: str, recipe: str, bits: int) -> None:
    """The step is rounded up to a whole unit, the zero down; both are signed bytes."""
    r = run(shape, bits, recipe)
    groups, width = SHAPES[shape][1], SHAPES[shape][3]
    v = per_group(r.taps[r.node("values.codes").inputs[0]], groups, width)
    assert (np.abs(v).max() > 127) == (recipe not in NARROW), "coded from the wide form"
    whole, levels = r.node("values.zero").param["s"], (1 << bits) - 1
    zero = np.clip(v.min(-1) >> whole, -128, 127)
    fine, low = v << (bits - 2), zero << (whole + bits - 2)
    step = np.clip(-((low - fine.max(-1)) // (levels << whole)), 1, MOST_STEP)
    assert np.array_equal(per_group(r["values.zero"], groups), zero)
    assert np.array_equal(per_group(r["values.step"], groups), step)
    low, high = low[..., None], (step << whole)[..., None]
    codes = per_group(r["values.codes"], groups, width)
    assert np.array_equal(codes, kivi(fine, low, high, bits))
    inside = ((zero < 127) & (zero > -128) & (step < MOST_STEP))[..., None]
    assert inside.mean() > 0.9
    assert (np.abs(fine - low - high * codes) * 2 <= high)[np.broadcast_to(inside, codes.shape)].all()


@both_widths
@every_recipe
@every_shape
def test_products_are_those_of_the_levels(shape: str, recipe: str, bits: int) -> None:
    """Zeros and steps, folded into the other operand, give the integers that the levels themselves give."""
    r = run(shape, bits, recipe)
    heads, groups, size, width, window = SHAPES[shape]

    def operand(name: str, *dims: int) -> Array:
        x = r.taps[r.node(name).inputs[0]]
        return x.reshape(*x.shape[:2], groups, heads // groups, *dims)

    def in_window(x: Array) -> Array:
        """(B, T, ...) -> (B, T, W, ...), zeros for steps before the first."""
        before = np.zeros((len(x), window - 1, *x.shape[2:]), np.int64)
        full = np.concatenate([before, x], axis=1)
        return np.stack([full[:, i : i + x.shape[1]] for i in range(window)], axis=2)

    filled = slice(window - 1, None)
    zero, step = (r[f"keys.{k}"].reshape(groups, size) for k in ("zero", "step"))
    keys = in_window(zero + step * per_group(r["keys.codes"], groups, size))
    expected = np.einsum("btgrd,btwgd->btgrw", operand("scores.scaled", size), keys)
    got = r["scores.acc"].reshape(expected.shape)
    assert np.array_equal(got[:, filled], expected[:, filled])
    zero, step = (per_group(r[f"values.{k}"], groups) for k in ("zero", "step"))
    codes = per_group(r["values.codes"], groups, width)
    values = in_window((zero << (bits - 2))[..., None] + step[..., None] * codes)
    expected = np.einsum("btgrw,btwgv->btgrv", operand("mixed.scaled", window), values)
    last = next(n for n in reversed(r.made.program.nodes) if n.output.startswith("attention.mixed."))
    assert np.array_equal(r.taps[last.output].reshape(expected.shape), expected), "from the first step on"


@pytest.mark.parametrize("shape", ["grouped", "odd"])
@both_widths
def test_the_loss_is_that_of_kivi_in_floats(shape: str, bits: int) -> None:
    """KIVI's formula on the float model's keys and values, ranges of keys from calibration."""
    r = run(shape, bits, "a16")
    _, _, size, _, window = SHAPES[shape]
    graph, levels = r.made.graph, (1 << bits) - 1
    values = evaluate(graph, r.x)
    inputs = {n.output: n.inputs[0] for n in graph.nodes}
    source = inputs["attention.keys"]
    least, most = r.made.calibration.least[source], r.made.calibration.most[source]
    k, v = values[source], values[inputs["attention.values"]]
    step = (most - least) / levels
    k = least + step * np.clip(np.rint((k - least) / step), 0, levels)
    least, most = v.min(-1, keepdims=True), v.max(-1, keepdims=True)
    v = least + (most - least) / levels * np.rint((v - least) / (most - least) * levels)
    q = values[inputs["attention.scaled_q"]]
    module = CausalAttention(window, size**-0.5)
    kept = module(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (q, k, v))).numpy()
    exact = values[graph.output].reshape(kept.shape)
    noise = 10 * np.log10(np.sum(exact**2) / np.sum((kept - exact) ** 2))
    entry = next(n for n in r.made.program.nodes if n.output == "y")
    assert entry.scale is not None
    got = snr(exact, r.taps["y"].reshape(exact.shape), entry.scale)
    print(f"{shape}, {bits} bits: {got:.1f} dB, KIVI in floats {noise:.1f} dB")
    assert got >= noise - LOSS


@both_widths
def test_a_byte_holds_its_codes(bits: int) -> None:
    every = np.arange(256)
    codes = [(every >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    joined, width = codes, bits
    while len(joined) > 1:
        pairs = zip(joined[::2], joined[1::2], strict=True)
        offset = 128 if len(joined) == 2 else 0
        joined = [join_codes(low, high, bits=width, offset=offset) for low, high in pairs]
        width *= 2
    assert np.array_equal(np.sort(joined[0]), np.arange(-128, 128))
    for i, shift in enumerate(range(0, 8, bits)):
        assert np.array_equal(code_of_byte(joined[0], shift, bits=bits), codes[i])


@both_widths
@every_shape
def test_the_rings_hold_the_codes_in_bytes(shape: str, bits: int) -> None:
    """Of the last W - 1 steps, 8 / bits of them to a byte, channel c in byte c modulo the number of bytes."""
    r = run(shape, bits)
    _, groups, size, width, window = SHAPES[shape]
    _, states = interpret(r.made.program, program_inputs(r.made.program, r.x))
    for role, channels in (("keys", size), ("values", width)):
        held, count = states[f"attention.{role}.ring"], 8 // bits
        room = -(-channels // count)
        assert held.size == len(r.x) * (window - 1) * groups * room
        codes = per_group(r[f"{role}.codes"], groups, channels)[:, 1 - window :]
        padded = np.pad(codes, ((0, 0), (0, 0), (0, 0), (0, room * count - channels)))
        parts = padded.reshape(*padded.shape[:3], count, room)
        expected = (parts << (bits * np.arange(count))[:, None]).sum(3) - 128
        assert np.array_equal(held.reshape(expected.shape), expected)
        state = r.made.program.state[f"attention.{role}.ring"].type
        assert (state.elem.container, state.size) == (8, (window - 1) * groups * room)
    for role in ("zero", "step"):
        assert r.made.program.state[f"attention.values.ring.{role}"].type.elem.container == 8


@pytest.mark.parametrize("top", [1, 2, 3, 40, 127, 1000, (1 << 12) - 1, (1 << 14) - 1])
@both_widths
def test_the_division_by_a_step_is_exact(top: int, bits: int) -> None:
    """At every tie and beside it, for every step up to `top` or 1000 of them; s is the lowering's."""
    s = bits + 2 * (top.bit_length() + 1)
    for step in np.unique(np.linspace(1, top, 1000).astype(int)).tolist():
        ties = np.arange(-1, (1 << bits) + 2) * step - step // 2
        x = (ties[:, None] + np.arange(-2, 3)).ravel()
        params = {"up": 1, "down": 0, "coarse": 1, "s": s, "bits": bits}
        got = cache_code(x, 0, step, inverse_of(step, s), **params)
        assert np.array_equal(got, kivi(x, 0, step, bits)), step


@both_widths
def test_the_table_of_inverses_is_exact_for_every_token(bits: int) -> None:
    params = {"up": 1, "down": 0, "coarse": 1, "s": INVERSE_BITS, "bits": bits}
    x = np.arange(-300, MOST_STEP * ((1 << bits) + 1))
    for step in range(1, MOST_STEP + 1):
        got = cache_code(x, 0, step, INVERSES[step], **params)
        assert np.array_equal(got, kivi(x, 0, step, bits)), step


def test_a_token_s_step_reaches_its_maximum() -> None:
    least, most = (a.ravel() for a in np.meshgrid(np.arange(-16384, 16384, 61), np.arange(-16384, 16384, 67)))
    least, most = least[least <= most], most[least <= most]
    zero = token_zero(-least, s=7)
    step = token_step(most, zero, up=0, coarse=7, divisor=15 << 5)
    assert (zero * 128 <= least).all()
    assert (least - zero * 128 < 128).all()
    assert (zero * 128 + 15 * step * 32 >= most).all()
    assert (zero * 128 + 15 * (step - 1) * 32 < most)[step > 1].all()


@both_widths
@every_shape
def test_what_no_step_has_filled_changes_nothing(shape: str, bits: int) -> None:
    r = run(shape, bits)
    program, inputs, rng = r.made.program, program_inputs(r.made.program, r.x), np.random.default_rng(7)
    states = program.initial_states(len(r.x))
    rings = [k for k in states if ".ring" in k]
    assert len(rings) == 4
    expected, _ = interpret(program, inputs)
    noise = {k: rng.integers(-128, 128, states[k].shape) for k in rings}
    got, _ = interpret(program, inputs, states | noise)
    assert np.array_equal(got["y"], expected["y"])
    late = states | noise | {"clock.count_state": np.full_like(states["clock.count_state"], SHAPES[shape][4])}
    if shape != "scalars":
        assert not np.array_equal(interpret(program, inputs, late)[0]["y"], expected["y"]), "filled, they count"


@both_widths
@every_shape
def test_by_step_is_by_sequence(shape: str, bits: int) -> None:
    r = run(shape, bits)
    program, inputs = r.made.program, program_inputs(r.made.program, r.x)
    expected, last = interpret(program, inputs)
    states, rows = program.initial_states(len(r.x)), []
    for t in range(STEPS):
        out, states = interpret(program, {k: a[:, t : t + 1] for k, a in inputs.items()}, states)
        rows.append(out["y"])
    assert np.array_equal(np.concatenate(rows, axis=1), expected["y"])
    assert all(np.array_equal(states[k], last[k]) for k in last)


class Two(nn.Module):
    """Two attentions, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Attention(2, 1, 4, 3, 4), Attention(2, 1, 4, 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y


def test_layers_of_their_own() -> None:
    torch.manual_seed(0)
    recipe = with_layers(recipe_named("w8a8"), ["first.*:cache_bits=4", "second.attention:cache_bits=2"])
    program = quantize(Two(), samples(0), recipe, name="m").program
    found = {s.name: s.type.size for s in program.states if s.name.endswith("keys.ring")}
    assert found == {"first.attention.keys.ring": 3 * 2, "second.attention.keys.ring": 3 * 1}
    only = with_layers(recipe_named("w8a8"), ["first.*:cache_bits=4"])
    program = quantize(Two(), samples(0), only, name="m").program
    assert program.state["second.attention.keys.ring"].type.dims == (3, 4)
    assert RECIPES["w8a8-kv4"].cache_bits == 4
    assert RECIPES["w8a8-kv2"].cache_bits == 2


def test_a_window_of_one_step_keeps_nothing() -> None:
    torch.manual_seed(0)
    module = Attention(2, 1, 4, 3, 1)
    digests = {quantize(module, samples(0), name, name="m").program.digest for name in ("w8a8", "w8a8-kv4")}
    assert len(digests) == 1
