"""Linear layers: products summed into an accumulator that a bias starts."""

from __future__ import annotations

from typing import Any

from isobit.quant.ops.op import Case


def product(x: Any, w: Any) -> Any:
    """x * w, one term of a dot product."""
    return x * w


MATMUL_CASES = (
    Case("8 x 8 bits", "tk,nk,n->tn", {"k": 19, "n": 5}, ("i8", "=i8", "=i20"), {"acc": 32}),
    Case("16 x 8 bits", "tk,nk,n->tn", {"k": 64, "n": 16}, ("i16", "=i8", "=i20"), {"acc": 32}),
    Case("wide accumulator", "tk,nk,n->tn", {"k": 8, "n": 3}, ("i16", "=i16", "=i32"), {"acc": 64}),
)
