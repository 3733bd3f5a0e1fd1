"""The training tool on a data set made up here: it learns, it repeats itself, and it says what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from isobit.quant.zoo import classifier
from isobit.tools.train_zoo import TASKS, augment_motion, augment_speech, evaluate, main, moved, read


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """har_spsw.npz in a folder that ISOBIT_DATA names: 320 windows whose class is the channel with an offset."""
    random = np.random.RandomState(0)
    y = random.randint(0, 5, 320)
    x = random.normal(0, 100, (320, 64, 6))
    x[np.arange(320), :, y] += 1500
    split = np.repeat(np.arange(3), (192, 64, 64)).astype(np.uint8)
    np.savez(tmp_path / "har_spsw.npz", x=x.astype(np.int16), y=y.astype(np.uint8), split=split)
    monkeypatch.setenv("ISOBIT_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("family", ["gru", "mingru"])
def test_trains_and_repeats(data: Path, family: str) -> None:
    outputs = [data / f"{run}.safetensors" for run in (1, 2)]
    for out in outputs:
        result = CliRunner().invoke(main, ["har", family, "--out", str(out), "--epochs", "4"])
        assert result.exit_code == 0, result.output
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    model: classifier.SequenceClassifier = getattr(classifier, f"har_{family}")()
    model.load_state_dict(load_file(outputs[0]))
    assert evaluate(model, read(TASKS["har"])[2])[0] > 0.9


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("family", list(classifier.LAYERS))
def test_classifiers_are_causal(task: str, family: str) -> None:
    model = getattr(classifier, f"{task}_{family}")().eval()
    x = torch.randn(2, 9, model.embed.in_features)
    assert model(x).shape == (2, 9, TASKS[task].classes)
    torch.testing.assert_close(model(x[:, :4]), model(x)[:, :4])


def test_missing_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["fsdd", "gru", "--out", str(tmp_path / "out.safetensors")]
    monkeypatch.delenv("ISOBIT_DATA", raising=False)
    assert "ISOBIT_DATA is not set" in CliRunner().invoke(main, arguments).output
    monkeypatch.setenv("ISOBIT_DATA", str(tmp_path))
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "fsdd_logmel.npz: there is no such file" in result.output
    assert not list(tmp_path.iterdir())


def test_augmentations() -> None:
    x = torch.arange(1.0, 5).reshape(1, 4, 1).repeat(3, 1, 1)
    assert moved(x, torch.tensor([0, 1, -2])).squeeze(-1).tolist() == [[1, 2, 3, 4], [0, 1, 2, 3], [3, 4, 0, 0]]
    torch.manual_seed(0)
    speech, motion = torch.rand(5, 64, 32) * 4, torch.randn(5, 64, 6)
    assert augment_speech(speech).shape == speech.shape
    lengths = augment_motion(motion)[:, :, :3].norm(dim=-1) / motion[:, :, :3].norm(dim=-1)
    assert ((lengths > 0.6) & (lengths < 1.4)).double().mean() > 0.95
