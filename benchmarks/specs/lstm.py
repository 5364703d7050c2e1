"""A character model of two LSTM layers on Python's own source; FACTOR: times its healthy learning rate."""

import argparse
import inspect
import os

import torch
from torch import nn

TEXT = inspect.getsource(argparse)
CHARACTERS = sorted(set(TEXT))
CODES = torch.tensor([CHARACTERS.index(c) for c in TEXT])
LENGTH, BATCH, WIDTH = 32, 16, 128


class Characters(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(len(CHARACTERS), WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, 2, batch_first=True)
        self.head = nn.Linear(WIDTH, len(CHARACTERS))

    def forward(self, x):
        return self.head(self.lstm(self.embed(x))[0]).transpose(1, 2)


total_steps = 2_000
model = Characters()
loss = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3 * float(os.environ.get("FACTOR", "1")))


def data():
    generator = torch.Generator().manual_seed(0)
    while True:
        starts = torch.randint(0, len(CODES) - LENGTH - 1, (BATCH,), generator=generator).tolist()
        chunk = torch.stack([CODES[s : s + LENGTH + 1] for s in starts])
        yield chunk[:, :-1], chunk[:, 1:]
