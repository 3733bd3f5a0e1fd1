"""The zoo's sequence models: causal, of any length, differentiable, captured by few operators.

Both sides of each comparison are floats that sum in different orders, so the claim is closeness.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export

from isobit.quant.capture.whole_layers import whole_cells
from isobit.quant.zoo.sequence_families import SEQUENCE_FAMILIES

OPERATORS = {
    "aten.add.Tensor",
    "aten.cat.default",
    "aten.chunk.default",
    "aten.div.Tensor",
    "aten.elu.default",
    "aten.exp.default",
    "aten.expand.default",
    "aten.flatten.using_ints",
    "aten.gelu.default",
    "aten.layer_norm.default",
    "aten.linear.default",
    "aten.log_sigmoid.default",
    "aten.mul.Tensor",
    "aten.neg.default",
    "aten.relu.default",
    "aten.rms_norm.default",
    "aten.rsub.Scalar",
    "aten.select.int",
    "aten.sigmoid.default",
    "aten.silu.default",
    "aten.slice.Tensor",
    "aten.softmax.int",
    "aten.softplus.default",
    "aten.split_with_sizes.default",
    "aten.sqrt.default",
    "aten.square.default",
    "aten.sub.Tensor",
    "aten.sum.dim_IntList",
    "aten.tanh.default",
    "aten.unflatten.int",
    "aten.unsqueeze.default",
}
"""What a model may apply to values that depend on its input, besides the operators of isobit.quant.nn."""

CELLS = ("LSTM", "GRU")
"""Families whose layers of torch are kept whole by an operator that only traces."""

SIZES = [(name, size) for name in SEQUENCE_FAMILIES for size in ("tiny", "odd")]


def built(name: str, size: str) -> tuple[nn.Module, int]:
    """A model in float64 and eval mode, and its number of input channels."""
    make, shape = SEQUENCE_FAMILIES[name].sizes()[size == "odd"]
    torch.manual_seed(0)
    assert shape[0] == "T"
    return make().double().eval(), int(shape[1])


def normal(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def captured(module: nn.Module, channels: int) -> ExportedProgram:
    dims = ({0: Dim("B"), 1: Dim("T")},)
    with whole_cells(module):
        return export(module, (normal(2, 3, channels),), dynamic_shapes=dims, strict=False)


def from_input(exported: ExportedProgram) -> Iterator[fx.Node]:
    """The calls whose result is used and depends on the model's input."""
    signature = exported.graph_signature
    depends = {n for n in exported.graph.nodes if n.name in signature.user_inputs}
    for n in exported.graph.nodes:
        if n.op == "call_function" and depends.intersection(n.all_input_nodes):
            depends.add(n)
            if n.users:
                yield n


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_causal_at_any_length(name: str, size: str) -> None:
    model, channels = built(name, size)
    x = normal(2, 17, channels)
    changed = torch.cat([x[:, :9], normal(2, 8, channels, seed=2)], dim=1)
    with torch.no_grad():
        y, other = model(x), model(changed)
        assert y.shape[:2] == (2, 17)
        assert y.isfinite().all()
        torch.testing.assert_close(other[:, :9], y[:, :9])
        assert ((other - y)[:, 9:].abs().amax((0, 2)) > 1e-6).all()
        for steps in (1, 2, 9):
            torch.testing.assert_close(model(x[:, :steps]), y[:, :steps])


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_the_past_matters(name: str, size: str) -> None:
    model, channels = built(name, size)
    x = normal(2, 17, channels)
    with torch.no_grad():
        forgetful = model(torch.cat([normal(2, 1, channels, seed=2), x[:, 1:]], dim=1))
        assert ((forgetful - model(x))[:, 1:].abs().amax((0, 2)) > 1e-9).all()


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_every_parameter_has_a_gradient(name: str, size: str) -> None:
    model, channels = built(name, size)
    x = normal(2, 5, channels).requires_grad_()
    y = model(x)
    (y * normal(*y.shape, seed=2)).sum().backward()
    for parameter_name, parameter in [("the input", x), *model.named_parameters()]:
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert (parameter.grad != 0).any(), parameter_name


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_captured_by_few_operators_that_keep_batch_and_time(name: str, size: str) -> None:
    model, channels = built(name, size)
    exported = captured(model, channels)
    batch_and_time = next(n for n in exported.graph.nodes if n.name in exported.graph_signature.user_inputs)
    expected = str(tuple(batch_and_time.meta["val"].shape[:2]))
    for n in from_input(exported):
        if n.target.__name__ != "getitem":  # type: ignore[union-attr]
            assert str(n.target) in OPERATORS or str(n.target).startswith("isobit."), n
        values = n.meta["val"] if isinstance(n.meta["val"], list | tuple) else [n.meta["val"]]
        assert {str(tuple(value.shape[:2])) for value in values} == {expected}, n
    if name not in CELLS:
        x = normal(3, 11, channels)
        with torch.no_grad():
            torch.testing.assert_close(exported.module()(x), model(x))


@pytest.mark.parametrize("name", SEQUENCE_FAMILIES)
def test_long_normal_inputs_stay_finite(name: str) -> None:
    model, channels = built(name, "tiny")
    with torch.no_grad():
        y = model(normal(2, 256, channels))
    assert y.isfinite().all()
    assert y.std() > 0.01
