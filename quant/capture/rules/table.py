"""RULES: one exported operator, one small function that adds its graph nodes."""

from __future__ import annotations

import math

from isobit.quant.capture import time_last
from isobit.quant.capture.loops import scan
from isobit.quant.capture.rules import (
    arithmetic,
    attention,
    cells,
    functions,
    images,
    layout,
    products,
    quantizers,
    recurrences,
)
from isobit.quant.capture.rules.builder import Rule

RULES: dict[str, Rule] = {
    "aten.linear.default": arithmetic.linear,
    "aten.embedding.default": arithmetic.embedding,
    "aten.conv2d.default": images.conv2d,
    "aten.conv2d.padding": images.conv2d,
    "aten.batch_norm.default": images.batch_norm,
    "aten._native_batch_norm_legit_no_training.default": images.batch_norm,
    "aten.dropout.default": functions.dropout,
    "aten.rms_norm.default": functions.norm("rms_norm"),
    "aten.layer_norm.default": functions.norm("layer_norm"),
    "aten.softmax.int": functions.softmax,
    "aten.silu.default": functions.unary("silu"),
    "aten.sigmoid.default": functions.unary("sigmoid"),
    "aten.tanh.default": functions.unary("tanh"),
    "aten.exp.default": functions.unary("exp"),
    "aten.abs.default": functions.unary("abs"),
    "aten.sign.default": functions.unary("sign"),
    "aten.sqrt.default": functions.unary("sqrt"),
    "aten.hardswish.default": functions.unary("hardswish"),
    "aten.log_sigmoid.default": functions.unary("log_sigmoid"),
    "aten.gelu.default": functions.gelu,
    "aten.softplus.default": functions.softplus,
    "aten.elu.default": functions.elu,
    "aten.relu.default": functions.clamp(0.0, math.inf, "relu"),
    "aten.relu6.default": functions.clamp(0.0, 6.0, "relu6"),
    "aten.hardtanh.default": functions.clamp_to,
    "aten.clamp.default": functions.clamp_to,
    "aten.clamp_min.default": functions.clamp_to,
    "aten.leaky_relu.default": functions.leaky_relu,
    "aten.prelu.default": functions.prelu,
    "aten.pow.Tensor_Scalar": arithmetic.power,
    "aten.square.default": lambda c, n: c.emit(n, "mul", (c.value(n, 0), c.value(n, 0)), "square"),
    "aten.rsqrt.default": arithmetic.rsqrt,
    "aten.mul.Tensor": arithmetic.mul,
    "aten.add.Tensor": arithmetic.add,
    "aten.sub.Tensor": arithmetic.sub,
    "aten.rsub.Scalar": arithmetic.reverse_sub,
    "aten.div.Tensor": arithmetic.div,
    "aten.neg.default": arithmetic.neg,
    "aten.maximum.default": arithmetic.maximum,
    "aten.reshape.default": layout.reshape,
    "aten.view.default": layout.reshape,
    "aten._unsafe_view.default": layout.reshape,
    "aten.flatten.using_ints": layout.reshape,
    "aten.unflatten.int": layout.reshape,
    "aten.unsqueeze.default": layout.reshape,
    "aten.squeeze.dim": layout.reshape,
    "aten.squeeze.dims": layout.reshape,
    "aten.expand.default": layout.expand,
    "aten.permute.default": layout.permute,
    "aten.transpose.int": layout.transpose,
    "aten.movedim.int": layout.movedim,
    "aten.mT.default": layout.matrix_transpose,
    "aten.flip.default": layout.flip,
    "aten.slice.Tensor": layout.slice_axis,
    "aten.select.int": layout.select,
    "getitem": layout.part,
    "aten.cat.default": layout.cat,
    "aten.pad.default": layout.pad,
    "aten.mean.dim": arithmetic.reduce("mean"),
    "aten.sum.dim_IntList": arithmetic.reduce("sum"),
    "aten.amax.default": arithmetic.reduce("max"),
    "aten.avg_pool2d.default": images.pool("mean"),
    "aten.max_pool2d.default": images.pool("max"),
    "aten.adaptive_avg_pool2d.default": images.adaptive_avg_pool,
    "aten.to.dtype": arithmetic.converted,
    "aten.type_as.default": arithmetic.converted,
    "aten.pixel_shuffle.default": images.pixel_shuffle,
    "aten.matmul.default": products.matmul,
    "aten.einsum.default": products.einsum,
    "scan": scan.scan,
    "aten.lstm_cell.default": cells.lstm_cell,
    "aten.gru_cell.default": cells.gru_cell,
    "aten.rnn_tanh_cell.default": cells.rnn_tanh_cell,
    "aten.rnn_relu_cell.default": cells.rnn_relu_cell,
    "aten.lstm.input": cells.whole_lstm,
    "aten.gru.input": cells.whole_gru,
    "isobit.cell.default": cells.kept_whole,
    "isobit.fake_quantize.default": quantizers.fake_quantize,
    "isobit.exact.default": quantizers.exact,
    "isobit.codes_times_scale.default": quantizers.codes_times_scale,
    "isobit.l2norm.default": functions.l2norm,
    "isobit.heaviside.default": lambda c, n: c.emit(n, "heaviside", (c.value(n, 0),), threshold=0.0),
    "isobit.shift.default": recurrences.custom("shift", 1),
    "isobit.causal_conv1d.default": recurrences.causal_conv1d,
    "isobit.causal_fir.default": recurrences.causal_fir,
    "isobit.running_mean.default": recurrences.custom("running_mean", 1),
    "isobit.selective_recurrence.default": recurrences.selective_recurrence,
    "isobit.diagonal_recurrence.default": recurrences.diagonal_recurrence,
    "isobit.convex_recurrence.default": recurrences.custom("convex_recurrence", 2),
    "isobit.linear_recurrence.default": recurrences.linear_recurrence,
    "isobit.delta_recurrence.default": recurrences.delta_recurrence,
    "isobit.generalized_delta_recurrence.default": recurrences.generalized_delta_recurrence,
    "isobit.complex_recurrence.default": recurrences.complex_recurrence,
    "isobit.dense_recurrence.default": recurrences.dense_recurrence,
    "isobit.wkv4.default": recurrences.wkv4,
    "isobit.slstm.default": recurrences.slstm,
    "isobit.mlstm.default": recurrences.mlstm,
    "isobit.running_logsumexp.default": recurrences.running_logsumexp,
    "isobit.causal_attention.default": attention.causal_attention,
    "isobit.rotary.default": attention.rotary,
    "isobit.top_k_mask.default": attention.top_k_mask,
    "isobit.lif.default": recurrences.lif,
    "isobit.ttt_linear.default": recurrences.ttt_linear,
}


IDENTITIES = (
    "aten.contiguous.default",
    "aten.clone.default",
    "aten.alias.default",
)
"""Operators that change nothing in eval mode."""


ONE_STEP = (
    "isobit.l2norm.default",
    "isobit.heaviside.default",
    "isobit.top_k_mask.default",
    "isobit.fake_quantize.default",
    "isobit.exact.default",
    "isobit.codes_times_scale.default",
)
"""Operators of isobit that look at one step only; all others run along time."""


ALONG_POSITIONS = ("isobit.selective_recurrence.default", "isobit.causal_conv1d.default")
"""Of those that run along time, the ones that may run along the positions of an image instead."""


SUPPORTED = sorted(
    {
        ".".join(op.split(".")[:2])
        for op in (*RULES, *layout.PARTS, *IDENTITIES, *time_last.CONVOLUTIONS)
        if "._" not in op
    }
    - {"getitem", "isobit.cell", "isobit.exact", "isobit.codes_times_scale", "isobit.fake_quantize"}
)
"""What a message lists: operators by name, without those that only torch or isobit itself writes."""
