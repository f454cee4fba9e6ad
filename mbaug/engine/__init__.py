"""The engine makes the method fast and changes no number of it. The method runs without it; whoever trains passes it in.

- ``process``: one thread a process, the fastest product at a precision.
- ``perceptron``: a population of perceptrons with a backward pass derived by hand.
- ``graphs``: a stretch of updates, captured once and then replayed.
"""

from mbaug.engine.process import DEVICES, devices, has_bfloat16, prepare

__all__ = ["DEVICES", "devices", "has_bfloat16", "prepare"]
