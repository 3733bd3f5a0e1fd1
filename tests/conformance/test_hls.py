"""What is particular to the target `hls`: the package's own testbench, names, planted faults, Xilinx's types."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from isobit.quant.errors import InputError
from isobit.quant.ops import OPS
from isobit.quant.program import Input, IntType, Node, Program, TensorType
from isobit.quant.vectors import case_program, golden, join
from isobit.targets.hls import target as hls
from isobit.targets.hls.package import Package
from isobit.targets.hls.text import COLUMNS
from isobit.targets.nest import nest
from isobit.targets.target import Artifact, Options
from isobit.targets.toolchain import ToolFailed
from isobit.targets.verify import EXACT, MISMATCH, verify, verify_artifact
from tests.models import mamba_block
from tests.traced import wrong_taps

pytestmark = pytest.mark.needs("g++")


def every_case() -> Program:
    """The corner cases of every op in one Program."""
    return join(
        "ops", [case_program(name, c, f"{name}.{i}") for name, op in OPS.items() for i, c in enumerate(op.cases)]
    )


def built(program: Program, folder: Path) -> Artifact:
    folder.mkdir(parents=True)
    return hls.build(program, folder, Options())


def edit(artifact: Artifact, file: str, pattern: str, replacement: str) -> None:
    """Replace the first match; the pattern must match."""
    path = artifact.folder / file
    text, count = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.DOTALL)
    assert count == 1, f"{file} has no {pattern}"
    path.write_text(text)


def csim(artifact: Artifact) -> subprocess.CompletedProcess[str]:
    """The command line of the package's README, run in the package."""
    command = re.search(r"^    (g\+\+ .*)$", (artifact.folder / "README.md").read_text(), re.MULTILINE)
    assert command is not None
    return subprocess.run(command[1], shell=True, cwd=artifact.folder, capture_output=True, text=True)


@pytest.mark.slow
def test_traces_of_every_op_equal_the_reference_and_the_testbench_passes(tmp_path: Path) -> None:
    program = every_case()
    artifact = built(program, tmp_path / "package")
    session = hls.start(artifact, tmp_path, traced=True)
    for v in golden(program):
        assert wrong_taps(session, program, v) == []
    done = csim(artifact)
    assert (done.returncode, done.stderr) == (0, "")
    values = sum(v.values for v in golden(program)) + next(iter(golden(program))).select(slice(1)).values
    assert f"{values} values compared, 0 differ" in done.stdout


@pytest.mark.parametrize("part", ["outputs", "states"])
def test_the_testbench_fails_on_one_wrong_golden_value(part: str, tmp_path: Path) -> None:
    program = mamba_block()
    artifact = built(program, tmp_path / "package")
    v = next(v for v in golden(program) if v.name == "random")
    names = list(program.outputs if part == "outputs" else program.state)
    first = int((v.outputs if part == "outputs" else v.states)[names[0]][2].ravel()[0])
    edit(artifact, "golden.h", rf"(random_2_{part}\[\] = {{\s*){first}\b", rf"\g<1>{first ^ 1}")
    done = csim(artifact)
    assert done.returncode == 1, done.stderr
    step = 0 if part == "outputs" else v.steps - 1
    where = f"vector random, sequence 2, step {step}, {names[0]}[0]"
    assert f"MISMATCH: {where}: expected {first ^ 1}, got {first}" in done.stdout
    assert "FAILED" in done.stdout
    assert "1 differ" in done.stdout


def test_the_testbench_sees_a_state_that_survives_a_reset(tmp_path: Path) -> None:
    program = mamba_block()
    artifact = built(program, tmp_path / "package")
    edit(artifact, f"{program.name}.cpp", r"if \(reset \|\| top_is_fresh\)", "if (top_is_fresh)")
    done = csim(artifact)
    assert done.returncode == 1
    assert "MISMATCH: vector corners, sequence 1, step 0" in done.stdout


FAULTS = ["block.conv.y", "block.ssm.o", "block.norm.y", "block.out_proj.y"]


@pytest.mark.parametrize("node", FAULTS)
def test_a_wrong_rounding_constant_is_found_and_named(node: str, tmp_path: Path) -> None:
    program = mamba_block()
    artifact = built(program, tmp_path / "package")
    assert verify_artifact(artifact, list(golden(program)), tmp_path / "before").status == EXACT
    unit = Package(program).unit
    n = next(n for n in program.nodes if n.output == node)
    body = unit.nest.checked.bodies[node]
    function = unit.functions[n.spec.define, body.key].name
    shift = max(a.args[1].fixed or 0 for a in body.nodes if a.op == "shr")
    one = "1" if shift < 32 else "1LL"
    edit(
        artifact,
        f"{program.name}.cpp",
        rf"( {function}\([^{{]*{{[^}}]*)\({one} << {shift - 1}\)",
        rf"\g<1>({one} << {shift - 2})",
    )
    row = verify_artifact(artifact, list(golden(program, steps=64)), tmp_path / "after")
    assert row.status == MISMATCH
    assert row.divergence is not None
    assert (row.divergence.node, row.divergence.loc) == (node, n.loc)


def test_an_edit_that_loses_a_tap_or_does_not_compile_is_reported(tmp_path: Path) -> None:
    program = mamba_block()
    artifact = built(program, tmp_path / "package")
    v = next(iter(golden(program)))
    edit(artifact, f"{program.name}.cpp", r"ISOBIT_TAP\(0, [^;]*;", "")
    with pytest.raises(InputError, match=r"no ISOBIT_TAP of some element"):
        hls.start(artifact, tmp_path, traced=True).trace(v.inputs, None)
    edit(artifact, f"{program.name}.cpp", "return", "retrun")
    with pytest.raises(ToolFailed, match="retrun"):
        hls.start(artifact, tmp_path, traced=False)


def test_a_session_without_taps_says_so(tmp_path: Path) -> None:
    program = case_program("add", OPS["add"].cases[0])
    session = hls.start(built(program, tmp_path / "package"), tmp_path, traced=False)
    with pytest.raises(InputError, match="traced=True"):
        session.trace(next(iter(golden(program))).inputs, None)


def test_another_process_builds_the_same_bytes(tmp_path: Path) -> None:
    here = built(mamba_block(), tmp_path / "here")
    (tmp_path / "there").mkdir()
    code = (
        "import sys; from pathlib import Path; from tests.models import mamba_block; "
        "from isobit.targets.hls import target; from isobit.targets.target import Options; "
        "target.build(mamba_block(), Path(sys.argv[1]), Options())"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], cwd=root, check=True, env=environment)
    for file in here.files:
        assert (here.folder / file).read_bytes() == (tmp_path / "there" / file).read_bytes(), file
    there = {str(p.relative_to(tmp_path / "there")) for p in (tmp_path / "there").rglob("*") if p.is_file()}
    assert there == set(here.files)


def test_names_that_cpp_or_the_package_already_uses(tmp_path: Path) -> None:
    """A keyword, an index letter, a function, a leading digit, a helper, letters beyond ASCII."""
    t = TensorType(("T", 3), IntType(8))
    params = (("hi", 127), ("lo", -127), ("ma", 3), ("mb", 5), ("s", 3))
    nodes = (
        Node("add", params, ("int", "n"), "add", "tn,tn->tn", "double"),
        Node("add", params, ("add", "n"), "9.clip", "tn,tn->tn", "isobit"),
        Node("add", params, ("9.clip", "add"), "größe", "tn,tn->tn", "9"),
    )
    program = Program("class", (Input("int", t), Input("n", t)), (), (), nodes, ("add", "größe"))
    (row,) = verify(program, ["hls"], list(golden(program))).rows
    assert row.status == EXACT, row.reason
    assert csim(built(program, tmp_path / "package")).returncode == 0


def test_the_package_reads_well(tmp_path: Path) -> None:
    """Lines fit, every layer is named, every reduction and every innermost loop has a pragma."""
    program = mamba_block()
    artifact = built(program, tmp_path / "package")
    for file in artifact.files:
        if file.endswith((".h", ".cpp")):
            lines = (artifact.folder / file).read_text().splitlines()
            assert [x for x in lines if len(x) > COLUMNS or x != x.rstrip()] == [], file
    source = (artifact.folder / f"{program.name}.cpp").read_text()
    for kernel in nest(program).kernels:
        assert f"// {kernel.title}\n" in source
    loops = list(innermost_loops(source))
    assert loops
    assert [loop[0] for loop in loops if not loop[1].startswith("#pragma HLS ")] == []


def innermost_loops(source: str) -> Iterator[list[str]]:
    """Lines of the loops that hold no other, the first is the head."""
    lines = source.splitlines()
    for i, head in enumerate(lines):
        if head.lstrip().startswith("for ("):
            end = lines.index(head[: len(head) - len(head.lstrip())] + "}", i)
            if not any(x.lstrip().startswith("for (") for x in lines[i + 1 : end]):
                yield lines[i:end]


@pytest.mark.slow
@pytest.mark.parametrize("make", [every_case, mamba_block])
def test_the_testbench_passes_with_the_published_ap_types(make: Callable[[], Program], tmp_path: Path) -> None:
    """ISOBIT_AP_TYPES names the folder of Xilinx's own headers, templates/vivado/ap_types in the wheel of hls4ml."""
    folder = os.environ.get("ISOBIT_AP_TYPES")
    if not folder:
        pytest.skip("not run: ISOBIT_AP_TYPES does not name the folder of the AP types in the hls4ml wheel")
    artifact = built(make(), tmp_path / "package")
    edit(artifact, "README.md", "-Wall -Wextra -Wno-unknown-pragmas -I. -Icsim", f"-w -I. -I{Path(folder).resolve()}")
    done = csim(artifact)
    assert done.returncode == 0, done.stderr + done.stdout
