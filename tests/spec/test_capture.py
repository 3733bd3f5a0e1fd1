"""The captured graph: its operators, names and parameters, and its floats against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.calibrate.evaluate import regions
from isobit.quant.calibrate.observe import float_outputs, observe
from isobit.quant.capture.capture import capture, disagreement
from isobit.quant.capture.graph import Graph
from isobit.quant.nn import selective_recurrence_states
from isobit.quant.zoo import digits
from isobit.quant.zoo.mamba import MambaBlock


@pytest.fixture(scope="module")
def graph() -> Graph:
    return capture(digits.load(), (2, 8, 8), "digits")


def test_operators_of_the_digits_model(graph: Graph) -> None:
    first = [(n.op, n.output, n.loc) for n in graph.nodes if n.loc.startswith("layers.0")]
    mixer = "layers.0.mixer"
    assert first == [
        ("rms_norm", "layers.0.norm", "layers.0.norm"),
        ("linear", f"{mixer}.in_proj.x", f"{mixer}.in_proj"),
        ("linear", f"{mixer}.in_proj.z", f"{mixer}.in_proj"),
        ("causal_conv1d", f"{mixer}.conv1d", f"{mixer}.conv1d"),
        ("silu", f"{mixer}.silu", mixer),
        ("linear", f"{mixer}.x_proj.dt_proj_input", f"{mixer}.x_proj"),
        ("linear", f"{mixer}.x_proj.B", f"{mixer}.x_proj"),
        ("linear", f"{mixer}.x_proj.C", f"{mixer}.x_proj"),
        ("linear", f"{mixer}.dt_proj", f"{mixer}.dt_proj"),
        ("softplus", f"{mixer}.softplus", mixer),
        ("selective_recurrence", f"{mixer}.recurrence", f"{mixer}.recurrence"),
        ("scale", f"{mixer}.scale", mixer),
        ("add", f"{mixer}.add", mixer),
        ("silu", f"{mixer}.silu_2", mixer),
        ("mul", f"{mixer}.mul", mixer),
        ("linear", f"{mixer}.out_proj", f"{mixer}.out_proj"),
        ("add", "layers.0.add", "layers.0"),
    ]
    assert (graph.input, graph.output) == ("x", "head")


def test_parameters_have_the_users_names_or_their_formula(graph: Graph) -> None:
    model = digits.load()
    a = -torch.exp(model.get_parameter("layers.0.mixer.A_log").double()).detach().numpy()
    np.testing.assert_allclose(graph.parameters["neg(exp(layers.0.mixer.A_log))"], a, rtol=1e-6)
    rows = graph.parameters["layers.0.mixer.x_proj.weight[2:18]"]
    np.testing.assert_array_equal(rows, model.get_parameter("layers.0.mixer.x_proj.weight").detach().numpy()[2:18])
    assert "layers.0.mixer.x_proj.weight" not in graph.parameters


def test_floats_agree_with_torch(graph: Graph) -> None:
    x = digits.data().calibration.x.astype(np.float64) * digits.INPUT_SCALE
    assert disagreement(graph, digits.load(), x) < 1e-5


class Corners(nn.Module):
    """Split, chunk, dropout, a functional layer, a product with a number, digits in paths, and a layer called `y`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.RMSNorm(6, elementwise_affine=False))
        self.y = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.y(self.layers(x))
        a, b = h.chunk(2, dim=-1)
        _, c, d = h.split([2, 4, 2], dim=-1)
        weight = torch.cat([self.y.weight[:2, :2], self.y.weight[:2, :2]])
        out: Tensor = 0.5 * (a * b) + c * functional.silu(functional.linear(d, weight))
        return out


def test_corners_of_the_operators() -> None:
    torch.manual_seed(0)
    module, x = Corners(), np.random.default_rng(0).normal(size=(3, 5, 4))
    graph = capture(module, (1, 1, 4), "corners")
    assert disagreement(graph, module, x) < 1e-6
    assert [(n.op, n.output, n.inputs[0]) for n in graph.nodes] == [
        ("linear", "layers.0", "x"),
        ("rms_norm", "layers.2", "layers.0"),
        ("linear", "y.part0", "layers.2"),
        ("linear", "y.part1", "layers.2"),
        ("linear", "y.part1_2", "layers.2"),
        ("linear", "y.part2", "layers.2"),
        ("mul", "corners.mul", "y.part0"),
        ("scale", "corners.scale", "corners.mul"),
        ("linear", "corners", "y.part2"),
        ("silu", "corners.silu", "corners"),
        ("mul", "corners.mul_2", "y.part1_2"),
        ("add", "corners.add", "corners.scale"),
    ]
    assert float_outputs(graph, x).shape == (3, 5, 4)
    assert graph.dims["layers.0"] == (6,)
    assert graph.dims["y.part1_2"] == (4,)


class First(nn.Module):
    """The first result of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)[0]
        return y


def test_a_cell_reads_itself_one_step_before() -> None:
    torch.manual_seed(0)
    module = First(nn.GRU(3, 5, 2, batch_first=True))
    graph = capture(module, (1, 1, 3), "cell")
    assert disagreement(graph, module, np.random.default_rng(0).normal(size=(2, 7, 3))) < 1e-6
    before, after = graph.nodes[0], graph.nodes[14]
    assert (before.op, before.output, before.inputs) == ("previous", "layer.h_l0_before", ("layer.h_l0",))
    assert (after.op, after.output) == ("convex_recurrence", "layer.h_l0")
    assert graph.dims["layer.h_l0_before"] == (5,)
    assert regions(graph) == ((0, 15), (15, 30))


def test_identifiers() -> None:
    module = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 2))
    graph = capture(module, (1, 3), "ids", ids=True)
    assert (graph.vocabulary, graph.timed, graph.dims["x"], graph.dims[graph.output]) == (11, True, (), (2,))
    assert disagreement(graph, module, np.array([[0, 10, 3], [4, 4, 1]], float)) < 1e-6


def test_images_have_no_time() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(1), nn.Linear(24, 2))
    graph = capture(module, (1, 3, 5, 4), "image")
    assert [(n.op, graph.dims[n.output]) for n in graph.nodes] == [
        ("conv2d", (4, 3, 2)),
        ("clamp", (4, 3, 2)),
        ("linear", (2,)),
    ]
    assert (graph.vocabulary, graph.timed, graph.dims["x"]) == (None, False, (3, 5, 4))
    assert disagreement(graph, module, np.random.default_rng(0).normal(size=(2, 1, 3, 5, 4))) < 1e-6


def test_ranges_of_states_are_those_of_the_recurrence() -> None:
    torch.manual_seed(1)
    block, seen = MambaBlock(4, d_state=3), list[Tensor]()
    x = np.random.default_rng(1).normal(size=(3, 6, 4)).astype(np.float32).astype(np.float64)
    ranges = observe(capture(block, x.shape), x).ranges
    block.recurrence.register_forward_hook(
        lambda _, args, __: seen.append(selective_recurrence_states(*args)[1].detach())
    )
    block(torch.from_numpy(x).float())
    assert ranges["recurrence.state"].hi == pytest.approx(float(seen[0].max()), rel=1e-5)
    assert ranges["recurrence.state"].lo == pytest.approx(float(seen[0].min()), rel=1e-5)
