"""The commands of the command line, one function each."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from isobit.export.onnx.load import load, save
from isobit.quant.errors import InputError
from isobit.quant.lower.edges import quantize_input
from isobit.quant.program import Arrays, Program
from isobit.quant.vectors import Vectors, golden
from isobit.targets.files import write_file
from isobit.targets.target import TARGETS, Options, target
from isobit.targets.verify import Row, Verified, target_names, verify, verify_artifact
from isobit.tools import show
from isobit.tools.data import npz_bytes, read_arrays


def quantize_command(
    model: str,
    weights: Path | None,
    recipe: str,
    calib: Path,
    input_scale: float | None,
    t_max: int,
    name: str,
    out: Path,
    as_json: bool,
) -> None:
    samples = read_arrays(calib, ("x",))["x"]
    if out.suffix != ".onnx":
        raise InputError(f"{out}: expected a file name that ends in .onnx")
    from isobit.quant.capture.factory import load_model
    from isobit.quant.quantize import input_spec, quantize

    with show.progress(as_json) as tell:
        tell(f"load {model}")
        module = load_model(model, weights)
        spec = input_spec(samples, input_scale, str(calib))
        result = quantize(module, samples, recipe, name=name, input=spec, t_max=t_max, progress=tell)
        tell(f"write {out}")
        save(result.program, out)
    facts = {"onnx": str(out), "digest": result.program.digest, "nodes": len(result.program.nodes), **result.info}
    if as_json:
        show.print_json(facts)
    else:
        show.print_table(f"{name}: quantized to {recipe}", ("fact", "value"), list(facts.items()))


def options_of(on: str, arch: str | None = None) -> tuple[str, Options]:
    """`mcu:m4` -> the target's name and its options."""
    name, _, board = on.partition(":")
    target_names(name)
    if board and name != "mcu":
        raise InputError(f"'{on}': only mcu takes a board, as in mcu:m4")
    return name, Options(board=board or None, arch=arch)


def build_command(
    program: Path, target_name: str, board: str | None, arch: str | None, out: Path, as_json: bool
) -> None:
    p = load(program)
    target_names(target_name)
    t = target(target_name)
    t.probe()
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a folder to write to, got a file")
    with tempfile.TemporaryDirectory() as scratch, show.progress(as_json) as tell:
        tell(f"build {target_name}")
        made = t.build(p, Path(scratch), Options(board=board, arch=arch))
        for file in made.files:
            write_file(out / file, (Path(scratch) / file).read_bytes())
    files = [[f, (out / f).stat().st_size] for f in made.files]
    if as_json:
        show.print_json({"target": target_name, "folder": str(out), "files": dict(files)})
    else:
        show.print_table(f"{p.name} for {target_name} in {out}", ("file", "bytes"), files, right=("bytes",))


def verify_command(
    program: Path,
    targets: str,
    board: str | None,
    arch: str | None,
    data: Path | None,
    raw: bool,
    only: str | None,
    package: Path | None,
    require_all: bool,
    as_json: bool,
) -> int:
    p = load(program)
    names = target_names(targets)
    vectors = chosen(list(golden(p, None if data is None else read_input(p, data, raw))), only)
    options = Options(board=board, arch=arch)
    with show.progress(as_json) as tell:
        if package is not None:
            result = (_verify_package(p, names, package, vectors, options),)
        else:
            result = verify(p, names, vectors, options, tell).rows
    if as_json:
        show.print_json({"program": p.name, "digest": p.digest, "targets": [r.json() for r in result]})
    else:
        show.print_verification(f"{p.name}, Program {p.digest[:16]}", result)
    return exit_code(p, result, explicit=targets != "all" or require_all)


def exit_code(program: Program, rows: tuple[Row, ...], explicit: bool) -> int:
    """1 for a mismatch; 2 for a target that did not run, where it was asked for by name; else 0."""
    verified = Verified(program, rows)
    if not verified.equal:
        return 1
    return 2 if explicit and not verified.complete else 0


def _verify_package(p: Program, names: list[str], package: Path, vectors: list[Vectors], options: Options) -> Row:
    from isobit.targets.target import Artifact

    if len(names) != 1:
        raise InputError("--package: name the one target that it was built for with --targets")
    if not package.is_dir():
        raise InputError(f"{package}: expected the folder of a built package")
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as scratch:
        files = target(names[0]).build(p, Path(made), options).files
        missing = [f for f in files if not (package / f).is_file()]
        if missing:
            raise InputError(
                f"{package}: not a package for {names[0]}, {missing[0]} is missing; make it with isobit build"
            )
        return verify_artifact(Artifact(names[0], p, package, files, options), vectors, Path(scratch))


def chosen(vectors: list[Vectors], only: str | None) -> list[Vectors]:
    """The vectors named `name` or `name:sequence`; all of them if None."""
    if only is None:
        return vectors
    name, _, sequence = only.partition(":")
    found = [v for v in vectors if v.name == name]
    if not found:
        raise InputError(f"no vectors named '{name}'; there are {', '.join(v.name for v in vectors)}")
    if not sequence:
        return found
    if not sequence.isdigit() or int(sequence) >= found[0].batch:
        raise InputError(f"'{only}': expected a sequence from 0 to {found[0].batch - 1}")
    return [found[0].select(slice(int(sequence), int(sequence) + 1))]


def read_input(p: Program, data: Path, raw: bool) -> Arrays:
    """Array `x` of a file as the Program's input integers: quantized by the edge rule, or taken as they are with `raw`."""
    (i,) = p.inputs if len(p.inputs) == 1 else (None,)
    if i is None:
        raise InputError(f"{p.name} has {len(p.inputs)} inputs; --data serves models with one")
    return {i.name: to_integers(p, read_arrays(data, ("x",))["x"], raw, str(data))}


def to_integers(p: Program, x: Any, raw: bool, where: str) -> Any:
    i = p.inputs[0]
    expected = (*("T" if d == "T" else d for d in i.type.shape),)
    if x.ndim != len(i.type.shape) + 1 or x.shape[2:] != i.type.dims or 0 in x.shape:
        raise InputError(f"{where}: array x: expected shape (samples, {', '.join(map(str, expected))}), got {x.shape}")
    if raw:
        if not np.issubdtype(x.dtype, np.integer):
            raise InputError(f"{where}: array x: --raw expects integers, got {x.dtype}")
        return x.astype(np.int64)
    assert i.type.scale is not None
    return quantize_input(x, i.type.scale, i.type.elem, where)


def run_command(program: Path, on: str, data: Path, raw: bool, out: Path) -> None:
    p = load(program)
    outputs, states = execute(p, on, read_input(p, data, raw))
    write_file(out, npz_bytes({_array_name(p, k): v for k, v in outputs.items()} | states))
    print(f"{out}: {', '.join([_array_name(p, k) for k in outputs] + list(states))}")


def _array_name(p: Program, output: str) -> str:
    return "y" if len(p.outputs) == 1 else output


def execute(p: Program, on: str, inputs: Arrays) -> tuple[Arrays, Arrays]:
    """Outputs and final states of whole sequences on a target."""
    name, options = options_of(on)
    t = target(name)
    t.probe()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "package").mkdir()
        (Path(folder) / "run").mkdir()
        artifact = t.build(p, Path(folder) / "package", options)
        result = t.start(artifact, Path(folder) / "run", traced=False).run(inputs, None, by_step=False)
    return result.outputs, result.states


def accuracy_command(program: Path, data: Path, on: str, raw: bool, as_json: bool) -> None:
    p = load(program)
    arrays = read_arrays(data, ("x", "y"))
    if len(arrays["x"]) != len(arrays["y"]):
        raise InputError(f"{data}: x has {len(arrays['x'])} samples, y has {len(arrays['y'])} labels")
    outputs, _ = execute(p, on, {p.inputs[0].name: to_integers(p, arrays["x"], raw, str(data))})
    right, total = correct(outputs[p.outputs[0]], arrays["y"]), len(arrays["y"])
    if as_json:
        show.print_json({"on": on, "samples": total, "correct": right, "accuracy": right / total})
    else:
        print(f"{p.name} on {on}: {100 * right / total:.2f} % ({right} of {total})")


def correct(logits: Any, labels: Any) -> int:
    """How often the largest output of the last step is the label's."""
    return int((logits[:, -1].argmax(-1) == labels).sum())


def inspect_command(
    program: Path, data: Path | None, model: str | None, weights: Path | None, raw: bool, as_json: bool
) -> None:
    from isobit.quant.facts import node_facts, totals

    p = load(program)
    rows = node_facts(p)
    ranked: dict[str, float] = {}
    if data is not None:
        if model is None:
            raise InputError("--data compares with the float model: name it with --model, as for quantize")
        ranked = layers_by_snr(p, read_arrays(data, ("x",))["x"], model, weights, raw, str(data))
    if as_json:
        show.print_json({"totals": totals(p), "nodes": [vars(r) for r in rows], "snr_db": ranked})
        return
    columns = ("layer", "op", "value", "bits", "widest", "acc", "MACs", "weights", "state")
    cells = [
        [r.loc, r.op, r.node.removeprefix(f"{r.loc}."), f"{r.bits} in {r.stored}", r.widest, f"{r.used} of {r.acc}" if r.acc else "",
         r.macs or "", r.weights or "", r.state or ""]
        for r in rows
    ]  # fmt: skip
    show.print_table(p.name, columns, cells, right=("widest", "MACs", "weights", "state"))
    show.print_table("", ("total", ""), list(totals(p).items()))
    if ranked:
        show.print_table(
            "Signal-to-noise ratio against float, worst first",
            ("value", "dB"),
            [[k, f"{v:.1f}"] for k, v in ranked.items()],
            right=("dB",),
        )


def layers_by_snr(p: Program, x: Any, model: str, weights: Path | None, raw: bool, where: str) -> dict[str, float]:
    """Node -> signal-to-noise ratio in dB against the float model, worst first."""
    from isobit.quant.capture.capture import capture
    from isobit.quant.capture.factory import load_model
    from isobit.quant.quantize import layer_snr

    to_integers(p, x, raw, where)
    scale = p.inputs[0].type.scale
    real = x * scale if raw else x
    graph = capture(load_model(model, weights), x.shape, p.name)
    return dict(sorted(layer_snr(p, graph, real).items(), key=lambda item: item[1]))


def targets_command(as_json: bool) -> None:
    from isobit.targets.toolchain import ToolMissing

    rows = []
    for name, row in TARGETS.items():
        try:
            here, detail = "yes", target(name).probe()
        except ToolMissing as e:
            here, detail = "no", str(e)
        rows.append({"target": name, "here": here, "what": row.summary, "toolchain": detail})
    if as_json:
        from isobit.targets.mcu.boards import BOARDS

        show.print_json({"targets": rows, "boards": list(BOARDS)})
    else:
        show.print_table("Targets", ("target", "here", "what", "toolchain"), [list(r.values()) for r in rows])


def ops_command(as_json: bool) -> None:
    from isobit.quant.ops import OPS

    rows = [
        {"op": k, "structure": op.structure.name.lower(), "what": op.summary, "cases": len(op.cases)}
        for k, op in OPS.items()
    ]
    if as_json:
        show.print_json(rows)
    else:
        show.print_table(
            "Ops", ("op", "structure", "what", "cases"), [list(r.values()) for r in rows], right=("cases",)
        )


def recipes_command(as_json: bool) -> None:
    from isobit.quant.recipe import RECIPES

    rows = [vars(r) for r in RECIPES.values()]
    if as_json:
        show.print_json(rows)
    else:
        show.print_table("Recipes", list(rows[0]), [list(r.values()) for r in rows])
