"""The families of vision models, and those that are neither these nor plain sequence mixers.

Vision models take (B, C, H, W) and have no time; their scans go over the patches.
"""

from __future__ import annotations

from isobit.quant.zoo.arnet import ARNet
from isobit.quant.zoo.efficient_vmamba import EfficientVMamba
from isobit.quant.zoo.family import Family
from isobit.quant.zoo.ivit import VisionTransformer
from isobit.quant.zoo.lmuformer import LMUFormer
from isobit.quant.zoo.mobilenet import DSCNN, MobileNetV2
from isobit.quant.zoo.rala import RALA
from isobit.quant.zoo.sesr import SESR
from isobit.quant.zoo.sgconv import sgconv
from isobit.quant.zoo.soft import SOFT
from isobit.quant.zoo.spikegpt import SpikeGPT
from isobit.quant.zoo.ttt import TTTBlock
from isobit.quant.zoo.vim import VisionMamba
from isobit.quant.zoo.vmamba import VMamba
from isobit.quant.zoo.vssd import VSSD

IMAGE_FAMILIES: dict[str, Family] = {
    "VSSD": Family(
        "non-causal state space duality (Shi et al., 2024)",
        lambda: VSSD(channels=3, grid=(4, 4), patch=2, d_model=32, n_layers=1, heads=2, d_state=16),
        lambda: VSSD(channels=3, grid=(7, 5), patch=1, d_model=21, n_layers=1, heads=3, d_state=7),
        shape=(3, 8, 8),
        odd_shape=(3, 7, 5),
    ),
    "Vision Mamba": Family(
        "a selective scan in both directions (Zhu et al., 2024)",
        lambda: VisionMamba(channels=3, grid=(4, 4), patch=2, d_model=16, n_layers=2),
        lambda: VisionMamba(channels=3, grid=(7, 5), patch=1, d_model=21, n_layers=1, d_state=7, d_conv=3),
        shape=(3, 8, 8),
        odd_shape=(3, 7, 5),
    ),
    "VMamba": Family(
        "a selective scan along four paths of an image (Liu et al., 2024)",
        lambda: VMamba(channels=3, grid=(4, 4), patch=2, d_model=16, n_layers=1),
        lambda: VMamba(channels=3, grid=(7, 5), patch=1, d_model=21, n_layers=1, d_state=7),
        shape=(3, 8, 8),
        odd_shape=(3, 7, 5),
    ),
    "EfficientVMamba": Family(
        "a selective scan of every second row and column (Pei et al., 2024)",
        lambda: EfficientVMamba(channels=3, grid=(4, 4), patch=2, d_model=16, n_layers=1),
        lambda: EfficientVMamba(channels=3, grid=(7, 5), patch=1, d_model=21, n_layers=1, d_state=7),
        shape=(3, 8, 8),
        odd_shape=(3, 7, 5),
    ),
    "RALA": Family(
        "rank-augmented linear attention (Fan et al., 2024)",
        lambda: RALA(channels=3, grid=(4, 4), patch=2, d_model=32, n_layers=1, heads=2),
        lambda: RALA(channels=3, grid=(7, 5), patch=1, d_model=56, n_layers=1, heads=7),
        shape=(3, 8, 8),
        odd_shape=(3, 7, 5),
    ),
    "I-ViT": Family(
        "a vision transformer: softmax attention, GELU, LayerNorm (Li and Gu, 2022)",
        lambda: VisionTransformer(channels=3, grid=(4, 4), patch=2, d_model=32, n_layers=1, heads=2),
        lambda: VisionTransformer(channels=3, grid=(7, 5), patch=1, d_model=21, n_layers=1, heads=3),
        shape=(3, 8, 8),
        odd_shape=(3, 7, 5),
    ),
    "SOFT": Family(
        "attention with a Gaussian kernel (Lu et al., 2021)",
        lambda: SOFT(channels=3, grid=(4, 4), patch=2, d_model=32, n_layers=1, heads=2),
        lambda: SOFT(channels=3, grid=(7, 5), patch=1, d_model=21, n_layers=1, heads=3),
        shape=(3, 8, 8),
        odd_shape=(3, 7, 5),
    ),
    "MobileNetV2": Family(
        "inverted residual blocks (Sandler et al., 2018)",
        lambda: MobileNetV2(channels=3, width=16, expand=4),
        lambda: MobileNetV2(channels=3, width=7, expand=3),
        shape=(3, 8, 8),
        odd_shape=(3, 7, 5),
    ),
    "SESR": Family(
        "super-resolution with collapsible linear blocks (Bhardwaj et al., 2021)",
        lambda: SESR(width=16, m=3, scale=2, hidden=64),
        lambda: SESR(width=21, m=2, scale=3, hidden=35, outer_kernel=3),
        shape=(1, 8, 8),
        odd_shape=(1, 7, 5),
    ),
    "DS-CNN": Family(
        "a keyword spotter of depthwise separable convolutions (Zhang et al., 2017)",
        lambda: DSCNN(classes=12, width=16, n_blocks=2),
        lambda: DSCNN(classes=7, width=21, n_blocks=1, kernel=(3, 3), stride=(2, 1)),
        shape=(1, 16, 10),
        odd_shape=(1, 7, 5),
    ),
    "AR-Net": Family(
        "autoregression over the last values (Triebe et al., 2019)",
        lambda: ARNet(order=16, horizon=4),
        lambda: ARNet(order=7, horizon=3, hidden=(21,), channels=3),
        shape=("T", 1),
        odd_shape=("T", 3),
    ),
    "SGConv": Family(
        "a long convolution with a multi-scale kernel (Li et al., 2022)",
        lambda: sgconv(d_model=16, n_layers=2, kernel_dim=8, n_scales=3),
        lambda: sgconv(d_model=21, n_layers=1, kernel_dim=7, n_scales=3),
        shape=("T", 16),
        odd_shape=("T", 21),
    ),
    "LMUFormer": Family(
        "convolutions and a Legendre memory (Liu et al., 2024)",
        lambda: LMUFormer(inputs=16, d_model=16, n_layers=1, theta=32.0),
        lambda: LMUFormer(inputs=7, d_model=21, n_layers=1, memory=7, theta=13.0),
        shape=("T", 16),
        odd_shape=("T", 7),
    ),
    "SpikeGPT": Family(
        "RWKV through spiking neurons (Zhu et al., 2023)",
        lambda: SpikeGPT(d_model=32, layers=2, d_hidden=64),
        lambda: SpikeGPT(d_model=21, layers=2, d_hidden=35),
        shape=("T", 32),
        odd_shape=("T", 21),
    ),
    "TTT-Linear": Family(
        "a linear model that trains on the sequence, as state (Sun et al., 2024)",
        lambda: TTTBlock(d_model=32, heads=2, hidden=64),
        lambda: TTTBlock(d_model=21, heads=3, hidden=35),
        shape=("T", 32),
        odd_shape=("T", 21),
    ),
}
