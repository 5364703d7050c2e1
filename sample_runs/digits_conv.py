"""A healthy convolution net with batch norm on scikit-learn's handwritten digits (8 × 8 pixels).

Needs scikit-learn. Run: gradscope analyze sample_runs/digits_conv.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

DIGITS = load_digits()
IMAGES = torch.tensor(DIGITS.images, dtype=torch.float32).unsqueeze(1) / 16
LABELS = torch.tensor(DIGITS.target)

total_steps = 1_120
max_norm = 1.0


def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


model = nn.Sequential(
    block(1, 16), block(16, 16), nn.MaxPool2d(2), block(16, 32), block(32, 32), nn.Flatten(), nn.Linear(32 * 16, 10)
)
train_loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=64, shuffle=True, drop_last=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total_steps)
