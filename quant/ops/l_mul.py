"""L-Mul: products of minifloats by adding their codes (Luo and Sun, 2024, "Addition is All You Need").

A signed code is sign * (exponent << mantissa | mantissa field), which `minifloat_code` gives.  The sum of two counts
(1 + x + y) * 2^(ex + ey) for (1 + x) * (1 + y) * 2^(ex + ey); where x + y reaches 1 it carries into the exponent, as in
Mitchell's logarithms (1962), and stands for (x + y) * 2^(ex + ey + 1).
"""

from __future__ import annotations

from typing import Any

from isobit.quant.expr import bound, clip, clz, select
from isobit.quant.ops.op import Case


def minifloat_code(x: Any, *, mantissa: int, most: int) -> Any:
    """The signed code of a minifloat, of sign * (exponent << mantissa | mantissa field), from its integer.

    x counts the format's smallest number, |x| <= most, with at most mantissa + 1 significant bits.
    """
    size, width = clip(select(x < 0, 0 - x, x), 0, most), most.bit_length()
    shift = clip(width - mantissa - 1 - clz(size, width), 0, width)
    code = (shift << mantissa) + bound(size >> shift, 0, (2 << mantissa) - 1)
    return select(x < 0, 0 - code, code)


def l_product(x: Any, w: Any, *, mantissa: int, offset: int) -> Any:
    """The product of two minifloats by one addition of their signed codes, and of `offset`, in steps of the mantissa.

    It counts 2^mantissa products of the formats' smallest numbers.  What is zero or subnormal is taken as zero.
    """
    lead = 1 << mantissa
    a, b = select(x < 0, 0 - x, x), select(w < 0, 0 - w, w)
    total = a + b + offset
    size = (lead + (total & (lead - 1))) << clip((total >> mantissa) - 2, 0, 62)
    signed = select((x ^ w) < 0, 0 - size, size)
    return select(a < lead, 0, select(b < lead, 0, signed))


def high_code(x: Any, *, h: int, mantissa: int) -> Any:
    """The code x with h less in its exponent where that is above h, else 0.

    The numbers of the two limbs of a code are high * 2^h and low; one of them is 0, so that products with them add up.
    """
    size = select(x < 0, 0 - x, x)
    kept = select(size < (h + 1) << mantissa, 0, size - (h << mantissa))
    return select(x < 0, 0 - kept, kept)


def low_code(x: Any, *, h: int, mantissa: int) -> Any:
    """The code x where its exponent is at most h, else 0."""
    size, limit = select(x < 0, 0 - x, x), (h + 1) << mantissa
    kept = select(size < limit, clip(size, 0, limit - 1), 0)
    return select(x < 0, 0 - kept, kept)


E4M3 = {"mantissa": 3, "offset": 1}
E3M2 = {"mantissa": 2, "offset": 0}

MINIFLOAT_CODE_CASES = (
    Case("e4m3", "tn->tn", {"n": 64}, ("i19",), {"mantissa": 3, "most": 448 << 9}),
    Case("e5m2", "tn->tn", {"n": 64}, ("i33",), {"mantissa": 2, "most": 57344 << 16}),
    Case("no mantissa", "tn->tn", {"n": 64}, ("i8",), {"mantissa": 0, "most": 64}),
)
HIGH_CODE_CASES = (Case("e5m2", "tn->tn", {"n": 64}, ("i8",), {"h": 16, "mantissa": 2}),)
LOW_CODE_CASES = (Case("e5m2", "tn->tn", {"n": 64}, ("i8",), {"h": 16, "mantissa": 2}),)
L_MATMUL_CASES = (
    Case("e4m3", "tk,nk,n->tn", {"k": 19, "n": 5}, ("i8", "=i8", "=i40"), {"acc": 64, **E4M3}),
    Case("e3m2", "tk,nk,n->tn", {"k": 7, "n": 3}, ("i6", "=i6", "=i20"), {"acc": 32, **E3M2}),
    Case(
        "mantissa only", "tk,nk,n->tn", {"k": 7, "n": 3}, ("i4", "=i4", "=i8"), {"acc": 32, "mantissa": 2, "offset": 1}
    ),
)
L_DOT_CASES = (
    Case("two activations", "thqd,thkd->thqk", {"h": 2, "q": 3, "k": 5, "d": 7}, ("i8", "i8"), {"acc": 64, **E4M3}),
)
L_CONVOLUTION_CASES = (
    Case(
        "a stride of its own per axis",
        "tyxc,nijc,n->tvun",
        {"y": 5, "x": 7, "i": 3, "j": 3, "c": 2, "n": 3},
        ("i8", "=i8", "=i40"),
        {"acc": 64, "stride0": 2, "dilation0": 1, "stride1": 1, "dilation1": 2, **E4M3},
    ),
    Case(
        "depthwise",
        "tyxc,ijc,c->tvuc",
        {"y": 6, "x": 5, "i": 2, "j": 3, "c": 3},
        ("i6", "=i6", "=i20"),
        {"acc": 32, "stride0": 1, "dilation0": 1, "stride1": 1, "dilation1": 1, **E3M2},
    ),
)
L_CAUSAL_CONV1D_CASES = (
    Case("kernel 4", "tc,cj,c->tc", {"c": 9, "j": 4}, ("i8", "=i8", "=i40"), {"acc": 64, **E4M3}, state="i8"),
    Case("dense", "tc,ncj,n->tn", {"c": 3, "n": 5, "j": 3}, ("i6", "=i6", "=i20"), {"acc": 32, **E3M2}, state="i6"),
)
