"""What is particular to the targets `cpu` and `gpu`: builds, taps, memory, kinds of CPU and GPU, planted faults."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

from isobit.export.tvm import build, expression, function, parameters, products
from isobit.quant.check import check
from isobit.quant.errors import InputError
from isobit.quant.expr.symbols import Traced
from isobit.quant.formats import FORMATS
from isobit.quant.interpret import interpret
from isobit.quant.ops import OPS, Case
from isobit.quant.program import Program, constant
from isobit.quant.vectors import Vectors, case_program, golden, join
from isobit.targets.gpu.driver import Device
from isobit.targets.gpu.target import runs_on
from isobit.targets.nest import nest
from isobit.targets.target import Artifact, NotHere, Options, target
from isobit.targets.verify import EXACT, MISMATCH, verify
from tests.models import mamba_block
from tests.primitives import primitive_programs, primitive_vectors
from tests.products import (
    blocked_products,
    groups_of_integers,
    large_sums,
    matrix_products,
    not_only_products,
    packed_products,
    shifted_products,
)
from tests.traced import wrong_taps

pytestmark = pytest.mark.needs("gcc")


def every_case() -> Program:
    """The corner cases of every op in one Program."""
    return join(
        "ops", [case_program(name, c, f"{name}.{i}") for name, op in OPS.items() for i, c in enumerate(op.cases)]
    )


def built(name: str, program: Program, folder: Path, arch: str | None = None) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    return target(name).build(program, folder, Options(arch=arch))


def assert_exact(program: Program, vectors: list[Vectors], arch: str | None = None) -> None:
    (row,) = verify(program, ["cpu"], vectors, Options(arch=arch)).rows
    assert row.status == EXACT, f"{row.reason}\n{row.divergence}"


@pytest.mark.slow
def test_the_taps_of_every_op_equal_the_reference(tmp_path: Path) -> None:
    program = every_case()
    session = target("cpu").start(built("cpu", program, tmp_path / "package"), tmp_path, traced=True)
    for v in golden(program):
        assert wrong_taps(session, program, v) == []


def test_a_session_without_taps_says_so(tmp_path: Path) -> None:
    program = mamba_block()
    session = target("cpu").start(built("cpu", program, tmp_path / "package"), tmp_path, traced=False)
    with pytest.raises(ValueError, match="traced=True"):
        session.trace(next(iter(golden(program))).inputs, None)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_two_builds_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    a, b = (built(name, mamba_block(), tmp_path / folder) for folder in ("one", "another"))
    assert a.files == b.files
    assert len(a.files) == 3
    for file in a.files:
        assert (a.folder / file).read_bytes() == (b.folder / file).read_bytes(), file
    assert sorted(p.name for p in a.folder.iterdir()) == sorted(a.files)


def test_another_process_builds_the_same_bytes(tmp_path: Path) -> None:
    here = built("cpu", mamba_block(), tmp_path / "here")
    (tmp_path / "there").mkdir()
    code = (
        "import sys; from pathlib import Path; from tests.models import mamba_block; "
        "from isobit.targets.target import Options, target; "
        "target('cpu').build(mamba_block(), Path(sys.argv[1]), Options())"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], cwd=root, check=True)
    for file in here.files:
        assert (here.folder / file).read_bytes() == (tmp_path / "there" / file).read_bytes(), file


FAULTS = [
    ("block.conv.y", 1 << 30, 0, "rounding half up becomes rounding down"),
    ("block.ssm.o", 1 << 14, 0, "the recurrence rounds down"),
    ("block.norm.inverse", 49152, 49152 + 512, "a Newton step is off"),
    ("block.out_proj.y", -32767, -32768, "saturation reaches one further"),
]


@pytest.mark.parametrize(("node", "constant", "instead", "what"), FAULTS, ids=[f[0] for f in FAULTS])
def test_a_planted_fault_is_found_and_named(
    node: str, constant: int, instead: int, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = mamba_block()
    victim, printed, faults = check(program).bodies[node], expression.expression, list[int]()

    def literal(value: int, dtype: str = "int32") -> Any:
        faults.extend([value] * (value == constant))
        return imm(instead if value == constant else value, dtype)

    def faulty(traced: Traced, operands: list[Any], block: expression.Block) -> Any:
        monkeypatch.setattr(expression, "imm", literal if traced is victim else imm)
        return printed(traced, operands, block)

    imm = expression.imm
    monkeypatch.setattr(function, "expression", faulty)
    (row,) = verify(program, ["cpu"], list(golden(program, steps=64))).rows
    assert faults, "the constant is not in the definition"
    assert row.status == MISMATCH, what
    assert row.divergence is not None
    assert row.divergence.node == node
    assert row.divergence.expected != row.divergence.got


def test_a_library_rebuilt_in_place_is_the_new_one(tmp_path: Path) -> None:
    for seed in (0, 1):
        program = mamba_block(seed=seed)
        v = next(iter(golden(program)))
        session = target("cpu").start(built("cpu", program, tmp_path / "package"), tmp_path, traced=False)
        outputs = session.run(v.inputs, None, by_step=False).outputs
        assert all(np.array_equal(outputs[k], v.outputs[k]) for k in v.outputs)


@pytest.mark.parametrize("limit", ["STACK_BYTES", "SHARED_BYTES"])
def test_scratch_that_is_too_large_for_its_memory(limit: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = mamba_block()
    monkeypatch.setattr(function, limit, 40)
    if limit == "STACK_BYTES":
        assert_exact(program, list(golden(program)))
        return
    artifact = built("gpu", program, tmp_path)
    described = json.loads((tmp_path / artifact.files[2]).read_text())
    assert [p["shape"] for p in described["parameters"] if p["role"] == "workspace"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="not run: names of x86 CPUs")
@pytest.mark.slow
@pytest.mark.parametrize("arch", ["x86-64", "x86-64-v3"])
def test_other_cpus_give_the_same_integers(arch: str) -> None:
    program = every_case()
    assert_exact(program, list(golden(program)), arch)


def taken(program: Program) -> set[str]:
    """The nodes of products by vector instructions."""
    found = products.products(nest(program, inside=False)).values()
    return {n for p in found for n in (p.node.output, *([p.sums.value, p.sums.kernel.name] if p.sums else []))}


LANES = {"znver5": 16, "cascadelake": 16, "alderlake": 8, "x86-64-v3": 0}


def test_lanes_of_cpus() -> None:
    assert {arch: build.dot_lanes(arch) for arch in LANES} == LANES


CPUS = {name: (name, lanes) for name, lanes in LANES.items()} | {"cascadelake by half vectors": ("cascadelake", 8)}
PRODUCTS = (matrix_products, packed_products, blocked_products, shifted_products)


@pytest.mark.parametrize(
    ("arch", "lanes", "make"),
    [
        pytest.param(*cpu, make, id=f"{name}-{make.__name__}", marks=[] if quick else [pytest.mark.slow])
        for name, cpu in CPUS.items()
        for make in PRODUCTS
        for quick in [name == "cascadelake" or make in PRODUCTS[:2]]
    ],
)
def test_matrix_products_by_vector_instructions(
    arch: str, lanes: int, make: Callable[[], Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    if platform.machine() != "x86_64" or build.missing_features(arch):
        pytest.skip(f"not run: this CPU cannot run code for {arch}")
    program = make()
    assert taken(program) == {n.output for n in program.nodes}
    monkeypatch.setattr(build, "dot_lanes", lambda cpu: lanes)
    assert_exact(program, list(golden(program)), arch)


def test_a_power_of_two_beyond_two_limbs_is_no_vector_product() -> None:
    f = FORMATS["pot5"]
    case = Case("", "tk,nk,n->tn", {"n": 19, "k": 37}, ("i8", "=i8", "=i20"), {"acc": 32})
    made = case_program("matmul", case, "pot5")
    weight = constant("pot5.x1", np.full((19, 37), f.largest), f.elem, mantissa=f.mantissa)
    program = replace(made, constants=(weight, made.constants[1]))
    assert taken(program) == set()
    assert_exact(program, list(golden(program)))


def test_the_taps_of_sums_in_blocks(tmp_path: Path) -> None:
    plain, shifted = (groups_of_integers([16, 64], exponents) for exponents in (0, 3))
    program = join("tapped", [*plain, large_sums(factor=1), *shifted, large_sums(factor=1, exponents=5)])
    assert taken(program) == {n.output for n in program.nodes}
    session = target("cpu").start(built("cpu", program, tmp_path / "package"), tmp_path, traced=True)
    for v in golden(program):
        assert wrong_taps(session, program, v) == []


LEFT = ["read twice", "an output", "too large", "shifted after an output", "shifted to an output", "by row", "too far"]


@pytest.mark.parametrize("number", range(len(LEFT)), ids=LEFT)
def test_sums_in_blocks_that_stay_in_plain_loops(number: int) -> None:
    program = not_only_products()[number]
    assert taken(program) == set()
    assert_exact(program, list(golden(program)))


@pytest.mark.parametrize("found", [build.INVALID, "another error"])
def test_invalid_code_is_made_again_without_the_vectorizer(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, targets = build._compiled, list[dict[str, Any]]()

    def failing(function: function.Function, target: dict[str, Any]) -> Any:
        targets.append(target)
        if "cl-opt" not in target:
            raise tvm.error.InternalError(found)
        return made(function, target)

    monkeypatch.setattr(build, "_compiled", failing)
    program = mamba_block()
    if found == build.INVALID:
        assert_exact(program, list(golden(program)))
    else:
        with pytest.raises(tvm.error.InternalError, match=found):
            assert_exact(program, list(golden(program)))
    assert len(targets) == 1 + (found == build.INVALID)


def test_an_unknown_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"'nonsense'; this machine's is '{build.host_cpu()}'"):
        built("cpu", mamba_block(), tmp_path, arch="nonsense")


def test_a_library_for_another_cpu_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert build.missing_features(build.host_cpu()) == []
    artifact = built("cpu", mamba_block(), tmp_path)
    monkeypatch.setattr(build, "missing_features", lambda cpu: ["avx512f"])
    with pytest.raises(NotHere, match="this CPU lacks avx512f"):
        target("cpu").start(artifact, tmp_path, traced=False)


def test_arrays_beyond_32_bit_indices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "MOST_ELEMENTS", 16 * 8)
    program = mamba_block()
    arguments = function.sequence(nest(program), traced=False).parameters
    calls = list[list[Any]]()

    def run(steps: int) -> None:
        x = {"x": np.zeros((1, steps, 8), np.int64)}
        parameters.run_calls(program, arguments, calls.append, x, None, by_step=False)

    run(16)
    with pytest.raises(InputError, match="fewer time steps"):
        run(17)
    assert len(calls) == 1


def test_every_op_and_primitive_compiles_for_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ops, programs = primitive_programs()
    for key, op in ops.items():
        monkeypatch.setitem(OPS, key, op)
    for program in (every_case(), *programs):
        artifact = built("gpu", program, tmp_path / program.name)
        described = json.loads((artifact.folder / artifact.files[2]).read_text())
        assert f"{described['kernel']}(" in (artifact.folder / artifact.files[0]).read_text()
        assert (artifact.folder / artifact.files[1]).read_bytes().startswith(b"\x7fELF")
        names = [p["name"] for p in described["parameters"] if p["role"] in ("input", "state", "output")]
        assert len(names) == len(set(names)) >= len(program.outputs) + len(program.states)


def test_an_unknown_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sm_90"):
        built("gpu", mamba_block(), tmp_path, arch="sm_1")


@pytest.mark.parametrize(
    ("arch", "device", "runs"),
    [("sm_80", "sm_86", True), ("sm_90", "sm_86", False), ("sm_90", "sm_90", True), ("sm_90a", "sm_90", True),
     ("sm_90a", "sm_100", False), ("sm_90", "sm_100", False), ("sm_100", "sm_103", True)],
)  # fmt: skip
def test_which_machine_code_runs_on_which_gpu(arch: str, device: str, runs: bool) -> None:
    assert runs_on(arch, device) is runs


def has_gpu() -> bool:
    try:
        Device()
    except NotHere:
        return False
    return True


def test_without_a_gpu_the_reason_is_given(tmp_path: Path) -> None:
    if has_gpu():
        pytest.skip("not run: this machine has a GPU")
    artifact = built("gpu", mamba_block(), tmp_path)
    with pytest.raises(NotHere, match="compiled, no GPU"):
        target("gpu").start(artifact, tmp_path, traced=False)


def test_on_a_gpu_every_op_and_primitive_is_exact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not has_gpu():
        pytest.skip("not run: no GPU")
    ops, programs = primitive_programs()
    for key, op in ops.items():
        monkeypatch.setitem(OPS, key, op)
    arch = Device().arch
    for program in (every_case(), mamba_block(), *programs):
        vectors = list(golden(program))
        if program in programs:
            inputs = primitive_vectors(program)
            vectors.append(Vectors("primitives", "every pair", inputs, *interpret(program, inputs)))
        (row,) = verify(program, ["gpu"], vectors, Options(arch=arch)).rows
        assert row.status == EXACT, f"{row.reason}\n{row.divergence}"


def test_importing_the_targets_does_not_import_tvm() -> None:
    code = "import sys, isobit.targets.cpu.target, isobit.targets.gpu.target; sys.exit('tvm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
