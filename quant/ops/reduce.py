"""Values as they are: reductions of them, copies with axes in another order, rows of a table, the last K of them."""

from __future__ import annotations

from typing import Any

from isobit.quant.ops.op import Case


def element(x: Any) -> Any:
    """x itself."""
    return x


REDUCE_SUM_CASES = (Case("over positions", "tlc->tc", {"l": 6, "c": 5}, ("i16",), {"acc": 32}),)
REDUCE_MAX_CASES = (
    Case("over the last axis", "tqk->tq", {"q": 4, "k": 7}, ("i32",), {"acc": 32}),
    Case("64 bits", "tk->t", {"k": 9}, ("i40",), {"acc": 64}),
)
TRANSPOSE_CASES = (Case("three axes", "thlc->tlch", {"h": 3, "l": 4, "c": 2}, ("i16",)),)
EMBEDDING_CASES = (
    Case("tokens", "t,vc->tc", {"v": 128, "c": 5}, ("u7", "=i8")),
    Case("tokens in a row", "tl,vc->tlc", {"l": 3, "v": 16, "c": 4}, ("u4", "=i16")),
)
HISTORY_CASES = (
    Case("keys of a window", "thd->twhd", {"h": 2, "d": 3}, ("i8",), {"length": 4}, "i8"),
    Case("two scalars", "t->tw", {}, ("i16",), {"length": 2}, "i16"),
)
