"""Files that `load` refuses: each message names the file, what was expected, what was got, and what to do."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from isobit.export.onnx.emit import FORMAT_VERSION, emit, serialized, to_bytes
from isobit.export.onnx.load import load, save
from isobit.quant.errors import InputError
from isobit.quant.ops import OPS
from isobit.quant.program import Program
from isobit.quant.vectors import case_program, join
from tests.feedback import gated_cell, loops


def program() -> Program:
    ops = ("matmul", "linear_recurrence", "step_count", "mean", "causal_conv1d", "requantize")
    return join("program", [case_program(op, OPS[op].cases[0], op) for op in ops])


def edited(edit: Callable[[onnx.ModelProto], object], original: Callable[[], Program] = program) -> bytes:
    model = emit(original())
    edit(model)
    return serialized(model)


Named = TypeVar("Named", onnx.FunctionProto, onnx.AttributeProto)


def named(name: str, many: Iterable[Named]) -> Named:
    return next(x for x in many if x.name == name)


def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    attributes: list[onnx.AttributeProto] = list(node.attribute)
    return named(name, attributes)


def change_a_shift(model: onnx.ModelProto) -> None:
    """Every output of the body halves; nodes, weights and metadata stay as they are."""
    body = named("requantize__1", model.functions).node
    constant = next(n for n in body if n.op_type == "Constant" and n.attribute[0].t.data_type == TensorProto.UINT64)
    shift = numpy_helper.to_array(constant.attribute[0].t)
    constant.attribute[0].t.CopyFrom(numpy_helper.from_array(shift + 1))


def change_a_weight(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[0]
    weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]


def move_a_weight_out(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[0]
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../etc/passwd")
    weight.ClearField("raw_data")


def claim_a_huge_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1 << 40, 1 << 40]


def claim_negative_sizes(model: onnx.ModelProto) -> None:
    sizes = model.graph.initializer[0].dims
    sizes[:] = [-d for d in sizes]


def set_metadata(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        next(p for p in model.metadata_props if p.key == key).value = value

    return edit


def set_attribute(name: str, **value: object) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        a = attribute(model.graph.node[0], name)
        a.CopyFrom(helper.make_attribute(name, value["to"]))

    return edit


REWRITE = "write it again with `isobit quantize`"

EDITS: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "a body": (change_a_shift, "function requantize__1 was edited or is missing"),
    "a missing function": (lambda m: m.functions.pop(), "function requantize__1 was edited or is missing"),
    "a new function": (lambda m: m.functions.append(m.functions[0]), "function matmul__1 was edited"),
    "a weight": (change_a_weight, "have digest .*, the one it carries is"),
    "a parameter": (set_attribute("acc", to=64), "have digest"),
    "a layer's name": (set_attribute("loc", to="elsewhere"), "have digest"),
    "a scale": (set_attribute("scale", to="0.5"), "have digest"),
    "a scale that is none": (set_attribute("scale", to="half"), "does not describe a program .*half"),
    "a float parameter": (set_attribute("acc", to=32.0), "have digest"),
    "a number for a string": (set_attribute("index", to=3), "node matmul.y lacks attribute index"),
    "an unknown function": (
        lambda m: m.graph.node[0].MergeFrom(onnx.NodeProto(op_type="Relu", domain="")),
        r"node matmul.y calls \.Relu, not a function of isobit",
    ),
    "a missing node": (lambda m: m.graph.node.pop(), "have digest"),
    "a called name": (
        lambda m: m.graph.node[0].MergeFrom(onnx.NodeProto(op_type="matmul__2")),
        "node matmul.y was edited or is missing",
    ),
    "an operand of the Scan that keeps time": (
        lambda m: m.graph.node[2].input.__setitem__(0, "mean.x0"),
        "node step_count.y was edited",
    ),
    "an output's shape": (
        lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[2], "dim_value", 6),
        "output matmul.y was edited",
    ),
    "an element type": (
        lambda m: m.graph.input[0].type.tensor_type.MergeFrom(onnx.TypeProto.Tensor(elem_type=TensorProto.FLOAT)),
        "has ONNX element type 1",
    ),
    "a narrow element type": (set_metadata("isobit.elements", '{"matmul.x0": "u40"}'), "matmul.x0 holds u40"),
    "a broken element type": (set_metadata("isobit.elements", '{"matmul.x0": "q40"}'), "element type 'q40'"),
    "metadata that is not JSON": (set_metadata("isobit.scales", "{"), "does not describe a program"),
    "metadata of another kind": (set_metadata("isobit.scales", "[]"), "isobit.scales is not a JSON object"),
    "deep metadata": (set_metadata("isobit.scales", "[" * 100_000), "does not describe a program"),
    "an initial value": (
        set_metadata("isobit.initial", json.dumps({**dict.fromkeys(program().state, 0), "step_count.state": 1})),
        "have digest",
    ),
    "no initial values": (set_metadata("isobit.initial", "{}"), "lacks an owner or an initial value"),
    "external data": (move_a_weight_out, "lies in another file"),
    "a huge weight": (claim_a_huge_weight, "takes 1208925819614629174706176 bytes, got 95"),
    "negative sizes": (claim_negative_sizes, "of shape .* takes"),
    "the producer": (lambda m: setattr(m, "producer_name", "other"), "edited outside of its functions and nodes"),
    "the opset": (
        lambda m: m.opset_import[0].MergeFrom(onnx.OperatorSetIdProto(version=22)),
        "edited outside of its functions and nodes",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_file(name: str, tmp_path: Path) -> None:
    edit, message = EDITS[name]
    path = tmp_path / "edited.onnx"
    path.write_bytes(edited(edit))
    with pytest.raises(InputError, match=message) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).endswith(REWRITE)


def scan(model: onnx.ModelProto) -> onnx.NodeProto:
    """The loop of a program that has one."""
    found: onnx.NodeProto = next(n for n in model.graph.node if n.op_type == "Scan")
    return found


def body(model: onnx.ModelProto) -> onnx.GraphProto:
    return attribute(scan(model), "body").g


def inner(name: str, model: onnx.ModelProto) -> onnx.NodeProto:
    """The call of the node of this name in the loop."""
    found: onnx.NodeProto = next(n for n in body(model).node if n.name == name)
    return found


def swap(names: Any) -> None:
    """The first two of a repeated field change places."""
    first, second, *rest = (type(x).FromString(x.SerializeToString()) if hasattr(x, "name") else x for x in names)
    del names[:]
    names.extend([second, first, *rest])


LOOP = r"node cell\.gates\.h\.\.cell\.cell\.y was edited or is missing"
"""The Scan itself."""

LOOP_EDITS: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "a parameter": (lambda m: setattr(attribute(inner("cell.gates.y", m), "s"), "i", 16), "have digest"),
    "a layer's name": (lambda m: setattr(attribute(inner("cell.cell.y", m), "loc"), "s", b"elsewhere"), "have digest"),
    "an owner": (lambda m: setattr(attribute(inner("cell.cell.y", m), "state"), "s", b"cell.c"), "lacks an owner"),
    "no state": (lambda m: setattr(attribute(inner("cell.cell.y", m), "state"), "s", b""), "lacks an owner"),
    "an operand": (lambda m: inner("cell.cell.h", m).input.__setitem__(1, "cell.forget.gate@t"), "have digest"),
    "an operand from outside": (
        lambda m: inner("cell.gates.y", m).input.__setitem__(0, "cell.gates.x"), r"node cell\.gates\.y was edited",
    ),
    "another state": (
        lambda m: inner("cell.cell.y", m).input.__setitem__(1, "cell.c@old"), r"node cell\.cell\.y was edited",
    ),
    "a lost state": (
        lambda m: inner("cell.cell.y", m).output.__setitem__(1, "lost"), r"node cell\.cell\.y was edited",
    ),
    "a missing node": (lambda m: body(m).node.pop(), "lacks an owner"),
    "a missing pointwise node": (lambda m: body(m).node.remove(inner("cell.gates.y", m)), "have digest"),
    "a node twice": (lambda m: body(m).node.append(inner("cell.cell.h", m)), "have digest"),
    "plumbing in another order": (lambda m: swap(body(m).node), LOOP),
    "a node of ONNX": (
        lambda m: body(m).node.add(op_type="Relu", input=["cell.cell.h@t"], output=["r"], name="r"),
        r"node r calls \.Relu, not a function of isobit",
    ),
    "a loop in the loop": (lambda m: body(m).node.append(scan(m)), r"calls \.Scan, not a function of isobit"),
    "a node without effect": (
        lambda m: body(m).node.add(op_type="Transpose", input=["cell.cell.h@t"], output=["r"]), LOOP,
    ),
    "plumbing that takes the new state": (lambda m: body(m).node[1].input.__setitem__(0, "cell.h@new"), LOOP),
    "new states in another order": (lambda m: swap(body(m).output), LOOP),
    "old states in another order": (lambda m: swap(body(m).input), LOOP),
    "states in another order": (lambda m: swap(scan(m).output), LOOP),
    "initial states in another order": (lambda m: swap(scan(m).input), LOOP),
    "a type of the body": (lambda m: setattr(body(m).input[0].type.tensor_type, "elem_type", 7), LOOP),
    "a value of the body": (lambda m: body(m).value_info.pop(), LOOP),
    "a direction": (lambda m: scan(m).attribute.append(helper.make_attribute("scan_input_directions", [1])), LOOP),
    "a count of inputs": (lambda m: setattr(attribute(scan(m), "num_scan_inputs"), "i", 2), LOOP),
    "no body": (
        lambda m: scan(m).attribute.remove(attribute(scan(m), "body")), r"calls \.Scan, not a function of isobit",
    ),
    "an empty body": (lambda m: body(m).Clear(), "lacks an owner"),
    "a body of another kind": (lambda m: setattr(attribute(scan(m), "body"), "type", AttributeProto.INT), LOOP),
    "a Scan of another domain": (lambda m: setattr(scan(m), "domain", "other"), r"calls other\.Scan, not a function"),
    "what goes in": (
        lambda m: next(n for n in m.graph.node if n.op_type == "Unsqueeze").input.__setitem__(0, "cell.cell.y"),
        "node @2 was edited",
    ),
    "what comes out": (
        lambda m: next(n for n in m.graph.node if n.op_type == "Squeeze").input.__setitem__(0, "@7"),
        r"node cell\.forget\.gate was edited",
    ),
    "the body of a function": (
        lambda m: named("hold__1", m.functions).node[-1].input.__setitem__(0, "x"),
        "function hold__1 was edited or is missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOP_EDITS)
def test_an_edited_loop(name: str) -> None:
    edit, message = LOOP_EDITS[name]
    assert load(to_bytes(gated_cell())) == gated_cell()
    with pytest.raises(InputError, match=message) as error:
        load(edited(edit, gated_cell))
    assert str(error.value).endswith(REWRITE)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("acc", 8, "its accumulator can reach"),
        ("unknown", 1, "does not pass the check"),
        ("index", "tk,nk,n->tz", "does not pass the check"),
    ],
)
def test_a_digest_that_was_made_to_match(name: str, value: int | str, message: str) -> None:
    """The digest is no signature: behind it stands the check."""
    p = program()
    node = p.nodes[0]
    node = replace(node, index=value) if isinstance(value, str) else replace(node, params=((name, value),))
    forged = replace(p, nodes=(node, *p.nodes[1:]))

    def edit(model: onnx.ModelProto) -> None:
        if isinstance(value, int):
            model.graph.node[0].attribute.remove(attribute(model.graph.node[0], "acc"))
            model.graph.node[0].attribute.append(helper.make_attribute(name, value))
        else:
            set_attribute(name, to=value)(model)
        set_metadata("isobit.digest", forged.digest)(model)

    with pytest.raises(InputError, match=message):
        load(edited(edit))


def test_documentation_may_differ() -> None:
    """A reworded docstring of an op leaves the files of earlier versions readable."""
    assert load(edited(lambda m: setattr(m.functions[0], "doc_string", "another"))) == program()


@pytest.mark.parametrize("version", ["1", "", "\x00"])
def test_an_unknown_version(version: str) -> None:
    with pytest.raises(InputError, match=f"expected format version {FORMAT_VERSION}, got"):
        load(edited(set_metadata("isobit.version", version)))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.onnx: there is no such file; write one with"):
        load(tmp_path / "nowhere.onnx")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected an \.onnx file, got a folder"):
        load(tmp_path)


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load("a\0b.onnx")


@pytest.mark.parametrize("data", [b"not onnx", b"\x00" * 64, b"PK\x03\x04" + b"zip" * 40])
def test_another_kind_of_file(data: bytes) -> None:
    with pytest.raises(InputError, match=r"expected an \.onnx file, got .* bytes that are none"):
        load(data)


def test_an_empty_file() -> None:
    with pytest.raises(InputError, match="expected a file written by isobit"):
        load(b"")


def test_a_model_of_another_tool() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y]))
    with pytest.raises(InputError, match=r"expected a file written by isobit, .*; quantize the float model"):
        load(serialized(model))


@pytest.mark.parametrize("make", [program, gated_cell])
def test_a_truncated_file(make: Callable[[], Program]) -> None:
    data = to_bytes(make())
    for length in range(len(data)):
        with pytest.raises(InputError):
            load(data[:length])


@pytest.mark.parametrize(("seed", "make"), [(0, program), (1, program), (2, gated_cell), (3, loops)])
def test_no_bytes_give_a_traceback_or_another_program(seed: int, make: Callable[[], Program]) -> None:
    rng, expected = random.Random(seed), make()
    data = to_bytes(expected)
    for _ in range(1500):
        changed = bytearray(data)
        start, end = sorted(rng.choices(range(len(data)), k=2))
        match rng.randrange(5):
            case 0:
                changed[start] ^= 1 << rng.randrange(8)
            case 1:
                for at in rng.choices(range(len(data)), k=rng.choice([1, 3, 20])):
                    changed[at] = rng.randrange(256)
            case 2:
                del changed[start:end]
            case 3:
                changed[end:end] = changed[start:end]
            case 4:
                changed[start:end] = bytes(end - start)
        try:
            got = load(bytes(changed))
        except InputError:
            continue
        assert got == expected


def test_save_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        save(program(), tmp_path / "missing" / "m.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        save(program(), tmp_path / "folder.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.onnx"]


def test_weights_load_as_they_were() -> None:
    loaded = load(to_bytes(program()))
    for constant in program().constants:
        np.testing.assert_array_equal(loaded.constant[constant.name].array, constant.array)
