"""What `gradscope record` adds to a script on a GPU: `python benchmarks/record_cuda.py` prints a table.

Wall time of blocks of steps, with the device waited for at their ends alone; bare and recorded blocks take turns in one
process. A "step" is a bare one without clipping; "clip" is what `clip_grad_norm_` adds to it; "recorded" is what recording
adds, in percent of the step: to a script that does not clip, and to one that does. Medians of paired blocks.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from overhead_workloads import BUILDERS, Case, Gpt, build

from gradscope.capture.header import new_header
from gradscope.integrations.session import Session
from gradscope.integrations.torch_calls import install
from gradscope.runs.schema import Ending

BLOCK = 25


SHARED = ("W1", "W3", "W4", "W5")


def gpt() -> Case:
    model = Gpt(50_000, 768, 12, 512)
    x = torch.randint(0, 50_000, (8, 512))

    def loss() -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return F.cross_entropy(model(x).flatten(0, 1), x.flatten())

    return Case("GPT 162 M, bf16", model, loss, torch.optim.AdamW(model.parameters(), 1e-5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{'':24}{'step, ms':>10}{'clip, ms':>10}{'recorded, ms':>14}{'%':>7}{'clips, recorded, ms':>21}{'%':>7}")
    makers = [gpt, *(functools.partial(build, name) for name in BUILDERS if name.startswith(SHARED))]
    for make in makers:
        with torch.device("cuda"):
            case = make()
        print(f"{case.name:24}" + measure(case, options.rounds), flush=True)


def measure(case: Case, rounds: int) -> str:
    bare, recorded = blocks(case, rounds, None)
    clips, both = blocks(case, rounds, 1e9)
    step = statistics.median(bare)
    plain = statistics.median(b - a for a, b in zip(bare, recorded, strict=True))
    clipped = statistics.median(b - a for a, b in zip(clips, both, strict=True))
    cells = f"{1e3 * step:>10.3f}{1e3 * (statistics.median(clips) - step):>10.3f}{1e3 * plain:>14.3f}"
    return cells + f"{100 * plain / step:>7.2f}{1e3 * clipped:>21.3f}{100 * clipped / step:>7.2f}"


def blocks(case: Case, rounds: int, limit: float | None) -> tuple[list[float], list[float]]:
    """Seconds a step of bare and of recorded blocks."""
    parameters = list(case.model.parameters())
    session = Session(new_header("benchmark", "record", "benchmark"), root=Path(tempfile.mkdtemp()))

    def block() -> float:
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(BLOCK):
            case.backward()
            if limit:
                torch.nn.utils.clip_grad_norm_(parameters, limit)
            case.optimizer.step()
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
