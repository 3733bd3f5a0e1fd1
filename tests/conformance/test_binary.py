"""Binary codes, spikes and binary weights: exact on every target, and without a multiplier where one is not needed."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isobit.export.tvm import products
from isobit.quant.expr.interval import Interval
from isobit.quant.expr.rewrite import multiplies
from isobit.quant.expr.symbols import trace
from isobit.quant.facts import macs, sums
from isobit.quant.interpret import interpret
from isobit.quant.nn import Heaviside, LinearRecurrence
from isobit.quant.ops.matmul import product
from isobit.quant.program import Arrays
from isobit.quant.quantize import Quantized, agreement, program_inputs, quantize
from isobit.quant.recipe import Recipe
from isobit.quant.vectors import golden
from isobit.targets.gpu.driver import NO_GPU
from isobit.targets.hls import expression
from isobit.targets.hls.package import Package
from isobit.targets.hls.target import figures
from isobit.targets.nest import nest
from isobit.targets.target import TARGETS
from isobit.targets.verify import EXACT, NOT_RUN, verify

TOOLS = pytest.mark.needs("gcc", "g++", "arm-none-eabi-gcc", "qemu-system-arm")
CHANNELS, HEADS = 8, 2
CSD = Recipe("csd", weights="csd8k2")


class HammingAttention(nn.Module):
    """Linear attention whose queries and keys are signs of projections (EcoFormer, Liu et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(CHANNELS, CHANNELS) for _ in range(3))
        self.recurrence, self.out = LinearRecurrence(), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        parts = (torch.sign(self.query(x)), torch.sign(self.key(x)), self.value(x))
        q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in parts)
        out: Tensor = self.out(self.recurrence(q, k, v).flatten(-2))
        return out


class HammingAttentionOfChannels(nn.Module):
    """The same inside a time step: codes of heads against codes of heads, then the values."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(CHANNELS, CHANNELS) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (4, 2)) for p in (self.query, self.key, self.value))
        out: Tensor = (torch.sign(q) @ (torch.sign(k).transpose(-1, -2) @ v)).flatten(-2)
        return out


class Spikes(nn.Module):
    """A layer of spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.heaviside, self.after = nn.Linear(CHANNELS, 12), Heaviside(), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(self.heaviside(self.before(x)))
        return out


MODULES = (HammingAttention, HammingAttentionOfChannels, Spikes)


def made(module: Callable[[], nn.Module], recipe: str | Recipe = "w8a8") -> tuple[Quantized, np.ndarray]:
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(2, 24, CHANNELS))
    return quantize(module(), x, recipe, name="binary", t_max=64), x


def assert_exact(module: Callable[[], nn.Module], recipe: str | Recipe, targets: list[str]) -> None:
    assert_same(*made(module, recipe), targets)


def assert_same(q: Quantized, x: np.ndarray, targets: list[str]) -> None:
    vectors = list(golden(q.program, program_inputs(q.program, x), 24))
    for r in verify(q.program, targets, vectors).rows:
        compiled = r.target == "gpu" and (r.status, r.reason) == (NOT_RUN, NO_GPU)
        assert compiled or (r.status == EXACT and r.values > 0), f"{r.target}: {r.reason}\n{r.divergence}"


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("recipe", ["w8a8", "binary-a8"])
@pytest.mark.parametrize("module", MODULES)
def test_binary_codes_are_exact(module: Callable[[], nn.Module], recipe: str) -> None:
    assert_exact(module, recipe, ["interpret", "ort", "c"])


@pytest.mark.needs("g++")
@pytest.mark.parametrize("recipe", ["ternary-a8", CSD], ids=["ternary", "signed digits"])
def test_sums_without_a_multiplier_are_exact(recipe: str | Recipe) -> None:
    """Of codes by values, of values by weights."""
    assert_exact(HammingAttentionOfChannels, recipe, ["hls"])


@pytest.mark.slow
@TOOLS
@pytest.mark.parametrize("recipe", ["w8a8", "binary-a8", "ternary-a8"])
@pytest.mark.parametrize("module", MODULES)
def test_binary_codes_are_exact_on_every_target(module: Callable[[], nn.Module], recipe: str) -> None:
    assert_exact(module, recipe, [*TARGETS])


@pytest.mark.parametrize(
    ("name", "stored"),
    [("binary", (1, 1, 1)), ("binary-g16", (1, 1, 5)), ("ternary", (2, 0, 1)), ("int4-g32", (4, 0, 3)),
     ("int3-g16", (3, 0, 5)), ("mxfp4", (4, 1, 3))],
)  # fmt: skip
def test_weights_in_vector_registers_are_exact(name: str, stored: tuple[int, int, int]) -> None:
    """Sizes that leave rows and columns over.  stored: bits, tables of numbers and blocks."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(2, 24, 67))
    q = quantize(nn.Linear(67, 43), x, Recipe(name, weights=name), name="linear")
    found = products.products(nest(q.program, inside=False)).values()
    assert [(p.storage.bits, p.lookups, p.blocks) for p in found] == [stored]
    assert_same(q, x, ["interpret", "cpu"])


def test_codes_are_the_signs_of_the_float_model() -> None:
    q, x = made(HammingAttention)
    assert {n.op for n in q.program.nodes} >= {"sign", "outer_sum"}
    taps: Arrays = {}
    interpret(q.program, program_inputs(q.program, x), taps=taps)
    codes = [taps[n.output] for n in q.program.nodes if n.op == "sign"]
    assert len(codes) == 2
    assert {int(k) for c in codes for k in np.unique(c)} == {-1, 1}
    share = agreement(q.program, q.graph, x)
    assert share is not None
    assert share > 0.99


@pytest.mark.parametrize(
    ("lo", "hi", "needed"), [(-1, 1, False), (0, 1, False), (-1, -1, False), (-2, 1, True), (-1, 2, True), (0, 3, True)]
)
def test_a_product_is_a_selection_where_an_operand_lies_between_minus_1_and_1(lo: int, hi: int, needed: bool) -> None:
    for operands in ([Interval(-128, 127), Interval(lo, hi)], [Interval(lo, hi), Interval(-128, 127)]):
        traced = trace(product, operands, {})
        assert multiplies(traced) is needed
        assert ("*" in expression.inline(traced, ["a", "b"], {})) is needed


@pytest.mark.parametrize(
    ("recipe", "by"),
    [("binary-a8", "?"), ("ternary-a8", "?"), ("pot-a8", "times_e3m0("), (CSD, "times_csd8k2(")],
    ids=["binary", "ternary", "powers of two", "signed digits"],
)
def test_sums_of_such_weights_have_no_multiplier(recipe: str | Recipe, by: str) -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(2, 8, CHANNELS))
    program = quantize(nn.Linear(CHANNELS, 6), x, recipe, name="linear").program
    exact = quantize(nn.Linear(CHANNELS, 6), x, "w8a8", name="linear").program
    totals = []
    for p in (program, exact):
        node, package = next(n for n in p.nodes if n.op == "matmul"), Package(p)
        lines = [line for line in package.source().splitlines() if re.search(r"^ +\w+ \+= ", line)]
        assert len(lines) == 1
        text = "".join([*lines, *map(package.unit.function_text, package.unit.shifters.values())])
        totals.append(("*" in text, by in lines[0], macs(p, node), sums(p, node), figures(package)["macs"]))
    assert totals == [(False, True, 0, 48, 0), (True, False, 48, 0, 48)]


def test_spikes_and_codes_need_no_multiplier() -> None:
    for module, ops in (
        (Spikes, {"matmul": [96, 0]}),
        (HammingAttentionOfChannels, {"dot": [0, 0]}),
        (HammingAttention, {"outer_sum": [0]}),
    ):
        program = made(module)[0].program
        for op, wanted in ops.items():
            assert [macs(program, n) for n in program.nodes if n.op == op] == wanted
    text = Package(made(Spikes)[0].program).source()
    added = [line.strip() for line in text.splitlines() if re.search(r"^ +\w+ \+= ", line)]
    assert ["*" in line for line in added] == [True, False]
    assert re.fullmatch(r"\w+ \+= \w+\[\w+\] > 0 \? \w+\[\w+\]\[\w+\] : ap_int<8>\(0\);", added[1])
