"""Packed constants: codes against ml_dtypes, bytes written out by hand, sizes, and what `check` refuses."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from isobit.quant.check import check
from isobit.quant.errors import CheckError
from isobit.quant.expr.interval import Interval
from isobit.quant.expr.symbols import trace
from isobit.quant.formats import FORMATS, MX, format_named
from isobit.quant.formats.format import Format
from isobit.quant.program import DIGITS, SIGN, Constant, Input, IntType, Node, Program, TensorType, constant, int_type
from isobit.quant.quantize import quantize
from isobit.quant.recipe import Recipe
from isobit.quant.storage import Storage, is_packed, packed, storage, stored_bytes, touched, unpacked
from tests.stored import ELEMENTS, STORED, numbers

OCP = {"e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2", "e3m2": "float6_e3m2fn", "e2m3": "float6_e2m3fn",
       "e2m1": "float4_e2m1fn"}  # fmt: skip


@pytest.mark.parametrize("name", OCP)
def test_codes_of_minifloats_are_those_of_ml_dtypes(name: str) -> None:
    f = FORMATS[name]
    s = storage(f.elem, f.mantissa)
    codes = np.arange(1 << s.bits)
    theirs = codes.astype(np.uint8).view(np.dtype(getattr(ml_dtypes, OCP[name]))).astype(np.float64)
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(s.decoded(codes)[finite] * 2.0**-f.point, theirs[finite])


@pytest.mark.parametrize("s", STORED, ids=lambda s: s.name)
def test_what_targets_print_is_the_definition(s: Storage) -> None:
    codes = np.arange(1 << s.bits)
    np.testing.assert_array_equal(s.decoder.evaluate(codes), s.decoded(codes))
    assert not s.decoder.claims


@pytest.mark.parametrize("s", [s for s in STORED if s.product], ids=lambda s: s.name)
def test_a_product_by_shifts_is_the_product(s: Storage) -> None:
    """Of every code and every byte, and without a multiplication."""
    assert s.product is not None
    define, params = s.product
    x, codes = np.arange(-128, 128)[:, None], np.arange(1 << s.bits)
    np.testing.assert_array_equal(define(x, codes, **params), x * s.decoded(codes))
    traced = trace(define, [Interval(-128, 127), Interval(0, (1 << s.bits) - 1)], params)
    np.testing.assert_array_equal(traced.evaluate(*np.broadcast_arrays(x, codes)), x * s.decoded(codes))
    assert not {"mul", "mulh"} & {n.op for n in traced.nodes}


@pytest.mark.parametrize("f", FORMATS.values(), ids=lambda f: f.name)
def test_every_number_of_a_format_has_a_code(f: Format) -> None:
    s = storage(f.elem, f.mantissa)
    numbers = np.array([sign * m for m in f.magnitudes for sign in (1, -1)])
    codes = s.codes(numbers)
    assert 0 <= codes.min() <= codes.max() < 1 << s.bits
    np.testing.assert_array_equal(s.decoded(codes), numbers)
    assert s.bits == f.bits


@settings(deadline=None)
@given(st.sampled_from(STORED), st.data())
def test_unpacking_undoes_packing(s: Storage, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.sampled_from(numbers(s).tolist()), min_size=1, max_size=40))
    c = constant("w", values, ELEMENTS[s], mantissa=s.mantissa)
    assert c.storage == s
    stored = packed(c)
    assert len(stored) == -(-len(values) * s.bits // 8) + touched(s) - 1
    assert unpacked(s, stored, len(values)).tolist() == values


@pytest.mark.parametrize(
    ("values", "elem", "mantissa", "expected"),
    [
        ([1, -2, 7], IntType(4), None, [0xE1, 0x07]),
        ([1, -1, 0, 1, -1], IntType(2), None, [0b01_00_11_01, 0b11]),
        ([1, 2, 3], IntType(6, signed=False), None, [0b10_000001, 0b0011_0000, 0b00, 0]),
        ([1, -1, -1, 1, 1, 1, -1, 1, -1, 1], SIGN, None, [0b1011_1001, 0b10]),
        ([12, -1], IntType(5), 1, [0x97]),
        ([1, 256], IntType(9, signed=False), 0, [0x91]),
        ([5, 250], IntType(8, signed=False), None, [5, 250]),
        ([0, 96, -127], DIGITS, None, [0b1_0000000, 0b11_000010, 0b00011, 0]),
    ],
    ids=["int4", "ternary", "six bits", "binary", "e2m1", "powers of two", "bytes", "signed digits"],
)
def test_bytes(values: list[int], elem: IntType, mantissa: int | None, expected: list[int]) -> None:
    """Two int4 or E2M1 in a byte, four ternary, eight binary; the first in the lowest bits; -127 is -128 + 1."""
    assert packed(constant("w", values, elem, mantissa=mantissa)).tolist() == expected


def test_machine_integers_are_not_packed() -> None:
    assert not any(is_packed(constant("w", [1], IntType(bits))) for bits in (8, 16, 20, 32, 64))
    assert is_packed(constant("w", [1], IntType(15)))


SIZES = ("int2", "int3", "int4", "int6", "int8", "int12", "int16", "int4-g32", "int3-g128", "binary", "ternary", "pot4",
         "csd8k2", "e4m3", "e5m2", "e3m2", "e2m3", "e2m1", *MX)  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_weights_take_the_bits_of_their_format(name: str) -> None:
    """Bits times parameters, and the scales of blocks, within 2 %."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(2, 4, 256))
    made = quantize(nn.Linear(256, 128), x, Recipe("r", weights=name), name="linear")
    held = [c for c in made.program.constants if c.name.endswith((".weight", ".multipliers"))]
    bound = format_named(name).bits * 256 * 128 / 8
    assert bound <= sum(map(stored_bytes, held)) <= 1.02 * bound


def _program(c: Constant) -> Program:
    x = Input("x", TensorType(("T",), IntType(2, signed=False)))
    node = Node("embedding", (), ("x", c.name), "y", "t,vc->tc", "table")
    return Program("table", (x,), (c,), (), (node,), ("y",))


def test_the_digest_covers_the_mantissa() -> None:
    table = np.array([[1, 2], [3, 4], [6, 8], [12, 0]])
    plain, coded = (_program(constant("w", table, IntType(5), mantissa=m)) for m in (None, 1))
    assert plain.digest != coded.digest


@pytest.mark.parametrize(
    ("mantissa", "message"),
    [(1, "w: 5 is no number of e2m1"), (4, "i5 holds no minifloats with a mantissa of 4 bits"), (-1, "of -1 bits")],
)
def test_other_numbers_are_refused(mantissa: int, message: str) -> None:
    table = np.array([[1, 2], [3, 4], [5, 6], [8, 12]])
    with pytest.raises(CheckError, match=message):
        check(_program(constant("w", table, IntType(5), mantissa=mantissa)))


def test_sums_of_two_signed_powers_are_elements_of_constants() -> None:
    assert int_type(str(DIGITS)) == DIGITS
    with pytest.raises(CheckError, match="w: 11 is no number of csd8k2"):
        check(_program(constant("w", [[1, -1], [0, 127], [11, 1], [1, 1]], DIGITS)))
    with pytest.raises(CheckError, match="an element of 7 bits of signed digits, expected 8 bits with a sign"):
        IntType(7, digits=True)
    with pytest.raises(CheckError, match="x has elements csd8k2, which only constants have"):
        check(Program("p", (Input("x", TensorType(("T",), DIGITS)),), (), (), (), ("x",)))


def test_elements_without_zero_are_of_constants_and_of_one_bit() -> None:
    assert int_type(str(SIGN)) == SIGN
    with pytest.raises(CheckError, match="w: 0 is no number of s1"):
        check(_program(constant("w", [[1, -1], [0, 1], [1, 1], [1, 1]], SIGN)))
    with pytest.raises(CheckError, match="an element of 2 bits without 0, expected 1 bit"):
        IntType(2, zero=False)
    x = Input("x", TensorType(("T",), SIGN))
    sum_of = Node("requantize", (("hi", 1), ("lo", -1), ("m", 1), ("s", 1)), ("x",), "y", "t->t", "layer")
    with pytest.raises(CheckError, match="x has elements s1, which only constants have"):
        check(Program("p", (x,), (), (), (sum_of,), ("y",)))
