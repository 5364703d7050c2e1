"""What `gradscope record` adds to a script on a GPU: `python benchmarks/record_cuda.py` prints a table.

Wall time of blocks of steps, with the device waited for at their ends alone; bare and recorded blocks take turns in one
process. A "step" is a bare one without clipping; "clip" is what `clip_grad_norm_` adds to it; "recorded" is what recording
adds, in percent of the step: to a script that does not clip, and to one that does. Medians of paired blocks.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from gradscope.integrations.headers import new_header
from gradscope.integrations.session import Session
from gradscope.integrations.torch_calls import install
from gradscope.runs.schema import Ending

BLOCK = 25


def mlp() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    layers = [layer for _ in range(64) for layer in (nn.Linear(256, 256), nn.ReLU())]
    x = torch.randn(64, 256, device="cuda")
    return nn.Sequential(*layers), lambda model: F.mse_loss(model(x), x)


class Gpt(nn.Module):
    def __init__(self, vocabulary: int, width: int, depth: int, length: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Parameter(0.02 * torch.randn(length, width))
        block = nn.TransformerEncoderLayer(
            width, width // 64, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.token(x) + self.place, mask=self.mask, is_causal=True)))


def gpt() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    x = torch.randint(0, 50_000, (8, 512), device="cuda")

    def loss(model: nn.Module) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return F.cross_entropy(model(x).flatten(0, 1), x.flatten())

    return Gpt(50_000, 768, 12, 512), loss


def lstm() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    x = torch.randn(64, 64, 512, device="cuda")
    return nn.LSTM(512, 512, 2), lambda model: F.mse_loss(model(x)[0], x)


def conv() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    layers = [
        layer for _ in range(20) for layer in (nn.Conv2d(64, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    ]
    x = torch.randn(128, 64, 32, 32, device="cuda")
    return nn.Sequential(*layers), lambda model: F.mse_loss(model(x), x)


WORKLOADS = {"MLP 64 x 256": mlp, "GPT 162 M, bf16": gpt, "LSTM 2 x 512, T 64": lstm, "20 x conv + norm": conv}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{'':24}{'step, ms':>10}{'clip, ms':>10}{'recorded, ms':>14}{'%':>7}{'clips, recorded, ms':>21}{'%':>7}")
    for name, make in WORKLOADS.items():
        torch.manual_seed(0)
        model, loss = make()
        print(f"{name:24}" + measure(model.cuda(), loss, options.rounds), flush=True)


def measure(model: nn.Module, loss: Callable[[nn.Module], torch.Tensor], rounds: int) -> str:
    bare, recorded = blocks(model, loss, rounds, None)
    clips, both = blocks(model, loss, rounds, 1e9)
    step = statistics.median(bare)
    plain = statistics.median(b - a for a, b in zip(bare, recorded, strict=True))
    clipped = statistics.median(b - a for a, b in zip(clips, both, strict=True))
    cells = f"{1e3 * step:>10.3f}{1e3 * (statistics.median(clips) - step):>10.3f}{1e3 * plain:>14.3f}"
    return cells + f"{100 * plain / step:>7.2f}{1e3 * clipped:>21.3f}{100 * clipped / step:>7.2f}"


def blocks(
    model: nn.Module, loss: Callable[[nn.Module], torch.Tensor], rounds: int, limit: float | None
) -> tuple[list[float], list[float]]:
    """Seconds a step of bare and of recorded blocks."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, 1e-5, fused=True)
    session = Session(new_header("benchmark", "record", "benchmark"), root=Path(tempfile.mkdtemp()))

    def block() -> float:
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(BLOCK):
            optimizer.zero_grad()
            loss(model).backward()
            if limit:
                torch.nn.utils.clip_grad_norm_(parameters, limit)
            optimizer.step()
        torch.cuda.synchronize()
        return (time.perf_counter() - begun) / BLOCK

    found: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds + 2):
        bare = block()
        patches = install(session)
        recorded = block()
        patches.undo()
        if i >= 2:
            found[0].append(bare)
            found[1].append(recorded)
    session.close(lambda reached: Ending("finished", reached))
    assert session.runs
    assert session.failure is None
    return found


if __name__ == "__main__":
    main()
