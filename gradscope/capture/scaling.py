"""Mixed precision: autocast and loss scaling as the plan says."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from gradscope.workload.model import Workload

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(workload: Workload) -> AbstractContextManager[object]:
    """The context that the forward pass runs in."""
    dtype = _DTYPES.get(workload.plan.precision)
    return nullcontext() if dtype is None else torch.autocast(workload.device.type, dtype)


def scaler_of(workload: Workload) -> torch.amp.GradScaler | None:
    """The workload's loss scaler; fp16 gets one at its first step, other precisions need none."""
    if workload.scaler is None and workload.plan.precision == "fp16":
        workload.scaler = torch.amp.GradScaler(workload.device.type)
    return workload.scaler


def scale_of(scaler: torch.amp.GradScaler) -> torch.Tensor | float:
    """What it multiplies losses by now; a tensor where that is on a device, which is not waited for."""
    scale = scaler._get_scale_async()
    return scaler.get_scale() if scale is None or scale.is_cpu else scale
