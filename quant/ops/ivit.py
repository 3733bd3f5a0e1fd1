"""Mode `ivit`: the published integer nonlinears of I-ViT, defects included (Li and Gu 2023, "I-ViT", section 3).

An input x has the scale S; x0 = ceil(1/S) is one in its units.  ShiftExp, Shiftmax, ShiftGELU and I-LayerNorm are as
published.  Of functions that the paper does not have, the sigmoid is ShiftGELU's gate, tanh x is 2 sigmoid(2x) - 1,
SiLU is ShiftGELU without 1.702, RMSNorm and L2 norms are I-LayerNorm without centring; softplus takes log2(1 + e) as e
and ln 2 as 11/16.  Errors against the real functions, large for some scales, stand in docs/nonlinears.md.
"""

from __future__ import annotations

from typing import Any

from isobit.quant.expr import clip, floordiv, select
from isobit.quant.ops.op import Case
from isobit.quant.ops.requantize import rounding_shift

LARGEST = (1 << 31) - 1
"""Where the paper clamps sums, and what it divides by them."""

EXP_BITS = 15
"""n of ShiftExp in Shiftmax, and in every function that divides nothing."""

GATE_BITS = 23
"""n of ShiftExp in ShiftGELU."""

GATE_UNIT = 7
"""A gate is in units of 2^-7: ShiftGELU's output bits are 8."""

BEYOND = 9
"""Whole units of x0 that a positive exponent of ShiftGELU may reach: there 2^23 x0 e^x is above LARGEST already."""

NEWTON_STEPS, NEWTON_START = 10, 1 << 16
"""Of I-LayerNorm's square root."""

DECAY_ONE = 1 << 12
"""x0 of the exponent of a decay."""


def shift_exp(x: Any, x0: int, n: int, beyond: int = 0) -> Any:
    """ShiftExp: x0 2^n e^(x/x0) by e^x = 2^(1.4375 x) and 2^-r = 1 - r/2 (section 3.3); x <= 0, or positive up to
    `beyond` whole units, where it stays.
    """
    octaves = clip((x >> 4) - x - (x >> 1), -beyond * x0, n * x0)
    whole = floordiv(octaves + beyond * x0, x0) - beyond
    rest = clip(octaves - whole * x0, 0, x0 - 1)
    return ((2 * x0 - rest) << (n - whole)) >> 1


def share(part: Any, total: Any, *, largest: int, s: int) -> Any:
    """part * F >> s with F = (2^31 - 1) / min(total, 2^31 - 1), 0 <= part <= total, part <= largest (section 3.3).

    A part above 2^31 - 1 meets F = 1.
    """
    factor = floordiv(LARGEST, clip(total, 1, LARGEST))
    found = select(part > LARGEST, part >> s, (clip(part, 0, LARGEST) * factor) >> s)
    return clip(found, 0, max(largest, LARGEST) >> s)


def shifted_exp_ivit(x: Any, top: Any, *, x0: int) -> Any:
    """ShiftExp of x - top <= 0, in units of S/2^15."""
    return shift_exp(x - top, x0, EXP_BITS)


def shifted_exp_of_history_ivit(x: Any, top: Any, count: Any, slot: Any, *, length: int, x0: int) -> Any:
    """As shifted_exp_ivit; 0 for a slot that no step has filled."""
    return select(slot + count < length, 0, shifted_exp_ivit(x, top, x0=x0))


def shiftmax_ivit(power: Any, total: Any, *, x0: int, s: int) -> Any:
    """Shiftmax: power * F >> s, s = 31 - b + 1 for b bits, in units of 2^(1-b)."""
    return share(power, total, largest=x0 << EXP_BITS, s=s)


def sigmoid_ivit(x: Any, top: Any, *, x0: int) -> Any:
    """ShiftGELU's gate from ShiftExp of x - top and of -top, top the row's largest, in units of 2^-7."""
    mine, other = shift_exp(x - top, x0, GATE_BITS), shift_exp(-top, x0, GATE_BITS, BEYOND)
    return share(mine, mine + other, largest=x0 << GATE_BITS, s=31 - GATE_UNIT)


def gated_ivit(x: Any, top: Any, *, x0: int) -> Any:
    """x times its gate: ShiftGELU where x0 is one of 1.702 S (section 3.4), SiLU where it is of S."""
    return x * sigmoid_ivit(x, top, x0=x0)


def tanh_ivit(x: Any, top: Any, *, x0: int) -> Any:
    """2 gate - 1 in units of 2^-7; x0 is one of 2 S."""
    return 2 * sigmoid_ivit(x, top, x0=x0) - (1 << GATE_UNIT)


def exp_ivit(x: Any, *, top: int, x0: int) -> Any:
    """ShiftExp of x - top, of 0 where x is above, in units of e^top S/2^15."""
    return shift_exp(x - top, x0, EXP_BITS)


def decay_ivit(dt: Any, a: Any, *, s: int) -> Any:
    """exp(-dt*a) in Q0.15 by ShiftExp; dt >= 0 the step size, a >= 0 the rate; (dt*a) >> s is in Q.12."""
    power = shift_exp(-rounding_shift(dt * a, s), DECAY_ONE, EXP_BITS)
    return clip(power >> (DECAY_ONE.bit_length() - 1), 0, (1 << 15) - 1)


def softplus_ivit(x: Any, *, x0: int, m: int, s: int, hi: int) -> Any:
    """max(x, 0) + 11/16 ShiftExp(-|x|), in units of S/2^15, which m and s carry to the output's scale."""
    magnitude = select(x < 0, -x, x)
    tail = (shift_exp(-magnitude, x0, EXP_BITS) * 11) >> 4
    return clip(rounding_shift(((clip(x, 0, 1 << 31) << EXP_BITS) + tail) * m, s), 0, hi)


def centre_ivit(x: Any, total: Any, *, n: int, most: int) -> Any:
    """x less the mean total/n, rounded to nearest, ties to even; |total| <= n*most (section 3.5)."""
    whole = floordiv(clip(2 * total + n + 2 * n * most, 0, 4 * n * most + n), 2 * n) - most
    tie = 2 * total + n - 2 * n * whole < 1
    return x - (whole - select(tie, whole & 1, 0))


def factor_ivit(v: Any) -> Any:
    """(2^31 - 1) / k, k after ten steps (k + v/k) / 2 from 2^16 (section 3.5); k is at least 64."""
    k: Any = NEWTON_START
    for _ in range(NEWTON_STEPS):
        k = (k + floordiv(v, k)) >> 1
    return floordiv(LARGEST, k)


def norm_ivit(x: Any, factor: Any, shift: Any) -> Any:
    """x * factor >> 1, in units of sqrt(n)/2^30, plus a shift per channel in the same units (section 3.5)."""
    return ((x * factor) >> 1) + shift


GATE_IVIT_CASES = tuple(
    Case(why, "tqk,tq->tqk", {"q": 4, "k": 7}, (elem, elem), {"x0": x0})
    for why, elem, x0 in (("8 bits", "i8", 10), ("16 bits, sums that clamp", "i16", 2406), ("one is one unit", "i8", 1))
)
SHIFTED_EXP_IVIT_CASES = tuple(
    Case(why, "tqk,tq->tqk", {"q": 4, "k": 7}, (elem, elem), {"x0": x0})
    for why, elem, x0 in (("8 bits", "i8", 11), ("16 bits", "i16", 4096))
)
SHIFTED_EXP_OF_HISTORY_IVIT_CASES = (
    Case("first steps", "tw,t,t,w->tw", {"w": 6}, ("i16", "i16", "u3", "=u3"), {"length": 6, "x0": 99}),
)
SHIFTMAX_IVIT_CASES = (
    Case("8 bits", "tqk,tq->tqk", {"q": 4, "k": 7}, ("u19", "u22"), {"x0": 16, "s": 24}),
    Case("16 bits, sums that clamp", "tqk,tq->tqk", {"q": 4, "k": 7}, ("u33", "u36"), {"x0": 1 << 18, "s": 16}),
)
EXP_IVIT_CASES = (Case("16 bits", "tn->tn", {"n": 64}, ("i16",), {"top": 20000, "x0": 3000}),)
DECAY_IVIT_CASES = (Case("every step size", "tc,cn->tcn", {"c": 8, "n": 4}, ("u15", "=u15"), {"s": 10}),)
SOFTPLUS_IVIT_CASES = (
    Case("8 bits", "tn->tn", {"n": 64}, ("i8",), {"x0": 16, "m": 1 << 20, "s": 27, "hi": 32767}),
    Case("16 bits", "tn->tn", {"n": 64}, ("i16",), {"x0": 2000, "m": 1 << 20, "s": 35, "hi": 32767}),
)
CENTRE_IVIT_CASES = (
    Case("16 bits", "tn,t->tn", {"n": 9}, ("i16", "i19"), {"n": 9, "most": 1 << 15}),
    Case("ties", "tn,t->tn", {"n": 4}, ("i8", "i9"), {"n": 4, "most": 128}),
)
FACTOR_IVIT_CASES = (Case("every width of sum", "tn->tn", {"n": 64}, ("u44",), {}),)
NORM_IVIT_CASES = (Case("full range", "tn,t,n->tn", {"n": 16}, ("i17", "u25", "=i34")),)
