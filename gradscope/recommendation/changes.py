"""Single changes to try as remedies, each as a trial whose note says what it changes and, from its second line on, what to
paste.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace

from gradscope.diagnosis.data import compares_by_distance, odd_inputs, odd_targets
from gradscope.diagnosis.depth import FADED, GROWN, along_depth
from gradscope.diagnosis.layers import rank_layers
from gradscope.diagnosis.learning import nothing_learned, unlearned
from gradscope.diagnosis.model import LayerRisk
from gradscope.diagnosis.rehearsals import horizon
from gradscope.diagnosis.settings import odd_settings
from gradscope.diagnosis.severity import goes_wrong
from gradscope.recommendation.candidates import candidates
from gradscope.recommendation.snippets import snippet_for
from gradscope.runs.run import Run
from gradscope.runs.schema import ROOT, TARGETS, Trial

CLIP = "clip"
LOWER, HIGHER = (0.5, 0.25, 0.1), 10.0
WARM_UP_SHARE = 0.3


def single_changes(run: Run) -> list[Trial]:
    """Every change that this run asks for; what is the most likely cause first."""
    found = (_data, _settings, _rates, _warm_up, _weights, _group, _clip)
    return [trial for change in found for trial in change(run)]


def joined(one: Trial, other: Trial) -> Trial:
    """Both changes at once, on the steps of the first."""
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


def _remedy(name: str, note: str, *paste: str, **change: object) -> Trial:
    trial = Trial("remedy", name, start="initial", note="\n".join([note, *paste]))
    return replace(trial, **change)  # type: ignore[arg-type]  # names of fields


def _data(run: Run) -> Iterator[Trial]:
    """Data of an odd size with mean 0 and variance 1 in each feature; as lines for data that is one array."""
    inputs, targets = odd_inputs(run), odd_targets(run) if compares_by_distance(run) else None
    if not (inputs or targets) or not goes_wrong(run):
        return
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
    yield _remedy("data", f"{' and '.join(of.values())} with mean 0 and variance 1", *lines, standardised=tuple(of))


def _standard_line(name: str, over: str, what: str) -> str:
    return f"{name} = ({name} - {name}.mean({over})) / ({name}.std({over}) + 1e-8)  # {name}: the training {what}"


def _settings(run: Run) -> Iterator[Trial]:
    """The optimizer with the usual value of every setting that is far from it."""
    usual = {one.key: one.usual for one in odd_settings(run)}
    if usual:
        told = " and ".join(f"{key} {value}" for key, value in usual.items())
        given = ", ".join(f"{key}={value}" for key, value in usual.items())
        paste = f"[group.update({given}) for group in optimizer.param_groups]  # or where you make the optimizer"
        kept = {key: list(value) if isinstance(value, tuple) else value for key, value in usual.items()}
        yield _remedy("settings", told, paste, settings=kept)


def _rates(run: Run) -> Iterator[Trial]:
    """Lower rates; a higher one too where nothing is learned."""
    groups = run.header.optimizer.groups if run.header.optimizer else ()
    plan = run.header.plan
    peak = plan.peak if plan.lr else groups[0].lr if groups else 0.0
    for factor in (*LOWER[1:], HIGHER) if nothing_learned(run) and not unlearned(run) else LOWER:
        paste = f"lr *= {factor:g}  # wherever you set it; its peak becomes {peak * factor:.4g}"
        yield _remedy(f"lr-{factor:g}", f"learning rate × {factor:g}", paste, lr_factor=factor)


def _warm_up(run: Run) -> Iterator[Trial]:
    """Over .3 of the plan, and to twice the step at which its rate is highest, at least."""
    rates = [max(row) for row in run.header.plan.lr]
    peak = run.header.plan.lr_steps[rates.index(max(rates))] if rates else 0
    steps = min(horizon(run), max(10, int(WARM_UP_SHARE * horizon(run)), 2 * peak))
    schedule = "torch.optim.lr_scheduler.LambdaLR"
    paste = f"scheduler = {schedule}(optimizer, lambda step: min(1.0, (step + 1) / {steps}))  # × your own schedule"
    yield _remedy("warm-up", f"a warm-up over {steps} steps on top", paste, warm_up=steps)


def _weights(run: Run) -> Iterator[Trial]:
    """The initial weights of the layer that they accuse, as large as its peers'; or of all, so that nothing grows."""
    if top := _accused(run, "initialisation"):
        scale, what = 1 / (top.factor or 1.0), top.weights or top.name
        paste = f"{_scaled(run, top, scale)}  # before training"
        yield _remedy("init", f"{what} starts × {scale:.3g}", paste, layer=what, layer_scale=scale)
    elif (depth := along_depth(run)) and not FADED <= depth.total <= GROWN:
        scale, all_of = 1 / depth.rate, _of_types(run, depth.types)
        note = f"all {len(all_of)} layers of type {' and '.join(depth.types)} start × {scale:.3g}"
        yield _remedy("init", note, _all_scaled(depth.types, scale), layer=", ".join(all_of), layer_scale=scale)


def _group(run: Run) -> Iterator[Trial]:
    """The parameter group whose rate accuses its layer, at the rate of the layer's peers."""
    top = _accused(run, "learning rate")
    if top is None or not top.factor or run.header.optimizer is None:
        return
    groups, scale = run.header.optimizer.groups, 1 / top.factor
    own = {i for i, parameter in enumerate(run.header.parameters) if parameter.layer == top.name}
    holding = [i for i, group in enumerate(groups) if own & set(group.parameters)]
    number = max(holding, key=lambda i: groups[i].lr)
    where, place = _group_named(run, number)
    paste = f'optimizer.param_groups[{place}]["lr"] *= {scale:.3g}  # {where}before the scheduler is made'
    note = f"{where}parameter group {place} learns at × {scale:.3g}"
    yield _remedy("group", note, paste, group=number, group_scale=scale)


def _clip(run: Run) -> Iterator[Trial]:
    """The threshold that won."""
    winner = next((c for c in candidates(run) if c.chosen), None)
    if winner and winner.max_norm is not None:
        paste = snippet_for(run, "pytorch", winner.max_norm)
        yield _remedy(CLIP, f"clip at {winner.max_norm:.4g}", paste, max_norm=winner.max_norm)


def _accused(run: Run, component: str) -> LayerRisk | None:
    """The layer most at risk that stands out by this cause."""
    return next((one for one in rank_layers(run) if one.level != "low" and one.component == component), None)


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
