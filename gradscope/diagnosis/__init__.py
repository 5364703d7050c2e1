"""Judges a run: rules, the ranking of layers, the verdict. Pure functions over a Run."""

from gradscope.diagnosis.diagnose import diagnose
from gradscope.diagnosis.explain import explain, rules_table

__all__ = ["diagnose", "explain", "rules_table"]
