"""Folders written by transformers, read without it: the logits are the same, and torch.export keeps them capturable."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isobit.quant.huggingface.load import ARCHITECTURES, load_folder
from tests.exported import OPERATORS, operators

VOCABULARY = 61
T_MAX = 32
TOLERANCE = 1e-4

MAMBA2 = {"hidden_size": 24, "num_heads": 6, "head_dim": 8, "n_groups": 2, "state_size": 5, "num_hidden_layers": 2}
HYBRID = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3, "num_key_value_heads": 1}
NEMOTRON = {
    **HYBRID, "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"], "head_dim": 8,
    "ssm_state_size": 5, "mamba_num_heads": 6, "mamba_head_dim": 4, "n_groups": 2, "n_routed_experts": 5,
    "moe_intermediate_size": 12, "moe_shared_expert_intermediate_size": 20, "num_experts_per_tok": 2,
}  # fmt: skip
MINIMAX = {**HYBRID, "num_hidden_layers": 2, "num_local_experts": 4}
QWEN = {
    **HYBRID, "num_hidden_layers": 4, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20, "linear_key_head_dim": 6,
    "linear_value_head_dim": 7, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
KIMI = {
    **HYBRID, "num_key_value_heads": 3, "moe_intermediate_size": 12, "num_hidden_layers": 5, "kv_lora_rank": 9,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 7, "num_local_experts": 4, "num_experts_per_tok": 2,
    "linear_head_dim": 6, "linear_num_heads": 3,
}  # fmt: skip

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("mamba", "mamba", {"hidden_size": 24, "state_size": 5, "num_hidden_layers": 2}),
    ("mamba odd", "mamba", {
        "hidden_size": 21, "state_size": 7, "num_hidden_layers": 1, "conv_kernel": 3, "use_bias": True,
        "use_conv_bias": False, "time_step_rank": 3, "tie_word_embeddings": False,
    }),
    ("falcon_mamba", "falcon_mamba", {"hidden_size": 24, "state_size": 5, "num_hidden_layers": 2}),
    ("falcon_mamba odd", "falcon_mamba", {
        "hidden_size": 21, "state_size": 7, "num_hidden_layers": 1, "conv_kernel": 3, "mixer_rms_eps": 1e-3,
    }),
    ("mamba2", "mamba2", MAMBA2),
    ("mamba2 odd", "mamba2", {
        "hidden_size": 21, "num_heads": 3, "head_dim": 14, "n_groups": 1, "state_size": 7, "num_hidden_layers": 1,
        "conv_kernel": 3, "use_bias": True, "time_step_limit": (0.02, 0.7), "tie_word_embeddings": True,
    }),
    ("lfm2", "lfm2", {
        **HYBRID, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "full_attn_idxs": [1],
        "block_multiple_of": 8,
    }),
    ("lfm2 odd", "lfm2", {
        "hidden_size": 42, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 3,
        "num_key_value_heads": 3, "layer_types": ["full_attention", "conv"], "block_auto_adjust_ff_dim": False,
        "conv_bias": True, "conv_L_cache": 5, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
    }),
    ("rwkv", "rwkv", {"hidden_size": 24, "num_hidden_layers": 3, "rescale_every": 1}),
    ("rwkv odd", "rwkv", {
        "hidden_size": 21, "num_hidden_layers": 2, "attention_hidden_size": 35, "intermediate_size": 33,
        "rescale_every": 0, "layer_norm_epsilon": 1e-3, "tie_word_embeddings": True,
    }),
    ("bamba", "bamba", {
        **HYBRID, "num_hidden_layers": 3, "attn_layer_indices": [1], "mamba_n_heads": 6, "mamba_d_state": 5,
    }),
    ("bamba odd", "bamba", {
        **HYBRID, "hidden_size": 36, "num_hidden_layers": 2, "attn_layer_indices": [0], "mamba_n_heads": 3,
        "mamba_n_groups": 3, "mamba_d_state": 7, "mamba_d_conv": 3, "attention_bias": True, "mlp_bias": True,
        "mamba_proj_bias": True, "mamba_conv_bias": False, "time_step_limit": [0.0, 1.0],
    }),
    ("nemotron_h", "nemotron_h", NEMOTRON),
    ("nemotron_h odd", "nemotron_h", {
        **NEMOTRON, "hidden_size": 21, "head_dim": 7, "ssm_state_size": 7, "mamba_num_heads": 3, "n_groups": 3,
        "conv_kernel": 3, "mlp_bias": True, "moe_latent_size": 9, "routed_scaling_factor": 2.5, "use_bias": True,
        "norm_topk_prob": False, "num_experts_per_tok": 3, "mlp_hidden_act": "silu", "time_step_min": 0.6,
    }),
    ("recurrent_gemma", "recurrent_gemma", {**HYBRID, "num_hidden_layers": 3, "attention_window_size": 5}),
    ("recurrent_gemma odd", "recurrent_gemma", {
        **HYBRID, "hidden_size": 36, "num_hidden_layers": 2, "block_types": ["attention", "recurrent"],
        "lru_width": 21, "conv1d_width": 3, "attention_window_size": 3, "attention_bias": True, "logits_soft_cap": 2.0,
    }),
    ("minimax", "minimax", MINIMAX),
    ("minimax odd", "minimax", {
        **MINIMAX, "hidden_size": 30, "num_hidden_layers": 3, "sliding_window": 4, "head_dim": 6, "block_size": 7,
        "num_experts_per_tok": 3, "full_attn_alpha_factor": 3.5, "full_attn_beta_factor": 0.5,
        "linear_attn_alpha_factor": 1.5, "linear_attn_beta_factor": 2, "mlp_alpha_factor": 0.7, "mlp_beta_factor": 3,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    }),
    ("qwen3_next", "qwen3_next", QWEN),
    ("qwen3_next odd", "qwen3_next", {
        **QWEN, "hidden_size": 21, "num_hidden_layers": 2, "layer_types": ["full_attention", "linear_attention"],
        "mlp_only_layers": [0], "norm_topk_prob": False, "linear_num_key_heads": 3, "linear_num_value_heads": 3,
        "linear_key_head_dim": 7, "linear_conv_kernel_dim": 3, "attention_bias": True, "tie_word_embeddings": True,
    }),
    ("xlstm", "xlstm", {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2}),
    ("xlstm odd", "xlstm", {
        "hidden_size": 42, "num_hidden_layers": 2, "num_heads": 3, "use_bias": True,
        "ffn_round_up_to_multiple_of": 10, "gate_soft_cap": 2.0, "output_logit_soft_cap": 1.5,
    }),
    ("kimi_linear", "kimi_linear", KIMI),
    ("kimi_linear odd", "kimi_linear", {
        **KIMI, "hidden_size": 21, "num_hidden_layers": 2, "layer_types": ["full_attention", "linear_attention"],
        "mlp_layer_types": ["sparse", "dense"], "q_lora_rank": 5, "attention_bias": True, "linear_conv_kernel_dim": 3,
        "norm_topk_prob": False, "n_shared_experts": 2, "linear_num_heads": 7, "linear_head_dim": 5,
    }),
]  # fmt: skip
"""Name, model type, configuration: a small one and one with odd sizes and the other options of each architecture."""

IDS = [case[0] for case in CASES]


def written(folder: Path, kind: str, settings: dict[str, Any], **saving: Any) -> Any:
    """A random model of transformers, saved into `folder`, with no parameter at its initial value."""
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.AutoConfig.for_model(kind, **special, **settings, vocab_size=VOCABULARY)
    model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_()
    model.save_pretrained(folder, **saving)
    return model


def silent(text: str) -> None:
    pass


def ids(batch: int, steps: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (batch, steps), generator=torch.Generator().manual_seed(1))


def distance(model: nn.Module, expected: Tensor, x: Tensor) -> float:
    """max |model - expected| / max |expected|."""
    with torch.no_grad():
        difference: Tensor = (model(x) - expected).abs().max() / expected.abs().max()
    return float(difference)


def logits(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(x, use_cache=False).logits
    return result


@contextmanager
def edited(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """The configuration and the tensors of a folder, to be changed in place."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    yield config, tensors
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def test_every_architecture_has_cases() -> None:
    assert {case[1] for case in CASES} == set(ARCHITECTURES) - {"gla", "retnet", "delta_net", "gated_deltanet"}


@pytest.mark.parametrize(("kind", "settings"), [case[1:] for case in CASES], ids=IDS)
def test_logits_and_export(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    original = written(tmp_path, kind, settings)
    model = load_folder(tmp_path, t_max=T_MAX, note=silent)
    assert not model.training
    for x in (ids(2, 19), ids(1, 1)):
        assert distance(model, logits(original, x), x) <= TOLERANCE

    dims = {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}
    exported = torch.export.export(model, (ids(2, 5),), dynamic_shapes=(dims,), strict=False)
    assert operators(exported) <= OPERATORS
    x = ids(3, 11)
    assert distance(exported.module(), model(x).detach(), x) <= TOLERANCE


def test_shards(tmp_path: Path) -> None:
    original = written(tmp_path, "mamba", dict(CASES[0][2]), max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert distance(load_folder(str(tmp_path)), logits(original, ids(2, 9)), ids(2, 9)) <= TOLERANCE


@pytest.mark.parametrize(("dtype", "spelled"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")])
def test_half_precision_is_converted(tmp_path: Path, dtype: torch.dtype, spelled: str) -> None:
    original = written(tmp_path, "mamba", dict(CASES[0][2])).to(dtype)
    original.save_pretrained(tmp_path)
    notes: list[str] = []
    model = load_folder(tmp_path, note=notes.append)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert [note for note in notes if f"tensors are {spelled}, converted to float32" in note] == notes
    assert len(notes) == 1
    assert distance(model, logits(original.float(), ids(2, 9)), ids(2, 9)) <= TOLERANCE


def test_t_max_bounds_attention(tmp_path: Path) -> None:
    original = written(tmp_path, *CASES[IDS.index("bamba")][1:])
    x = ids(2, 12)
    assert distance(load_folder(tmp_path, t_max=12), logits(original, x), x) <= TOLERANCE
    assert distance(load_folder(tmp_path, t_max=11), logits(original, x), x) > TOLERANCE
    model = load_folder(tmp_path, t_max=4)
    assert distance(model, logits(original, x[:, :4]), x[:, :4]) <= TOLERANCE


def test_old_configurations_of_rotary_attention(tmp_path: Path) -> None:
    """rope_theta and partial_rotary_factor outside rope_parameters; attention on all layers but every fourth."""
    rope = {"rope_type": "default", "rope_theta": 123.0, "partial_rotary_factor": 0.75}
    original = written(tmp_path, "qwen3_next", {**QWEN, "rope_parameters": rope})
    with edited(tmp_path) as (config, _):
        del config["rope_parameters"], config["layer_types"]
        config |= {"rope_theta": 123.0, "partial_rotary_factor": 0.75, "rope_scaling": None}
        config["full_attention_interval"] = 4
    assert distance(load_folder(tmp_path, t_max=9), logits(original, ids(2, 9)), ids(2, 9)) <= TOLERANCE


def test_published_nemotron_h(tmp_path: Path) -> None:
    """A pattern of letters, names of transformers 5, and layers for multi-token prediction."""
    original = written(tmp_path, "nemotron_h", NEMOTRON)
    with edited(tmp_path) as (config, tensors):
        del config["layers_block_type"]
        config["hybrid_override_pattern"] = "ME*-"
        for name in [name for name in tensors if name.startswith("backbone.")]:
            tensors[name.replace("backbone.", "model.", 1)] = tensors.pop(name)
        tensors["mtp.layers.0.norm.weight"] = torch.ones(3)
    notes: list[str] = []
    model = load_folder(tmp_path, t_max=9, note=notes.append)
    assert distance(model, logits(original, ids(2, 9)), ids(2, 9)) <= TOLERANCE
    assert "1 tensors are not needed and not read (mtp.layers.0.norm.weight)" in notes[0]


def test_published_kimi_linear(tmp_path: Path) -> None:
    """Kinds of layer counted from 1, dense layers first, their MLP called mlp."""
    original = written(tmp_path, "kimi_linear", KIMI)
    with edited(tmp_path) as (config, tensors):
        for key in ("layer_types", "mlp_layer_types", "linear_head_dim", "linear_num_heads", "linear_conv_kernel_dim"):
            del config[key]
        config["first_k_dense_replace"] = 1
        config["linear_attn_config"] = {
            "full_attn_layers": [5],
            "kda_layers": [1, 2, 3, 4],
            "head_dim": 6,
            "num_heads": 3,
            "short_conv_kernel_size": 4,
        }
        for name in [name for name in tensors if "layers.0.block_sparse_moe." in name]:
            tensors[name.replace("block_sparse_moe", "mlp")] = tensors.pop(name)
    assert distance(load_folder(tmp_path, t_max=9), logits(original, ids(2, 9)), ids(2, 9)) <= TOLERANCE


def test_fused_weights_of_xlstm(tmp_path: Path) -> None:
    """weight_mode fused, which transformers 5 can run, but not initialise."""
    original = written(tmp_path, *CASES[IDS.index("xlstm odd")][1:])
    fused = {
        "mlstm_layer.qkv_opreact": [f"mlstm_layer.{part}" for part in ("q", "k", "v", "ogate_preact")],
        "mlstm_layer.ifgate_preact": ["mlstm_layer.igate_preact", "mlstm_layer.fgate_preact"],
        "ffn.proj_up_gate_z": ["ffn.proj_up_gate", "ffn.proj_up"],
    }
    with edited(tmp_path) as (config, tensors):
        config["weight_mode"] = "fused"
        for block in ("backbone.blocks.0", "backbone.blocks.1"):
            for name, parts in fused.items():
                for kind in ("weight", "bias"):
                    pieces = [tensors.pop(f"{block}.{part}.{kind}") for part in parts]
                    tensors[f"{block}.{name}.{kind}"] = torch.cat(pieces)
    assert distance(load_folder(tmp_path), logits(original, ids(2, 9)), ids(2, 9)) <= TOLERANCE


MAMBA_SSM: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("mamba", {"hidden_size": 24, "state_size": 16, "num_hidden_layers": 2}, {"ssm_cfg": {}}),
    ("mamba", {"hidden_size": 21, "state_size": 7, "num_hidden_layers": 1, "conv_kernel": 3, "time_step_rank": 3}, {
        "ssm_cfg": {"d_state": 7, "d_conv": 3, "dt_rank": 3},
    }),
    ("mamba2", {**MAMBA2, "conv_kernel": 3, "tie_word_embeddings": True}, {
        "ssm_cfg": {"layer": "Mamba2", "headdim": 8, "ngroups": 2, "d_state": 5, "d_conv": 3},
    }),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "settings", "other"), MAMBA_SSM)
def test_checkpoints_of_mamba_ssm(tmp_path: Path, kind: str, settings: dict[str, Any], other: dict[str, Any]) -> None:
    """Its configuration, the embedding in the singular, and the tied head saved too."""
    original = written(tmp_path, kind, settings)
    with edited(tmp_path) as (config, tensors):
        config.clear()
        config |= {"d_model": settings["hidden_size"], "n_layer": settings["num_hidden_layers"], **other}
        config |= {"vocab_size": 58, "rms_norm": True, "pad_vocab_size_multiple": VOCABULARY}
        tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
        tensors["lm_head.weight"] = tensors["backbone.embedding.weight"].clone()
    assert distance(load_folder(tmp_path), logits(original, ids(2, 9)), ids(2, 9)) <= TOLERANCE
