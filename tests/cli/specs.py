"""Small spec files for the tests of the command line."""

from __future__ import annotations

HEALTHY = """
import torch
from torch import nn

torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
X = torch.randn(256, 6)
data = (X, (X @ torch.randn(6, 3)).argmax(1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
total_steps = 120
batch_size = 16
"""

EXPLODES_LATER = """
import torch
from torch import nn

torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
X = torch.randn(256, 6)
data = (X, X.sum(1, keepdim=True))
loss = nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.01 if step < 70 else 5.0)
total_steps = 120
batch_size = 16
"""

OUTLIER = (
    HEALTHY.replace("data = ", "X[77] *= 1e4\ndata = ")
    .replace("(X @ torch.randn(6, 3)).argmax(1))", "X[:, :3].sin())\nloss = nn.MSELoss()")
    .replace("SGD(model.parameters(), lr=0.1)", "Adam(model.parameters())")
    .replace("nn.Tanh()", "nn.ReLU()")
)

EXPLODES_NOW = (
    HEALTHY.replace("nn.Tanh()", "nn.Identity()")
    .replace("lr=0.1", "lr=1e6")
    .replace("(X @ torch.randn(6, 3)).argmax(1))", "X[:, :3])\nloss = nn.MSELoss()")
)

RAISES_AT_STEP_7 = (
    HEALTHY
    + """
calls = 0


def training_step(model, batch):
    global calls
    calls += 1
    if calls == 8:
        raise ValueError("the eighth batch is bad")
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
"""
)

INTERRUPTED_AT_STEP_7 = RAISES_AT_STEP_7.replace('ValueError("the eighth batch is bad")', "KeyboardInterrupt")

RECURRENT = """
import torch
from torch import nn

torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(4, 8, nonlinearity="relu", batch_first=True, bias=False)
        self.head = nn.Linear(8, 1)
        with torch.no_grad():
            self.rnn.weight_hh_l0.copy_(1.4 * torch.eye(8))

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


model = Net()
X = torch.randn(64, 30, 4)
data = (X, X.mean((1, 2))[:, None])
batch_size = 16
SCALE = 1.0


def loss(output, target):
    return SCALE * nn.functional.mse_loss(output, target)


optimizer = torch.optim.SGD(model.parameters(), lr=1e-16 / SCALE)
"""

OVERFLOWS = """
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        h = torch.relu(self.first(x)) * (float("inf") if self.calls > 8 else 1.0)
        return self.last(self.behind(h))

    def behind(self, h):
        return torch.tanh(self.middle(h))


model = Net()
X = torch.randn(256, 6)
data = (X, X[:, :1])
loss = nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
total_steps = 120
batch_size = 16
"""
