"""Measures gradients while training runs and writes a run. It never judges. This side imports torch."""
