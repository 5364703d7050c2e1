"""The spec file that `gradscope init` writes."""

SPEC_TEMPLATE = '''"""How this model is trained, for gradscope.

Try it:  gradscope check model.py   and then:  gradscope analyze model.py
"""

import torch
from torch import nn

# The model: an nn.Module, a class, or a function without arguments that makes one.
model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))

# The data: a DataLoader, a Dataset, (X, y), a DataFrame, a file name, or a function that returns an iterator of batches.
inputs = torch.randn(512, 16)
data = (inputs, inputs[:, :4].argmax(dim=1))

# The loss: a function of (output, target). Without it, it is inferred from the targets and printed.
loss = nn.CrossEntropyLoss()

# For anything else than one input and one target, write the step yourself; it replaces `loss`.
# def training_step(model, batch):
#     x, y = batch
#     return nn.functional.cross_entropy(model(x), y)

# The optimizer: over this model's parameters. Without it: AdamW at 1e-3.
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

# The schedule, stepped once an optimizer step. Without it: constant.
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100))

# The plan of the real training.
total_steps = 2000  # optimizer steps, all epochs together
max_norm = 1.0  # the clipping threshold in use today; leave it out if you do not clip
batch_size = 32  # rows a batch, where the data above is not in batches already
# accumulate = 1      micro-steps an optimizer step
# precision = "fp32"  or "bf16", "fp16"
# seed = 0
# device = "cpu"
'''
