"""Checkpoints of flash-linear-attention against the recurrences of their papers, written out over the tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from isobit.quant.huggingface.load import load_folder
from tests.exported import OPERATORS, operators

WIDTH, HEADS, INNER, VOCABULARY, EPS = 12, 3, 17, 29, 1e-3

Part = Callable[[str], Tensor]
"""The checkpoint's tensor of a name within a layer's mixer."""


def rms(x: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def conv(x: Tensor, weight: Tensor) -> Tensor:
    """Depthwise and causal; weight (channels, 1, kernel)."""
    kernel = weight.shape[2]
    padded = torch.cat([x.new_zeros(x.shape[0], kernel - 1, x.shape[2]), x], 1)
    return sum((padded[:, j : j + x.shape[1]] * weight[:, 0, j] for j in range(kernel)), torch.zeros(()))


def turned(x: Tensor) -> Tensor:
    """RoPE of heads: pair (i, i + K/2) at step t by t * 10000^(-2i/K), as a product of complex numbers."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1]).unsqueeze(1) * 10000.0 ** (-torch.arange(half) / half)
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones(()), angles).unsqueeze(1)
    return torch.cat([z.real, z.imag], -1)


def read(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor | None = None) -> Tensor:
    """S = decay S, plus k v^T, or with beta the delta rule's; o = S^T q / sqrt(K).  decay: (B, T, H, K) or (.., 1)."""
    k, q = (x.repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (k, q))
    state, outputs = torch.zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3]), []
    for t in range(v.shape[1]):
        state = state * decay[:, t].unsqueeze(-1)
        new = v[:, t]
        if beta is not None:
            new = beta[:, t].unsqueeze(-1) * (new - torch.einsum("bhkv,bhk->bhv", state, k[:, t]))
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], new)
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]) * k.shape[3] ** -0.5)
    return torch.stack(outputs, 1)


def gla(x: Tensor, part: Part, config: dict[str, Any]) -> Tensor:
    q, k, v = (x @ part(f"{name}_proj.weight").T for name in "qkv")
    if config.get("use_short_conv"):
        q, k, v = (functional.silu(conv(y, part(f"{n}_conv1d.weight"))) for n, y in zip("qkv", (q, k, v), strict=True))
    gate = x @ part("gk_proj.0.weight").T @ part("gk_proj.1.weight").T + part("gk_proj.1.bias")
    log_decay = functional.logsigmoid(gate) / 16
    if "clamp_min" in config:
        log_decay = log_decay.clamp(min=config["clamp_min"])
    q, k, v, decay = (y.unflatten(-1, (HEADS, -1)) for y in (q, k, v, log_decay.exp()))
    if config.get("feature_map") == "relu":
        q, k = q.relu(), k.relu()
    return finish(read(q, k, v, decay), x, part, config, "g_norm", config.get("use_output_gate", True))


def retnet(x: Tensor, part: Part, config: dict[str, Any]) -> Tensor:
    q, k, v = ((x @ part(f"{name}_proj.weight").T).unflatten(-1, (HEADS, -1)) for name in "qkv")
    decay = (1 - 2.0 ** (-5 - torch.arange(HEADS))).reshape(1, 1, HEADS, 1).expand(*x.shape[:2], -1, -1)
    return finish(read(turned(q), turned(k), v, decay), x, part, config, "g_norm", True)


def delta_net(x: Tensor, part: Part, config: dict[str, Any]) -> Tensor:
    q, k, v = (x @ part(f"{name}_proj.weight").T for name in "qkv")
    if config.get("use_short_conv", True):
        q, k, v = (conv(y, part(f"{n}_conv1d.weight")) for n, y in zip("qkv", (q, k, v), strict=True))
    act = torch.relu if config.get("qk_activation") == "relu" else functional.silu
    heads = config.get("num_v_heads", HEADS)
    q, k = (unit(act(y).unflatten(-1, (HEADS, -1))) for y in (q, k))
    beta = torch.sigmoid(x @ part("b_proj.weight").T) * (2 if config.get("allow_neg_eigval") else 1)
    decay = torch.ones(*x.shape[:2], heads, 1)
    if config["model_type"] == "gated_deltanet":
        step = functional.softplus(x @ part("a_proj.weight").T + part("dt_bias"))
        decay = torch.exp(-step * part("A_log").exp()).unsqueeze(-1)
    y = read(q, k, functional.silu(v).unflatten(-1, (heads, -1)), decay, beta)
    return finish(y, x, part, config, "o_norm", config.get("use_gate", config["model_type"] == "gated_deltanet"))


def finish(y: Tensor, x: Tensor, part: Part, config: dict[str, Any], norm: str, gate: bool) -> Tensor:
    if norm == "g_norm" and gate and config.get("fuse_norm", True):
        norm = "g_norm_swish_gate"
    y = rms(y, part(f"{norm}.weight") if config.get("elementwise_affine", True) else 1.0).flatten(2)
    if gate:
        y = y * functional.silu(x @ part("g_proj.weight").T)
    return y @ part("o_proj.weight").T


def reference(mixer: Callable[..., Tensor], config: dict[str, Any], tensors: dict[str, Tensor], ids: Tensor) -> Tensor:
    x = tensors["model.embeddings.weight"][ids]
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        normed = rms(x, tensors[layer + "attn_norm.weight"])
        x = x + mixer(normed, lambda name, at=layer: tensors[f"{at}attn.{name}"], config)
        normed = rms(x, tensors[layer + "mlp_norm.weight"])
        gate, up, down = (tensors[f"{layer}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        x = x + (functional.silu(normed @ gate.T) * (normed @ up.T)) @ down.T
    return rms(x, tensors["model.norm.weight"]) @ tensors["lm_head.weight"].T


def shapes(config: dict[str, Any], mixer: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "model.embeddings.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,),
        "lm_head.weight": (VOCABULARY, WIDTH),
    }  # fmt: skip
    for n in range(config["num_hidden_layers"]):
        layer = {
            "attn_norm.weight": (WIDTH,), "mlp_norm.weight": (WIDTH,), "mlp.gate_proj.weight": (INNER, WIDTH),
            "mlp.up_proj.weight": (INNER, WIDTH), "mlp.down_proj.weight": (WIDTH, INNER),
        }  # fmt: skip
        found |= {f"model.layers.{n}.{name}": shape for name, shape in layer.items()}
        found |= {f"model.layers.{n}.attn.{name}": shape for name, shape in mixer.items()}
    return found


def projections(keys: int, values: int, kernel: int | None = None) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"o_proj.weight": (WIDTH, values)}
    for name, channels in (("q", keys), ("k", keys), ("v", values)):
        found[f"{name}_proj.weight"] = (channels, WIDTH)
        if kernel is not None:
            found[f"{name}_conv1d.weight"] = (channels, 1, kernel)
    return found


def decays(keys: int) -> dict[str, tuple[int, ...]]:
    return {"gk_proj.0.weight": (16, WIDTH), "gk_proj.1.weight": (keys, 16), "gk_proj.1.bias": (keys,)}


GATE = {"g_proj.weight": (12, WIDTH)}

CASES: list[tuple[Callable[..., Tensor], dict[str, Any], dict[str, tuple[int, ...]]]] = [
    (gla, {"model_type": "gla"}, projections(6, 12) | decays(6) | GATE | {"g_norm_swish_gate.weight": (4,)}),
    (
        gla,
        {"model_type": "gla", "use_short_conv": True, "conv_size": 3, "use_output_gate": False, "clamp_min": -0.03,
         "expand_k": 1.75},
        projections(21, 12, 3) | decays(21) | {"g_norm.weight": (4,)},
    ),
    (
        gla,
        {"model_type": "gla", "fuse_norm": False, "feature_map": "relu", "elementwise_affine": False},
        projections(6, 12) | decays(6) | GATE,
    ),
    (
        retnet,
        {"model_type": "retnet"},
        projections(12, 24) | {"g_proj.weight": (24, WIDTH), "g_norm_swish_gate.weight": (8,)},
    ),
    (
        retnet,
        {"model_type": "retnet", "expand_k": 0.5, "expand_v": 1.25, "fuse_norm": False},
        projections(6, 15) | {"g_proj.weight": (15, WIDTH), "g_norm.weight": (5,)},
    ),
    (
        delta_net,
        {"model_type": "delta_net"},
        projections(12, 12, 4) | {"b_proj.weight": (3, 12), "o_norm.weight": (4,)},
    ),
    (
        delta_net,
        {"model_type": "delta_net", "use_short_conv": False, "use_gate": True, "allow_neg_eigval": True,
         "qk_activation": "relu", "expand_k": 1.75, "expand_v": 1.25},
        projections(21, 15) | {"b_proj.weight": (3, 12), "o_norm.weight": (5,), "g_proj.weight": (15, WIDTH)},
    ),
    (
        delta_net,
        {"model_type": "gated_deltanet", "head_dim": 5, "expand_v": 1.4, "num_v_heads": 6, "conv_size": 3},
        projections(15, 42, 3)
        | {"a_proj.weight": (6, 12), "b_proj.weight": (6, 12), "A_log": (6,), "dt_bias": (6,), "o_norm.weight": (7,),
           "g_proj.weight": (42, WIDTH)},
    ),
    (
        delta_net,
        {"model_type": "gated_deltanet", "head_dim": 4, "expand_v": 1, "use_gate": False, "use_short_conv": False},
        projections(12, 12)
        | {"a_proj.weight": (3, 12), "b_proj.weight": (3, 12), "A_log": (3,), "dt_bias": (3,), "o_norm.weight": (4,)},
    ),
]  # fmt: skip


IDS = [f"{mixer.__name__} {i}" for i, (mixer, _, _) in enumerate(CASES)]


@pytest.mark.parametrize(("mixer", "settings", "parts"), CASES, ids=IDS)
def test_logits(
    tmp_path: Path, mixer: Callable[..., Tensor], settings: dict[str, Any], parts: dict[str, tuple[int, ...]]
) -> None:
    config = settings | {
        "hidden_size": WIDTH, "num_heads": HEADS, "num_hidden_layers": 2, "intermediate_size": INNER, "norm_eps": EPS,
        "vocab_size": VOCABULARY,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) * 0.7 for name, shape in shapes(config, parts).items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    model = load_folder(tmp_path)
    ids = torch.randint(0, VOCABULARY, (2, 13), generator=generator)
    expected = reference(mixer, config, tensors, ids)
    with torch.no_grad():
        assert (model(ids) - expected).abs().max() <= 1e-4 * expected.abs().max()

    dims = {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}
    exported = torch.export.export(model, (ids,), dynamic_shapes=(dims,), strict=False)
    assert operators(exported) <= OPERATORS
    torch.testing.assert_close(exported.module()(ids[:1, :5]), model(ids[:1, :5]), rtol=1e-4, atol=1e-4)
