"""What went nonfinite first, in words."""

from __future__ import annotations

from gradscope.diagnosis.series import any_of
from gradscope.runs.schema import Offender


def named(seen: Offender) -> str:
    """`the activation of fc1`, `what log computed after fc1`, `the input that fc1 reads`, `the data`, `the loss`."""
    where = seen.parameter or seen.layer or "the network"
    if seen.went_first == "loss":
        return "the loss"
    if seen.went_first == "input":
        return f"the input that {seen.layer} reads" if seen.layer else "the data"
    if seen.went_first == "operation":
        return f"what {any_of(seen.operations)} computed after {where}"
    if seen.went_first == "activation" and seen.parameter:
        return f"the values of {seen.parameter}"
    later = f" or what {any_of(seen.operations)} computed after it" if seen.operations else ""
    return f"the {seen.went_first} of {where}{later}"
