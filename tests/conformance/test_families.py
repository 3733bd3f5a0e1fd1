"""Every family of the zoo: exact on every target at both sizes, and close to the float model; decisions, forced."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isobit.quant.calibrate.observe import check_samples
from isobit.quant.errors import InputError
from isobit.quant.interpret import interpret
from isobit.quant.nn import LIF, heaviside, top_k_mask
from isobit.quant.program import Arrays, Input, Program, TensorType, int_type
from isobit.quant.quantize import Quantized, agreement, layer_snr, program_inputs, quantize
from isobit.quant.recipe import Recipe
from isobit.quant.vectors import golden
from isobit.quant.zoo.families import FAMILIES
from isobit.targets.gpu.driver import NO_GPU
from isobit.targets.target import TARGETS
from isobit.targets.verify import EXACT, NOT_RUN, verify
from isobit.tools.families import BARS, SEQUENCES, SIZES, Figures, fidelity, load, markdown, quantized, shape_of
from isobit.tools.status_table import with_block
from tests.families import assert_exact, groups
from tests.models import Builder

ROOT = Path(__file__).resolve().parents[2]
TOOLS = pytest.mark.needs("gcc", "g++", "arm-none-eabi-gcc", "qemu-system-arm")
TOGETHER = [t for t in TARGETS if t not in ("cpu", "gpu")]
"""Targets that build a group at once; LLVM and NVRTC take longer for one large function than for several small ones."""

QUICK = ["interpret", "ort", "c"]
"""Targets of the default suite, for which a family is compiled in seconds."""

OTHERS = [t for t in TARGETS if t not in QUICK]

SHORT = 64
"""Steps of the noise in the default suite."""


each_group = pytest.mark.parametrize("families", list(groups()), ids=lambda names: f"{names[0]}..{names[-1]}")


def short(family: str, size: str, recipe: str | Recipe = "w8a8") -> Quantized:
    return quantized(family, size, recipe, steps=SHORT, calibration=SEQUENCES)


def below(figures: Figures, bar: float) -> Figures | None:
    """Figures whose outputs, or a recurrence within, are further from float than the bar allows."""
    within = figures["recurrence"]
    return figures if figures["snr"] < bar or (within is not None and within < BARS["w8a8"]) else None


@pytest.mark.needs("gcc")
@each_group
def test_the_tiny_size_is_exact_in_onnx_and_c_and_close_to_float(families: tuple[str, ...]) -> None:
    made = {f: short(f, "tiny") for f in families}
    found = {f: below(fidelity(q, shape_of(f, "tiny"), steps=SHORT), BARS["w8a8"]) for f, q in made.items()}
    assert {f: figures for f, figures in found.items() if figures} == {}
    assert_exact(made, "tiny", QUICK)


@pytest.mark.slow
@TOOLS
@each_group
@pytest.mark.parametrize("size", SIZES)
def test_both_sizes_are_exact_on_every_target(size: str, families: tuple[str, ...]) -> None:
    made = {f: short(f, size) for f in families}
    assert_exact(made, size, [t for t in TOGETHER if size != "tiny" or t not in QUICK])
    for f, q in made.items():
        assert_exact({f: q}, size, ["cpu", "gpu"])


RECURRENT = ("Mamba", "GLA", "DeltaNet", "RWKV-4"), ("LSTM", "GRU", "minGRU", "S4D")
NOT_RECURRENT = re.compile(r"\.ring$|\.time_shift\.state$|^clock\.")
"""States that keep an operand, or a count, of the width that it has."""


@TOOLS
@pytest.mark.parametrize("targets", [QUICK, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["quick", "others"])
@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("families", RECURRENT, ids=lambda names: f"{names[0]}..{names[-1]}")
def test_states_of_8_and_of_32_bits(families: tuple[str, ...], bits: int, targets: list[str]) -> None:
    made = {f: short(f, "odd", Recipe(f"state{bits}", state_bits=bits)) for f in families}
    for f, q in made.items():
        widths = {s.type.elem.bits for s in q.program.states if not NOT_RECURRENT.search(s.name)}
        assert widths == {bits}, f
        assert fidelity(q, shape_of(f, "odd"), steps=SHORT)["snr"] >= BARS["w8a8"]
    assert_exact(made, "odd", targets)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_signal_to_noise_ratio_against_float(family: str, size: str) -> None:
    """One seed for each size; `make status` measures all of them."""
    seed = SIZES.index(size)
    for recipe, bar in BARS.items():
        assert below(fidelity(quantized(family, size, recipe, seed), shape_of(family, size), seed), bar) is None


def test_the_stored_table_has_every_family_exact_and_above_the_bars() -> None:
    table = load()
    assert list(table) == list(FAMILIES), "run `make status`"
    for family, sizes in table.items():
        assert tuple(sizes) == SIZES
        for entry in sizes.values():
            assert list(entry["targets"]) == list(TARGETS)
            assert {c["status"] for name, c in entry["targets"].items() if name != "gpu"} == {EXACT}, family
            gpu = entry["targets"]["gpu"]
            assert gpu["status"] == EXACT or (gpu["status"], gpu["reason"]) == (NOT_RUN, NO_GPU)
            assert {recipe: below(entry["fidelity"][recipe], bar) for recipe, bar in BARS.items()} == dict.fromkeys(
                BARS
            )


def test_the_readme_shows_the_stored_table() -> None:
    readme = (ROOT / "README.md").read_text()
    assert with_block(readme, markdown(load()), "families") == readme, "run `make status`"


class Spiking(nn.Module):
    """A spiking neuron between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.neuron, self.after = nn.Linear(5, 7), LIF(), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(self.neuron(self.before(3 * x)))
        return out


class Routed(nn.Module):
    """The two largest of a layer's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y * top_k_mask(y, 2)


class Stepped(Routed):
    """Nothing but decisions."""

    def forward(self, x: Tensor) -> Tensor:
        return heaviside(self.layer(x))


DECIDING = [Spiking, Routed, Stepped]


def deciding(make: type[nn.Module]) -> tuple[Quantized, np.ndarray]:
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(4, 64, 5))
    made = quantize(make(), x, name="m")
    return made, check_samples(x, made.graph)


@pytest.mark.parametrize("make", DECIDING)
def test_forced_decisions_are_those_of_the_float_model(make: type[nn.Module]) -> None:
    made, x = deciding(make)
    free, forced = (layer_snr(made.program, made.graph, x, forced) for forced in (False, True))
    made_by = [n.output for n in made.program.nodes if n.op in ("heaviside", "at_most")]
    assert {forced[name] for name in made_by} == {np.inf}
    share = agreement(made.program, made.graph, x)
    assert share is not None
    assert 0.9 < share <= 1
    assert (share == 1) == all(free[name] == np.inf for name in made_by)
    assert forced["y"] >= free["y"]


def test_a_model_that_does_not_decide_has_no_agreement() -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(2, 8, 3))
    made = quantize(nn.Linear(3, 3), x, name="m")
    assert agreement(made.program, made.graph, check_samples(x, made.graph)) is None
    assert layer_snr(made.program, made.graph, x, forced=True) == layer_snr(made.program, made.graph, x)


def test_a_forced_value_acts_from_its_step_on() -> None:
    made, x = deciding(Spiking)
    program, inputs = made.program, program_inputs(made.program, x)
    assert program.regions, "the neuron feeds back"
    taps: Arrays = {}
    outputs, states = interpret(program, inputs, taps=taps)
    chosen = {n.output: taps[n.output] for n in program.nodes if n.op in ("heaviside", "at_most")}
    assert len(chosen) == 2
    again, same = interpret(program, inputs, forced=chosen)
    assert np.array_equal(again["y"], outputs["y"])
    assert all(np.array_equal(same[k], s) for k, s in states.items())

    flipped = {k: a.copy() for k, a in chosen.items()}
    for a in flipped.values():
        a[:, 20] = 1 - a[:, 20]
    seen: Arrays = {}
    other, _ = interpret(program, inputs, taps=seen, forced=flipped)
    assert all(np.array_equal(seen[k], a) for k, a in flipped.items())
    assert np.array_equal(other["y"][:, :20], outputs["y"][:, :20])
    assert not np.array_equal(other["y"][:, 20], outputs["y"][:, 20])
    charged = next(n.inputs[0] for n in program.nodes if n.op == "heaviside")
    assert np.array_equal(seen[charged][:, :21], taps[charged][:, :21])
    assert not np.array_equal(seen[charged][:, 21], taps[charged][:, 21])


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("m.nothing", np.zeros((4, 64, 6), int), "no node of this name"),
        ("m", np.zeros((4, 63, 6), int), r"expected integers \(4, 64, 6\), got int64 \(4, 63, 6\)"),
        ("m", np.zeros((4, 64, 6)), "got float64"),
        ("m", np.full((4, 64, 6), 2), r"expected values in \[0, 1\], got \[2, 2\]"),
    ],
)
def test_what_cannot_be_forced_is_refused(name: str, array: np.ndarray, message: str) -> None:
    made, x = deciding(Stepped)
    with pytest.raises(InputError, match=message):
        interpret(made.program, program_inputs(made.program, x), forced={name: array})


def test_a_state_cannot_be_forced() -> None:
    made, x = deciding(Spiking)
    owner = next(n.output for n in made.program.nodes if n.state)
    with pytest.raises(InputError, match="holds no state"):
        interpret(made.program, program_inputs(made.program, x), forced={owner: np.zeros((4, 64, 7), int)})


@pytest.mark.parametrize("target", [pytest.param(t, marks=TOOLS) for t in TARGETS if t != "gpu"])
def test_values_may_be_named_like_loop_indices(target: str) -> None:
    """A layer at every y and x, of input x and output y."""
    torch.manual_seed(0)
    program = quantize(nn.Conv2d(2, 3, 1), np.random.default_rng(0).normal(size=(2, 2, 4, 5)), name="m").program
    assert (program.inputs[0].name, program.outputs) == ("x", ("y",))
    assert {"y", "x"} <= set(program.nodes[0].labels.output)
    (row,) = verify(program, [target], list(golden(program, steps=2))).rows
    assert row.status == EXACT, f"{row.reason}\n{row.divergence}"


@TOOLS
def test_a_stack_larger_than_the_board_s_is_said_not_run() -> None:
    b, size = Builder("wide", 0), 600_000
    padded = b.node("pad", "tc->td", ["x"], "pad.y", before=0, after=size - 4, fill=7)
    most = b.node("reduce_max", "td->t", [padded], "most.y", acc=32)
    x = Input("x", TensorType(("T", 4), int_type("i8")))
    program = Program("wide", (x,), (), (), tuple(b.nodes), (most,))
    (row,) = verify(program, ["mcu"], list(golden(program, steps=2))).rows
    assert (row.status, row.values) == (NOT_RUN, 0)
    assert "of stack, board m4 has 524,288 B" in row.reason
