"""`check`: what is not proved is an error that names the user's layer, the bound and the remedy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from isobit.quant.check import check
from isobit.quant.errors import CheckError
from isobit.quant.ops import OPS
from isobit.quant.program import Program, constant, int_type
from isobit.quant.vectors import case_program, golden


def program(op: str, case: int = 0) -> Program:
    return case_program(op, OPS[op].cases[case], "layers.0")


def edit(p: Program, **changes: object) -> Program:
    """The Program with fields of its only node replaced."""
    return replace(p, nodes=(replace(p.nodes[0], **changes),))  # type: ignore[arg-type]


@pytest.mark.parametrize(("op", "case"), [(op, i) for op in OPS for i in range(len(OPS[op].cases))])
def test_every_case_is_accepted_and_its_intervals_hold(op: str, case: int) -> None:
    p = program(op, case)
    known = check(p).ranges[p.outputs[0]]
    for v in golden(p):
        out = v.outputs[p.outputs[0]]
        assert known.lo <= out.min()
        assert out.max() <= known.hi


def test_an_accumulator_that_could_overflow_names_layer_bound_and_remedy() -> None:
    p = program("matmul", 1)
    with pytest.raises(CheckError, match=r"layers\.0 \(matmul.*can reach \[-?\d+, \d+\], an int16.*32-bit accumulator"):
        check(edit(p, params=(("acc", 16),)))


def test_exact_weights_bound_the_accumulator() -> None:
    p = program("matmul", 0)
    weight = p.constants[0]
    ones = replace(p, constants=(constant(weight.name, np.ones_like(weight.array), int_type("i8")), p.constants[1]))
    bias = p.constants[1].array
    known = check(ones).ranges["layers.0.y"]
    assert (known.lo, known.hi) == (int(bias.min()) - 19 * 128, int(bias.max()) + 19 * 127)


def test_a_state_that_could_leave_its_type_is_refused() -> None:
    p = program("linear_recurrence")
    params = tuple((k, 40000 if k == "hi" else v) for k, v in p.nodes[0].params)
    with pytest.raises(CheckError, match=r"state layers\.0\.state can reach .* its type i16 holds"):
        check(edit(p, params=params))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"op": "nonsense"}, "unknown op 'nonsense'"),
        ({"index": "tk,nk->tn"}, "it is for 2 operands, the node has 3"),
        ({"index": "tk,nk,n->tnn"}, "names an axis twice"),
        ({"index": "tk,nk,n->tm"}, "no operand has m"),
        ({"index": "kt,nk,n->tn"}, "t is time"),
        ({"index": "tk,>k,n->tn"}, "not made of letters"),
        ({"index": "tk,nk,n->n"}, "an output has time first"),
        ({"params": ()}, "expected parameters"),
        ({"params": (("acc", 32), ("x", 1))}, "expected parameters"),
        ({"params": (("acc", 33),)}, "an accumulator has"),
        ({"state": "layers.0.state"}, "differ|has no state"),
        ({"inputs": ("layers.0.x0", "missing", "layers.0.x2")}, "missing is not made before"),
    ],
)
def test_malformed_nodes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CheckError, match=message):
        check(edit(program("matmul"), **changes))


def test_two_values_of_one_name_are_refused() -> None:
    p = program("matmul")
    with pytest.raises(CheckError, match="two values have this name"):
        check(replace(p, nodes=p.nodes * 2))


def test_unproved_recurrence_sum_is_refused() -> None:
    p = program("linear_recurrence")
    wide = tuple((k, 40 if k == "up" else v) for k, v in p.nodes[0].params)
    with pytest.raises(CheckError, match=r"layers\.0 .*its update needs 64 bits, acc is 32"):
        check(edit(p, params=wide))


def test_a_reduced_axis_that_the_weight_lacks_is_counted() -> None:
    base = program("matmul")
    wide = replace(base.inputs[0], type=replace(base.inputs[0].type, shape=("T", 19, 3)))
    p = edit(replace(base, inputs=(wide,)), index="tkm,nk,n->tn")
    known = check(p).ranges["layers.0.y"]
    assert max(int(v.outputs["layers.0.y"].max()) for v in golden(p)) <= known.hi
    assert known.hi > check(base).ranges["layers.0.y"].hi
