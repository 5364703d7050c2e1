"""The rules, one file each, in the order of their codes. Adding one is a line in RULES."""

from __future__ import annotations

from gradscope.diagnosis.model import Rule
from gradscope.diagnosis.rules import (
    already_exploding,
    culprit_layer,
    inactive_clipping,
    inferred_loss,
    learns_nothing,
    measured_post_clip,
    no_gradient,
    nonfinite_gradient,
    nonfinite_loss,
    recurrent_growth,
    saturated_clipping,
    scaled_gradients,
    skipped_steps,
    spike,
    sustained_growth,
    synthetic_data,
    too_few_steps,
    unrecorded_steps,
)

RULES: tuple[Rule, ...] = (
    nonfinite_gradient.RULE,
    nonfinite_loss.RULE,
    scaled_gradients.RULE,
    skipped_steps.RULE,
    already_exploding.RULE,
    sustained_growth.RULE,
    spike.RULE,
    learns_nothing.RULE,
    culprit_layer.RULE,
    recurrent_growth.RULE,
    no_gradient.RULE,
    saturated_clipping.RULE,
    inactive_clipping.RULE,
    too_few_steps.RULE,
    measured_post_clip.RULE,
    synthetic_data.RULE,
    inferred_loss.RULE,
    unrecorded_steps.RULE,
)
