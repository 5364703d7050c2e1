"""Does a trained model do better on the targets that belong to its inputs than on those of other samples?

A model at chance does as well on either, whatever its loss is. Measured at the end of a trial, forward only.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gradscope.capture.recorder import Recorder
from gradscope.capture.scaling import autocast
from gradscope.workload.forward import TARGET_KEYS
from gradscope.workload.model import Workload
from gradscope.workload.move import to_device

PROBE, OWN, OTHERS = "target_loss", "own", "others"
PAIRS = 10
SAME = 1e-6
"""Losses this close, relative to their size, are one."""


def measure_pairing(workload: Workload, indexes: Sequence[int], recorder: Recorder) -> None:
    """For each of the last batches of `indexes`, the loss with its own targets and with those rolled by half a batch.

    Probe `target_loss`, subjects "own" and "others", at the batch's position. Nothing is measured where a batch is no pair
    of input and target (or a mapping with labels), where targets do not matter to the loss, or where input and target enter
    it apart, as in a game of two networks.
    """
    first = len(indexes) - PAIRS
    if first < 0:
        return
    try:
        micros = [index * workload.plan.accumulate for index in indexes[first:]]
        batches = [to_device(workload.batches.at(micro), workload.device) for micro in micros]
        if any(_rolled(batch) is None for batch in batches):
            return
        pairs = [(_loss(workload, batch), _loss(workload, _rolled(batch))) for batch in batches]
        if not _belong_together(workload, batches, pairs):
            return
    except Exception:  # the user's loss may take no batch but its own
        return
    for position, (own, others) in enumerate(pairs, first):
        recorder.probe(PROBE, [OWN, OTHERS], [own, others], step=position)


def _belong_together(workload: Workload, batches: Sequence[Any], pairs: Sequence[tuple[float, float]]) -> bool:
    """Whether the loss depends on the targets, and on input and target together unless it ignores the input."""
    here, there = batches[0], batches[1]
    own = pairs[0][0]
    if _same(own, _loss(workload, _with_target(here, _target(there)))):
        return False
    ignores_input = _same(own, _loss(workload, _with_target(there, _target(here))))
    return ignores_input or not all(_same(*pair) for pair in pairs)


def _loss(workload: Workload, batch: Any) -> float:
    torch.manual_seed(workload.seed)
    with torch.no_grad(), autocast(workload):
        return float(workload.training_step(workload.model, batch))


def _rolled(batch: Any) -> Any:
    """The batch with each sample's target given to another sample; None where that cannot be done."""
    target = _target(batch)
    if not isinstance(target, torch.Tensor) or not target.dim() or len(target) < 2:
        return None
    return _with_target(batch, target.roll(len(target) // 2, 0))


def _target(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return next((batch[key] for key in TARGET_KEYS if key in batch), None)
    return batch[1] if isinstance(batch, tuple | list) and len(batch) == 2 else None


def _with_target(batch: Any, target: Any) -> Any:
    if isinstance(batch, Mapping):
        changed: Any = copy.copy(batch)
        key = next(key for key in TARGET_KEYS if key in batch)
        changed[key] = target
        return changed
    return type(batch)(batch[0], target) if hasattr(batch, "_fields") else type(batch)((batch[0], target))


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= SAME * max(abs(one), abs(other))
