"""Verification catches things: one bit planted in a generated kernel ends in exit code 1 and the right node."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from isobit.export.onnx.load import save
from isobit.export.tvm import expression, function
from isobit.quant.check import check
from isobit.quant.expr.symbols import Traced
from isobit.tools.cli import main
from tests.models import mamba_block


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(mamba_block(), tmp_path / "block.onnx")
    return tmp_path / "block.onnx"


def isobit(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The command's exit code."""
    monkeypatch.setattr(sys, "argv", ["isobit", *map(str, arguments)])
    try:
        main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


FAULTS = [
    pytest.param(
        "c", "block.c", "conv.y", r"\(acc, block_conv_multiplier\[c\]\)", "(acc ^ 64, block_conv_multiplier[c])",
        marks=pytest.mark.needs("gcc"), id="c, a bit of an accumulator",
    ),
    pytest.param(
        "c", "block.c", "ssm.o", r"\+ 16384\) >> 15, -32768", "+ 24576) >> 15, -32768",
        marks=pytest.mark.needs("gcc"), id="c, the rounding of the recurrence",
    ),
    pytest.param(
        "mcu", "block.c", "dt_proj.dt", "& 255", "& 254",
        marks=pytest.mark.needs("arm-none-eabi-gcc", "qemu-system-arm"), id="mcu, the interpolation of softplus",
    ),
    pytest.param(
        "hls", "block.cpp", "ssm.o", r"<< 6\) \+ \(1 << 14\)", "<< 6) + (3 << 13)",
        marks=pytest.mark.needs("g++"), id="hls, the rounding of the recurrence",
    ),
    pytest.param(
        "hls", "block.cpp", "dt_proj.dt", "magnitude & 255", "magnitude & 254",
        marks=pytest.mark.needs("g++"), id="hls, the interpolation of softplus",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "node", "pattern", "replacement"), FAULTS)
def test_a_fault_in_generated_source_names_the_node(
    name: str,
    file: str,
    node: str,
    pattern: str,
    replacement: str,
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    package = tmp_path / "package"
    verify = ["verify", saved, "--targets", name, "--package", package, "--json"]
    assert isobit(monkeypatch, "build", saved, "--target", name, "-o", package) == 0
    assert isobit(monkeypatch, *verify) == 0
    text, count = re.subn(pattern, replacement, (package / file).read_text())
    assert count == 1, f"{file} has {count} places like {pattern}"
    (package / file).write_text(text)
    capsys.readouterr()
    assert isobit(monkeypatch, *verify) == 1
    assert_names(capsys.readouterr().out, node)


def assert_names(output: str, node: str) -> None:
    (row,) = json.loads(output)["targets"]
    assert row["status"] == "mismatch"
    assert row["divergence"]["node"] == f"block.{node}"
    assert row["divergence"]["loc"] == f"block.{node.partition('.')[0]}"
    assert row["divergence"]["expected"] != row["divergence"]["got"]


def test_a_fault_in_the_tir_names_the_node(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    victim, printed, imm = check(mamba_block()).bodies["block.ssm.o"], expression.expression, expression.imm

    def rounded_wrongly(value: int, dtype: str = "int32") -> Any:
        return imm(value + 8192 * (value == 16384), dtype)

    def faulty(traced: Traced, *rest: Any) -> Any:
        monkeypatch.setattr(expression, "imm", rounded_wrongly if traced is victim else imm)
        return printed(traced, *rest)

    monkeypatch.setattr(function, "expression", faulty)
    assert isobit(monkeypatch, "verify", saved, "--targets", "cpu", "--json") == 1
    assert_names(capsys.readouterr().out, "ssm.o")
