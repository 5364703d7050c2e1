"""Where in the user's code an exception came from: file and line, the layer that raised, and what it was given."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from gradscope.capture.describe import clean_name, unwrap
from gradscope.workload.forward import called_on

_TORCH = Path(torch.__file__).parent
_OURS = Path(__file__).parents[1]


def place(error: BaseException) -> str:
    """`file:line` of the innermost frame that is neither torch's nor ours; empty if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(Path(frame.filename).is_relative_to(base) for base in (_TORCH, _OURS))]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""


def layer(error: BaseException, model: nn.Module) -> str:
    """The innermost module of `model` that was running and the shapes it was given; empty if none was."""
    names = {id(module): clean_name(name) for name, module in unwrap(model).named_modules()}
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = called_on(frame)
        if isinstance(module, nn.Module) and names.get(id(module)):
            found = _told(names[id(module)], module, frame)
    return found


def _told(name: str, module: nn.Module, frame: FrameType) -> str:
    code = frame.f_code
    values = [frame.f_locals.get(one) for one in code.co_varnames[1 : code.co_argcount]]
    shapes = [str(tuple(value.shape)) for value in values if isinstance(value, torch.Tensor)]
    given = f", given {', '.join(shapes)}" if shapes else ""
    return f"layer {name} ({str(module).splitlines()[0].rstrip('(')}{given})"
