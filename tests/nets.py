"""Small networks of the shapes that people move weights between."""

from __future__ import annotations

import torch
from torch import nn


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


class ONet(nn.Module):
    """The last of MTCNN's networks (Zhang et al., 2016), ``wide`` times as wide."""

    def __init__(self, wide: float = 1) -> None:
        super().__init__()
        a, b, c, d = (int(width * wide) for width in (32, 64, 128, 256))
        self.conv1, self.prelu1 = nn.Conv2d(3, a, 3), nn.PReLU(a)
        self.conv2, self.prelu2 = nn.Conv2d(a, b, 3), nn.PReLU(b)
        self.conv3, self.prelu3 = nn.Conv2d(b, b, 3), nn.PReLU(b)
        self.conv4, self.prelu4 = nn.Conv2d(b, c, 2), nn.PReLU(c)
        self.dense5, self.prelu5 = nn.Linear(9 * c, d), nn.PReLU(d)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(d, 2), nn.Linear(d, 4), nn.Linear(d, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pool = nn.functional.max_pool2d
        x = pool(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = pool(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = pool(self.prelu3(self.conv3(x)), 2, 2, ceil_mode=True)
        x = self.prelu4(self.conv4(x))
        x = self.prelu5(self.dense5(x.permute(0, 3, 2, 1).flatten(1)))
        return torch.cat([self.dense6_1(x).softmax(1), self.dense6_2(x), self.dense6_3(x)], 1)
