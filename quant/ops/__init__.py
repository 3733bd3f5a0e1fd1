"""OPS: every op, its structure and its definition.  Adding a pointwise op means one file and one row here."""

from __future__ import annotations

from isobit.quant.ops import (
    arithmetic,
    causal_conv1d,
    exp2,
    linear_recurrence,
    matmul,
    mean,
    requantize,
    rmsnorm,
    silu,
    softplus,
)
from isobit.quant.ops.op import Case, Op, Structure

POINTWISE, CONTRACTION, WINDOW, RECURRENCE = Structure

OPS: dict[str, Op] = {
    "requantize": Op(POINTWISE, requantize.requantize, cases=requantize.REQUANTIZE_CASES),
    "requantize_per_channel": Op(
        POINTWISE, requantize.requantize_per_channel, cases=requantize.REQUANTIZE_PER_CHANNEL_CASES
    ),
    "add": Op(POINTWISE, arithmetic.add, cases=arithmetic.ADD_CASES),
    "add_per_channel": Op(POINTWISE, arithmetic.add_per_channel, cases=arithmetic.ADD_PER_CHANNEL_CASES),
    "multiply": Op(POINTWISE, arithmetic.multiply, cases=arithmetic.MULTIPLY_CASES),
    "decay": Op(POINTWISE, exp2.decay, cases=exp2.DECAY_CASES),
    "silu": Op(POINTWISE, silu.silu, cases=silu.SILU_CASES),
    "softplus": Op(POINTWISE, softplus.softplus, cases=softplus.SOFTPLUS_CASES),
    "rsqrt": Op(POINTWISE, rmsnorm.rsqrt, cases=rmsnorm.RSQRT_CASES),
    "rmsnorm_scale": Op(POINTWISE, rmsnorm.rmsnorm_scale, cases=rmsnorm.RMSNORM_SCALE_CASES),
    "mean": Op(POINTWISE, mean.mean, cases=mean.MEAN_CASES),
    "matmul": Op(CONTRACTION, matmul.product, start=True, cases=matmul.MATMUL_CASES),
    "sum_squares": Op(CONTRACTION, rmsnorm.square, cases=rmsnorm.SUM_SQUARES_CASES),
    "causal_conv1d": Op(WINDOW, matmul.product, start=True, cases=causal_conv1d.CAUSAL_CONV1D_CASES),
    "linear_recurrence": Op(
        RECURRENCE,
        linear_recurrence.linear_recurrence,
        readout=linear_recurrence.state_times_query,
        cases=linear_recurrence.LINEAR_RECURRENCE_CASES,
    ),
    "running_sum": Op(RECURRENCE, mean.running_sum, cases=mean.RUNNING_SUM_CASES),
    "step_count": Op(RECURRENCE, mean.step_count, cases=mean.STEP_COUNT_CASES),
}

__all__ = ["OPS", "Case", "Op", "Structure"]
