"""The contour net in PyTorch (training only; the package runs the exported weights without torch)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (8, 16, 32, 48)


class ConvBNReLU(nn.Sequential):
    def __init__(self, cin: int, cout: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> None:
        pad = dilation * (kernel // 2)
        super().__init__(
            nn.Conv2d(cin, cout, kernel, stride, pad, dilation, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)
        )


class ContourNet(nn.Module):
    """U-Net: [B, 1, 160, 160] -> logits [B, 2, 80, 80] (hull, lungs) and bottleneck features [B, 48, 10, 10]."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        a, b, c, d = widths
        self.enc1a, self.enc1b = ConvBNReLU(1, a, 5, 2), ConvBNReLU(a, a)  # 80
        self.enc2a, self.enc2b = ConvBNReLU(a, b, 3, 2), ConvBNReLU(b, b)  # 40
        self.enc3a, self.enc3b = ConvBNReLU(b, c, 3, 2), ConvBNReLU(c, c)  # 20
        self.enc4a, self.enc4b, self.enc4c = (
            ConvBNReLU(c, d, 3, 2),
            ConvBNReLU(d, d),
            ConvBNReLU(d, d, dilation=2),
        )  # 10
        self.dec3 = ConvBNReLU(c + d, c)  # 20
        self.dec2a, self.dec2b = ConvBNReLU(b + c, b), ConvBNReLU(b, b)  # 40
        self.dec1a, self.dec1b = ConvBNReLU(a + b, b), ConvBNReLU(b, a)  # 80
        self.head = nn.Conv2d(a, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        up = lambda t: F.interpolate(t, scale_factor=2, mode="nearest")  # noqa: E731
        e1 = self.enc1b(self.enc1a(x))
        e2 = self.enc2b(self.enc2a(e1))
        e3 = self.enc3b(self.enc3a(e2))
        e4 = self.enc4c(self.enc4b(self.enc4a(e3)))
        d3 = self.dec3(torch.cat([up(e4), e3], 1))
        d2 = self.dec2b(self.dec2a(torch.cat([up(d3), e2], 1)))
        d1 = self.dec1b(self.dec1a(torch.cat([up(d2), e1], 1)))
        return self.head(d1), e4


def contour_loss(logits: Tensor, target: Tensor) -> Tensor:
    """BCE + soft Dice, the hull channel weighted twice as much as the lungs."""
    weight = logits.new_tensor([1.0, 0.5])
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((0, 2, 3))
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum((2, 3)) + 1) / (p.square().sum((2, 3)) + target.square().sum((2, 3)) + 1)
    return (weight * (bce + dice.mean(0))).sum()
