"""Low-rank adapters on a frozen network: only the adapters and the head are trained.

The frozen part is a network trained on the even digits; the adapters learn the odd ones. Needs scikit-learn.
Run: gradscope analyze sample_runs/adapters.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

DIGITS = load_digits()
X = torch.tensor(DIGITS.data, dtype=torch.float32) / 16
Y = torch.tensor(DIGITS.target)
EVEN = Y % 2 == 0

total_steps = 500
train_dataset = TensorDataset(X[~EVEN], Y[~EVEN] // 2)
train_loader = DataLoader(train_dataset, batch_size=32, shuffle=True, drop_last=True)


class Adapted(nn.Module):
    """A frozen linear layer with a trainable low-rank term beside it."""

    def __init__(self, frozen, rank=4):
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down = nn.Linear(frozen.in_features, rank, bias=False)
        self.up = nn.Linear(rank, frozen.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.frozen(x) + self.up(self.down(x))


def pretrained():
    layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)]
    network = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(network(X[EVEN]), Y[EVEN] // 2).backward()
        optimizer.step()
    return network


def build_model():
    network = pretrained()
    return nn.Sequential(Adapted(network[0]), nn.ReLU(), Adapted(network[2]), nn.ReLU(), nn.Linear(64, 5))


def make_optimizer(model):
    return torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=5e-3)
