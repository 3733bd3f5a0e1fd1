"""Each lowering rule on a tiny module: widths, scales, names, and the noise against the float graph.

The floors are what the widths allow, some dB below what was measured: a wrong scale or shift costs far more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.nn import functional

from isobit.quant.capture.graph import Floats
from isobit.quant.errors import InputError
from isobit.quant.interpret import interpret
from isobit.quant.lower.edges import InputSpec, input_spec, quantize_input
from isobit.quant.nn import CausalConv1d, RunningMean, SelectiveRecurrence, diagonal_recurrence
from isobit.quant.program import IntType
from isobit.quant.quantize import Quantized, layer_snr, program_inputs, quantize, snr
from isobit.quant.zoo.mamba import MambaBlock, MambaClassifier, ResidualBlock

C = 6


class Call(nn.Module):
    """A function of the input and of two linear layers of it."""

    def __init__(self, f: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.f, self.a, self.b = f, nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x, self.a(x), self.b(x))


class Scale(nn.Module):
    """A factor per channel: negative, zero, small and large ones."""

    def __init__(self) -> None:
        super().__init__()
        self.d = nn.Parameter(torch.tensor([1.0, -2.0, 0.0, 0.1, 3.0, -0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.d


class Recurrent(nn.Module):
    """A selective recurrence with decays from very slow to very fast."""

    def __init__(self) -> None:
        super().__init__()
        self.dt, self.b, self.c = nn.Linear(C, C), nn.Linear(C, 3), nn.Linear(C, 3)
        self.rate = nn.Parameter(torch.tensor([[-0.01, -1.0, -8.0]]).repeat(C, 1))
        self.recurrence = SelectiveRecurrence()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.recurrence(x, functional.softplus(self.dt(x)), self.rate, self.b(x), self.c(x))
        return y


def samples(seed: int = 0, n: int = 32, t: int = 12, channels: int = C) -> Floats:
    return np.random.default_rng(seed).normal(size=(n, t, channels))


def quantized(make: Callable[[], nn.Module], recipe: str = "w8a8", input: InputSpec | None = None) -> Quantized:
    torch.manual_seed(0)
    return quantize(make(), samples(), recipe, name="tiny", input=input)


MODELS: list[tuple[str, Callable[[], nn.Module], float, float]] = [
    ("linear", lambda: nn.Sequential(nn.Linear(C, 9), nn.Linear(9, 4, bias=False)), 33, 38),
    ("causal_conv1d", lambda: nn.Sequential(CausalConv1d(C, 4), nn.SiLU(), nn.Linear(C, C)), 33, 40),
    ("rms_norm", lambda: nn.Sequential(nn.Linear(C, C), nn.RMSNorm(C), nn.Linear(C, C)), 33, 40),
    ("silu", lambda: nn.Sequential(nn.Linear(C, C), nn.SiLU()), 36, 38),
    ("softplus", lambda: nn.Sequential(nn.Linear(C, C), nn.Softplus()), 36, 40),
    ("mul", lambda: Call(lambda x, a, b: a * b), 33, 38),
    ("add of two layers", lambda: Call(lambda x, a, b: a + b), 36, 40),
    ("add of the input", lambda: Call(lambda x, a, b: x + a), 36, 40),
    ("add of one value", lambda: Call(lambda x, a, b: a + a), 36, 40),
    ("scale", lambda: nn.Sequential(nn.Linear(C, C), Scale(), nn.SiLU()), 33, 38),
    ("running_mean", lambda: nn.Sequential(nn.Linear(C, C), RunningMean(), nn.Linear(C, C)), 33, 38),
    ("selective_recurrence", Recurrent, 28, 34),
    ("mamba", lambda: MambaBlock(C, d_state=4), 26, 33),
]


@pytest.mark.parametrize(("make", "w8a8", "w8a16"), [m[1:] for m in MODELS], ids=[m[0] for m in MODELS])
def test_noise_against_float(make: Callable[[], nn.Module], w8a8: float, w8a16: float) -> None:
    for recipe, floor in (("w8a8", w8a8), ("w8a16", w8a16)):
        q = quantized(make, recipe)
        ratios = layer_snr(q.program, q.graph, samples(1))
        assert ratios["y"] > floor, ratios


def ops(q: Quantized) -> list[tuple[str, str]]:
    return [(n.op, n.output) for n in q.program.nodes]


def test_a_value_is_settled_once_at_its_widest_and_narrowed_from_there() -> None:
    q = quantized(lambda: ResidualBlock(C, nn.Linear(C, C)))
    assert ops(q) == [
        ("sum_squares", "norm.squares"),
        ("rsqrt", "norm.inverse"),
        ("rmsnorm_scale", "norm"),
        ("matmul", "mixer.acc"),
        ("add_per_channel", "y"),
    ]
    q = quantized(lambda: nn.Sequential(nn.Linear(C, C), ResidualBlock(C, nn.SiLU())))
    assert [n for n in ops(q) if n[0].startswith("requantize")] == [("requantize_per_channel", "_0")]
    q = quantized(lambda: Call(lambda x, a, b: a * functional.silu(x)))
    assert [n for n in ops(q) if n[0] == "requantize"] == [("requantize", "x.q8")]


def test_the_output_has_its_own_node_and_scale() -> None:
    q = quantized(lambda: Call(lambda x, a, b: 0.5 * functional.silu(a)))
    assert ops(q)[-2:] == [("silu", "tiny.silu"), ("requantize", "y")]
    assert layer_snr(q.program, q.graph, samples(1))["y"] > 36


def test_a_value_that_others_read_is_not_added_as_an_accumulator() -> None:
    q = quantized(lambda: Call(lambda x, a, b: functional.silu(a) + a))
    node = q.program.nodes[-1]
    assert (node.op, node.inputs) == ("add", ("tiny.silu", "a"))


def test_integers_of_a_sensor_are_operands_as_they_are() -> None:
    q = quantize(nn.Linear(C, 3), np.full((1, 2, C), 16), name="tiny", input=InputSpec(IntType(5, False), 2.0**-4))
    assert ops(q) == [("matmul", "tiny.acc"), ("requantize_per_channel", "y")]
    assert q.program.nodes[0].inputs == ("x", "tiny.weight", "tiny.bias")
    assert str(q.program.inputs[0].type) == "u5[T, 6]"
    assert q.program.inputs[0].type.scale == 0.0625


def test_wide_integers_of_a_sensor_are_narrowed_for_a_matmul() -> None:
    q = quantized(lambda: nn.Linear(C, 3), input=InputSpec(IntType(12), 2.0**-8))
    assert ops(q)[0] == ("requantize", "x.q8")
    assert layer_snr(q.program, q.graph, samples(1))["y"] > 33


class First(nn.Module):
    """The first result of a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(C, 5, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)[0]
        return y


@pytest.mark.parametrize("make", [lambda: MambaClassifier(C, 3, 8, 1, d_state=4), First], ids=["Mamba", "LSTM"])
def test_a_step_at_a_time_gives_the_sequence(make: Callable[[], nn.Module]) -> None:
    q = quantized(make)
    inputs = program_inputs(q.program, samples(2, 3, 12))
    whole, last = interpret(q.program, inputs)
    states, rows = None, []
    for t in range(12):
        out, states = interpret(q.program, {k: v[:, t : t + 1] for k, v in inputs.items()}, states)
        rows.append(out["y"])
    np.testing.assert_array_equal(np.concatenate(rows, axis=1), whole["y"])
    assert states is not None
    assert all(np.array_equal(states[k], last[k]) for k in last)


def test_layers_without_weights_or_signal_are_lowered() -> None:
    def dead() -> nn.Module:
        first, last = nn.Linear(C, C), nn.Linear(C, C)
        with torch.no_grad():
            first.weight.zero_()
            first.bias.zero_()
            last.weight[0] = 1e-12
            last.bias[0] = 3.0
        return nn.Sequential(first, nn.SiLU(), last)

    q = quantized(dead)
    y = interpret(q.program, program_inputs(q.program, samples()))[0]["y"]
    scale = q.program.nodes[-1].scale
    assert scale is not None
    np.testing.assert_allclose(y[..., 0] * scale, 3.0, rtol=1e-3)


def test_wide_layers_get_a_wider_accumulator() -> None:
    q = quantize(nn.Linear(1200, 2), samples(channels=1200, n=2), "w8a16", name="tiny")
    assert q.program.nodes[0].param["acc"] in (32, 64)
    assert layer_snr(q.program, q.graph, samples(1, 2, 12, 1200))["y"] > 38


def test_the_edge_rule() -> None:
    x = np.array([-0.5, 0.5, 1.5, -1.5, 1e9, -1e9, np.inf, 0.49])
    assert quantize_input(x, 1.0, IntType(8)).tolist() == [0, 1, 2, -1, 127, -128, 127, 0]


def test_the_type_of_integers_is_the_smallest_that_holds_them() -> None:
    assert input_spec([0, 16], 0.5) == InputSpec(IntType(5, signed=False), 0.5)
    assert input_spec([-128, 3], 0.5) == InputSpec(IntType(8), 0.5)
    assert input_spec([0], 0.5) == InputSpec(IntType(1, signed=False), 0.5)
    assert input_spec([1.5], None) == InputSpec()


def test_snr() -> None:
    assert snr(np.array([10.0, 0.0]), np.array([9, 0]), 1.0) == pytest.approx(20)
    assert snr(np.array([1.0]), np.array([2]), 0.5) == float("inf")


class Decayed(nn.Module):
    """A recurrence that fades by a factor per channel."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.full((C,), decay))

    def forward(self, x: Tensor) -> Tensor:
        return diagonal_recurrence(self.decay, x)


def test_a_decay_outside_0_to_1_is_refused() -> None:
    q = quantized(lambda: Decayed(0.75))
    assert layer_snr(q.program, q.graph, samples(1))["y"] > 40
    for decay in (-0.25, 1.5):
        with pytest.raises(InputError, match=rf"its decay lies in \[{decay}, {decay}\], expected 0 to 1"):
            quantized(partial(Decayed, decay))


def test_a_decay_that_is_laid_out_per_step_is_refused() -> None:
    with pytest.raises(InputError, match=r"the decay is a parameter for every step, expected one of shape \(6,\)"):
        quantized(lambda: Call(lambda x, a, _: diagonal_recurrence(torch.full_like(x, 0.5), a)))


Carry = tuple[Tensor, Tensor, Tensor]


class Handed(nn.Module):
    """States that are older ones, seen otherwise; none starts from zero, so that none is a plain delay."""

    def __init__(self, step: Callable[[Tensor, Carry], Carry]) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        def step(carry: Carry, now: Tensor) -> tuple[Carry, Tensor]:
            return self.step(now, carry), now + carry[1] - carry[2]

        start = tuple(torch.full_like(x[:, 0], value) for value in (0.25, 0.5, -0.5))
        out: Tensor = scan(step, start, x, dim=1)[1]
        return out


def test_states_that_are_older_ones_are_held_in_their_order() -> None:
    q = quantized(lambda: Handed(lambda x, c: (torch.tanh(x + 0.3 * c[0]), 2 * c[0], 0.5 * c[1])), "w8a16")
    assert [n.output for n in q.program.nodes if n.op == "hold"] == [
        f"tiny.{v}.held" for v in ("scale_3", "scale_2", "tanh")
    ]
    assert layer_snr(q.program, q.graph, samples(1))["y"] > 60


def test_states_that_change_places_are_refused() -> None:
    with pytest.raises(InputError, match=r"^tiny: 2 states .* change places at every step"):
        quantized(lambda: Handed(lambda x, c: (torch.tanh(x + c[0]), 1 * c[2], 1 * c[1])))
