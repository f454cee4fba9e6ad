"""The engine makes the method faster and changes none of its numbers. The method also runs without it; each run passes it in.

- ``process``: one thread per process, and the fastest matrix product at each precision.
- ``perceptron``: a population of perceptrons with a backward pass derived by hand.
- ``graphs``: a sequence of updates, captured once and then replayed.
"""

from mbaug.engine.process import DEVICES, devices, has_bfloat16, prepare

__all__ = ["DEVICES", "devices", "has_bfloat16", "prepare"]
