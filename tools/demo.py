"""`isobit demo`: a trained Mamba from float weights to verified integers on every target."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from isobit.export.onnx.load import load, save
from isobit.quant.errors import CheckError
from isobit.quant.interpret import interpret
from isobit.quant.vectors import golden
from isobit.targets.verify import Verified, target_names, verify
from isobit.tools import show
from isobit.tools.commands import correct, exit_code
from isobit.tools.data import write_arrays
from isobit.tools.paths import check_output_folder


def run_demo(out: Path, targets: str, as_json: bool) -> int:
    """Returns the exit code; writes `out`/digits.onnx and `out`/digits.npz (the test set)."""
    began = time.perf_counter()
    names = target_names(targets)
    check_output_folder(out)
    with show.progress(as_json) as tell:
        tell("load the trained model and the digits")
        from isobit.quant.calibrate.observe import float_outputs
        from isobit.quant.quantize import input_spec, quantize
        from isobit.quant.zoo import digits

        data, module = digits.data(), digits.load()
        tell(f"quantize to w8a8 with {len(data.calibration)} calibration samples")
        spec = input_spec(data.calibration.x, digits.INPUT_SCALE, "digits")
        quantized = quantize(module, data.calibration.x, "w8a8", name="digits", input=spec, t_max=8, progress=tell)
        path = out / "digits.onnx"
        tell(f"write {path} and read it back")
        out.mkdir(parents=True, exist_ok=True)
        save(quantized.program, path)
        program = load(path)
        if program.digest != quantized.program.digest:
            raise CheckError(f"{path}: read back as {program.digest}, written as {quantized.program.digest}")
        # For the commands that take --data.
        write_arrays(out / "digits.npz", {"x": data.test.x, "y": data.test.y})
        test = {program.inputs[0].name: data.test.x.astype(np.int64)}
        result = verify(program, names, list(golden(program, test)), progress=tell)
        tell("accuracy")
        right = correct(interpret(program, test)[0][program.outputs[0]], data.test.y)
        real = data.test.x.astype(np.float64) * digits.INPUT_SCALE
        float_right = correct(float_outputs(quantized.graph, real), data.test.y)
    seconds = time.perf_counter() - began
    accuracy = {"float": float_right / len(data.test), "integer": right / len(data.test)}
    rows = [r.json() for r in result.rows]
    if as_json:
        show.print_json({"targets": rows, "accuracy": accuracy, "onnx": str(path), "seconds": round(seconds, 1)})
    else:
        _print(result, accuracy, len(data.test), path, seconds)
    return exit_code(result.rows, explicit=targets != "all")


def _print(result: Verified, accuracy: dict[str, float], samples: int, path: Path, seconds: float) -> None:
    p = result.program
    show.print_verification(f"digits: {len(p.nodes)} integer nodes, Program {p.digest[:16]}", result.rows)
    points = 100 * (accuracy["integer"] - accuracy["float"])
    print(
        f"\naccuracy on {samples} test samples: float {100 * accuracy['float']:.2f} %, "
        f"integer {100 * accuracy['integer']:.2f} % ({points:+.2f} points)\n{path} written; {seconds:.0f} s in all"
    )
