"""Causal convolution over time, depthwise or dense; the last K-1 inputs are its state, oldest first."""

from __future__ import annotations

from isobit.quant.ops.op import Case

CAUSAL_CONV1D_CASES = (
    Case("kernel 4", "tc,cj,c->tc", {"c": 9, "j": 4}, ("i8", "=i8", "=i20"), {"acc": 32}, state="i8"),
    Case("kernel 2", "tc,cj,c->tc", {"c": 3, "j": 2}, ("i16", "=i8", "=i20"), {"acc": 32}, state="i16"),
    Case("one channel", "t,nj,n->tn", {"n": 3, "j": 4}, ("i8", "=i8", "=i20"), {"acc": 32}, state="i8"),
    Case("one output", "tc,cj,->t", {"c": 3, "j": 3}, ("i8", "=i8", "=i20"), {"acc": 32}, state="i8"),
    Case("dense", "tc,ncj,n->tn", {"c": 3, "n": 5, "j": 3}, ("i8", "=i8", "=i20"), {"acc": 32}, state="i8"),
)
