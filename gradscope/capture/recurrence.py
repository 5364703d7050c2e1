"""∂L/∂h_t inside fused recurrent layers, computed again from what went in, what came out and the gradient that arrived.

`torch.nn.RNN`, `LSTM` and `GRU` run all time steps in one kernel, which keeps the states' gradients to itself. Their values
follow from the layer's own equations (those of the torch documentation), differentiated by hand: the gates once more in the
training's precision, then one pass back through time, in float64 where the device has it, so that fading below float32 is
seen too. Nothing of the training's own graph or random state is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class Weights:
    """One layer in one direction: `ih` (G·H, I), `hh` (G·H, P), biases (G·H,), `hr` (P, H) where states are projected."""

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    hr: Tensor | None = None


@dataclass(frozen=True)
class Passage:
    """One layer in one direction over padded sequences, in the order in which it took the time steps.

    `x` (T, B, I); `h` (T, B, P), its states; `h0` (B, P); `c0` (B, H), for an LSTM. Beyond a sequence's end `h` is 0.
    """

    mode: str
    weights: Weights
    x: Tensor
    h: Tensor
    h0: Tensor
    c0: Tensor | None = None


@dataclass(frozen=True)
class Backward:
    """`dh` (T, B, P): ∂L/∂h_t; `dc` (T, B, H): ∂L/∂c_t, LSTM only. `error`: of `h` against the equations.

    `ahead` computes ∂L/∂(W_ih x_t), (T, B, G·H).
    """

    dh: Tensor
    dc: Tensor | None
    ahead: Callable[[], Tensor]
    error: float


def backward(passage: Passage, dh: Tensor, dc: Tensor | None = None) -> Backward:
    """Back through time, in the precision of `dh`.

    `dh`, `dc`: what reaches each state from outside the recurrence; 0 beyond a sequence's end.
    """
    return _BACKWARD[passage.mode](passage, dh, dc)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x, weight, bias)


def _before(passage: Passage) -> Tensor:
    return torch.cat([passage.h0[None], passage.h[:-1]])


def _error(found: Tensor, given: Tensor) -> float:
    """The largest difference where a sequence has not ended, relative to the largest value."""
    if not given.numel():
        return 0.0
    alive = (given != 0).any(-1, keepdim=True)
    return float(((found - given) * alive).abs().max() / given.abs().max().clamp_min(torch.finfo(given.dtype).tiny))


def _gates(passage: Passage) -> Tensor:
    weights = passage.weights
    ahead = _linear(passage.x, weights.ih, weights.bias_ih)
    return ahead + _linear(_before(passage), weights.hh, weights.bias_hh)


def _back(*over_time: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The time steps of several (T, …) tensors, the last first."""
    return zip(*(reversed(one.unbind()) for one in over_time), strict=True)


def _forth(steps: list[Tensor]) -> Tensor:
    """Time steps that were gathered last first, as (T, …)."""
    return torch.stack(steps[::-1])


def _rnn(passage: Passage, dh: Tensor, _: Tensor | None) -> Backward:
    relu = passage.mode == "RNN_RELU"
    gates = _gates(passage)
    hh, h = passage.weights.hh.to(dh), passage.h.to(dh)
    slope = (h > 0).to(dh) if relu else 1 - h**2
    total, inner, carry = [], [], torch.zeros_like(dh[0])
    for arriving, factor in _back(dh, slope):
        total.append(arriving + carry)
        inner.append(total[-1] * factor)
        carry = inner[-1] @ hh
    found = gates.relu() if relu else gates.tanh()
    return Backward(_forth(total), None, lambda: _forth(inner), _error(found, passage.h))


def _lstm(passage: Passage, dh: Tensor, dc: Tensor | None) -> Backward:
    i, f, g, o = _gates(passage).chunk(4, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = passage.c0 if passage.c0 is not None else torch.zeros_like(i[0])
    after = []
    for kept, added in zip(f.unbind(), (i * g).unbind(), strict=True):
        c = torch.addcmul(added, kept, c)
        after.append(c)
    cell = torch.stack(after)
    before = torch.cat([passage.c0[None] if passage.c0 is not None else torch.zeros_like(cell[:1]), cell[:-1]])
    squashed = cell.tanh()
    inside = torch.cat([g * i * (1 - i), before * f * (1 - f), i * (1 - g**2), squashed * o * (1 - o)], -1)
    hh, hr = passage.weights.hh.to(dh), passage.weights.hr
    total, cells, inner = [], [], []
    carry_h, carry_c = torch.zeros_like(dh[0]), torch.zeros_like(i[0], dtype=dh.dtype)
    extra = torch.zeros_like(cell, dtype=dh.dtype) if dc is None else dc
    factors = (one.to(dh) for one in (f, o * (1 - squashed**2), inside))
    for arriving, arriving_c, kept, to_cell, factor in _back(dh, extra, *factors):
        total.append(arriving + carry_h)
        out = total[-1] if hr is None else total[-1] @ hr.to(dh)
        cells.append(torch.addcmul(carry_c + arriving_c, out, to_cell))
        inner.append(torch.cat([cells[-1], cells[-1], cells[-1], out], -1) * factor)
        carry_h, carry_c = inner[-1] @ hh, cells[-1] * kept
    found = o * squashed
    found = found if hr is None else found @ hr.T
    return Backward(_forth(total), _forth(cells), lambda: _forth(inner), _error(found, passage.h))


def _gru(passage: Passage, dh: Tensor, _: Tensor | None) -> Backward:
    weights, before = passage.weights, _before(passage)
    x_r, x_z, x_n = _linear(passage.x, weights.ih, weights.bias_ih).chunk(3, -1)
    h_r, h_z, h_n = _linear(before, weights.hh, weights.bias_hh).chunk(3, -1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    to_n = (1 - z) * (1 - n**2)
    to_r, to_z = to_n * h_n * r * (1 - r), (before - n) * z * (1 - z)
    to_hidden, hh = torch.cat([to_r, to_z, to_n * r], -1), weights.hh.to(dh)
    steps, carry = [], torch.zeros_like(dh[0])
    for arriving, kept, factor in _back(dh, z.to(dh), to_hidden.to(dh)):
        now = arriving + carry
        steps.append(now)
        carry = torch.addmm(now * kept, torch.cat([now, now, now], -1) * factor, hh)
    total = _forth(steps)
    to_ahead = torch.cat([to_r, to_z, to_n], -1)
    return Backward(total, None, lambda: total.repeat(1, 1, 3) * to_ahead, _error((1 - z) * n + z * before, passage.h))


_BACKWARD = {"RNN_TANH": _rnn, "RNN_RELU": _rnn, "LSTM": _lstm, "GRU": _gru}


def norms_along_time(gradients: Tensor) -> list[float]:
    """L2 of each time step of (T, B, H), right at any scale."""
    flat = gradients.flatten(1)
    peaks = flat.abs().amax(1)
    scale = torch.where(peaks.isfinite() & (peaks > 0), peaks, torch.ones_like(peaks))
    norms = torch.linalg.vector_norm(flat / scale[:, None], dim=1) * scale
    return [float(value) for value in norms.tolist()]


def largest_singular_value(matrix: Tensor, steps: int = 100) -> float:
    """σmax: exact for small matrices, else by power iteration from a fixed start (relative error about 1e-3)."""
    if max(matrix.shape) <= 256:
        return float(torch.linalg.matrix_norm(matrix, 2))
    vector = torch.sin(torch.arange(1, matrix.shape[1] + 1, dtype=matrix.dtype, device=matrix.device))
    for _ in range(steps):
        vector = matrix.T @ (matrix @ vector)
        vector = vector / torch.linalg.vector_norm(vector).clamp_min(torch.finfo(matrix.dtype).tiny)
    return float(torch.linalg.vector_norm(matrix @ vector))


def candidate(matrix: Tensor, mode: str) -> Tensor:
    """The rows of W_hh behind the activation that feeds the state: all of an RNN's, an LSTM's g, a GRU's n."""
    if mode == "LSTM":
        return matrix.chunk(4)[2]
    return matrix.chunk(3)[2] if mode == "GRU" else matrix


def reversed_in_time(padded: Tensor, lengths: Sequence[int]) -> Tensor:
    """(T, B, …) with each sequence turned round within its own length."""
    steps, count = padded.shape[:2]
    t = torch.arange(steps, device=padded.device)[:, None]
    ends = torch.tensor(lengths, device=padded.device)[None]
    index = torch.where(t < ends, ends - 1 - t, t)
    return padded[index, torch.arange(count, device=padded.device)[None]]
