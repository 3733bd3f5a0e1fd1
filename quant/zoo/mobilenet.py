"""MobileNetV2's inverted residual block (Sandler et al., 2018) and DS-CNN, a keyword spotter (Zhang et al., 2017)."""

from __future__ import annotations

from torch import Tensor, nn

Size = tuple[int, int]
"""Height and width."""


class ConvNorm(nn.Sequential):
    """A convolution without bias, a batch norm, and an activation if one is given; zeros outside the image."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Size,
        stride: Size = (1, 1),
        groups: int = 1,
        activation: nn.Module | None = None,
    ) -> None:
        padding = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), *([] if activation is None else [activation]))
        nn.init.kaiming_normal_(conv.weight, mode="fan_out")


class InvertedResidual(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)): expand, filter, project (fig. 4d).

    Residual where stride is 1 and outputs equals inputs.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, kernel: int = 3, expand: int = 6) -> None:
        super().__init__()
        hidden = expand * inputs
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            ConvNorm(inputs, hidden, (1, 1), activation=nn.ReLU6()),
            ConvNorm(hidden, hidden, (kernel, kernel), (stride, stride), groups=hidden, activation=nn.ReLU6()),
            ConvNorm(hidden, outputs, (1, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """Images (B, channels, H, W) -> (B, 2 * width, ceil(H / 2), ceil(W / 2)): a stem and two blocks."""

    def __init__(self, channels: int, width: int, kernel: int = 3, expand: int = 6) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvNorm(channels, width, (kernel, kernel), activation=nn.ReLU6()),
            InvertedResidual(width, width, 1, kernel, expand),
            InvertedResidual(width, 2 * width, 2, kernel, expand),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.features(x)
        return out


class DSCNN(nn.Module):
    """Features over time, (B, 1, steps, features) -> logits (B, classes); the whole clip is one image.

    The defaults are the paper's small model; kernel and stride are those of the first convolution.
    """

    def __init__(
        self, classes: int, width: int = 64, n_blocks: int = 4, kernel: Size = (10, 4), stride: Size = (2, 2)
    ) -> None:
        super().__init__()
        blocks = [ConvNorm(1, width, kernel, stride, activation=nn.ReLU())]
        for _ in range(n_blocks):
            blocks += [
                ConvNorm(width, width, (3, 3), groups=width, activation=nn.ReLU()),
                ConvNorm(width, width, (1, 1), activation=nn.ReLU()),
            ]
        self.features = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return logits
