"""A wide network on scikit-learn's digits; FACTOR: times its healthy learning rate."""

import itertools
import os

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

DIGITS = load_digits()
X = torch.tensor(DIGITS.data, dtype=torch.float32) / 16
Y = torch.tensor(DIGITS.target)
WIDTHS = [64, *[512] * 7]

total_steps = 2_000
model = nn.Sequential()
for place, (inputs, outputs) in enumerate(itertools.pairwise(WIDTHS)):
    model.add_module(f"fc{place}", nn.Linear(inputs, outputs))
    model.add_module(f"act{place}", nn.ReLU())
model.add_module("head", nn.Linear(WIDTHS[-1], 10))
train_loader = DataLoader(TensorDataset(X, Y), batch_size=64, shuffle=True, drop_last=True)
loss = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.02 * float(os.environ.get("FACTOR", "1")), momentum=0.9)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 500))
