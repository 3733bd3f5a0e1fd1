"""The ways in, from the command line: a module, a .pt2 file, a folder, a family; sequences, identifiers, images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.export import Dim, export, save

from isobit.export.onnx.load import load
from isobit.quant.huggingface.load import load_folder
from isobit.quant.interpret import interpret
from isobit.quant.zoo.families import FAMILIES
from tests.commandline import Result, isobit

MODULE = '''\
import torch
from torch import nn

class Classifier(nn.Module):
    """A loop over time, and logits of the last step; its embedding is tied to its head where it takes identifiers."""

    def __init__(self, words=0):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(words, 8) if words else nn.Linear(4, 8)
        self.cell = nn.GRUCell(8, 8)
        self.head = nn.Linear(8, words or 3, bias=False)
        if words:
            self.head.weight = self.embed.weight

    def forward(self, x):
        x = self.embed(x)
        h = x.new_zeros(x.shape[0], 8)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h)

def sequences():
    return Classifier()

def identifiers():
    return Classifier(11)

def images():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3))
'''

CONFIG = {
    "model_type": "mamba", "hidden_size": 8, "state_size": 3, "num_hidden_layers": 1, "vocab_size": 11,
    "conv_kernel": 2,
}  # fmt: skip
SHAPES: dict[str, tuple[int, ...]] = {
    "embeddings.weight": (11, 8), "norm_f.weight": (8,), "layers.0.norm.weight": (8,),
    "layers.0.mixer.in_proj.weight": (32, 8), "layers.0.mixer.conv1d.weight": (16, 1, 2),
    "layers.0.mixer.conv1d.bias": (16,), "layers.0.mixer.x_proj.weight": (7, 16),
    "layers.0.mixer.dt_proj.weight": (16, 1), "layers.0.mixer.dt_proj.bias": (16,),
    "layers.0.mixer.A_log": (16, 3), "layers.0.mixer.D": (16,), "layers.0.mixer.out_proj.weight": (8, 16),
}  # fmt: skip


def succeeded(result: Result) -> Result:
    assert result.code == 0, f"{result.out}\n{result.err}"
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's module, a Hugging Face folder, and samples of every kind, with labels."""
    folder, random = tmp_path_factory.mktemp("ways_in"), np.random.default_rng(0)
    (folder / "ways_in.py").write_text(MODULE)
    labels = random.integers(0, 3, 12)
    np.savez(folder / "sequences.npz", x=random.normal(size=(12, 9, 4)).astype(np.float32), y=labels)
    np.savez(folder / "identifiers.npz", x=random.integers(0, 11, (12, 9)), y=labels)
    np.savez(folder / "images.npz", x=random.normal(size=(12, 1, 6, 6)).astype(np.float32), y=labels)
    torch.manual_seed(0)
    (folder / "mamba").mkdir()
    (folder / "mamba" / "config.json").write_text(json.dumps(CONFIG))
    tensors = {f"backbone.{name}": torch.randn(shape) / 2 for name, shape in SHAPES.items()}
    save_file(tensors, folder / "mamba" / "model.safetensors")
    return folder


@pytest.fixture(autouse=True)
def there(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)


MODELS = {
    "ways_in:sequences": "sequences",
    "ways_in:identifiers": "identifiers",
    "ways_in:images": "images",
    "mamba": "identifiers",
    "zoo:Mamba:odd": "floats",
}


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("model", MODELS)
def test_every_command_takes_what_the_model_takes(model: str, tmp_path: Path) -> None:
    kind = MODELS[model]
    data = Path(f"{kind}.npz").resolve()
    if kind == "floats":
        data = tmp_path / "floats.npz"
        np.savez(data, x=np.random.default_rng(1).normal(size=(4, 9, 21)), y=np.zeros(4, np.int64))
    program = tmp_path / "m.onnx"
    facts = succeeded(isobit("quantize", model, "--calib", data, "-o", program, "--t-max", 16, "--json")).json
    assert 0 < facts["capture_error"] < 1e-5
    assert load(program).name == {"mamba": "mamba", "zoo:Mamba:odd": "Mamba"}.get(model, kind)

    succeeded(isobit("run", program, "--data", data, "-o", tmp_path / "y.npz"))
    with np.load(tmp_path / "y.npz") as got, np.load(data) as given:
        steps = 1 if kind == "images" else given["x"].shape[1]
        assert got["y"].shape[:2] == (len(given["x"]), steps)
        if kind == "identifiers":
            expected = interpret(load(program), {"x": given["x"].astype(np.int64)})[0]["y"]
            np.testing.assert_array_equal(got["y"], expected)
    accuracy = succeeded(isobit("accuracy", program, "--data", data, "--json")).json
    assert accuracy["samples"] == len(np.load(data)["y"])
    command = ("inspect", program, "--data", data, "--model", model, "--t-max", 16, "--json")
    ratios = succeeded(isobit(*command)).json["snr_db"]
    assert ratios["y"] > 12, ratios
    rows = succeeded(isobit("verify", program, "--data", data, "--targets", "c", "--json")).json["targets"]
    assert [row["status"] for row in rows] == ["exact"]


def test_wrong_data_for_each_kind(tmp_path: Path) -> None:
    for model, kind in (("ways_in:images", "images"), ("ways_in:identifiers", "identifiers")):
        succeeded(isobit("quantize", model, "--calib", f"{kind}.npz", "-o", tmp_path / f"{kind}.onnx"))
    x = np.load("images.npz")["x"]
    for name, array, program, message in (
        ("flat", x.reshape(12, 36), "images", r"expected shape (samples, T, 6, 6), none of them 0, got (12, 36)"),
        ("wide", x[..., :5], "images", "got (12, 1, 6, 5)"),
        ("real", np.load("identifiers.npz")["x"] + 0.5, "identifiers", "expected identifiers, integers from 0 to 15"),
        ("large", np.full((2, 3), 16), "identifiers", "expected identifiers from 0 to 15, got 16 to 16"),
        ("negative", np.full((2, 3), -1), "identifiers", "expected identifiers from 0 to 15, got -1 to -1"),
    ):
        np.savez(tmp_path / f"{name}.npz", x=array)
        out = tmp_path / "new.npz"
        refused = isobit("run", tmp_path / f"{program}.onnx", "--data", tmp_path / f"{name}.npz", "-o", out)
        assert refused.code == 2
        assert message in refused.err
        assert not out.exists()


def test_colour_images_need_no_axis_of_time(tmp_path: Path) -> None:
    x = np.random.default_rng(2).normal(size=(6, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    np.savez(tmp_path / "steps.npz", x=x[:, None])
    program, family = tmp_path / "m.onnx", "zoo:MobileNetV2"
    succeeded(isobit("quantize", family, "--calib", tmp_path / "x.npz", "-o", program))
    for name in ("x", "steps"):
        succeeded(isobit("run", program, "--data", tmp_path / f"{name}.npz", "-o", tmp_path / f"y_{name}.npz"))
    np.testing.assert_array_equal(np.load(tmp_path / "y_x.npz")["y"], np.load(tmp_path / "y_steps.npz")["y"])
    np.savez(tmp_path / "half.npz", x=x[..., :4])
    refused = isobit("run", program, "--data", tmp_path / "half.npz", "-o", tmp_path / "new.npz")
    assert refused.code == 2
    assert "expected shape (samples, T, 3, 8, 8) or (samples, 3, 8, 8), none of them 0" in refused.err


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.lstm, self.head = nn.Linear(4, 8), nn.LSTM(8, 8, 2, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.lstm(torch.relu(self.inner(x)))[0])
        return y + x


def test_a_file_is_what_its_module_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nn.LSTM can only be exported for a fixed number of steps; the batch may be fixed or not."""
    example, digests = torch.zeros(3, 7, 4), []
    options = ("--calib", "sequences.npz", "--name", "m", "--json", "-o")
    for name, dynamic in (("fixed", None), ("batch", ({0: Dim("B")},))):
        save(export(Mixer().eval(), (example,), dynamic_shapes=dynamic), tmp_path / f"{name}.pt2")
        made = succeeded(isobit("quantize", tmp_path / f"{name}.pt2", *options, tmp_path / f"{name}.onnx")).json
        assert made["capture_error"] < 1e-5
        digests.append(made["digest"])
    (tmp_path / "mixers.py").write_text("from tests.e2e.test_import import Mixer\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    digests.append(succeeded(isobit("quantize", "mixers:Mixer", *options, tmp_path / "module.onnx")).json["digest"])
    assert len(set(digests)) == 1


def test_weights_beside_a_factory_and_a_family(tmp_path: Path) -> None:
    """A tensor that is another one too may be given once; other weights give another model."""
    random = torch.Generator().manual_seed(1)
    tied = {
        "embed.weight": torch.randn(11, 8, generator=random), "cell.bias_ih": torch.zeros(24),
        "cell.weight_ih": torch.randn(24, 8, generator=random) / 3, "cell.bias_hh": torch.zeros(24),
        "cell.weight_hh": torch.randn(24, 8, generator=random) / 3,
    }  # fmt: skip
    save_file(tied, tmp_path / "tied.safetensors")
    command = ("quantize", "ways_in:identifiers", "--calib", "identifiers.npz", "--json", "-o", tmp_path / "m.onnx")
    plain = succeeded(isobit(*command)).json["digest"]
    assert succeeded(isobit(*command, "--weights", tmp_path / "tied.safetensors")).json["digest"] != plain

    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).normal(size=(4, 9, 16)))
    family = ("quantize", "zoo:Mamba", "--calib", tmp_path / "x.npz", "-o", tmp_path / "z.onnx")
    assert "random (seed 0)" in succeeded(isobit(*family)).err
    save_file(FAMILIES["Mamba"].make().state_dict(), tmp_path / "z.safetensors")
    assert "random" not in succeeded(isobit(*family, "--weights", tmp_path / "z.safetensors")).err


def test_a_folder_and_its_pickled_copy(tmp_path: Path) -> None:
    shutil.copytree("mamba", tmp_path / "pickled")
    tensors = load_file("mamba/model.safetensors")
    torch.save(tensors, tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    refused = isobit("quantize", tmp_path / "pickled", "--calib", "identifiers.npz", "-o", tmp_path / "m.onnx")
    assert refused.code == 2
    assert "a pickle can run code" in refused.err
    assert not (tmp_path / "m.onnx").exists()
    assert load_folder("mamba")(torch.zeros(1, 2, dtype=torch.int64)).shape == (1, 2, 11)
