"""Judges a run: rules, the ranking of layers, the verdict. Pure functions over a Run; `diagnose.py` is the door."""
