"""A script being recorded: what its calls into torch mean for which of its trainings."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from gradscope.capture.distributed import rank, world_size
from gradscope.capture.later import Number, soon
from gradscope.capture.recorder import Recorder
from gradscope.integrations.find import forward_order, in_order, in_shards, models_of, trainer, variable_of
from gradscope.integrations.guard import AT_ONCE, CannotRecordError, Threads, guarded
from gradscope.integrations.holdings import ByHand, Registry, held, mark_of
from gradscope.integrations.objective import Loss, Objective
from gradscope.integrations.say import say
from gradscope.integrations.sentinels import Mark
from gradscope.integrations.track import Track
from gradscope.runs import events
from gradscope.runs.catalogue import new_run_directory
from gradscope.runs.schema import Ending, Header

CLIPS = frozenset({"clip_grad_norm_", "clip_grad_norm", "clip_grad_value_", "clip_grads_with_norm_", "clip_gradients"})

IN_SHARDS = (
    "FullyShardedDataParallel leaves each process a part of every gradient, and no norm of the whole; "
    "torch.distributed.fsdp.fully_shard is recorded"
)
MOST_RENEWALS = 16
"""Trainings that are begun because another got more parameters; those that come later are not recorded."""
MOST_LOOSE = 256
"""Losses that are kept while it is unknown what they train."""


class Session:
    """Every training of one script, each with its recorder. Its methods are called by the patches of `torch_calls`.

    `header` is what all their runs share; `root` the folder that holds `.gradscope`.
    """

    def __init__(
        self, header: Header, *, root: Path | None = None, every: int = 1, max_rows: int | None = None
    ) -> None:
        self.header, self.root, self.every, self.max_rows = header, root, every, max_rows
        self.armed, self.differentiating, self.compiled_step, self.captured = True, False, False, False
        self.failure: str | None = None
        self.tracks: list[Track] = []
        self.runs: list[Path] = []
        self.steps: dict[Path, int] = {}
        self.backwards = self.clips = 0
        self.batch: int | None = None
        self.steps_seen = self.taken = 0
        self._optimizers = Registry()
        self._by_parameter: dict[int, Track] = {}
        self._by_optimizer: dict[int, Track] = {}
        self._loose = deque[tuple[Loss, Number, int | None]](maxlen=MOST_LOOSE)
        self._order: dict[int, int] = {}
        self._unclaimed: list[tuple[torch.optim.Optimizer, Mark]] = []
        self._fresh: set[int] = set()
        self.objective = Objective()
        self._running: list[int] = []
        self.threads = Threads()
        self._closures = self._renewals = 0
        self._over: list[Track] = []

    def captures(self) -> bool:
        """Whether what the script does now is only noted down in a CUDA graph, which repeats it unseen."""
        begun = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        now = begun and torch.cuda.is_current_stream_capturing()
        if now and not self.captured:
            self.captured = True
            say("gradscope: steps that a CUDA graph replays are not recorded")
        return now

    def disarm(self, why: str) -> None:
        """Stop recording for good."""
        self.armed, self.failure = False, why
        say(f"gradscope: recording stopped, the script goes on ({why})")
        for track in self.tracks:
            track.recorder.close(Ending("interrupted", track.recorder.step, f"recording stopped: {why}"))
            self._count(track)

    @guarded
    def scaling(self, scaler: Any, loss: Any, scaled: Any) -> None:
        """A gradient scaler has multiplied `loss`, which gave `scaled`."""
        self.objective.scaling(scaler, loss, scaled)

    @guarded
    def before_backward(self, roots: Sequence[Any]) -> None:
        """Gradients are about to be computed from `roots`."""
        if self.threads.returned():
            self.disarm(AT_ONCE)
            return
        self.backwards += 1
        self._put_away()
        if not self._closures:
            self._running.clear()
        for track in self.tracks[:]:
            if track.left_out:
                self._part(track)
                continue
            if self.compiled_step:
                track.stepped_unseen()
            self._follow(track)
        self.compiled_step = False
        self._unclaimed = [(one, mark_of(one)) for one in self._free()]
        if self._unclaimed or self.backwards == 1:
            self._order = forward_order(roots)
        for track in self.tracks:
            track.before_backward()
        self.objective.begin(roots)

    @guarded
    def after_backward(self, roots: Sequence[Any]) -> None:
        """Gradients were computed from `roots`."""
        loss, scale = self.objective.end(roots)
        if self.objective.origin is not None:
            for track in self.tracks:
                track.blame(self.objective.origin)
        received = [track.after_backward(loss, scale, self.batch) for track in self.tracks]
        free, self._unclaimed = self._unclaimed, []
        fresh = {id(one) for one, mark in free if mark != mark_of(one)}
        if fresh or not (free or any(received)):
            self._loose.append((loss, scale, self.batch))
        if not (fresh or any(received)):
            for track in self.tracks:
                track.doubt()
        if fresh:
            self._fresh |= fresh
            self._begin_track()

    def _owners(self, tensors: Sequence[torch.Tensor]) -> list[Track]:
        """The trainings that the tensors belong to."""
        if len(self.tracks) == 1 and id(tensors[0]) in self._by_parameter:
            return self.tracks[:]
        return list(dict.fromkeys(self._by_parameter[id(t)] for t in tensors if id(t) in self._by_parameter))

    @guarded
    def before_clip(self, tensors: Sequence[torch.Tensor], limit: float, raises: bool) -> list[Track]:
        """The script is about to clip the gradients of `tensors`; returns the trainings they belong to."""
        self.clips += 1
        tracks = self._owners(tensors)
        if not tracks and self._begin_track(tensors):
            tracks = self._owners(tensors)
        for track in tracks:
            track.before_clip(tensors, limit, raises)
        return tracks

    @guarded
    def read(self, tracks: Sequence[Track], limit: float = math.nan) -> None:
        """Read the gradients of `tracks` before they are clipped at an L2 norm of `limit`."""
        for track in tracks:
            track.read(limit / float(track.scale))

    @guarded
    def to_share(self, tracks: Sequence[Track], limit: float) -> list[Recorder]:
        """Recorders that read the gradients while they are clipped at `limit`; the others read them now."""
        fresh = [track for track in tracks if track.due and track.recorder.reading is None and track.scale == 1.0]
        self.read([track for track in tracks if track not in fresh], limit)
        return [track.recorder for track in fresh]

    @guarded
    def clipped(self, tracks: Sequence[Track], event: str = "", subject: str = "", value: float = math.nan) -> None:
        """The gradients of `tracks` were clipped; `event`: in what unusual way."""
        for track in tracks:
            track.clipped()
            if event:
                track.order.take(event, subject, value)

    @guarded
    def owners(self, gradients: Sequence[torch.Tensor]) -> list[Track]:
        """The trainings that all their gradients are among `gradients`."""
        given = {id(one) for one in gradients}
        tracks = [track for track in self.tracks if track.gradients() <= given]
        for track in tracks:
            track.forget_stale()
        return tracks

    @guarded
    def unscaled(self, optimizer: torch.optim.Optimizer) -> None:
        """A gradient scaler has divided the gradients of `optimizer` by its scale."""
        if track := self.track_of(optimizer):
            track.scale = 1.0

    @guarded
    def enter_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's own step begins."""
        if self.differentiating:
            inside = "an optimizer steps inside backward(): no moment has all gradients of a step"
            self.disarm(self.threads.reason(inside))
        self._running.append(id(optimizer))

    @guarded
    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer is about to use its gradients."""
        if self._outermost(optimizer) and (track := self.track_of(optimizer)):
            track.before_step(optimizer)

    @guarded
    def after_step(self, optimizer: torch.optim.Optimizer, kept: torch.Tensor | float = 0.0) -> None:
        """The optimizer has used them, or a gradient scaler has kept it from that: then `kept` is above 0."""
        outermost = self._outermost(optimizer)
        if id(optimizer) in self._running:
            self._running.reverse()
            self._running.remove(id(optimizer))
            self._running.reverse()
        self._loose.clear()
        self.steps_seen += 1
        if outermost and (track := self.track_of(optimizer)):
            track.after_step(optimizer, skipped=soon(kept))

    @guarded
    def around_closure(self, optimizer: torch.optim.Optimizer, change: int) -> None:
        """A closure of the optimizer begins (1) or ends (-1): its first call is the step, the others are its own search."""
        self._closures += change
        track = self.track_of(optimizer) if change < 0 else None
        if track is not None and not track.inside_closure:
            track.before_step(optimizer)
            track.inside_closure = True

    @guarded
    def scheduled(self, optimizer: torch.optim.Optimizer) -> None:
        """A learning-rate scheduler of `optimizer` moved on."""
        if track := self._known(optimizer):
            track.scheduled(optimizer)

    def track_of(self, optimizer: torch.optim.Optimizer, *, begin: bool = True) -> Track | None:
        """The training that `optimizer` belongs to; a new one where it holds parameters that none knows."""
        track = self._known(optimizer)
        if track is None and begin:
            track = self._begin_track(held(optimizer), optimizer)
        if track is not None and id(optimizer) not in self._by_optimizer:
            self._join(track, optimizer)
        return track

    def _known(self, optimizer: torch.optim.Optimizer) -> Track | None:
        """The training that `optimizer`, or what it wraps, belongs to."""
        if track := self._by_optimizer.get(id(optimizer)):
            return track
        return next((self._by_parameter[id(p)] for p in held(optimizer) if id(p) in self._by_parameter), None)

    @guarded
    def register(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer was made."""
        self._optimizers.add(optimizer)
        self.track_of(optimizer, begin=False)

    def close(self, ending: Callable[[int], Ending], names: Collection[str] = ()) -> None:
        """The script is over; `ending(step)` says how, for a training that reached that step. `names`: what it mentions."""
        if not self.armed:
            return
        unreached = sorted(CLIPS & set(names)) if not self.clips else []
        for track in self.tracks:
            try:
                if unreached:
                    track.order.take(events.CLIP_UNREACHED, unreached[0], 0.0, back=1)
                self._close(track, ending)
            except Exception as error:
                self.disarm(f"{type(error).__name__}: {error}")
        self.armed = False

    def _close(self, track: Track, ending: Callable[[int], Ending] | None) -> None:
        track.close(ending)
        self._count(track)

    def _count(self, track: Track) -> None:
        self.taken += track.recorder.step
        if track.recorder.writes:
            self.steps[track.recorder.directory] = track.recorder.step

    def best_first(self) -> list[Path]:
        """The runs, the one with the most steps first; among equals the first begun."""
        return sorted(self.runs, key=lambda run: -self.steps.get(run, 0))

    def missing(self) -> str | None:
        """Why no step was recorded, where none was."""
        if self.taken:
            return None
        if self.failure:
            return f"recording stopped: {self.failure}"
        if self.captured:
            return "its steps are replayed from a CUDA graph, which is not seen"
        if not self.backwards:
            return "the script never called backward(); processes that it starts itself are not recorded"
        if self.runs:
            return "gradients were computed, but no optimizer step was taken"
        return "gradients were computed, but no torch optimizer or clipping function used them"

    def leave(self, status: int) -> None:
        """The script ends its process here and now."""
        if os.getpid() == self.header.pid:
            self.close(lambda step: Ending("finished", step, f"os._exit({status})"))

    def _begin_track(
        self, tensors: Iterable[torch.Tensor] = (), optimizer: torch.optim.Optimizer | None = None
    ) -> Track | None:
        """Open a recorder for the optimizers that hold gradients, or for `tensors` where nothing else holds them."""
        chosen = [one for one in self._free() if one is optimizer or id(one) in self._fresh]
        parameters = [p for one in chosen for p in held(one)] or list(tensors)
        if not any(p.grad is not None for p in parameters):
            return None
        return self._open(chosen, parameters)

    def _open(self, chosen: list[torch.optim.Optimizer], parameters: list[torch.Tensor]) -> Track:
        elsewhere = {id(p) for one in self._optimizers if one not in chosen for p in held(one)}
        holders: Any = chosen or [ByHand(parameters)]
        models = models_of(parameters, elsewhere)
        name = self._name(variable_of(models.values()) if elsewhere else "")
        if in_shards(models.values()):
            raise CannotRecordError(IN_SHARDS)
        recorder = Recorder(
            models,
            holders,
            directory=new_run_directory(name, self.root) if rank() == 0 else None,
            header=dataclasses.replace(self.header, name=name, framework=trainer(), world_size=world_size()),
            every=self.every,
            max_rows=self.max_rows,
        )
        return self._begun(recorder, chosen)

    def _part(self, track: Track) -> None:
        """The first backward gave gradients to optimizers that did not step with the others: they train apart."""
        stepped = [one for one in track.optimizers if one not in track.left_out]
        self._release(track)
        self._discard(track)
        self._open(stepped, [p for one in stepped for p in held(one)]).take_over(track)

    def _release(self, track: Track) -> None:
        """Its optimizers and parameters are free for another training."""
        self._forget(track)
        for one in track.optimizers:
            self._by_optimizer.pop(id(one), None)
        self._fresh.clear()

    def _discard(self, track: Track) -> None:
        track.recorder.close()
        if track.recorder.writes:
            self.runs.remove(track.recorder.directory)
            shutil.rmtree(track.recorder.directory, ignore_errors=True)

    def _follow(self, track: Track) -> None:
        """Its optimizers may hold other parameters than before; where there are more, it goes on as another training."""
        for one in track.optimizers:
            swaps, more = track.holdings.news(one, track.parameters, self._by_parameter, closely=track.changes.looks)
            if swaps:
                track.replace(swaps)
                self._by_parameter = {key: its for key, its in self._by_parameter.items() if key not in swaps}
                self._by_parameter |= dict.fromkeys(track.parameters, track)
            elif more and self._renewals < MOST_RENEWALS:
                self._renewals += 1
                self._release(track)
                self._end(track)
                return

    def _end(self, track: Track) -> None:
        """Parameters were added: what follows is another run, and this one none if it holds no step."""
        if track.recorder.step:
            self._close(
                track, lambda step: Ending("finished", step, "parameters were added: what follows is another run")
            )
        else:
            self._discard(track)

    def _begun(self, recorder: Recorder, optimizers: list[torch.optim.Optimizer]) -> Track:
        recorder.update_header(parameters=in_order(recorder.header.parameters, recorder.tensors, self._order))
        if not optimizers:
            recorder.update_header(optimizer=None)
        recorder.release_optimizers()
        track = Track(recorder)
        self.tracks.append(track)
        self._by_parameter |= dict.fromkeys(track.parameters, track)
        if recorder.writes:
            self.runs.append(recorder.directory)
        for loss, scale, batch in self._loose:
            track.after_backward(loss, scale, batch)
        self._loose.clear()
        for one in optimizers:
            self._join(track, one)
        return track

    def _free(self) -> list[torch.optim.Optimizer]:
        """Optimizers that belong to no training yet."""
        return [one for one in self._optimizers if id(one) not in self._by_optimizer]

    def _outermost(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether no other optimizer of the same training, and no `step` of a subclass, is calling this one."""
        if self._running.count(id(optimizer)) > 1:
            return False
        if not self._running or self._running[0] == id(optimizer):
            return True
        first = self._by_optimizer.get(self._running[0])
        return first is None or first is not self.track_of(optimizer)

    def _join(self, track: Track, optimizer: torch.optim.Optimizer) -> None:
        track.join(optimizer)
        self._by_optimizer[id(optimizer)] = track
        weakref.finalize(optimizer, self._lost, id(optimizer)).atexit = False

    def _lost(self, key: int) -> None:
        """An optimizer was deleted: without one its training is over. Called by the collector, so it only takes a note."""
        track = self._by_optimizer.pop(key, None)
        if track is not None and track not in self._by_optimizer.values():
            self._over.append(track)

    def _put_away(self) -> None:
        """Close the trainings that are over, so that their models can be freed."""
        while self._over:
            track = self._over.pop()
            if not track.optimizers and track in self.tracks:
                self._forget(track)
                self._close(track, None)

    def _forget(self, track: Track) -> None:
        self.tracks.remove(track)
        for key in track.parameters:
            self._by_parameter.pop(key, None)

    def _name(self, variable: str) -> str:
        """The script's; of adversaries with the variable that holds the model, of several trainings numbered."""
        ending = variable or (str(len(self.runs) + 1) if self.runs else "")
        return f"{self.header.name}-{ending}" if ending else self.header.name
