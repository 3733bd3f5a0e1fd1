"""What can be wrong with a Hugging Face folder, and what the message must name; transformers is not needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from isobit.quant.errors import InputError
from isobit.quant.huggingface.load import ARCHITECTURES, load_folder

CONFIG = {
    "model_type": "mamba", "hidden_size": 4, "state_size": 3, "num_hidden_layers": 1, "vocab_size": 7, "conv_kernel": 2,
}  # fmt: skip
MIXER = {
    "in_proj.weight": (16, 4), "conv1d.weight": (8, 1, 2), "conv1d.bias": (8,), "x_proj.weight": (7, 8),
    "dt_proj.weight": (8, 1), "dt_proj.bias": (8,), "A_log": (8, 3), "D": (8,), "out_proj.weight": (4, 8),
}  # fmt: skip
SHAPES: dict[str, tuple[int, ...]] = {
    "backbone.embeddings.weight": (7, 4), "backbone.norm_f.weight": (4,), "backbone.layers.0.norm.weight": (4,),
    **{f"backbone.layers.0.mixer.{name}": shape for name, shape in MIXER.items()},
}  # fmt: skip
DT = "backbone.layers.0.mixer.dt_proj.bias"


def tensors() -> dict[str, Tensor]:
    return {name: torch.ones(shape) for name, shape in SHAPES.items()}


def write(folder: Path, config: Any = None, **changes: Any) -> Path:
    """A good folder with keys of its configuration changed; None removes a key."""
    values = CONFIG | changes if config is None else config
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    save_file(tensors(), folder / "model.safetensors")
    return folder


def test_a_good_folder(tmp_path: Path) -> None:
    logits = load_folder(write(tmp_path))(torch.tensor([[0, 6, 3]]))
    assert logits.shape == (1, 3, 7)


def test_transformers_is_not_imported(tmp_path: Path) -> None:
    write(tmp_path)
    script = (
        "import sys\n"
        "for name in ('transformers', 'tokenizers', 'huggingface_hub'): sys.modules[name] = None\n"
        "from isobit.quant.huggingface.load import load_folder\n"
        "load_folder(sys.argv[1])\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "llama"}, r'config\.json: model_type is "llama", expected one of mamba, .*kimi_linear'),
    ({"model_type": 3}, "model_type is 3, expected one of"),
    ({"hidden_size": None}, "hidden_size is missing, expected a whole number of at least 1"),
    ({"hidden_size": "4"}, 'hidden_size is "4", expected a whole number'),
    ({"hidden_size": True}, "hidden_size is true, expected a whole number"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected a whole number of at least 1"),
    ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is NaN, expected a finite number"),
    ({"layer_norm_epsilon": [1]}, r"layer_norm_epsilon is \[1\], expected a finite number"),
    ({"use_bias": 1}, "use_bias is 1, expected true or false"),
    ({"hidden_act": "mish"}, r'hidden_act is "mish", expected one of silu, .*gelu.*\(what isobit supports\)'),
    ({"time_step_rank": "some"}, 'time_step_rank is "some", expected a whole number'),
]


@pytest.mark.parametrize(("changes", "message"), CONFIGS, ids=[c[1][:40] for c in CONFIGS])
def test_configurations(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_folder(write(tmp_path, **changes))


ATTENTION = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "vocab_size": 7,
    "num_attention_heads": 2,
    "intermediate_size": 4,
}
LFM2 = {**ATTENTION, "model_type": "lfm2", "num_key_value_heads": 1}
BAMBA = {**ATTENTION, "model_type": "bamba", "attn_layer_indices": [], "mamba_n_heads": 4}
NEMOTRON = {
    **ATTENTION, "model_type": "nemotron_h", "num_key_value_heads": 1, "layers_block_type": ["moe"],
    "n_routed_experts": 4, "moe_intermediate_size": 3, "moe_shared_expert_intermediate_size": 3,
}  # fmt: skip
MINIMAX = {**ATTENTION, "model_type": "minimax", "num_key_value_heads": 1, "num_local_experts": 4}
QWEN = {**ATTENTION, "model_type": "qwen3_next", "num_key_value_heads": 1, "linear_num_value_heads": 4}
KIMI = {**ATTENTION, "model_type": "kimi_linear", "mlp_layer_types": ["dense"], "layer_types": ["full_attention"]}
MAMBA2 = {"model_type": "mamba2", "hidden_size": 8, "num_hidden_layers": 1, "num_heads": 4, "head_dim": 4}
GLA = {"model_type": "gla", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 7, "num_heads": 2}
DELTA = {**GLA, "model_type": "delta_net"}

ARCHITECTURE_CONFIGS: list[tuple[dict[str, Any], int | None, str]] = [
    (LFM2, None, r"its attention reads all earlier steps.*give t_max"),
    (LFM2, 0, "t_max is 0, expected a number of steps of at least 1"),
    (
        LFM2 | {"num_key_value_heads": 3},
        9,
        r"num_key_value_heads is 3, expected a divisor of num_attention_heads \(2\)",
    ),
    (
        LFM2 | {"rope_scaling": {"type": "linear", "factor": 2}},
        9,
        r'rope_scaling\.type is "linear", expected "default"',
    ),
    (LFM2 | {"rope_parameters": {"rope_type": "yarn"}}, 9, r'rope_parameters\.rope_type is "yarn"'),
    (LFM2 | {"rope_parameters": [1]}, 9, r"rope_parameters is \[1\], expected an object"),
    (LFM2 | {"hidden_size": 6}, 9, "heads of 3 channels, 3 of them rotated: expected even numbers"),
    (LFM2 | {"layer_types": ["conv", "conv"]}, 9, "layer_types is .*expected a list of 1 kinds of layer"),
    (LFM2 | {"layer_types": ["sliding_attention"]}, 9, "layer_types is .*expected only full_attention, conv"),
    (LFM2 | {"full_attn_idxs": "all"}, 9, 'full_attn_idxs is "all", expected a list of whole numbers'),
    (MAMBA2 | {"head_dim": 3}, None, "num_heads is 4, expected expand . hidden_size / head_dim"),
    (MAMBA2 | {"n_groups": 3}, None, r"n_groups is 3, expected a divisor of num_heads \(4\)"),
    (MAMBA2 | {"n_groups": 1, "time_step_limit": [1, 0]}, None, r"time_step_limit is \[1, 0\], expected two numbers"),
    (
        BAMBA | {"mamba_n_heads": 5},
        None,
        r"mamba_n_heads is 5, expected a divisor of mamba_expand . hidden_size \(16\)",
    ),
    (BAMBA | {"mamba_d_head": 3}, None, "mamba_d_head is 3, expected 4"),
    (BAMBA | {"mamba_n_groups": 3}, None, r"mamba_n_groups is 3, expected a divisor of mamba_n_heads \(4\)"),
    (NEMOTRON | {"n_group": 2}, None, r"n_group is 2, expected 1 \(what isobit supports\)"),
    (NEMOTRON | {"num_experts_per_tok": 5}, None, r"num_experts_per_tok is 5, expected at most n_routed_experts \(4\)"),
    (NEMOTRON | {"layers_block_type": None, "hybrid_override_pattern": "MX"}, None, 'pattern is "MX", expected .*M E'),
    (NEMOTRON | {"layers_block_type": None}, None, "hybrid_override_pattern is missing"),
    (MINIMAX | {"num_experts_per_tok": 5}, 9, "num_experts_per_tok is 5, expected at most num_local_experts"),
    (QWEN | {"num_experts": 4, "num_experts_per_tok": 5}, 9, "num_experts_per_tok is 5, expected at most num_experts"),
    (QWEN | {"num_experts": 0, "linear_num_key_heads": 3}, 9, "linear_num_key_heads is 3, expected a divisor"),
    (KIMI | {"num_key_value_heads": 1}, 9, "num_key_value_heads is 1, expected 2"),
    (KIMI | {"mlp_layer_types": ["sparse"], "num_expert_group": 2}, 9, "num_expert_group is 2, expected 1"),
    (
        KIMI | {"layer_types": None, "linear_attn_config": {"full_attn_layers": [1], "kda_layers": [1]}},
        9,
        r"linear_attn_config\.kda_layers is \[1\], expected with full_attn_layers, each of 1 to 1 once",
    ),
    ({"model_type": "recurrent_gemma", **ATTENTION, "block_types": ["mamba"]}, 9, r'block_types is \["mamba"\]'),
    (
        {"model_type": "xlstm", **ATTENTION, "num_heads": 3},
        None,
        r"num_heads is 3, expected a divisor of qk_dim_factor",
    ),
    (GLA | {"attn": {"layers": [0]}}, None, "attn is .*expected null"),
    (GLA | {"num_kv_heads": 1}, None, "num_kv_heads is 1, expected 2"),
    (GLA | {"expand_k": 0.4}, None, r"num_heads is 2, expected a divisor of expand_k . hidden_size \(3\)"),
    (GLA | {"model_type": "retnet", "expand_k": 0.75}, None, r"even number of key channels \(3\)"),
    (GLA | {"feature_map": "elu"}, None, 'feature_map is "elu", expected one of relu'),
    (DELTA | {"qk_norm": "sum"}, None, 'qk_norm is "sum", expected "l2"'),
    (DELTA | {"use_beta": False}, None, "use_beta is false, expected true"),
    (
        GLA | {"model_type": "gated_deltanet", "num_v_heads": 3},
        None,
        "num_v_heads is 3, expected a multiple of num_heads",
    ),
]


@pytest.mark.parametrize(
    ("config", "t_max", "message"), ARCHITECTURE_CONFIGS, ids=[c[2][:60] for c in ARCHITECTURE_CONFIGS]
)
def test_configurations_of_architectures(
    tmp_path: Path, config: dict[str, Any], t_max: int | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_folder(write(tmp_path, {"vocab_size": 7} | config), t_max=t_max)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_names_a_missing_size(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match=r"config\.json: \w+ is missing, expected"):
        load_folder(write(tmp_path, {"model_type": kind}), t_max=9)


MAMBA_SSM: list[tuple[dict[str, Any], str]] = [
    ({"d_intermediate": 8}, "d_intermediate is 8, expected 0"),
    ({"attn_layer_idx": [1]}, r"attn_layer_idx is \[1\], expected \[\]"),
    ({"ssm_cfg": {"layer": "Mamba3"}}, r'ssm_cfg\.layer is "Mamba3", expected one of Mamba1, Mamba2'),
    ({"ssm_cfg": {"layer": "Mamba2", "headdim": 3}}, r"ssm_cfg\.headdim is 3, expected a divisor of expand . d_model"),
    ({"ssm_cfg": {"layer": "Mamba2", "headdim": 4, "rmsnorm": False}}, r"ssm_cfg\.rmsnorm is false, expected true"),
]


@pytest.mark.parametrize(("changes", "message"), MAMBA_SSM)
def test_configurations_of_mamba_ssm(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = {"d_model": 4, "n_layer": 1, "vocab_size": 7, **changes}
    with pytest.raises(InputError, match=message):
        load_folder(write(tmp_path, config))


TENSORS: list[tuple[Callable[[dict[str, Tensor]], object], str]] = [
    (lambda t: t.pop(DT), r"does not fit the model: .*dt_proj\.bias is missing"),
    (lambda t: t.pop("backbone.embeddings.weight"), r"embeddings\.weight is missing"),
    (lambda t: t.update({"extra.weight": torch.ones(2)}), r"extra\.weight is not in the model"),
    (lambda t: t.update({DT: torch.ones(9)}), r"dt_proj\.bias has shape \(9,\), expected \(8,\)"),
    (lambda t: t[DT].__setitem__(3, torch.nan), r"dt_proj\.bias: 1 of 8 values are NaN, infinite"),
    (lambda t: t[DT].__setitem__(3, torch.inf), r"dt_proj\.bias: 1 of 8 values are NaN, infinite"),
    (lambda t: t.update({DT: torch.full((8,), 1e300, dtype=torch.float64)}), "8 of 8 values are .*beyond float32"),
    (lambda t: t.update({DT: torch.ones(8, dtype=torch.int8)}), r"dt_proj\.bias is I8, expected one of F64, F32"),
    (lambda t: t.update({DT: torch.ones(8).to(torch.float8_e4m3fn)}), "is F8_E4M3, .*quantized already"),
    (
        lambda t: t.update({"lm_head.weight": torch.zeros(7, 4)}),
        "lm_head.weight is backbone.embeddings.weight .*differ",
    ),
    (
        lambda t: t.update({"backbone.embedding.weight": torch.ones(7, 4)}),
        r"tensors backbone\.embedding.*are both backbone\.embeddings\.weight",
    ),
]


@pytest.mark.parametrize(("change", "message"), TENSORS, ids=[t[1][:40] for t in TENSORS])
def test_tensors(tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str) -> None:
    changed = tensors()
    change(changed)
    save_file(changed, write(tmp_path) / "model.safetensors")
    with pytest.raises(InputError, match=message):
        load_folder(tmp_path)


def test_sizes_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"embeddings\.weight has shape \(7, 4\), expected \(7, 1000000\)"):
        load_folder(write(tmp_path, hidden_size=1000000))


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent: expected a folder with config\.json"):
        load_folder(tmp_path / "absent")
    with pytest.raises(InputError, match=r"config\.json: there is no such file"):
        load_folder(tmp_path)
    write(tmp_path)
    with pytest.raises(InputError, match="expected a folder"):
        load_folder(tmp_path / "config.json")
    for text, message in (
        ("{", "not a readable JSON file"),
        ("[]", "a JSON list, expected an object"),
        ('"\xff"', "not a readable JSON file"),
    ):
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=message):
            load_folder(tmp_path)


def test_weights_that_are_not_safetensors(tmp_path: Path) -> None:
    weights = write(tmp_path) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    with pytest.raises(InputError, match=r"model\.safetensors: not a readable .safetensors file"):
        load_folder(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match=r"there is no .safetensors file; expected model\.safetensors"):
        load_folder(tmp_path)
    torch.save(tensors(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pickles \(pytorch_model\.bin\).*can run code.*save_file"):
        load_folder(tmp_path)


def shards(folder: Path) -> dict[str, str]:
    """The good folder in two shards; the index's weight_map."""
    whole = load_file(write(folder) / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for i, names in enumerate((sorted(whole)[::2], sorted(whole)[1::2])):
        save_file({name: whole[name] for name in names}, folder / f"part{i}.safetensors")
        weight_map |= dict.fromkeys(names, f"part{i}.safetensors")
    return weight_map


def index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards(tmp_path: Path) -> None:
    weight_map = shards(tmp_path)
    load_folder(tmp_path)
    index(tmp_path, weight_map)
    load_folder(tmp_path)
    for changes, message in (
        ({DT: "part2.safetensors"}, "names part2.safetensors, and there is no such file"),
        ({DT: "../part0.safetensors"}, r"names '\.\./part0\.safetensors', expected a .safetensors file in the same"),
        ({DT: "part0.bin"}, r"names 'part0\.bin', expected a .safetensors file"),
        ({"extra": "part0.safetensors"}, "extra is not in the file that weight_map names"),
        ({DT: None}, "no object of file names"),
    ):
        index(tmp_path, weight_map | changes)
        with pytest.raises(InputError, match=message):
            load_folder(tmp_path)
    index(tmp_path, {name: file for name, file in weight_map.items() if name != DT})
    with pytest.raises(InputError, match=r"dt_proj\.bias is in the files, but not in weight_map"):
        load_folder(tmp_path)


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    shards(tmp_path)
    save_file({DT: torch.ones(8)}, tmp_path / "part2.safetensors")
    with pytest.raises(InputError, match=r"part2\.safetensors: tensor .*dt_proj\.bias is in part\d\.safetensors too"):
        load_folder(tmp_path)
