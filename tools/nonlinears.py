"""The error table of the nonlinear modes: each function in each mode, lowered as a model's layer, against float64.

Functions of one element are run on every input of 8 and of 16 bits, in one row; softmax and norms on the rows of
`score_rows` and `norm_rows`.  Outputs have 16 bits.  Errors are absolute, of norms relative to the row's largest; with
16-bit inputs, whose outputs may span more than 16 bits resolve, half a unit of the output is not counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from isobit.quant.calibrate.observe import float_outputs, observe
from isobit.quant.capture.graph import Floats, Graph
from isobit.quant.check import check
from isobit.quant.interpret import interpret
from isobit.quant.lower.edges import InputSpec
from isobit.quant.lower.lower import lower
from isobit.quant.ops import CONTRACTION, GATHER
from isobit.quant.program import Array, IntType, Program
from isobit.quant.recipe import MODES, Recipe
from isobit.tools.cells import markdown_table

if TYPE_CHECKING:
    from torch import nn

ROOT = Path(__file__).resolve().parents[1]
STORED = Path(__file__).with_name("nonlinears.json")
PAGE, PLOT = ROOT / "docs" / "nonlinears.md", ROOT / "docs" / "nonlinears.svg"

WIDTHS, EXPONENTS = (8, 16), tuple(range(-8, -1))
"""Bits of the input, and the powers of two that are its scales."""

ROW = 64
"""Elements of a row."""

SPREADS = (0.3, 1.0, 3.0, 10.0)
"""Standard deviations of random scores."""


class Entry(TypedDict):
    """errors: by bits of the input, the largest at each of EXPONENTS.  operations: as `operations` counts them."""

    errors: dict[str, list[float]]
    operations: int


Table = dict[str, dict[str, Entry]]
"""function -> mode -> what was measured."""


@dataclass(frozen=True)
class Function:
    """make: the layer.  rows: its inputs, (rows, ROW) or one row of every code, from (bits, scale)."""

    make: Callable[[], nn.Module]
    rows: Callable[[int, float], Array]
    relative: bool = False


def every_code(bits: int, scale: float) -> Array:
    return np.arange(-(1 << (bits - 1)), 1 << (bits - 1))[None]


def every_code_to_zero(bits: int, scale: float) -> Array:
    return np.arange(-(1 << (bits - 1)), 1)[None]


def score_rows(bits: int, scale: float, size: int = ROW) -> Array:
    """Random scores, and one that is the largest by a distance, up to where its exponential is 2^-24."""
    rng, most = np.random.default_rng(bits), (1 << (bits - 1)) - 1
    drawn = [rng.normal(0, spread / scale, (8, size)) for spread in SPREADS]
    apart = np.unique(np.rint(np.linspace(0, min(2 * most, 17 / scale), 65)))
    far = np.full((len(apart), size), -apart[:, None])
    far[:, 0] = 0
    rows = np.concatenate([*drawn, far + most, np.where(np.arange(size) % 2, far, 0) + most])
    return np.asarray(np.clip(np.rint(rows), -most, most), np.int64)


def norm_rows(bits: int, scale: float, size: int = ROW) -> Array:
    """Random and two-valued rows of standard deviations from one unit up, about zero and about another mean."""
    rng, most = np.random.default_rng(bits), (1 << (bits - 1)) - 1
    drawn = []
    for spread in (1 << k for k in range(bits - 3)):
        random, two = rng.normal(0, spread, (4, size)), np.where(rng.random((2, size)) < 0.5, -spread, spread)
        drawn += [random, random + most // 3, two, two - most // 5]
    rows = np.clip(np.rint(np.concatenate(drawn)), -most, most)
    return np.asarray(rows[rows.std(1) >= 1], np.int64)


def functions() -> Mapping[str, Function]:
    import torch
    from torch import nn

    from isobit.quant.nn import l2norm

    class Of(nn.Module):
        def __init__(self, function: Callable[..., torch.Tensor]) -> None:
            super().__init__()
            self.function = function

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.function(x)

    return {
        "exp": Function(lambda: Of(torch.exp), every_code_to_zero),
        "softmax": Function(lambda: nn.Softmax(-1), score_rows),
        "sigmoid": Function(nn.Sigmoid, every_code),
        "silu": Function(nn.SiLU, every_code),
        "gelu": Function(nn.GELU, every_code),
        "gelu, tanh form": Function(lambda: nn.GELU(approximate="tanh"), every_code),
        "tanh": Function(nn.Tanh, every_code),
        "softplus": Function(nn.Softplus, every_code),
        "layernorm": Function(lambda: nn.LayerNorm(ROW), norm_rows, relative=True),
        "rmsnorm": Function(lambda: nn.RMSNorm(ROW, eps=1e-6), norm_rows, relative=True),
        "l2norm": Function(lambda: Of(lambda x: l2norm(x, 1e-6)), norm_rows, relative=True),
    }


def captured(function: Function, bits: int) -> Graph:
    """The layer as a float graph, for the rows of one width: a row is a time step."""
    from isobit.quant.capture.capture import capture

    return capture(function.make().eval(), (1, *function.rows(bits, 1.0).shape), "layer")


def lowered(function: Function, graph: Graph, mode: str, bits: int, exponent: int) -> tuple[Array, Floats, Program]:
    """Codes, their real values, and the layer's Program."""
    scale = 2.0**exponent
    codes = function.rows(bits, scale)
    real: Floats = codes[None].astype(np.float64) * scale
    ranges, spec = observe(graph, real), InputSpec(IntType(bits), scale)
    return codes, real, lower(graph, ranges, Recipe(mode, nonlinear=mode), "layer", spec, 1)


def operations(program: Program) -> int:
    """In the expression graphs of the nodes that have a value, or a term of a sum, for every element."""
    checked = check(program)
    whole = checked.types[program.inputs[0].name].size
    found = 0
    for n in program.nodes:
        if whole in (checked.types[n.output].size, checked.types[n.inputs[0]].size):
            found += sum(v.op not in ("var", "const", "bound") for v in checked.bodies[n.output].nodes)
            found += n.spec.structure in (CONTRACTION, GATHER)
    return found


def error(function: Function, graph: Graph, mode: str, bits: int, exponent: int) -> float:
    """The largest, in four digits."""
    codes, real, program = lowered(function, graph, mode, bits, exponent)
    got = interpret(program, {program.inputs[0].name: codes[None]})[0][program.outputs[0]]
    unit = check(program).types[program.outputs[0]].scale
    assert unit is not None
    truth = float_outputs(graph, real)
    off = np.abs(got * unit - truth)
    if bits > 8:
        off = np.maximum(off - unit / 2, 0)
    if function.relative:
        off = off / np.abs(truth).max(-1, keepdims=True)
    return float(f"{off.max():.3e}")


def measure(progress: Callable[[str], None] = lambda _: None) -> Table:
    """Every function, mode, width and scale."""
    table: Table = {}
    for name, function in functions().items():
        graphs = {bits: captured(function, bits) for bits in WIDTHS}
        table[name] = {}
        for mode in MODES:
            progress(f"{name} in mode {mode}")
            errors = {str(bits): [error(function, graphs[bits], mode, bits, e) for e in EXPONENTS] for bits in WIDTHS}
            program = lowered(function, graphs[16], mode, 16, -8)[-1]
            table[name][mode] = {"errors": errors, "operations": operations(program)}
    return table


def cells(table: Table) -> Iterator[list[str]]:
    """Rows of text: the largest error over the scales, by mode, for inputs of 8 and of 16 bits."""
    for name, modes in table.items():
        yield [name, *(f"{max(found):.2g}" for mode in MODES for found in modes[mode]["errors"].values())]


COLUMNS = ("function", *(f"{mode}, {bits} bits" for mode in MODES for bits in WIDTHS))


def markdown(table: Table) -> str:
    """Errors, and operations an element, for the page."""
    counts = ([name, *(str(modes[mode]["operations"]) for mode in MODES)] for name, modes in table.items())
    return "\n".join(
        [
            markdown_table(COLUMNS, cells(table)),
            "Operations an element, of a 16-bit input at a scale of 2^-8; what a row shares is not counted:\n",
            markdown_table(["function", *MODES], counts),
        ]
    )


def plot(table: Table, path: Path) -> None:
    """Error against scale; the same table gives the same bytes."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    with mpl.rc_context({"svg.hashsalt": "isobit", "svg.fonttype": "none", "font.size": 8}):
        figure, axes = plt.subplots(3, 4, figsize=(12, 8), sharex=True, layout="constrained")
        for axis, (name, modes) in zip(axes.flat, table.items(), strict=False):
            for color, mode in zip(("C0", "C3", "C1", "C2"), MODES, strict=True):
                for bits, line in (("8", "-"), ("16", "--")):
                    values = np.maximum(modes[mode]["errors"][bits], 1e-6)
                    axis.semilogy(EXPONENTS, values, line, color=color, label=f"{mode}, {bits} bits")
            axis.set_title(name)
            axis.grid(alpha=0.3)
        for axis in axes.flat[len(table) :]:
            axis.axis("off")
            axis.legend(*axes.flat[0].get_legend_handles_labels(), loc="center", ncols=2, frameon=False)
        figure.supxlabel("scale of the input, as a power of two")
        figure.supylabel("largest error")
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def load() -> Table:
    """The stored Table."""
    table: Table = json.loads(STORED.read_text())
    return table
