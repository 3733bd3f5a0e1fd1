"""What an exported graph computes without its input's values: parameters, sizes, and tensors of the batch's shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from isobit.quant.errors import InputError

if TYPE_CHECKING:
    from isobit.quant.capture.capture import Capture

SOME = 2
"""Stands for a size that torch.export names, but does not say what it was in the example."""

FILLS = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
"""Of their first operand, only the shape and the element type matter."""


def check_tensor(name: str, tensor: Tensor) -> None:
    """Raises InputError where a parameter or a buffer is not one of finite float32, float64 or whole numbers."""
    if tensor.is_meta:
        raise InputError(f"{name} has no values (it is on the meta device): load the model's weights first")
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise InputError(
            f"{name} is {tensor.layout} on {tensor.device}, expected a plain tensor in the computer's memory: move the "
            "model with .cpu() and convert sparse weights with .to_dense()"
        )
    if tensor.is_complex() or tensor.is_quantized or (tensor.is_floating_point() and tensor.dtype not in EXACT):
        remedy = "write it as real and imaginary parts" if tensor.is_complex() else "convert the model with .float()"
        raise InputError(f"{name} is {tensor.dtype}, expected float32 or float64: {remedy}")


EXACT = (torch.float32, torch.float64)


def check_finite(name: str, tensor: Tensor) -> None:
    """Raises InputError where a value is NaN or infinite."""
    if bad := int((~torch.isfinite(tensor)).sum()):
        raise InputError(
            f"{name}: {bad} of {tensor.numel()} values are NaN or infinite, expected finite numbers; "
            "load weights of a run that converged"
        )


def changes_an_operand(n: fx.Node) -> bool:
    return isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable


def _is_fill(n: fx.Node) -> bool:
    return isinstance(n.target, torch._ops.OpOverload) and n.target._schema.name.removeprefix("aten::") in FILLS


def _operands(n: fx.Node) -> list[fx.Node]:
    """Those whose values matter."""
    return n.all_input_nodes[1:] if _is_fill(n) else n.all_input_nodes


def used(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that a graph's results need, and those that change a tensor in place."""
    needed = set(graph.output_node().all_input_nodes)
    for n in reversed(graph.nodes):
        if n in needed or changes_an_operand(n):
            needed |= {n, *_operands(n)}
    return needed


def fold(c: Capture, n: fx.Node, op: str) -> bool:
    """Computes `n` where no sample can change it, and says whether that is so.

    A size becomes an integer, that of the example which was exported.  A tensor becomes a parameter, or where its shape
    has the batch or time in it, one of `c.shaped`.
    """
    value = n.meta.get("val")
    if isinstance(value, int | torch.SymInt):
        c.sizes[n] = concrete(value)
        return True
    operands = _operands(n)
    if not isinstance(n.target, torch._ops.OpOverload) or op.startswith("isobit."):
        return False
    if not all(i in c.tensors or i in c.sizes or i in c.shaped for i in operands):
        return False
    varies = isinstance(value, Tensor) and any(isinstance(d, torch.SymInt) for d in value.shape)
    if varies or not all(i in c.tensors for i in operands):
        result = _result(c, n)
        if isinstance(result, Tensor):
            c.shaped[n] = result
        return isinstance(result, Tensor)
    _parameter(c, n, op)
    return True


def _parameter(c: Capture, n: fx.Node, op: str) -> None:
    """Computed in float64 and rounded to float32, so that every machine gets the same parameter."""
    result = _result(c, n)
    if not isinstance(result, Tensor):
        raise c.error(n, f"{op} of parameters gives {type(result).__name__}, expected a tensor")
    formula = f"{op.split('.')[1]}({', '.join(c.tensors[i][0] for i in _operands(n))})"
    names = {name for name, _ in c.tensors.values()}
    formula = next(f for i in range(len(names) + 1) if (f := formula + "'" * i) not in names)
    check_finite(f"parameter {formula}", result)
    c.tensors[n] = formula, result.float().double() if result.is_floating_point() else result


def _result(c: Capture, n: fx.Node) -> object:
    def known(i: fx.Node) -> object:
        if i in c.tensors:
            return c.tensors[i][1]
        if i in c.sizes:
            return c.sizes[i]
        return c.shaped[i] if i in c.shaped else _blank(i)

    with torch.no_grad():
        return n.target(*fx.node.map_arg(n.args, known), **fx.node.map_arg(n.kwargs, known))  # type: ignore[operator, arg-type]


def _blank(n: fx.Node) -> Tensor:
    value = n.meta["val"]
    return torch.empty([concrete(d) for d in value.shape], dtype=value.dtype)


def concrete(size: int | torch.SymInt) -> int:
    """A size as it was in the example that was exported."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return SOME if hint is None else int(hint)


def uniform(tensor: Tensor) -> float | None:
    """The number that all elements are; None where they differ."""
    flat = tensor.double().flatten()
    return float(flat[0]) if flat.numel() and bool((flat == flat[0]).all()) else None
