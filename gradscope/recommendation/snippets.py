"""The line to paste: a recommendation as each framework writes it."""

from __future__ import annotations

from dataclasses import dataclass

from gradscope.diagnosis.series import uses_scaler
from gradscope.errors import UsageError
from gradscope.recommendation.model import By, Recommendation
from gradscope.runs.run import Run


@dataclass(frozen=True)
class Form:
    """How one framework clips by the norm, by value (None: it cannot), and not at all. `{}` is the threshold."""

    norm: str
    value: str | None
    off: str


UNSCALE = "scaler.unscale_(optimizer)  # once a step, before clipping\n"
PLACE, IN_CLOSURE = "after backward(), before optimizer.step()", "in the closure that LBFGS calls, after backward()"
DENSE = "[p for p in model.parameters() if p.grad is not None and not p.grad.is_sparse]"
FORMS = {
    "pytorch": Form(
        "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={})  # " + PLACE,
        "torch.nn.utils.clip_grad_value_(model.parameters(), clip_value={})  # " + PLACE,
        "# no clipping: leave out torch.nn.utils.clip_grad_norm_",
    ),
    "lightning": Form(
        'trainer = Trainer(gradient_clip_val={}, gradient_clip_algorithm="norm")',
        'trainer = Trainer(gradient_clip_val={}, gradient_clip_algorithm="value")',
        "trainer = Trainer(gradient_clip_val=None)",
    ),
    "lightning-manual": Form(
        'self.clip_gradients(optimizer, gradient_clip_val={}, gradient_clip_algorithm="norm")  # before optimizer.step()',
        'self.clip_gradients(optimizer, gradient_clip_val={}, gradient_clip_algorithm="value")  # before optimizer.step()',
        "# no clipping: leave out self.clip_gradients",
    ),
    "transformers": Form(
        "args = TrainingArguments(..., max_grad_norm={})",
        None,
        "args = TrainingArguments(..., max_grad_norm=0.0)  # 0 turns clipping off; the default is 1.0",
    ),
    "accelerate": Form(
        "if accelerator.sync_gradients:\n    accelerator.clip_grad_norm_(model.parameters(), max_norm={})",
        "if accelerator.sync_gradients:\n    accelerator.clip_grad_value_(model.parameters(), clip_value={})",
        "# no clipping: leave out accelerator.clip_grad_norm_",
    ),
    "deepspeed": Form('"gradient_clipping": {}', None, '"gradient_clipping": 0.0'),
    "torchtitan": Form("[training]\nmax_norm = {}", None, "[training]\nmax_norm = inf"),
    "composer": Form(
        'trainer = Trainer(..., algorithms=[GradientClipping(clipping_type="norm", clipping_threshold={})])',
        'trainer = Trainer(..., algorithms=[GradientClipping(clipping_type="value", clipping_threshold={})])',
        "# no clipping: leave GradientClipping out of the algorithms",
    ),
    "optax": Form(
        "optimizer = optax.chain(optax.clip_by_global_norm({}), optimizer)",
        "optimizer = optax.chain(optax.clip({}), optimizer)",
        "# no clipping: leave optax.clip_by_global_norm out of the chain",
    ),
    "keras": Form(
        "optimizer.global_clipnorm = {}  # or keras.optimizers.Adam(..., global_clipnorm={})",
        "optimizer.clipvalue = {}  # or keras.optimizers.Adam(..., clipvalue={})",
        "optimizer.global_clipnorm = None",
    ),
}


def uses_closure(run: Run) -> bool:
    """Whether its optimizer calls a closure that computes the gradients, as LBFGS does."""
    return run.header.optimizer is not None and "LBFGS" in run.header.optimizer.type


def uses_sparse(run: Run) -> bool:
    """Whether some of its gradients are sparse, whose norm torch cannot take."""
    return run.header.optimizer is not None and "SparseAdam" in run.header.optimizer.type


def snippet_for(run: Run, framework: str, max_norm: float | None, by: By = "norm") -> str:
    """The line or lines that clip at this threshold in `framework`, as the training of this run needs them.

    Raises:
        UsageError: as `snippet`.
    """
    line = _line(framework, max_norm, by, scaled=uses_scaler(run), closure=uses_closure(run))
    return line.replace("model.parameters()", DENSE) if uses_sparse(run) else line


def snippet(framework: str, recommendation: Recommendation, *, scaled: bool = False, closure: bool = False) -> str:
    """The line or lines that put `recommendation` to work in `framework`; the threshold has four digits.

    `scaled`: a gradient scaler is in use, for which plain PyTorch needs a line of its own. `closure`: gradients are computed
    in a closure, where they must be clipped.

    Raises:
        UsageError: an unknown framework, or one that cannot clip by value when that is asked.
    """
    return _line(framework, recommendation.max_norm, recommendation.by, scaled=scaled, closure=closure)


def _line(framework: str, max_norm: float | None, by: By, *, scaled: bool, closure: bool) -> str:
    form = FORMS.get(framework.lower())
    if form is None:
        raise UsageError(f"no snippet for {framework!r}; there are: {', '.join(FORMS)}")
    if max_norm is None:
        return form.off
    line = form.norm if by == "norm" else form.value
    if line is None:
        able = ", ".join(name for name, other in FORMS.items() if other.value)
        raise UsageError(f"{framework.lower()} cannot clip by value; these can: {able}")
    before = UNSCALE if scaled and framework.lower() == "pytorch" else ""
    line = line.replace(PLACE, IN_CLOSURE) if closure else line
    return before + line.replace("{}", repr(float(f"{max_norm:.4g}")))
