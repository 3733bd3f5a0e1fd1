"""The zoo's sequence models against direct formulas: parallel forms, convolutions, loops over single heads.

Both sides of each comparison are floats that sum in different orders, so the claim is closeness.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from isobit.quant.nn import l2norm, rotary
from isobit.quant.zoo.gated_deltanet import GatedDeltaNet
from isobit.quant.zoo.gla import GatedLinearAttention
from isobit.quant.zoo.griffin import RGLRU
from isobit.quant.zoo.hedgehog import HedgehogAttention
from isobit.quant.zoo.hgrn import HGRNBit
from isobit.quant.zoo.lightnet import LightNetAttention
from isobit.quant.zoo.linear_attention import LinearAttention
from isobit.quant.zoo.mamba2 import Mamba2
from isobit.quant.zoo.mom import MomAttention
from isobit.quant.zoo.retnet import MultiScaleRetention
from isobit.quant.zoo.rwkv4 import RWKV4TimeMix
from isobit.quant.zoo.rwkv6 import RWKV6TimeMix
from isobit.quant.zoo.rwkv7 import Ranks, RWKV7TimeMix
from isobit.quant.zoo.s4d import S4D
from isobit.quant.zoo.transnormer import NormLinearAttention
from isobit.quant.zoo.xlstm import MLSTMLayer


def normal(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rms(x: Tensor, eps: float = 1e-5) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def after_zero(x: Tensor) -> Tensor:
    """x one step later."""
    return functional.pad(x, (0, 0, 1, 0))[:, :-1]


@pytest.mark.parametrize("attention", [LinearAttention, HedgehogAttention])
def test_normalised_attention_is_a_weighted_mean(attention: type[LinearAttention] | type[HedgehogAttention]) -> None:
    torch.manual_seed(0)
    module, x = attention(12, heads=3).double(), normal(2, 7, 12)
    if isinstance(module, LinearAttention):
        q, k, v = module.query_projection(x), module.key_projection(x), module.value_projection(x)
        q, k = (torch.where(y > 0, y, y.exp() - 1).unflatten(-1, (3, 4)) + 1 for y in (q, k))
        project = module.out_projection
    else:
        q, k, v = module.q_proj(x), module.k_proj(x), module.v_proj(x)
        q, k, project = module.feature_map_q(q), module.feature_map_k(k), module.o_proj
    weights = torch.einsum("bthd,bshd->bhts", q, k).tril()
    weights = weights / weights.sum(-1, keepdim=True)
    mean = torch.einsum("bhts,bshd->bthd", weights, v.unflatten(-1, (3, 4)))
    torch.testing.assert_close(module(x), project(mean.flatten(2)))


def test_hedgehog_maps_start_as_softmax_of_both_signs() -> None:
    module, x = HedgehogAttention(12, heads=3).double(), normal(2, 7, 12)
    heads = x.unflatten(-1, (3, 4))
    expected = torch.cat([heads.exp() / heads.exp().sum(-1, True), (-heads).exp() / (-heads).exp().sum(-1, True)], -1)
    torch.testing.assert_close(module.feature_map_q(x), expected)


def test_lightnet_averages_values_per_key() -> None:
    torch.manual_seed(0)
    module, x = LightNetAttention(12, heads=3, gate_rank=2).double(), normal(2, 7, 12)
    q = (functional.silu(module.q_proj(x)) / 2).unflatten(-1, (3, 4))
    k, v = module.k_proj(x).unflatten(-1, (3, 4)).exp(), module.v_proj(x).unflatten(-1, (3, 4))
    means = torch.stack(
        [torch.einsum("bshk,bshv->bhkv", k[:, : t + 1] / k[:, : t + 1].sum(1, True), v[:, : t + 1]) for t in range(7)],
        dim=1,
    )
    o = torch.einsum("bthkv,bthk->bthv", means, q).flatten(2)
    normed = rms(o)
    torch.testing.assert_close(module(x), module.o_proj(normed * functional.silu(module.g_proj(x))))


def test_retention_in_its_parallel_form() -> None:
    torch.manual_seed(0)
    module, x, steps = MultiScaleRetention(12, heads=3).double(), normal(2, 7, 12), torch.arange(7)
    q, k, v, g = (p(x).unflatten(-1, (3, -1)) for p in (module.q_proj, module.k_proj, module.v_proj, module.g_proj))
    theta = 10000.0 ** (-torch.arange(2) / 2)
    scores = torch.einsum("bthd,bshd->bhts", rotary(q, theta), rotary(k, theta)) / 2
    gamma = torch.tensor([31 / 32, 63 / 64, 127 / 128], dtype=torch.float64)
    mask = (gamma.view(-1, 1, 1) ** (steps.unsqueeze(1) - steps)).tril()
    o = torch.einsum("bhts,bshd->bthd", scores * mask, v)
    normed = rms(o)
    torch.testing.assert_close(module(x), module.o_proj((normed * functional.silu(g)).flatten(2)), rtol=1e-5, atol=1e-6)


def test_gla_in_its_pairwise_form() -> None:
    torch.manual_seed(0)
    module, x = GatedLinearAttention(8, heads=2, d_key=6, gate_rank=3).double(), normal(2, 7, 8)
    q, k = (p(x).unflatten(-1, (2, 3)) for p in (module.q_proj, module.k_proj))
    v, g = (p(x).unflatten(-1, (2, 4)) for p in (module.v_proj, module.g_proj))
    gate = module.gk_proj[1](module.gk_proj[0](x)).sigmoid() ** (1 / 16)
    o = torch.zeros(2, 7, 2, 4, dtype=torch.float64)
    for t in range(7):
        for s in range(t + 1):
            kept = gate[:, s + 1 : t + 1].prod(1).unflatten(-1, (2, 3))
            o[:, t] += (q[:, t] * kept * k[:, s]).sum(-1, keepdim=True) * v[:, s] / 3**0.5
    torch.testing.assert_close(module(x), module.o_proj((rms(o) * functional.silu(g)).flatten(2)))


def test_gated_deltanet_head_by_head() -> None:
    """Value heads 0, 1 read key head 0, and 2, 3 key head 1; every key is of unit length."""
    torch.manual_seed(0)
    module, x = GatedDeltaNet(8, heads=2, head_dim=3, value_heads=4, expand_v=2, kernel=2).double(), normal(1, 7, 8)

    def smoothed(projected: Tensor, weight: Tensor, heads: int) -> Tensor:
        mixed = weight[:, 1] * projected + weight[:, 0] * after_zero(projected)
        split: Tensor = functional.silu(mixed).unflatten(-1, (heads, -1))
        return split

    q = l2norm(smoothed(module.q_proj(x), module.q_conv1d.weight, 2), 1e-6)
    k = l2norm(smoothed(module.k_proj(x), module.k_conv1d.weight, 2), 1e-6)
    v = smoothed(module.v_proj(x), module.v_conv1d.weight, 4)
    decay = torch.exp(-module.A_log.exp() * functional.softplus(module.a_proj(x) + module.dt_bias))
    beta = module.b_proj(x).sigmoid()
    o = torch.zeros(1, 7, 4, 6, dtype=torch.float64)
    for h in range(4):
        state = torch.zeros(3, 6, dtype=torch.float64)
        for t in range(7):
            key, at = k[0, t, h // 2], (0, t, h)
            erase = torch.eye(3, dtype=torch.float64) - beta[at] * torch.outer(key, key)
            state = decay[at] * erase @ state + beta[at] * torch.outer(key, v[at])
            o[at] = q[0, t, h // 2] @ state / 3**0.5
    gate = functional.silu(module.g_proj(x).unflatten(-1, (4, 6)))
    torch.testing.assert_close(module(x), module.o_proj((rms(o) * gate).flatten(2)))


def test_lightning_attention_in_its_parallel_form() -> None:
    """Two heads in layer 1 of 2 decay by exp(-2^-4 / 2) and exp(-2^-8 / 2) a step."""
    torch.manual_seed(0)
    module, x, steps = NormLinearAttention(8, heads=2, layer=1, layers=2).double(), normal(2, 7, 8), torch.arange(7)
    q, k = (functional.silu(p(x)).unflatten(-1, (2, 4)) for p in (module.q_proj, module.k_proj))
    v = module.v_proj(x).unflatten(-1, (2, 4))
    rate = torch.tensor([2**-5, 2**-9], dtype=torch.float64).view(2, 1, 1)
    mask = torch.exp(-rate * (steps.unsqueeze(1) - steps)).tril()
    o = torch.einsum("bhts,bshd->bthd", torch.einsum("bthd,bshd->bhts", q, k) * mask, v).flatten(2)
    expected = module.out_proj(rms(o, 1e-6) * module.u_proj(x))
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-6)


def test_rwkv4_time_mix_is_a_softmax_over_the_past() -> None:
    torch.manual_seed(0)
    module, x = RWKV4TimeMix(6, layer=1, layers=3).double(), normal(2, 7, 6)
    p, last = dict(module.named_parameters()), after_zero(x)
    k, v, r = (
        project(p[f"time_mix_{name}"] * x + (1 - p[f"time_mix_{name}"]) * last)
        for name, project in (("k", module.key), ("v", module.value), ("r", module.receptance))
    )
    wkv = torch.zeros_like(v)
    for t in range(7):
        age = torch.arange(t - 1, -1, -1, dtype=torch.float64).view(1, t, 1)
        exponents = torch.cat([k[:, :t] - age * p["time_decay"].exp(), k[:, t : t + 1] + p["time_first"]], dim=1)
        wkv[:, t] = (exponents.softmax(1) * v[:, : t + 1]).sum(1)
    torch.testing.assert_close(module(x), module.output(r.sigmoid() * wkv))


def test_rwkv6_time_mix_equals_its_recurrence() -> None:
    """RWKV-LM's formulas; the current step enters by the bonus, before its key enters the state."""
    torch.manual_seed(0)
    module, x = RWKV6TimeMix(6, heads=2, layer=1, layers=3, mix_rank=2, decay_rank=3).double(), normal(1, 7, 6)
    p = dict(module.named_parameters())
    change = after_zero(x) - x
    low = torch.tanh((x + change * p["time_maa_x"]) @ p["time_maa_w1"]).view(7, 5, 2).transpose(0, 1)
    shares = torch.bmm(low, p["time_maa_w2"])
    x_w, x_k, x_v, x_r, x_g = (x + change * (p[f"time_maa_{name}"] + shares[i]) for i, name in enumerate("wkvrg"))
    r, k, v = (y.view(7, 2, 3) for y in (module.receptance(x_r), module.key(x_k), module.value(x_v)))
    w = (p["time_decay"] + torch.tanh(x_w @ p["time_decay_w1"]) @ p["time_decay_w2"]).view(7, 2, 3)
    out = torch.zeros(7, 2, 3, dtype=torch.float64)
    for h in range(2):
        state = torch.zeros(3, 3, dtype=torch.float64)
        for t in range(7):
            entering = torch.outer(k[t, h], v[t, h])
            out[t, h] = r[t, h] @ (torch.diag(p["time_faaaa"][h]) @ entering + state)
            state = torch.diag(torch.exp(-torch.exp(w[t, h]))) @ state + entering
    normed = functional.group_norm(out.view(7, 6), 2, module.ln_x.weight, module.ln_x.bias, 64e-5)
    torch.testing.assert_close(module(x)[0], module.output(normed * functional.silu(module.gate(x_g)[0])))


def test_mlstm_layer_reads_blocks_of_channels() -> None:
    """With gates i = 0 and f = infinity, the cell is attention without decay, divided by at least 1."""
    torch.manual_seed(0)
    module, x = MLSTMLayer(4, heads=2, kernel=2, block=2).double(), normal(2, 7, 4)
    with torch.no_grad():
        for gate, value in ((module.igate, 0.0), (module.fgate, 60.0)):
            gate.weight.zero_()
            gate.bias.fill_(value)
    inner, z = module.proj_up(x).chunk(2, dim=-1)
    weight = module.conv1d.weight
    smooth = functional.silu(weight[:, 1] * inner + weight[:, 0] * after_zero(inner) + module.conv1d.bias)
    q, k, v = (
        torch.einsum("btnj,nij->btni", y.unflatten(-1, (4, 2)), projection.weight).flatten(2).unflatten(-1, (2, 4))
        for y, projection in ((smooth, module.q_proj), (smooth, module.k_proj), (inner, module.v_proj))
    )
    scores = (torch.einsum("bthd,bshd->bhts", q, k) / 2).tril()
    h = torch.einsum("bhts,bshd->bhtd", scores, v) / scores.sum(-1, keepdim=True).abs().clamp(min=1)
    normed = functional.layer_norm(h.transpose(1, 2), (4,)).flatten(2)
    expected = module.proj_down((normed + smooth) * functional.silu(z))
    torch.testing.assert_close(module(x), expected)


def test_mamba2_in_its_parallel_form() -> None:
    """Scores C_t . B_s times the decays between, per head; the convolution by torch's own."""
    torch.manual_seed(0)
    module, x = Mamba2(8, d_state=5, d_conv=3, headdim=4, ngroups=2).double(), normal(2, 7, 8)
    z, mixed, dt = module.in_proj(x).split([16, 16 + 20, 4], dim=-1)
    padded = functional.pad(mixed.transpose(1, 2), (2, 0))
    smooth = functional.conv1d(padded, module.conv1d.weight.unsqueeze(1), module.conv1d.bias, groups=36)
    v, b, c = functional.silu(smooth.transpose(1, 2)).split([16, 10, 10], dim=-1)
    v, b, c = v.unflatten(-1, (4, 4)), b.unflatten(-1, (2, 5)), c.unflatten(-1, (2, 5))
    dt = functional.softplus(dt + module.dt_bias)
    spent = (dt * module.A_log.exp()).cumsum(1)
    between = torch.exp(spent.unsqueeze(1) - spent.unsqueeze(2)).permute(0, 3, 1, 2).tril()
    scores = torch.einsum("btgn,bsgn->bgts", c, b).repeat_interleave(2, dim=1) * between
    y = torch.einsum("bhts,bsh,bshp->bthp", scores, dt, v) + module.D.view(-1, 1) * v
    gated = (y.flatten(2) * functional.silu(z)).unflatten(-1, (2, 8))
    normed = rms(gated)
    torch.testing.assert_close(module(x), module.out_proj(normed.flatten(2)))


def test_s4d_is_a_convolution_with_its_kernel() -> None:
    torch.manual_seed(0)
    module, x, steps = S4D(6, d_state=4).double(), normal(2, 9, 6), torch.arange(9)
    a = torch.complex(-module.log_A_real.exp(), module.A_imag)
    powers = torch.exp((module.log_dt.exp().unsqueeze(-1) * a).unsqueeze(-1) * steps)
    b = (torch.exp(module.log_dt.exp().unsqueeze(-1) * a) - 1) / a
    kernel = 2 * torch.einsum("cn,cn,cnt->ct", torch.view_as_complex(module.C.detach()), b, powers).real
    lag = (steps.unsqueeze(1) - steps).clamp(min=0)
    y = torch.einsum("cts,bsc->btc", kernel[:, lag].tril(), x) + module.D * x
    value, gate = module.output_linear(functional.gelu(y)).chunk(2, dim=-1)
    torch.testing.assert_close(module(x), value * torch.sigmoid(gate))


def test_rg_lru_equals_its_equations() -> None:
    torch.manual_seed(0)
    module, x = RGLRU(6, heads=2).double(), normal(2, 9, 6)
    h, expected = torch.zeros(2, 6, dtype=torch.float64), []
    for t in range(9):
        halves = x[:, t].chunk(2, dim=-1)
        r = torch.cat([half @ w.T for half, w in zip(halves, module.a_gate.weight, strict=True)], -1).sigmoid()
        i = torch.cat([half @ w.T for half, w in zip(halves, module.input_gate.weight, strict=True)], -1).sigmoid()
        a = torch.exp(-functional.softplus(module.a_param)) ** (8 * r)
        h = a * h + (1 - a**2).sqrt() * i * x[:, t]
        expected.append(h)
    torch.testing.assert_close(module(x), torch.stack(expected, dim=1))
    radius = torch.exp(-functional.softplus(module.a_param))
    assert (radius >= 0.9 - 1e-6).all()
    assert (radius <= 0.999 + 1e-6).all()


def test_rwkv7_time_mix_equals_its_recurrence() -> None:
    """RWKV-LM's formulas, with the decay exp(-exp(-softplus(-w) - 1/2)) and the state head by head."""
    torch.manual_seed(0)
    module = RWKV7TimeMix(12, heads=3, layer=1, layers=2, ranks=Ranks(w=2, a=2, v=2, g=3)).double()
    p, x, v_first = dict(module.named_parameters()), normal(1, 6, 12), normal(1, 6, 12, seed=5)
    shifted = after_zero(x) - x
    x_r, x_w, x_k, x_v, x_a, x_g = (x + shifted * p[f"x_{name}"] for name in "rwkvag")
    r, k, v = module.receptance(x_r), module.key(x_k), module.value(x_v)
    w = -functional.softplus(-(p["w0"] + torch.tanh(x_w @ p["w1"]) @ p["w2"])) - 0.5
    v = v + (v_first - v) * torch.sigmoid(p["v0"] + (x_v @ p["v1"]) @ p["v2"])
    a = torch.sigmoid(p["a0"] + (x_a @ p["a1"]) @ p["a2"])
    g = torch.sigmoid(x_g @ p["g1"]) @ p["g2"]
    kk = functional.normalize((k * p["k_k"]).unflatten(-1, (3, 4)), dim=-1)
    k = k * (1 + (a - 1) * p["k_a"])
    r, w, k, v, a = (y.unflatten(-1, (3, 4)) for y in (r, torch.exp(-torch.exp(w)), k, v, a))
    out = torch.zeros(1, 6, 3, 4, dtype=torch.float64)
    for h in range(3):
        state = torch.zeros(4, 4, dtype=torch.float64)
        for t in range(6):
            at = 0, t, h
            change = torch.diag(w[at]) - torch.outer(kk[at], kk[at] * a[at])
            state = state @ change + torch.outer(v[at], k[at])
            out[at] = state @ r[at]
    normed = functional.group_norm(out.view(6, 12), 3, module.ln_x.weight, module.ln_x.bias, 64e-5).view(1, 6, 12)
    normed = normed + ((r * k * p["r_k"]).sum(-1, keepdim=True) * v).flatten(2)
    torch.testing.assert_close(module(x, v_first)[0], module.output(normed * g))


def test_mom_equals_separate_memories() -> None:
    """A memory object per route, written and read only by the steps that are routed to it."""
    torch.manual_seed(0)
    d, heads, memories, topk = 4, 1, 3, 2
    module, x = MomAttention(d, heads, memories, topk).double(), normal(1, 9, d)
    scores = module.gate(x)[0].softmax(-1)
    q = l2norm(functional.silu(module.q_proj(x)), 1e-6)[0] / 2
    k = l2norm(functional.silu(module.k_proj(x)).view(9, 1 + memories, d), 1e-6)
    v = functional.silu(module.v_proj(x)).view(9, 1 + memories, 2 * d)
    decay = torch.exp(-module.A_log.exp() * functional.softplus(module.a_proj(x)[0] + module.dt_bias))
    beta = torch.sigmoid(module.b_proj(x)[0])
    store = [torch.zeros(d, 2 * d, dtype=torch.float64) for _ in range(1 + memories)]
    rows = []
    for t in range(9):
        routed = scores[t].topk(topk).indices.tolist()
        share = scores[t] / scores[t, routed].sum()
        total = torch.zeros(2 * d, dtype=torch.float64)
        for m, weight in [(0, torch.tensor(1.0)), *((1 + i, share[i]) for i in routed)]:
            kept = decay[t, m] * store[m]
            store[m] = kept + beta[t, m] * torch.outer(k[t, m], v[t, m] - kept.T @ k[t, m])
            total = total + weight * (store[m].T @ q[t])
        rows.append(total)
    o = torch.stack(rows)
    normed = rms(o)
    expected = module.o_proj(normed * functional.silu(module.g_proj(x)[0]))
    torch.testing.assert_close(module(x)[0], expected, rtol=1e-5, atol=1e-6)


def test_hgrn_remembers_longer_in_higher_layers() -> None:
    """Lower bounds of forget gates rise from 0: shares 1/3, 2/3 for three layers of equal parameters."""
    model, seen = HGRNBit(8, layers=3, d_hidden=8), list[Tensor]()
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    model(torch.zeros(1, 2, 8))
    for bound, expected in zip(seen, (0.0, 1 / 3, 2 / 3), strict=True):
        torch.testing.assert_close(bound, torch.full((8,), expected))


def test_decays_at_initialisation() -> None:
    """RWKV-7's slowest decay; RetNet's and Mamba-2's stay below 1."""
    module = RWKV7TimeMix(16, heads=2, layer=0, layers=1, ranks=Ranks(w=2, a=2, v=2, g=2))
    assert math.exp(-math.exp(-0.5)) < torch.exp(-math.exp(-0.5) * module.w0.sigmoid()).min() < 1
    assert (MultiScaleRetention(16, heads=4).decay < 1).all()
    assert (functional.softplus(Mamba2(16, headdim=4).dt_bias) <= 0.1 + 1e-6).all()
