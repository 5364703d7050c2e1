"""Which remedies to try next: a pure function of the run on disk, asked again until it wants nothing more.

Where it explodes, or will, loses what it learned, or learns nothing: lower learning rates (a higher one too where it
learns nothing), a longer warm-up, the culprit's initialisation scaled to its peers, and clipping, each from the start on
the same time-compressed rehearsal of the whole plan; then the best two that can be joined. A compressed rehearsal may
leave out the step where the plan fails, or fail where the plan holds: then they are tried on the plan in full, until
three hold, as far as the time allows it. A plan of a few hundred steps is tried in full at once.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from gradscope.diagnosis.data import compares_by_distance, harmful, odd_inputs, odd_targets
from gradscope.diagnosis.depth import FADED, GROWN, along_depth
from gradscope.diagnosis.layers import rank_layers
from gradscope.diagnosis.learning import SHARE, collapse, nothing_learned, unlearned, vanished, without_gradient
from gradscope.diagnosis.model import LayerRisk
from gradscope.diagnosis.plan import AFFORDED, even
from gradscope.diagnosis.rehearsals import horizon, in_other_orders, recommended, reference, stretch
from gradscope.diagnosis.settings import odd_settings
from gradscope.diagnosis.verdict import judge
from gradscope.diagnosis.window import broken_data, is_nonfinite
from gradscope.recommendation.candidates import DIVERGED, blew_up, candidates, final_loss
from gradscope.recommendation.plan import FINAL
from gradscope.recommendation.snippets import snippet_for
from gradscope.runs.run import Run
from gradscope.runs.schema import ROOT, TARGETS, Trial

LENGTH, LEAST = 100, 20
CLIP, WHOLE, ENOUGH = "clip", "-whole", 3
LOWER, HIGHER = (0.5, 0.25, 0.1), 10.0
WARM_UP_SHARE = 0.3


def next_remedies(run: Run, allowed: float = float("inf")) -> tuple[Trial, ...]:
    """The next trials of kind remedy within `allowed` training steps; empty when none is needed."""
    lost = unlearned(run) or nothing_learned(run) or vanished(run) is not None
    needed = lost or judge(run).may_explode
    if not needed or allowed < LEAST or broken_data(run):
        return ()
    tried = {name: one for name, one in run.trials.items() if one.header.trial and one.header.trial.kind == "remedy"}
    if not tried:
        wanted = _single(run)
        if broke := next(filter(is_nonfinite, in_other_orders(run)), None):
            wanted = [_in_the_order_of(broke, one) for one in wanted]
            return tuple(wanted[: int(min(allowed, 1e9) / len(wanted[0].indexes))])
        fits = allowed / (len(wanted) + 1)
        length = horizon(run) if horizon(run) <= min(FINAL, fits) else int(min(LENGTH, max(LEAST, fits)))
        indexes = tuple(int(i) for i in even(0, horizon(run), length))
        return tuple(_over(indexes, one) for one in wanted[: int(min(allowed, 1e9) / length)])
    pair = None if any("+" in name for name in tried) else _pair(run, tried)
    following = pair or _in_full(run, tried)
    return (following,) if following and len(following.indexes) <= allowed else ()


def _in_full(run: Run, tried: dict[str, Run]) -> Trial | None:
    """The next one to try in full: clipping, then single changes, those first that held compressed; none once three held.
    Rates and initial weights are tried even if they did not: what is compressed may be too short to learn.
    """
    whole = {name for name, one in tried.items() if is_whole(run, one)}
    if horizon(run) > AFFORDED or sum(held(run, tried[name]) for name in whole) >= ENOUGH:
        return None
    left = [name for name, one in tried.items() if name not in whole and name + WHOLE not in whole]
    hopeful = [name for name in left if held(run, tried[name]) or name == "init" or name.startswith("lr-")]

    def place(name: str) -> tuple[bool, bool, bool, float]:
        return name != CLIP, "+" in name, not held(run, tried[name]), final_loss(run, tried[name])

    trial = tried[min(hopeful, key=place)].header.trial if hopeful else None
    if trial is None:
        return None
    return replace(trial, name=trial.name + WHOLE, indexes=tuple(range(horizon(run))), max_norm=recommended(trial))


def is_whole(run: Run, trial: Run) -> bool:
    """Whether a trial was to take every step of the plan."""
    return trial.header.trial is not None and len(trial.header.trial.indexes) == horizon(run)


def _single(run: Run) -> list[Trial]:
    def remedy(name: str, note: str, paste: str, **change: object) -> Trial:
        return replace(Trial("remedy", name, start="initial", note=f"{note}\n{paste}"), **change)  # type: ignore[arg-type]  # names of fields

    rates = run.header.optimizer.groups if run.header.optimizer else ()
    peak = max((rate for row in run.header.plan.lr for rate in row), default=rates[0].lr if rates else 0.0)
    wanted = [one for one in (_standardised(run), _usual_settings(run)) if one]
    wanted += [
        remedy(
            f"lr-{factor:g}",
            f"learning rate × {factor:g}",
            f"lr *= {factor:g}  # wherever you set it; its peak becomes {peak * factor:.4g}",
            lr_factor=factor,
        )
        for factor in ((*LOWER[1:], HIGHER) if nothing_learned(run) and not unlearned(run) else LOWER)
    ]
    steps = min(horizon(run), max(10, int(WARM_UP_SHARE * horizon(run)), 2 * _peak_step(run)))
    wanted.append(remedy("warm-up", f"a warm-up over {steps} steps on top", _warm_up(steps), warm_up=steps))
    if top := _accused(run, "initialisation"):
        scale = 1 / (top.factor or 1.0)
        what = top.weights or top.name
        paste = f"{_scaled(run, top, scale)}  # before training"
        wanted.append(remedy("init", f"{what} starts × {scale:.3g}", paste, layer=what, layer_scale=scale))
    elif (depth := along_depth(run)) and not FADED <= depth.total <= GROWN:
        scale, all_of = 1 / depth.rate, _of_types(run, depth.types)
        note = f"all {len(all_of)} layers of type {' and '.join(depth.types)} start × {scale:.3g}"
        wanted.append(remedy("init", note, _all_scaled(depth.types, scale), layer=", ".join(all_of), layer_scale=scale))
    if group := _fast_group(run):
        number, scale = group
        where, own = _group_named(run, number)
        paste = f'optimizer.param_groups[{own}]["lr"] *= {scale:.3g}  # {where}before the scheduler is made'
        note = f"{where}parameter group {own} learns at × {scale:.3g}"
        wanted.append(remedy("group", note, paste, group=number, group_scale=scale))
    winner = next((c for c in candidates(run) if c.chosen), None)
    if winner and winner.max_norm is not None:
        paste = snippet_for(run, "pytorch", winner.max_norm)
        wanted.append(remedy(CLIP, f"clip at {winner.max_norm:.4g}", paste, max_norm=winner.max_norm))
    return wanted


def _standardised(run: Run) -> Trial | None:
    """Data of an odd size with mean 0 and variance 1 in each feature; as lines for data that is one array."""
    inputs, targets = odd_inputs(run), odd_targets(run) if compares_by_distance(run) else None
    if not (inputs or targets) or not harmful(run):
        return None
    of: dict[str, str] = {}
    lines = []
    if inputs and inputs.layer is not None:
        sliding = re.search(r"Conv(\d)d", inputs.type)
        over = f"({', '.join(map(str, (0, *range(2, 2 + int(sliding[1])))))}), keepdim=True" if sliding else "0"
        of[inputs.layer] = f"each {'channel' if sliding else 'feature'} that enters {inputs.layer or ROOT}"
        lines.append(_standard_line("X", over, "inputs; the same mean and std for others"))
    if targets:
        of[TARGETS] = "each target"
        if not inputs or not math.isclose(inputs.rms, targets.rms, rel_tol=1e-6):
            lines.append(_standard_line("Y", "0", "targets; outputs × that std + that mean are of the old scale"))
    note = "\n".join([f"{' and '.join(of.values())} with mean 0 and variance 1", *lines])
    return Trial("remedy", "data", start="initial", note=note, standardised=tuple(of))


def _usual_settings(run: Run) -> Trial | None:
    """The optimizer with the usual value of every setting that is far from it."""
    usual = {one.key: one.usual for one in odd_settings(run)}
    if not usual:
        return None
    told = " and ".join(f"{key} {value}" for key, value in usual.items())
    given = ", ".join(f"{key}={value}" for key, value in usual.items())
    note = f"{told}\n[group.update({given}) for group in optimizer.param_groups]  # or where you make the optimizer"
    kept = {key: list(value) if isinstance(value, tuple) else value for key, value in usual.items()}
    return Trial("remedy", "settings", start="initial", note=note, settings=kept)


def _standard_line(name: str, over: str, what: str) -> str:
    return f"{name} = ({name} - {name}.mean({over})) / ({name}.std({over}) + 1e-8)  # {name}: the training {what}"


def _accused(run: Run, component: str) -> LayerRisk | None:
    """The layer most at risk that stands out by this cause."""
    return next((one for one in rank_layers(run) if one.level != "low" and one.component == component), None)


def _fast_group(run: Run) -> tuple[int, float] | None:
    """The parameter group whose rate accuses its layer, and the factor that brings it to the layer's peers."""
    top = _accused(run, "learning rate")
    if top is None or not top.factor or run.header.optimizer is None:
        return None
    groups = run.header.optimizer.groups
    own = {i for i, parameter in enumerate(run.header.parameters) if parameter.layer == top.name}
    held = [i for i, group in enumerate(groups) if own & set(group.parameters)]
    return max(held, key=lambda i: groups[i].lr), 1 / top.factor


def _group_named(run: Run, number: int) -> tuple[str, int]:
    """Which of several optimizers holds a group ("" where there is one alone), and its place among that one's groups."""
    assert run.header.optimizer is not None
    holders = [group.optimizer for group in run.header.optimizer.groups]
    which, kinds = holders[number], run.header.optimizer.type.split(" + ")
    where = f"optimizer {which + 1} of {len(kinds)} ({kinds[which]}), " if len(kinds) > 1 else ""
    return where, number - holders.index(which)


def _scaled(run: Run, risk: LayerRisk, scale: float) -> str:
    """What scales a layer's matrices, of which there may be several and of any name, or the one that is to blame."""
    module, own = (
        f'model.get_submodule("{risk.name}")',
        [one for one in run.header.parameters if one.layer == risk.name],
    )
    if risk.weights:
        parameter, bracket, rows = risk.weights.rpartition(".")[2].partition("[")
        return f"{module}.{parameter}.data{bracket}{rows}.mul_({scale:.3g})"
    matrices = [one.name.rpartition(".")[2] for one in own if len(one.shape) > 1]
    if len(matrices) > 1:
        return f"[w.data.mul_({scale:.3g}) for w in {module}.parameters(recurse=False) if w.dim() > 1]"
    return f"{module}.{matrices[0] if matrices else 'weight'}.data.mul_({scale:.3g})"


def _of_types(run: Run, types: tuple[str, ...]) -> list[str]:
    """The layers of these types that have a matrix."""
    matrices = [one for one in run.header.parameters if len(one.shape) > 1 and one.type in types]
    return list(dict.fromkeys(one.layer for one in matrices))


def _all_scaled(types: tuple[str, ...], scale: float) -> str:
    return (
        f"for module in model.modules():  # before training\n    if type(module).__name__ in {types!r}:\n"
        f"        [w.data.mul_({scale:.3g}) for w in module.parameters(recurse=False) if w.dim() > 1]"
    )


def _in_the_order_of(broke: Run, one: Trial) -> Trial:
    """The remedy on the batches of a trial that did not hold, in their order."""
    made = broke.header.trial
    assert made is not None
    return replace(_over(made.indexes, one), shuffled=made.shuffled)


def _over(indexes: tuple[int, ...], one: Trial) -> Trial:
    """The remedy on these steps; a threshold grows as for every compressed trial."""
    spread = replace(one, indexes=indexes)
    return spread if one.max_norm is None else replace(spread, max_norm=one.max_norm * stretch(spread))


def _peak_step(run: Run) -> int:
    """The planned step at which the learning rate first reaches its peak."""
    rates = [max(row) for row in run.header.plan.lr]
    return run.header.plan.lr_steps[rates.index(max(rates))] if rates else 0


def _warm_up(steps: int) -> str:
    schedule = "torch.optim.lr_scheduler.LambdaLR"
    return f"scheduler = {schedule}(optimizer, lambda step: min(1.0, (step + 1) / {steps}))  # × your own schedule"


def _pair(run: Run, tried: dict[str, Run]) -> Trial | None:
    """The two best that held and change different things, as one; where none held, other initial weights at a tenth of the
    rate: what passes gradients on may ask for smaller steps.
    """
    good = [one for one in sorted(tried.values(), key=lambda one: final_loss(run, one)) if held(run, one)]
    best = [one.header.trial for one in good or map(tried.get, ("init", "lr-0.1")) if one and one.header.trial]
    if not good:
        return _joined(*best) if len(best) > 1 else None
    for other in best[1:]:
        if _kind(best[0]) != _kind(other):
            return _joined(best[0], other)
    return None


def _joined(one: Trial, other: Trial) -> Trial:
    changes, pastes = zip(*(trial.note.split("\n", 1) for trial in (one, other)), strict=True)
    plain = Trial("remedy", "", note="")
    fields = (
        "lr_factor",
        "warm_up",
        "layer",
        "layer_scale",
        "group",
        "group_scale",
        "max_norm",
        "standardised",
        "settings",
    )
    taken = {name: getattr(other, name) for name in fields if getattr(other, name) != getattr(plain, name)}
    note = " and ".join(changes) + "\n" + "\n".join(pastes)
    return replace(one, name=f"{one.name}+{other.name}", note=note, **taken)


def _kind(trial: Trial) -> str:
    return trial.name.split("-")[0]


def held(run: Run, trial: Run) -> bool:
    """Whether a remedy's trial stayed finite, did not blow up on the way and ended near where the window began, or below it,
    with what it learned; where the training as it is ends at chance, below that; where it loses what it learned, nearer to
    the best than to its end.
    """
    end, limit = final_loss(run, trial), DIVERGED * reference(run).first_loss
    if chance := nothing_learned(run):
        limit = (1 - SHARE) * chance.before
    elif not judge(run).may_explode and (lost := unlearned(run)):
        limit = (lost.best + lost.end) / 2
    blown = blew_up(trial, reference(run).first_loss)
    return end <= limit and not blown and collapse(trial.loss) is None and without_gradient([trial]) is None
