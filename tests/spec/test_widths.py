"""Widths of single layers, and the scale that every row of a matrix state has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isobit.quant.capture.graph import Floats
from isobit.quant.errors import InputError
from isobit.quant.interpret import interpret
from isobit.quant.nn import DeltaRecurrence, LinearRecurrence
from isobit.quant.program import Program
from isobit.quant.quantize import Quantized, program_inputs, quantize
from isobit.quant.recipe import Recipe

X = np.random.default_rng(0).normal(size=(4, 32, 6))


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def widths(program: Program) -> dict[str, tuple[str, str]]:
    """By layer: the element types of its operand and of its weight."""
    types = {i.name: i.type.elem for i in program.inputs} | {c.name: c.type.elem for c in program.constants}
    clipped = {n.output: f"i{n.param['hi'].bit_length() + 1}" for n in program.nodes if "hi" in n.param}
    return {
        n.loc: (clipped.get(n.inputs[0], str(types.get(n.inputs[0]))), str(types[n.inputs[1]]))
        for n in program.nodes
        if n.op == "matmul"
    }


def test_layers_have_widths_of_their_own() -> None:
    recipe = Recipe("r", layers={"[24]": {"act_bits": 16}, "4": {"weights": "int3"}})
    got = widths(quantize(mlp(), X, recipe, name="mlp").program)
    assert got == {"0": ("i8", "i8"), "2": ("i16", "i8"), "4": ("i8", "i3")}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"2": {"act_bits": 20}}, "recipe r, layers '2': act_bits is 20, expected 2 to 16"),
        ({"2": {"bits": 8}}, "recipe r, layers '2': there is no bits; there are weights, activations, multiplier"),
        ({"encoder.*": {"act_bits": 16}}, r"recipe r: no layer matches 'encoder\.\*'; the layers are 0, 1, 2"),
    ],
)
def test_wrong_layers_are_named(layers: dict[str, dict[str, int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quantize(mlp(), X, Recipe("r", layers=layers), name="mlp")


class UnevenRows(nn.Module):
    """A matrix state whose 6 rows differ in size by up to 2^5; its readout is the output.

    The gate is the decay of the linear recurrence, the step size of the delta rule.
    """

    def __init__(self, delta: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.qk, self.size = nn.Linear(6, 8), nn.Parameter(2.0 ** -torch.arange(6.0))
        self.gate, self.recurrence = nn.Linear(6, 1), DeltaRecurrence() if delta else LinearRecurrence()

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.qk(x).unsqueeze(2).chunk(2, dim=-1)
        out: Tensor = self.recurrence(q, 0.5 * k, (x * self.size).unsqueeze(2), torch.sigmoid(self.gate(x)))
        return out.squeeze(2)


def row_noise(q: Quantized, module: nn.Module, x: Floats) -> Floats:
    """Of every channel of the recurrence's accumulator, before it gets one scale for the tensor: noise over power."""
    taps: dict[str, np.ndarray] = {}
    interpret(q.program, program_inputs(q.program, x), taps=taps)
    acc = next(n for n in q.program.nodes if n.op in ("linear_recurrence", "outer_step"))
    with torch.no_grad():
        real = module(torch.from_numpy(x).float()).double().numpy()
    codes = taps[acc.output].reshape(real.shape)
    fitted = codes * ((codes * real).sum((0, 1)) / (codes * codes).sum((0, 1)))
    return np.asarray(((fitted - real) ** 2).sum((0, 1)) / (real**2).sum((0, 1)))


@pytest.mark.parametrize("delta", [False, True])
def test_a_small_row_of_a_state_is_as_exact_as_a_large_one(delta: bool) -> None:
    module = UnevenRows(delta)
    noise = row_noise(quantize(module, X, Recipe("r", act_bits=16, state_bits=10), name="rows"), module, X)
    assert noise.max() < 4 * np.median(noise)
