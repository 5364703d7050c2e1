"""A small causal transformer on Python's own source; FACTOR: times its healthy learning rate."""

import inspect
import os
import typing

import torch
from torch import nn

TEXT = inspect.getsource(typing)
CHARACTERS = sorted(set(TEXT))
CODES = torch.tensor([CHARACTERS.index(c) for c in TEXT])
LENGTH, BATCH, WIDTH, DEPTH = 32, 16, 64, 4


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(len(CHARACTERS), WIDTH)
        self.place = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(DEPTH)
        )
        self.head = nn.Linear(WIDTH, len(CHARACTERS))

    def forward(self, x):
        hidden = self.embed(x) + self.place
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        for block in self.blocks:
            hidden = block(hidden, src_mask=mask, is_causal=True)
        return self.head(hidden).transpose(1, 2)


total_steps = 2_000
model = Transformer()
loss = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.02 * float(os.environ.get("FACTOR", "1")), momentum=0.9)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 300))


def data():
    generator = torch.Generator().manual_seed(0)
    while True:
        starts = torch.randint(0, len(CODES) - LENGTH - 1, (BATCH,), generator=generator).tolist()
        chunk = torch.stack([CODES[s : s + LENGTH + 1] for s in starts])
        yield chunk[:, :-1], chunk[:, 1:]
