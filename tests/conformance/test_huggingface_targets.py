"""Folders of every Hugging Face architecture, quantized to W8A8 and equal on every target, outputs and states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isobit.quant.huggingface.load import load_folder
from isobit.quant.quantize import program_inputs, quantize
from isobit.quant.vectors import golden
from isobit.targets.verify import verify
from tests.spec.test_huggingface import CASES, T_MAX, VOCABULARY, silent, written

TARGETS = ["ort", "cpu", "c", "mcu", "hls"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "settings"), CASES, ids=[c[0] for c in CASES])
def test_a_folder_gives_the_same_integers_everywhere(
    name: str, kind: str, settings: dict[str, object], tmp_path: Path
) -> None:
    written(tmp_path, kind, settings)
    model = load_folder(tmp_path, T_MAX, silent)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (4, 16))
    made = quantize(model, ids, "w8a8", name="model")
    real = program_inputs(made.program, ids[:1].astype(np.float64))
    vectors = list(golden(made.program, real, steps=6))
    rows = verify(made.program, TARGETS, vectors).rows
    assert [(r.target, r.status, r.reason, str(r.divergence)) for r in rows if r.status != "exact"] == []
