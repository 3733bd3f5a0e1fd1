"""Reading and writing .onnx files.

`load` rebuilds the Program from the graph itself and accepts the file only when that Program has the digest the file
carries and its emission is the file, byte for byte: an edited weight, attribute or function body is refused.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, TensorProto

from isobit.export.onnx.body import CONTAINER_TYPES
from isobit.export.onnx.emit import FORMAT_VERSION, PRODUCER, emit, serialized, to_bytes
from isobit.export.onnx.functions import DOMAIN, NODE_ATTRIBUTES
from isobit.export.onnx.packed import constant_of, is_unpack
from isobit.export.onnx.region import calls, outer_name
from isobit.quant.certificates.certificate import from_data
from isobit.quant.errors import CheckError, InputError, IsobitError
from isobit.quant.lower.edges import trained_rounding
from isobit.quant.program import Constant, Input, IntType, Node, Program, State, TensorType, int_type
from isobit.targets.files import write_file

CONTAINER_BITS = {onnx_type: bits for bits, onnx_type in CONTAINER_TYPES.items()}
LARGEST_FILE = (1 << 31) - 1
AGAIN = "write it again with `isobit quantize`"


def save(program: Program, path: str | Path) -> None:
    """Write `program` to `path`, whole or not at all.  Raises CheckError as `emit`, InputError if it cannot."""
    data = to_bytes(program)
    try:
        write_file(Path(path), data)
    except OSError as e:
        raise InputError(f"{path}: cannot be written: {e.strerror or e}; give a file in a folder you may write") from e


def load(source: str | Path | bytes) -> Program:
    """The Program that a file, or a file's content, holds.

    Raises InputError where there is none, where isobit did not write it, and where it was changed since.
    """
    name, data = ("the data", source) if isinstance(source, bytes) else (str(source), _read(Path(source)))
    try:
        return _load(name, data)
    except UnicodeDecodeError as e:
        raise InputError(f"{name}: damaged or edited: a text in it is not UTF-8; {AGAIN}") from e


def _load(name: str, data: bytes) -> Program:
    model = _parse(name, data)
    metadata = _metadata(name, model)
    try:
        program = _program(model, metadata)
        digest = program.digest
    except _Malformed as e:
        raise InputError(f"{name}: damaged or edited: {e}; {AGAIN}") from e
    except UnicodeDecodeError:
        raise
    except (IsobitError, ValueError, TypeError, OverflowError, RecursionError) as e:
        raise InputError(f"{name}: damaged or edited: it does not describe a program ({e}); {AGAIN}") from e
    if digest != metadata["isobit.digest"]:
        raise InputError(
            f"{name}: damaged or edited: its nodes, weights and metadata have digest {digest[:16]}, "
            f"the one it carries is {metadata['isobit.digest'][:16]}; {AGAIN}"
        )
    try:
        again = emit(program)
    except Exception as e:
        # With a digest forged to match, any nodes at all come this far.
        raise InputError(f"{name}: edited: its program does not pass the check: {e}; {AGAIN}") from e
    if serialized(again) != data:
        _compare(name, model, again, data)
    return program


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise InputError(f"{path}: expected an .onnx file, got a folder; name the file in it")
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise InputError(f"{path}: expected an .onnx file of isobit, below 2 GiB, got {size} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; write one with `isobit quantize`") from None
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: cannot be read: {e}") from e


def _parse(name: str, data: bytes) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as e:
        raise InputError(
            f"{name}: expected an .onnx file, got {len(data)} bytes that are none, or only a part of one; "
            "name another file, or copy this one again"
        ) from e
    return model


def _metadata(name: str, model: onnx.ModelProto) -> dict[str, str]:
    metadata = {p.key: p.value for p in model.metadata_props}
    if model.producer_name == PRODUCER and "isobit.version" not in metadata:
        raise InputError(f"{name}: damaged: its end, with the metadata, is missing; copy the file again, or {AGAIN}")
    if "isobit.digest" not in metadata or "isobit.version" not in metadata:
        raise InputError(
            f"{name}: expected a file written by isobit, got one without isobit.digest in its metadata; "
            "quantize the float model with `isobit quantize`"
        )
    if metadata["isobit.version"] != FORMAT_VERSION:
        raise InputError(
            f"{name}: expected format version {FORMAT_VERSION}, got {metadata['isobit.version'][:40]!r}; "
            f"read it with the isobit that wrote it, or {AGAIN}"
        )
    return metadata


class _Malformed(Exception):
    """What is wrong, in the words of the file."""


def _program(model: onnx.ModelProto, metadata: dict[str, str]) -> Program:
    graph = model.graph
    elements, initial, scales = (_table(metadata, k) for k in ("isobit.elements", "isobit.initial", "isobit.scales"))

    def tensor(name: str, onnx_type: int, shape: tuple[int | str, ...]) -> TensorType:
        if onnx_type not in CONTAINER_BITS:
            raise _Malformed(f"{name} has ONNX element type {onnx_type}, expected one of {sorted(CONTAINER_BITS)}")
        elem = int_type(elements[name]) if name in elements else IntType(CONTAINER_BITS[onnx_type])
        if CONTAINER_TYPES[elem.container] != onnx_type:
            raise _Malformed(f"{name} holds {elem}, its ONNX element type is {onnx_type}")
        return TensorType(shape, elem, float(scales[name]) if name in scales else None)

    def value(v: onnx.ValueInfoProto) -> TensorType:
        t = v.type.tensor_type
        shape = tuple(d.dim_param or d.dim_value for d in t.shape.dim)
        return tensor(v.name, t.elem_type, shape[1:])

    unpacking = {c.input[0]: c for c, _ in calls(graph) if is_unpack(c) and len(c.input) == len(c.output) == 1}

    def constant(i: onnx.TensorProto) -> Constant:
        if i.data_location == TensorProto.EXTERNAL or i.external_data:
            raise _Malformed(f"weight {i.name} lies in another file; isobit keeps all of a program in one")
        if i.name in unpacking:
            return _unpacked(unpacking[i.name], i, scales)
        t = tensor(i.name, i.data_type, tuple(i.dims))
        expected = math.prod(i.dims) * t.elem.container // 8
        if min(i.dims, default=0) < 0 or len(i.raw_data) != expected:
            raise _Malformed(f"weight {i.name} of shape {tuple(i.dims)} takes {expected} bytes, got {len(i.raw_data)}")
        return Constant(i.name, t, i.raw_data)

    nodes = tuple(_node(call, in_region) for call, in_region in calls(graph) if not is_unpack(call))
    owned = {n.state for n in nodes if n.state}
    states = tuple(v for v in graph.input if v.name in owned)
    if missing := sorted({s.name for s in states} ^ initial.keys()):
        raise _Malformed(f"state {missing[0]} lacks an owner or an initial value")
    outputs = tuple(v.name for v in graph.output)
    return Program(
        graph.name,
        tuple(Input(v.name, value(v), *_trained(metadata, v.name)) for v in graph.input if v.name not in owned),
        tuple(constant(i) for i in graph.initializer),
        tuple(State(v.name, value(v), int(initial[v.name])) for v in states),
        nodes,
        outputs[: len(outputs) - len(states)],
        tuple(from_data(c) for c in _listed(metadata, "isobit.certificates")),
    )


def _unpacked(call: onnx.NodeProto, codes: onnx.TensorProto, scales: dict[str, str]) -> Constant:
    try:
        c = constant_of(call, codes)
    except (KeyError, ValueError, CheckError) as e:
        raise _Malformed(f"weight {codes.name}: {e}") from e
    return replace(c, type=replace(c.type, scale=float(scales[c.name]))) if c.name in scales else c


def _listed(metadata: dict[str, str], key: str) -> list[object]:
    found = json.loads(metadata.get(key, ""))
    if not isinstance(found, list):
        raise _Malformed(f"metadata {key} is not a JSON list")
    return found


def _trained(metadata: dict[str, str], name: str) -> tuple[str, int] | tuple[()]:
    """How an input is rounded, and its zero point, where a quantizer of the model says it."""
    if "isobit.roundings" not in metadata or name not in (found := _table(metadata, "isobit.roundings")):
        return ()
    rounding, zero = _pair(found[name])
    if not isinstance(rounding, str) or not isinstance(zero, int):
        raise _Malformed(
            f"input {name} is rounded by {rounding} with zero point {zero}, expected a name and an integer"
        )
    try:
        trained_rounding(rounding)
    except InputError as e:
        raise _Malformed(str(e)) from e
    return rounding, zero


def _pair(value: object) -> tuple[object, object]:
    return (value[0], value[1]) if isinstance(value, list) and len(value) == 2 else (None, None)


def _table(metadata: dict[str, str], key: str) -> dict[str, str]:
    found = json.loads(metadata.get(key, ""))
    if not isinstance(found, dict):
        raise _Malformed(f"metadata {key} is not a JSON object")
    return found


def _node(call: onnx.NodeProto, in_region: bool) -> Node:
    op, mark, number = call.op_type.rpartition("__")
    if call.domain != DOMAIN or not mark or not number.isdecimal():
        raise _Malformed(f"node {call.name} calls {call.domain}.{call.op_type}, not a function of isobit")
    strings, params = dict[str, str](), list[tuple[str, int]]()
    for a in call.attribute:
        if a.type == AttributeProto.INT:
            params.append((a.name, a.i))
        elif a.type == AttributeProto.STRING:
            strings[a.name] = a.s.decode()
    if missing := set(NODE_ATTRIBUTES) - strings.keys():
        raise _Malformed(f"node {call.name} lacks attribute {', '.join(sorted(missing))}")
    index, scale = strings["index"], strings["scale"]
    operands = len(index.split(",")) if index.partition("->")[0] else 0
    if not call.output:
        raise _Malformed(f"node {call.name} has no output")
    names = [*call.input[:operands], call.output[0]]
    *inputs, output = (outer_name(name) for name in names) if in_region else names
    return Node(
        op,
        tuple(sorted(params)),
        tuple(inputs),
        output,
        index,
        strings["loc"],
        strings["state"] or None,
        float(scale) if scale else None,
    )


def _compare(name: str, model: onnx.ModelProto, again: onnx.ModelProto, data: bytes) -> None:
    """Return where the two differ in the functions' documentation only; else raise, naming the first difference."""
    for theirs, ours in zip(model.functions, again.functions, strict=False):
        ours.doc_string = theirs.doc_string
    if serialized(again) == data:
        return
    advice = f"isobit of format version {FORMAT_VERSION} writes another one for this program; {AGAIN}"
    for what, theirs, ours in (
        ("function", model.functions, again.functions),
        ("node", [n for n, _ in calls(model.graph)], [n for n, _ in calls(again.graph)]),
        ("node", model.graph.node, again.graph.node),
        ("weight", model.graph.initializer, again.graph.initializer),
        ("input", model.graph.input, again.graph.input),
        ("output", model.graph.output, again.graph.output),
        ("value", model.graph.value_info, again.graph.value_info),
    ):
        for position in range(max(len(theirs), len(ours))):
            if theirs[position : position + 1] != ours[position : position + 1]:
                differs = (ours if position < len(ours) else theirs)[position]
                named = differs.name or ", ".join(getattr(differs, "output", ()))
                raise InputError(f"{name}: {what} {named} was edited or is missing: {advice}")
    raise InputError(f"{name}: edited outside of its functions and nodes: {advice}")
