"""The commands of the command line that work on a program, one function each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from isobit.export.onnx.load import load, save
from isobit.quant.calibrate.observe import check_array
from isobit.quant.errors import InputError, IsobitError
from isobit.quant.program import Arrays, Program
from isobit.quant.recipe import with_layers
from isobit.quant.recipe_file import recipe_of
from isobit.quant.vectors import Vectors, golden
from isobit.targets.mcu.target import board_of
from isobit.targets.target import Artifact, NotHere, Options, target
from isobit.targets.verify import EXACT, MISMATCH, Row, target_names, verify, verify_artifact
from isobit.tools import show
from isobit.tools.data import read_arrays, read_input, read_labelled, write_arrays
from isobit.tools.paths import check_output_file, check_output_folder, write_folder


def quantize_command(
    model: str,
    weights: Path | None,
    recipe: str,
    layers: tuple[str, ...],
    calib: Path,
    input_scale: float | None,
    t_max: int,
    name: str | None,
    out: Path,
    as_json: bool,
) -> None:
    if out.suffix != ".onnx":
        raise InputError(f"{out}: expected a file name that ends in .onnx")
    check_output_file(out)
    samples = read_arrays(calib, ("x",))["x"]
    check_array(samples, f"{calib}: array x")
    widths = with_layers(recipe_of(recipe), layers)
    from isobit.quant.capture.factory import load_model, name_of
    from isobit.quant.quantize import input_spec, quantize

    with show.progress(as_json) as tell, show.aside():
        tell(f"load {model}")
        module = load_model(model, weights, t_max, show.note)
        if samples.ndim == 2 and input_scale is not None:
            raise InputError(f"{calib}: array x of shape {samples.shape} is identifiers, which have no --input-scale")
        spec = input_spec(samples, input_scale, str(calib))
        name = name or name_of(model)
        try:
            result = quantize(module, samples, widths, name=name, input=spec, t_max=t_max, progress=tell)
        except InputError as e:
            raise InputError(f"{model} with {calib}, array x of shape {samples.shape}: {e}") from e
        tell(f"write {out}")
        out.parent.mkdir(parents=True, exist_ok=True)
        save(result.program, out)
    facts = {"onnx": str(out), "digest": result.program.digest, "nodes": len(result.program.nodes), **result.info}
    if as_json:
        show.print_json(facts | ({"quantizers": [vars(r) for r in result.trained]} if result.trained else {}))
        return
    show.print_table(f"{name}: quantized to {recipe}", ("", ""), list(facts.items()))
    if differing := [r for r in result.trained if r.differ or not r.values]:
        columns = ("quantizer", "integers", "differ from Brevitas'", "by at most", "because")
        rows = [(r.quantizer, r.values, r.differ, r.largest, r.why) for r in differing]
        show.print_table("", columns, rows, right=columns[1:4])


def chosen_options(names: list[str], board: str | None, arch: str | None) -> Options:
    """Options that mean something to the targets named."""
    options = Options(board=board, arch=arch)
    if board is not None:
        if "mcu" not in names:
            raise InputError(f"board '{board}': only target mcu has boards, not {', '.join(names)}")
        board_of(options)
    if arch is not None and len([n for n in names if n in ("cpu", "gpu")]) != 1:
        raise InputError(f"architecture '{arch}': name the one target it is for, cpu or gpu")
    return options


def build_command(
    program: Path, target_name: str, board: str | None, arch: str | None, out: Path, as_json: bool
) -> None:
    p, t = load(program), target(target_name)
    options = chosen_options([target_name], board, arch)
    check_output_folder(out)
    with tempfile.TemporaryDirectory() as scratch, show.progress(as_json) as tell:
        tell(f"build {target_name}")
        files = t.build(p, Path(scratch), options).files
        if not files:
            raise InputError(f"{target_name} has no files to build: it runs the program itself, as isobit run does")
        write_folder(out, Path(scratch), files)
    sizes = {f: (out / f).stat().st_size for f in files}
    if as_json:
        show.print_json({"target": target_name, "folder": str(out), "files": sizes})
    else:
        title = f"{p.name} for {target_name} in {out}"
        show.print_table(title, ("file", "bytes"), list(sizes.items()), right=("bytes",))


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
    p, names = load(program), target_names(targets)
    options = chosen_options(names, board, arch)
    real = None if data is None else read_input(p, data, raw)
    vectors = chosen_vectors(list(golden(p, real)), only)
    with show.progress(as_json) as tell:
        if package is not None:
            rows: tuple[Row, ...] = (_verify_package(p, names, package, vectors, options, tell),)
        else:
            rows = verify(p, names, vectors, options, tell).rows
    if as_json:
        show.print_json({"program": p.name, "digest": p.digest, "targets": [r.json() for r in rows]})
    else:
        show.print_verification(f"{p.name}, Program {p.digest[:16]}", rows)
    return exit_code(rows, explicit=targets != "all" or require_all)


def exit_code(rows: tuple[Row, ...], explicit: bool) -> int:
    """1 for a mismatch; 2 for a target that did not run, where it was asked for by name; else 0."""
    statuses = {r.status for r in rows}
    if MISMATCH in statuses:
        return 1
    return 2 if explicit and statuses != {EXACT} else 0


def _verify_package(
    p: Program,
    names: list[str],
    package: Path,
    vectors: list[Vectors],
    options: Options,
    tell: Callable[[str], None],
) -> Row:
    if len(names) != 1:
        raise InputError("--package: name the one target that it was built for with --targets")
    if not package.is_dir():
        raise InputError(f"{package}: expected the folder of a built package; make it with isobit build")
    (name,) = names
    t = target(name)
    t.probe()
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as scratch:
        tell(f"{name}: list the package's files")
        files = t.build(p, Path(made), options).files
        if not files:
            raise InputError(f"--package: {name} has none, it runs the program itself")
        if missing := [f for f in files if not (package / f).is_file()]:
            raise InputError(f"{package}: not a package for {name}, {missing[0]} is missing; make it with isobit build")
        try:
            return verify_artifact(Artifact(name, p, package, files, options), vectors, Path(scratch), tell)
        except IsobitError:
            raise
        except Exception as e:
            # A runtime's own words for a file that it cannot load.
            raise InputError(f"{package}: {name} cannot run it: {e}; make it again with isobit build") from e


def chosen_vectors(vectors: list[Vectors], only: str | None) -> list[Vectors]:
    """The vectors named `name`, or one sequence of them, `name:sequence`; all if None."""
    if only is None:
        return vectors
    name, colon, sequence = only.partition(":")
    found = next((v for v in vectors if v.name == name), None)
    if found is None:
        hint = "" if name != "real" else "; real samples come with --data"
        raise InputError(f"there are no vectors '{name}'; there are {', '.join(v.name for v in vectors)}{hint}")
    if not colon:
        return [found]
    if not sequence.isdecimal() or int(sequence) >= found.batch:
        raise InputError(f"vectors '{only}': expected a sequence from 0 to {found.batch - 1}, as in {name}:0")
    return [found.select(slice(int(sequence), int(sequence) + 1))]


def run_command(program: Path, on: str, data: Path, raw: bool, out: Path) -> None:
    p = load(program)
    check_output_file(out)
    outputs, states = execute(p, on, read_input(p, data, raw))
    named = {"y": outputs[p.outputs[0]]} if len(p.outputs) == 1 else outputs
    write_arrays(out, named | states)
    rows = [[k, " x ".join(map(str, v.shape))] for k, v in (named | states).items()]
    show.print_table(f"{out}: {p.name} on {on}", ("array", "shape"), rows)


def accuracy_command(program: Path, data: Path, on: str, raw: bool, as_json: bool) -> None:
    p = load(program)
    inputs, labels = read_labelled(p, data, raw)
    outputs, _ = execute(p, on, inputs)
    right, total = correct(outputs[p.outputs[0]], labels), len(labels)
    if as_json:
        show.print_json({"on": on, "samples": total, "correct": right, "accuracy": right / total})
    else:
        print(f"{p.name} on {on}: {100 * right / total:.2f} % ({right} of {total})")


def correct(logits: npt.NDArray[np.number], labels: npt.NDArray[np.integer]) -> int:
    """How often the largest output of the last step is the label's."""
    return int((logits[:, -1].argmax(-1) == labels).sum())


def execute(p: Program, on: str, inputs: Arrays) -> tuple[Arrays, Arrays]:
    """Outputs and final states of whole sequences on a target, named as in `cpu` or `mcu:m4`."""
    name, _, board = on.partition(":")
    t = target(name)
    options = chosen_options([name], board or None, None)
    t.probe()
    with tempfile.TemporaryDirectory() as folder, show.progress(as_json=False) as tell:
        package, scratch = Path(folder, "package"), Path(folder, "run")
        package.mkdir()
        scratch.mkdir()
        tell(f"{on}: build")
        artifact = t.build(p, package, options)
        try:
            session = t.start(artifact, scratch, traced=False)
        except NotHere as e:
            raise InputError(f"{on} cannot run here: {e}; isobit targets shows what can") from e
        samples, steps = next(iter(inputs.values())).shape[:2]
        tell(f"{on}: run {samples} sequences of {steps} steps")
        result = session.run(inputs, None, by_step=False)
    return result.outputs, result.states
