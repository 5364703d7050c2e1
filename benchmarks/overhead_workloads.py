"""The five small trainings that the cost of recording is measured on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Case:
    name: str
    model: nn.Module
    loss: Callable[[], torch.Tensor]
    optimizer: torch.optim.Optimizer

    def backward(self) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        return loss


def _mlp() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    layers = [layer for _ in range(64) for layer in (nn.Linear(256, 256), nn.ReLU())]
    x = torch.randn(64, 256)
    return nn.Sequential(*layers), lambda model: F.mse_loss(model(x), x)


class Gpt(nn.Module):
    def __init__(self, vocabulary: int = 8000, width: int = 384, depth: int = 6, length: int = 64) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        block = nn.TransformerEncoderLayer(
            width, width // 64, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.token(x) + self.place(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(h, mask=self.mask, is_causal=True)))


def _gpt() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    x = torch.randint(0, 8000, (4, 64))
    return Gpt(), lambda model: F.cross_entropy(model(x).flatten(0, 1), x.flatten())


class _Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.lstm, self.head = nn.Embedding(256, 512), nn.LSTM(512, 512, 2), nn.Linear(512, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.token(x))[0])


def _lstm() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    x = torch.randint(0, 256, (64, 64))
    return _Lstm(), lambda model: F.cross_entropy(model(x).flatten(0, 1), x.flatten())


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (h + self.skip(x)).relu()


def _resnet() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    widths = [16] * 4 + [32] * 3 + [64] * 3
    blocks = [_Residual(a, b, 1 if a == b else 2) for a, b in itertools.pairwise(widths)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    x, y = torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *blocks, *head)
    return model, lambda model: F.cross_entropy(model(x), y)


def _deep() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    layers = [layer for _ in range(300) for layer in (nn.Linear(32, 32), nn.Tanh())]
    x = torch.randn(32, 32)
    return nn.Sequential(*layers), lambda model: F.mse_loss(model(x), x)


BUILDERS = {
    "W1 MLP 64 x 256": _mlp,
    "W2 GPT 17 M": _gpt,
    "W3 LSTM 2 x 512, T 64": _lstm,
    "W4 ResNet-20": _resnet,
    "W5 300-layer tanh MLP": _deep,
}


def build(name: str) -> Case:
    torch.manual_seed(0)
    model, loss = BUILDERS[name]()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)
    return Case(name, model, lambda: loss(model), optimizer)
