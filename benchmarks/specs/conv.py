"""A convolution net with batch norm on scikit-learn's digits; FACTOR: times its healthy learning rate."""

import os

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

DIGITS = load_digits()
X = torch.tensor(DIGITS.images, dtype=torch.float32).unsqueeze(1) / 16
Y = torch.tensor(DIGITS.target)


def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


total_steps = 2_000
model = nn.Sequential(
    *[block(1, 32), block(32, 32), nn.MaxPool2d(2), block(32, 64), block(64, 64), nn.Flatten(), nn.Linear(64 * 16, 10)]
)
train_loader = DataLoader(TensorDataset(X, Y), batch_size=32, shuffle=True, drop_last=True)
loss = nn.CrossEntropyLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3 * float(os.environ.get("FACTOR", "1")))
