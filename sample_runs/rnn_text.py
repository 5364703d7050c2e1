"""A tanh RNN language model whose gradients explode along time: its recurrent weights are 2 times an orthogonal matrix.

Text: the source of Python's argparse, a character at a time, 60 steps back in time.
Run: gradscope analyze sample_runs/rnn_text.py
"""

import argparse
import inspect

import torch
from torch import nn

TEXT = inspect.getsource(argparse)
CHARACTERS = sorted(set(TEXT))
CODES = torch.tensor([CHARACTERS.index(c) for c in TEXT])
LENGTH, BATCH = 60, 16

total_steps = 1_000
max_norm = None  # no clipping today


class CharacterModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(len(CHARACTERS), 24)
        self.rnn = nn.RNN(24, 64, batch_first=True)
        self.head = nn.Linear(64, len(CHARACTERS))
        with torch.no_grad():
            self.rnn.weight_hh_l0.copy_(nn.init.orthogonal_(torch.empty(64, 64)) * 2.0)

    def forward(self, x):
        hidden, _ = self.rnn(self.embed(x))
        return self.head(hidden).transpose(1, 2)


model = CharacterModel()


def data():
    generator = torch.Generator().manual_seed(0)
    while True:
        starts = torch.randint(0, len(CODES) - LENGTH - 1, (BATCH,), generator=generator).tolist()
        chunk = torch.stack([CODES[s : s + LENGTH + 1] for s in starts])
        yield chunk[:, :-1], chunk[:, 1:]


loss = nn.CrossEntropyLoss()


def optimizer(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)
