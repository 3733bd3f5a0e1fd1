"""What the documents say is so: the status table is the measured one, files and folders exist, commands run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from isobit.targets.target import TARGETS
from isobit.targets.verify import EXACT, NOT_RUN
from isobit.tools.status import STORED, markdown, measure
from isobit.tools.status_table import with_block

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "DECISIONS.md",
    "CHANGELOG.md",
    "docs/brevitas.md",
    "docs/nonlinears.md",
    "docs/search.md",
]


def test_the_readme_shows_the_stored_status_table() -> None:
    readme = (ROOT / "README.md").read_text()
    assert with_block(readme, markdown(json.loads(STORED.read_text()))) == readme, "run `make status`"


def test_the_stored_status_table_is_complete_and_exact() -> None:
    from isobit.quant.ops import OPS

    table = json.loads(STORED.read_text())
    assert list(table) == list(OPS)
    for row in table.values():
        assert list(row) == list(TARGETS)
        assert {cell["status"] for name, cell in row.items() if name != "gpu"} == {EXACT}


def test_the_readme_shows_the_program_that_the_demo_makes() -> None:
    from isobit.quant.quantize import input_spec, quantize
    from isobit.quant.zoo import digits

    x = digits.data().calibration.x
    spec = input_spec(x, digits.INPUT_SCALE, "digits")
    made = quantize(digits.load(), x, "w8a8", name="digits", input=spec, t_max=8).program
    shown = re.search(r"digits: (\d+) integer nodes, Program (\w+)", (ROOT / "README.md").read_text())
    assert shown is not None
    assert (int(shown[1]), shown[2]) == (len(made.nodes), made.digest[:16]), "run the demo and paste its output"


@pytest.mark.slow
@pytest.mark.needs("gcc", "g++", "arm-none-eabi-gcc", "qemu-system-arm")
def test_the_status_table_measured_now_is_the_stored_one() -> None:
    stored, now = json.loads(STORED.read_text()), measure()
    for op, row in now.items():
        assert row.pop("gpu")["status"] in (EXACT, NOT_RUN)
        stored[op].pop("gpu")
        assert row == stored[op]


@pytest.mark.parametrize("module", ["isobit.tools.golden", "isobit.tools.status_table", "isobit.tools.train_digits"])
def test_the_modules_that_make_runs_import(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_make_vectors_changes_nothing() -> None:
    from isobit.tools.golden import GOLDEN

    before = (ROOT / GOLDEN).read_bytes()
    done = subprocess.run(["make", "vectors"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (ROOT / GOLDEN).read_bytes() == before


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_named_in_documents_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    named = re.findall(r"`((?:quant|export|targets|runtime_stubs|tests|tools)/[A-Za-z0-9_./]*)`", text)
    missing = [n for n in named if "NAME" not in n and not (ROOT / n).exists()]
    assert not missing
    linked = re.findall(r"\]\(([A-Za-z/]+\.md)\)", text)
    assert not [n for n in linked if not (ROOT / document).parent.joinpath(n).is_file()]


@pytest.mark.needs("gcc")
def test_the_one_gcc_line_of_the_readme(tmp_path: Path) -> None:
    from isobit.targets.target import Options, target
    from tests.models import mamba_block

    line = next(x for x in (ROOT / "README.md").read_text().splitlines() if x.startswith("cd firmware && gcc"))
    target("c").build(mamba_block(), tmp_path, Options())
    command = line.removeprefix("cd firmware && ").replace("my_model", "block")
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "equal to the reference bit for bit" in done.stdout
    golden = tmp_path / "block_golden.h"
    edited = re.sub(
        r"(golden_block_out_proj_y.*?\{\s*\{)(-?\d+)",
        lambda m: f"{m[1]}{int(m[2]) ^ 1}",
        golden.read_text(),
        flags=re.S,
    )
    assert edited != golden.read_text()
    golden.write_text(edited)
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
