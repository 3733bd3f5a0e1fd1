"""OPS: every op, its structure and its definition.  Adding a pointwise op means one file and one row here."""

from __future__ import annotations

from isobit.quant.ops import (
    activation,
    arithmetic,
    blocks,
    causal_conv1d,
    division,
    exp2,
    l_mul,
    layout,
    limbs,
    linear_recurrence,
    matmul,
    mean,
    minifloat,
    reduce,
    requantize,
    rmsnorm,
    silu,
    softmax,
    softplus,
)
from isobit.quant.ops.op import Case, Op, Structure

POINTWISE, CONTRACTION, CONVOLUTION, WINDOW, HISTORY, RECURRENCE, LAYOUT, GATHER = Structure

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
    "sigmoid": Op(POINTWISE, activation.scaled_sigmoid, cases=activation.SIGMOID_CASES),
    "tanh": Op(POINTWISE, activation.tanh, cases=activation.TANH_CASES),
    "gelu": Op(POINTWISE, activation.gelu, cases=activation.GELU_CASES),
    "gelu_tanh": Op(POINTWISE, activation.gelu_tanh, cases=activation.GELU_CASES),
    "elu": Op(POINTWISE, activation.elu, cases=activation.ELU_CASES),
    "hardswish": Op(POINTWISE, activation.hardswish, cases=activation.HARDSWISH_CASES),
    "prelu": Op(POINTWISE, activation.prelu, cases=activation.PRELU_CASES),
    "log_sigmoid": Op(POINTWISE, activation.log_sigmoid, cases=activation.LOG_SIGMOID_CASES),
    "exp": Op(POINTWISE, division.exp, cases=division.EXP_CASES),
    "to_minifloat": Op(POINTWISE, minifloat.to_minifloat, cases=minifloat.TO_MINIFLOAT_CASES),
    "minifloat_code": Op(POINTWISE, l_mul.minifloat_code, cases=l_mul.MINIFLOAT_CODE_CASES),
    "high_limb": Op(POINTWISE, limbs.high_limb, cases=limbs.HIGH_LIMB_CASES),
    "low_limb": Op(POINTWISE, limbs.low_limb, cases=limbs.LOW_LIMB_CASES),
    "join_limbs": Op(POINTWISE, limbs.join_limbs, cases=limbs.JOIN_LIMBS_CASES),
    "block_exponent": Op(POINTWISE, blocks.block_exponent, cases=blocks.BLOCK_EXPONENT_CASES),
    "block_element": Op(POINTWISE, blocks.block_element, cases=blocks.BLOCK_ELEMENT_CASES),
    "scale_block": Op(POINTWISE, blocks.scale_block, cases=blocks.SCALE_BLOCK_CASES),
    "divide": Op(POINTWISE, division.divide, cases=division.DIVIDE_CASES),
    "sqrt": Op(POINTWISE, division.sqrt, cases=division.SQRT_CASES),
    "maximum": Op(POINTWISE, division.maximum, cases=division.MAXIMUM_CASES),
    "heaviside": Op(POINTWISE, division.heaviside, cases=division.HEAVISIDE_CASES),
    "sign": Op(POINTWISE, division.sign, cases=division.SIGN_CASES),
    "softplus": Op(POINTWISE, softplus.softplus, cases=softplus.SOFTPLUS_CASES),
    "rsqrt": Op(POINTWISE, rmsnorm.rsqrt, cases=rmsnorm.RSQRT_CASES),
    "rmsnorm_scale": Op(POINTWISE, rmsnorm.rmsnorm_scale, cases=rmsnorm.RMSNORM_SCALE_CASES),
    "layernorm_scale": Op(POINTWISE, rmsnorm.layernorm_scale, cases=rmsnorm.LAYERNORM_SCALE_CASES),
    "centre": Op(POINTWISE, rmsnorm.centre, cases=rmsnorm.CENTRE_CASES),
    "shifted_exp": Op(POINTWISE, softmax.shifted_exp, cases=softmax.SHIFTED_EXP_CASES),
    "mask_history": Op(POINTWISE, softmax.mask_history, cases=softmax.MASK_HISTORY_CASES),
    "shifted_exp_of_history": Op(POINTWISE, softmax.shifted_exp_of_history, cases=softmax.SHIFTED_EXP_OF_HISTORY_CASES),
    "at_most": Op(POINTWISE, division.at_most, cases=division.HEAVISIDE_CASES),
    "rotate": Op(POINTWISE, linear_recurrence.rotate, cases=linear_recurrence.ROTATE_CASES),
    "rotate_and_add": Op(POINTWISE, linear_recurrence.rotate_and_add, cases=linear_recurrence.ROTATE_AND_ADD_CASES),
    "mean": Op(POINTWISE, mean.mean, cases=mean.MEAN_CASES),
    "matmul": Op(CONTRACTION, matmul.product, start=True, cases=matmul.MATMUL_CASES),
    "dot": Op(CONTRACTION, matmul.product, cases=matmul.DOT_CASES),
    "l_matmul": Op(CONTRACTION, l_mul.l_product, start=True, cases=l_mul.L_MATMUL_CASES),
    "l_dot": Op(CONTRACTION, l_mul.l_product, cases=l_mul.L_DOT_CASES),
    "reduce_sum": Op(CONTRACTION, reduce.element, cases=reduce.REDUCE_SUM_CASES),
    "reduce_max": Op(CONTRACTION, reduce.element, combine="max", cases=reduce.REDUCE_MAX_CASES),
    "reduce_absmax": Op(CONTRACTION, blocks.magnitude, combine="max", cases=blocks.REDUCE_ABSMAX_CASES),
    "rank": Op(CONTRACTION, division.comes_before, cases=division.RANK_CASES),
    "convolution": Op(CONVOLUTION, matmul.product, start=True, cases=matmul.CONVOLUTION_CASES),
    "l_convolution": Op(CONVOLUTION, l_mul.l_product, start=True, cases=l_mul.L_CONVOLUTION_CASES),
    "sum_squares": Op(CONTRACTION, rmsnorm.square, cases=rmsnorm.SUM_SQUARES_CASES),
    "causal_conv1d": Op(WINDOW, matmul.product, start=True, cases=causal_conv1d.CAUSAL_CONV1D_CASES),
    "l_causal_conv1d": Op(WINDOW, l_mul.l_product, start=True, cases=l_mul.L_CAUSAL_CONV1D_CASES),
    "linear_recurrence": Op(
        RECURRENCE,
        linear_recurrence.linear_recurrence,
        readout=linear_recurrence.state_times_query,
        cases=linear_recurrence.LINEAR_RECURRENCE_CASES,
    ),
    "diagonal_recurrence": Op(
        RECURRENCE, linear_recurrence.diagonal_recurrence, cases=linear_recurrence.DIAGONAL_CASES
    ),
    "convex_recurrence": Op(RECURRENCE, linear_recurrence.convex_recurrence, cases=linear_recurrence.CONVEX_CASES),
    "delta_recurrence": Op(
        RECURRENCE,
        linear_recurrence.delta_recurrence,
        readout=linear_recurrence.state_times_query,
        cases=linear_recurrence.DELTA_CASES,
    ),
    "linear_recurrence_before": Op(
        RECURRENCE,
        linear_recurrence.linear_recurrence,
        readout=linear_recurrence.state_times_query,
        reads_old=True,
        cases=linear_recurrence.BEFORE_CASES,
    ),
    "outer_step": Op(
        RECURRENCE,
        linear_recurrence.outer_step,
        readout=linear_recurrence.state_times_query,
        cases=linear_recurrence.OUTER_STEP_CASES,
    ),
    "outer_sum": Op(
        RECURRENCE,
        linear_recurrence.outer_sum,
        readout=linear_recurrence.state_times_query,
        cases=linear_recurrence.OUTER_SUM_CASES,
    ),
    "hold": Op(RECURRENCE, linear_recurrence.hold, cases=linear_recurrence.HOLD_CASES),
    "delay": Op(
        RECURRENCE,
        linear_recurrence.hold,
        readout=linear_recurrence.old_state,
        reads_old=True,
        cases=linear_recurrence.DELAY_CASES,
    ),
    "running_sum": Op(RECURRENCE, mean.running_sum, cases=mean.RUNNING_SUM_CASES),
    "step_count": Op(RECURRENCE, mean.step_count, cases=mean.STEP_COUNT_CASES),
    "history": Op(HISTORY, reduce.element, cases=reduce.HISTORY_CASES),
    "embedding": Op(GATHER, reduce.element, cases=reduce.EMBEDDING_CASES),
    "transpose": Op(POINTWISE, reduce.element, cases=reduce.TRANSPOSE_CASES),
    "merge_axes": Op(
        LAYOUT, layout.merge_axes, moves=layout.merge_moves, sizes=layout.merge_sizes, cases=layout.MERGE_CASES
    ),
    "split_axis": Op(
        LAYOUT, layout.split_axis, moves=layout.split_moves, sizes=layout.split_sizes, cases=layout.SPLIT_CASES
    ),
    "take": Op(LAYOUT, layout.take, moves=layout.take_moves, sizes=layout.take_sizes, cases=layout.TAKE_CASES),
    "pad": Op(LAYOUT, layout.pad, moves=layout.pad_moves, sizes=layout.pad_sizes, cases=layout.PAD_CASES),
    "concat": Op(
        LAYOUT, layout.concat, moves=layout.concat_moves, sizes=layout.concat_sizes, cases=layout.CONCAT_CASES
    ),
}

__all__ = ["OPS", "Case", "Op", "Structure"]
