"""An autoencoder of 64-day windows of a real time series, one of whose layers was initialised 20 times too large.

Series: the daily closing prices of one share over four years, which comes with matplotlib (goog.npz).
Run: gradscope analyze sample_runs/price_autoencoder.py
"""

import numpy as np
import torch
from matplotlib import cbook
from torch import nn

PRICES = np.asarray(cbook.get_sample_data("goog.npz")["price_data"]["close"], dtype=np.float32)
RETURNS = torch.from_numpy(np.diff(np.log(PRICES)))
WINDOWS = RETURNS.unfold(0, 64, 1)
WINDOWS = (WINDOWS - WINDOWS.mean()) / WINDOWS.std()

total_steps = 400
batch_size = 32

model = nn.Sequential()
for place, (inputs, outputs) in enumerate([(64, 48), (48, 32), (32, 16), (16, 32), (32, 48)]):
    model.add_module(f"fc{place}", nn.Linear(inputs, outputs))
    model.add_module(f"act{place}", nn.GELU())
model.add_module("out", nn.Linear(48, 64))
with torch.no_grad():
    model.fc2.weight.mul_(20)

data = (WINDOWS, WINDOWS)
loss = nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
