"""What a user gets wrong: one clear message, exit code 2, no traceback, and nothing written, not even for a moment."""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from isobit.export.onnx.load import save
from isobit.quant.errors import CheckError
from isobit.quant.program import Program
from isobit.targets.target import TARGETS
from isobit.tools import commands, data
from tests.commandline import ENTRY_POINT, Result, installed, isobit
from tests.models import mamba_block

TOOLS = ("gcc", "g++", "arm-none-eabi-gcc", "qemu-system-arm")

MODELS = """\
import torch
number = 3
def make(): return torch.nn.Sequential(torch.nn.Linear(4, 3))
def other(): return torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(8, 8)))
def words(): return torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 3))
def image(): return torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3))
def fails(): raise RuntimeError("no weights here")
"""


def program() -> Program:
    """A Mamba block; one unit of its input, i16 (T, 8), is worth 1/4."""
    made = mamba_block()
    (x,) = made.inputs
    return replace(made, inputs=(replace(x, type=replace(x.type, scale=0.25)),))


def claims_a_terabyte() -> bytes:
    """A small .npz whose array says in its header that it has 2^40 elements."""
    array, file = io.BytesIO(), io.BytesIO()
    header = {"descr": "|i1", "fortran_order": False, "shape": (1 << 40, 1, 8)}
    np.lib.format.write_array_header_1_0(array, header)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", array.getvalue() + bytes(1000))
    return file.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files to be refused, and `m.onnx`, `good.npz`, `calib.npz`, which are right."""
    folder = tmp_path_factory.mktemp("files")
    save(program(), folder / "m.onnx")
    save(mamba_block(), folder / "unscaled.onnx")
    content = (folder / "m.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(content[: len(content) // 2])
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "text.onnx").write_text("not a model")
    (folder / "folder.onnx").mkdir()
    model = onnx.ModelProto.FromString(content)
    weights = model.graph.initializer[0]
    weights.raw_data = bytes([weights.raw_data[0] ^ 1]) + weights.raw_data[1:]
    onnx.save(model, folder / "weight.onnx")
    model = onnx.ModelProto.FromString(content)
    del model.graph.node[3]
    onnx.save(model, folder / "node.onnx")
    model = onnx.ModelProto.FromString(content)
    body = next(f for f in model.functions if f.name.startswith("silu")).node
    body[0].op_type = "Sub" if body[0].op_type != "Sub" else "Add"
    onnx.save(model, folder / "body.onnx")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", [value], [value])
    onnx.save(helper.make_model(graph), folder / "foreign.onnx")

    x = np.zeros((2, 3, 8))
    nan, infinite, y = x.copy(), x.copy(), np.zeros(2, np.int64)
    nan[1, 2, 3], infinite[0, 1, 2] = np.nan, np.inf
    arrays: dict[str, dict[str, object]] = {
        "good": {"x": x, "y": y},
        "calib": {"x": np.ones((2, 3, 4))},
        "nokey": {"inputs": x},
        "ids": {"x": np.array([[0, 4, 5]])},
        "negative": {"x": np.array([[0, -1]])},
        "images": {"x": np.ones((2, 3, 6, 6))},
        "films": {"x": np.ones((2, 2, 3, 6, 6))},
        "rank": {"x": x[0]},
        "channels": {"x": x[..., :5]},
        "nan": {"x": nan},
        "inf": {"x": infinite},
        "empty": {"x": x[:0]},
        "object": {"x": np.array([[None]], object)},
        "words": {"x": np.full((2, 3, 8), "0")},
        "ints": {"x": np.full((2, 3, 8), 140_000)},
        "labels_short": {"x": x, "y": y[:1]},
        "labels_float": {"x": x, "y": y + 0.5},
        "labels_column": {"x": x, "y": y[:, None]},
        "labels_class": {"x": x, "y": y + 8},
    }
    for name, content_of in arrays.items():
        np.savez(folder / f"{name}.npz", **content_of)  # type: ignore[arg-type]
    np.save(folder / "single.npy", x)
    (folder / "single.npy").rename(folder / "single.npz")
    (folder / "cut.npz").write_bytes((folder / "good.npz").read_bytes()[:300])
    (folder / "bomb.npz").write_bytes(claims_a_terabyte())
    with zipfile.ZipFile(folder / "member.npz", "w") as archive:
        archive.writestr("x", "no array")
    (folder / "w.pt").write_bytes(b"\x80\x04.")
    (folder / "w.safetensors").write_bytes(b"\x00" * 20)
    (folder / "models.py").write_text(MODELS)
    (folder / "plain").mkdir()
    return folder


@pytest.fixture(autouse=True)
def unchanged(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test runs in the folder `made` and leaves it as it was, and no temporary file but its libraries' caches."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(made)

    def listing() -> dict[Path, bytes]:
        return {p: p.read_bytes() if p.is_file() else b"" for p in made.rglob("*") if "__pycache__" not in p.parts}

    before = listing()
    yield
    assert listing() == before
    assert [
        p.name for p in (tmp_path / "temporary").iterdir() if not p.name.startswith((".ses", "torchinductor_"))
    ] == []


def assert_refused(result: Result, message: str, code: int = 2) -> None:
    assert result.code == code, f"{result.out}\n{result.err}"
    assert re.search(message, result.err, re.DOTALL), result.err
    assert "Traceback" not in result.err
    assert result.out == ""


CALIBRATE = "quantize models:make -o new.onnx --calib"

CASES = {
    # The program.
    "inspect nofile.onnx": r"nofile\.onnx: there is no such file; write one with `isobit quantize`",
    "inspect foreign.onnx": r"foreign\.onnx: expected a file written by isobit, got .*quantize",
    "inspect cut.onnx": r"cut\.onnx: .*copy",
    "inspect empty.onnx": r"empty\.onnx: expected a file written by isobit",
    "inspect text.onnx": r"text\.onnx: expected an \.onnx file, got 11 bytes",
    "inspect folder.onnx": r"folder\.onnx: expected an \.onnx file, got a folder",
    "build weight.onnx --target c -o new": r"weight\.onnx: damaged or edited: .* digest",
    "verify node.onnx": r"node\.onnx: damaged or edited",
    "run body.onnx --data good.npz -o new.npz": r"body\.onnx: function silu\S* was edited",
    # What is named: targets, boards, architectures, recipes, vectors, models.
    "verify m.onnx --targets c,fpga": "unknown target 'fpga'; the targets are interpret, ort,",
    "verify m.onnx --targets ,": "no target named",
    "demo --targets fpga -o new": "unknown target 'fpga'",
    "build m.onnx --target fpga -o new": "unknown target 'fpga'",
    "build m.onnx --target interpret -o new": "interpret has no files to build",
    "build m.onnx --target mcu --board m9 -o new": "unknown board 'm9'; the boards are m0, m3, m4",
    "build m.onnx --target c --board m4 -o new": "board 'm4': only target mcu has boards, not c",
    "build m.onnx --target gpu --arch ampere -o new": "GPU architecture 'ampere': NVRTC .* knows .*sm_90",
    "build m.onnx --target cpu --arch ampere -o new": "LLVM knows no .* CPU 'ampere'; this machine's is",
    "build m.onnx --target c --arch sm_90 -o new": "architecture 'sm_90': name the one target",
    "verify m.onnx --arch sm_90": "architecture 'sm_90': name the one target",
    "run m.onnx --on mcu:m9 --data good.npz -o new.npz": "unknown board 'm9'",
    "run m.onnx --on c:m4 --data good.npz -o new.npz": "board 'm4': only target mcu",
    "run m.onnx --on serial:/dev/ttyACM0 --data good.npz -o new.npz": "unknown target 'serial'",
    "verify m.onnx --vectors corner": "no vectors 'corner'; there are corners, random",
    "verify m.onnx --vectors real": "real samples come with --data",
    "verify m.onnx --vectors random:99": r"vectors 'random:99': expected a sequence from 0 to \d+, as in random:0",
    "verify m.onnx --vectors random:last": "expected a sequence from 0 to",
    "verify m.onnx --package plain": "--package: name the one target",
    "verify m.onnx --package plain --targets interpret": "interpret has none",
    "verify m.onnx --package plain --targets ort": "plain: not a package for ort, model.onnx is missing; make it with",
    "verify m.onnx --package nowhere --targets ort": "nowhere: expected the folder of a built package",
    "quantize models:make -o new.onnx --calib calib.npz --recipe int8": "no recipe 'int8'; there are w8a8",
    f"{CALIBRATE} calib.npz --layer state_bits=32": "--layer 'state_bits=32', expected PATTERN:KEY=VALUE",
    f"{CALIBRATE} calib.npz --layer *:state_bits=x": r"--layer '\*:state_bits=x', expected PATTERN:KEY=VALUE",
    f"{CALIBRATE} calib.npz --layer *:bits=8": "there is no bits; there are weights, activations, multiplier",
    f"{CALIBRATE} calib.npz --layer *:cache_bits=3": "cache_bits is 3, expected 2 or 4, or 0: as act_bits",
    f"{CALIBRATE} calib.npz --layer no:state_bits=8": "no layer matches 'no'; the layers are",
    "quantize models -o new.onnx --calib calib.npz": "model 'models': expected pkg.mod:factory, a .pt2 file",
    "quantize nomodule:make -o new.onnx --calib calib.npz": "there is no module nomodule",
    "quantize models:mak -o new.onnx --calib calib.npz": "models has no mak; it has make, other",
    "quantize models:number -o new.onnx --calib calib.npz": "number is a int, expected a callable",
    "quantize models:fails -o new.onnx --calib calib.npz": r"fails\(\) raised RuntimeError: no weights here",
    f"{CALIBRATE} calib.npz --weights w.pt": "w.pt: a pickle can run code .*save_file",
    f"{CALIBRATE} calib.npz --weights w.safetensors": "w.safetensors: not a readable .safetensors file",
    f"{CALIBRATE} calib.npz --weights nofile.safetensors": "nofile.safetensors: there is no such file",
    # Numbers.
    f"{CALIBRATE} calib.npz --input-scale 0.25": "calib.npz: with an input scale, expected an array of integers",
    f"{CALIBRATE} ints.npz --input-scale 0.3": "input scale 0.3: expected a power of two",
    f"{CALIBRATE} ints.npz --input-scale 0.25": "input of u18: expected at most 16 bits",
    f"{CALIBRATE} calib.npz --t-max 0": "--t-max.*0",
    # Calibration samples.
    f"{CALIBRATE} nofile.npz": r"nofile\.npz: there is no such file; expected an \.npz with arrays 'x'",
    f"{CALIBRATE} plain": r"plain: expected an \.npz with arrays 'x', got a folder",
    "quantize models:words -o new.onnx --calib ids.npz": r"ids\.npz.* identifiers in \[0, 5\], the model knows 0 to 4",
    "quantize models:words -o new.onnx --calib negative.npz": r"negative\.npz.* identifiers in \[-1, 0\]",
    "quantize models:words -o new.onnx --calib calib.npz": "cannot trace Sequential",
    "quantize models:image -o new.onnx --calib images.npz": r"an input \(B, 3, 6, 6\): .* to have 2 channels",
    "quantize models:image -o new.onnx --calib films.npz": r"films\.npz: array x: expected shape .*\(2, 2, 3, 6, 6\)",
    f"{CALIBRATE} ids.npz": "cannot trace Sequential",
    f"{CALIBRATE} nokey.npz": "nokey.npz: expected arrays 'x', got arrays 'inputs'",
    f"{CALIBRATE} rank.npz": r"expected shape \(samples, time, channels\), got \(3, 8\); add the axis",
    f"{CALIBRATE} channels.npz": r"models:make with channels.npz, array x of shape \(2, 3, 5\): .*as many channels",
    f"{CALIBRATE} nan.npz": r"1 of 48 values are NaN or infinite, the first at \(1, 2, 3\)",
    f"{CALIBRATE} inf.npz": r"1 of 48 values are NaN or infinite, the first at \(0, 1, 2\)",
    f"{CALIBRATE} empty.npz": r"the array is empty, \(0, 3, 8\)",
    f"{CALIBRATE} object.npz": "object.npz: not a readable .npz of plain arrays .*numpy.savez",
    f"{CALIBRATE} words.npz": "words.npz: array x: expected numbers, got <U1",
    f"{CALIBRATE} bomb.npz": "bomb.npz: not a readable .npz",
    f"{CALIBRATE} cut.npz": "cut.npz: not a readable .npz",
    f"{CALIBRATE} single.npz": "single.npz: not a readable .npz .*numpy.savez",
    f"{CALIBRATE} member.npz": "member.npz: x is not an array",
    # Data for a program.
    "run m.onnx --data rank.npz -o new.npz": r"rank.npz: array x: expected shape \(samples, T, 8\).*got \(3, 8\)",
    "run m.onnx --data empty.npz -o new.npz": r"expected shape \(samples, T, 8\), none of them 0, got \(0, 3, 8\)",
    "verify m.onnx --data channels.npz": r"channels.npz: array x: expected shape \(samples, T, 8\).*got \(2, 3, 5\)",
    "verify m.onnx --data nan.npz": "nan.npz: array x: 1 of 48 values are NaN",
    "verify m.onnx --data good.npz --raw": "good.npz: array x: expected integers, got float64; leave out --raw",
    "run m.onnx --data ints.npz --raw -o new.npz": "expected i16, integers from -32768 to 32767, got 140000 to 140000",
    "run unscaled.onnx --data good.npz -o new.npz": "block says no scale for its input; give its integers, with --raw",
    "accuracy m.onnx --data rank.npz": "rank.npz: expected arrays 'x', 'y', got arrays 'x'",
    "accuracy m.onnx --data labels_short.npz": r"array y: expected one label for each of the 2 samples, got shape \(1,",
    "accuracy m.onnx --data labels_column.npz": r"expected one label for each of the 2 samples, got shape \(2, 1\)",
    "accuracy m.onnx --data labels_float.npz": "array y: expected integers, got float64",
    "accuracy m.onnx --data labels_class.npz": "array y: expected labels from 0 to 7, got 8 to 8",
    "inspect m.onnx --data good.npz": "name it with --model",
    "inspect m.onnx --data good.npz --model models:other": "block was not made from models:other: their layers differ",
    # Where to write.
    "build m.onnx --target c -o good.npz": "good.npz: expected a folder to write to, got a file",
    "build m.onnx --target c -o good.npz/sub": "good.npz/sub/file: cannot be written, .*good.npz is a file",
    "run m.onnx --data good.npz -o plain": "plain: expected a file to write to, got a folder",
    "run m.onnx --data good.npz -o good.npz/y.npz": "cannot be written, .*good.npz is a file",
    "demo -o good.npz": "good.npz: expected a folder to write to, got a file",
    "quantize models:make --calib calib.npz -o good.npz/m.onnx": "cannot be written, .*good.npz is a file",
    "quantize models:make --calib calib.npz -o folder.onnx": "folder.onnx: expected a file to write to, got a folder",
    "quantize models:make --calib calib.npz -o new.npz": "new.npz: expected a file name that ends in .onnx",
    # Usage.
    "quantise": "No such command 'quantise'",
    "build m.onnx": "Missing option '--target'",
    "verify": "Missing argument 'PROGRAM'",
}


@pytest.mark.parametrize("command", CASES)
def test_a_wrong_command_says_what_is_wrong(command: str) -> None:
    assert_refused(isobit(*shlex.split(command)), CASES[command])


def test_a_file_that_unpacks_to_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "LARGEST", 100)
    message = r"good.npz: its arrays take \d+ bytes, the limit is 100; split the file"
    assert_refused(isobit("run", "m.onnx", "--data", "good.npz", "-o", "new.npz"), message)


def test_a_folder_that_is_not_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the answer of the system is given here."""
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)
    message = r"new\S*: cannot be written, the folder .* is not yours to write to; name another place"
    for command in ("build m.onnx --target c -o new", "run m.onnx --data good.npz -o new/y.npz", "demo -o new"):
        assert_refused(isobit(*command.split()), message)


MISSING = {"c": "gcc", "cpu": "gcc", "mcu": "arm-none-eabi-gcc", "hls": r"g\+\+"}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_compiler(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "temporary"))
    message = rf"isobit: {MISSING[name]} is not installed; install it with: .*apt-get install"
    if name == "cpu":
        assert_refused(isobit("build", "m.onnx", "--target", name, "-o", "new"), message)
    assert_refused(isobit("run", "m.onnx", "--on", name, "--data", "good.npz", "-o", "new.npz"), message)
    row = isobit("verify", "m.onnx", "--targets", name, "--json")
    assert row.code == 2
    assert row.json["targets"][0]["status"] == "not-run"
    assert "is not installed" in row.json["targets"][0]["reason"]


@pytest.mark.parametrize("name", ["c", "mcu", "hls"])
def test_sources_are_written_without_a_compiler(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "temporary"))
    assert isobit("build", "m.onnx", "--target", name, "-o", tmp_path / "new").code == 0
    assert list((tmp_path / "new").glob("*.c*"))


def test_missing_toolchains_are_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "temporary"))
    for module in ("tvm", "onnxruntime"):
        monkeypatch.setitem(sys.modules, module, None)
    for arguments, code in ((("--targets", "all"), 0), (("--require-all",), 2), (("--targets", "interpret,ort"), 2)):
        assert isobit("verify", "m.onnx", *arguments).code == code
    rows = {row["target"]: row for row in isobit("verify", "m.onnx", "--json").json["targets"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        name: "exact" if name == "interpret" else "not-run" for name in TARGETS
    }
    assert rows["cpu"]["reason"] == "apache-tvm is not installed; install it with: pip install 'isobit[tvm]'"
    assert rows["ort"]["reason"] == "onnxruntime is not installed; install it with: pip install onnxruntime"
    assert [row["here"] for row in isobit("targets", "--json").json["targets"]] == ["yes"] + ["no"] * 6


@pytest.mark.parametrize(
    ("module", "extra", "command"),
    [("torch", "quantize", f"{CALIBRATE} calib.npz"), ("sklearn", "demo", "demo -o new --targets interpret")],
)
def test_a_missing_package(module: str, extra: str, command: str, made: Path) -> None:
    before = f"import sys; sys.modules['{module}'] = None"
    message = rf"isobit: {module} is not installed; install it with: pip install 'isobit\[{extra}\]'"
    assert_refused(installed(*command.split(), cwd=made, before=before), message)


@pytest.mark.needs("gcc")
def test_a_package_that_does_not_compile_or_load(tmp_path: Path) -> None:
    for name, file, message in (
        ("c", "block.c", "compile the C package of block: exit code 1.*command: .*gcc.*error"),
        ("ort", "model.onnx", "ort: ort cannot run it: .*make it again with isobit build"),
    ):
        package = tmp_path / name
        assert isobit("build", "m.onnx", "--target", name, "-o", package).code == 0
        content = (package / file).read_bytes()
        (package / file).write_bytes(content[: len(content) // 2])
        assert_refused(isobit("verify", "m.onnx", "--targets", name, "--package", package), message)


def test_a_failed_check_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(*arguments: object) -> None:
        raise CheckError("head: its accumulator needs 33 bits")

    monkeypatch.setattr(commands, "golden", overflow)
    assert_refused(isobit("verify", "m.onnx"), "isobit: head: its accumulator needs 33 bits", code=1)


def test_what_torch_logs_is_not_shown(made: Path) -> None:
    assert_refused(
        installed(*CALIBRATE.split(), "channels.npz", cwd=made), "capture the graph\nisobit: models:make with"
    )


@pytest.mark.needs("gcc")
def test_ctrl_c(made: Path) -> None:
    # A shell's background job would ignore the signal.
    heeded = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{ENTRY_POINT}"
    command = [sys.executable, "-c", heeded, "verify", "m.onnx", "--targets", "c,mcu,hls"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr
        assert "c: build" in (running.stderr.readline() + running.stderr.readline())
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert_refused(Result(running.returncode, out, err), "isobit: interrupted", code=130)


def test_a_reader_that_leaves(made: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(ENTRY_POINT)} inspect m.onnx --json | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr
