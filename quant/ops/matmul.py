"""Sums of products: linear layers, whose accumulator a bias starts, products of activations, convolutions."""

from __future__ import annotations

from typing import Any

from isobit.quant.ops.op import Case


def product(x: Any, w: Any) -> Any:
    """x * w, exact: one term of a dot product, or a value itself."""
    return x * w


MATMUL_CASES = (
    Case("8 x 8 bits", "tk,nk,n->tn", {"k": 19, "n": 5}, ("i8", "=i8", "=i20"), {"acc": 32}),
    Case("16 x 8 bits", "tk,nk,n->tn", {"k": 64, "n": 16}, ("i16", "=i8", "=i20"), {"acc": 32}),
    Case("wide accumulator", "tk,nk,n->tn", {"k": 8, "n": 3}, ("i16", "=i16", "=i32"), {"acc": 64}),
    Case(
        "two activations from a third", "tgrpc,twgpc,tgr->tgrw", {"g": 2, "r": 3, "p": 2, "c": 3, "w": 4},
        ("i20", "u4", "i24"), {"acc": 32},
    ),
)  # fmt: skip

DOT_CASES = (
    Case("two activations", "thqd,thkd->thqk", {"h": 2, "q": 3, "k": 5, "d": 7}, ("i8", "i8"), {"acc": 32}),
    Case("grouped heads", "tgrk,tgk->tgr", {"g": 2, "r": 3, "k": 9}, ("i16", "i16"), {"acc": 64}),
)
PRODUCT_CASES = (Case("8 x 14 bits", "tgrd,gd->tgrd", {"g": 2, "r": 3, "d": 8}, ("i8", "=u14")),)
CONVOLUTION_CASES = (
    Case(
        "a stride of its own per axis",
        "tyxc,nijc,n->tvun",
        {"y": 5, "x": 7, "i": 3, "j": 3, "c": 2, "n": 3},
        ("i8", "=i8", "=i20"),
        {"acc": 32, "stride0": 2, "dilation0": 1, "stride1": 1, "dilation1": 2},
    ),
    Case(
        "depthwise, dilated",
        "tyxc,ijc,c->tvuc",
        {"y": 6, "x": 5, "i": 2, "j": 3, "c": 3},
        ("i16", "=i8", "=i20"),
        {"acc": 32, "stride0": 1, "dilation0": 2, "stride1": 1, "dilation1": 2},
    ),
    Case(
        "one axis",
        "tlc,nic,n->tmn",
        {"l": 6, "i": 4, "c": 3, "n": 2},
        ("i8", "=i8", "=i20"),
        {"acc": 32, "stride0": 1, "dilation0": 1},
    ),
)
