"""The linear recurrence S = decay * S + v k, o = sum S q: Mamba, RetNet, GLA, linear attention.

Gu and Dao 2023, "Mamba", eq. 2; Yang et al. 2023, "Gated Linear Attention", eq. 3.
"""

from __future__ import annotations

from typing import Any

from isobit.quant.expr import clip
from isobit.quant.ops.op import Case
from isobit.quant.ops.requantize import INT16, rounding_shift


def linear_recurrence(state: Any, decay: Any, v: Any, k: Any, *, up: int, lo: int, hi: int) -> Any:
    """sat((S*decay + ((v*k) << up) + 2^14) >> 15): decay in Q0.15, one rounding; `up` matches the scales."""
    return clip(rounding_shift(state * decay + ((v * k) << up), 15), lo, hi)


def diagonal_recurrence(state: Any, decay: Any, x: Any, *, up: int, lo: int, hi: int) -> Any:
    """sat((h*decay + (x << up) + 2^14) >> 15): decay in Q0.15, one rounding.

    De et al. 2024, "Griffin", eq. 4 (RG-LRU), with x the gated input.
    """
    return clip(rounding_shift(state * decay + (x << up), 15), lo, hi)


def convex_recurrence(state: Any, gate: Any, x: Any, *, lo: int, hi: int) -> Any:
    """h + R(z*(x - h)), z in Q0.15: never leaves the interval of its inputs, so that lo and hi are never passed.

    Feng et al. 2024, "Were RNNs All We Needed?" (minGRU); Qin et al. 2023, "HGRN"; Bradbury et al. 2016 (QRNN).
    """
    return clip(state + rounding_shift(gate * (x - state), 15), lo, hi)


def outer_sum(state: Any, v: Any, k: Any, *, lo: int, hi: int) -> Any:
    """S + v k without decay: exact for T_max steps, when lo and hi are T_max times the range of v*k.

    Katharopoulos et al. 2020, "Transformers are RNNs", eq. 18.
    """
    return clip(state + v * k, lo, hi)


def outer_step(state: Any, v: Any, k: Any, *, down: int, lo: int, hi: int) -> Any:
    """sat(S + (v*k + 2^(down-1) >> down)): no decay, and a state that saturates.

    Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule", eq. 4, where v is the error.
    """
    return clip(state + rounding_shift(v * k, down), lo, hi)


def rotate(x: Any, p: Any, y: Any, q: Any, *, s: int, lo: int, hi: int) -> Any:
    """x*p + y*q with one rounding: a part of a complex state times a constant (Gu et al. 2022, S4D, eq. 3)."""
    return clip(rounding_shift(x * p + y * q, s), lo, hi)


def rotate_and_add(x: Any, p: Any, y: Any, q: Any, u: Any, *, mu: int, s: int, lo: int, hi: int) -> Any:
    """As rotate, plus u*mu before the rounding."""
    return clip(rounding_shift(x * p + y * q + u * mu, s), lo, hi)


def delta_recurrence(state: Any, decay: Any, v: Any, k: Any, u: Any, b: Any, *, up: int, lo: int, hi: int) -> Any:
    """sat((S*decay + ((v*k + u*b) << up) + 2^14) >> 15): u is made of the state that this step starts from.

    Peng et al. 2025, "RWKV-7", eq. 17.
    """
    return clip(rounding_shift(state * decay + ((v * k + u * b) << up), 15), lo, hi)


def hold(state: Any, x: Any) -> Any:
    """x itself: the state is what the next step reads."""
    return x


def old_state(state: Any) -> Any:
    """The state as it was before the step."""
    return state


def state_times_query(state: Any, q: Any) -> Any:
    """S * q, one term of the readout."""
    return state * q


STATE16 = {"lo": -32768, "hi": 32767, "acc": 32}

LINEAR_RECURRENCE_CASES = (
    Case(
        "selective state space",
        "tcn,tc,tn,tn->tc|cn",
        {"c": 5, "n": 4},
        ("u15", "i16", "i8", "i8"),
        {"up": 7, **STATE16},
        "i16",
    ),
    Case(
        "along positions inside the step",
        "tlcn,tlc,tln,tln->tlc|cn",
        {"l": 5, "c": 3, "n": 2},
        ("u15", "i16", "i8", "i8"),
        {"up": 7, **STATE16},
    ),
    Case(
        "matrix state per head",
        "thk,thv,thk,thk->thv|hvk",
        {"h": 2, "v": 3, "k": 4},
        ("u15", "i16", "i8", "i8"),
        {"up": 6, **STATE16},
        "i16",
    ),
    Case(
        "decay per head",
        "c,tc,tn,tn->tc|cn",
        {"c": 3, "n": 7},
        ("=u15", "i16", "i8", "i8"),
        {"up": 0, **STATE16},
        "i16",
    ),
)

DIAGONAL_CASES = (Case("gated input", "tc,tc->tc|c", {"c": 9}, ("u15", "i16"), {"up": 14, **STATE16}, "i16"),)
CONVEX_CASES = (
    Case("full range", "tc,tc->tc|c", {"c": 9}, ("u15", "i16"), {"lo": -32768, "hi": 32767, "acc": 64}, "i16"),
)
OUTER_SUM_CASES = (
    Case(
        "linear attention",
        "thv,thk,thk->thv|hvk",
        {"h": 2, "v": 3, "k": 4},
        ("i16", "i8", "i8"),
        {"lo": -(1 << 30), "hi": 1 << 30, "acc": 64},
        "i32",
    ),
)
DELTA_CASES = (
    Case(
        "two outer products",
        "thk,thv,thk,thv,thk,thk->thv|hvk",
        {"h": 2, "v": 3, "k": 4},
        ("u15", "i15", "i8", "i15", "i8", "i8"),
        {"up": 6, **STATE16},
        "i16",
    ),
)
HOLD_CASES = (Case("a vector", "tc->tc|c", {"c": 5}, ("i16",), {"acc": 32}, "i16"),)
DELAY_CASES = (Case("heads", "thd->thd|hd", {"h": 2, "d": 3}, ("i8",), {"acc": 32}, "i8"),)
OUTER_STEP_CASES = (
    Case(
        "delta rule",
        "thv,thk,thk->thv|hvk",
        {"h": 2, "v": 3, "k": 4},
        ("i16", "i8", "i8"),
        {"down": 9, **STATE16},
        "i16",
    ),
)
ROTATE_CASES = (
    Case("Q.14", "tcn,cn,tcn,cn->tcn", {"c": 8, "n": 4}, ("i16", "=i16", "i16", "=i16"), {"s": 14, **INT16}),
)
ROTATE_AND_ADD_CASES = (
    Case(
        "Q.14",
        "tcn,cn,tcn,cn,tc->tcn",
        {"c": 8, "n": 4},
        ("i16", "=i16", "i16", "=i16", "i16"),
        {"mu": 12345, "s": 14, **INT16},
    ),
)
BEFORE_CASES = (
    Case(
        "bonus elsewhere",
        "thk,thv,thk,thk->thv|hvk",
        {"h": 2, "v": 3, "k": 4},
        ("u15", "i16", "i8", "i8"),
        {"up": 6, **STATE16},
        "i16",
    ),
)
