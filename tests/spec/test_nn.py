"""The float custom operators against loops in numpy, and the digits model.

Both sides of each comparison are floats that sum in different orders, so the claim is closeness.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from isobit.quant import nn
from isobit.quant.zoo import digits

Array = npt.NDArray[np.float64]


def numpy_recurrence(u: Array, dt: Array, a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    y, states, h = np.zeros_like(u), np.zeros((*u.shape, a.shape[1])), np.zeros((len(u), *a.shape))
    for i, t, k in np.ndindex(u.shape):
        for n in range(a.shape[1]):
            h[i, k, n] = np.exp(dt[i, t, k] * a[k, n]) * h[i, k, n] + dt[i, t, k] * u[i, t, k] * b[i, t, n]
            states[i, t, k, n] = h[i, k, n]
            y[i, t, k] += h[i, k, n] * c[i, t, n]
    return y, states


def numpy_conv(x: Array, weight: Array, bias: Array) -> Array:
    kernel = weight.shape[1]
    y = np.zeros_like(x)
    for i, t, k in np.ndindex(x.shape):
        y[i, t, k] = bias[k]
        for j in range(kernel):
            if t - kernel + 1 + j >= 0:
                y[i, t, k] += weight[k, j] * x[i, t - kernel + 1 + j, k]
    return y


def recurrence_arguments(steps: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    a = -normal(3, 5).exp()
    return [normal(2, steps, 3), normal(2, steps, 3).exp(), a, normal(2, steps, 5), normal(2, steps, 5)]


def conv_arguments(steps: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, steps, 3), (3, 4), (3,))
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_recurrence_equals_loop() -> None:
    arguments = recurrence_arguments()
    y, states = numpy_recurrence(*(argument.numpy() for argument in arguments))
    np.testing.assert_allclose(nn.selective_recurrence(*arguments).numpy(), y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(nn.selective_recurrence_states(*arguments)[1].numpy(), states, rtol=1e-12, atol=1e-12)


def test_recurrence_continues_from_a_state() -> None:
    u, dt, a, b, c = recurrence_arguments()
    whole, states = nn.selective_recurrence_states(u, dt, a, b, c)
    rest, _ = nn.selective_recurrence_states(u[:, 3:], dt[:, 3:], a, b[:, 3:], c[:, 3:], states[:, 2])
    torch.testing.assert_close(rest, whole[:, 3:])


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_conv_equals_loop(steps: int) -> None:
    arguments = conv_arguments(steps)
    expected = numpy_conv(*(argument.numpy() for argument in arguments))
    np.testing.assert_allclose(nn.causal_conv1d(*arguments).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_running_mean_equals_loop() -> None:
    x = conv_arguments()[0]
    expected = np.stack([x.numpy()[:, : t + 1].mean(1) for t in range(x.shape[1])], axis=1)
    np.testing.assert_allclose(nn.running_mean(x).numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("selective_recurrence", recurrence_arguments(3)),
        ("causal_conv1d", conv_arguments(3)),
        ("running_mean", conv_arguments(3)[:1]),
    ],
)
def test_gradient_and_fake_kernel(name: str, arguments: list[Tensor]) -> None:
    operator = getattr(torch.ops.isobit, name).default
    leaves = tuple(argument.clone().requires_grad_() for argument in arguments)
    assert torch.autograd.gradcheck(operator, leaves)
    torch.library.opcheck(operator, leaves)


def test_split_is_disjoint_and_covers_the_data_set() -> None:
    split = digits.data()
    parts = [split.train, split.validation, split.test]
    assert sum(len(part) for part in parts) == 1797
    assert len(split.test) >= 350
    # No two of the 1797 images are equal, so an image identifies its sample.
    keys = [{image.tobytes() for image in part.x} for part in parts]
    assert len(set.union(*keys)) == 1797
    assert {image.tobytes() for image in split.calibration.x} <= keys[0]
    for part in (*parts, split.calibration):
        assert part.x.dtype == np.int8
        assert set(np.unique(part.x)) <= set(range(17))
        shares = np.bincount(part.y, minlength=10) / len(part)
        np.testing.assert_allclose(shares, 0.1, atol=0.01)


def test_shipped_model() -> None:
    test = digits.data().test
    x = torch.from_numpy(test.x) * digits.INPUT_SCALE
    with torch.no_grad():
        logits = digits.load()(x)
        prefix = digits.load()(x[:, :5])
    assert (logits[:, -1].argmax(-1).numpy() == test.y).mean() >= 0.96
    torch.testing.assert_close(prefix, logits[:, :5], rtol=1e-5, atol=1e-5)
    assert digits.WEIGHTS.stat().st_size < 400_000


def test_export_keeps_the_operators_whole() -> None:
    dims = {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}
    program = torch.export.export(digits.load(), (torch.zeros(2, 8, 8),), dynamic_shapes=(dims,), strict=False)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    counts = {name: targets.count(f"isobit.{name}.default") for name in ("selective_recurrence", "causal_conv1d")}
    assert counts == {"selective_recurrence": 2, "causal_conv1d": 2}
    assert targets.count("isobit.running_mean.default") == 1
    one_step = torch.ones(1, 1, 8)
    torch.testing.assert_close(program.module()(one_step), digits.load()(one_step))
