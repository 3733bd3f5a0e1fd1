"""The zoo's vision and miscellaneous families against direct formulas, and what all of them must keep for the capture.

Both sides of each comparison are floats that sum in different orders, so the claim is closeness.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.quant.zoo.arnet import ARNet
from isobit.quant.zoo.efficient_vmamba import AtrousSS2D
from isobit.quant.zoo.family import Shape
from isobit.quant.zoo.image_families import IMAGE_FAMILIES
from isobit.quant.zoo.ivit import Attention
from isobit.quant.zoo.lmuformer import LMU, TimeBatchNorm
from isobit.quant.zoo.mamba import MambaBlock
from isobit.quant.zoo.mobilenet import DSCNN, InvertedResidual
from isobit.quant.zoo.rala import RankAugmentedLinearAttention
from isobit.quant.zoo.selective_scan import SelectiveScan
from isobit.quant.zoo.sesr import SESR, CollapsibleLinearBlock
from isobit.quant.zoo.sgconv import SGConv
from isobit.quant.zoo.soft import SoftmaxFreeAttention
from isobit.quant.zoo.spikegpt import SpikeGPT
from isobit.quant.zoo.ttt import TTTLinear
from isobit.quant.zoo.vim import BidirectionalMamba
from isobit.quant.zoo.vmamba import SS2D
from isobit.quant.zoo.vssd import NonCausalSSD

Array = npt.NDArray[np.float64]

OPERATORS = """
    linear embedding conv2d batch_norm layer_norm rms_norm softmax silu sigmoid tanh gelu relu relu6 hardtanh
    leaky_relu prelu hardswish elu softplus log_sigmoid exp square pow neg abs sqrt div add sub rsub mul clamp maximum
    reshape view flatten unflatten transpose permute flip cat split split_with_sizes chunk slice select unsqueeze
    squeeze expand mean sum amax matmul einsum avg_pool2d max_pool2d adaptive_avg_pool2d pixel_shuffle getitem
"""
"""What a forward may apply to values that depend on its input, beside the operators of isobit.quant.nn."""

SIZES = [
    pytest.param(make, shape, id=f"{name}-{size}")
    for name, family in IMAGE_FAMILIES.items()
    for size, (make, shape) in zip(("tiny", "odd"), family.sizes(), strict=True)
]


def build(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def samples(shape: Shape, batch: int, steps: int = 11) -> Tensor:
    sizes = [steps if size == "T" else int(size) for size in shape]
    return torch.randn(batch, *sizes, generator=torch.Generator().manual_seed(1))


def widen(module: nn.Module) -> nn.Module:
    """In float64 and eval mode, all parameters normal, so that no term is too small to be seen."""
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return module.double().eval()


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize(("make", "shape"), SIZES)
def test_exports_with_known_operators(make: Callable[[], nn.Module], shape: Shape) -> None:
    model = build(make)
    dims = {0: torch.export.Dim("B")} | ({1: torch.export.Dim("T")} if shape[0] == "T" else {})
    program = torch.export.export(model, (samples(shape, 2),), dynamic_shapes=(dims,), strict=False)
    inputs = set(program.graph_signature.user_inputs)
    constant = {n for n in program.graph.nodes if n.op == "placeholder" and n.name not in inputs}
    for n in program.graph.nodes:
        if n.op == "call_function" and all(source in constant for source in n.all_input_nodes):
            constant.add(n)
        elif n.op == "call_function":
            names = str(n.target).split(".")
            assert names[0] == "isobit" or n.target.__name__.split(".")[0] in OPERATORS.split(), n.target
    for steps in (1, 17):
        x = samples(shape, 3, steps)
        torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize(("make", "shape"), SIZES)
def test_samples_do_not_mix_and_gradients_flow(make: Callable[[], nn.Module], shape: Shape) -> None:
    model = build(make)
    x = samples(shape, 3, steps=40)
    y = model(x)
    assert y.isfinite().all()
    assert y.std() > 0.01
    torch.testing.assert_close(torch.cat([model(part) for part in x.split(1)]), y)
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(4))).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("make", "shape"), [p for p in SIZES if p.values[1][0] == "T"])  # type: ignore[index]
def test_sequence_models_are_causal(make: Callable[[], nn.Module], shape: Shape) -> None:
    model = build(make)
    x = samples(shape, 2, 13)
    changed = torch.cat([x[:, :6], samples(shape, 2, 7) + 1], dim=1)
    torch.testing.assert_close(model(changed)[:, :6], model(x)[:, :6])
    assert not torch.allclose(model(changed)[:, 6:], model(x)[:, 6:])


def scan_loop(scan: SelectiveScan, x: Array) -> Array:
    """SelectiveScan of one sample x, (L, channels), by a loop over positions and channels."""
    weights = {name: p.detach().numpy() for name, p in scan.named_parameters()}
    low_rank, b, c = np.split(x @ weights["x_proj.weight"].T, [scan.dt_rank, scan.dt_rank + scan.d_state], axis=1)
    dt = np.logaddexp(0, low_rank @ weights["dt_proj.weight"].T + weights["dt_proj.bias"])
    y, h = np.zeros_like(x), np.zeros((x.shape[1], scan.d_state))
    for t, channel in np.ndindex(x.shape):
        decay = np.exp(-dt[t, channel] * np.exp(weights["A_log"][channel]))
        h[channel] = decay * h[channel] + dt[t, channel] * x[t, channel] * b[t]
        y[t, channel] = h[channel] @ c[t] + weights["D"][channel] * x[t, channel]
    return y


def along(scans: nn.ModuleList, x: Array, paths: list[list[tuple[int, int]]]) -> Array:
    """The sum of the scans of x, (H, W, channels), each in the order of its path and zero elsewhere."""
    y = np.zeros_like(x)
    for scan, path in zip(scans, paths, strict=True):
        assert isinstance(scan, SelectiveScan)
        rows, columns = zip(*path, strict=True)
        y[rows, columns] += scan_loop(scan, x[rows, columns])
    return y


def test_vssd_equals_double_loop() -> None:
    mixer = NonCausalSSD(6, (3, 2), heads=3, d_state=4)
    widen(mixer)
    hidden = normal(2, 6, 6)
    z, xbc, dt = mixer.in_proj(hidden).split([12, 20, 3], dim=-1)
    x, b, c = functional.silu(mixer.conv2d(xbc)).split([12, 4, 4], dim=-1)
    y = torch.zeros_like(x)
    for sample, head in np.ndindex(2, 3):
        part = slice(4 * head, 4 * head + 4)
        state = torch.zeros(4, 4, dtype=torch.float64)
        for position in range(6):
            step = torch.log1p(torch.exp(dt[sample, position, head] + mixer.dt_bias[head]))
            state += step * mixer.A_log[head].exp() * torch.outer(b[sample, position], x[sample, position, part])
        for position in range(6):
            skip = mixer.D[head] * x[sample, position, part]
            y[sample, position, part] = c[sample, position] @ state + skip
    torch.testing.assert_close(mixer(hidden), mixer.out_proj(mixer.norm(y) * z))


def test_vim_is_a_mamba_forwards_and_one_backwards() -> None:
    mixer, forwards, backwards = BidirectionalMamba(6, 3), MambaBlock(6, 3, dt_rank=1), MambaBlock(6, 3, dt_rank=1)
    widen(mixer)
    for block, conv, scan in ((forwards, mixer.conv1d, mixer.scan), (backwards, mixer.conv1d_b, mixer.scan_b)):
        block.double().load_state_dict(
            {f"conv1d.{name}": p for name, p in conv.state_dict().items()}
            | scan.state_dict()
            | {f"{name}.weight": getattr(mixer, name).weight for name in ("in_proj", "out_proj")}
        )
    hidden = normal(2, 7, 6)
    torch.testing.assert_close(mixer(hidden), forwards(hidden) + backwards(hidden.flip(1)).flip(1))


def test_vmamba_scans_four_paths() -> None:
    height, width = 3, 4
    mixer = SS2D(3, (height, width), d_state=2)
    widen(mixer)
    hidden = normal(1, height * width, 3)
    x = functional.silu(mixer.conv2d(mixer.in_proj(hidden)))[0].detach().numpy().reshape(height, width, -1)
    rows = [(i, j) for i in range(height) for j in range(width)]
    columns = [(i, j) for j in range(width) for i in range(height)]
    paths = [rows, columns, rows[::-1], columns[::-1]]
    y = along(mixer.scans, x, paths)
    expected = mixer.out_proj(mixer.out_norm(torch.from_numpy(y).flatten(0, 1)))
    torch.testing.assert_close(mixer(hidden)[0], expected)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 4), (3, 5)])
def test_efficient_vmamba_scans_by_parity(height: int, width: int) -> None:
    mixer = AtrousSS2D(3, (height, width), d_state=2)
    widen(mixer)
    hidden = normal(1, height * width, 3)
    x, z = mixer.in_proj(hidden).chunk(2, dim=-1)
    image = x[0].T.reshape(1, -1, height, width)
    weight, bias = mixer.conv2d.weight, mixer.conv2d.bias
    x = functional.silu(functional.conv2d(image, weight, bias, padding=1, groups=6))[0].detach()
    x = functional.pad(x, (0, width % 2, 0, height % 2)).permute(1, 2, 0).numpy()
    down, right = range(x.shape[0]), range(x.shape[1])
    paths = [
        [(i, j) for i in down[::2] for j in right[::2]],
        [(i, j) for j in right[::2] for i in down[1::2]],
        [(i, j) for i in down[::2] for j in right[1::2]],
        [(i, j) for j in right[1::2] for i in down[1::2]],
    ]
    y = along(mixer.scans, x, paths)
    kept = torch.from_numpy(y[:height, :width]).flatten(0, 1)
    expected = mixer.out_proj(mixer.out_norm(kept) * functional.silu(z[0]))
    torch.testing.assert_close(mixer(hidden)[0], expected)


def test_rala_equals_double_loop() -> None:
    height, width, size = 2, 3, 8
    mixer = RankAugmentedLinearAttention(2 * size, (height, width), heads=2)
    widen(mixer)
    x = normal(1, height * width, 2 * size)
    q, k, v, o = (part[0].unflatten(-1, (2, size)) for part in mixer.qkvo(x).chunk(4, dim=-1))
    q, k = functional.elu(q) + 1, functional.elu(k) + 1
    rate = torch.tensor([1.0, 1e-4], dtype=torch.float64)
    turn = [torch.cat([p // width * rate, p % width * rate]) for p in range(height * width)]

    def rotated(x: Tensor, position: int) -> Tensor:
        """Pairs as complex numbers."""
        return torch.complex(x[:4], x[4:]) * torch.polar(torch.ones_like(x[:4]), turn[position])

    y = torch.zeros_like(v)
    for head in range(2):
        alpha = torch.stack([(q[:, head].mean(0) @ key) / size**0.5 for key in k[:, head]]).softmax(0) * len(k)
        for i in range(len(q)):
            total = torch.zeros(size, dtype=torch.float64)
            norm = torch.tensor(0.0, dtype=torch.float64)
            for j in range(len(k)):
                key = k[j, head] * alpha[j]
                total = total + (rotated(q[i, head], i) * rotated(key, j).conj()).sum().real * v[j, head]
                norm = norm + q[i, head] @ key
            y[i, head] = total / norm
    expected = mixer.proj((y.flatten(1) + mixer.lepe(v.flatten(1).unsqueeze(0))[0]) * o.flatten(1))
    torch.testing.assert_close(mixer(x)[0], expected, rtol=1e-5, atol=1e-5)


def test_ivit_attention_is_softmax_attention() -> None:
    mixer = Attention(6, heads=3)
    widen(mixer)
    x = normal(2, 5, 6)
    q, k, v = (part.unflatten(-1, (3, 2)).transpose(1, 2) for part in mixer.qkv(x).chunk(3, dim=-1))
    expected = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixer(x), mixer.proj(expected))


def test_soft_equals_gaussian_kernel() -> None:
    mixer = SoftmaxFreeAttention(6, (2, 4), heads=3)
    widen(mixer)
    x = normal(1, 8, 6)
    q, v = mixer.W_q(x)[0].unflatten(-1, (3, 2)), mixer.W_v(x)[0].unflatten(-1, (3, 2))
    y = torch.zeros_like(v)
    for head in range(3):
        distance = torch.cdist(q[:, head], q[:, head]).square() / 2**0.5
        kernel = torch.exp(-distance / 2)
        scale = torch.diag(kernel.sum(1) ** -0.5)
        y[:, head] = scale @ kernel @ scale @ v[:, head]
        for feature in range(2):
            image = v[:, head, feature].reshape(1, 1, 2, 4)
            local = functional.conv2d(image, mixer.conv.weight[head : head + 1], padding=1)
            y[:, head, feature] += local.flatten()
    torch.testing.assert_close(mixer(x)[0], mixer.ff(y.flatten(1)))


@pytest.mark.parametrize(("outputs", "stride"), [(4, 1), (4, 2), (5, 1)])
def test_inverted_residual(outputs: int, stride: int) -> None:
    block = InvertedResidual(4, outputs, stride)
    for name, buffer in block.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            buffer.normal_()
    widen(block)
    x = y = normal(2, 4, 7, 5)
    tensors = block.state_dict()
    for i, (padding, step, groups) in enumerate([(0, 1, 1), (1, stride, 24), (0, 1, 1)]):
        norm = {name: tensors[f"conv.{i}.1.{name}"] for name in ("weight", "bias", "running_mean", "running_var")}
        scale = norm["weight"] / (norm["running_var"] + 1e-5).sqrt()
        weight = tensors[f"conv.{i}.0.weight"] * scale[:, None, None, None]
        shift = norm["bias"] - norm["running_mean"] * scale
        y = functional.conv2d(y, weight, shift, stride=step, padding=padding, groups=groups)
        y = y.clamp(0, 6) if i < 2 else y
    torch.testing.assert_close(block(x), x + y if (outputs, stride) == (4, 1) else y)


def test_dscnn_of_the_paper() -> None:
    model = DSCNN(12).eval()
    assert model(torch.zeros(1, 1, 49, 10)).shape == (1, 12)
    weights = sum(p.numel() for name, p in model.named_parameters() if p.ndim > 1)
    assert weights == 64 * 40 + 4 * (64 * 9 + 64 * 64) + 64 * 12


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 3), (3, 2)])
def test_sesr_block_collapses(inputs: int, outputs: int) -> None:
    block = CollapsibleLinearBlock(inputs, outputs, 3, hidden=7)
    widen(block)
    x = normal(2, inputs, 5, 4)
    expected = functional.conv2d(x, block.expand, padding=1)
    expected = functional.conv2d(expected, block.project[:, :, None, None])
    torch.testing.assert_close(block(x), x + expected if inputs == outputs else expected)


def test_sesr_enlarges_its_input_where_the_network_is_zero() -> None:
    model = SESR(width=4, m=2, scale=3, hidden=8).double()
    nn.init.zeros_(model.output_block.project)
    x = normal(2, 1, 4, 3).clamp(0, 1)
    torch.testing.assert_close(model(x), functional.interpolate(x, scale_factor=3.0))


def test_arnet_is_the_linear_autoregression() -> None:
    model = ARNet(order=3, horizon=2).double()
    x = normal(1, 6, 1)
    past = torch.cat([torch.zeros(2, dtype=torch.float64), x[0, :, 0]])
    expected = torch.stack([model.ar.weight[:, 0] @ past[t : t + 3] + model.ar.bias for t in range(6)])
    torch.testing.assert_close(model(x)[0], expected)
    deep = ARNet(order=3, horizon=2, hidden=(5,)).double()
    output = deep.layers[1]
    torch.testing.assert_close(deep(x), output(deep.ar(x).relu()))


def test_sgconv_is_a_sum_over_the_past() -> None:
    layer = SGConv(3, kernel_dim=2, n_scales=3)
    widen(layer)
    x, kernel = normal(2, 12, 3), layer.kernel()
    assert kernel.shape == (3, 8)
    y = layer.D * x
    for t in range(12):
        for j in range(min(t + 1, 8)):
            y[:, t] += kernel[:, j] * x[:, t - j]
    torch.testing.assert_close(layer(x), layer.output_linear(functional.gelu(y)))


def test_sgconv_kernel_halves_from_scale_to_scale() -> None:
    layer = SGConv(2, kernel_dim=3, n_scales=4)
    torch.testing.assert_close(layer.kernel().norm(dim=-1), torch.ones(2))
    for values in layer.kernel_list:
        nn.init.ones_(values)
    kernel = layer.kernel()[0]
    torch.testing.assert_close(kernel / kernel[-1], torch.tensor([8.0] * 3 + [4.0] * 3 + [2.0] * 6 + [1.0] * 12))


def test_lmu_mixer_remembers_its_input() -> None:
    mixer = LMU(5, memory=4, theta=6.0)
    widen(mixer)
    x, memory = normal(1, 9, 5), torch.zeros(4, dtype=torch.float64)
    expected = []
    for x_t in x[0]:
        memory = mixer.A @ memory + mixer.B * mixer.W_u(x_t).relu()
        expected.append(mixer.norm(mixer.proj(mixer.W_h(torch.cat([memory, x_t])).relu()).reshape(1, 1, -1)))
    torch.testing.assert_close(mixer(x), torch.cat(expected, dim=1))


def test_batch_norm_over_time() -> None:
    norm = TimeBatchNorm(3).double()
    x = normal(4, 5, 3) * 2 + 1
    torch.testing.assert_close(norm(x), functional.layer_norm(x.flatten(0, 1).T, (20,)).T.unflatten(0, (4, 5)))
    for _ in range(200):
        norm(x)
    norm.eval()
    torch.testing.assert_close(norm(x).mean((0, 1)), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("size", ["tiny", "odd"])
def test_spikegpt_adds_spikes(size: str) -> None:
    family = IMAGE_FAMILIES["SpikeGPT"]
    make, shape = dict(zip(("tiny", "odd"), family.sizes(), strict=True))[size]
    model = build(make)
    assert isinstance(model, SpikeGPT)
    added: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: added.append(output - module.ln0(inputs[0])))
    model(samples(shape, 4, 64))
    for difference in added:
        rounded = difference.round()
        torch.testing.assert_close(difference, rounded, rtol=0, atol=1e-5)
        assert set(rounded.unique().tolist()) <= {0.0, 1.0, 2.0}
        assert 0.02 < rounded.mean() < 1


def test_ttt_descends_the_gradient() -> None:
    mixer = TTTLinear(6, heads=2)
    widen(mixer)
    x = normal(1, 5, 6)
    q, k, v = (proj(x)[0].unflatten(-1, (2, 3)) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    eta = torch.sigmoid(mixer.learnable_ttt_lr(x))[0] / 3
    y = torch.zeros_like(v)
    for head in range(2):
        scale, bias = mixer.ttt_norm_weight[head], mixer.ttt_norm_bias[head]
        weight = mixer.W1[head].detach()
        for t in range(5):

            def model(x: Tensor, weight: Tensor, scale: Tensor = scale, bias: Tensor = bias) -> Tensor:
                return x + functional.layer_norm(weight @ x, (3,), scale, bias, eps=1e-6)

            trained = weight.clone().requires_grad_()
            loss = (model(k[t, head].detach(), trained) - v[t, head].detach()).square().sum() / 2
            weight = weight - eta[t, head].detach() * torch.autograd.grad(loss, trained)[0]
            y[t, head] = model(q[t, head], weight)
    torch.testing.assert_close(mixer(x)[0], mixer.o_proj(mixer.post_norm(y.flatten(1))))
