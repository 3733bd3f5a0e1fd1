"""A Brevitas model from the command line, as docs/brevitas.md shows it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from isobit.export.onnx.load import load
from tests.brevitas_models import trained
from tests.commandline import isobit

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "brevitas.md"


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the document's model, trained a little, its weights and samples."""
    found = re.search(r"```python\n# gesture.py\n(.*?)```", DOCUMENT.read_text(), re.S)
    assert found is not None
    (tmp_path / "gesture.py").write_text(found[1])
    space: dict[str, object] = {}
    exec(found[1], space)
    torch.manual_seed(0)
    x = torch.randn(24, 12, 6)
    model = trained(space["make"](), x)  # type: ignore[operator]
    save_file(model.state_dict(), tmp_path / "gesture.safetensors")
    np.savez(tmp_path / "samples.npz", x=x.numpy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "gesture", raising=False)
    return tmp_path


@pytest.mark.needs("gcc")
def test_the_document_s_model_from_file_to_verified_code(shown: Path) -> None:
    arguments = ("gesture:make", "--weights", "gesture.safetensors", "--calib", "samples.npz", "-o", "m.onnx")
    made = isobit("quantize", *arguments)
    assert made.code == 0, made.err
    assert "brevitas, weights                     0 of 288 integers differ" in made.out
    assert re.search(r"brevitas, activations +0 of \d+ integers differ, 3 quantizers", made.out)
    facts = isobit("quantize", *arguments, "--json").json
    rows = facts["quantizers"]
    assert [r["quantizer"] for r in rows] == ["0.act_quant", "2.act_quant", "4.act_quant", "5.output_quant"]
    assert [r["exact"] for r in rows] == [True, True, False, True]
    assert [r["differ"] for r in rows if r["exact"]] == [0, 0, 0]
    verified = isobit("verify", "m.onnx", "--data", "samples.npz", "--targets", "interpret,ort,c", "--json").json
    assert [row["status"] for row in verified["targets"]] == ["exact"] * 3
    source = ("--model", "gesture:make", "--weights", "gesture.safetensors")
    assert isobit("build", "m.onnx", "--target", "c", "-o", "firmware").code == 0
    assert "in float32, rounded half_even" in (shown / "firmware" / "make.h").read_text()
    inspected = isobit("inspect", "m.onnx", "--data", "samples.npz", *source, "--json")
    assert inspected.json["snr_db"]["y"] is None, "the float graph has the same quantizers, and the same integers"


def test_the_host_rounds_a_real_input_as_the_model_does(shown: Path) -> None:
    """Ties and everything else, by `isobit run`: it reads real numbers."""
    made = isobit(
        "quantize", "gesture:make", "--weights", "gesture.safetensors", "--calib", "samples.npz", "-o", "m.onnx"
    )
    assert made.code == 0, made.err
    (entry,) = load(shown / "m.onnx").inputs
    assert (entry.rounding, entry.zero) == ("half_even", 0)
    assert entry.type.scale is not None
    with np.load(shown / "samples.npz") as samples:
        x = samples["x"]
    expected = np.clip(np.rint(x / np.float32(entry.type.scale)), -128, 127)
    np.savez(shown / "codes.npz", x=expected.astype(np.int64))
    for data, *raw in (("samples.npz",), ("codes.npz", "--raw")):
        assert isobit("run", "m.onnx", "--data", data, *raw, "-o", f"y_{data}").code == 0
    with np.load(shown / "y_samples.npz") as a, np.load(shown / "y_codes.npz") as b:
        assert np.array_equal(a["y"], b["y"])


def test_weights_without_their_scales_are_refused(shown: Path) -> None:
    kept = {k: v for k, v in load_file(shown / "gesture.safetensors").items() if "act_quant" not in k}
    save_file(kept, shown / "bare.safetensors")
    made = isobit("quantize", "gesture:make", "--weights", "bare.safetensors", "--calib", "samples.npz", "-o", "m.onnx")
    assert made.code == 2
    assert "0.act_quant (ActQuantProxyFromInjector)" in made.err
    assert "has no value yet, expected a trained one" in made.err


def test_brevitas_is_not_imported_for_a_model_without_it() -> None:
    code = (
        "import sys, numpy, torch; from isobit.quant.quantize import quantize; "
        "quantize(torch.nn.Linear(3, 3), numpy.ones((2, 3, 3)), name='m'); "
        "import isobit.quant.capture.brevitas; sys.exit('brevitas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
