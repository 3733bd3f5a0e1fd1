"""The operators that an exported language model may use."""

from __future__ import annotations

import torch

OPERATORS = {
    *(f"isobit.{name}.default" for name in (
        "selective_recurrence", "linear_recurrence", "diagonal_recurrence", "delta_recurrence", "wkv4", "mlstm",
        "causal_conv1d", "shift", "causal_attention", "rotary", "l2norm", "top_k_mask",
    )),
    "aten.linear.default", "aten.embedding.default", "aten.layer_norm.default", "aten.rms_norm.default",
    "aten.softmax.int", "aten.silu.default", "aten.sigmoid.default", "aten.tanh.default", "aten.gelu.default",
    "aten.relu.default", "aten.square.default", "aten.softplus.default", "aten.log_sigmoid.default",
    "aten.exp.default", "aten.sqrt.default", "aten.clamp.default", "aten.sum.dim_IntList",
    "aten.add.Tensor", "aten.mul.Tensor", "aten.rsub.Scalar", "aten.div.Tensor",
    "aten.flatten.using_ints", "aten.unflatten.int", "aten.unsqueeze.default", "aten.expand.default",
    "aten.cat.default", "aten.chunk.default", "aten.split_with_sizes.default", "getitem",
}  # fmt: skip
"""Those that may meet the input; what only parameters meet is folded at capture."""


def operators(exported: torch.export.ExportedProgram) -> set[str]:
    """The operators that meet the input."""
    signature = exported.graph_signature
    inputs, found = set(signature.user_inputs), set()
    live = {node for node in exported.graph.nodes if node.op == "placeholder" and node.name in inputs}
    for node in exported.graph.nodes:
        if node.op == "call_function" and any(source in live for source in node.all_input_nodes):
            live.add(node)
            name = getattr(node.target, "__name__", "")
            found.add("getitem" if name == "getitem" else str(node.target))
    return found
