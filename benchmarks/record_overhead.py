"""What `gradscope record` adds to a script: `python benchmarks/record_overhead.py` prints a table.

CPU time on one thread. Bare and recorded training steps take turns in one process, by putting the listening in place and
taking it away again. Of both, what follows a real backward pass is timed: clipping and the optimizer's step, with what
recording does between and inside of them, and what it does around the backward pass, less what the clocks there cost, which
are in the bare step too; a difference of two whole steps would drown in the noise of the machine. "no clip" is what
recording adds in percent of the bare step; "clips" is a script that calls `clip_grad_norm_`, what recording adds in units of
one such call, made in the same place. Medians, with quartiles. Both hold what the thread that writes the rows takes of the
processor, shared out over the recorded steps; "writing" is that share alone, in microseconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from overhead_workloads import BUILDERS, Case, build

from gradscope.capture.header import new_header
from gradscope.integrations.session import Session
from gradscope.integrations.torch_calls import install
from gradscope.runs.schema import Ending

AROUND_BACKWARD = ("before_backward", "after_backward")
WARM_UP = 12
WIDTHS = 10, 10, 26, 26, 14


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", default="", help="begin of a workload's name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    titles = ["step, ms", "clip, ms", "no clip, % of the step", "clips, in clip calls", "writing, us"]
    print(f"{'':24}" + "".join(f"{title:>{width}}" for title, width in zip(titles, WIDTHS, strict=True)))
    for name in (name for name in BUILDERS if name.startswith(options.only)):
        print(f"{name:24}" + "".join(measure(name, options.rounds)), flush=True)


def measure(name: str, rounds: int) -> list[str]:
    plain, clips = steps(build(name), rounds, None), steps(build(name), rounds, 0.5)
    bare, call = statistics.median(plain.bare), statistics.median(clips.calls)
    cells = [
        f"{1e3 * bare:.2f}",
        f"{1e3 * call:.3f}",
        spread([100 * (one + plain.writing) / bare for one in plain.added]),
        spread([(one + clips.writing) / call for one in clips.added]),
        f"{1e6 * plain.writing:.0f}",
    ]
    return [f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)]


class Steps(NamedTuple):
    """CPU seconds: bare steps, their clip calls, what recording added to each step, and what writing took of one."""

    bare: list[float]
    calls: list[float]
    added: list[float]
    writing: float


def steps(case: Case, rounds: int, share: float | None) -> Steps:
    """Run them. `share`: clip at this share of the norm; None: do not clip."""
    parameters = list(case.model.parameters())
    case.backward()
    limit = share and share * float(torch.nn.utils.clip_grad_norm_(parameters, 1e30))
    clock = Clock()
    session = clock.listens_to(Session(new_header("benchmark", "record", "benchmark"), root=Path(tempfile.mkdtemp())))

    def step(around: Callable[[], object]) -> tuple[float, float]:
        """The time of the clip call, and of everything after the backward pass."""
        around()
        case.backward()
        around()
        begun = time.thread_time()
        if limit:
            torch.nn.utils.clip_grad_norm_(parameters, limit)
        clipped = time.thread_time()
        case.optimizer.step()
        return clipped - begun, time.thread_time() - begun

    found = Steps([], [], [], 0.0)
    for i in range(2 * rounds + WARM_UP):
        begun = time.thread_time()
        call, bare = step(clock.idle)
        spent = time.thread_time() - begun
        patches, bare = install(session), bare + clock.taken()
        _, recorded = step(lambda: None)
        patches.undo()
        if i < WARM_UP:
            time.sleep(0.05)
            clock.taken()
            continue
        found.bare.append(spent)
        found.calls.append(call)
        found.added.append(clock.taken() + recorded - bare)
    patches, begun = install(session), _elsewhere()
    for _ in range(rounds):
        step(lambda: None)
    writing = (_elsewhere() - begun) / rounds
    patches.undo()
    session.close(lambda reached: Ending("finished", reached))
    assert session.runs
    assert session.failure is None
    return found._replace(writing=writing)


def _elsewhere() -> float:
    """CPU seconds of this process's other threads."""
    return time.process_time() - time.thread_time()


class Clock:
    """CPU seconds spent inside the methods of a session that listen around a backward pass."""

    def __init__(self) -> None:
        self._spent, self._depth = 0.0, 0
        self.idle = self._timed(lambda: None)

    def taken(self) -> float:
        """The seconds since this was last asked."""
        spent, self._spent = self._spent, 0.0
        return spent

    def listens_to(self, session: Session) -> Session:
        for name in AROUND_BACKWARD:
            setattr(session, name, self._timed(getattr(session, name)))
        return session

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return method(*args, **kwargs)
            self._depth, begun = 1, time.thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                self._spent += time.thread_time() - begun
                self._depth = 0

        return call


def spread(found: list[float]) -> str:
    low, middle, high = statistics.quantiles(found, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
