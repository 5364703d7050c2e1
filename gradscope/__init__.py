"""gradscope: which layer starts an explosion, whether it is about to happen, and which threshold holds.

>>> import gradscope
>>> report = gradscope.analyze("model.py", steps=50)          # doctest: +SKIP
>>> report.to_dict()["verdict"]                               # doctest: +SKIP
'thin-headroom'

Names are imported when first used, so that reading a run never loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradscope.analysis import analyze
    from gradscope.capture.clipping import clip_grad_norm_
    from gradscope.capture.recorder import Recorder
    from gradscope.recommendation import recommend
    from gradscope.runs.reader import load_run

__version__ = "0.1.0"
__all__ = ["Recorder", "analyze", "clip_grad_norm_", "load_run", "recommend"]

_HOMES = {
    "Recorder": "gradscope.capture.recorder",
    "analyze": "gradscope.analysis",
    "clip_grad_norm_": "gradscope.capture.clipping",
    "load_run": "gradscope.runs.reader",
    "recommend": "gradscope.recommendation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradscope' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
