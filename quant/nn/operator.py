"""How a differentiable function becomes a custom operator of the namespace `isobit`, kept whole by `torch.export`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Argument = Tensor | int | float | None


def first_shape(first: Tensor, *rest: Argument) -> Sequence[int]:
    """The shape of the first argument."""
    return first.shape


def second_shape(first: Tensor, second: Tensor, *rest: Argument) -> Sequence[int]:
    """The shape of the second argument, to which the first one broadcasts."""
    return second.shape


def third_shape(first: Tensor, second: Tensor, third: Tensor, *rest: Argument) -> Sequence[int]:
    """The shape of the third argument: the values v after q and k."""
    return third.shape


def custom_op(
    name: str, function: Callable[..., Tensor], shape: Callable[..., Sequence[int]] = first_shape
) -> Callable[..., Tensor]:
    """The custom operator isobit::`name`, computed by `function`, differentiable in its tensors.

    function: its annotations (Tensor, Tensor | None, int, float) are the schema; its result is contiguous, has the
    element type of its first argument and is no view of an argument.  shape: the result's shape, of all arguments.
    The gradient is that of `function`, evaluated again.
    """

    def fake(*arguments: Any) -> Tensor:
        first: Tensor = arguments[0]
        return first.new_empty(shape(*arguments))

    def save(ctx: Any, inputs: tuple[Argument, ...], output: Tensor) -> None:
        ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in inputs))
        ctx.constants = [None if isinstance(value, Tensor) else value for value in inputs]

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [
            constant if saved is None else saved.detach().requires_grad_(needed)
            for saved, constant, needed in zip(ctx.saved_tensors, ctx.constants, ctx.needs_input_grad, strict=True)
        ]
        wanted = [i for i, value in enumerate(inputs) if isinstance(value, Tensor) and value.requires_grad]
        with torch.enable_grad():
            output = function(*inputs)
        if not output.requires_grad:
            return (None,) * len(inputs)
        gradients = torch.autograd.grad(output, [inputs[i] for i in wanted], gradient, allow_unused=True)
        found = dict(zip(wanted, gradients, strict=True))
        return tuple(found.get(i) for i in range(len(inputs)))

    operator = torch.library.custom_op(f"isobit::{name}", function, mutates_args=())
    operator.register_fake(fake)
    operator.register_autograd(backward, setup_context=save)
    return operator
