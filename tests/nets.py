"""Small networks of the shapes that people move weights between."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import nn

_spec = importlib.util.spec_from_file_location("demo", Path(__file__).parent.parent / "examples" / "demo.py")
assert _spec is not None
assert _spec.loader is not None
# MTCNN's O-Net is the demo's.
demo = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(demo)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, conv: type, norm: type) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride, 1, bias=False), norm(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3, 1, 1, bias=False), norm(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    """With basic blocks (He et al., 2015), thin: 18 is ``(2, 2, 2, 2)`` and 34 ``(3, 4, 6, 3)``; in 2D or 3D."""

    def __init__(self, blocks: tuple[int, ...], *, inputs: int = 3, width: int = 4, classes: int = 5, dims: int = 2):
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.conv1, self.bn1 = conv(inputs, width, 7, 2, 3, bias=False), norm(width)
        channels = width
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            layers = []
            for block in range(count):
                layers.append(Block(channels, outputs, 2 if stage and not block else 1, conv, norm))
                channels = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.stages = len(blocks)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x.flatten(2).mean(2))


R18, R34 = (2, 2, 2, 2), (3, 4, 6, 3)


def resnet(blocks: tuple[int, ...] = R18, *, seed: int = 0, **sizes: int) -> ResNet:
    """In evaluation mode, with statistics that are not those of a new net."""
    torch.manual_seed(seed)
    net = ResNet(blocks, **sizes).eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net
