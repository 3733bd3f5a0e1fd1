"""Constants as codes: an initializer `<name>.codes`, and a call of a function `unpack` that gives the constant itself.

Codes of 4 bits are tensors of INT4 or UINT4, of 8 bits of UINT8; others lie in one row of UINT8, from the lowest bit of
the first byte on.  `unpack` has the constant's element type, shape and, of minifloats, mantissa as attributes.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

from isobit.export.onnx.body import Body, element
from isobit.quant.program import Constant, TensorType, int_type
from isobit.quant.storage import Storage, packed, packed_bytes, storage, unpacked

UNPACK = "unpack"
ATTRIBUTES = ("elem", "mantissa", "shape")
CODES = ".codes"

WHOLE = {(4, True): TensorProto.INT4, (4, False): TensorProto.UINT4, (8, False): TensorProto.UINT8}
"""Types of tensors of codes, by their bits, and whether a code is the signed integer itself."""


def codes_name(constant: str) -> str:
    """The initializer that holds the codes of a constant."""
    return constant + CODES


def _whole(s: Storage) -> int | None:
    return WHOLE.get((s.bits, s.signed and not s.is_coded))


def initializer(c: Constant) -> TensorProto:
    """The codes of a packed constant."""
    whole, data = _whole(c.storage), packed(c)
    shape = [data.size] if whole is None else list(c.type.dims)
    return TensorProto(
        name=codes_name(c.name), data_type=whole or TensorProto.UINT8, dims=shape, raw_data=data.tobytes()
    )


def attributes(c: Constant) -> dict[str, object]:
    """Of the call that unpacks a constant; a mantissa of -1 is none."""
    mantissa = -1 if c.mantissa is None else c.mantissa
    return {"elem": str(c.type.elem), "mantissa": mantissa, "shape": list(c.type.dims)}


def unpack(c: Constant) -> Body:
    """The body of the function: from `codes` to `y`."""
    s, body = c.storage, Body(["y", "codes"])
    if (whole := _whole(s)) is None:
        codes = body.cast(_from_bits(body, s, c.type), TensorProto.INT64)
    else:
        codes = body.cast("codes", TensorProto.INT64)
    if whole != TensorProto.INT4:
        codes = body.expression(s.decoder, [codes])
    body.cast(codes, element(c.type), "y")
    return body


def _from_bits(body: Body, s: Storage, t: TensorType) -> str:
    """Codes from the bits of bytes, int32."""
    shifted = body.op(
        "BitShift",
        body.op("Unsqueeze", "codes", body.constant([1])),
        body.constant(np.arange(8), np.uint8),
        direction="RIGHT",
    )
    bits = body.op("Reshape", body.op("BitwiseAnd", shifted, body.constant(1, np.uint8)), body.constant([-1]))
    bits = body.op("Slice", bits, body.constant([0]), body.constant([t.size * s.bits]))
    rows = body.op("Reshape", body.cast(bits, TensorProto.INT32), body.constant([t.size, s.bits]))
    powers = body.constant(1 << np.arange(s.bits), np.int32)
    return body.op("Reshape", body.op("MatMul", rows, powers), body.constant(np.array(t.dims, np.int64)))


def is_unpack(call: onnx.NodeProto) -> bool:
    return call.op_type.startswith(f"{UNPACK}__")


def constant_of(call: onnx.NodeProto, codes: TensorProto) -> Constant:
    """The constant that a call unpacks.  Raises ValueError where the two do not belong together."""
    found = {a.name: helper.get_attribute_value(a) for a in call.attribute if a.type != AttributeProto.TENSOR}
    elem = int_type(bytes(found["elem"]).decode())
    shape, mantissa = tuple(int(d) for d in found["shape"]), int(found["mantissa"])
    t = TensorType(shape, elem)
    s = storage(elem, None if mantissa < 0 else mantissa)
    size, data = math.prod(shape), np.frombuffer(codes.raw_data, np.uint8)
    wanted = packed_bytes(s, size)
    if min(shape, default=0) < 0 or data.size != wanted:
        raise ValueError(f"weight {codes.name} of shape {shape} takes {wanted} bytes, got {data.size}")
    values = unpacked(s, data, size)
    return Constant(call.output[0], t, values.astype(elem.dtype).tobytes(), s.mantissa)
