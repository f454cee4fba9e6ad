"""The engine makes the method fast and changes none of its numbers. The method runs without it; a run passes it in.

- ``process``: one thread a process, the fastest product at a precision.
- ``perceptron``: a population of perceptrons with a backward pass derived by hand.
- ``graphs``: a stretch of updates, captured once and then replayed.
"""

from mbaug.engine.process import DEVICES, devices, has_bfloat16, prepare

__all__ = ["DEVICES", "devices", "has_bfloat16", "prepare"]
