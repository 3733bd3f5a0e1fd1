"""`isobit inspect` and `certify`: what a program holds, where it loses accuracy, and what bounds its states."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from isobit.export.onnx.load import load
from isobit.quant.certificates.recheck import recheck
from isobit.quant.errors import InputError
from isobit.quant.facts import NodeFacts, StateFacts, node_facts, state_facts, totals
from isobit.quant.program import Program
from isobit.tools import show
from isobit.tools.data import only_input, read_arrays, takes_identifiers, to_integers

COLUMNS = ("layer", "op", "value", "bits", "widest", "MACs", "weights", "state")
STATE_COLUMNS = ("layer", "op", "width", "bound", "joint in", "bits", "by intervals", "saved")
STATE_LEGEND = "recurrent states with the bits of their bound, of one by intervals alone, and saved (mean)"
LEGEND = "bits needed/stored; widest intermediate in bits; MACs per step; weights and state in bytes"


def inspect_command(
    program: Path, data: Path | None, model: str | None, weights: Path | None, t_max: int, raw: bool, as_json: bool
) -> None:
    p = load(program)
    if data is not None and model is None:
        raise InputError("--data compares with the float model: name it with --model, as for quantize")
    ratios = layers_by_snr(p, data, model, weights, t_max, raw) if data and model else {}
    rows, states, sums = node_facts(p), state_facts(p), totals(p)
    if as_json:
        held = [vars(s) | {"verdict": s.verdict} for s in states]
        show.print_json({"totals": sums, "nodes": [vars(r) for r in rows], "states": held, "snr_db": ratios})
        return
    show.print_table(f"{p.name}: {LEGEND}", COLUMNS, [_cells(r) for r in rows], right=COLUMNS[3:])
    if states:
        print()
        show.print_table(STATE_LEGEND, STATE_COLUMNS, [_state_cells(s) for s in states], right=STATE_COLUMNS[5:])
    print()
    show.print_table("", ("", ""), list(sums.items()))
    if ratios:
        cells = [[k, "exact" if v is None else f"{v:.1f}"] for k, v in ratios.items()]
        print()
        show.print_table("signal-to-noise ratio against float, worst first", ("value", "dB"), cells, right=("dB",))


def certify_command(program: Path, as_json: bool) -> None:
    p = load(program)
    if not p.certificates:
        raise InputError(f"{program}: it carries no certificates; isobit quantize writes them")
    with show.progress(as_json) as tell:
        recheck(p, tell)
    states = state_facts(p)
    if as_json:
        held = [vars(s) | {"verdict": s.verdict} for s in states]
        show.print_json({"program": p.name, "digest": p.digest, "hold": len(p.certificates), "states": held})
        return
    title = f"{p.name}: {len(p.certificates)} certificates hold; {STATE_LEGEND}"
    show.print_table(title, STATE_COLUMNS, [_state_cells(s) for s in states], right=STATE_COLUMNS[5:])


def _cells(r: NodeFacts) -> list[object]:
    value = r.node.rpartition(".")[2] if r.node == r.loc else r.node.removeprefix(f"{r.loc}.")
    return [r.loc, r.op, value, f"{r.bits}/{r.stored}", r.widest, r.macs or None, r.weights or None, r.state or None]


def _state_cells(s: StateFacts) -> list[object]:
    saved = None if s.saved is None else f"{s.saved:.1f}"
    return [s.loc, s.op, s.width, s.verdict, s.step or None, s.bits, s.interval_bits, saved]


def layers_by_snr(
    p: Program, data: Path, model: str, weights: Path | None, t_max: int, raw: bool
) -> dict[str, float | None]:
    """Node -> signal-to-noise ratio in dB against the float model, worst first; None where there is no noise."""
    x, where = read_arrays(data, ("x",))["x"], f"{data}: array x"
    to_integers(p, x, raw, where)
    scale = None if takes_identifiers(p) else only_input(p).type.scale
    from isobit.quant.calibrate.observe import check_samples
    from isobit.quant.capture.brevitas import example, without_quantizers
    from isobit.quant.capture.capture import capture
    from isobit.quant.capture.factory import load_model
    from isobit.quant.quantize import layer_snr

    with show.aside():
        module = load_model(model, weights, t_max, show.note)
        plain = without_quantizers(module, example(module, np.asarray(x, np.float64)))
        graph = capture(plain, x.shape, p.name, ids=x.ndim == 2)
    stranger = InputError(f"{p.name} was not made from {model}: their layers differ; name the model it was made from")
    if not {n.loc for n in p.nodes} <= {n.loc for n in graph.nodes}:
        raise stranger
    try:
        ratios = layer_snr(p, graph, check_samples(x * scale if raw and scale else x, graph, where))
    except ValueError:
        raise stranger from None
    worst_first = sorted(ratios.items(), key=lambda item: item[1])
    return {k: v if math.isfinite(v) else None for k, v in worst_first}
