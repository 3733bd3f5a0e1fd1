"""The saved form: every op case and every primitive in ONNX Runtime equals the reference, and reads back unchanged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from isobit.export.onnx.emit import emit, to_bytes
from isobit.export.onnx.functions import next_name
from isobit.export.onnx.load import load, save
from isobit.quant.errors import CheckError
from isobit.quant.interpret import interpret
from isobit.quant.ops import OPS, Op, Structure
from isobit.quant.ops.moves import Move, affine
from isobit.quant.ops.op import Case
from isobit.quant.program import Arrays, Input, IntType, Labels, Node, Program, State, TensorType
from isobit.quant.vectors import case_program, edges, golden, join
from isobit.targets.ort import target as ort
from isobit.targets.target import Options
from isobit.targets.verify import EXACT, MISMATCH, verify, verify_artifact
from tests.feedback import FEEDBACK, gated_cell
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


@pytest.mark.parametrize("make", [every_case, *FEEDBACK.values()], ids=["cases", *FEEDBACK])
def test_a_second_runtime(make: Callable[[], Program]) -> None:
    """The evaluator of the ONNX project, which is written in numpy."""
    program = make()
    evaluator = ReferenceEvaluator(emit(program))
    for v in golden(program):
        start = v.start or program.initial_states(v.batch)
        types = {i.name: i.type for i in program.inputs} | {s.name: s.type for s in program.states}
        feeds = {name: x.astype(types[name].elem.dtype) for name, x in {**v.inputs, **start}.items()}
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


ALONG_ONE = {"acc": 32, "stride0": 1, "dilation0": 1}
ALONG_TWO = {**ALONG_ONE, "stride1": 1, "dilation1": 1}
SCAN = {"up": 14, "acc": 64, "lo": -32768, "hi": 32767}

BEYOND: list[tuple[str, Case]] = [
    ("matmul", Case("sums above 2^53", "tk,nk,n->tn", {"k": 5, "n": 3}, ("i32", "=i30", "=i32"), {"acc": 64})),
    ("matmul", Case("a row per channel", "tck,ck,c->tc", {"k": 5, "c": 3}, ("i8", "=i8", "=i20"), {"acc": 32})),
    ("matmul", Case("such above 2^53", "tck,ck,c->tc", {"k": 5, "c": 3}, ("i32", "=i30", "=i32"), {"acc": 64})),
    ("matmul", Case("activations", "tk,tnk,n->tn", {"k": 9, "n": 3}, ("i8", "i8", "=i20"), {"acc": 32})),
    ("matmul", Case("two sums", "tkj,njk,n->tn", {"k": 9, "j": 4, "n": 3}, ("i8", "=i8", "=i20"), {"acc": 32})),
    ("matmul", Case("and above 2^53", "tkj,njk,n->tn", {"k": 3, "j": 4, "n": 3}, ("i32", "=i28", "=i32"), {"acc": 64})),
    ("matmul", Case("summed weight", "tk,nkj,n->tn", {"k": 3, "j": 4, "n": 3}, ("i8", "=i8", "=i20"), {"acc": 32})),
    ("matmul", Case("two rows", "tck,nk,n->tcn", {"k": 9, "c": 4, "n": 3}, ("i8", "=i8", "=i20"), {"acc": 32})),
    ("matmul", Case("two columns", "tk,mnk,mn->tnm", {"k": 9, "m": 4, "n": 3}, ("i8", "=i8", "=i20"), {"acc": 32})),
    ("matmul", Case("one output", "tck,k,c->tc", {"k": 9, "c": 4}, ("i8", "=i8", "=i20"), {"acc": 32})),
    ("matmul", Case("groups", "tkg,gnk,gn->tng", {"k": 9, "g": 4, "n": 3}, ("i8", "=i8", "=i20"), {"acc": 32})),
    ("matmul", Case("constant first", "nk,tck,n->tnc", {"k": 9, "c": 4, "n": 3}, ("=i16", "i8", "=i20"), {"acc": 32})),
    ("matmul", Case("wide bias", "tk,nk,n->tn", {"k": 9, "n": 3}, ("i8", "=i8", "=i40"), {"acc": 64})),
    ("dot", Case("outer", "tc,tn->tnc", {"c": 4, "n": 3}, ("i8", "i16"), {"acc": 32})),
    ("dot", Case("above 2^53", "tqhd,thdk->thkq", {"h": 2, "q": 3, "k": 4, "d": 5}, ("i32", "i29"), {"acc": 64})),
    ("dot", Case("many", "tahie,tejah->tjihe", {"a": 2, "h": 3, "i": 4, "e": 2, "j": 5}, ("i8", "i8"), {"acc": 32})),
    ("dot", Case("no axis of its own", "tck,tck->tc", {"c": 4, "k": 3}, ("i8", "i16"), {"acc": 32})),
    ("sum_squares", Case("above 2^53", "tk->t", {"k": 7}, ("i30",), {"acc": 64})),
    ("reduce_sum", Case("nothing", "tlc->tcl", {"l": 2, "c": 3}, ("i16",), {"acc": 32})),
    ("reduce_max", Case("nothing", "tlc->tcl", {"l": 2, "c": 3}, ("i16",), {"acc": 32})),
    ("reduce_max", Case("two axes", "tlcd->tc", {"l": 3, "c": 4, "d": 5}, ("i64",), {"acc": 64})),
    ("reduce_max", Case("one element", "tlc->tc", {"l": 1, "c": 4}, ("i64",), {"acc": 64})),
    ("convolution", Case("groups", "tlgc,gnic,gn->tmgn", {"l": 7, "i": 3, "g": 2, "c": 4, "n": 3},
                         ("i8", "=i8", "=i20"), ALONG_ONE | {"stride0": 2})),
    ("convolution", Case("16 bits", "tcyx,ncij,n->tnvu", {"c": 2, "y": 5, "x": 6, "i": 2, "j": 3, "n": 3},
                         ("i16", "=i8", "=i20"), ALONG_TWO | {"dilation0": 2, "dilation1": 2})),
    ("convolution", Case("above 2^53", "tlc,nic,n->tnm", {"l": 4, "i": 2, "c": 2, "n": 3},
                         ("i32", "=i28", "=i32"), ALONG_ONE | {"acc": 64})),
    ("convolution", Case("each channel, stride 3", "txyc,jic,c->tuvc", {"x": 8, "y": 9, "i": 2, "j": 3, "c": 2},
                         ("i32", "=i28", "=i32"), ALONG_TWO | {"acc": 64, "stride0": 3, "stride1": 3})),
    ("convolution", Case("one output", "tlc,ic,c->tmc", {"l": 4, "i": 4, "c": 2}, ("i8", "=i8", "=i20"), ALONG_ONE)),
    ("causal_conv1d", Case("a wider ring", "tc,cj,c->tc", {"c": 3, "j": 3}, ("i8", "=i8", "=i20"), {"acc": 32}, "i16")),
    ("causal_conv1d", Case("dense above 2^53", "tc,ncj,n->tn", {"c": 3, "j": 3, "n": 2},
                           ("i30", "=i29", "=i20"), {"acc": 64}, "i32")),
    ("history", Case("a wider ring", "tc->twc", {"c": 3}, ("i8",), {"length": 5}, "i24")),
    ("embedding", Case("narrow values", "tcl,ve->tcle", {"c": 2, "l": 3, "v": 4, "e": 5}, ("u2", "=i40"))),
    ("concat", Case("of the last axis", "tca,tcd,tce->tcn", {"c": 4, "a": 1, "d": 6, "e": 3}, ("i8", "i32", "i40"))),
    ("concat", Case("blocks", "tca,tcd->tcn", {"c": 4, "a": 2, "d": 6}, ("i8", "i8"))),
    ("take", Case("one of a vector", "tl->tm", {"l": 5}, ("i16",), {"start": 3, "step": 1, "size": 1})),
    ("take", Case("off its blocks", "tl->tm", {"l": 6}, ("i16",), {"start": 1, "step": 1, "size": 3})),
    ("take", Case("a block", "tlc->tmc", {"l": 6, "c": 4}, ("i16",), {"start": 2, "step": 1, "size": 2})),
    ("take", Case("backwards", "tlc->tlm", {"l": 2, "c": 7}, ("i16",), {"start": 6, "step": -3, "size": 3})),
    ("pad", Case("wider values", "tlc->tlm", {"l": 2, "c": 7}, ("i8",), {"before": 1, "after": 2, "fill": 999})),
    ("pad", Case("with nothing", "tlc->tlm", {"l": 2, "c": 7}, ("i8",), {"before": 0, "after": 0, "fill": 9})),
    ("transpose", Case("64 bits", "tlc->tcl", {"l": 2, "c": 3}, ("i64",))),
    ("multiply", Case("turned", "tcn,nc->tcn", {"c": 3, "n": 4}, ("i8", "=i8"), {"m": 1, "s": 3, "lo": -9, "hi": 9})),
    ("diagonal_recurrence", Case("an axis before", "lc,tcl->tlc|c", {"l": 5, "c": 3}, ("=u15", "i16"), SCAN)),
    ("diagonal_recurrence", Case("an axis after", "tc,tcl->tcl|c", {"l": 5, "c": 3}, ("u15", "i16"), SCAN)),
    ("linear_recurrence", Case("an axis between", "tlk,tvl,tkl,lk->tvl|vk", {"l": 5, "v": 3, "k": 2},
                               ("u15", "i16", "i8", "=i8"), SCAN | {"up": 7})),
    ("hold", Case("a constant", "c->tc|c", {"c": 3}, ("=i8",), {"acc": 32}, "i8")),
]  # fmt: skip


@pytest.mark.parametrize(("op", "case"), BEYOND, ids=lambda x: x.why if isinstance(x, Case) else x)
def test_structures_beyond_the_cases(op: str, case: Case) -> None:
    assert_exact(op, case)


def assert_exact(op: str, case: Case) -> None:
    program = case_program(op, case)
    data = to_bytes(program)
    assert load(data) == program
    session = ort.OrtSession(program, data)
    for v in golden(program):
        run = session.run(v.inputs, v.start, by_step=False)
        assert_equal(dict(run.outputs), v.outputs)
        assert_equal(dict(run.states), v.states)


@pytest.mark.parametrize("elem", ["i8", "i16", "i32", "i33", "i64"])
@pytest.mark.parametrize("index", ["tlk->tl", "tkl->tl", "tkl->t"])
def test_the_largest_of_edges(elem: str, index: str) -> None:
    """On int64, ONNX Runtime's ReduceMax over an axis that is not the last is wrong."""
    program = case_program("reduce_max", Case("edges", index, {"k": 7, "l": 9}, (elem,), {"acc": 64}))
    rng, t = np.random.default_rng(0), program.inputs[0].type
    x = {"case.x0": rng.choice(edges(t.elem), (2, 512, *t.dims))}
    outputs, _ = interpret(program, x)
    assert_equal(dict(ort.OrtSession(program, to_bytes(program)).run(x, None, by_step=False).outputs), outputs)


@pytest.mark.parametrize("make", FEEDBACK.values(), ids=FEEDBACK)
def test_feedback(make: Callable[[], Program], tmp_path: Path) -> None:
    """By step, whole, and resumed; every node traced, those that never leave the loop too."""
    program = make()
    assert load(to_bytes(program)) == program
    (row,) = verify(program, ["ort"], list(golden(program))).rows
    assert row.status == EXACT, f"{row.reason}\n{row.divergence}"
    traced = ort.start(ort.build(program, tmp_path, Options()), tmp_path, traced=True)
    for v in golden(program):
        taps: Arrays = {}
        interpret(program, v.inputs, v.start, taps)
        assert_equal(traced.trace(v.inputs, v.start), taps)


def test_the_graph_of_a_loop() -> None:
    """One Scan, out of which come the new states, then what is read outside of it."""
    program = gated_cell()
    model = emit(program)
    onnx.checker.check_model(model, full_check=True)
    (scan,) = [n for n in model.graph.node if n.op_type == "Scan"]
    assert list(scan.output) == ["cell.c.next", "cell.h.next", "cell.forget.gate@steps", "cell.cell.y@steps"]
    body = next(a.g for a in scan.attribute if a.name == "body")
    called = [n for n in body.node if n.domain == "isobit"]
    assert [n.name for n in called] == [n.output for n in program.nodes[1:14]]
    assert list(called[0].input) == ["cell.h@t", "cell.gates.w_h", "cell.gates.b_h"]
    hold = called[-1]
    assert (list(hold.input), list(hold.output)) == (["cell.cell.h@t", "cell.h@old"], ["cell.cell.y@t", "cell.h@new"])
    function = next(f for f in model.functions if f.name == hold.op_type)
    assert "Scan" not in [n.op_type for n in function.node]
    assert {v.name for v in model.graph.value_info} == {"cell.gates.x", "cell.cell.y", "cell.head.acc"}


def test_a_fault_in_a_loop_names_the_node(tmp_path: Path) -> None:
    """One that never leaves the loop, so that only a traced build shows it."""
    (tmp_path / "package").mkdir()
    artifact = ort.build(gated_cell(), tmp_path / "package", Options())
    model = onnx.load(tmp_path / "package" / ort.FILE)
    constants = [n for f in model.functions if f.name == "multiply__1" for n in f.node if n.op_type == "Constant"]
    (half,) = [c.attribute[0].t for c in constants if numpy_helper.to_array(c.attribute[0].t) == 1 << 18]
    half.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(half) ^ 3 << 17))
    onnx.save(model, tmp_path / "package" / ort.FILE)
    row = verify_artifact(artifact, list(golden(gated_cell())), tmp_path / "run")
    assert (row.status, row.divergence and row.divergence.node) == (MISMATCH, "cell.cell.h")


def old_state_times_query(state: Any, q: Any, p: Any) -> Any:
    """S * q * p, a readout that only this test knows."""
    return state * q * p


@pytest.mark.parametrize("state", ["i16", ""])
@pytest.mark.parametrize("reads_old", [False, True])
def test_two_queries(state: str, reads_old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Op(Structure.RECURRENCE, OPS["outer_sum"].define, readout=old_state_times_query, reads_old=reads_old)
    monkeypatch.setitem(OPS, "two_queries", row)
    sizes, params = {"l": 4, "v": 3, "k": 2}, {"lo": -32768, "hi": 32767, "acc": 64}
    index = "tv,tk,tk,k->tv|vk" if state else "tlv,tlk,tk,lk->tlv|vk"
    assert_exact("two_queries", Case("", index, sizes, ("i8", "i8", "i8", "=i8"), params, state))


def framed(x: Any) -> Any:
    """Two fives, a nine, then x: a layout that only this test knows."""
    return x


def framed_moves(labels: Labels, sizes: Mapping[str, int]) -> tuple[Move, ...]:
    nine, moved = affine(("m", 1), by=2), affine(("l", 1), by=3)
    x = Move((("l", sizes["l"]),), 0, ("l",), (moved,))
    return Move((("m", 2),), None, (), ("m",), fill=5), Move((("m", 1),), None, (), (nine,), fill=9), x


def test_two_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Op(Structure.LAYOUT, framed, moves=framed_moves, sizes=lambda labels, sizes: {"m": sizes["l"] + 3})
    monkeypatch.setitem(OPS, "framed", row)
    assert_exact("framed", Case("", "tl->tm", {"l": 4}, ("i8",)))


def test_rows_move_whole() -> None:
    """A table has an entry for every row, and none where the order stays."""

    def entries(op: str) -> list[int]:
        (f,) = emit(case_program(op, OPS[op].cases[0])).functions
        tables = {n.input[1] for n in f.node if n.op_type == "Gather"}
        return [a.t.dims[0] for n in f.node for a in n.attribute if n.output[0] in tables]

    assert (entries("pad"), entries("concat"), entries("merge_axes")) == ([7], [], [])


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
    assert not {n.op_type for n in used} & {"Clip", "Min", "Max", "Sign", "ReduceMin"}
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
    loop = gated_cell()
    marked = Input("x@t", loop.inputs[0].type)
    first = Node(**{**vars(loop.nodes[0]), "inputs": ("x@t", *loop.nodes[0].inputs[1:])})
    with pytest.raises(CheckError, match="x@t: '@' marks values inside of a feedback loop: rename it"):
        emit(replace(loop, inputs=(marked,), nodes=(first, *loop.nodes[1:])))
