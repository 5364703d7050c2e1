"""Scripts on a GPU: the same training with and without `record`, which never waits for the device, and exact norms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gradscope.runs import events
from gradscope.runs.run import Run
from tests.integrations.processes import recorded, run

HEAD = """
import json, os, sys
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
import torch
from torch import nn
from torch.nn import functional as F

torch.use_deterministic_algorithms(True)
torch.manual_seed(0)
torch.set_num_threads(1)
STEPS, UNTIMED, LIMIT = 24, 4, 0.05

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.norm = nn.Linear(16, 64), nn.LSTM(64, 64, batch_first=True), nn.LayerNorm(64)
        self.body, self.head = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)), nn.Linear(64, 16)

    def forward(self, x):
        h = self.rnn(self.embed(x))[0]
        return self.head(h + self.body(self.norm(h)))

model = Net().cuda()
data = torch.randn(STEPS, 8, 12, 16, device="cuda")
losses, norms = [], []

def loss_of(i, net=model):
    return F.mse_loss(net(data[i]), data[i])

def norm_now():
    grads = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
    return torch.stack(grads).sum().sqrt()

def unwatched(i):
    \"\"\"From here on a wait for the device is an error.\"\"\"
    if i == UNTIMED:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
"""
TAIL = """
torch.cuda.set_sync_debug_mode("default")
print(json.dumps({
    "losses": [one.item() for one in losses],
    "norms": [one.item() for one in norms],
    "weights": sum(p.double().sum().item() for p in model.parameters()),
}))
"""


def looped(optimizer: str, after: str = "norms.append(norm_now())", loss: str = "loss = loss_of(i)") -> str:
    """A script that trains with `optimizer`: `loss` makes the loss, `after` is what it does behind the backward pass."""
    lines = ["unwatched(i)", *loss.splitlines(), "loss.backward()", *after.splitlines(), "optimizer.step()"]
    body = [*lines, "optimizer.zero_grad()", "losses.append(loss.detach())"]
    return "\n".join([optimizer, "for i in range(STEPS):", *(f"    {line}" for line in body)])


SGD = "optimizer = torch.optim.SGD(model.parameters(), 0.1)"
CLIP = "norms.append(nn.utils.clip_grad_norm_(model.parameters(), LIMIT))"
PLAIN = looped(SGD)
CLIPPED = looped("optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)", CLIP)
ACCUMULATED = """
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
for i in range(0, STEPS, 2):
    unwatched(i)
    optimizer.zero_grad(set_to_none=False)
    both = [loss_of(i + k) / 2 for k in range(2)]
    for loss in both:
        loss.backward()
    norms.append(nn.utils.clip_grad_norm_(model.parameters(), LIMIT))
    optimizer.step()
    losses.append(sum(loss.detach() for loss in both) / 2)
"""
FROZEN = looped(
    """
for p in model.rnn.parameters():
    p.requires_grad_(False)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
""",
    loss="""with torch.autocast("cuda", torch.bfloat16):
    loss = loss_of(i)""",
)
SCALED = """
optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
scaler = torch.amp.GradScaler("cuda", init_scale=2.0**16, growth_interval=6)
data[10] *= 1000
for i in range(STEPS):
    unwatched(i)
    with torch.autocast("cuda", torch.float16):
        loss = loss_of(i)
    scaler.scale(loss).backward()
    norms.append(norm_now() / scaler._get_scale_async())
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    losses.append(loss.detach())
"""
AVERAGED = looped(
    SGD,
    """for p in model.parameters():
    p.grad /= 3
norms.append(norm_now())""",
).replace(
    # where gradients are looked at closely, at first and in every eighth step, the device is waited for
    "unwatched(i)",
    "i == 17 and unwatched(UNTIMED)",
)
RATE = looped('optimizer = torch.optim.AdamW(model.parameters(), torch.tensor(1e-3, device="cuda"), capturable=True)')
COMPILED = looped(
    f"torch.use_deterministic_algorithms(False)\nbody = torch.compile(model.body)\n{SGD}",
    CLIP,
    """h = model.rnn(model.embed(data[i]))[0]
loss = F.mse_loss(model.head(h + body(model.norm(h))), data[i])""",
)
CASES = {
    "plain": PLAIN,
    "clipped": CLIPPED,
    "accumulated": ACCUMULATED,
    "frozen, bf16": FROZEN,
    "fp16, scaled, fused": SCALED,
    "averaged by hand": AVERAGED,
    "learning rate on the device": RATE,
    "compiled": COMPILED,
}


def both(folder: Path, body: str) -> tuple[dict[str, object], Run]:
    """What the script prints, the same without and with gradscope, and the run."""
    (folder / "train.py").write_text(HEAD + body + TAIL)
    bare = run(folder, "train.py").stdout
    done = run(folder, "-m", "gradscope", "record", "train.py").stdout
    first = done.splitlines()[0]
    assert first == bare.splitlines()[0]
    return json.loads(first), recorded(folder)


@pytest.mark.parametrize("case", CASES)
def test_the_same_training_and_exact_norms(case: str, tmp_path: Path) -> None:
    seen, run = both(tmp_path, CASES[case])
    np.testing.assert_allclose(run.global_norm, seen["norms"], rtol=1e-5)
    np.testing.assert_allclose(run.loss, seen["losses"], rtol=1e-6)


def test_clips_and_rates_are_noted(tmp_path: Path) -> None:
    _, run = both(tmp_path, CLIPPED)
    np.testing.assert_array_equal(run.max_norm, 0.05)
    np.testing.assert_allclose(run.lr[:, 0], 1e-3)


def test_a_clip_by_hand_is_seen(tmp_path: Path) -> None:
    clip = "for p in model.parameters():\n    p.grad *= torch.clamp(LIMIT / norms[-1], max=1.0)"
    body = looped(SGD, f"norms.append(norm_now())\n{clip}")
    seen, run = both(tmp_path, body.replace("unwatched(i)", "pass"))
    np.testing.assert_allclose(run.global_norm, seen["norms"], rtol=1e-5)
    assert min(seen["norms"]) > 0.05
    np.testing.assert_allclose(run.max_norm, 0.05, rtol=1e-4)


def test_a_step_that_a_fused_optimizer_skips(tmp_path: Path) -> None:
    _, run = both(tmp_path, SCALED)
    assert np.flatnonzero(run.skipped).tolist() == [10]
    assert run.loss_scale[:12].tolist() == [2.0**16] * 6 + [2.0**17] * 5 + [2.0**16]
    assert run.header.first_nonfinite is None


GRAPHED = """
del model.rnn
model.forward = lambda x: model.head(model.body(model.norm(model.embed(x))))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
static = data[0].clone()
side = torch.cuda.Stream()
side.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(side):
    for i in range(3):
        optimizer.zero_grad()
        loss = F.mse_loss(model(static), static)
        loss.backward()
        norms.append(norm_now())
        losses.append(loss.detach().clone())
        optimizer.step()
torch.cuda.current_stream().wait_stream(side)
graph = torch.cuda.CUDAGraph()
optimizer.zero_grad()
with torch.cuda.graph(graph):
    loss = F.mse_loss(model(static), static)
    loss.backward()
    optimizer.step()
for i in range(5):
    static.copy_(data[i])
    graph.replay()
"""


def test_a_graph_that_repeats_steps_unseen_is_left_alone(tmp_path: Path) -> None:
    seen, run = both(tmp_path, GRAPHED)
    np.testing.assert_allclose(run.global_norm, seen["norms"], rtol=1e-5)
    assert len(run.step) == 3


def test_the_first_offender_is_named(tmp_path: Path) -> None:
    _, run = both(tmp_path, looped(SGD, loss="loss = loss_of(i) * (torch.inf if i == 9 else 1.0)"))
    found = run.header.first_nonfinite
    assert found is not None
    assert (found.step, found.went_first) == (9, "loss")


def test_a_clip_of_scaled_gradients_is_noted(tmp_path: Path) -> None:
    clip = "    nn.utils.clip_grad_norm_(model.parameters(), LIMIT)\n    scaler.step(optimizer)"
    body = (
        SCALED.replace("    scaler.step(optimizer)", clip)
        .replace("unwatched(i)", "pass")
        .replace("data[10] *= 1000", "")
    )
    _, run = both(tmp_path, body)
    found = run.probes.select(events.CLIP_SCALED)
    assert found.value.tolist()[:3] == [2.0**16] * 3
