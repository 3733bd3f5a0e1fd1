"""`isobit inspect`: what a program holds, and with data where it loses accuracy."""

from __future__ import annotations

import math
from pathlib import Path

from isobit.export.onnx.load import load
from isobit.quant.errors import InputError
from isobit.quant.facts import NodeFacts, node_facts, totals
from isobit.quant.program import Program
from isobit.tools import show
from isobit.tools.data import only_input, read_arrays, to_integers

COLUMNS = ("layer", "op", "value", "bits", "widest", "MACs", "weights", "state")
LEGEND = "bits needed/stored; widest intermediate in bits; MACs per step; weights and state in bytes"


def inspect_command(
    program: Path, data: Path | None, model: str | None, weights: Path | None, raw: bool, as_json: bool
) -> None:
    p = load(program)
    if data is not None and model is None:
        raise InputError("--data compares with the float model: name it with --model, as for quantize")
    ratios = layers_by_snr(p, data, model, weights, raw) if data and model else {}
    rows, sums = node_facts(p), totals(p)
    if as_json:
        show.print_json({"totals": sums, "nodes": [vars(r) for r in rows], "snr_db": ratios})
        return
    show.print_table(f"{p.name}: {LEGEND}", COLUMNS, [_cells(r) for r in rows], right=COLUMNS[3:])
    print()
    show.print_table("", ("", ""), list(sums.items()))
    if ratios:
        cells = [[k, "exact" if v is None else f"{v:.1f}"] for k, v in ratios.items()]
        print()
        show.print_table("signal-to-noise ratio against float, worst first", ("value", "dB"), cells, right=("dB",))


def _cells(r: NodeFacts) -> list[object]:
    value = r.node.rpartition(".")[2] if r.node == r.loc else r.node.removeprefix(f"{r.loc}.")
    return [r.loc, r.op, value, f"{r.bits}/{r.stored}", r.widest, r.macs or None, r.weights or None, r.state or None]


def layers_by_snr(p: Program, data: Path, model: str, weights: Path | None, raw: bool) -> dict[str, float | None]:
    """Node -> signal-to-noise ratio in dB against the float model, worst first; None where there is no noise."""
    x = read_arrays(data, ("x",))["x"]
    to_integers(p, x, raw, f"{data}: array x")
    scale = only_input(p).type.scale
    from isobit.quant.capture.capture import capture
    from isobit.quant.capture.factory import load_model
    from isobit.quant.quantize import layer_snr

    with show.aside():
        graph = capture(load_model(model, weights), x.shape, p.name)
    stranger = InputError(f"{p.name} was not made from {model}: their layers differ; name the model it was made from")
    if not {n.loc for n in p.nodes} <= {n.loc for n in graph.nodes}:
        raise stranger
    try:
        ratios = layer_snr(p, graph, x * scale if raw else x)
    except ValueError:
        raise stranger from None
    worst_first = sorted(ratios.items(), key=lambda item: item[1])
    return {k: v if math.isfinite(v) else None for k, v in worst_first}
