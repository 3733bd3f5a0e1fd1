"""The command line as a user meets it: results on standard output, exit codes, files, the same bytes twice."""

from __future__ import annotations

import ctypes
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from isobit.export.onnx.load import load, save
from isobit.quant.interpret import interpret
from isobit.targets.target import TARGETS
from isobit.tools import families, formats, nonlinears, status
from tests.commandline import Result, installed, isobit
from tests.models import mamba_block

DEMO_TOOLS = ("gcc", "g++", "arm-none-eabi-gcc", "qemu-system-arm")
NEEDS = {"cpu": ["gcc"], "c": ["gcc"], "mcu": DEMO_TOOLS[2:], "hls": ["g++"]}
HEAVY = ("torch", "tvm", "onnx", "onnxruntime", "numpy", "rich", "z3")

FACTORY = """\
import torch
print("a user's own words")

def tiny():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.SiLU(), torch.nn.Linear(6, 3))
"""


def has_gpu() -> bool:
    try:
        return bool(ctypes.CDLL("libcuda.so.1").cuInit(0) == 0)
    except OSError:
        return False


def succeeded(result: Result) -> Result:
    assert result.code == 0, f"{result.out}\n{result.err}"
    return result


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `isobit demo` leaves: digits.onnx, and the test set, digits.npz."""
    folder = tmp_path_factory.mktemp("digits")
    succeeded(isobit("demo", "--targets", "interpret", "-o", folder))
    return folder


@pytest.fixture
def block(tmp_path: Path) -> Path:
    save(mamba_block(), tmp_path / "block.onnx")
    return tmp_path / "block.onnx"


def test_help_is_quick_and_imports_nothing_heavy(tmp_path: Path) -> None:
    began = time.perf_counter()
    assert "verify" in succeeded(installed("--help", cwd=tmp_path)).out
    assert time.perf_counter() - began < 2
    report = "import atexit, sys; atexit.register(lambda: print('LOADED', *sys.modules))"
    loaded = succeeded(installed("--help", cwd=tmp_path, before=report)).out.partition("LOADED")[2].split()
    assert not set(HEAVY) & set(loaded)


def test_a_saved_program_needs_neither_torch_nor_tvm(digits: Path, tmp_path: Path) -> None:
    report = "import atexit, sys; atexit.register(lambda: print('LOADED', *sys.modules, file=sys.stderr))"
    for command in ("inspect", "build --target c -o c", "build --target hls -o hls", "verify --targets interpret,ort"):
        done = succeeded(installed(*command.split(), digits / "digits.onnx", cwd=tmp_path, before=report))
        assert not {"torch", "tvm"} & set(done.err.partition("LOADED")[2].split()), command


@pytest.mark.slow
@pytest.mark.needs(*DEMO_TOOLS)
def test_demo(tmp_path: Path) -> None:
    done = succeeded(installed("demo", "--json", "-o", "made", cwd=tmp_path))
    assert set(done.json) == {"targets", "accuracy", "onnx", "seconds"}
    assert set(done.json["accuracy"]) == {"float", "integer"}
    assert abs(done.json["accuracy"]["float"] - done.json["accuracy"]["integer"]) <= 0.01
    assert done.json["accuracy"]["float"] >= 0.96
    assert done.json["onnx"] == "made/digits.onnx"
    assert (tmp_path / "made/digits.onnx").is_file()
    rows = {row["target"]: row for row in done.json["targets"]}
    assert list(rows) == list(TARGETS)
    for name, row in rows.items():
        if name == "gpu" and not has_gpu():
            assert (row["status"], row["reason"], row["values"]) == ("not-run", "compiled, no GPU", 0)
        else:
            assert row["status"] == "exact", row
            assert row["values"] > 100_000
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["digits.npz", "digits.onnx", "made"]


def test_quantize_a_factory_of_the_working_directory_twice(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FACTORY)
    weigh = "import mine, safetensors.torch as s; s.save_file(mine.tiny().state_dict(), 'w.safetensors')"
    np.savez(tmp_path / "calib.npz", x=np.random.default_rng(0).normal(size=(4, 5, 4)))
    arguments = ("quantize", "mine:tiny", "--weights", "w.safetensors", "--calib", "calib.npz", "--json", "-o")
    weigh = f"import sys; sys.path.insert(0, '.'); {weigh}; sys.path.remove('.')"
    first = succeeded(installed(*arguments, "a.onnx", cwd=tmp_path, before=weigh, PYTHONHASHSEED="1"))
    second = succeeded(installed(*arguments, "new/b.onnx", cwd=tmp_path, PYTHONHASHSEED="2"))
    assert "a user's own words" in second.err
    assert second.json["digest"] == load(tmp_path / "a.onnx").digest
    assert second.json["onnx"] == "new/b.onnx"
    assert "a.onnx" in first.out
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "new/b.onnx").read_bytes()
    assert load(tmp_path / "a.onnx").name == "tiny"


def test_quantize_a_zoo_model(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = np.load(digits / "digits.npz")["x"][:32]
    np.savez("codes.npz", x=data)
    np.savez("floats.npz", x=data / 16)
    integers = ("quantize", "digits", "--input-scale", 0.0625, "--recipe", "w8a16", "--t-max", 8)
    assert "t_max" in succeeded(isobit(*integers, "--calib", "codes.npz", "-o", "codes.onnx")).out
    succeeded(isobit("quantize", "digits", "--calib", "floats.npz", "--name", "mine", "-o", "floats.onnx"))
    assert str(load("codes.onnx").inputs[0].type) == "u5[T, 8]"
    assert load("floats.onnx").name == "mine"
    ratios = isobit("inspect", "floats.onnx", "--data", "floats.npz", "--model", "digits", "--json").json["snr_db"]
    assert list(ratios.values()) == sorted(ratios.values())
    assert min(ratios.values()) > 15


def test_quantize_with_states_of_other_widths(digits: Path, tmp_path: Path) -> None:
    layers = "layers.0.*:state_bits=32", "layers.1.*:state_bits=8,act_bits=12"
    options = [o for layer in layers for o in ("--layer", layer)]
    np.savez(tmp_path / "x.npz", x=np.load(digits / "digits.npz")["x"][:32] / 16)
    succeeded(isobit("quantize", "digits", "--calib", tmp_path / "x.npz", "-o", tmp_path / "m.onnx", *options))
    states = {s.name: str(s.type.elem) for s in load(tmp_path / "m.onnx").states}
    assert states["layers.0.mixer.recurrence.state"] == "i32"
    assert states["layers.1.mixer.recurrence.state"] == "i8"


SLOW = {name: [pytest.mark.slow] for name in ("cpu", "gpu")}


@pytest.mark.parametrize(
    "name", [pytest.param(t, marks=[pytest.mark.needs(*NEEDS.get(t, ())), *SLOW.get(t, [])]) for t in TARGETS]
)
def test_build_twice_gives_the_same_bytes(name: str, block: Path, tmp_path: Path) -> None:
    if name == "interpret":
        refused = isobit("build", block, "--target", name, "-o", tmp_path / "a")
        assert refused.code == 2
        assert "no files to build" in refused.err
        return
    made = []
    for seed in "12":
        arguments = ("build", block, "--target", name, "-o", f"deep/{seed}", "--json")
        listed = succeeded(installed(*arguments, cwd=tmp_path, PYTHONHASHSEED=seed)).json["files"]
        files = {str(p.relative_to(tmp_path / "deep" / seed)): p for p in (tmp_path / "deep" / seed).rglob("*.*")}
        assert listed == {n: p.stat().st_size for n, p in files.items()}
        made.append({n: p.read_bytes() for n, p in files.items()})
    assert made[0] == made[1]
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["1", "2"]


@pytest.mark.needs(*NEEDS["c"], *NEEDS["mcu"])
@pytest.mark.parametrize("on", ["interpret", "ort", "c", "mcu:m3"])
def test_run(on: str, digits: Path, tmp_path: Path) -> None:
    program = load(digits / "digits.onnx")
    codes = np.load(digits / "digits.npz")["x"][:5]
    np.savez(tmp_path / "codes.npz", x=codes)
    np.savez(tmp_path / "floats.npz", x=codes * program.inputs[0].type.scale)
    outputs, states = interpret(program, {"x": codes.astype(np.int64)})
    for arguments in (("codes.npz", "--raw"), ("floats.npz",)):
        out = tmp_path / "results" / "y.npz"
        run = isobit(
            "run", digits / "digits.onnx", "--on", on, "--data", tmp_path / arguments[0], *arguments[1:], "-o", out
        )
        assert "5 x 8 x 10" in succeeded(run).out
        with np.load(out) as got:
            assert set(got) == {"y", *states}
            np.testing.assert_array_equal(got["y"], outputs["y"])
            for name, state in states.items():
                np.testing.assert_array_equal(got[name], state)


@pytest.mark.needs(*NEEDS["c"], *NEEDS["mcu"])
def test_accuracy_is_the_same_everywhere(digits: Path) -> None:
    program, data = digits / "digits.onnx", digits / "digits.npz"
    found = [
        isobit("accuracy", program, "--data", data, "--raw", "--on", on, "--json").json
        for on in ("interpret", "c", "mcu:m4")
    ]
    assert {row["correct"] for row in found} == {found[0]["correct"]}
    assert found[0]["accuracy"] == found[0]["correct"] / found[0]["samples"] > 0.97
    assert re.fullmatch(
        r"digits on interpret: 9\d\.\d\d % \(\d+ of 364\)\n", isobit("accuracy", program, "--data", data, "--raw").out
    )
    forgotten = succeeded(isobit("accuracy", program, "--data", data))
    assert "leave the input's range, 0 to 1.9375" in forgotten.err
    assert "say --raw" in forgotten.err


@pytest.mark.needs(*DEMO_TOOLS)
def test_verify_and_its_exit_codes(block: Path) -> None:
    everything = succeeded(isobit("verify", block, "--json")).json
    assert everything["digest"] == load(block).digest
    assert [row["target"] for row in everything["targets"]] == list(TARGETS)
    incomplete = 0 if has_gpu() else 2
    assert isobit("verify", block, "--require-all").code == incomplete
    alone = isobit("verify", block, "--targets", "gpu")
    assert alone.code == incomplete
    assert has_gpu() or "compiled, no GPU" in alone.out
    table = succeeded(isobit("verify", block, "--targets", "c,interpret,c")).out
    assert [line.split()[:2] for line in table.splitlines()[2:]] == [["c", "exact"], ["interpret", "exact"]]
    assert "B weights, 176 B state" in table
    assert all(line == line.rstrip() and len(line) <= 150 for line in table.splitlines())


def test_verify_real_samples_and_chosen_vectors(digits: Path) -> None:
    command = ("verify", digits / "digits.onnx", "--targets", "interpret", "--json")
    data = ("--data", digits / "digits.npz", "--raw")

    def values(*more: object) -> int:
        return int(succeeded(isobit(*command, *more)).json["targets"][0]["values"])

    whole, one = values("--vectors", "random"), values("--vectors", "random:3")
    assert whole % one == 0
    assert values() > whole
    assert values(*data) - values() == values(*data, "--vectors", "real") == 364 * values(*data, "--vectors", "real:0")


@pytest.mark.needs("gcc")
def test_verify_an_edited_package(block: Path, tmp_path: Path) -> None:
    succeeded(isobit("build", block, "--target", "c", "-o", tmp_path / "package"))
    command = ("verify", block, "--targets", "c", "--package", tmp_path / "package")
    succeeded(isobit(*command))
    source = tmp_path / "package" / "block.c"
    text, count = re.subn(r"(block_conv_multiplier\[c\])", r"(\1 ^ 4096)", source.read_text())
    assert count == 1
    source.write_text(text)
    wrong = isobit(*command)
    assert wrong.code == 1
    assert "mismatch" in wrong.out
    assert "first divergence: block.conv.y[" in wrong.out
    reproduction = re.search(r"isobit verify PROGRAM.onnx (--targets c --vectors \S+)", wrong.out)
    assert reproduction
    again = isobit(*command, *reproduction[1].split()[2:], "--json")
    assert again.code == 1
    assert again.json["targets"][0]["divergence"]["node"] == "block.conv.y"


def test_inspect(digits: Path) -> None:
    program, data = digits / "digits.onnx", digits / "digits.npz"
    plain = succeeded(isobit("inspect", program)).out
    assert "layers.1.mixer.recurrence  linear_recurrence" in plain
    assert "dB" not in plain
    known = isobit("inspect", program, "--json").json
    assert known["totals"]["nodes"] == len(known["nodes"]) == len(load(program).nodes)
    assert known["snr_db"] == {}
    ranked = succeeded(isobit("inspect", program, "--data", data, "--raw", "--model", "digits")).out
    rows = ranked.partition("worst first\n")[2].splitlines()[1:]
    decibels = [float(row.split()[1]) for row in rows]
    assert len(decibels) > 30
    assert decibels == sorted(decibels)
    assert decibels[0] > 20


def test_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = isobit("targets", "--json").json
    assert [row["target"] for row in rows["targets"]] == list(TARGETS)
    assert "m4" in rows["boards"]
    assert "silu" in [row["op"] for row in isobit("ops", "--json").json]
    bits = {row["format"]: row["bits_per_weight"] for row in isobit("formats", "--json").json}
    assert bits["binary"] == 1
    assert (bits["int4"], bits["ternary"], bits["e4m3"], bits["e2m1"], bits["mxfp4"]) == (4, 2, 8, 4, 4.125)
    assert "w8a8" in [row["name"] for row in isobit("recipes", "--json").json]
    cell = {"status": "not-run", "reason": "no [/] GPU"}
    (tmp_path / "status.json").write_text(json.dumps({"silu": {"gpu": cell}}))
    monkeypatch.setattr(status, "STORED", tmp_path / "status.json")
    figures = {recipe: {"snr": 47.1, "recurrence": 31.5, "agreement": 0.985} for recipe in families.BARS}
    zoo = {"MoM": {"tiny": {"targets": dict.fromkeys(TARGETS, cell), "fidelity": figures}}}
    (tmp_path / "families.json").write_text(json.dumps(zoo))
    monkeypatch.setattr(families, "STORED", tmp_path / "families.json")
    lost = {"digits": [0.0, -0.27, 0.27], "fsdd": []}
    numbers = {"int8 x int8": {"targets": dict.fromkeys(TARGETS, cell), "points": lost, "bits": 8}}
    (tmp_path / "formats.json").write_text(json.dumps(numbers))
    monkeypatch.setattr(formats, "STORED", tmp_path / "formats.json")
    expected = {"ops": {"silu": {"gpu": cell}}, "nonlinears": nonlinears.load(), "formats": numbers, "families": zoo}
    assert isobit("status", "--json").json == expected
    assert "MoM" in [row["family"] for row in isobit("families", "--json").json]
    for command, word in (
        ("targets", "boards of mcu: m0"),
        ("ops", "silu"),
        ("formats", "minifloat, largest 448, smallest 0.00195312"),
        ("recipes", "w4a8"),
        ("families", "Griffin's gated linear recurrence"),
        ("status", "no [/] GPU"),
        ("status", "98.5 %"),
        ("status", "+0.00 ± 0.67"),
        ("status", "not measured"),
    ):
        assert word in succeeded(isobit(command)).out
    assert succeeded(isobit("--version")).out.startswith("isobit, version ")
