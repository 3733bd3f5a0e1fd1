"""Layers that several architectures share, with the parameter names and shapes of their checkpoints.

B is the batch, T the number of time steps. Where a checkpoint lays several outputs into one weight, or channels in
another order than an operator needs, the weight is sliced or permuted in forward: capture folds that into parameters.

Modules are built on torch's meta device, without values, and get their parameters from the checkpoint; only constants
that follow from the configuration are made on CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.errors import InputError
from isobit.quant.huggingface.config import Config
from isobit.quant.nn import causal_attention, causal_conv1d, rotary

Activation = Callable[[Tensor], Tensor]

CPU = torch.device("cpu")
"""Where constants are made."""


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def _relu2(x: Tensor) -> Tensor:
    return functional.relu(x).square()


ACTIVATIONS: dict[str, Activation] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": functional.relu,
    "relu2": _relu2,
}
"""By the name in a configuration."""


def parameter(*shape: int) -> nn.Parameter:
    """Without a value."""
    return nn.Parameter(torch.empty(shape))


def activation(config: Config, key: str, default: str) -> Activation:
    return ACTIVATIONS[config.choice(key, tuple(ACTIVATIONS), default)]


@dataclass(frozen=True, eq=False)
class Rotation:
    """How `rotary` turns a head of D channels.

    theta: (D/2,), radians per step, 0 for a pair that stays.  order: (D,), at each place the channel of the checkpoint
    that goes there, or None for the checkpoint's order.
    """

    theta: Tensor
    order: Tensor | None


def rotation(config: Config, head_dim: int, theta: float, partial: float | None = None) -> Rotation:
    """RoPE as transformers computes it, of the first `partial` of a head's channels; of all if None.

    theta, partial: for a configuration that does not say.  Frequencies theta^(-2i / rotated), in pairs (i, i + rotated
    / 2); the other channels are put behind each half with frequency 0.
    """
    key = "rope_parameters" if config.has("rope_parameters") else "rope_scaling"
    rope = config.section(key)
    kind = f"{key}.rope_type" if rope.has(f"{key}.rope_type") else f"{key}.type"
    rope.only(kind, "default", "default")
    base = rope.number(f"{key}.rope_theta", config.number("rope_theta", theta))
    rotated = head_dim
    if partial is not None:
        name = f"{key}.partial_rotary_factor"
        rotated = int(head_dim * rope.number(name, config.number("partial_rotary_factor", partial)))
        if not 0 < rotated <= head_dim:
            raise rope.error(name, f"a share that leaves 1 to {head_dim} channels to rotate")
    if rotated % 2 or head_dim % 2:
        raise InputError(
            f"{config.path}: heads of {head_dim} channels, {rotated} of them rotated: expected even numbers of both"
        )
    frequencies = 1.0 / base ** (torch.arange(0, rotated, 2, dtype=torch.float32, device=CPU) / rotated)
    if rotated == head_dim:
        return Rotation(frequencies, None)
    channels = torch.arange(head_dim, device=CPU)
    first, second, still = channels.split((rotated // 2, rotated // 2, head_dim - rotated))
    order = torch.cat([first, still.chunk(2)[0], second, still.chunk(2)[1]])
    return Rotation(functional.pad(frequencies, (0, len(still) // 2)), order)


def attention_window(config: Config, t_max: int | None, sliding: int | None = None) -> int:
    """The steps that an attention reads: the configuration's window, or t_max, which bounds every sequence."""
    bounds = [bound for bound in (sliding, t_max) if bound is not None]
    if not bounds:
        raise InputError(
            f"{config.path}: its attention reads all earlier steps, of which an integer program can keep a fixed "
            "number: give t_max, the longest sequence that it will see"
        )
    return min(bounds)


class GroupedLinear(nn.Linear):
    """Several outputs from one weight whose rows lie group by group: x -> one (B, T, groups * size) per size.

    orders: for each output, the rows of a group in the order wanted, or None for the checkpoint's.
    """

    def __init__(
        self, d_in: int, groups: int, sizes: Sequence[int], orders: Sequence[Tensor | None] = (), bias: bool = False
    ) -> None:
        super().__init__(d_in, groups * sum(sizes), bias=bias)
        self.groups, self.sizes = groups, tuple(sizes)
        for i, order in enumerate(orders):
            self.register_buffer(f"order{i}", order, persistent=False)
        self.orders = len(orders)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        outputs, start = [], 0
        for i, size in enumerate(self.sizes):
            weight = self._rows(self.weight, start, i)
            bias = None if self.bias is None else self._rows(self.bias, start, i)
            outputs.append(functional.linear(x, weight, bias))
            start += size
        return tuple(outputs)

    def _rows(self, parameter: Tensor, start: int, i: int) -> Tensor:
        rows = parameter.unflatten(0, (self.groups, sum(self.sizes)))[:, start : start + self.sizes[i]]
        order: Tensor | None = getattr(self, f"order{i}") if i < self.orders else None
        chosen: Tensor = (rows if order is None else rows.index_select(1, order)).flatten(0, 1)
        return chosen


class HeadLinear(nn.Module):
    """A projection to heads, x -> (B, T, heads, head_dim), their channels in `order` if given."""

    def __init__(self, d_in: int, heads: int, head_dim: int, order: Tensor | None = None, bias: bool = False) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        linear = nn.Linear(d_in, heads * head_dim, bias=bias)
        self.weight, self.bias = linear.weight, linear.bias
        rows = None if order is None else (torch.arange(heads, device=CPU).unsqueeze(1) * head_dim + order).flatten()
        self.rows: Tensor | None
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if self.rows is not None:
            weight = weight.index_select(0, self.rows)
            bias = None if bias is None else bias.index_select(0, self.rows)
        out: Tensor = functional.linear(x, weight, bias).unflatten(-1, (self.heads, self.head_dim))
        return out


class CausalConv(nn.Module):
    """Depthwise causal convolution with the parameters of a torch.nn.Conv1d: weight (channels, 1, kernel), bias.

    forward(x, start) convolves x, (B, T, C), with the C channels from `start` on.
    """

    def __init__(self, channels: int, kernel: int, bias: bool) -> None:
        super().__init__()
        self.weight = parameter(channels, 1, kernel)
        self.bias = parameter(channels) if bias else None

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        rows = slice(start, start + x.shape[-1])
        weight = self.weight.squeeze(1)[rows]
        bias = torch.zeros_like(weight[:, 0]) if self.bias is None else self.bias[rows]
        return causal_conv1d(x, weight, bias)


class OffsetRMSNorm(nn.Module):
    """RMS normalisation over the last axis times (1 + weight), of channels in `order` if given."""

    def __init__(self, size: int, eps: float, order: Tensor | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = parameter(size)
        self.order: Tensor | None
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.order is None else self.weight.index_select(0, self.order)
        return functional.rms_norm(x, weight.shape, 1 + weight, self.eps)


class Attention(nn.Module):
    """Causal softmax attention on a window, with grouped keys and values, rotated if a rotation is given."""

    def __init__(
        self,
        width: int,
        heads: int,
        groups: int,
        head_dim: int,
        window: int,
        turn: Rotation | None = None,
        bias: bool = False,
        out_bias: bool = False,
    ) -> None:
        super().__init__()
        order = None if turn is None else turn.order
        self.window, self.scale = window, head_dim**-0.5
        self.q_proj = HeadLinear(width, heads, head_dim, order, bias)
        self.k_proj = HeadLinear(width, groups, head_dim, order, bias)
        self.v_proj = HeadLinear(width, groups, head_dim, None, bias)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=out_bias)
        self.register_buffer("theta", None if turn is None else turn.theta, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q_proj(x), self.k_proj(x)
        if self.theta is not None:
            q, k = rotary(q, self.theta), rotary(k, self.theta)
        out: Tensor = self.o_proj(causal_attention(q, k, self.v_proj(x), self.window, self.scale).flatten(2))
        return out


class GatedMLP(nn.Module):
    """down(f(gate(x)) * up(x)), with the parameter names given."""

    def __init__(
        self,
        width: int,
        inner: int,
        act: Activation,
        bias: bool = False,
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    ) -> None:
        super().__init__()
        self.act, self.names = act, names
        for name in names[:2]:
            self.add_module(name, nn.Linear(width, inner, bias=bias))
        self.add_module(names[2], nn.Linear(inner, width, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = (self.get_submodule(name) for name in self.names)
        out: Tensor = down(self.act(gate(x)) * up(x))
        return out


class RootMeanSquareGate(nn.Module):
    """weight * rms_norm(x) * f(gate), over the last axis."""

    def __init__(self, size: int, eps: float, act: Activation) -> None:
        super().__init__()
        self.eps, self.act = eps, act
        self.weight = parameter(size)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps) * self.act(gate)


def scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap), which keeps x within +-cap."""
    return torch.tanh(x * (1 / cap)) * cap


def rounded_up(x: float, multiple: int) -> int:
    """x, where it is whole, to the next multiple; a fraction of x alone does not lead to the next one."""
    return int((x + multiple - 1) // multiple) * multiple
