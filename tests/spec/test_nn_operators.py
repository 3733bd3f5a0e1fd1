"""Every float operator against an independent formula: sums over all pairs of steps, matrix products, complex numbers.

Both sides of each comparison are floats that sum in different orders, so the claim is closeness.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from isobit.quant import nn
from isobit.quant.nn.delta import INNER_NORM_EPS
from isobit.quant.nn.recurrence import CHUNK

Array = npt.NDArray[np.float64]
Argument = Tensor | int | float | None

B, T, H, K, V, C = 2, 5, 4, 3, 2, 6
LONG = 2 * CHUNK + 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    """Values inside (0, 1)."""
    return torch.sigmoid(normal(*shape, seed=seed))


def heads(steps: int = T, groups: int = H) -> list[Tensor]:
    """q, k of `groups` groups and v of H heads."""
    return [normal(B, steps, groups, K), normal(B, steps, groups, K, seed=1), normal(B, steps, H, V, seed=2)]


def close(result: Tensor, expected: Array | Tensor) -> None:
    assert tuple(result.shape) == tuple(expected.shape)
    np.testing.assert_allclose(result.numpy(), np.asarray(expected), rtol=1e-9, atol=1e-9)


DECAYS: dict[str, Callable[[int], Tensor | None]] = {
    "none": lambda steps: None,
    "head": lambda steps: unit(H, seed=3),
    "step": lambda steps: unit(B, steps, H, seed=3),
    "key": lambda steps: unit(B, steps, H, K, seed=3),
}


def full_decay(decay: Tensor | None, steps: int = T) -> Array:
    """Any form of decay as (B, T, H, K)."""
    if decay is None:
        return np.ones((B, steps, H, K))
    shape = {1: (1, 1, H, 1), 3: (B, steps, H, 1), 4: (B, steps, H, K)}[decay.dim()]
    return np.array(np.broadcast_to(decay.numpy().reshape(shape), (B, steps, H, K)))


def pairwise_linear(q: Array, k: Array, v: Array, decay: Array, bonus: Array | None = None) -> Array:
    """o_t = sum over s <= t of sum over n of q_t[n] (product of decays[n] after s) k_s[n] v_s, without a state."""
    y = np.zeros_like(v)
    for i, t, h in np.ndindex(v.shape[:3]):
        g = h // (v.shape[2] // q.shape[2])
        for s in range(t + 1):
            weight = decay[i, s + 1 : t + 1, h].prod(0)
            if bonus is not None:
                weight = bonus[h] if s == t else decay[i, s + 1 : t, h].prod(0)
            y[i, t, h] += (q[i, t, g] * weight * k[i, s, g]).sum() * v[i, s, h]
    return y


@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("decay", DECAYS)
def test_linear_recurrence(decay: str, groups: int, bonus: bool) -> None:
    q, k, v = heads(groups=groups)
    factor, extra = DECAYS[decay](T), normal(H, K, seed=4) if bonus else None
    expected = pairwise_linear(
        q.numpy(), k.numpy(), v.numpy(), full_decay(factor), None if extra is None else extra.numpy()
    )
    close(nn.linear_recurrence(q, k, v, factor, extra), expected)


def test_linear_recurrence_over_many_chunks() -> None:
    q, k, v = heads(LONG)
    decay = unit(B, LONG, H, K, seed=3) * (normal(B, LONG, H, K, seed=4) > -1)
    assert (decay == 0).any()
    close(
        nn.linear_recurrence(q, k, v, decay), pairwise_linear(q.numpy(), k.numpy(), v.numpy(), full_decay(decay, LONG))
    )


@pytest.mark.parametrize("steps", [1, 2, LONG])
def test_elementwise_recurrences(steps: int) -> None:
    gate, x = unit(B, steps, C), normal(B, steps, C, seed=1)
    decayed, convex = np.zeros((B, C)), np.zeros((B, C))
    expected = []
    for t in range(steps):
        decayed = gate[:, t].numpy() * decayed + x[:, t].numpy()
        convex = convex + gate[:, t].numpy() * (x[:, t].numpy() - convex)
        expected.append((decayed, convex))
    close(nn.diagonal_recurrence(gate, x), np.stack([pair[0] for pair in expected], 1))
    close(nn.convex_recurrence(gate, x), np.stack([pair[1] for pair in expected], 1))


@pytest.mark.parametrize("steps", [1, T, LONG])
def test_complex_recurrence_is_a_convolution_with_powers(steps: int) -> None:
    u, n = normal(B, steps, C), 3
    a = unit(C, n, seed=1).numpy() * np.exp(1j * normal(C, n, seed=2).numpy())
    c = normal(C, n, seed=3).numpy() + 1j * normal(C, n, seed=4).numpy()
    kernel = 2 * np.stack([(c * a**lag).sum(-1).real for lag in range(steps)])
    expected = np.stack([sum(kernel[t - s] * u[:, s].numpy() for s in range(t + 1)) for t in range(steps)], axis=1)
    parts = [torch.from_numpy(part.copy()) for part in (a.real, a.imag, c.real, c.imag)]
    close(nn.complex_recurrence(u, *parts), expected)


@pytest.mark.parametrize("trailing", [(), (C,), (2, 3)])
def test_dense_recurrence_is_a_sum_of_matrix_powers(trailing: tuple[int, ...]) -> None:
    a, x = normal(K, K) / 2, normal(B, T, *trailing, K, seed=1)
    expected = np.zeros(x.shape)
    for t in range(T):
        for s in range(t + 1):
            expected[:, t] += x[:, s].numpy() @ np.linalg.matrix_power(a.numpy(), t - s).T
    close(nn.dense_recurrence(x, a), expected)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("decay", DECAYS)
def test_delta_recurrence_by_transition_matrices(decay: str, groups: int) -> None:
    """S_t = (I - beta k k^T) diag(decay) S_{t-1} + beta k v^T."""
    q, k, v = heads(groups=groups)
    beta, factor = unit(B, T, H, seed=5), DECAYS[decay](T)
    expected = np.zeros(v.shape)
    for i, h in np.ndindex(B, H):
        state, g = np.zeros((K, V)), h // (H // groups)
        for t in range(T):
            strength = float(beta[i, t, h])
            erase = np.eye(K) - strength * np.outer(k[i, t, g], k[i, t, g])
            state = erase @ np.diag(full_decay(factor)[i, t, h]) @ state + strength * np.outer(k[i, t, g], v[i, t, h])
            expected[i, t, h] = q[i, t, g].numpy() @ state
    close(nn.delta_recurrence(q, k, v, beta, factor), expected)


def test_generalized_delta_recurrence_by_transition_matrices() -> None:
    """S_t = S_{t-1} (diag(decay) + a b^T) + v k^T."""
    r, k, a, b = (normal(B, T, H, K, seed=seed) for seed in range(4))
    decay, v = unit(B, T, H, K, seed=4), normal(B, T, H, V, seed=5)
    expected = np.zeros(v.shape)
    for i, h in np.ndindex(B, H):
        state = np.zeros((V, K))
        for t in range(T):
            at = i, t, h
            state = state @ (np.diag(decay[at]) + np.outer(a[at], b[at])) + np.outer(v[at], k[at])
            expected[at] = state @ r[at].numpy()
    close(nn.generalized_delta_recurrence(r, decay, k, v, a, b), expected)


def test_delta_rule_recalls_the_last_value_of_a_key() -> None:
    """With beta = 1 and orthonormal keys, a key's value is overwritten, and the others stay."""
    keys = torch.eye(K, dtype=torch.float64)[[0, 1, 0, 2, 1]].view(1, T, 1, K)
    v = normal(1, T, 1, V)
    recalled = nn.delta_recurrence(keys[:, [0, 1, 0, 0, 0]], keys, v, torch.ones(1, T, 1, dtype=torch.float64))
    close(recalled, v[:, [0, 1, 2, 2, 2]])


def test_wkv4_is_a_weighted_mean() -> None:
    k, v, decay, bonus = normal(B, T, C), normal(B, T, C, seed=1), normal(C, seed=2).exp(), normal(C, seed=3)
    expected = np.zeros(k.shape)
    for t in range(T):
        exponents = [k[:, s] - (t - 1 - s) * decay for s in range(t)] + [k[:, t] + bonus]
        weights = torch.stack(exponents).softmax(0)
        expected[:, t] = (weights * v[:, : t + 1].transpose(0, 1)).sum(0)
    close(nn.wkv4(k, v, decay, bonus), expected)


def test_slstm_equals_the_unstabilised_equations() -> None:
    i, f, z, o = (normal(B, T, H, K, seed=seed) for seed in range(4))
    recurrent = normal(4, H, K, K, seed=4)
    expected = np.zeros(i.shape)
    for n, h in np.ndindex(B, H):
        cell, norm, hidden = np.zeros(K), np.zeros(K), np.zeros(K)
        for t in range(T):
            gate = [x[n, t, h].numpy() + recurrent[g, h].numpy() @ hidden for g, x in enumerate((i, f, z, o))]
            forget = 1 / (1 + np.exp(-gate[1]))
            cell = forget * cell + np.exp(gate[0]) * np.tanh(gate[2])
            norm = forget * norm + np.exp(gate[0])
            hidden = cell / norm / (1 + np.exp(-gate[3]))
            expected[n, t, h] = hidden
    close(nn.slstm(i, f, z, o, recurrent), expected)


@pytest.mark.parametrize("size", [0.1, 3.0])
def test_mlstm_equals_its_unstabilised_pairwise_form(size: float) -> None:
    """Small keys are divided by 1, large ones by |n . q|."""
    q, k, v = heads()
    k, i, f = size * k, normal(B, T, H, seed=3), normal(B, T, H, seed=4)
    kept, entered = torch.sigmoid(f).numpy(), i.exp().numpy()
    expected = np.zeros(v.shape)
    for n, t, h in np.ndindex(B, T, H):
        weights = [
            kept[n, s + 1 : t + 1, h].prod() * entered[n, s, h] * float(q[n, t, h] @ k[n, s, h]) for s in range(t + 1)
        ]
        total = sum(w * v[n, s, h].numpy() for s, w in enumerate(weights))
        expected[n, t, h] = total / max(abs(sum(weights)), 1)
    close(nn.mlstm(q, k, v, i, f), expected)


@pytest.mark.parametrize("gate", [-2000.0, 2000.0])
def test_exponential_gates_do_not_overflow(gate: float) -> None:
    q, k, v = heads()
    i, f = normal(B, T, H, seed=3) + gate, normal(B, T, H, seed=4)
    z = normal(B, T, H, K, seed=5)
    assert nn.mlstm(q, k, v, i, f).isfinite().all()
    assert nn.slstm(z + gate, z, z, z, normal(4, H, K, K, seed=4)).isfinite().all()
    assert nn.wkv4(z[:, :, 0] + gate, z[:, :, 1], normal(K).exp(), normal(K)).isfinite().all()


@pytest.mark.parametrize("kernel", [1, 3, 8])
def test_causal_fir_equals_loop(kernel: int) -> None:
    x, weight, bias = normal(B, T, C), normal(4, C, kernel, seed=1), normal(4, seed=2)
    expected = np.zeros((B, T, 4)) + bias.numpy()
    for t, j in np.ndindex(T, kernel):
        if (s := t - kernel + 1 + j) >= 0:
            expected[:, t] += x[:, s].numpy() @ weight[:, :, j].numpy().T
    close(nn.causal_fir(x, weight, bias), expected)


@pytest.mark.parametrize("trailing", [(), (C,), (2, 3)])
def test_functions_of_the_past(trailing: tuple[int, ...]) -> None:
    x = normal(B, T, *trailing)
    for t in range(T):
        past = x[:, : t + 1].numpy()
        close(nn.running_mean(x)[:, t], past.mean(1))
        close(nn.running_logsumexp(x)[:, t], np.log(np.exp(past).sum(1)))
        close(nn.shift(x)[:, t], past[:, t - 1] if t else np.zeros_like(past[:, 0]))


@pytest.mark.parametrize("window", [1, 3, 100])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_causal_attention_equals_loop(groups: int, window: int) -> None:
    q, scale = normal(B, T, H, K), 0.7
    k, v = normal(B, T, groups, K, seed=1), normal(B, T, groups, V, seed=2)
    expected = np.zeros((B, T, H, V))
    for i, t, h in np.ndindex(B, T, H):
        g, first = h // (H // groups), max(0, t - window + 1)
        weights = np.exp(scale * (k[i, first : t + 1, g] @ q[i, t, h]).numpy())
        expected[i, t, h] = weights / weights.sum() @ v[i, first : t + 1, g].numpy()
    close(nn.causal_attention(q, k, v, window, scale), expected)


def test_rotary_is_a_product_of_complex_numbers() -> None:
    x, theta = normal(B, T, H, 2 * K), normal(K, seed=1)
    pairs = x.numpy()[..., :K] + 1j * x.numpy()[..., K:]
    turned = pairs * np.exp(1j * np.arange(T)[:, None, None] * theta.numpy())
    close(nn.rotary(x, theta), np.concatenate([turned.real, turned.imag], -1))


def test_l2norm() -> None:
    x = normal(B, T, H, K)
    close(nn.l2norm(x, 0.0), x.numpy() / np.linalg.norm(x.numpy(), axis=-1, keepdims=True))
    extended = np.concatenate([x.numpy(), np.full((B, T, H, 1), 0.5)], -1)
    close(nn.l2norm(x, 0.25), x.numpy() / np.linalg.norm(extended, axis=-1, keepdims=True))


def test_heaviside_and_its_gradient() -> None:
    x = torch.tensor([-1.0, 0.0, 0.25, 3.0], dtype=torch.float64, requires_grad=True)
    y = nn.heaviside(x)
    assert y.tolist() == [0.0, 0.0, 1.0, 1.0]
    y.sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), 1 / (1 + (np.pi * x.detach().numpy()) ** 2))


def test_top_k_mask_prefers_the_lower_index() -> None:
    x = torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0], [-1.0, -2.0, 5.0, -1.0, 4.0]])
    assert nn.top_k_mask(x, 2).tolist() == [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 1]]
    assert nn.top_k_mask(x, 3)[2].tolist() == [1, 0, 1, 0, 1]


def test_lif_charges_fires_and_resets() -> None:
    """Potentials of a constant input of 2: 1 (fires), 1 (fires); of 1: 0.5, 0.75, 0.875 (fires), 0.5."""
    x = torch.tensor([[2.0, 1.0, 0.5]] * 4, dtype=torch.float64).unsqueeze(0).requires_grad_()
    spikes = nn.lif(x, 0.5, 0.875)
    assert spikes[0].T.tolist() == [[1, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]]
    spikes.sum().backward()
    assert x.grad is not None
    assert (x.grad > 0).all()
    assert nn.lif(torch.full((1, 1, 1), 2.0), 0.5, 1.0).item() == 1.0


def test_ttt_linear_descends_the_gradient_that_autograd_finds() -> None:
    q, k, v = (normal(B, T, H, K, seed=seed) for seed in range(3))
    eta, weight, bias = unit(B, T, H, seed=3), normal(H, K, seed=4), normal(H, K, seed=5)
    start = normal(H, K, K, seed=6)
    expected = torch.zeros_like(v)
    for i, h in np.ndindex(B, H):

        def inner(x: Tensor, w: Tensor, h: int = h) -> Tensor:
            return x + torch.nn.functional.layer_norm(w @ x, (K,), weight[h], bias[h], INNER_NORM_EPS)

        w = start[h]
        for t in range(T):
            w = w.detach().requires_grad_()
            loss = (inner(k[i, t, h], w) - v[i, t, h]).square().sum() / 2
            (slope,) = torch.autograd.grad(loss, w)
            w = w.detach() - eta[i, t, h] * slope
            expected[i, t, h] = inner(q[i, t, h], w)
    close(nn.ttt_linear(q, k, v, eta, weight, bias, start), expected)


ARGUMENTS: dict[str, list[Argument]] = {
    "linear_recurrence": [*heads(3, 2), unit(B, 3, H, K), None],
    "diagonal_recurrence": [unit(B, 3, C), normal(B, 3, C)],
    "convex_recurrence": [unit(B, 3, C), normal(B, 3, C)],
    "complex_recurrence": [normal(B, 3, C), *(normal(C, 2, seed=seed) / 3 for seed in range(4))],
    "dense_recurrence": [normal(B, 3, C, K), normal(K, K)],
    "delta_recurrence": [*heads(3, 2), unit(B, 3, H), unit(B, 3, H)],
    "generalized_delta_recurrence": [
        *(normal(B, 3, H, size, seed=seed) for seed, size in enumerate((K, K, K, V, K, K)))
    ],
    "ttt_linear": [
        *(normal(B, 3, 1, K, seed=seed) for seed in range(3)),
        unit(B, 3, 1),
        normal(1, K),
        normal(1, K),
        normal(1, K, K),
    ],
    "wkv4": [normal(B, 3, C), normal(B, 3, C, seed=1), normal(C).exp(), normal(C)],
    "slstm": [*(normal(B, 3, 2, K, seed=seed) for seed in range(4)), normal(4, 2, K, K)],
    "mlstm": [*heads(3), normal(B, 3, H), normal(B, 3, H, seed=1)],
    "causal_fir": [normal(B, 3, C), normal(4, C, 2), normal(4)],
    "shift": [normal(B, 3, 2, C)],
    "running_mean": [normal(B, 3, 2, C)],
    "running_logsumexp": [normal(B, 3, 2, C)],
    "causal_attention": [normal(B, 3, H, K), normal(B, 3, 2, K), normal(B, 3, 2, V), 2, 0.5],
    "rotary": [normal(B, 3, 2, C), normal(C // 2)],
    "l2norm": [normal(B, 3, 2, C), 1e-3],
    "heaviside": [normal(B, 3, C)],
    "top_k_mask": [normal(B, 3, C), 2],
    "lif": [normal(B, 3, C), 0.5, 0.3],
}

STEPS = ("heaviside", "top_k_mask", "lif")
"""Operators whose derivative is not that of their values."""


@pytest.mark.parametrize("name", ARGUMENTS)
def test_gradient_and_fake_kernel(name: str) -> None:
    operator = getattr(torch.ops.isobit, name).default
    leaves = tuple(a.clone().requires_grad_() if isinstance(a, Tensor) else a for a in ARGUMENTS[name])
    if name not in STEPS:
        assert torch.autograd.gradcheck(operator, leaves)  # type: ignore[arg-type]
    torch.library.opcheck(operator, leaves, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_one_step_is_the_beginning_of_many(name: str) -> None:
    operator = getattr(torch.ops.isobit, name).default
    time_major = [isinstance(a, Tensor) and a.dim() >= 3 and a.shape[:2] == (B, 3) for a in ARGUMENTS[name]]
    first = [
        a[:, :1] if timed and isinstance(a, Tensor) else a for timed, a in zip(time_major, ARGUMENTS[name], strict=True)
    ]
    close(operator(*first), operator(*ARGUMENTS[name])[:, :1])


def test_only_the_tensors_that_need_it_get_a_gradient() -> None:
    q, k, v = heads()
    v.requires_grad_()
    nn.linear_recurrence(q, k, v, unit(H)).sum().backward()
    assert v.grad is not None
    assert q.grad is None
