"""The header of a run, `run.json`: what was measured, on what, and how it ended."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

SCHEMA_VERSION = 1
ROOT = "(root)"
"""What the model itself is called, whose name is empty."""
TARGETS = "(targets)"
"""What a trial standardises that enters no layer."""

MeasuredAt = Literal["pre_clip", "post_clip"]
GradientsAre = Literal["unscaled", "scaled"]
How = Literal["recording", "finished", "interrupted", "failed", "nonfinite"]


@dataclass(frozen=True)
class Parameter:
    """One parameter, named as `named_parameters()` names it.

    `layer` is the dotted path of the module that owns it and `type` that module's class name. `order` is the place of
    the layer in the forward pass (0 runs first; registration order where no forward pass was seen), so the backward
    pass meets the highest order first. `shape` is in elements.
    """

    name: str
    layer: str
    type: str
    shape: tuple[int, ...]
    dtype: str
    order: int
    trainable: bool = True
    shared_with: tuple[str, ...] = ()


def is_norm(kind: str) -> bool:
    """Whether modules of this class name normalise."""
    return "norm" in kind.lower()


@dataclass(frozen=True)
class Piece:
    """How one piece of the workload was read: `data | train_loader | model.py:41 | DataLoader, batch 64`."""

    piece: str
    value: str
    source: str
    detail: str = ""


@dataclass(frozen=True)
class Group:
    """One optimizer parameter group at step 0: its initial learning rate and its indexes into `Header.parameters`.

    `optimizer`: which of several optimizers holds it, counted from 0.
    """

    lr: float
    parameters: tuple[int, ...]
    optimizer: int = 0


@dataclass(frozen=True)
class Optimizer:
    """The optimizer by class name, with its groups in the order of the `lr` column."""

    type: str
    groups: tuple[Group, ...]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The real training that the window stands for.

    `lr_steps` and `lr` sample the planned learning-rate schedule: `lr[i][g]` is group g's rate at step `lr_steps[i]`.
    `max_norm` is the clipping threshold in use today. None: unknown, or none.
    """

    total_steps: int | None = None
    max_norm: float | None = None
    batch_size: int | None = None
    precision: str = "fp32"
    accumulate: int = 1
    lr_steps: tuple[int, ...] = ()
    lr: tuple[tuple[float, ...], ...] = ()

    @property
    def peak(self) -> float:
        """The highest learning rate of any group; 0 where the plan has none."""
        return max((rate for row in self.lr for rate in row), default=0.0)

    def rates_at(self, step: int) -> Sequence[float]:
        """Each group's rate at a step, on straight lines between the samples; empty where the plan has none."""
        steps = self.lr_steps
        if not steps:
            return ()
        after = min(bisect_right(steps, step), len(steps) - 1)
        before = max(after - 1, 0)
        if step >= steps[after] or after == before:
            return self.lr[after]
        share = max(0.0, (step - steps[before]) / (steps[after] - steps[before]))
        return [a + share * (b - a) for a, b in zip(self.lr[before], self.lr[after], strict=True)]


@dataclass(frozen=True)
class Trial:
    """What a child run tried.

    `kind`: rehearsal | replay | sweep | samples | window | candidate | remedy. `indexes[k]` is the step of the plan whose
    batch and learning rate trial step k used. `start`: `window` (the state after the window) or `initial` (the state before
    it). `lr_at`: `planned` (lr_factor × the planned rate of each index) or `peak` (× the highest planned rate to come).
    A `sweep` only looks: the loss of each batch, no step. So does `samples`: each sample of one step's batch by itself;
    `samples[k]` is the place in the data of sample k, where that is known. `warm_up`: the rate also rises over so many first
    steps of the plan. `layer` (or one parameter, `rnn.weight_hh_l0`, or rows of it, `…[32:64]`, or several layers with ", "
    between them) starts with its weights × `layer_scale`. `note`: what differs from the run itself, in plain words; for a
    remedy, its further lines are what to paste. Parameter group `group`, counted over all optimizers, has its rate ×
    `group_scale`. `perturbed`: the weights start × (1 + so much × normal noise), other noise for each `draw`.
    `shuffled`: above 0, its steps take their batches in another order, other for each number. `standardised`: each feature
    has mean 0 and variance 1, of what enters these layers, and of the `TARGETS`. `settings` replace those of
    every parameter group that has them.
    """

    kind: str
    name: str
    lr_factor: float = 1.0
    lr_at: str = "planned"
    max_norm: float | None = None
    start: str = "window"
    indexes: tuple[int, ...] = ()
    draw: int = 0
    warm_up: int | None = None
    layer: str | None = None
    layer_scale: float = 1.0
    group: int | None = None
    group_scale: float = 1.0
    note: str = ""
    samples: tuple[int, ...] = ()
    perturbed: float = 0.0
    shuffled: int = 0
    standardised: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Offender:
    """The first nonfinite value, from before it spread. `went_first`: loss | input | activation | operation | gradient.

    An operation is one of `operations`, computed after the layer. Beside an activation, they may be to blame instead of it.
    """

    step: int
    layer: str | None
    parameter: str | None
    went_first: str
    micro_step: int = 0
    batch: int | None = None
    operations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ending:
    """How the run ended, and at which step."""

    how: How = "recording"
    step: int | None = None
    message: str | None = None

    @property
    def known(self) -> bool:
        """Whether the run was closed, so that nothing more is written to it."""
        return self.how != "recording"


@dataclass(frozen=True)
class Header:
    """Everything about a run that is not a row of a table. Written once at the start and again, atomically, at the end."""

    name: str
    created: str
    source: str
    command: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    optimizer: Optimizer | None = None
    plan: Plan = Plan()
    pieces: tuple[Piece, ...] = ()
    ending: Ending = Ending()
    schema_version: int = SCHEMA_VERSION
    recorded_by: str = "analyze"
    framework: str | None = None
    """Whose trainer took the steps of a recorded script."""
    seed: int | None = None
    world_size: int = 1
    measured_at: MeasuredAt = "pre_clip"
    gradients_are: GradientsAre = "unscaled"
    synthetic_data: bool = False
    inferred_loss: bool = False
    shuffled: bool = False
    """Whether the order of the batches is known to be drawn at random, so that another one is as good."""
    on_policy: bool = False
    """Whether the data function called the model, as a policy's rollouts do."""
    versions: dict[str, str] = field(default_factory=dict)
    pid: int | None = None
    every: int = 1
    trial: Trial | None = None
    first_nonfinite: Offender | None = None
    notes: tuple[str, ...] = ()
    overhead_s: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """What the analysis was asked for: enough to do it again."""
    seeds: dict[str, int] = field(default_factory=dict)
    """Of an analysis with several seeds, in the first one's run: how many came to which verdict."""
    unmeasured: dict[str, str] = field(default_factory=dict)
    """Layers that a probe could not measure, each with the reason."""

    def piece(self, name: str) -> Piece | None:
        """How this piece was read; None where it was not."""
        return next((one for one in self.pieces if one.piece == name), None)


T = TypeVar("T")
_ATOMS = (str, int, float, bool, type(None))


def to_json(value: Any) -> Any:
    """A dataclass tree as plain JSON values."""
    if isinstance(value, _ATOMS):
        return value
    if isinstance(value, tuple | list):
        return value if all(type(item) in _ATOMS for item in value) else [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    kind: Any = type(value)
    return {name: to_json(getattr(value, name)) for name in _fields(kind)}


def from_json(cls: type[T], data: dict[str, Any]) -> T:
    """Rebuild a dataclass of this module; unknown keys are left out.

    Raises:
        TypeError, ValueError, KeyError: the data does not have the shape of `cls`.
    """
    if not isinstance(data, dict):
        raise TypeError(f"{cls.__name__} is {type(data).__name__}, not an object")
    kind: Any = cls
    return cls(**{name: _decode(hint, data[name]) for name, hint in _fields(kind).items() if name in data})


@functools.cache
def _fields(cls: type) -> dict[str, Any]:
    """The fields of a dataclass with their types."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _decode(hint: Any, value: Any) -> Any:
    if type(value) is hint:
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _decode(next(a for a in args if a is not type(None)), value)
    if origin is tuple:
        inner = args[0]
        return tuple([item if type(item) is inner else _decode(inner, item) for item in value])
    if origin is dict:
        return dict(value)
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{value!r} is none of {args}")
        return value
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value)  # type: ignore[arg-type]  # an instance is no hint
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    raise TypeError(f"expected {hint.__name__}, found {value!r}")
