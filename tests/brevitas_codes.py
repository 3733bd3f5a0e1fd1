"""The integers of a Brevitas model, as Brevitas makes them, and those of its Program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from isobit.quant.interpret import interpret
from isobit.quant.program import Array, Arrays
from isobit.quant.quantize import Quantized, program_inputs


def samples(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape, scale=2).astype(np.float32))


def codes_of(model: nn.Module, x: torch.Tensor) -> dict[str, list[Array]]:
    """What Brevitas itself calls the integers of its quantizers of activations, less their zero point, by path."""
    made: dict[str, list[Array]] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(proxy: nn.Module, args: object, y: Any) -> None:
            made.setdefault(name, []).append(y.int().numpy().astype(np.int64) - int(y.zero_point))

        return hook

    proxies = {k: m for k, m in model.named_modules() if k.endswith("_quant") and "Act" in type(m).__name__}
    hooks = [m.register_forward_hook(record(k)) for k, m in proxies.items() if m.is_quant_enabled]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return made


def taps_of(made: Quantized, x: torch.Tensor) -> Arrays:
    """Every value of the Program, from the input on, the input included."""
    real = x.double().numpy() if x.ndim < 4 else x.double().numpy()[:, None]
    taps = program_inputs(made.program, real)
    interpret(made.program, dict(taps), taps=taps)
    return taps


def assert_equal_everywhere(model: nn.Module, made: Quantized, x: torch.Tensor) -> None:
    """Without any help on the way: all integers from the input to the output."""
    taps, expected = taps_of(made, x), codes_of(model, x)
    assert expected
    quantizers = [n for n in made.graph.nodes if n.op == "fake_quantize"]
    for name, arrays in expected.items():
        same = [n.output for n in quantizers if n.text("quantizer") == name]
        assert len(same) == len(arrays)
        for value, codes in zip(same, arrays, strict=True):
            place = "y" if value == made.graph.output else value if value in taps else made.program.inputs[0].name
            assert np.array_equal(taps[place].ravel(), codes.ravel()), name


def assert_agrees(made: Quantized, quantizers: int) -> None:
    """As `quantize` itself compared."""
    rows = [r for r in made.trained if r.exact]
    assert len(rows) == quantizers
    assert all(r.values > 0 for r in rows)
    assert [(r.quantizer, r.differ) for r in rows if r.differ] == []
