"""Models and data of the accuracy corpus. The data is real and needs no network: digits, prices, Python's own source."""

from __future__ import annotations

import inspect
import textwrap
import typing
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

Batches = Callable[[], Iterator[Any]]


@cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (1797, 64) in 0..1, and labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


@cache
def returns() -> torch.Tensor:
    """Standardised daily log returns of one share over four years: heavy-tailed."""
    from matplotlib import cbook

    prices = np.asarray(cbook.get_sample_data("goog.npz")["price_data"]["close"], dtype=np.float64)
    change = torch.from_numpy(np.diff(np.log(prices))).float()
    return (change - change.mean()) / change.std()


@cache
def text() -> tuple[torch.Tensor, int]:
    """Character codes of a module of the standard library, and the number of characters."""
    source = inspect.getsource(textwrap) + inspect.getsource(typing)
    characters = sorted(set(source))
    return torch.tensor([characters.index(c) for c in source]), len(characters)


def drawn(x: torch.Tensor, y: torch.Tensor, batch: int, seed: int) -> Batches:
    """Endless random batches of (x, y)."""

    def batches() -> Iterator[Any]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            rows = torch.randint(0, len(x), (batch,), generator=generator)
            yield x[rows], y[rows]

    return batches


def images(batch: int = 32, seed: int = 0, *, square: bool = False) -> Batches:
    """Digits: (batch, 64), or (batch, 1, 8, 8) where `square`."""
    x, y = digits()
    return drawn(x.reshape(-1, 1, 8, 8) if square else x, y, batch, seed)


def itself(batch: int = 32, seed: int = 0) -> Batches:
    """Digits as their own targets."""
    x, _ = digits()
    return drawn(x, x, batch, seed)


def next_return(batch: int = 32, seed: int = 0, length: int = 24, scale: float = 1.0) -> Batches:
    """Windows of returns, and the return of the next day."""
    windows = returns().unfold(0, length + 1, 1) * scale
    return drawn(windows[:, :-1].unsqueeze(-1), windows[:, -1:], batch, seed)


def characters(batch: int = 16, length: int = 24, seed: int = 0) -> Batches:
    """Chunks of text, and the same chunks one character on."""
    codes, _ = text()
    chunks = codes.unfold(0, length + 1, 1)
    return drawn(chunks[:, :-1], chunks[:, 1:], batch, seed)


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


def mlp(depth: int, act: type[nn.Module], gain: float = 1.0, width: int = 48, norm: bool = False) -> nn.Sequential:
    """A plain network of `depth` hidden layers; `gain` scales a He initialisation."""
    model = nn.Sequential()
    for place in range(depth):
        layer = nn.Linear(64 if place == 0 else width, width)
        nn.init.normal_(layer.weight, std=gain * (2 / layer.in_features) ** 0.5)
        model.add_module(f"fc{place}", layer)
        if norm:
            model.add_module(f"norm{place}", nn.LayerNorm(width))
        model.add_module(f"act{place}", act())
    model.add_module("head", nn.Linear(width, 10))
    return model


def residual_mlp(depth: int, norm: bool, gain: float = 1.0, width: int = 48) -> nn.Sequential:
    """A residual stream with `depth` two-layer branches."""
    model = nn.Sequential(nn.Linear(64, width))
    for _ in range(depth):
        first, second = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.normal_(second.weight, std=gain * width**-0.5)
        parts = [nn.LayerNorm(width)] if norm else []
        model.append(Residual(nn.Sequential(*parts, first, nn.ReLU(), second)))
    return model.append(nn.Linear(width, 10))


def conv(depth: int, norm: type[nn.Module] | None, gain: float = 1.0, channels: int = 12) -> nn.Sequential:
    """Convolutions of 3 × 3 with ReLU, pooled once, then a linear head."""
    model = nn.Sequential()
    for place in range(depth):
        layer = nn.Conv2d(1 if place == 0 else channels, channels, 3, padding=1)
        nn.init.normal_(layer.weight, std=gain * (2 / layer.weight[0].numel()) ** 0.5)
        model.add_module(f"conv{place}", layer)
        if norm is not None:
            model.add_module(f"norm{place}", norm(channels) if norm is nn.BatchNorm2d else norm(3, channels))
        model.add_module(f"act{place}", nn.ReLU())
        if place == 0:
            model.add_module("pool", nn.MaxPool2d(2))
    model.add_module("flat", nn.Flatten())
    model.add_module("head", nn.Linear(channels * 16, 10))
    return model


class CharacterRecurrent(nn.Module):
    """Embedding, one recurrent layer, head."""

    def __init__(self, cell: type[nn.Module], gain: float = 1.0, width: int = 48, **settings: Any) -> None:
        super().__init__()
        size = text()[1]
        self.embed = nn.Embedding(size, 16)
        self.rnn = cell(16, width, batch_first=True, **settings)
        self.head = nn.Linear(width, size)
        with torch.no_grad():
            for block in self.rnn.weight_hh_l0.split(width):
                block.copy_(nn.init.orthogonal_(torch.empty(width, width)) * gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.embed(x))[0]).transpose(1, 2)


class Forecaster(nn.Module):
    """A recurrent layer over a series, then a head on its last state."""

    def __init__(self, cell: type[nn.Module], width: int = 32, **settings: Any) -> None:
        super().__init__()
        self.rnn = cell(1, width, batch_first=True, **settings)
        self.head = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Transformer(nn.Module):
    """A causal character transformer; `last_norm` is the layer norm before the head."""

    def __init__(
        self, depth: int, *, norm_first: bool, last_norm: bool = True, width: int = 32, length: int = 24
    ) -> None:
        super().__init__()
        size = text()[1]
        self.embed = nn.Embedding(size, width)
        self.place = nn.Parameter(torch.randn(length, width) * 0.02)
        block = {
            "nhead": 2,
            "dim_feedforward": 2 * width,
            "dropout": 0.0,
            "batch_first": True,
            "norm_first": norm_first,
        }
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, **block) for _ in range(depth))
        self.norm = nn.LayerNorm(width) if last_norm else nn.Identity()
        self.head = nn.Linear(width, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(x) + self.place
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        for block in self.blocks:
            hidden = block(hidden, src_mask=mask, is_causal=True)
        return self.head(self.norm(hidden)).transpose(1, 2)


def autoencoder(
    act: type[nn.Module], gain: float = 1.0, widths: tuple[int, ...] = (64, 40, 16, 40, 64)
) -> nn.Sequential:
    """Dense layers down to a bottleneck and up again."""
    model = nn.Sequential()
    for place, (inputs, outputs) in enumerate(pairwise(widths)):
        layer = nn.Linear(inputs, outputs)
        with torch.no_grad():
            layer.weight.mul_(gain)
        model.add_module(f"fc{place}", layer)
        if place < len(widths) - 2:
            model.add_module(f"act{place}", act())
    return model


class Adapted(nn.Module):
    """A frozen linear layer with a trainable low-rank term."""

    def __init__(self, inputs: int, outputs: int, scale: float, rank: int = 4) -> None:
        super().__init__()
        self.frozen = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down, self.up = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
        self.scale = scale
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(x) + self.scale * self.up(self.down(x))


def adapted(depth: int, scale: float, width: int = 64) -> nn.Sequential:
    """A frozen network with adapters in every layer, and a trained head."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [Adapted(width, width, scale), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))
