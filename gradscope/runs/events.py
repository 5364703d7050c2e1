"""What a recorder saw the training do in the wrong order: probes on the step where it happened, judged later by rules.

The subject says in plain words what it was about ("" for nothing in particular); the value is explained beside each name.
"""

from __future__ import annotations

CLIP_BEFORE_BACKWARD = "event:clip-before-backward"
"""Clipped when no gradient had been computed for this step; value: max_norm."""
CLIP_AFTER_STEP = "event:clip-after-step"
"""Clipped gradients that the optimizer had used already; value: max_norm."""
CLIP_SCALED = "event:clip-scaled"
"""Clipped gradients that still held the loss scale; value: that scale."""
CLIP_MICRO_BATCH = "event:clip-micro-batch"
"""Clipped, then more gradients were accumulated before the step; value: the micro-step (0-based) that was clipped."""
CLIP_LIMIT = "event:clip-limit"
"""A threshold that is zero, negative or NaN; value: that threshold."""
CLIP_SUBSET = "event:clip-subset"
"""Fewer parameters clipped than the step updates; value: how many were left out, subject: one of them."""
CLIP_RAISES = "event:clip-raises"
"""Clipped with `error_if_nonfinite=True`: the first nonfinite gradient ends the training; value: max_norm."""
CLIP_UNREACHED = "event:clip-unreached"
"""The script names a clipping function that was never called; subject: its name, value: 0."""
CLIP_BY_HAND = "event:clip-by-hand"
"""Gradients shrank between backward and step without a clipping function of torch; value: after ÷ before."""
CLIP_BY_VALUE = "event:clip-by-value"
"""Clipped elementwise; value: the largest |g| allowed."""
CLIP_OTHER_NORM = "event:clip-other-norm"
"""Clipped by a norm that is not L2; value: its order, subject: the threshold."""
SCHEDULE_BEFORE_STEP = "event:schedule-before-step"
"""The learning-rate schedule moved on while gradients waited for their step; value: 0."""
GRADIENTS_CHANGED = "event:gradients-changed"
"""The script changed gradients between backward and step, and not by shrinking them; value: after ÷ before."""
