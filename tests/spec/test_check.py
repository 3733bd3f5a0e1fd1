"""`check`: what is not proved is an error that names the user's layer, the bound and the remedy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from isobit.quant.check import check
from isobit.quant.errors import CheckError
from isobit.quant.ops import OPS
from isobit.quant.program import Input, IntType, Program, constant, int_type
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
        ({"index": "tb,nb,n->tn"}, "b is the batch"),
        ({"index": "tk,nk,n->tn|n"}, "only a recurrence has axes of a state"),
        ({"index": "kx,nk,n->tn"}, "no operand has t"),
        ({"index": "tk,nn,n->tn"}, "names an axis twice in 'nn'"),
        ({"index": "tk,n,n->tn"}, r"x1 has shape \(5, 19\), its index is 'n'"),
        ({"index": "tk,tk,n->tn"}, "none has n"),
        ({"index": "tn,tk,n->tn"}, r"x1 has shape \(5, 19\), its index is 'tk': t is time"),
        ({"index": "tn,nk,n->tn"}, r"index n is 19 and, in layers\.0\.x1, 5"),
        ({"index": "tn,kn,n->tk"}, "starts from 'n', which has an axis that the output lacks"),
        ({"params": ()}, "expected parameters"),
        ({"params": (("acc", 32), ("x", 1))}, "expected parameters"),
        ({"params": (("acc", 32), ("acc", 64))}, r"expected parameters \['acc'\], got \['acc', 'acc'\]"),
        ({"params": (("acc", 33),)}, "an accumulator has"),
        ({"params": (("acc", 32.0),)}, "acc is 32.0, expected an integer of 64 bits"),
        ({"state": "layers.0.state"}, r"states \[\] and the nodes that own them, \['layers.0.state'\], differ"),
        ({"inputs": ("layers.0.x0", "missing", "layers.0.x2")}, "missing is not made before"),
        ({"inputs": ("layers.0.x0", "layers.0.x1")}, "expected 3 operands, got 2"),
        ({"output": ""}, "has no name"),
    ],
)
def test_malformed_nodes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CheckError, match=message):
        check(edit(program("matmul"), **changes))


INDICES = [
    ("add", "tn,tm->tn", "a pointwise output has every axis of its operands"),
    ("add", "n,n->tn", "no operand has t"),
    ("matmul", "tk,nk,k->tn", "the sum starts from 'k', which has an axis that the output lacks"),
    ("matmul", "tk,k,n->tn", "of the summed operands, none has n"),
    ("matmul", "k,nk,tn->tn", "of the summed operands, none has t"),
    ("reduce_sum", "lc->c", "an output has time first"),
    ("reduce_sum", "tlc->td", "no operand has d"),
    ("convolution", "tyxc,nijc,n->tvn", "slides along axes that operand, output and kernel each name"),
    ("convolution", "yxc,tnijc,n->tvun", "slides along axes that operand, output and kernel each name"),
    ("convolution", "tyxc,nijc,y->tvun", "the sum starts from 'y'"),
    ("convolution", "tyxc,nijc,m->tvunm", "slides along axes that operand, output and kernel each name"),
    ("causal_conv1d", "tc,cj,j->tc", "a window is tc,cj,c->tc or tc,ncj,n->tn"),
    ("causal_conv1d", "tc,jc,c->tc", "a window is"),
    ("causal_conv1d", "tc,ncj,n->tc", "a window is"),
    ("causal_conv1d", "tcd,cdj,c->tc", "a window is"),
    ("causal_conv1d", "c,tcj,c->tc", "a window is"),
    ("history", "thd->thwd", "a history puts its new axis after time"),
    ("history", "thd->twdh", "a history puts its new axis after time"),
    ("history", "thd->thd", "a history puts its new axis after time"),
    ("embedding", "tv,vc->tvc", "a gather is t,vc->tc"),
    ("embedding", "t,tc->tc", "a gather is"),
    ("embedding", "t,vc->tvc", "a gather is"),
    ("embedding", "v,tc->tc", "a gather is"),
    ("linear_recurrence", "tcn,tc,tn,tn->tc|nc", "the scanned one, those of the output first"),
    ("linear_recurrence", "tcn,tc,tn,tnm->tc|cn", "the scanned one, those of the output first"),
    ("diagonal_recurrence", "tcn,tc->tc|cn", "without a readout the output is the state, and lacks no axis of it: n"),
    ("hold", "tcn->tc|cn", "without a readout the output is the state"),
    ("hold", "tc->ct|c", "t is time, and comes first"),
    ("hold", "tc->c|c", "an output has time first"),
    ("hold", "tc->tc|tc", "a state has none"),
    ("linear_recurrence", "lcn,lc,ln,ln->tlc|cn", "no operand has t"),
    ("linear_recurrence", "tlhcn,tlhc,tln,tln->tlhc|cn", "scans one axis"),
    ("linear_recurrence", "tlcn,tlc,tln,tln->tlc|cnk", "no operand has k"),
    ("merge_axes", "tyxc->tly", "merge_axes makes one axis of neighbouring ones"),
    ("merge_axes", "tyxc->tlx", "merge_axes makes one axis"),
    ("merge_axes", "tyxc->tyxc", "merge_axes makes one axis"),
    ("split_axis", "tk->thdk", "split_axis makes two axes of one"),
    ("split_axis", "tk->tkhd", "split_axis makes two axes of one"),
    ("take", "tlc->tcl", "take replaces one axis by another"),
    ("take", "tlc->tmn", "take replaces one axis by another"),
    ("pad", "tlc->tmn", "pad replaces one axis by another"),
    ("concat", "tac,tdc,tec->tcn", "concat joins operands whose other axes are equal and in the same order"),
    ("concat", "tac,tdc,tec->tac", "concat joins one axis"),
]


@pytest.mark.parametrize(("op", "index", "message"), INDICES)
def test_indices_that_a_structure_does_not_understand(op: str, index: str, message: str) -> None:
    with pytest.raises(CheckError, match=rf"layers\.0 \({op} .*{message}"):
        check(edit(program(op, int("l" in index and op == "linear_recurrence")), index=index))


PARAMETERS: list[tuple[str, int, dict[str, int], str]] = [
    ("convolution", 0, {"stride0": 0}, "a kernel that reaches over 3 of 5 elements"),
    ("convolution", 0, {"dilation1": 0}, "a kernel that reaches over 1 of 7 elements"),
    ("convolution", 0, {"dilation1": 4}, "a kernel that reaches over 9 of 7 elements: pad the operand first"),
    ("history", 0, {"length": 1}, "a history of 1 steps, expected at least 2"),
    ("history", 0, {"length": 5}, r"state has shape \(3, 2, 3\), a ring of \(4, 2, 3\) is needed"),
    ("requantize", 0, {"s": 0}, "its parameters .* have no meaning: negative shift count"),
    ("requantize", 0, {"s": 1 << 40}, "its parameters .* have no meaning"),
    ("requantize", 0, {"lo": 2, "hi": 1}, "2.*1"),
    ("requantize", 0, {"m": 1 << 63}, "m is 9223372036854775808, expected an integer of 64 bits"),
    ("mean", 0, {"t_max": 1 << 17}, "t_max is 131072, expected at most 65536"),
    ("mean", 0, {"t_max": 62}, "a table of 63 is read at"),
    ("linear_recurrence", 0, {"acc": 48}, "an accumulator has 8, 16, 32 or 64 bits"),
    ("hold", 0, {"acc": 8}, "its update needs 16 bits, acc is 8"),
    ("reduce_max", 0, {"acc": 16}, "can reach .*, an int16 holds"),
    ("split_axis", 0, {"inner": 5}, "12 elements are no multiple of 5"),
    ("take", 0, {"size": 6}, "elements 4 to -1 of an axis of 5"),
    ("take", 0, {"start": 5}, "elements 5 to 1 of an axis of 5"),
    ("pad", 0, {"before": -1}, "pad: -1 elements before"),
    ("pad", 0, {"after": 1 << 30}, r"has 3221225490 elements in a time step, expected at most 2147483647"),
]


@pytest.mark.parametrize(("op", "case", "params", "message"), PARAMETERS)
def test_parameters_without_a_meaning(op: str, case: int, params: dict[str, int], message: str) -> None:
    changed = replace(OPS[op].cases[case], params={**OPS[op].cases[case].params, **params})
    p = case_program(op, changed, "layers.0")
    if op == "history":
        p = replace(p, states=program(op, case).states)
    with pytest.raises(CheckError, match=f"layers.0 .*{message}"):
        check(p)


def test_a_row_outside_of_the_table_is_refused() -> None:
    case = OPS["embedding"].cases[0]
    for elem in ("u8", "i7"):
        with pytest.raises(CheckError, match=r"an index in .* reads a table of 128 rows"):
            check(case_program("embedding", replace(case, operands=(elem, "=i8")), "layers.0"))


def test_an_axis_that_a_convolution_makes_has_the_size_it_makes() -> None:
    case = OPS["convolution"].cases[2]
    per_position = replace(case, index="tlc,nic,mn->tmn", sizes={**case.sizes, "m": 3})
    check(case_program("convolution", per_position))
    with pytest.raises(CheckError, match="index m is 2, the convolution makes 3"):
        check(case_program("convolution", replace(per_position, sizes={**case.sizes, "m": 2})))


def test_operands_of_a_concat_have_axes_of_their_own() -> None:
    case = replace(OPS["concat"].cases[0], index="tac,tac->tnc", sizes={"a": 2, "c": 3}, operands=("i8", "i8"))
    with pytest.raises(CheckError, match="concat joins one axis, with a letter of its own in every operand"):
        check(case_program("concat", case))


def test_a_scan_inside_a_step_has_limits() -> None:
    case = replace(OPS["hold"].cases[0], index="tlc->tlc|c", sizes={"l": 3, "c": 5}, state="")
    with pytest.raises(CheckError, match="hold cannot scan an axis inside a step: its update has no limits lo and hi"):
        check(case_program("hold", case, "layers.0"))
    inner = OPS["linear_recurrence"].cases[1]
    low = replace(inner, params={**inner.params, "lo": 5, "hi": 9})
    assert check(case_program("linear_recurrence", low, "a")).states["a.y.carry"].elem.range.lo <= 0


def test_states_are_read_before_they_are_updated() -> None:
    p = program("hold")
    hold, after = p.nodes[0], replace(p.nodes[0], op="requantize", index="tc->tc", state=None, output="after")
    reads = replace(after, inputs=("layers.0.state",), params=(("hi", 127), ("lo", -127), ("m", 1), ("s", 8)))
    check(replace(p, nodes=(reads, hold), outputs=("after", hold.output)))
    with pytest.raises(
        CheckError, match=r"operand layers\.0\.state is a state that an earlier node has already updated"
    ):
        check(replace(p, nodes=(hold, reads), outputs=("after",)))
    with pytest.raises(CheckError, match=r"operand layers\.0\.state is the state that this node updates"):
        check(edit(p, inputs=("layers.0.state",)))


def test_states_hold_what_they_start_from_and_what_enters_them() -> None:
    p = program("linear_recurrence")
    with pytest.raises(CheckError, match=r"starts at 32768, i16 does not hold it"):
        check(replace(p, states=(replace(p.states[0], initial=1 << 15),)))
    for op in ("causal_conv1d", "history"):
        case = OPS[op].cases[0]
        with pytest.raises(CheckError, match=r"holds i7, the input is in \[-128, 127\]"):
            check(case_program(op, replace(case, state="i7"), "layers.0"))
    matmul = program("matmul")
    with pytest.raises(CheckError, match=r"matmul has no state, got layers\.0\.state"):
        check(replace(edit(matmul, state="layers.0.state"), states=p.states))
    with pytest.raises(CheckError, match="needs a state, got None"):
        check(replace(edit(p, state=None), states=()))


def test_what_no_node_makes_is_well_formed() -> None:
    p = program("matmul")
    weight, x = p.constants[0], p.inputs[0]

    def refused(message: str, **changes: object) -> None:
        with pytest.raises(CheckError, match=message):
            check(replace(p, **changes))  # type: ignore[arg-type]

    def typed(**changes: object) -> tuple[Input, ...]:
        return (replace(x, type=replace(x.type, **changes)),)  # type: ignore[arg-type]

    rest = p.constants[1:]
    refused(r"expected \(T, sizes above 0\)", inputs=typed(shape=(4, 19)))
    refused("expected sizes above 0", inputs=typed(shape=("T", 0)))
    refused("elements in a time step", inputs=typed(shape=("T", 1 << 31)))
    refused("elements u64, expected i1 to i64 or u1 to u63", inputs=typed(elem=IntType(64, False)))
    refused("elements i0, expected i1 to i64", inputs=typed(elem=IntType(0)))
    refused("expected sizes above 0", constants=(replace(weight, type=replace(weight.type, shape=("T", 19))), *rest))
    refused(r"has 94 bytes, i8\[5, 19\] needs 95", constants=(replace(weight, data=weight.data[1:]), *rest))
    narrow = replace(weight, type=replace(weight.type, elem=IntType(4)))
    refused(r"has values in \[-?\d+, \d+\], i4 does not hold them", constants=(narrow, *rest))
    refused("0 inputs and 1 outputs, expected at least one of each", inputs=(), nodes=(), constants=())
    refused("1 inputs and 0 outputs, expected at least one of each", outputs=())
    refused(r"output layers\.0\.x0: expected the value of a node", outputs=("layers.0.x0",))
    refused("expected the value of a node, named once", outputs=("layers.0.y", "layers.0.y"))


def test_a_value_that_nothing_reads_is_refused() -> None:
    p = program("matmul")
    spare = replace(p.nodes[0], output="layers.1.y", loc="layers.1")
    with pytest.raises(CheckError, match=r"layers\.1 \(matmul -> layers\.1\.y\): nothing reads its value"):
        check(replace(p, nodes=(*p.nodes, spare)))


def test_two_values_of_one_name_are_refused() -> None:
    p = program("matmul")
    with pytest.raises(CheckError, match="two values have this name"):
        check(replace(p, nodes=p.nodes * 2))
    inner = program("linear_recurrence", 1)
    taken = (replace(inner.inputs[0], name="layers.0.y.carry"), *inner.inputs[1:])
    with pytest.raises(CheckError, match=r"layers\.0\.y\.carry: two values have this name"):
        check(edit(replace(inner, inputs=taken), inputs=("layers.0.y.carry", *inner.nodes[0].inputs[1:])))


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
