"""The command line.  Heavy packages are imported inside the commands that need them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

PROGRAM = click.argument("program", type=click.Path(path_type=Path))
TARGETS_OPTION = click.option(
    "--targets", default="all", show_default=True, help="Targets, separated by commas, or all."
)
BOARD = click.option("--board", help="Board of target mcu (see: isobit targets).")
ARCH = click.option("--arch", help="LLVM CPU name of target cpu, or GPU architecture of target gpu (sm_90).")
T_MAX = click.option(
    "--t-max",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Longest mean over time, and longest sequence of an attention without a window, in steps.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")

EXTRAS = {"torch": "quantize", "safetensors": "quantize", "sklearn": "demo", "tvm": "tvm"}
"""Packages that only some commands need -> the extra of isobit that installs them."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def data_option(required: bool, help: str) -> Callable[[Command], Command]:
    return click.option("--data", type=click.Path(path_type=Path), required=required, help=help)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="isobit")
def cli() -> None:
    """Quantize linear-complexity models to integers, build them for CPU, GPU, microcontroller and FPGA, and prove that
    every target gives the same integers as one reference, bit for bit.

    Exit codes: 0 all equal, 1 a mismatch or a failed check, 2 wrong usage or a missing toolchain.
    """


@cli.command()
@TARGETS_OPTION
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=Path("isobit-demo"), show_default=True, help="Folder."
)
@JSON
def demo(targets: str, out: Path, as_json: bool) -> None:
    """Quantize the shipped Mamba, build every target, verify them on the digits test set, print the table."""
    from isobit.tools.demo import run_demo

    sys.exit(run_demo(out, targets, as_json))


@cli.command()
@click.argument("model")
@click.option(
    "--weights", type=click.Path(path_type=Path), help="A .safetensors file for pkg.mod:factory or zoo:FAMILY."
)
@click.option("--recipe", default="w8a8", show_default=True, help="By name (see: isobit recipes), or a .toml file.")
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="PATTERN:KEY=VALUE",
    help="Other formats for layers by their paths, 'blocks.0.*:state_bits=32,weights=int4-g32'; may be given again.",
)
@click.option(
    "--calib",
    type=click.Path(path_type=Path),
    required=True,
    help=".npz with array x: (samples, time, channels); integers (samples, time) for a model that takes identifiers; "
    "(samples, channels, height, width) for images.",
)
@click.option("--input-scale", type=float, help="x holds integers, each worth this power of two: no float is left.")
@T_MAX
@click.option("--name", help="Name of the model in generated code; by default what MODEL is called.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The .onnx to write.")
@JSON
def quantize(
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
    """Quantize MODEL and write it as integers in one .onnx file.

    MODEL is one of: pkg.mod:factory, a function that returns a torch.nn.Module; a .pt2 file that torch.export.save
    wrote; a Hugging Face folder with config.json and .safetensors; digits, which ships with isobit; zoo:FAMILY, or
    zoo:FAMILY:odd, with random weights (see: isobit families).  Its float graph is compared with it before anything is
    written.
    """
    from isobit.tools.commands import quantize_command

    quantize_command(model, weights, recipe, layers, calib, input_scale, t_max, name, out, as_json)


@cli.command()
@PROGRAM
@click.option("--target", "target_name", required=True, help="One target (see: isobit targets).")
@BOARD
@ARCH
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the package.")
@JSON
def build(program: Path, target_name: str, board: str | None, arch: str | None, out: Path, as_json: bool) -> None:
    """Write the package of one target: sources, libraries, an example.  The same input gives the same bytes."""
    from isobit.tools.commands import build_command

    build_command(program, target_name, board, arch, out, as_json)


@cli.command()
@PROGRAM
@TARGETS_OPTION
@BOARD
@ARCH
@data_option(False, ".npz with array x: real samples, verified beside the generated vectors.")
@click.option("--raw", is_flag=True, help="x holds the integers themselves.")
@click.option("--vectors", help="Only these vectors: a name, or name:sequence.")
@click.option("--package", type=click.Path(path_type=Path), help="Verify the files of this built package (one target).")
@click.option("--require-all", is_flag=True, help="A target that cannot run here makes the exit code 2.")
@JSON
def verify(
    program: Path,
    targets: str,
    board: str | None,
    arch: str | None,
    data: Path | None,
    raw: bool,
    vectors: str | None,
    package: Path | None,
    require_all: bool,
    as_json: bool,
) -> None:
    """Compare every target with the reference: outputs and states, by step and as a sequence, for equality."""
    from isobit.tools.commands import verify_command

    sys.exit(verify_command(program, targets, board, arch, data, raw, vectors, package, require_all, as_json))


@cli.command()
@PROGRAM
@click.option("--on", "on", default="interpret", show_default=True, help="A target, or mcu:BOARD.")
@data_option(True, ".npz with array x: floats, or integers with --raw.")
@click.option("--raw", is_flag=True, help="x holds the integers themselves.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="The .npz to write: outputs, final states."
)
def run(program: Path, on: str, data: Path, raw: bool, out: Path) -> None:
    """Run sequences on a target and save its integers."""
    from isobit.tools.commands import run_command

    run_command(program, on, data, raw, out)


@cli.command()
@PROGRAM
@data_option(True, ".npz with arrays x and y: the label is compared with the largest output of the last step.")
@click.option("--on", "on", default="interpret", show_default=True, help="A target, or mcu:BOARD.")
@click.option("--raw", is_flag=True, help="x holds the integers themselves.")
@JSON
def accuracy(program: Path, data: Path, on: str, raw: bool, as_json: bool) -> None:
    """Accuracy of a classifier on a target."""
    from isobit.tools.commands import accuracy_command

    accuracy_command(program, data, on, raw, as_json)


@cli.command()
@PROGRAM
@data_option(False, ".npz with array x: ranks layers by their signal-to-noise ratio against the float model.")
@click.option("--model", help="The float model, as given to quantize; needed with --data.")
@click.option("--weights", type=click.Path(path_type=Path), help="Its .safetensors file.")
@T_MAX
@click.option("--raw", is_flag=True, help="x holds the integers themselves.")
@JSON
def inspect(
    program: Path, data: Path | None, model: str | None, weights: Path | None, t_max: int, raw: bool, as_json: bool
) -> None:
    """Layers, widths, bounds, multiply-accumulates and bytes; with data, what costs accuracy."""
    from isobit.tools.inspection import inspect_command

    inspect_command(program, data, model, weights, t_max, raw, as_json)


@cli.command()
@PROGRAM
@JSON
def certify(program: Path, as_json: bool) -> None:
    """Check the certificates of a program's recurrent states again, by the definitions, over all codes."""
    from isobit.tools.inspection import certify_command

    certify_command(program, as_json)


@cli.command()
@JSON
def targets(as_json: bool) -> None:
    """The targets, and whether their toolchains are here."""
    from isobit.tools.lists import targets_command

    targets_command(as_json)


@cli.command()
@JSON
def ops(as_json: bool) -> None:
    """The ops that a Program may use."""
    from isobit.tools.lists import ops_command

    ops_command(as_json)


@cli.command()
@JSON
def families(as_json: bool) -> None:
    """The families of the zoo, with the shape of one input at both of their sizes."""
    from isobit.tools.lists import families_command

    families_command(as_json)


@cli.command()
@JSON
def formats(as_json: bool) -> None:
    """The number formats of weights."""
    from isobit.tools.lists import formats_command

    formats_command(as_json)


@cli.command()
@JSON
def recipes(as_json: bool) -> None:
    """The recipes: formats of weights, widths of the rest."""
    from isobit.tools.lists import recipes_command

    recipes_command(as_json)


@cli.command()
@click.option("--run", "run_now", is_flag=True, help="Measure again, here and now.")
@JSON
def status(run_now: bool, as_json: bool) -> None:
    """Every op, format and family against every target, as measured: exact, refused (why), not run (why)."""
    from isobit.tools.status import status_command

    sys.exit(status_command(run_now, as_json))


def main() -> None:
    """Entry point: a failure with a message for the user is printed without a traceback, exit code 2."""
    try:
        cli.main(prog_name="isobit", standalone_mode=False)
    except click.exceptions.Exit as e:
        sys.exit(e.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", INTERRUPTED)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except ModuleNotFoundError as e:
        package = (e.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        _fail(f"{package} is not installed; install it with: pip install 'isobit[{EXTRAS[package]}]'", 2)
    except OSError as e:
        _fail(f"{e.filename}: {e.strerror}" if e.filename and e.strerror else str(e), 2)
    except Exception as e:
        from isobit.quant.errors import CheckError, IsobitError

        if not isinstance(e, IsobitError):
            raise
        _fail(str(e), 1 if isinstance(e, CheckError) else 2)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"isobit: {message}", err=True)
    sys.exit(code)
