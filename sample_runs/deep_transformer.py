"""A deep transformer without a final norm, whose warm-up ends in divergence: after the window, not in it.

Text: the source of Python's typing module, a character at a time. Run: gradscope analyze sample_runs/deep_transformer.py
"""

import inspect
import typing

import torch
from torch import nn

TEXT = inspect.getsource(typing)
CHARACTERS = sorted(set(TEXT))
CODES = torch.tensor([CHARACTERS.index(c) for c in TEXT])
LENGTH, BATCH, WIDTH, DEPTH = 32, 16, 32, 8
PEAK, WARM_UP = 1.0, 300

total_steps = 600


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


model = Transformer()


def data():
    generator = torch.Generator().manual_seed(0)
    while True:
        starts = torch.randint(0, len(CODES) - LENGTH - 1, (BATCH,), generator=generator).tolist()
        chunk = torch.stack([CODES[s : s + LENGTH + 1] for s in starts])
        yield chunk[:, :-1], chunk[:, 1:]


loss = nn.CrossEntropyLoss()


def optimizer(parameters):
    return torch.optim.SGD(parameters, lr=PEAK, momentum=0.9)


def scheduler(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
