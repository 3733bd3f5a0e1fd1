"""The saved form: every op case and every primitive in ONNX Runtime equals the reference, and reads back unchanged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from isobit.export.onnx.emit import emit, next_name, to_bytes
from isobit.export.onnx.load import load, save
from isobit.quant.errors import CheckError
from isobit.quant.interpret import interpret
from isobit.quant.ops import OPS
from isobit.quant.ops.op import Case
from isobit.quant.program import Arrays, IntType, Node, Program, State, TensorType
from isobit.quant.vectors import case_program, golden, join
from isobit.targets.ort import target as ort
from isobit.targets.target import Options
from tests.primitives import PRIMITIVES, primitive_programs, primitive_vectors

CASES = [(op, case, f"{op}_{i}") for op, row in OPS.items() for i, case in enumerate(row.cases)]
CHUNK = 1024


def every_case() -> Program:
    return join("cases", [case_program(*case) for case in CASES])


def assert_equal(got: Arrays, expected: Arrays) -> None:
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)


def test_every_case_in_onnx_runtime(tmp_path: Path) -> None:
    program = every_case()
    artifact = ort.build(program, tmp_path, Options())
    session, traced = (ort.start(artifact, tmp_path, traced) for traced in (False, True))
    for v in golden(program):
        for by_step in (False, True):
            run = session.run(v.inputs, v.start, by_step)
            assert_equal(dict(run.outputs), v.outputs)
            assert_equal(dict(run.states), v.states)
        taps: Arrays = {}
        interpret(program, v.inputs, v.start, taps)
        assert_equal(traced.trace(v.inputs, v.start), taps)


@pytest.mark.parametrize(
    "op", ["silu", "rsqrt", "matmul", "sum_squares", "causal_conv1d", "linear_recurrence", "step_count"]
)
def test_a_second_runtime(op: str) -> None:
    """The evaluator of the ONNX project, which is written in numpy."""
    program = join("cases", [case_program(*case) for case in CASES if case[0] == op])
    evaluator = ReferenceEvaluator(emit(program))
    for v in golden(program):
        start = v.start or program.initial_states(v.batch)
        types = {x.name: x.type.elem.dtype for x in program.inputs} | {
            x.name: x.type.elem.dtype for x in program.states
        }
        feeds = {name: x.astype(types[name]) for name, x in {**v.inputs, **start}.items()}
        expected = v.outputs | {next_name(s): x for s, x in v.states.items()}
        got = list(evaluator.run(list(expected), feeds))
        assert_equal(dict(zip(expected, got, strict=True)), expected)


@pytest.mark.parametrize("position", [0, 1])
def test_every_primitive_at_full_range(position: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ops, programs = primitive_programs()
    for name, row in ops.items():
        monkeypatch.setitem(OPS, name, row)
    program = programs[position]
    data = to_bytes(program)
    assert load(data) == program
    session, inputs = ort.OrtSession(program, data), primitive_vectors(program)
    steps = next(iter(inputs.values())).shape[1]
    for t in range(0, steps, CHUNK):
        some = {name: x[:, t : t + CHUNK] for name, x in inputs.items()}
        outputs, _ = interpret(program, some)
        assert_equal(dict(session.run(some, None, by_step=False).outputs), outputs)
        assert_python_agrees(program, some, outputs)


def assert_python_agrees(program: Program, inputs: Arrays, outputs: Arrays, samples: int = 16) -> None:
    """The definitions on Python's integers, which never wrap."""
    rng = np.random.default_rng(0)
    for n in program.nodes:
        define, expected = PRIMITIVES[n.op.removeprefix("primitive_")].define, outputs[n.output].ravel()
        for at in rng.integers(0, expected.size, samples):
            operands = [int(inputs[i].ravel()[at]) for i in n.inputs]
            assert int(define(*operands, **n.param)) == expected[at], (n.output, operands)


@pytest.mark.parametrize(
    ("op", "case"),
    [
        ("matmul", Case("sums above 2^53", "tk,nk,n->tn", {"k": 5, "n": 3}, ("i32", "=i30", "=i32"), {"acc": 64})),
        ("matmul", Case("a row per channel", "tck,ck,c->tc", {"k": 5, "c": 3}, ("i8", "=i8", "=i20"), {"acc": 32})),
        (
            "matmul",
            Case("such sums above 2^53", "tck,ck,c->tc", {"k": 5, "c": 3}, ("i32", "=i30", "=i32"), {"acc": 64}),
        ),
        ("matmul", Case("activations", "tk,tnk,n->tn", {"k": 9, "n": 3}, ("i8", "i8", "=i20"), {"acc": 32})),
        (
            "matmul",
            Case("two reduced indices", "tkj,njk,n->tn", {"k": 9, "j": 4, "n": 3}, ("i8", "=i8", "=i20"), {"acc": 32}),
        ),
        (
            "matmul",
            Case("and above 2^53", "tkj,njk,n->tn", {"k": 3, "j": 4, "n": 3}, ("i32", "=i28", "=i32"), {"acc": 64}),
        ),
        (
            "matmul",
            Case("two kept indices", "tck,nk,n->tcn", {"k": 9, "c": 4, "n": 3}, ("i8", "=i8", "=i20"), {"acc": 32}),
        ),
        ("matmul", Case("wide bias", "tk,nk,n->tn", {"k": 9, "n": 3}, ("i8", "=i8", "=i40"), {"acc": 64})),
        ("sum_squares", Case("above 2^53", "tk->t", {"k": 7}, ("i30",), {"acc": 64})),
        (
            "causal_conv1d",
            Case("a wider ring", "tc,cj,c->tc", {"c": 3, "j": 3}, ("i8", "=i8", "=i20"), {"acc": 32}, "i16"),
        ),
        (
            "multiply",
            Case("broadcast", "tcn,nc->tcn", {"c": 3, "n": 4}, ("i8", "=i8"), {"m": 1, "s": 3, "lo": -9, "hi": 99}),
        ),
    ],
    ids=lambda x: x.why if isinstance(x, Case) else x,
)
def test_structures_beyond_the_cases(op: str, case: Case) -> None:
    program = case_program(op, case)
    data = to_bytes(program)
    assert load(data) == program
    session = ort.OrtSession(program, data)
    for v in golden(program):
        run = session.run(v.inputs, v.start, by_step=False)
        assert_equal(dict(run.outputs), v.outputs)
        assert_equal(dict(run.states), v.states)


def test_a_file_holds_the_program(tmp_path: Path) -> None:
    program = described()
    save(program, tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert load(tmp_path / "m.onnx") == program
    assert load(str(tmp_path / "m.onnx")) == program
    assert load((tmp_path / "m.onnx").read_bytes()) == program
    save(every_case(), tmp_path / "m.onnx")
    assert load(tmp_path / "m.onnx") == every_case()


def described() -> Program:
    """What the cases lack: scales, an initial value, one function for two nodes."""
    p = case_program("running_sum", OPS["running_sum"].cases[0], "sum")
    state = State("sum.state", TensorType(p.states[0].type.shape, IntType(18), 0.1), -7)
    scaled = Node(**{**vars(p.nodes[0]), "scale": 0.1, "loc": "layers.0.größe"})
    again = [case_program("requantize", OPS["requantize"].cases[0], name) for name in ("a", "b")]
    return join("described", [Program(p.name, p.inputs, p.constants, (state,), (scaled,), p.outputs), *again])


def test_the_graph_has_the_documented_signature() -> None:
    model = emit(described())
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 10
    assert {o.domain: o.version for o in model.opset_import} == {"": 21, "isobit": 1}

    def shapes(values: list[onnx.ValueInfoProto]) -> dict[str, list[int | str]]:
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    assert shapes(list(model.graph.input)) == {
        "sum.x0": ["B", "T", 3], "a.x0": ["B", "T", 64], "b.x0": ["B", "T", 64], "sum.state": ["B", 3]
    }  # fmt: skip
    assert list(shapes(list(model.graph.output))) == ["sum.y", "a.y", "b.y", "sum.state.next"]
    assert [f.name for f in model.functions] == ["running_sum__1", "requantize__1"]
    assert [f.doc_string for f in model.functions] == [OPS[op].summary for op in ("running_sum", "requantize")]
    assert [n.op_type for n in model.graph.node] == ["running_sum__1", "requantize__1", "requantize__1"]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in model.graph.node[0].attribute}
    assert attributes == {
        "acc": 32, "hi": 65534, "lo": -65534, "index": b"tc->tc|c", "loc": "layers.0.größe".encode(), "scale": b"0.1",
        "state": b"sum.state",
    }  # fmt: skip


def test_no_operator_that_some_runtime_gets_wrong() -> None:
    """int64 Clip, Min, Max and Sign in ONNX Runtime; MatMulInteger of unsigned by signed on x86 without VNNI."""
    used = [n for f in emit(every_case()).functions for n in f.node]
    assert not {n.op_type for n in used} & {"Clip", "Min", "Max", "Sign", "ReduceMax", "ReduceMin"}
    products = [n for n in used if n.op_type == "MatMulInteger"]
    assert products
    assert all(len(n.input) == 4 and n.input[2] == n.input[3] for n in products)


def test_bytes_do_not_depend_on_the_process() -> None:
    script = (
        "import hashlib; from tests.conformance.test_onnx import every_case, to_bytes;"
        "print(hashlib.sha256(to_bytes(every_case())).hexdigest())"
    )
    root = Path(__file__).parents[2]
    seen = set()
    for seed in ("0", "1"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True, check=True
        )
        seen.add(done.stdout)
    assert len(seen) == 1


def test_a_program_that_onnx_cannot_hold() -> None:
    p = case_program("running_sum", OPS["running_sum"].cases[0], "sum")
    taken = Node(**{**vars(p.nodes[0]), "output": "sum.state.next"})
    with pytest.raises(CheckError, match="is the new value of state"):
        emit(Program(p.name, p.inputs, p.constants, p.states, (taken,), ("sum.state.next",)))
